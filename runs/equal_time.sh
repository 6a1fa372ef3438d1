#!/usr/bin/env bash
# Train the score-based process, DiffusionBERT and MDLM for the same number of minutes on one core each, with the same text,
# vocabulary, depth, width, batches, optimizer and seed. Report the bound of 500 held-out sentences, and the generative
# perplexity of 200 samples at temperatures 1 and 0.5. The evaluating model is autoregressive and of the same size; it trains
# for 12 minutes at most, since it overfits a small text, and its best checkpoint on VALID.txt is used.
#
#   bash runs/equal_time.sh TRAIN.txt VALID.txt [OUT [MINUTES]]      (OUT: out/equal_time, MINUTES: 8)
#
# ROWS selects the rows: "score mdlm score_plain word_freq" by default. Two rows train at once (JOBS=1: one). Finished rows
# are not run again. Other work on the machine distorts the comparison.
set -euo pipefail
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/table.sh"
begin "$@"

embedding_network=(--process score --model_name_or_path score-lm-small
    --config_overrides hidden_size=192,intermediate_size=384,num_attention_heads=3,embedding_size=64)

row() { # train, valid, folder, minutes, name
    local train=$1 valid=$2 out=$3 minutes=$4 name=$5 temperature scoring=(--target_se 0.003)
    local flags=(--eval_steps 1000000) # only at the end
    case $name in
        word_freq) flags+=("${token_network[@]}" --spindle paper) scoring+=(--num_steps 2048 --estimator trajectory) ;;
        mdlm) flags+=("${token_network[@]}" --process mdlm) ;;
        score) flags+=("${embedding_network[@]}") ;;
        score_plain) flags+=("${embedding_network[@]}" --output_prior false) ;;
        judge)
            flags=("${token_network[@]}" --process ar --seed 7 --eval_steps 250 --eval_sequences 500) scoring=()
            forget_judgements "$out"
            case ${minutes%%.*} in 1[2-9] | [2-9][0-9] | [0-9][0-9][0-9]*) minutes=12 ;; esac
            ;;
    esac
    train_row "$train" "$valid" "$out/$name" --max_minutes "$minutes" --max_steps 1000000 --logging_steps 100 ${flags[@]+"${flags[@]}"}
    score_row "$out/$name" "$valid" ${scoring[@]+"${scoring[@]}"}
    for temperature in 1 0.5; do
        [ "$name" = judge ] || sample_row "$out/$name" "$out/$name.$temperature.txt" --temperature "$temperature"
    done
    echo "== $name is done"
}

[ "${1-}" != --row ] || one_row "${@:2}"
parse_table out/equal_time MINUTES 8 "$@"
[[ $length =~ ^([0-9]*\.)?[0-9]+$ && $length =~ [1-9] ]] || refuse "MINUTES=$(quoted "$length") must be a number above 0"
read -r -a rows <<<"${ROWS:-score mdlm score_plain word_freq}"
for name in "${rows[@]}"; do
    case $name in
        score | mdlm | score_plain | word_freq) ;;
        *) refuse "ROWS: $(quoted "$name") must be one of score, mdlm, score_plain, word_freq" ;;
    esac
done
prepare_table
python - "$train" "$out/cache" <<'PYTHON' # learn the vocabulary once, before two rows need it
import sys

from data.corpus import training_source
from data.tokenizers import learn_tokenizer

learn_tokenizer("wordpiece", training_source(sys.argv[1]), 4096, sys.argv[2])
PYTHON
printf '%s\0' "${rows[@]}" judge | side_by_side runs/equal_time.sh "$train" "$valid" "$out" "$length"
for samples in "$out"/*.1.txt "$out"/*.0.5.txt; do
    judge_row "$samples" "$valid" "$out/judge/checkpoint" "$out/judge/checkpoint" "${samples%.txt}.metrics"
done
python - "$out" <<'PYTHON'
import json
import math
import sys
from pathlib import Path

from utils.figures import number

columns = "process | steps | bits/token, length given | PPL per token"
columns += " | generative PPL | entropy | at 0.5 | entropy | BLEU-4"
print(f"| {columns} |\n|---|---|---|---|---|---|---|---|---|")
for name in ("word_freq", "mdlm", "score", "score_plain"):
    out = Path(sys.argv[1])
    if not (out / f"{name}.json").exists():
        continue
    score, *metrics = (json.loads((out / f"{name}.{kind}").read_text()) for kind in ("json", "1.metrics", "0.5.metrics"))
    steps = json.loads((out / name / "checkpoint-last" / "process.json").read_text())["facts"]["step"]
    judged = " | ".join(
        f"{number(m['gen_ppl'], 0)} ± {number(m['gen_ppl_se'], 0)} | {m['token_entropy']:.2f}" for m in metrics
    )
    bits = score["nats_per_sequence"] * score["num_sequences"] / score["num_tokens"] / math.log(2)
    bleu = metrics[1]["bleu_4"]
    print(f"| {name} | {steps:,} | {bits:.2f} | {number(score['ppl_token'], 0)} | {judged} | {bleu:.3f} |")
PYTHON
