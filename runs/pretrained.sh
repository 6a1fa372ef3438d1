#!/usr/bin/env bash
# Compare training from pretrained weights (minilm) with training from scratch, for the same number of minutes on the same
# text. Report the bound of held-out sentences over seeds, and write 20 samples of each run.
#
#   bash runs/pretrained.sh TRAIN.txt VALID.txt [OUT [MINUTES]]      (OUT: out/pretrained, MINUTES: 30)
#
# ROWS selects the rows, by default "small minilm_scratch pretrained":
#   pretrained       run.sh FILE's recipe from minilm
#   minilm_scratch   the same network and recipe with random weights
#   small            run.sh FILE's small network from scratch
#   demo, demo_pretrained   the two networks of run.sh demo
#   demo_before      the first with the recipe of earlier commits (docs/from-scratch.md)
# All rows have at most 64 tokens per sentence. SEEDS=3 trains each row three times. JOBS rows train at once (2), THREADS
# cores each (1), all in one PRECISION (by default bf16 if the processor has it). The bound is that of the last checkpoint,
# on 500 sentences of VALID; samples are from the best. Finished rows are not run again. Other work on the machine
# distorts the comparison, and so does a last row that trains without a neighbour; JOBS=1 avoids this.
set -euo pipefail
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/table.sh"
begin "$@"

row() { # train, valid, folder, minutes, name-seed
    local train=$1 valid=$2 out=$3 minutes=$4 name=${5%-*} seed=${5##*-} flags=() folder=$3/$5
    case $name in
        demo) flags=("${demo_network[@]}" --batch_size 128) ;;
        demo_before)
            flags=("${demo_network[@]}" --batch_size 128 --model_name_or_path modernbert-small --embedding_start random
                --learning_rate 3e-3 --warmup_steps 200 --time_sampling uniform)
            ;;
        small) flags=("${small_network[@]}") ;;
        demo_pretrained) flags=("${demo_pretrained[@]}" --batch_size 128) ;;
        pretrained) flags=("${from_pretrained[@]}") ;;
        minilm_scratch) flags=("${from_pretrained[@]}" --from_scratch true) ;;
    esac
    forget_scores "$folder"
    launch 0 --train_data "$train" --valid_data "$valid" --output_dir "$folder" \
        --cache_dir "$out/cache" --max_length 64 ${flags[@]+"${flags[@]}"} --seed "$seed" --max_steps 1000000 --max_minutes "$minutes" \
        --eval_minutes "$(twelfth "$minutes")" --eval_sequences 64 --eval_estimator trajectory --logging_steps 20 \
        --threads "$THREADS" --precision "$PRECISION"
    score_row "$folder" "$valid" --num_steps 128 --estimator trajectory --evaluations 1 --precision "$PRECISION" --threads "$THREADS"
    [ -e "$folder.txt" ] || python predict.py --checkpoint "$folder/checkpoint" --num_samples 20 --num_steps 256 \
        --temperature 0.4 --top_p 0.95 --precision "$PRECISION" --threads "$THREADS" --output "$folder.txt" >/dev/null
    echo "== $5 is done"
}

twelfth() { python -c 'import sys; print(round(float(sys.argv[1]) / 12, 3))' "$1"; } # minutes between evaluations

[ "${1-}" != --row ] || one_row "${@:2}"
parse_table out/pretrained MINUTES 30 "$@"
[[ $length =~ ^([0-9]*\.)?[0-9]+$ && $length =~ [1-9] ]] || refuse "MINUTES=$(quoted "$length") must be a number above 0"
whole_number SEEDS "${SEEDS:-1}"
export THREADS=${THREADS:-1}
whole_number THREADS "$THREADS"
name_rows "${ROWS:-small minilm_scratch pretrained}" demo demo_before demo_pretrained small minilm_scratch pretrained
check_precision
prepare_table
PRECISION=$(same_precision)
export PRECISION
require_settings "$out" "train=$train $(digest "$train")" "valid=$valid $(digest "$valid")" "minutes=$length" \
    "threads=$THREADS" "jobs=${JOBS:-2}" "precision=$PRECISION"
case " ${names[*]}" in
    *" pretrained-"* | *" minilm_scratch-"* | *" demo_pretrained-"*)
        require_pretrained
        fit=$(python -m data.vocabulary_fit --tokenizer minilm --data "$train") || {
            status=$?
            [ "$status" -eq 3 ] || exit "$status"
            echo "warning: the English vocabulary of minilm does not fit $train ($fit): it strips accents and may lack" \
                "characters, so compare the rows of minilm with one another only" >&2
        }
        ;;
esac
export OMP_NUM_THREADS=$THREADS
printf '%s\0' ${names[@]+"${names[@]}"} | side_by_side runs/pretrained.sh "$train" "$valid" "$out" "$length"
python benchmarks/pretrained_table.py "$out" ${names[@]+"${names[@]}"}
