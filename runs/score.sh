#!/usr/bin/env bash
# The score-based diffusion LM, with the flags of thorinf's command:
#
#   bash runs/score.sh -d=TXT_CORPUS -spm=SPM_MODEL -mdir=MODEL_DIRECTORY [FLAGS of main.py]
#
# Without -spm, a SentencePiece model is learned from the corpus (BPE, one symbol per digit). Without -mdir: out/score.
# With a GPU, the released sizes: embeddings of 256, 8 layers of 1,024, packed rows of 64, 128 rows per step, AdamW at 1e-4
# after 30,000 steps of warm-up, 1 M steps, weight average 0.9999. Without a GPU, a small network, one hour at most.
# docs/score.md lists the flags of the release, docs/differences.md the other differences.
set -euo pipefail
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/recipe.sh"
begin "$@"
only_flags "$@"
resolve_paths "$@"
set -- ${arguments[@]+"${arguments[@]}"}
[ -n "$(flag_value "$data_flag" '' "$@")" ] || refuse "-d=TXT_CORPUS is needed"
ensure_environment requirements.txt
count=$(gpus)
common=(--process score --from_scratch true -spm sentencepiece -mdir out/score --max_length 64 --packing true
    --drop_given 0.1)
if [ "$count" -gt 0 ]; then size=32000; else size=8192; fi
if [ -z "$(flag_value "-spm --tokenizer" '' "$@")" ]; then common+=(--vocab_size "$size"); fi
if [ "$count" -gt 0 ]; then
    launch "$count" "${common[@]}" --model_name_or_path score-lm --batch_size $((128 / count)) \
        --optimizer adamw --learning_rate 1e-4 --lr_schedule late_cosine --warmup_steps 30000 --weight_decay 0.1 \
        --ema_decay 0.9999 --max_steps 1000000 --eval_steps 10000 --logging_steps 500 "$@"
else
    launch 0 "${common[@]}" --model_name_or_path score-lm-small --batch_size 32 \
        --optimizer muon --learning_rate 3e-3 --lr_schedule cosine --warmup_steps 200 --weight_decay 0.1 \
        --num_train_epochs 10 --max_minutes 60 "$@"
fi
