"""config.py: every process has its own flags, those of others are named, and alone each of them can be trained."""

import dataclasses

import pytest

import compute_elbo
import compute_metric
import main
import predict
import word_freq
from checkpoint import import_mdlm
from checkpoint.text_model import PROCESSES
from tests.conftest import call
from training.config import kinds, of_others, read, settled


@pytest.mark.parametrize("process", PROCESSES)
def test_a_process_alone_has_settings_that_go_together(monkeypatch, process: str) -> None:
    monkeypatch.setattr("sys.argv", ["main.py", "--process", process, "--train_data", "x", "--output_dir", "y"])
    args, data, _, network, noise, *_ = read("training")
    noise.check_time(network.time_conditioning)
    more = {"fused_loss": args.fused_loss, "warm_start": args.warm_start, "packing": data.packing}
    noise.check(time_conditioning=network.time_conditioning, **more)
    assert args.process == process and type(noise) is PROCESSES[process].settings


def test_a_time_conditioning_that_is_given_stays(monkeypatch) -> None:
    words = ["--process", "sedd", "--train_data", "x", "--output_dir", "y"]
    for given, then in (("auto", "layerwise"), ("none", "none"), ("token", "token")):
        monkeypatch.setattr("sys.argv", ["main.py", *words, "--time_conditioning", given])
        settings = read("training")
        assert settings[3].time_conditioning == then and settled(settings) == settings


def test_settings_of_others_are_those_that_are_not_ones_own() -> None:
    everything = {field.name for kind in PROCESSES.values() for field in dataclasses.fields(kind.settings)}
    for process in PROCESSES:
        own = {field.name for kind in kinds(process) for field in dataclasses.fields(kind)}
        assert {flag[2:] for flag in of_others(process)} == everything - own
    assert of_others("word_freq")["--rho"] == "--process score, not of --process word_freq"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--leraning_rate", 3], "unknown flag --leraning_rate; did you mean --learning_rate?"),
        (["--xyzzy", 3], "unknown flag --xyzzy (--help"),
        (["--sigma_max", 3], "--sigma_max is a setting of --process score, not of --process word_freq"),
        (["--sigma-max=3"], "--sigma-max is a setting of --process score, not of --process word_freq"),
        (["--process", "mdlm", "--spindle", "none"], "--spindle is a setting of --process word_freq, not of"),
        (["--process", "mdml", "--help"], "process='mdml' must be one of word_freq, mdlm"),
        (["stray"], "a word too many: 'stray'"),
        (["--no_fitlogg"], "unknown flag --no_fitlogg; did you mean --no_fitlog?"),
        (["--" + "x" * 5000], "(5,004 characters"),
    ],
)
def test_a_flag_that_there_is_not_is_one_line(monkeypatch, capsys, words: list, said: str) -> None:
    assert call(main.main, monkeypatch, "--train_data", "x", "--output_dir", "y", *words) == 2
    found = capsys.readouterr().err
    assert said in found and found.count("\n") == 1 and len(found) < 1000


def test_help_says_how_to_see_the_others(monkeypatch, capsys) -> None:
    assert call(main.main, monkeypatch, "--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "main.py --help --process mdlm (also d3pm, sedd, ar, score)" in said
    assert "--no_fitlog, --no-fitlog the same as --fitlog false" in said and "--sigma_max" not in said
    assert call(main.main, monkeypatch, "--help", "--process", "score") == 0
    assert "--sigma_max" in capsys.readouterr().out


@pytest.mark.parametrize("script", [main, predict, compute_elbo, compute_metric, word_freq, import_mdlm])
def test_a_misspelt_flag_is_named_before_one_that_is_missing(monkeypatch, capsys, script: object) -> None:
    assert call(script.main, monkeypatch, "--tokeniser_", "x") == 2
    assert "unknown flag --tokeniser_" in capsys.readouterr().err
    assert call(script.main, monkeypatch, "--help") == 0
    said = capsys.readouterr().out
    assert "(default: )" not in said and "(default: None)" not in said
