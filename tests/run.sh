#!/usr/bin/env bash
# Every test: style, then mathematics. No network beyond the package index, no file outside the repository's folder.
#
#   bash tests/run.sh                       all
#   bash tests/run.sh fast                  style and the quick tests of every room, in a minute: before every commit
#   bash tests/run.sh -k bound              further words go to pytest
#   bash tests/run.sh tests/utils/test_files.py   one file
set -euo pipefail
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../runs/setup.sh"
begin "$@"
words=()
previous=
if [ "${1-}" = fast ]; then # all but the tests marked slow, see tests/conftest.py; a file of that name is ./fast
    words=(-m "not slow")
    shift
fi
for word in "$@"; do # files and tests in them, but no flag's value
    case $previous in
        -[kmpnoWcr]) ;;
        *)
            file=${word%%::*}
            case $word in -*) ;; *) word=$(existing "$file")${word#"$file"} ;; esac
            ;;
    esac
    words+=("$word") previous=$word
done
ensure_environment requirements-dev.txt requirements.txt
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
ruff check .
ruff format --check .
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=5 ${words[@]+"${words[@]}"}
