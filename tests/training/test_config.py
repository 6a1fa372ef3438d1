"""config.py: flags of each process, errors for flags of other processes, and valid defaults of each process."""

import dataclasses

import pytest
import torch

import compute_elbo
import compute_metric
import main
import predict
import word_freq
from checkpoint import import_mdlm
from checkpoint.text_model import PROCESSES
from tests.conftest import call
from training.config import TrainConfig, foreign_flags, parts


@pytest.mark.parametrize("process", PROCESSES)
def test_a_process_alone_has_settings_that_go_together(monkeypatch, process: str) -> None:
    monkeypatch.setattr("sys.argv", ["main.py", "--process", process, "--train_data", "x", "--output_dir", "y"])
    config = TrainConfig.parse("training")
    config.process.check_time(config.network.time_conditioning)
    config.check(torch.device("cpu"))
    assert config.run.process == process and type(config.process) is PROCESSES[process].settings


def test_a_time_conditioning_that_is_given_stays(monkeypatch) -> None:
    flags = ["--process", "sedd", "--train_data", "x", "--output_dir", "y"]
    for given, then in (("auto", "layerwise"), ("none", "none"), ("token", "token")):
        monkeypatch.setattr("sys.argv", ["main.py", *flags, "--time_conditioning", given])
        assert TrainConfig.parse("training").network.time_conditioning == then


def test_settings_foreign_flags_are_those_that_are_not_ones_own() -> None:
    everything = {field.name for kind in PROCESSES.values() for field in dataclasses.fields(kind.settings)}
    for process in PROCESSES:
        own = {field.name for part in parts(process) for field in dataclasses.fields(part)}
        assert {flag[2:] for flag in foreign_flags(process)} == everything - own
    assert foreign_flags("word_freq")["--rho"] == "--process score, not of --process word_freq"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--leraning_rate", 3], "unknown flag --leraning_rate; did you mean --learning_rate?"),
        (["--xyzzy", 3], "unknown flag --xyzzy (--help"),
        (["--sigma_max", 3], "--sigma_max is a setting of --process score, not of --process word_freq"),
        (["--sigma-max=3"], "--sigma-max is a setting of --process score, not of --process word_freq"),
        (["--process", "mdlm", "--spindle", "none"], "--spindle is a setting of --process word_freq, not of"),
        (["--process", "mdml", "--help"], "process='mdml' must be one of word_freq, mdlm"),
        (["stray"], "unexpected argument 'stray'"),
        (["--no_fitlogg"], "unknown flag --no_fitlogg; did you mean --no_fitlog?"),
        (["--" + "x" * 5000], "(5,004 characters"),
    ],
)
def test_a_flag_that_there_is_not_is_one_line(monkeypatch, capsys, flags: list, said: str) -> None:
    assert call(main.main, monkeypatch, "--train_data", "x", "--output_dir", "y", *flags) == 2
    found = capsys.readouterr().err
    assert said in found and found.count("\n") == 1 and len(found) < 1000


def test_help_says_how_to_see_the_others(monkeypatch, capsys) -> None:
    assert call(main.main, monkeypatch, "--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "main.py --help --process mdlm (also d3pm, sedd, ar, score)" in said
    assert "--no_fitlog: false" in said and "--sigma_max" not in said
    assert call(main.main, monkeypatch, "--help", "--process", "score") == 0
    assert "--sigma_max" in capsys.readouterr().out


@pytest.mark.parametrize("script", [main, predict, compute_elbo, compute_metric, word_freq, import_mdlm])
def test_a_misspelt_flag_is_named_before_one_that_is_missing(monkeypatch, capsys, script: object) -> None:
    assert call(script.main, monkeypatch, "--tokeniser_", "x") == 2
    assert "unknown flag --tokeniser_" in capsys.readouterr().err
    assert call(script.main, monkeypatch, "--help") == 0
    said = capsys.readouterr().out
    assert "(default: )" not in said and "(default: None)" not in said
