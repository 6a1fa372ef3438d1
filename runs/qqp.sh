#!/usr/bin/env bash
# The README's QQP row: bert-base size from scratch on one large GPU, then ten candidates a source.
#   bash runs/qqp.sh FOLDER_WITH_TRAIN_JSONL VALID.jsonl VOCAB.txt
# A fiftieth of the training pairs is set aside to choose the checkpoint by; VALID is for the figures alone.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:?folder with train.jsonl} valid=${2:?validation pairs} vocabulary=${3:?vocab.txt of bert-base-uncased}
python main.py --train_data "$folder" --tokenizer "$vocabulary" --output_dir out/qqp --prompt '"{src}" is equal to "{trg}' \
    --model_name_or_path modernbert-small --from_scratch true \
    --config_overrides hidden_size=768,intermediate_size=2048,num_hidden_layers=12,num_attention_heads=12 \
    --max_length 128 --batch_size 512 --optimizer muon --learning_rate 2e-3 --lr_schedule cosine --warmup_steps 300 \
    --weight_decay 0.1 --loss_weighting uniform --warm_start 0.2 --max_steps 1000000 --max_minutes 16.5 \
    --eval_steps 1500 --eval_step_size 64 --eval_sequences 1024 --logging_steps 500 --precision bf16
python predict_downstream_condition.py --checkpoint out/qqp/checkpoint --data "$valid" --mbr_size 10 --num_steps 128 \
    --temperature 0.5 --top_k 15 --batch_size 2048 --precision bf16 --output out/qqp/predictions.jsonl
for size in 1 3 10; do
    python compute_metric.py --predictions out/qqp/predictions.jsonl --mbr_size $size
done
