#!/usr/bin/env bash
# The processes on equal terms: the same text, vocabulary, layers, batches, seed and number of steps, each trained on its
# own objective with its true weights; then the likelihood of the same held-out sentences, and samples.
#   bash runs/family.sh TRAIN.txt VALID.txt [OUT [STEPS]]
# The rows run side by side, one core each (JOBS=1: one after the other); one that is there is not run again.
set -euo pipefail
cd "$(dirname "$0")/.."

row() { # name, train, valid, folder, steps
    local name=$1 train=$2 valid=$3 out=$4 steps=$5 flags=() scoring=()
    case $name in # D3PM and SEDD are told the time, as released; a bound in continuous time where there is one
        word_freq) flags=(--process word_freq --spindle paper) scoring=(--num_steps 512) ;;
        word_freq_none) flags=(--process word_freq --spindle none) scoring=(--num_steps 512) ;;
        d3pm) flags=(--process d3pm --time_conditioning layerwise) scoring=(--num_steps 512) ;;
        sedd) flags=(--process sedd --time_conditioning layerwise) scoring=(--target_se 0.005) ;;
        mdlm) flags=(--process mdlm) scoring=(--target_se 0.005) ;;
        ar) flags=(--process ar) ;;
    esac
    [ -e "$out/$name/curve.png" ] || python main.py --train_data "$train" --valid_data "$valid" --output_dir "$out/$name" \
        --cache_dir "$out/cache" --tokenizer wordpiece --vocab_size 4096 --max_length 64 --batch_size 64 \
        --model_name_or_path modernbert-small --from_scratch true \
        --config_overrides hidden_size=192,intermediate_size=384,num_attention_heads=3 \
        --optimizer muon --learning_rate 3e-3 --lr_schedule cosine --warmup_steps 200 --weight_decay 0.1 \
        --max_steps "$steps" --eval_steps "$steps" --eval_sequences 64 --logging_steps 250 --threads 1 "${flags[@]}"
    [ -e "$out/$name.json" ] || python compute_elbo.py --checkpoint "$out/$name/checkpoint-last" --data "$valid" \
        --cache_dir "$out/cache" --limit 500 --threads 1 --json true "${scoring[@]}" >"$out/$name.part"
    [ ! -e "$out/$name.part" ] || mv "$out/$name.part" "$out/$name.json"
    python predict.py --checkpoint "$out/$name/checkpoint-last" --num_samples 100 --temperature 0.7 --threads 1 \
        --output "$out/$name.txt" >/dev/null
    echo "== $name is done"
}

if [ "${1-}" = --row ]; then
    shift
    row "$@"
    exit
fi
[ $# -ge 2 ] || { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; }
. ./setup.sh
ensure_environment requirements.txt
export OMP_NUM_THREADS=1
out=${3:-out/family}
mkdir -p "$out"
row ar "$1" "$2" "$out" "${4:-3000}" # alone: it leaves the vocabulary and the tokenised text to the others
printf '%s\0' d3pm mdlm sedd word_freq word_freq_none |
    xargs -0 -P "${JOBS:-2}" -I{} bash runs/family.sh --row {} "$1" "$2" "$out" "${4:-3000}"
python - "$out" <<'PYTHON'
import json
import sys
from pathlib import Path

print("| process | nats a sequence | bits/token | PPL per token | PPL per word | forwards |\n|---|---|---|---|---|---|")
for file in sorted(Path(sys.argv[1]).glob("*.json")):
    r = json.loads(file.read_text())
    print(
        f"| {file.stem} | {r['nats_per_sequence']:.2f} ± {r['standard_error_nats']:.2f} | {r['bits_per_token']:.3f} "
        f"| {r['ppl_token']:.1f} | {r['ppl_word']:.1f} | {r['network_evaluations']:g} |"
    )
PYTHON
