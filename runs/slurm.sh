#!/usr/bin/env bash
#SBATCH --job-name=diffusionbert
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
# Two nodes of eight GPUs, for as many days as it takes: each job saves and ends before its time does, and the next one
# goes on at the very step. The output folder must be seen by all nodes.
#
#   sbatch runs/slurm.sh --train_data lm1b --output_dir /shared/lm1b --model_name_or_path bert-base-uncased [FLAGS of main.py]
#
# MINUTES is what a job may take (24 hours less a quarter of one); a node that fails, Slurm's --requeue starts again. An
# error ends it: the output is Slurm's. --cache_dir must be seen by all nodes too; by default it is out/cache, here.
set -euo pipefail
command=
if [ -n "${SLURM_JOB_ID-}" ]; then # what runs is a copy, somewhere else
    command=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
fi
for folder in "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.." "${command%%/slurm.sh*}/.." \
    "${SLURM_SUBMIT_DIR-}" "${SLURM_SUBMIT_DIR-}/.."; do
    [ ! -e "$folder/main.py" ] || break
done
[ -e "$folder/runs/setup.sh" ] || { echo "error: the repository is not found; call sbatch in its folder" >&2; exit 2; }
. "$folder/runs/setup.sh"
begin "$@"
. ./runs/recipe.sh
only_flags "$@"
resolve "$@"
set -- ${words[@]+"${words[@]}"}
output=$(given "$output_flag" '' "$@")
[ -n "$output" ] || refuse "give --output_dir, in a file system that all nodes see"
whole_number MINUTES "${MINUTES:-1425}"
[ -n "${SLURM_JOB_NODELIST-}" ] || refuse "this is for Slurm: sbatch runs/slurm.sh"
ensure_environment requirements.txt
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # a store for each try: nodes may count their restarts differently
srun torchrun --nnodes "$SLURM_NNODES" --nproc_per_node "$SLURM_GPUS_ON_NODE" --max_restarts 3 \
    --rdzv_id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" --rdzv_backend c10d --rdzv_endpoint "$first:29500" \
    main.py --time_limit "${MINUTES:-1425}" "$@"
python - "$output" <<'PYTHON' || { echo "not done yet: queued again"; scontrol requeue "$SLURM_JOB_ID"; }
import sys
from pathlib import Path

import training_state

found = training_state.newest(Path(sys.argv[1]), print)
sys.exit(not (found and found[1].get("finished")))
PYTHON
