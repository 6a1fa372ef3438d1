#!/usr/bin/env bash
#SBATCH --job-name=diffusionbert
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
# Train on two nodes of eight GPUs, over as many jobs as it takes: each job saves a state before its time ends, and the next
# one resumes at the same step.
#
#   sbatch runs/slurm.sh --train_data lm1b --output_dir /shared/lm1b --model_name_or_path bert-base-uncased [FLAGS of main.py]
#
# MINUTES is the time of a job (24 hours less a quarter of an hour). Slurm's --requeue restarts a job whose node fails. An
# error ends the job; see Slurm's output file. All nodes must see the output folder, and --cache_dir (by default out/cache).
set -euo pipefail
command=
if [ -n "${SLURM_JOB_ID-}" ]; then # the running script is a copy outside the repository
    command=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
fi
for folder in "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.." "${command%%/slurm.sh*}/.." \
    "${SLURM_SUBMIT_DIR-}" "${SLURM_SUBMIT_DIR-}/.."; do
    [ ! -e "$folder/main.py" ] || break
done
[ -e "$folder/runs/recipe.sh" ] || { echo "error: the repository is not found; call sbatch in its folder" >&2; exit 2; }
. "$folder/runs/recipe.sh"
begin "$@"
only_flags "$@"
resolve_paths "$@"
set -- ${arguments[@]+"${arguments[@]}"}
output=$(flag_value "$output_flag" '' "$@")
[ -n "$output" ] || refuse "--output_dir is needed, on a file system of all nodes"
whole_number MINUTES "${MINUTES:-1425}"
[ -n "${SLURM_JOB_NODELIST-}" ] || refuse "not in a Slurm job; submit it: sbatch runs/slurm.sh"
ensure_environment requirements.txt
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # one store per attempt: nodes may count their restarts differently
srun torchrun --nnodes "$SLURM_NNODES" --nproc_per_node "$SLURM_GPUS_ON_NODE" --max_restarts 3 \
    --rdzv_id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" --rdzv_backend c10d --rdzv_endpoint "$first:29500" \
    main.py --time_limit "${MINUTES:-1425}" "$@"
python - "$output" <<'PYTHON' || { echo "not finished: queued again"; scontrol requeue "$SLURM_JOB_ID"; }
import sys
from pathlib import Path

from training.saved_state import newest_state

found = newest_state(Path(sys.argv[1]), print)
sys.exit(not (found and found[1].get("finished")))
PYTHON
