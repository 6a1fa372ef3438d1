#!/usr/bin/env bash
# Run the tests: style, then pytest. They need no network but the package index, and no file outside the repository.
#
#   bash tests/run.sh                             all
#   bash tests/run.sh fast                        style and the tests not marked slow, about a minute: before every commit
#   bash tests/run.sh -n 8                        eight processes instead of two, on a machine with as many cores
#   bash tests/run.sh -k bound                    further arguments are pytest's, as is -n
#   bash tests/run.sh tests/utils/test_files.py   one file
set -euo pipefail
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../runs/setup.sh"
begin "$@"
arguments=()
previous=
if [ "${1-}" = fast ]; then # see tests/conftest.py; a file named fast is ./fast
    arguments=(-m "not slow")
    shift
fi
for word in "$@"; do # locate files and tests in them, except the values of flags
    case $previous in
        -[kmpnoWcr]) ;;
        *)
            file=${word%%::*}
            case $word in -*) ;; *) word=$(located "$file")${word#"$file"} ;; esac
            ;;
    esac
    arguments+=("$word") previous=$word
done
unset PYTHONDONTWRITEBYTECODE # else each of the many programs would compile the modules again
ensure_environment requirements-dev.txt requirements-optional.txt requirements.txt
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
ruff check .
ruff format --check .
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=5 ${arguments[@]+"${arguments[@]}"}
