#!/usr/bin/env bash
# The README's table of spindles on LM1B, small enough for two CPU cores.
#   bash runs/lm1b_small.sh TRAIN.txt VALID.txt TOKENIZER [FLAGS of main.py]
# Equal training: same network, data order, steps and seed; only the spindle differs. The rows run side by side, one
# core each (JOBS=1: one after the other). Results: out/lm1b-small/*.json; a row that is there is not run again.
set -euo pipefail
cd "$(dirname "$0")/.."

row() { # spindle, train, valid, tokenizer, flags...
    local spindle=$1 train=$2 valid=$3 tokenizer=$4 out=out/lm1b-small posterior
    shift 4
    [ -e "$out/$spindle/curve.png" ] || python main.py --train_data "$train" --valid_data "$valid" \
        --tokenizer "$tokenizer" --model_name_or_path modernbert-small --from_scratch true \
        --max_length 128 --batch_size 64 --max_steps 5000 --eval_steps 1000 --threads 1 --output_dir "$out/$spindle" \
        --optimizer muon --learning_rate 3e-3 --weight_decay 0.1 --loss_weighting uniform --warm_start 0.33 \
        --spindle "$spindle" "$@"
    for posterior in exact released; do
        [ -e "$out/$spindle-$posterior.json" ] || python compute_elbo.py --checkpoint "$out/$spindle" --data "$valid" \
            --num_steps 128 --limit 500 --posterior "$posterior" --json true --threads 1 >"$out/$spindle-$posterior.part"
        [ ! -e "$out/$spindle-$posterior.part" ] || mv "$out/$spindle-$posterior.part" "$out/$spindle-$posterior.json"
    done
}

if [ "${1-}" = --row ]; then
    shift
    row "$@"
    exit
fi
[ $# -ge 3 ] || { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; }
printf '%s\0' paper none released | xargs -0 -P "${JOBS:-2}" -I{} bash runs/lm1b_small.sh --row {} "$@"
python - <<'PYTHON'
import json
from pathlib import Path

from figures import number

print("| spindle | nats/sequence | bits/token | PPL per word | `released` would claim: nats | PPL per word |\n|---|---|---|---|---|---|")
for spindle in ("paper", "released", "none"):
    exact, claim = (json.loads(Path(f"out/lm1b-small/{spindle}-{p}.json").read_text()) for p in ("exact", "released"))
    print(
        f"| {spindle} | {exact['nats_per_sequence']:.2f} ± {exact['standard_error_nats']:.2f} | {exact['bits_per_token']:.3f} "
        f"| {number(exact['ppl_word'], 0)} | {claim['nats_per_sequence']:.2f} | {number(claim['ppl_word'], 0)} |"
    )
PYTHON
