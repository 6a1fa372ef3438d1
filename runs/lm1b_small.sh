#!/usr/bin/env bash
# The README's table of spindles on LM1B, small enough for two CPU cores (about 25 minutes of training a row).
#   bash runs/lm1b_small.sh TRAIN.txt VALID.txt TOKENIZER [FLAGS of main.py]
# Equal training: same network, data order, steps and seed; only the spindle differs. Results: out/lm1b-small/*.json
set -euo pipefail
train=$1 valid=$2 tokenizer=$3
shift 3
out=out/lm1b-small
for spindle in paper released none; do
    [ -e "$out/$spindle/checkpoint" ] || python main.py --train_data "$train" --valid_data "$valid" \
        --tokenizer "$tokenizer" --model_name_or_path modernbert-small --from_scratch true --attn_implementation eager \
        --max_length 128 --batch_size 64 --max_steps 3000 --eval_steps 1000 --threads 2 --output_dir "$out/$spindle" \
        --optimizer muon --learning_rate 3e-3 --loss_weighting uniform --warm_start 0.33 --spindle "$spindle" "$@"
    for posterior in exact released; do
        python compute_elbo.py --checkpoint "$out/$spindle" --data "$valid" --num_steps 128 --limit 500 \
            --posterior "$posterior" --json true --threads 2 >"$out/$spindle-$posterior.json.part"
        mv "$out/$spindle-$posterior.json.part" "$out/$spindle-$posterior.json"
    done
done
python - "$out" <<'PYTHON'
import json
import sys
from pathlib import Path

print("| spindle | nats/sequence | bits/token | PPL per word | `released` would claim: nats | PPL per word |\n|---|---|---|---|---|---|")
for spindle in ("paper", "released", "none"):
    exact, claim = (json.loads((Path(sys.argv[1]) / f"{spindle}-{p}.json").read_text()) for p in ("exact", "released"))
    print(
        f"| {spindle} | {exact['nats_per_sequence']:.2f} ± {exact['standard_error_nats']:.2f} | {exact['bits_per_token']:.3f} "
        f"| {exact['ppl_word']:.0f} | {claim['nats_per_sequence']:.2f} | {claim['ppl_word']:.0f} |"
    )
PYTHON
