# Sourced by run.sh, run_condition.sh and tests/run.sh: makes .venv, installs what is pinned, skips what is there.
# PYTHON chooses the interpreter the environment is made from (3.11 or later).

ensure_environment() { # files with pinned requirements
    local python=${PYTHON:-python3} wanted
    if [ ! -x .venv/bin/python ]; then
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
            echo "error: Python 3.11 or later is needed, $python is $("$python" -V 2>&1); set PYTHON=/path/to/python3.11" >&2
            exit 2
        }
        echo "making .venv with $("$python" -V)"
        "$python" -m venv .venv
    fi
    wanted=$(cat "$@" | cksum)
    if [ "$(cat ".venv/.installed.$(basename "$1")" 2>/dev/null)" != "$wanted" ]; then
        echo "installing $* (once; a few minutes on a slow line)"
        local options=()
        for file in "$@"; do options+=(-r "$file"); done
        .venv/bin/python -m pip install --quiet --disable-pip-version-check "${options[@]}"
        echo "$wanted" >".venv/.installed.$(basename "$1")"
    fi
    PATH="$PWD/.venv/bin:$PATH"
    export HF_HUB_DISABLE_TELEMETRY=1
}
