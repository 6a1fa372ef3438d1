#!/usr/bin/env bash
# Train every process with the same text, vocabulary, layers, batches, seed and number of steps, each with its own objective
# at its true weights. Report the likelihood of the same held-out sentences, and the generative perplexity of samples. The
# evaluating model is autoregressive, of the same size and trained on the same text from another seed.
#
#   bash runs/family.sh TRAIN.txt VALID.txt [OUT [STEPS]]      (OUT: out/family, STEPS: 3000)
#
# Two rows train at once, one core each (JOBS=1: one). Finished rows are not run again.
set -euo pipefail
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/table.sh"
begin "$@"

row() { # train, valid, folder, steps, name
    local train=$1 valid=$2 out=$3 steps=$4 name=$5 flags=() scoring=(--target_se 0.003)
    case $name in # D3PM and SEDD take the time as input, as released; the bounds are of the trained number of steps
        word_freq) flags=(--process word_freq --spindle paper) scoring+=(--num_steps 2048 --estimator trajectory) ;;
        word_freq_none) flags=(--process word_freq --spindle none) scoring+=(--num_steps 2048 --estimator masked-count) ;;
        d3pm) flags=(--process d3pm --time_conditioning layerwise) scoring+=(--num_steps 1000 --estimator stratified) ;;
        sedd) flags=(--process sedd --time_conditioning layerwise) ;;
        mdlm) flags=(--process mdlm) ;;
        ar) flags=(--process ar) scoring=() ;;
        judge)
            flags=(--process ar --seed 7) scoring=()
            forget_judgements "$out"
            ;;
    esac
    train_row "$train" "$valid" "$out/$name" "${token_network[@]}" --max_steps "$steps" --eval_steps "$steps" \
        --logging_steps 50 ${flags[@]+"${flags[@]}"}
    score_row "$out/$name" "$valid" ${scoring[@]+"${scoring[@]}"}
    [ "$name" = judge ] || sample_row "$out/$name" "$out/$name.txt"
    echo "== $name is done"
}

[ "${1-}" != --row ] || one_row "${@:2}"
parse_table out/family STEPS 3000 "$@"
whole_number STEPS "$length"
prepare_table
row "$train" "$valid" "$out" "$length" ar # first, since it writes the vocabulary and the tokenised text of the other rows
printf '%s\0' d3pm mdlm sedd word_freq word_freq_none judge |
    side_by_side runs/family.sh "$train" "$valid" "$out" "$length"
for name in ar d3pm mdlm sedd word_freq word_freq_none; do
    judge_row "$out/$name.txt" "$valid" "$out/ar/checkpoint-last" "$out/judge/checkpoint-last" "$out/$name.metrics"
done
python - "$out" <<'PYTHON'
import json
import math
import sys
from pathlib import Path

from utils.figures import number

columns = "process | nats per sequence | of these the length | bits/token"
columns += " | PPL per token | PPL per word | generative PPL | entropy"
print(f"| {columns} |\n|---|---|---|---|---|---|---|---|")
for name in ("ar", "mdlm", "word_freq_none", "word_freq", "d3pm", "sedd"):
    r, m = (json.loads(Path(sys.argv[1], f"{name}.{kind}").read_text()) for kind in ("json", "metrics"))
    length = r["length_nats"] or 0  # ar scores the end of each text; the other processes condition on the length
    total = r["nats_per_sequence"] + length
    token, word = (math.exp(total * r["num_sequences"] / r[count]) for count in ("num_tokens", "num_words"))
    print(
        f"| {name} | {total:.2f} ± {r['standard_error_nats']:.2f} | {f'{length:.2f}' if length else 'predicted'} "
        f"| {math.log2(token):.3f} | {token:.1f} | {word:.0f} "
        f"| {number(m['gen_ppl'], 0)} ± {number(m['gen_ppl_se'], 0)} | {m['token_entropy']:.3f} |"
    )
PYTHON
