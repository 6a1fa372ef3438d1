#!/usr/bin/env bash
# LM1B as MDLM's paper trains it: its network (DDiT, 12 x 768, 139 M), bert-base-uncased's vocabulary, rows padded to 128
# and noised throughout, 512 rows a step, AdamW at 3e-4 after 2,500 steps of warm-up, weights averaged at 0.9999, 1 M steps
# (65.5 billion slots, padding included).
#   bash runs/lm1b_mdlm.sh mdlm|d3pm|sedd|ar|word_freq [FLAGS of main.py]      (GPUs; --train_data FOLDER for local text)
# word_freq is DiffusionBERT without spindle, T = 2048. Then scored twice: by MDLM's protocol, and unpadded.
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1-}" in
    mdlm) own=() ;;
    d3pm) own=(--time_conditioning layerwise) ;;
    sedd) own=(--time_conditioning layerwise) ;;
    ar) own=() ;;
    word_freq) own=(--spindle none) ;;
    *) sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
process=$1
shift
. ./setup.sh
. ./recipe.sh
ensure_environment requirements.txt
out=$(given --output_dir "out/lm1b-$process" "$@")
data=$(given --train_data lm1b "$@")
size=(--batch_size 512)
count=$(gpus)
if [ "$count" -gt 0 ]; then read -r -a size <<<"$(fit_to_memory "$count" 512)"; fi
launch "$count" --process "$process" "${own[@]}" --train_data lm1b --output_dir "$out" --tokenizer bert-base-uncased \
    --model_name_or_path ddit-small --from_scratch true --protocol padded --detokenizer lm1b --max_length 128 "${size[@]}" \
    --optimizer adamw --learning_rate 3e-4 --lr_schedule constant --warmup_steps 2500 --weight_decay 0 --max_grad_norm 1 \
    --ema_decay 0.9999 --max_steps 1000000 --eval_steps 10000 --logging_steps 1000 --valid_fraction 0.001 "$@"
for protocol in padded unpadded; do
    echo "== $protocol"
    python compute_elbo.py --checkpoint "$out/checkpoint-last" --data "$data" --protocol "$protocol"
done
