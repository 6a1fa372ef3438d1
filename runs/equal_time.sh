#!/usr/bin/env bash
# The score-based process beside DiffusionBERT and MDLM, each trained for the same number of minutes on one core: the same
# text, vocabulary, depth, width, batches, optimizer and seed. Then the bound of 500 held-out sentences, and 200 samples at
# temperature 1 and at 0.5, which a judge reads: an autoregressive model of the same size, trained here as long, but for 12
# minutes at most (such a model soon knows a small text by heart), of which the checkpoint is taken that is best at VALID.txt.
#
#   bash runs/equal_time.sh TRAIN.txt VALID.txt [OUT [MINUTES]]      (OUT: out/equal_time, MINUTES: 8)
#
# Two rows at a time (JOBS=1: one), of those that ROWS names ("score mdlm score_plain word_freq", whatever it says a judge);
# what is there is not run again. Leave the machine alone meanwhile.
set -euo pipefail
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/setup.sh"
begin "$@"
. ./runs/recipe.sh

over_tokens=(--model_name_or_path modernbert-small
    --config_overrides hidden_size=192,intermediate_size=384,num_attention_heads=3)
over_embeddings=(--process score --model_name_or_path score-lm-small
    --config_overrides hidden_size=192,intermediate_size=384,num_attention_heads=3,embedding_size=64)

row() { # train, valid, folder, minutes, name
    local train=$1 valid=$2 out=$3 minutes=$4 name=$5 flags=() scoring=(--target_se 0.003)
    case $name in
        word_freq) flags=("${over_tokens[@]}" --spindle paper) scoring+=(--num_steps 2048 --estimator trajectory) ;;
        mdlm) flags=("${over_tokens[@]}" --process mdlm) ;;
        score) flags=("${over_embeddings[@]}") ;;
        score_plain) flags=("${over_embeddings[@]}" --output_prior false) ;;
        judge)
            flags=("${over_tokens[@]}" --process ar --seed 7 --eval_steps 250 --eval_sequences 500) scoring=()
            case ${minutes%%.*} in 1[2-9] | [2-9][0-9] | [0-9][0-9][0-9]*) minutes=12 ;; esac
            ;;
    esac
    [ -e "$out/$name/curve.png" ] || python main.py --train_data "$train" --valid_data "$valid" --output_dir "$out/$name" \
        --cache_dir "$out/cache" --tokenizer wordpiece --vocab_size 4096 --max_length 64 --batch_size 64 --from_scratch true \
        --optimizer muon --learning_rate 3e-3 --lr_schedule cosine --warmup_steps 200 --weight_decay 0.1 \
        --max_minutes "$minutes" --max_steps 1000000 --eval_steps 1000000 --eval_sequences 64 --logging_steps 100 \
        --threads 1 --precision fp32 ${flags[@]+"${flags[@]}"}
    [ -e "$out/$name.json" ] || python compute_elbo.py --checkpoint "$out/$name/checkpoint-last" --data "$valid" \
        --cache_dir "$out/cache" --limit 500 --threads 1 --json true ${scoring[@]+"${scoring[@]}"} >"$out/$name.part"
    [ ! -e "$out/$name.part" ] || mv "$out/$name.part" "$out/$name.json"
    for heat in 1 0.5; do
        [ "$name" = judge ] || [ -e "$out/$name.$heat.txt" ] || python predict.py --checkpoint "$out/$name/checkpoint-last" \
            --num_samples 200 --temperature "$heat" --threads 1 --output "$out/$name.$heat.txt" >/dev/null
    done
    echo "== $name is done"
}

if [ "${1-}" = --row ]; then
    shift
    row "$@"
    exit
fi
[ $# -ge 2 ] || refuse "TRAIN.txt and VALID.txt are needed"
[ $# -le 4 ] || refuse "$(shown "$5"): a word too many"
must_exist "$1" "file or folder"
must_exist "$2" "file or folder"
train=$(existing "$1") valid=$(existing "$2") out=$(there "${3:-$root/out/equal_time}") minutes=${4:-8}
[[ $minutes =~ ^([0-9]*\.)?[0-9]+$ && $minutes =~ [1-9] ]] || refuse "MINUTES=$(shown "$minutes") must be a number above 0"
whole_number JOBS "${JOBS:-2}"
read -r -a rows <<<"${ROWS:-score mdlm score_plain word_freq}"
for name in "${rows[@]}"; do
    case $name in
        score | mdlm | score_plain | word_freq) ;;
        *) refuse "ROWS: $(shown "$name") must be one of score, mdlm, score_plain, word_freq" ;;
    esac
done
ensure_environment requirements.txt
export OMP_NUM_THREADS=1
mkdir -p -- "$out"
python - "$train" "$out/cache" <<'PYTHON' # the vocabulary once, before two rows learn it side by side
import sys

from data.corpus import training_source
from data.tokenizers import learn_tokenizer

learn_tokenizer("wordpiece", training_source(sys.argv[1]), 4096, sys.argv[2])
PYTHON
printf '%s\0' "${rows[@]}" judge | side_by_side runs/equal_time.sh "$train" "$valid" "$out" "$minutes"
for sample in "$out"/*.1.txt "$out"/*.0.5.txt; do
    found=${sample%.txt}.metrics
    [ -e "$found" ] || python compute_metric.py --predictions "$sample" --references "$valid" \
        --tokenizer "$out/judge/checkpoint" --judge_model "$out/judge/checkpoint" --json true >"$out/metrics.part"
    [ ! -e "$out/metrics.part" ] || mv "$out/metrics.part" "$found"
done
python - "$out" <<'PYTHON'
import json
import math
import sys
from pathlib import Path

from utils.figures import number

columns = "process | steps | bits/token (less its length) | PPL per token | generative PPL | entropy | at 0.5 | entropy | BLEU-4"
print(f"| {columns} |\n|---|---|---|---|---|---|---|---|---|")
for name in ("word_freq", "mdlm", "score", "score_plain"):
    out = Path(sys.argv[1])
    if not (out / f"{name}.json").exists():
        continue
    score, *metrics = (json.loads((out / f"{name}.{kind}").read_text()) for kind in ("json", "1.metrics", "0.5.metrics"))
    steps = json.loads((out / name / "checkpoint-last" / "process.json").read_text())["facts"]["step"]
    judged = " | ".join(f"{number(m['gen_ppl'], 0)} ± {number(m['gen_ppl_se'], 0)} | {m['token_entropy']:.2f}" for m in metrics)
    bits = score["nats_per_sequence"] * score["num_sequences"] / score["num_tokens"] / math.log(2)
    bleu = metrics[1]["bleu_4"]
    print(f"| {name} | {steps:,} | {bits:.2f} | {number(score['ppl_token'], 0)} | {judged} | {bleu:.3f} |")
PYTHON
