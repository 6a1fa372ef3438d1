#!/usr/bin/env bash
# Tables 2 and 3 of the DiffusionBERT paper: from scratch and from pretrained weights, without spindle and with it, with each
# time input, all with the same network, text, recipe and number of steps.
#
#   bash runs/paper_tables.sh TRAIN VALID TEST [OUT]     on a CPU: minilm (OUT: out/paper_tables)
#   bash runs/paper_tables.sh --gpu [OUT]                LM1B from the hub, bert-base-uncased, the settings of run.sh lm1b
#   bash runs/paper_tables.sh --gpu TRAIN VALID TEST [OUT]
#
# A row is named WEIGHTS_SPINDLE_TIME. Time inputs are those of the paper: lte in every layer, pte as a token, tad none
# (time-agnostic). ROWS selects rows, e.g. ROWS="pretrained_none_tad pretrained_paper_tad". Variables and their defaults:
#   STEPS    training steps: 2,000; with --gpu 1,900,000
#   SEEDS    trainings per row: 1; from 2 on the tables have standard errors over trainings
#   SAMPLES  samples per row: 1,000
#   LENGTH   tokens per sample: 0, lengths of the training text; with --gpu 64
#   LIMIT    sentences of TEST to score: 500
#   JOBS     rows that train at once, one core each: 2; with --gpu 1
#   FLAGS    more flags of main.py for every row: none; "--loss_weighting elbo --warm_start 0" trains on the bound alone
# A row of 2,000 steps takes 35 to 45 minutes of one core and 5 GB. --gpu trains eight rows of 1.9 M steps, one by one.
# Finished parts are not run again.
set -euo pipefail
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/table.sh"
begin "$@"
table_3=pretrained_paper_tad-1 # its row

row() { # train, valid, test, folder, name-seed
    local train=$1 valid=$2 test=$3 out=$4 name=${5%-*} seed=${5##*-} flags=() more folder=$4/$5 posterior held_out=()
    case $name in # all that makes a row, so that FLAGS cannot change it
        *_lte) flags+=(--time_conditioning layerwise) ;;
        *_pte) flags+=(--time_conditioning token) ;;
        *) flags+=(--time_conditioning none) ;;
    esac
    case $name in scratch_*) flags+=(--from_scratch true) ;; *) flags+=(--from_scratch false) ;; esac
    flags+=(--spindle "$(cut -d _ -f 2 <<<"$name")" --seed "$seed" --max_steps "$STEPS")
    [ -z "$valid" ] || held_out=(--valid_data "$valid")
    read -r -d '' -a more <<<"${FLAGS-}" || true
    [ "$5" != "$table_3" ] || [ -e "$folder/curve.png" ] || rm -f -- "$out/steps.json"
    forget_scores "$folder"
    train_paper_row "$train" "$folder" "$out/cache" ${held_out[@]+"${held_out[@]}"} ${more[@]+"${more[@]}"} ${flags[@]+"${flags[@]}"}
    for posterior in exact released; do
        [ -e "$folder.$posterior.jsonl" ] || rm -f -- "$folder.$posterior.json" # scored without its sentences
        part "$folder.$posterior.json" python compute_elbo.py --checkpoint "$folder/checkpoint-last" --data "$test" --json true \
            --cache_dir "$out/cache" --num_steps 128 --posterior "$posterior" --limit "$LIMIT" --estimator stratified \
            --per_sentence "$folder.$posterior.jsonl" --precision "$PRECISION" --threads "$THREADS"
    done
    [ -e "$folder.samples.json" ] || rm -f -- "$folder.metrics.json"
    [ -e "$folder.samples.json" ] || python benchmarks/paper_tables.py samples --checkpoint "$folder/checkpoint-last" \
        --num_samples "$SAMPLES" --length "$LENGTH" --output "$folder.samples.txt" --precision "$PRECISION" --threads "$THREADS"
    part "$folder.metrics.json" python compute_metric.py --predictions "$folder.samples.txt" --references "$test" \
        --tokenizer "$folder/checkpoint-last" --json true --threads "$THREADS"
    echo "== $5 is done"
}

train_paper_row() { # train, folder, cache, flags...
    local train=$1 folder=$2 cache=$3 count=0
    shift 3
    if [ "$GPU" = true ]; then
        count=$(gpus)
        fit_to_memory "$count" 64
        set -- "${of_the_paper[@]}" --eval_steps 50000 "${fitted[@]}" "$@"
    else
        set -- "${from_pretrained[@]}" --max_length 64 --eval_steps 500 --eval_sequences 64 --logging_steps 20 \
            --precision "$PRECISION" --threads "$THREADS" "$@"
    fi
    launch "$count" --train_data "$train" --output_dir "$folder" --cache_dir "$cache" "$@"
}

part() { # file, command...: write the command's output to the file, unless it is there
    local file=$1
    shift
    [ -e "$file" ] || "$@" >"$file.part"
    [ ! -e "$file.part" ] || mv "$file.part" "$file"
}

[ "${1-}" != --row ] || one_row "${@:2}"
export GPU=false
train=lm1b valid='' test=lm1b
if [ "${1-}" = --gpu ]; then
    GPU=true
    shift
fi
if [ "$GPU" = false ] || [ $# -gt 1 ]; then
    [ $# -ge 3 ] || refuse "TRAIN, VALID and TEST are needed"
    for file in "$1" "$2" "$3"; do must_exist "$file" "file or folder"; done
    train=$(located "$1") valid=$(located "$2") test=$(located "$3")
    shift 3
fi
[ $# -le 1 ] || refuse "$(quoted "$2"): unexpected argument; OUT is the last"
out=$(absolute "${1:-$root/out/paper_tables}")
steps=2000 all="scratch_none_lte scratch_none_tad scratch_paper_lte pretrained_none_lte pretrained_none_pte"
all+=" pretrained_none_tad pretrained_paper_tad pretrained_released_tad"
length=0
[ "$GPU" = false ] || steps=1900000 length=64
export STEPS=${STEPS:-$steps} SAMPLES=${SAMPLES:-1000} LENGTH=${LENGTH:-$length} LIMIT=${LIMIT:-500} THREADS=1
for name in STEPS SAMPLES SEEDS JOBS; do whole_number $name "$(eval "echo \${$name:-2}")"; done
[ "$SAMPLES" -ge 2 ] || refuse "SAMPLES=1: self-BLEU needs 2 samples or more"
[ "$LIMIT" != 1 ] || refuse "LIMIT=1: standard errors need 2 sentences or more"
case $LENGTH$LIMIT in *[!0-9]*) refuse "LENGTH=$(quoted "$LENGTH") and LIMIT=$(quoted "$LIMIT") must be whole numbers" ;; esac
[ "$GPU" = false ] || { JOBS=1 THREADS=0; }
name_rows "${ROWS:-$all}" $all
check_precision
prepare_table "$GPU"
if [ "$GPU" = true ] && [ "$(gpus)" -eq 0 ]; then
    echo "error: --gpu needs a CUDA GPU; on a CPU give TRAIN, VALID and TEST without --gpu" >&2
    exit 2
fi
[ "$GPU" = true ] && PRECISION=auto || PRECISION=$(same_precision)
export PRECISION
require_settings "$out" "train=$train $(digest "$train")" "valid=$valid $(digest "$valid")" \
    "test=$test $(digest "$test")" "steps=$STEPS" "samples=$SAMPLES" "length=$LENGTH" \
    "limit=$LIMIT" "gpu=$GPU" "precision=$PRECISION" ${FLAGS:+"flags=$FLAGS"}
[ "$GPU" = true ] || require_pretrained
printf '%s\0' ${names[@]+"${names[@]}"} | side_by_side runs/paper_tables.sh "$train" "$valid" "$test" "$out"
status=0
if [ -e "$out/$table_3/curve.png" ]; then
    python benchmarks/paper_tables.py steps --checkpoint "$out/$table_3/checkpoint-last" --data "$test" --limit "$LIMIT" \
        --num_samples 64 --length "$LENGTH" --output "$out/steps.json" --cache_dir "$out/cache" --precision "$PRECISION" ||
        status=$?
fi
python benchmarks/paper_tables.py print "$out" --rows ${names[@]+"${names[@]}"}
exit "$status" # of Table 3, which must not withhold Table 2
