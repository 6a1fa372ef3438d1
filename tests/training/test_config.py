"""config.py: flags of each process, errors for flags of other processes, and valid defaults of each process."""

import contextlib
import dataclasses

import pytest
import torch

import compute_elbo
import compute_metric
import main
import predict
import word_freq
from checkpoint import import_mdlm
from checkpoint.model_parts import PROCESSES
from tests.conftest import call
from training.config import TrainConfig, foreign_flags, parts
from utils.errors import UserError


@pytest.mark.parametrize("process", PROCESSES)
def test_the_default_settings_of_every_process_are_consistent(monkeypatch, process: str) -> None:
    monkeypatch.setattr("sys.argv", ["main.py", "--process", process, "--train_data", "x", "--output_dir", "y"])
    config = TrainConfig.parse("training")
    config.process.check_time(config.network.time_conditioning)
    config.check(torch.device("cpu"))
    assert config.run.process == process and type(config.process) is PROCESSES[process].settings


def test_an_explicit_time_conditioning_overrides_the_default_of_the_process(monkeypatch) -> None:
    flags = ["--process", "sedd", "--train_data", "x", "--output_dir", "y"]
    for given, expected in (("auto", "layerwise"), ("none", "none"), ("token", "token")):
        monkeypatch.setattr("sys.argv", ["main.py", *flags, "--time_conditioning", given])
        assert TrainConfig.parse("training").network.time_conditioning == expected


def test_foreign_flags_are_the_settings_of_other_processes_only() -> None:
    everything = {field.name for kind in PROCESSES.values() for field in dataclasses.fields(kind.settings)}
    for process in PROCESSES:
        own = {field.name for part in parts(process) for field in dataclasses.fields(part)}
        assert {flag[2:] for flag in foreign_flags(process)} == everything - own
    assert foreign_flags("word_freq")["--rho"] == "--process score, not of --process word_freq"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--leraning_rate", 3], "unknown flag --leraning_rate; did you mean --learning_rate?"),
        (["--xyzzy", 3], "unknown flag --xyzzy (--help"),
        (["--sigma_max", 3], "--sigma_max is a setting of --process score, not of --process word_freq"),
        (["--sigma-max=3"], "--sigma-max is a setting of --process score, not of --process word_freq"),
        (["--process", "mdlm", "--spindle", "none"], "--spindle is a setting of --process word_freq, not of"),
        (["--process", "mdml", "--help"], "process='mdml' must be one of word_freq, mdlm"),
        (["stray"], "unexpected argument 'stray'"),
        (["--trakcer"], "unknown flag --trakcer; did you mean --tracker?"),
        (["--" + "x" * 5000], "(5,004 characters"),
    ],
)
def test_an_unknown_flag_is_a_one_line_error(monkeypatch, capsys, flags: list, message: str) -> None:
    assert call(main.main, monkeypatch, "--train_data", "x", "--output_dir", "y", *flags) == 2
    stderr = capsys.readouterr().err
    assert message in stderr and stderr.count("\n") == 1 and len(stderr) < 1000


def test_help_names_the_command_for_the_flags_of_other_processes(monkeypatch, capsys) -> None:
    assert call(main.main, monkeypatch, "--help") == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "main.py --help --process mdlm (also d3pm, sedd, ar, score)" in output
    assert "--tracker NAME,..." in output and "--sigma_max" not in output
    assert call(main.main, monkeypatch, "--help", "--process", "score") == 0
    assert "--sigma_max" in capsys.readouterr().out


@pytest.mark.parametrize("script", [main, predict, compute_elbo, compute_metric, word_freq, import_mdlm])
def test_a_misspelt_flag_is_reported_before_a_missing_one(monkeypatch, capsys, script: object) -> None:
    assert call(script.main, monkeypatch, "--tokeniser_", "x") == 2
    assert "unknown flag --tokeniser_" in capsys.readouterr().err
    assert call(script.main, monkeypatch, "--help") == 0
    output = capsys.readouterr().out
    assert "(default: )" not in output and "(default: None)" not in output


@pytest.mark.parametrize(
    ("flags", "refused"),
    [
        (["--bell", "0.5,0.2"], False),
        (["--bell", "0.5,0.1"], True),
        (["--bell", "0.5,0.1", "--loss_weighting", "uniform"], False),
        (["--bell", "0.5,0.1", "--process", "sedd"], True),
    ],
)
def test_a_density_that_makes_weights_of_the_bound_huge_is_refused(monkeypatch, flags: list, refused: bool) -> None:
    """At bell=0.5,0.1 the density at the ends is 1.5e-5, so that 1/t would be multiplied by 7e4 there."""
    given = ["main.py", "--train_data", "x", "--output_dir", "y", "--time_sampling", "bell", *flags]
    monkeypatch.setattr("sys.argv", given)
    config = TrainConfig.parse("training")
    with (
        pytest.raises(UserError, match="bell=0.5,0.1: the weights of the bound rise to 6.7e.04 times")
        if refused
        else (contextlib.nullcontext())
    ):
        config.check(torch.device("cpu"))
