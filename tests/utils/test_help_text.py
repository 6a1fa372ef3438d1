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
from diffusion.options import BoundArgs, SampleArgs
from diffusion.semi_autoregressive import SemiArArgs
from tests.conftest import call
from training.config import parts
from utils.command_line import parse
from utils.help_text import help_of, metavar

KINDS = {
    main: parts("word_freq"),
    predict: [predict.PredictArgs, SampleArgs, SemiArArgs],
    predict_downstream_condition: [predict_downstream_condition.DownstreamArgs, SampleArgs],
    compute_elbo: [compute_elbo.ElboArgs, BoundArgs],
    compute_metric: [compute_metric.MetricArgs],
    word_freq: [word_freq.WordFreqFileArgs],
}


@pytest.fixture(params=KINDS, ids=lambda script: script.__name__)
def script(request: pytest.FixtureRequest) -> object:
    return request.param


def said(monkeypatch, capsys, script: object) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    assert call(script.main, monkeypatch, "--help") == 0
    return capsys.readouterr().out


def test_every_setting_is_listed_once_with_its_default(monkeypatch, capsys, script: object) -> None:
    text = said(monkeypatch, capsys, script)
    flags = text.split("\n\nDashes and underscores")[0]
    listed = re.split(r"\n  (?=--\w)", flags)[1:]
    entries = {entry.split()[0][2:]: " ".join(entry.split()) for entry in listed}
    fields = [field for kind in KINDS[script] for field in dataclasses.fields(kind)]
    assert sorted(entries) == sorted(field.name for field in fields) and len(listed) == len(fields)
    for field in fields:
        if field.default is dataclasses.MISSING:
            assert "(required)" in entries[field.name]
        elif field.default not in ("", None):
            assert f"(default: {str(field.default).lower()}" in entries[field.name].lower()
        else:
            assert "default" in entries[field.name]


def test_a_group_is_a_dataclass_and_the_most_used_come_first(monkeypatch, capsys, script: object) -> None:
    headings = re.findall(r"^([a-z][\w ()]+):$", said(monkeypatch, capsys, script), flags=re.MULTILINE)
    groups = list(dict.fromkeys(kind.group for kind in KINDS[script]))
    assert headings in (groups, ["most used", *groups])
    assert headings[0] == "most used" or len(groups) == 1


def test_lines_fit_the_terminal_and_the_usage_is_short(monkeypatch, capsys, script: object) -> None:
    text = said(monkeypatch, capsys, script)
    assert max(map(len, text.splitlines())) <= 80
    usage = text.split("\n\n")[0]
    assert usage.startswith("usage: ") and usage.endswith("[flags]") and len(usage) < 160


def test_published_spellings_are_named(monkeypatch, capsys) -> None:
    text = " ".join(said(monkeypatch, capsys, main).split())
    for spelling in ("--lr for --learning_rate", "--protocol for --row_format", "--epochs for --num_train_epochs"):
        assert spelling in text


def test_values_and_defaults_in_words() -> None:
    parser = argparse.ArgumentParser()
    number = parser.add_argument("--number", type=int, default=3, help="number of things")
    switch = parser.add_argument("--switch", default=True, help="a switch")
    name = parser.add_argument("--name", choices=["a" * 30, "b"], default="b", help="a name")
    empty = parser.add_argument("--empty", default="", help="a file")
    assert [metavar(action) for action in (number, switch, name, empty)] == ["N", "", "NAME", "TEXT"]
    assert help_of(number) == "number of things (default: 3)"
    assert help_of(switch) == "a switch (default: true; --no_switch: false)"
    assert help_of(name) == f"a name; one of {'a' * 30}, b (default: b)"
    assert help_of(empty) == "a file (default: none)"


def test_a_dataclass_alone_has_no_most_used(capsys) -> None:
    with pytest.raises(SystemExit):
        parse([BoundArgs], "x", argv=["--help"])
    assert "most used" not in capsys.readouterr().out
