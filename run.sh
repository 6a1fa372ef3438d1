#!/usr/bin/env bash
# Train DiffusionBERT.
#
#   bash run.sh demo            ten minutes on two cores: docstring corpus, training, likelihood bound, samples
#   bash run.sh demo pretrained the same from pretrained weights (minilm), which take 83 MB
#   bash run.sh [FLAGS]         LM1B with bert-base-uncased at the paper's settings (GPU and network); also: run.sh lm1b
#   bash run.sh PATH [FLAGS]    your text: .txt, .jsonl, .csv, .tsv, .json, .parquet, or a folder with train.txt, valid.txt
#
# Results go to out/demo, out/demo_pretrained, out/lm1b or out/NAME, where NAME is that of the folder, or of the file
# without its format's suffix (.txt, .csv, .gz, ...). A second text of the same name needs --output_dir. A folder of
# yours named demo is ./demo. FLAGS are those of main.py (.venv/bin/python main.py --help) and override the ones set
# here:
#   bash run.sh lm1b --learning_rate 5e-5
set -euo pipefail
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/runs/recipe.sh"
begin "$@"

demo() { # scratch or pretrained
    local folder=out/demo network=("${demo_network[@]}")
    if [ "$1" = pretrained ]; then
        folder=out/demo_pretrained network=("${demo_pretrained[@]}")
    fi
    demo_folder=$folder
    mkdir -p $folder
    [ -e $folder/seconds.install ] || echo "$install_seconds" >$folder/seconds.install
    stage corpus python -m data.demo_corpus --output $folder/corpus
    # ten minutes in all: training gets the rest after installing, scoring and sampling, 6.5 minutes at most
    local minutes threads
    threads=$(python -c "import os; print(min(4, os.cpu_count()))") # more threads slow down a network this small
    [ -e $folder/minutes ] || python -c "print(round(min(6.5, max(3.0, (500 - $SECONDS) / 60)), 2))" >$folder/minutes
    minutes=$(cat $folder/minutes) # kept for a demo that resumes
    stage train launch 0 --train_data $folder/corpus --output_dir $folder --max_length 64 --batch_size 128 \
        "${network[@]}" --max_steps 100000 --max_minutes "$minutes" --threads "$threads" \
        --eval_minutes 1 --eval_sequences 64 --eval_estimator trajectory --logging_steps 20
    stage score score_demo $folder
    stage sample python predict.py --checkpoint $folder/checkpoint --num_samples 20 --num_steps 256 \
        --temperature 0.4 --top_p 0.95 --output $folder/samples.txt
    summarise_demo $folder
}

score_demo() { # folder
    python compute_elbo.py --checkpoint "$1/checkpoint" --data "$1/corpus/valid.txt" --num_steps 128 \
        --estimator trajectory --evaluations 1 --json true >"$1/elbo.json.part"
    mv "$1/elbo.json.part" "$1/elbo.json"
}

summarise_demo() { # folder
    python - "$1" <<'PYTHON'
import json
import sys
from pathlib import Path

from utils.figures import number
from utils.files import written_whole
from training.outcome import verdict_in_log

demo = Path(sys.argv[1])
elbo = json.loads((demo / "elbo.json").read_text())
seconds = {f.suffix[1:]: int(f.read_text()) for f in sorted(demo.glob("seconds.*"), key=lambda f: f.stat().st_mtime)}
summary = {key: elbo[key] for key in ("bits_per_token", "unigram_bits_per_token", "ppl_word")}
texts = (demo / "samples.txt").read_text().splitlines()
summary |= {"seconds": seconds, "checkpoint": str(demo / "checkpoint"), "samples": str(demo / "samples.txt")}
verdict = verdict_in_log(demo / "log.jsonl")
warning = f"\n  WARNING: {verdict}" if verdict else ""
summary |= {"sample_texts": texts, "elbo": elbo, "verdict": verdict}
with written_whole(demo / "summary.json") as file:
    json.dump(summary, file, indent=1)
took = ", ".join(f"{name} {n} s" for name, n in seconds.items())
print(f"""
The demo is done ({took}).
  {number(elbo['bits_per_token'], 2)} bits/token on held-out sentences (an upper bound; unigram model: {elbo['unigram_bits_per_token']:.2f}),
  perplexity {number(elbo['ppl_word'], 1)} per word at {elbo['num_steps']} steps{warning}
  {demo}/checkpoint    the model
  {demo}/samples.txt   the sentences above
  {demo}/curve.png     its training curve
  {demo}/summary.json  these figures
next: .venv/bin/python predict.py --checkpoint {demo}/checkpoint --show
      .venv/bin/python predict.py --checkpoint {demo}/checkpoint --infill "return the [MASK] [MASK] of the array."
      bash run.sh YOUR_TEXT.txt""")
PYTHON
}

lm1b() {
    local count
    count=$(gpus)
    if [ "$count" -eq 0 ]; then
        echo "error: no CUDA GPU, without which LM1B at the paper's settings takes months; try: bash run.sh demo" >&2
        exit 2
    fi
    fit_to_memory "$count" 64
    launch "$count" --train_data lm1b --output_dir out/lm1b "${of_the_paper[@]}" \
        --eval_steps 15000 --eval_step_size 16 "${fitted[@]}" "$@"
}

own_text() { # path, folder for its results, flags...
    local text=$1 folder=$2 count
    shift 2
    count=$(gpus)
    if [ "$count" -eq 0 ]; then
        launch_small "$text" "$folder" "$@"
    else
        fit_to_memory "$count" 64
        launch "$count" --train_data "$text" --output_dir "$folder" --model_name_or_path bert-base-uncased \
            --max_length 128 --learning_rate 5e-5 --num_train_epochs 10 "${fitted[@]}" "$@"
    fi
}

case ${1-lm1b} in
    demo)
        case ${2-} in '' | pretrained) ;; *) refuse "$(quoted "$2"): demo takes no arguments but pretrained" ;; esac
        [ $# -le 2 ] || refuse "$(quoted "$3"): unexpected argument"
        recipe=(demo "${2:-scratch}")
        shift $#
        ;;
    lm1b)
        recipe=(lm1b)
        [ $# -eq 0 ] || shift
        ;;
    -*)
        recipe=(lm1b)
        [ ! -f "$(located "$1")" ] || refuse "$(quoted "$1") is taken as a flag; write $(quoted "./$1")"
        ;;
    *)
        must_exist "$1" "file or folder"
        text=$(located "$1")
        name=$(name_of "$text")
        case $name in
            cache | fitlog) refuse "$(quoted "$1"): out/$name holds data of all runs; rename the file or folder" ;;
            demo | demo_pretrained | lm1b | condition_*)
                [ "$(flag_value "$output_flag" "" "$@")" ] || refuse "$(quoted "$1"): out/$name belongs to another recipe; give --output_dir"
                ;;
            /) refuse "/: give a folder of texts" ;;
        esac
        recipe=(own_text "$text" "out/$name")
        shift
        ;;
esac
only_flags "$@"
resolve_paths "$@"
ensure_environment requirements.txt
[ "${recipe[*]}" != "demo pretrained" ] || require_pretrained
install_seconds=$SECONDS
"${recipe[@]}" ${arguments[@]+"${arguments[@]}"}
