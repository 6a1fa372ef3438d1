#!/usr/bin/env bash
# The table of spindles on LM1B in docs/results.md, small enough for two CPU cores.
#
#   bash runs/lm1b_small.sh TRAIN.txt VALID.txt TOKENIZER [FLAGS of main.py]     (TOKENIZER: a folder, vocab.txt, hub name)
#
# The rows differ in the spindle only: same network, order of the data, steps and seed. Two rows train at once, one core each
# (JOBS=1: one). Results: out/lm1b-small/*.json. Finished rows are not run again.
set -euo pipefail
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/recipe.sh"
begin "$@"

row() { # train, valid, tokenizer, flags..., spindle
    local train=$1 valid=$2 tokenizer=$3 out=out/lm1b-small spindle=${!#} posterior
    set -- "${@:4:$#-4}"
    launch 0 --train_data "$train" --valid_data "$valid" \
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
[ $# -ge 3 ] || refuse "TRAIN.txt, VALID.txt and TOKENIZER are needed"
must_exist "$1" "file or folder"
must_exist "$2" "file or folder"
whole_number JOBS "${JOBS:-2}"
train=$(located "$1") valid=$(located "$2")
tokenizer=$(located_value --tokenizer "$3")
shift 3
only_flags "$@"
resolve_paths "$@"
ensure_environment requirements.txt
printf '%s\0' paper none released |
    side_by_side runs/lm1b_small.sh "$train" "$valid" "$tokenizer" ${arguments[@]+"${arguments[@]}"}
python - <<'PYTHON'
import json
from pathlib import Path

from utils.figures import number

columns = "spindle | nats/sequence | bits/token | PPL per word | `released`: nats | PPL per word"
print(f"| {columns} |\n|---|---|---|---|---|---|")
for spindle in ("paper", "released", "none"):
    exact, claim = (json.loads(Path(f"out/lm1b-small/{spindle}-{p}.json").read_text()) for p in ("exact", "released"))
    print(
        f"| {spindle} | {exact['nats_per_sequence']:.2f} ± {exact['standard_error_nats']:.2f} | {exact['bits_per_token']:.3f} "
        f"| {number(exact['ppl_word'], 0)} | {claim['nats_per_sequence']:.2f} | {number(claim['ppl_word'], 0)} |"
    )
PYTHON
