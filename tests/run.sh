#!/usr/bin/env bash
# Every test: style, then mathematics. No network beyond the package index, no file outside this folder.
#   bash tests/run.sh            all
#   bash tests/run.sh -k bound   further words go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
. ./setup.sh
ensure_environment requirements-dev.txt requirements.txt
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
ruff check .
ruff format --check .
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=5 "$@"
