# Sourced by family.sh, equal_time.sh, pretrained.sh and paper_tables.sh: equal training and scoring of the rows of a table,
# on CPU cores.
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/recipe.sh"

token_network=(--model_name_or_path modernbert-small
    --config_overrides hidden_size=192,intermediate_size=384,num_attention_heads=3)

train_row() { # train, valid, folder, flags...: train on one core; main.py returns at once if this is done
    local train=$1 valid=$2 folder=$3
    shift 3
    forget_scores "$folder"
    launch 0 --train_data "$train" --valid_data "$valid" --output_dir "$folder" \
        --cache_dir "$(dirname -- "$folder")/cache" --tokenizer wordpiece --vocab_size 4096 --max_length 64 --batch_size 64 \
        --from_scratch true --optimizer muon --learning_rate 3e-3 --lr_schedule cosine --warmup_steps 200 \
        --weight_decay 0.1 --eval_sequences 64 --threads 1 --precision fp32 "$@"
}

forget_scores() { # folder of a row: remove what an earlier training of it left, unless the row is finished
    [ -e "$1/curve.png" ] || rm -f -- "$1".*
}

score_row() { # folder, valid, flags...: write the bound of 500 sentences to FOLDER.json, unless it is done
    local folder=$1 valid=$2
    shift 2
    [ -e "$folder.json" ] || python compute_elbo.py --checkpoint "$folder/checkpoint-last" --data "$valid" \
        --cache_dir "$(dirname -- "$folder")/cache" --limit 500 --threads 1 --json true "$@" >"$folder.part"
    [ ! -e "$folder.part" ] || mv "$folder.part" "$folder.json"
}

sample_row() { # folder, output, flags...: write 200 samples, unless it is done
    local folder=$1 output=$2
    shift 2
    [ -e "$output" ] || python predict.py --checkpoint "$folder/checkpoint-last" --num_samples 200 --threads 1 \
        --output "$output" "$@" >/dev/null
}

forget_judgements() { # output folder: the same for the figures by a judge that is trained again
    [ -e "$1/judge/curve.png" ] || rm -f -- "$1"/*.metrics
}

judge_row() { # samples, valid, tokenizer, evaluating model, output: write generative perplexity, unless it is done
    [ -e "$5" ] || python compute_metric.py --predictions "$1" --references "$2" --tokenizer "$3" --judge_model "$4" \
        --json true >"$5.part"
    [ ! -e "$5.part" ] || mv "$5.part" "$5"
}

parse_table() { # default folder, name and default of the length, arguments... -> train, valid, out, length
    local default=$1 name=$2
    length=$3
    shift 3
    [ $# -ge 2 ] || refuse "TRAIN.txt and VALID.txt are needed"
    [ $# -le 4 ] || refuse "$(quoted "$5"): unexpected argument; $name is the last"
    must_exist "$1" "file or folder"
    must_exist "$2" "file or folder"
    train=$(located "$1") valid=$(located "$2") out=$(absolute "${3:-$root/$default}") length=${4:-$length}
    whole_number JOBS "${JOBS:-2}"
}

one_row() { # arguments of `row`...: run one row for `side_by_side`; a refused setting stops all rows
    trap '[ $? -ne 2 ] || exit 255' EXIT # 255 stops xargs
    row "$@"
    exit
}

name_rows() { # rows, known rows...: set the array `names` to ROW-SEED for each row and seed
    local rows row seed
    names=()
    read -r -d '' -a rows <<<"$1" || true # 1 at the end of the text
    [ ${#rows[@]} -gt 0 ] || refuse "ROWS is empty; give some of ${*:2}"
    for ((seed = 1; seed <= ${SEEDS:-1}; seed++)); do
        for row in "${rows[@]}"; do
            [[ " ${*:2} " == *" $row "* ]] || refuse "ROWS: $(quoted "$row") must be one of ${*:2}"
            [[ " ${names[*]-} " != *" $row-$seed "* ]] || refuse "ROWS: $(quoted "$row") is given twice"
            names+=("$row-$seed")
        done
    done
}

digest() { # text: print a sum of its files, so that another text under the same name is noticed; nothing for a hub name
    [ ! -e "$1" ] || find -L "$1" -type f ! -name '.*' -print0 | sort -z | xargs -0 cat -- | cksum | tr ' ' -
}

require_settings() { # output folder, settings...: refuse rows of other settings in the same folder
    local out=$1 settings
    shift
    settings=$(printf '%s\n' "$@")
    if [ -e "$out/settings" ] && [ "$(cat -- "$out/settings")" != "$settings" ] && holds_rows "$out"; then
        refuse "$out holds rows of other settings ($(tr '\n' ' ' <"$out/settings")); give another OUT"
    fi
    mkdir -p -- "$out"
    printf '%s\n' "$settings" >"$out/settings"
}

holds_rows() { # folder
    local file
    for file in "$1"/*/run.json; do [ ! -e "$file" ] || return 0; done
    return 1
}

check_precision() {
    case ${PRECISION:-fp32} in fp32 | bf16 | fp16) ;; *) refuse "PRECISION=$(quoted "$PRECISION") must be fp32, bf16 or fp16" ;; esac
}

same_precision() { # print the precision of all rows: that of PRECISION, or the one this processor has instructions for
    [ -z "${PRECISION-}" ] || { printf '%s\n' "$PRECISION"; return; }
    python -c 'import torch; from utils.device import pick_precision; print(pick_precision("auto", torch.device("cpu")))'
}

prepare_table() { # ["true" if the rows use GPUs]: environment, devices and threads of the rows, output folder
    ensure_environment requirements.txt
    [ "${1-}" = true ] || export CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
    mkdir -p -- "$out"
}
