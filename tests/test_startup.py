"""Every command prints its help, and refuses a flag, without importing what takes seconds to import."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from modular_prompts.__main__ import COMMANDS
from tests.test_imports import FILES, ROOT, SCRIPTS, name_of

HEAVY = ("torch", "transformers", "datasets", "scipy", "pandas", "nltk", "matplotlib")
"""Packages whose import takes from a tenth of a second to several."""
MODULES = [name_of(file) for file in FILES if "__main__" in file.read_text() and name_of(file) not in SCRIPTS]
EVERY_COMMAND = [
    *((f"{name}.py",) for name in SCRIPTS),
    *(("-m", name) for name in MODULES if name != "modular_prompts.__main__"),
    *(("-m", "modular_prompts", name) for name in COMMANDS),
]


def run(*arguments: str) -> tuple[subprocess.CompletedProcess, set[str]]:
    """Run a command; return its result and the packages of HEAVY that it imports."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    imported = set(re.findall(r"^import time:.*\| +(\w+)$", done.stderr, re.MULTILINE))
    done.stderr = re.sub(r"^import time:.*\n", "", done.stderr, flags=re.MULTILINE)
    return done, imported & set(HEAVY)


def test_every_module_that_is_a_command_is_known() -> None:
    assert set(MODULES) == {
        "checkpoint.import_mdlm", "checkpoint.merge", "checkpoint.push", "data.demo_corpus", "data.vocabulary_fit",
        "modular_prompts.__main__",
    }  # fmt: skip


@pytest.mark.parametrize("command", EVERY_COMMAND, ids=lambda command: Path(command[-1]).stem)
def test_help_and_a_refused_flag_import_nothing_heavy(command: tuple[str, ...]) -> None:
    done, imported = run(*command, "--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: ") and not imported
    done, imported = run(*command, "--no_such_flag", "1")
    assert done.returncode == 2 and not imported
    assert "unknown flag --no_such_flag" in done.stderr and done.stderr.count("\n") == 1


def test_a_value_out_of_range_is_refused_as_early() -> None:
    done, imported = run("main.py", "--train_data", "x", "--output_dir", "y", "--learning_rate", "-1")
    assert done.returncode == 2 and "learning_rate=-1.0 must be above 0" in done.stderr and not imported
