#!/usr/bin/env bash
# Train DiffusionBERT on pairs (seq2seq), predict with minimum Bayes risk, and compute BLEU.
#
#   bash run_condition.sh demo            eight minutes on two cores: from the name of a function to its summary
#   bash run_condition.sh demo pretrained the same from pretrained weights (minilm)
#   bash run_condition.sh qqp [FLAGS]     DiffuSeq's data: qqp, Q-T, wiki_alignment or CC (conditional_data/*/README.md)
#   bash run_condition.sh FOLDER [FLAGS]  your own pairs: train.jsonl, valid.jsonl, test.jsonl with "src" and "trg"
#
# Results go to out/condition_NAME. A second folder of the same name needs --output_dir. Folders of yours named demo or qqp
# are ./demo and ./qqp. FLAGS are those of main.py (.venv/bin/python main.py --help) and override the ones set here:
#   bash run_condition.sh qqp --word_freq_lambda 0
set -euo pipefail
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/runs/recipe.sh"
begin "$@"

demo() { # scratch or pretrained
    local folder=out/condition_demo data=conditional_data/docstrings minutes threads network=("${demo_network[@]}")
    if [ "$1" = pretrained ]; then
        folder=out/condition_demo_pretrained network=("${demo_pretrained[@]}")
    fi
    demo_folder=$folder
    mkdir -p $folder
    [ -e $folder/seconds.install ] || echo "$install_seconds" >$folder/seconds.install
    stage pairs python -m data.demo_corpus --output $data --pairs true --min_words 3 --max_words 10 --known_words 4000 \
        --held_out_fraction 0.025
    threads=$(python -c "import os; print(min(4, os.cpu_count()))") # more threads slow down a network this small
    # longer training overfits; kept for a demo that resumes
    [ -e $folder/minutes ] || python -c "print(round(min(4.0, max(3.0, (420 - $SECONDS) / 60)), 2))" >$folder/minutes
    minutes=$(cat $folder/minutes)
    stage train launch 0 --train_data $data --output_dir $folder \
        "${network[@]}" --max_length 64 --batch_size 128 \
        --max_steps 100000 --max_minutes "$minutes" --eval_steps 1000 --eval_sequences 256 --logging_steps 200 --threads "$threads"
    stage predict predict_demo $folder predictions --show 8
    stage shuffled predict_demo $folder shuffled --show 0 --shuffle_sources true
    stage measure evaluate_demo $folder # the name under which older folders have it
    summarise_demo $folder
}

predict_demo() { # folder, name of the output, flags...
    local folder=$1 name=$2
    shift 2
    python predict_downstream_condition.py --checkpoint "$folder/checkpoint" \
        --data conditional_data/docstrings/test.jsonl --limit 500 --mbr_size 5 --num_steps 32 --temperature 0.4 \
        --batch_size 250 --precision auto --output "$folder/$name.jsonl" "$@"
}

evaluate_demo() { # folder
    local folder=$1 name
    for name in predictions shuffled; do
        python compute_metric.py --predictions "$folder/$name.jsonl" --train_data conditional_data/docstrings \
            --tokenizer "$folder/checkpoint" --json true >"$folder/metrics.$name.json.part"
        mv "$folder/metrics.$name.json.part" "$folder/metrics.$name.json"
    done
}

summarise_demo() { # folder
    python - "$1" <<'PYTHON'
import json
import sys
from pathlib import Path

from utils.files import written_whole
from training.outcome import verdict_in_log

demo = Path(sys.argv[1])
real, shuffled = (json.loads((demo / f"metrics.{name}.json").read_text()) for name in ("predictions", "shuffled"))
seconds = {f.suffix[1:]: int(f.read_text()) for f in sorted(demo.glob("seconds.*"), key=lambda f: f.stat().st_mtime)}
found = {
    "mbr": (real, "bleu"),
    "single": (real, "bleu_single"),
    "random": (real, "bleu_random"),
    "shuffled_source": (shuffled, "bleu"),
    "nearest": (real, "bleu_nearest"),
}
summary = {f"bleu_{name}": report[key] for name, (report, key) in found.items()}
summary |= {f"bleu_{name}_se": report[f"{key}_se"] for name, (report, key) in found.items()}
summary |= {"num_sources": real["num_sources"], "seconds": seconds, "metrics": real, "checkpoint": str(demo / "checkpoint")}
summary["verdict"] = verdict_in_log(demo / "log.jsonl")
warning = f"\n  WARNING: {summary['verdict']}" if summary["verdict"] else ""
with written_whole(demo / "summary.json") as file:
    json.dump(summary, file, indent=1)


def show(name: str) -> str:
    return f"{100 * summary[f'bleu_{name}']:5.2f} ± {100 * summary[f'bleu_{name}_se']:.2f}"


print(f"""
The demo is done ({', '.join(f'{name} {n} s' for name, n in seconds.items())}).
BLEU on {real['num_sources']} functions and classes that are not in the training set:
  {show('mbr')}  minimum Bayes risk choice among {real['mbr_size']} candidates
  {show('single')}  a single candidate
  {show('shuffled_source')}  the model with another function's name as source
  {show('random')}  a random summary from the training set
  {show('nearest')}  the training summary whose name shares the most word pieces{warning}
  {demo}/checkpoint         the model
  {demo}/predictions.jsonl  sources, references, candidates, choices
  {demo}/summary.json       these figures
next: .venv/bin/python compute_metric.py --predictions {demo}/predictions.jsonl
      bash run_condition.sh FOLDER_WITH_YOUR_PAIRS""")
PYTHON
}

require_pairs() { # argument, the folder that it names
    must_exist "$1" folder
    [ -e "$2/train.jsonl" ] ||
        refuse "$(quoted "$1"): no train.jsonl in it$([ ! -e "$2/README.md" ] || echo "; its README.md names the source of the files")"
    [ -e "$2/test.jsonl" ] || [ -e "$2/valid.jsonl" ] ||
        refuse "$(quoted "$1"): neither test.jsonl nor valid.jsonl in it; hold out some pairs for evaluation"
}

task() { # folder with pairs, folder for the results, flags...: train (unless done), predict the test set, evaluate
    local data=$1 folder=$2 count columns pairs
    shift 2
    count=$(gpus)
    columns_of "$@"
    pairs=$(realpath -- "$data")${columns[*]:+ ${columns[*]}}
    # main.py refuses other pairs in this folder; the same pairs may have moved
    if [ -e "$folder/trained_on" ] && [ "$(cat "$folder/trained_on")" = "$pairs" ]; then
        echo "== train: done before ($folder; remove it to train again)"
    elif [ "$count" -eq 0 ]; then
        launch_small "$data" "$folder" "$@"
    else
        fit_to_memory "$count" 256
        # the released settings (T = 2000, 5e-5, 64 pairs x 4 per step), but bert-base-uncased instead of roberta-base
        launch "$count" --train_data "$data" --output_dir "$folder" --model_name_or_path bert-base-uncased \
            --max_length 128 --num_steps 2000 --learning_rate 5e-5 --num_train_epochs 50 "${fitted[@]}" "$@"
    fi
    printf '%s\n' "$pairs" >"$folder/trained_on"
    echo "== predict"
    python predict_downstream_condition.py --checkpoint "$folder/checkpoint" --data "$data" --mbr_size 10 --top_k 15 \
        --step_size 10 --precision auto --output "$folder/predictions.jsonl" ${columns[@]+"${columns[@]}"}
    echo "== evaluate"
    python compute_metric.py --predictions "$folder/predictions.jsonl" --train_data "$data" --tokenizer "$folder/checkpoint" \
        ${columns[@]+"${columns[@]}"}
}

case ${1-} in
    '') refuse "a task is needed: demo, qqp, Q-T, wiki_alignment, CC, docstrings, or a folder with pairs" ;;
    demo)
        case ${2-} in '' | pretrained) ;; *) refuse "$(quoted "$2"): demo takes no arguments but pretrained" ;; esac
        [ $# -le 2 ] || refuse "$(quoted "$3"): unexpected argument"
        ensure_environment requirements.txt
        [ "${2-}" != pretrained ] || require_pretrained
        install_seconds=$SECONDS
        demo "${2:-scratch}"
        exit
        ;;
    qqp | Q-T | wiki_alignment | CC | docstrings) set -- "$root/conditional_data/$1" "${@:2}" ;;
esac
data=$(located "$1")
require_pairs "$1" "$data"
shift
only_flags "$@"
resolve_paths "$@"
ensure_environment requirements.txt
folder=$(flag_value "$output_flag" "out/condition_$(name_of "$data")" ${arguments[@]+"${arguments[@]}"})
task "$data" "$folder" ${arguments[@]+"${arguments[@]}"}
