#!/usr/bin/env bash
# LM1B as in MDLM's paper: its network (DDiT, 12 x 768, 139 M), bert-base-uncased's vocabulary, rows padded to 128 with noise
# on every position, 512 rows per step, AdamW at 3e-4 after 2,500 steps of warm-up, weight average 0.9999, 1 M steps (65.5
# billion positions, padding included).
#
#   bash runs/lm1b_mdlm.sh mdlm|d3pm|sedd|ar|word_freq [FLAGS of main.py]     (GPUs; --train_data FOLDER for local text)
#
# word_freq is DiffusionBERT without spindle, T = 2048. Two scores follow: on padded rows as in MDLM, and unpadded. The model
# goes to out/lm1b-PROCESS, or to --output_dir.
set -euo pipefail
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/recipe.sh"
begin "$@"
case ${1-} in
    mdlm | ar) own=() ;;
    d3pm | sedd) own=(--time_conditioning layerwise) ;;
    word_freq) own=(--spindle none) ;;
    '') refuse "a process is needed: mdlm, d3pm, sedd, ar or word_freq" ;;
    *) refuse "$(quoted "$1") must be one of mdlm, d3pm, sedd, ar, word_freq" ;;
esac
process=$1
shift
only_flags "$@"
resolve_paths "$@"
set -- ${arguments[@]+"${arguments[@]}"}
ensure_environment requirements.txt
out=$(flag_value "$output_flag" "out/lm1b-$process" "$@")
data=$(flag_value "$data_flag" lm1b "$@")
count=$(gpus)
fit_to_memory "$count" 512
launch "$count" --process "$process" ${own[@]+"${own[@]}"} --train_data lm1b --output_dir "$out" --tokenizer bert-base-uncased \
    --model_name_or_path ddit-small --from_scratch true --row_format padded --detokenizer lm1b --max_length 128 "${fitted[@]}" \
    --optimizer adamw --learning_rate 3e-4 --lr_schedule constant --warmup_steps 2500 --weight_decay 0 --max_grad_norm 1 \
    --ema_decay 0.9999 --max_steps 1000000 --eval_steps 10000 --logging_steps 1000 --valid_fraction 0.001 "$@"
columns_of "$@"
for row_format in padded unpadded; do
    echo "== $row_format"
    python compute_elbo.py --checkpoint "$out/checkpoint-last" --data "$data" --row_format "$row_format" \
        ${columns[@]+"${columns[@]}"}
done
