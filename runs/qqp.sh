#!/usr/bin/env bash
# The QQP rows of docs/results.md, from scratch. On a GPU: the size of bert-base, with the spindle. On a CPU: a small network
# without spindle, whose sampler computes logits only for the positions that it reveals.
#
#   bash runs/qqp.sh FOLDER_WITH_TRAIN_JSONL VALID.jsonl VOCAB.txt OUTPUT_FOLDER [FLAGS of main.py]
#
# One training pair in fifty is held out to choose the checkpoint; VALID is used for the reported figures only. VOCAB.txt is
# that of bert-base-uncased. The model and its predictions go to OUTPUT_FOLDER.
set -euo pipefail
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/recipe.sh"
begin "$@"
[ $# -ge 4 ] || refuse "FOLDER_WITH_TRAIN_JSONL, VALID.jsonl, VOCAB.txt and OUTPUT_FOLDER are needed"
must_exist "$1" folder
must_exist "$2" "file or folder"
[ -n "$4" ] || refuse "OUTPUT_FOLDER is empty"
folder=$(located "$1") valid=$(located "$2") output=$(absolute "$4")
vocabulary=$(located_value --tokenizer "$3")
shift 4
only_flags "$@"
resolve_paths "$@"
set -- ${arguments[@]+"${arguments[@]}"}
output=$(flag_value "$output_flag" "$output" "$@")
ensure_environment requirements.txt
count=$(gpus)
if [ "$count" -gt 0 ]; then
    train=(--config_overrides hidden_size=768,intermediate_size=2048,num_hidden_layers=12,num_attention_heads=12
        --batch_size 512 --learning_rate 2e-3 --warmup_steps 300 --warm_start 0.2 --max_minutes 8 --precision bf16)
    predict=(--num_steps 128 --batch_size 2048 --precision bf16)
else
    train=(--config_overrides hidden_size=256,intermediate_size=512,num_hidden_layers=6,num_attention_heads=4
        --batch_size 128 --max_minutes 50 --word_freq_lambda 0 --precision auto)
    predict=(--num_steps 32 --batch_size 128 --precision auto)
fi
launch 0 --train_data "$folder" --tokenizer "$vocabulary" --output_dir "$output" --prompt '"{src}" is equal to "{trg}' \
    "${from_scratch[@]}" --max_length 128 --max_steps 1000000 --eval_steps 500 --eval_step_size 64 --eval_sequences 512 \
    --logging_steps 100 "${train[@]}" "$@"
python predict_downstream_condition.py --checkpoint "$output/checkpoint" --data "$valid" --mbr_size 10 \
    --temperature 0.5 --top_k 15 "${predict[@]}" --output "$output/predictions.jsonl"
for size in 1 3 10; do
    python compute_metric.py --predictions "$output/predictions.jsonl" --mbr_size $size
done
