"""help_text.py: every setting is listed once, in its group, with its default."""

import argparse
import dataclasses
import re

import pytest

import compute_elbo
import compute_metric
import main
import predict
import predict_downstream_condition
import word_freq
from diffusion.options import BoundArgs, SampleArgs, SemiArArgs
from evaluation.options import MetricArgs, RefereeArgs
from tests.conftest import call
from training.config import parts
from utils.command_line import parse
from utils.help_text import ORDER, help_of, metavar

KINDS = {
    main: parts("word_freq"),
    predict: [predict.PredictArgs, SampleArgs, SemiArArgs],
    predict_downstream_condition: [predict_downstream_condition.DownstreamArgs, SampleArgs],
    compute_elbo: [compute_elbo.ElboArgs, BoundArgs, RefereeArgs],
    compute_metric: [MetricArgs],
    word_freq: [word_freq.WordFreqFileArgs],
}


@pytest.fixture(params=KINDS, ids=lambda script: script.__name__)
def script(request: pytest.FixtureRequest) -> object:
    return request.param


def help_output(monkeypatch, capsys, script: object) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    assert call(script.main, monkeypatch, "--help") == 0
    return capsys.readouterr().out


def test_every_setting_is_listed_once_with_its_default(monkeypatch, capsys, script: object) -> None:
    text = help_output(monkeypatch, capsys, script)
    flags = text.split("\n\nDashes and underscores")[0]
    flags = re.sub(r"\n\n[a-z][\w ()]+:$", "", flags, flags=re.MULTILINE)  # headings
    listed = re.split(r"\n  (?=--\w)", flags)[1:]
    entries = {entry.split()[0][2:]: " ".join(entry.split()) for entry in listed}
    fields = [field for kind in KINDS[script] for field in dataclasses.fields(kind)]
    assert sorted(entries) == sorted(field.name for field in fields) and len(listed) == len(fields)
    for field in fields:
        default = re.search(r"\[([^][]+)\]$", entries[field.name])
        assert default, f"{field.name} shows no default"
        if field.default is dataclasses.MISSING:
            assert default[1] == "required"
        elif isinstance(field.default, float):
            assert float(default[1]) == field.default
        elif field.default not in ("", None):
            assert default[1].split(";")[0] == (
                str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
            )


def test_the_main_help_is_short(monkeypatch, capsys) -> None:
    assert len(help_output(monkeypatch, capsys, main).splitlines()) <= 140


def test_groups_are_dataclasses_and_the_most_used_flags_come_first(monkeypatch, capsys, script: object) -> None:
    headings = re.findall(r"^([a-z][\w ()]+):$", help_output(monkeypatch, capsys, script), flags=re.MULTILINE)
    groups = {kind.group for kind in KINDS[script]}
    assert headings[0] == "most used" or len(groups) == 1
    assert len(headings) == len(set(headings)) and set(headings) - {"most used"} == groups
    known = [heading for heading in headings if heading in ORDER]
    assert known == sorted(known, key=ORDER.index) and known == headings[: len(known)]


def test_lines_fit_the_terminal_and_the_usage_line_is_short(monkeypatch, capsys, script: object) -> None:
    text = help_output(monkeypatch, capsys, script)
    assert max(map(len, text.splitlines())) <= 80
    usage = text.split("\n\n")[0]
    assert usage.startswith("usage: ") and usage.endswith("[flags]") and len(usage) < 160


def test_published_spellings_are_listed(monkeypatch, capsys) -> None:
    text = " ".join(help_output(monkeypatch, capsys, main).split())
    for spelling in (
        "--learning_rate (also --lr)",
        "--row_format (also --protocol)",
        "--num_train_epochs (also --epochs)",
    ):
        assert spelling in text


def test_help_entries_show_the_kind_of_value_and_the_default() -> None:
    parser = argparse.ArgumentParser()
    number = parser.add_argument("--number", type=int, default=3, help="number of things")
    switch = parser.add_argument("--switch", default=True, help="a switch")
    name = parser.add_argument("--name", choices=["a" * 30, "b"], default="b", help="a name")
    empty = parser.add_argument("--empty", default="", help="a file")
    folder = parser.add_argument("--a_dir", type=str, default="", help="a folder; default: the checkpoint's")
    few = parser.add_argument("--few", choices=["x", "y"], default="x", help="a kind")
    assert [metavar(action) for action in (number, switch, name, empty)] == ["N", "", "NAME", "TEXT"]
    assert help_of(number) == "number of things [3]"
    assert help_of(switch) == "a switch [true; --no_switch: false]"
    assert help_of(name) == f"a name: {'a' * 30}, b [b]"
    assert help_of(empty) == "a file [none]"
    assert (metavar(folder), help_of(folder)) == ("DIR", "a folder [the checkpoint's]")
    assert (metavar(few), help_of(few)) == ("x|y", "a kind [x]")


def test_a_single_dataclass_has_no_group_of_most_used_flags(capsys) -> None:
    with pytest.raises(SystemExit):
        parse([BoundArgs], "x", argv=["--help"])
    assert "most used" not in capsys.readouterr().out
