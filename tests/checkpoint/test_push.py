"""push.py: a dry run shows what would be sent; bad arguments are refused in one line."""

from pathlib import Path

import pytest

from checkpoint import push
from checkpoint.push import PushArgs
from tests.conftest import call
from utils.errors import UserError


def test_a_dry_run_prints_files_and_card(trained: Path, monkeypatch, capsys) -> None:
    assert call(push.main, monkeypatch, trained, "me/cats", "--dry_run", "true") == 0
    output = capsys.readouterr().out
    assert "MB  model.safetensors\n" in output and "MB  README.md\n" in output
    assert "**Training text:** not stated." in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_folder", "me/cats"], "no such folder"),
        (["TRAINED", "cats"], "name='cats' must be USER/NAME"),
        *[(["TRAINED", "me/cats", "--license", word], "must be one word of lower case") for word in ("my own", "[mit")],
        (["TRAINED", "me/cats", "--data", "two\nlines"], "must be one line of text"),
        (["TRAINED", "me/c..ats"], "name='me/c..ats': "),
        (["TRAINED"], "required: --name"),
        (["TRAINED", "me/cats", "extra"], "unexpected argument 'extra'"),
    ],
)
def test_bad_arguments_are_refused(trained: Path, monkeypatch, capsys, arguments: list, message: str) -> None:
    given = [trained if word == "TRAINED" else word for word in arguments]
    assert call(push.main, monkeypatch, *given) == 2
    assert message in capsys.readouterr().err


def test_a_name_that_leaves_the_hub_is_refused() -> None:
    with pytest.raises(UserError, match="must be USER/NAME"):
        PushArgs("a", "../b")
