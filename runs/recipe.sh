# Sourced after setup.sh by run.sh, run_condition.sh and runs/: what the recipes share.

# What learns from scratch in minutes: pre-norm rotary layers, Muon on the matrices, a third of the time as a masked LM
# at low mask rates, then unweighted cross-entropy. The bound is always reported with the true weights.
from_scratch=(
    --model_name_or_path modernbert-small --from_scratch true
    --optimizer muon --learning_rate 3e-3 --lr_schedule cosine --warmup_steps 200 --weight_decay 0.1
    --loss_weighting uniform --warm_start 0.33
)

stage() { # name, command...: run once, and remember how long it took
    local name=$1 begin=$SECONDS
    shift
    if [ -e "$demo_folder/seconds.$name" ]; then
        echo "== $name: already there"
        return
    fi
    echo "== $name"
    "$@"
    if [ "$name" = train ] && [ ! -e "$demo_folder/curve.png" ]; then # asked to stop; drawn when a run is done
        exit 130
    fi
    mkdir -p "$demo_folder"
    echo $((SECONDS - begin)) >"$demo_folder/seconds.$name"
}

gpus() { python -c 'import torch; print(torch.cuda.device_count())'; }

launch() { # number of GPUs, flags...: one process, or one per GPU
    local count=$1
    shift
    if [ "$count" -gt 1 ]; then
        torchrun --standalone --nproc_per_node "$count" --max_restarts 3 main.py "$@" # a restart goes on where it stood
    else
        python main.py "$@"
    fi
}

launch_small() { # data, output folder, flags...: from scratch on a CPU, an hour at most
    local data=$1 folder=$2
    shift 2
    launch 0 --train_data "$data" --output_dir "$folder" --tokenizer wordpiece --vocab_size 8192 \
        --max_length 128 --batch_size 64 "${from_scratch[@]}" --num_train_epochs 10 --max_minutes 60 "$@"
}

fit_to_memory() { # number of GPUs, sentences a step -> fitted: flags of main.py; without a GPU, all of them in one batch
    local flags
    fitted=(--batch_size "$2")
    [ "$1" -gt 0 ] || return 0
    flags=$(batch_of_memory "$1" "$2")
    read -r -a fitted <<<"$flags"
}

batch_of_memory() { # number of GPUs, sentences a step: the batch that fits the smallest GPU, and how often to accumulate it
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

given() { # names of a flag, default, words...: the value that a command line gives it
    local names=" $1 " value=$2 previous= word
    shift 2
    for word in "$@"; do
        case $word in
            -*=*) case $names in *" ${word%%=*} "*) value=${word#*=} ;; esac ;;
        esac
        case $names in *" ${previous:--} "*) value=$word ;; esac
        previous=$word
    done
    printf '%s\n' "$value"
}

output_flag="--output_dir -mdir"
data_flag="--train_data --train_data_dir --task_name -d"

results_of() { # a file or folder of data: its name, without what says how a file is written; a.v1.txt.gz is a.v1
    local name
    name=$(basename -- "$(realpath -- "$1")")
    if [ ! -d "$1" ]; then
        case $name in ?*.[gG][zZ] | ?*.[xX][zZ]) name=${name%.*} ;; esac
        case $name in ?*.[tT][xX][tT] | ?*.[jJ][sS][oO][nN][lL] | ?*.[pP][aA][rR][qQ][uU][eE][tT]) name=${name%.*} ;; esac
    fi
    printf '%s\n' "$name"
}

side_by_side() { # script, words... ; names on stdin, each ended by NUL: "script --row words... name" for each, JOBS at a time
    xargs -0 -n 1 -P "${JOBS:-2}" bash "$1" --row "${@:2}"
}
