#!/usr/bin/env bash
# The processes on equal terms: the same text, vocabulary, layers, batches, seed and number of steps, each trained on its
# own objective with its true weights; then the likelihood of the same held-out sentences, and samples, which a judge reads:
# an autoregressive model of the same size, trained here on the same text from another seed.
#
#   bash runs/family.sh TRAIN.txt VALID.txt [OUT [STEPS]]      (OUT: out/family, STEPS: 3000)
#
# The rows run side by side, one core each (JOBS=1: one after the other); what is there is not run again.
set -euo pipefail
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/setup.sh"
begin "$@"
. ./runs/recipe.sh

row() { # train, valid, folder, steps, name
    local train=$1 valid=$2 out=$3 steps=$4 name=$5 flags=() scoring=(--target_se 0.003)
    case $name in # D3PM and SEDD are told the time, as released; bounds are at as many steps as there are
        word_freq) flags=(--process word_freq --spindle paper) scoring+=(--num_steps 2048 --estimator trajectory) ;;
        word_freq_none) flags=(--process word_freq --spindle none) scoring+=(--num_steps 2048 --estimator masked-count) ;;
        d3pm) flags=(--process d3pm --time_conditioning layerwise) scoring+=(--num_steps 1000 --estimator stratified) ;;
        sedd) flags=(--process sedd --time_conditioning layerwise) ;;
        mdlm) flags=(--process mdlm) ;;
        ar) flags=(--process ar) scoring=() ;;
        judge) flags=(--process ar --seed 7) scoring=() ;;
    esac
    [ -e "$out/$name/curve.png" ] || python main.py --train_data "$train" --valid_data "$valid" --output_dir "$out/$name" \
        --cache_dir "$out/cache" --tokenizer wordpiece --vocab_size 4096 --max_length 64 --batch_size 64 \
        --model_name_or_path modernbert-small --from_scratch true \
        --config_overrides hidden_size=192,intermediate_size=384,num_attention_heads=3 \
        --optimizer muon --learning_rate 3e-3 --lr_schedule cosine --warmup_steps 200 --weight_decay 0.1 \
        --max_steps "$steps" --eval_steps "$steps" --eval_sequences 64 --logging_steps 50 --threads 1 --precision fp32 \
        ${flags[@]+"${flags[@]}"}
    [ -e "$out/$name.json" ] || python compute_elbo.py --checkpoint "$out/$name/checkpoint-last" --data "$valid" \
        --cache_dir "$out/cache" --limit 500 --threads 1 --json true ${scoring[@]+"${scoring[@]}"} >"$out/$name.part"
    [ ! -e "$out/$name.part" ] || mv "$out/$name.part" "$out/$name.json"
    [ "$name" = judge ] || [ -e "$out/$name.txt" ] || python predict.py --checkpoint "$out/$name/checkpoint-last" \
        --num_samples 200 --threads 1 --output "$out/$name.txt" >/dev/null
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
train=$(existing "$1") valid=$(existing "$2") out=$(there "${3:-$root/out/family}") steps=${4:-3000}
whole_number STEPS "$steps"
whole_number JOBS "${JOBS:-2}"
ensure_environment requirements.txt
export OMP_NUM_THREADS=1
mkdir -p -- "$out"
row "$train" "$valid" "$out" "$steps" ar # alone: it leaves the vocabulary and the tokenised text to the others
printf '%s\0' d3pm mdlm sedd word_freq word_freq_none judge |
    side_by_side runs/family.sh "$train" "$valid" "$out" "$steps"
for name in ar d3pm mdlm sedd word_freq word_freq_none; do
    [ -e "$out/$name.metrics" ] || python compute_metric.py --predictions "$out/$name.txt" --references "$valid" \
        --tokenizer "$out/ar/checkpoint-last" --judge_model "$out/judge/checkpoint-last" --json true >"$out/metrics.part"
    [ ! -e "$out/metrics.part" ] || mv "$out/metrics.part" "$out/$name.metrics"
done
python - "$out" <<'PYTHON'
import json
import math
import sys
from pathlib import Path

from utils.figures import number

columns = "process | nats a sequence | of these its length | bits/token | PPL per token | PPL per word | generative PPL | entropy"
print(f"| {columns} |\n|---|---|---|---|---|---|---|---|")
for name in ("ar", "mdlm", "word_freq_none", "word_freq", "d3pm", "sedd"):
    r, m = (json.loads(Path(sys.argv[1], f"{name}.{kind}").read_text()) for kind in ("json", "metrics"))
    length = r["length_nats"] or 0  # of ar the end of a text is in its nats; the others are given the length
    total = r["nats_per_sequence"] + length
    token, word = (math.exp(total * r["num_sequences"] / r[count]) for count in ("num_tokens", "num_words"))
    print(
        f"| {name} | {total:.2f} ± {r['standard_error_nats']:.2f} | {f'{length:.2f}' if length else 'said'} "
        f"| {math.log2(token):.3f} | {token:.1f} | {word:.0f} "
        f"| {number(m['gen_ppl'], 0)} ± {number(m['gen_ppl_se'], 0)} | {m['token_entropy']:.3f} |"
    )
PYTHON
