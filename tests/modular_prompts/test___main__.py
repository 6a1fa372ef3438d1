"""__main__.py: every command is listed, and has a help of its own."""

import subprocess
import sys

import pytest

from modular_prompts.__main__ import COMMANDS, main
from tests.conftest import call


def test_the_commands_are_listed(monkeypatch, capsys) -> None:  # noqa: ANN001
    for flags in ([], ["--help"]):
        assert call(main, monkeypatch, *flags) == 0
        out = capsys.readouterr().out
        assert all(f"\n  {name}" in out for name in COMMANDS)


def test_an_unknown_command_is_refused(monkeypatch, capsys) -> None:  # noqa: ANN001
    assert call(main, monkeypatch, "train") == 2
    assert "train: no such command; give pretrain, tune" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_a_help(name: str, monkeypatch, capsys) -> None:  # noqa: ANN001
    assert call(main, monkeypatch, name, "--help") == 0
    assert f"python -m modular_prompts {name}" in " ".join(capsys.readouterr().out.split())


def test_errors_begin_with_the_name_of_the_program() -> None:
    done = subprocess.run([sys.executable, "-m", "modular_prompts", "x"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("python -m modular_prompts: error: x: no such command")
