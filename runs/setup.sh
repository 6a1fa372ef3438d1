# Sourced first by every script: where it is called from, its --help, the paths it is given, the environment.
# PYTHON chooses the interpreter the environment is made from (3.11 or later).

root=$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")") # links to a script lead here, too
script=$(readlink -f -- "${BASH_SOURCE[1]-$0}")
caller=$(pwd -P)
home=~

begin() { # words of the command line: answers --help anywhere among them; from here on in the repository's folder
    local word
    for word in "$@"; do
        case $word in -h | --help) usage; exit 0 ;; esac
    done
    cd -- "$root"
}

usage() { # the comment at the head of the script, and what holds for every script
    local line
    while IFS= read -r line; do
        case $line in
            '#!'* | '#SBATCH'*) continue ;;
            '#'*) line=${line#\#} ;;
            *) break ;;
        esac
        printf '%s\n' "${line# }"
    done <"$script"
    printf '\nPaths are looked for in the folder you call from, then in %s; out/ is there, too.\n' "$root"
}

refuse() { # what is wrong: said below the usage, before anything is installed or written
    usage >&2
    printf '\nerror: %s\n' "$*" >&2
    exit 2
}

shown() { # a word of the command line, for a message: one line, and not an endless one
    local word=${1//$'\n'/ }
    [ -n "$word" ] || word="(an empty name)"
    [ "${#word}" -le 200 ] || word=${word:0:197}...
    printf '%s\n' "$word"
}

only_flags() { # what is left of a command line: flags of main.py, or nothing
    [ $# -eq 0 ] || [ "${1#-}" != "$1" ] || refuse "$(shown "$1"): a word too many; only flags may stand here"
}

whole_number() { # its name, its value
    case $2 in
        '' | 0* | *[!0-9]*) refuse "$1=$(shown "$2") must be a whole number of 1 or more" ;;
    esac
}

there() { # a path, as the caller means it: from /
    local path=$1
    # --flag=~/x comes as it is written
    case $path in '~' | '~/'*) [ -e "${caller%/}/$path" ] || path=$home${path#\~} ;; esac
    case $path in /*) ;; *) path=${caller%/}/$path ;; esac
    # a run remembers the name of its text: the same one, whatever folder it is called from
    case $path in
        "$root"/-*) ;;
        "$root"/?*) path=${path#"$root"/} ;;
    esac
    printf '%s\n' "$path"
}

existing() { # the caller's file or folder of this name, or the repository's; or the word as it is: a name on the hub
    local path
    path=$(there "$1")
    if [ -z "$1" ] || [ ! -e "$path" ]; then path=$1; fi
    case $path in -*) [ ! -e "./$path" ] || path=./$path ;; esac
    printf '%s\n' "$path"
}

must_exist() { # word, "file", "folder" or "file or folder"
    local path kind=-e
    path=$(existing "$1")
    case $2 in file) kind=-f ;; folder) kind=-d ;; esac
    [ -n "$1" ] && [ "$kind" "$path" ] || refuse "$(shown "$1"): no such $2"
}

flag_takes() { # flag, value: whether main.py and compute_elbo.py take it as a path to read, to write, or as something else
    case $1 in
        --output_dir | -mdir | --cache_dir) echo write ;;
        --train_data | --train_data_dir | --task_name | -d | --valid_data | --data | --word_freq_file) echo read ;;
        --checkpoint | --checkpoint_path) echo read ;;
        --tokenizer | -spm)
            case $2 in wordpiece | sentencepiece | text8) ;; *) echo read ;; esac
            ;;
        --model_name_or_path | --model_type)
            case $2 in
                bert-base | bert-small | modernbert-small | ddit-tiny | ddit-small | ddit-medium) ;;
                score-lm | score-lm-small) ;;
                *) echo read ;;
            esac
            ;;
    esac
}

value_of() { # flag, value: the value, as it is called from the repository's folder
    case $(flag_takes "$1" "$2") in
        write) [ -z "$2" ] || there "$2" ;;
        read)
            case $2 in # what can be nothing but a path; any other name may be on the hub
                ./* | ../* | /* | '~/'* | *.txt | *.jsonl | *.parquet | *.gz | *.xz | *.json | *.model)
                    must_exist "$2" "file or folder"
                    ;;
            esac
            existing "$2"
            ;;
        *) printf '%s\n' "$2" ;;
    esac
}

resolve() { # words of a command line, to `words`: --flag PATH and --flag=PATH as they are called from the repository's folder
    local word value flag=
    words=()
    for word in "$@"; do
        case $word in
            -*=*)
                flag=${word%%=*}
                value=$(value_of "$flag" "${word#*=}")
                word=$flag=$value flag=
                ;;
            -*) # the next flag, or a file whose name begins so
                if [ -n "$(flag_takes "$flag" "$word")" ] && [ -e "${caller%/}/$word" ]; then
                    word=$(existing "$word") flag=
                else
                    flag=$word
                fi
                ;;
            *)
                word=$(value_of "$flag" "$word") flag=
                ;;
        esac
        words+=("$word")
    done
}

ensure_environment() { # files with pinned requirements
    local python=${PYTHON:-python3} wanted file
    [ "$caller" = "$root" ] || echo "working in $root: out/ and the commands shown below are of this folder" >&2
    if [ ! -x .venv/bin/python ]; then
        case $python in */*) python=$(existing "$python") ;; esac
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
        .venv/bin/python -m pip install --quiet --disable-pip-version-check ${options[@]+"${options[@]}"}
        echo "$wanted" >".venv/.installed.$(basename "$1")"
    fi
    export PATH="$root/.venv/bin:$PATH" HF_HUB_DISABLE_TELEMETRY=1
}
