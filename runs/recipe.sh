# Sourced by run.sh, run_condition.sh and runs/: flags and functions that the recipes share.
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/setup.sh"

# Training from scratch in minutes: pre-norm rotary layers, embeddings that start from their neighbours, Muon for the
# matrices, masked language modelling at low mask rates for a third of the time, then unweighted cross-entropy at times
# from a bell. The reported bound always has the true weights. docs/from-scratch.md compares these with others.
from_scratch=(
    --model_name_or_path modernbert-local --from_scratch true --embedding_start neighbours
    --optimizer muon --learning_rate 6e-3 --lr_schedule cosine --warmup_steps 50 --weight_decay 0.1
    --loss_weighting uniform --warm_start 0.33 --time_sampling bell
)

# The network of the demos, and its vocabulary.
demo_network=(
    "${from_scratch[@]}" --tokenizer wordpiece --vocab_size 4096
    --config_overrides hidden_size=192,intermediate_size=384,num_attention_heads=3
)

# Training from a pretrained BERT without a masked-LM head in minutes; docs/pretrained.md compares the settings.
from_pretrained=(
    --model_name_or_path minilm
    --optimizer muon --learning_rate 1e-3 --lr_schedule cosine --warmup_steps 50 --weight_decay 0.1 --dropout 0
    --loss_weighting uniform --warm_start 0.33
)

# The same for the demos, whose sentences and summaries have frequent words only.
demo_pretrained=("${from_pretrained[@]}" --trim_vocabulary true)

# LM1B at the paper's settings: T = 2048, n = 128, AdamW, 3e-6 after 10,000 steps of warm-up, 1.9 M steps, dropout 0.1 (the
# network's own). From the released code: torch's betas, gradients clipped at 5 by value.
of_the_paper=(
    --model_name_or_path bert-base-uncased --max_length 128
    --num_steps 2048 --schedule mutual --spindle paper --word_freq_lambda 0.3 --time_conditioning none
    --optimizer adamw --adam_beta1 0.9 --adam_beta2 0.999 --max_grad_norm 0 --max_grad_value 5
    --learning_rate 3e-6 --lr_schedule constant --warmup_steps 10000 --max_steps 1900000
    --valid_fraction 0.01 --logging_steps 1000
)

stage() { # name, command...: run the command unless it is done, and record its time
    local name=$1 begin=$SECONDS
    shift
    if [ -e "$demo_folder/seconds.$name" ]; then
        echo "== $name: done before"
        return
    fi
    echo "== $name"
    "$@"
    mkdir -p "$demo_folder"
    echo $((SECONDS - begin)) >"$demo_folder/seconds.$name"
}

gpus() { python -c 'import torch; print(torch.cuda.device_count())'; }

launch() { # number of GPUs, flags...: run main.py, one process per GPU; leave the script if the training is interrupted
    local count=$1 folder
    shift
    folder=$(flag_value "$output_flag" '' "$@")
    if [ "$count" -gt 1 ]; then
        torchrun --standalone --nproc_per_node "$count" --max_restarts 3 main.py "$@" # a restart resumes
    else
        python main.py "$@"
    fi
    if [ ! -e "$folder/curve.png" ]; then # main.py exits with 0 when it is interrupted, too
        echo "error: $folder: the training is not finished, or curve.png could not be drawn; repeat the command" >&2
        exit 130
    fi
}

small_network=("${from_scratch[@]}" --tokenizer wordpiece --vocab_size 8192 --batch_size 64)

launch_small() { # data, output folder, flags...: train on a CPU, for an hour at most
    local data=$1 folder=$2 network=("${small_network[@]}")
    shift 2
    if may_start_from_minilm "$data" "$folder" "$@"; then
        network=("${from_pretrained[@]}")
    fi
    launch 0 --train_data "$data" --output_dir "$folder" --max_length 128 "${network[@]}" \
        --num_train_epochs 10 --max_minutes 60 "$@"
}

columns_of() { # flags... -> array `columns`: the flags that name columns, which decide what text is read
    local name value
    columns=()
    for name in --text_column --source_column --target_column; do
        value=$(flag_value "$name" "" "$@")
        [ -z "$value" ] || columns+=("$name" "$value")
    done
}

may_start_from_minilm() { # data, output folder, flags...: whether to start from the pretrained weights
    local fit status=0 word folder columns
    columns_of "${@:3}"
    for word in "${@:3}"; do # settings of the network or the vocabulary from scratch
        case ${word//-/_} in
            __model_* | __from_scratch* | __config_overrides* | __tokenizer* | _spm* | __vocab_size* | __strip_accents*) return 1 ;;
            __process* | __streaming* | __max_length* | __block_size*) return 1 ;;
        esac
    done
    folder=$(flag_value "$output_flag" "$2" "${@:3}")
    if [ -e "$folder/run.json" ]; then # a run keeps its network
        grep -q '"model_name_or_path": "minilm"' "$folder/run.json"
        return
    fi
    if ! ensure_pretrained; then
        echo "minilm could not be installed; training a small network from scratch instead"
        return 1
    fi
    fit=$(python -m data.vocabulary_fit --tokenizer minilm --data "$1" ${columns[@]+"${columns[@]}"}) || status=$?
    case $status in
        0) echo "starting from minilm, whose English vocabulary fits the text: $fit" ;;
        3) echo "training from scratch, since the English vocabulary of minilm does not fit the text: $fit" ;;
        *) exit "$status" ;; # the error is printed: the text, or the package
    esac
    [ "$status" -eq 0 ]
}

fit_to_memory() { # number of GPUs, sentences per step -> array `fitted`: flags of main.py; without a GPU, one batch
    local flags
    fitted=(--batch_size "$2")
    [ "$1" -gt 0 ] || return 0
    flags=$(batch_of_memory "$1" "$2")
    read -r -a fitted <<<"$flags"
}

batch_of_memory() { # number of GPUs, sentences per step: print the batch that fits the smallest GPU, and the accumulation
    python - "$1" "$2" <<'PYTHON'
import sys

import torch

gpus, wanted = int(sys.argv[1]), int(sys.argv[2])
gib = min(torch.cuda.get_device_properties(i).total_memory for i in range(gpus)) / 2**30
fits = next(size for least, size in ((20, 64), (10, 32), (6, 16), (0, 8)) if gib >= least)
micro = max(1, min(fits, wanted // gpus))
print(f"--batch_size {micro} --accumulation_steps {max(1, round(wanted / (micro * gpus)))}")
PYTHON
}

flag_value() { # names of a flag, default, arguments...: print the value that the arguments give it
    local names=" $1 " value=$2 previous= word
    shift 2
    for word in "$@"; do
        case $word in
            -*=*) case $names in *" $(spelt "${word%%=*}") "*) value=${word#*=} ;; esac ;;
        esac
        case $names in *" ${previous:--} "*) value=$word ;; esac
        previous=$(spelt "$word")
    done
    printf '%s\n' "$value"
}

output_flag="--output_dir -mdir"
data_flag="--train_data --train_data_dir --task_name -d"

name_of() { # a file or folder of data: print its name without the suffixes of its format; a.v1.txt.gz is a.v1
    local name suffix
    name=$(basename -- "$(realpath -- "$1")")
    if [ ! -d "$1" ]; then
        for suffix in "gz xz zst" "txt jsonl csv tsv json parquet"; do
            # in any case; bash 3 of macOS has no ${name,,}
            case $name in ?*.*) ;; *) break ;; esac
            case " $suffix " in *" $(printf '%s' "${name##*.}" | tr '[:upper:]' '[:lower:]') "*) name=${name%.*} ;; esac
        done
    fi
    printf '%s\n' "$name"
}

side_by_side() { # script, arguments...; names on stdin, each ended by NUL: run "script --row arguments... name", JOBS at once
    local status=0
    xargs -0 -n 1 -P "${JOBS:-2}" bash "$1" --row "${@:2}" || status=$?
    [ "$status" -ne 124 ] || return 2 # see `one_row`
    return "$status"
}
