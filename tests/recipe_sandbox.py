"""Sandbox for run*.sh, runs/ and tests/run.sh: a copy of the scripts alone.

Its .venv/bin/python is a stub that records its calls.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCED = ("runs/setup.sh", "runs/recipe.sh", "runs/table.sh")
RECIPES = sorted(
    str(path.relative_to(ROOT)) for pattern in ("*.sh", "runs/*.sh", "tests/*.sh") for path in ROOT.glob(pattern)
)
SCRIPTS = [name for name in RECIPES if name not in SOURCED]
STUB = r"""#!/bin/bash
printf '%s\0' "$(basename "$0")" "$PWD" "$@" >>"$STUB_LOG"
printf '\036\0' >>"$STUB_LOG"
case "$*" in
    *device_count*) echo "$STUB_GPUS" ;;
    "- "*) cat >/dev/null; [ $# != 3 ] || echo "--batch_size 8 --accumulation_steps 2" ;;
    *compute_elbo.py*)
        cat >/dev/null
        echo '{}'
        while [ $# -gt 0 ]; do
            case $1 in --per_sentence) touch -- "$2" ;; esac
            shift
        done
        ;;
    *"paper_tables.py samples"*)
        while [ $# -gt 0 ]; do
            case $1 in --output) touch -- "$2" "${2%.txt}.json" ;; esac
            shift
        done
        ;;
    *"paper_tables.py steps"*) exit "${STUB_STEPS:-0}" ;;
    *"pip install"*-pretrained.txt) exit "${STUB_PIP:-0}" ;;
    *main.py*)
        printf '%s\n' "${CUDA_VISIBLE_DEVICES-all}" >>"$STUB_LOG.devices"
        case "$*" in *"${STUB_REFUSED:-no such flag}"*) echo "main.py: error: refused" >&2; exit 2 ;; esac
        while [ $# -gt 0 ]; do
            case $1 in
                --output_dir | -mdir) output=$2 ;;
                --output_dir=* | -mdir=*) output=${1#*=} ;;
            esac
            shift
        done
        mkdir -p -- "$output"
        touch -- "$output/run.json"
        [ -n "${STUB_INTERRUPTED-}" ] || touch -- "$output/curve.png"
        ;;
    *vocabulary_fit*) exit "${STUB_FIT:-0}" ;;
esac
"""
FILES = (
    "my text.txt", "-dash.txt", "a.v1.txt", "a.v2.jsonl.gz", "a.TXT", "-x/train.txt", "a.txt.d/train.txt", "ünï {}.txt",
    "pairs/train.jsonl", "pairs/test.jsonl", "tok/tokenizer.json", "wordpiece/vocab.txt", "bert-small/config.json",
    "freq.json", "~/home.txt", "lm1b/train.txt", "model/process.json", "texts/ptb.txt", "texts/lambada.jsonl",
    "cache/train.txt",
)  # fmt: skip


def make_sandbox(tmp_path: Path) -> Path:
    """Return a folder with `the repo` of scripts, without an environment, and `the caller`'s files."""
    for name in [*RECIPES, *(path.name for path in ROOT.glob("requirements*.txt"))]:
        (tmp_path / "the repo" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / "the repo" / name)
    (tmp_path / "the repo" / "main.py").touch()
    for name in FILES:
        (tmp_path / "the caller" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "the caller" / name).write_text("a b c\n")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "home.txt").write_text("a b c\n")
    return tmp_path


def call(sandbox: Path, script: str | Path, *arguments: str, cwd: str = "the caller", **variables: str):
    """Run a script of `the repo` from another folder."""
    defaults = {
        "HOME": str(sandbox / "home"),
        "PYTHON": "/bin/false",
        "STUB_LOG": str(sandbox / "log"),
        "STUB_GPUS": "0",
        "JOBS": "1",
    }
    return subprocess.run(
        ["bash", sandbox / "the repo" / script, *arguments],
        cwd=sandbox / cwd,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **defaults, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def recorder(sandbox: Path) -> Callable[..., list[list[str]]]:
    """Return a function that runs a script with stubs as the environment; it returns their calls: name, arguments."""
    programs = sandbox / "the repo" / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "torchrun", "ruff", "srun", "scontrol"):
        (programs / name).write_text(STUB)
        (programs / name).chmod(0o755)

    def run(script: str | Path, *arguments: str, **variables: str) -> list[list[str]]:
        (sandbox / "log").unlink(missing_ok=True)
        done = call(sandbox, script, *arguments, **variables)
        assert done.returncode == 0, done.stderr
        calls = calls_in(sandbox)
        assert {folder for name, folder, *_ in calls if name != "scontrol"} == {str(sandbox / "the repo")}
        return [[name, *rest] for name, _, *rest in calls if rest[:2] != ["-m", "pip"]]

    return run


def calls_in(sandbox: Path) -> list[list[str]]:
    """Return the recorded calls of the stubs: name, folder, arguments."""
    return [record.strip("\0").split("\0") for record in (sandbox / "log").read_text().split("\036")[:-1]]


def flags(calls: list[list[str]], program: str) -> dict[str, str]:
    """Return each flag's last value in the first call of a program."""
    return flags_of(next(call for call in calls if program in call))


def flags_of(words: list[str]) -> dict[str, str]:
    """Return each flag's last value in a call."""
    split = [part for word in words for part in (word.split("=", 1) if re.match("--?[a-z_]+=", word) else [word])]
    return dict(zip(split, split[1:], strict=False))
