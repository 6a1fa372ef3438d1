"""fitlog_record.py: one folder of records for sibling runs, read back with fitlog's own reader."""

import json
import logging
import subprocess
import warnings
from pathlib import Path

import pytest

from training import fitlog_record
from training.fitlog_record import FitlogRecord, command, fitlog_folder, remove
from training.tracking import Tracker

REPORT = {"bits_per_token": 5.0, "ppl_word": 40.0, "unigram_bits_per_token": 9.0, "num_steps": 32, "protocol": ""}
SETTINGS = {"seed": 1, "schedule": "mutual"}


def fill(output: Path, bounds: tuple[float, ...] = (6.0, 5.0, 5.5), first: int = 1) -> Tracker:
    tracker = Tracker(output, SETTINGS, trackers=("fitlog",))
    for step, bound in enumerate(bounds, first):
        tracker.train(step, {"bits_per_token": 2 * bound, "learning_rate": 0.1, "tokens_per_second": 1e4})
        tracker.valid(step, {**REPORT, "bits_per_token": bound}, best=bound == min(bounds[: step - first + 1]))
    return tracker


def lines(record: Path, name: str) -> list[dict]:
    """Return the JSON lines of a record's file, without the step numbers before them."""
    return [json.loads(line[line.index("{") :]) for line in (record / f"{name}.log").read_text().splitlines()]


def table(folder: Path) -> dict[str, dict]:
    """Return the records of a folder by run, as fitlog's own reader gives them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fitlog.fastlog import LogReader
    reader = LogReader()
    reader.set_log_dir(str(folder))
    return {(folder / log["id"] / "run.txt").read_text().strip(): log for log in reader.read_logs()}


def test_charts_hold_bits_per_token_and_constants_are_not_metrics(tmp_path: Path) -> None:
    fill(tmp_path / "run").close()
    (record,) = (tmp_path / "fitlog").iterdir()
    assert {name for line in lines(record, "loss") for name in line["loss"]} == {"bits_per_token"}
    assert {name for line in lines(record, "metric") for name in line["metric"]} == {"bits_per_token"}
    assert [line["metric"]["bits_per_token"] for line in lines(record, "metric")] == [6.0, 5.0, 5.5]
    entry = table(tmp_path / "fitlog")["run"]
    assert entry["metric"] == {"bits_per_token": 5.0, "ppl_word": 40.0} and entry["hyper"]["seed"] == "1"
    assert entry["other"]["num_steps"] == 32 and entry["meta"]["state"] == "finish"


def test_runs_of_one_folder_are_compared_in_one_table(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):  # begun within one second, yet with distinct names
        fill(tmp_path / name).close()
    assert set(table(tmp_path / "fitlog")) == {"a", "b", "c"}
    assert command(tmp_path / "a") == f"fitlog log {tmp_path / 'fitlog'} --ip 127.0.0.1"
    assert command(tmp_path / "d") == ""


def test_a_record_of_an_earlier_version_stays_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier versions kept the record within the run's folder."""
    (tmp_path / "run" / "fitlog" / "log_20250101_000000").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert command(tmp_path / "run") == "fitlog log run/fitlog --ip 127.0.0.1"
    fill(tmp_path / "run").close()
    assert command(tmp_path / "run") == "fitlog log fitlog --ip 127.0.0.1"
    assert (tmp_path / "run" / "fitlog" / "log_20250101_000000").is_dir()


def test_a_resumed_run_continues_its_record_from_the_last_step_of_its_log(tmp_path: Path) -> None:
    fill(tmp_path / "other").close()
    fill(tmp_path / "run")  # killed
    log = tmp_path / "run" / "log.jsonl"
    log.write_text("".join(line + "\n" for line in log.read_text().splitlines()[:5]))  # up to step 2
    fill(tmp_path / "run", (4.0,), first=3).close()
    assert len(list((tmp_path / "fitlog").iterdir())) == 2
    entry = table(tmp_path / "fitlog")["run"]
    record = tmp_path / "fitlog" / entry["id"]
    assert [line["step"] for line in lines(record, "loss")] == [1, 2, 3]
    assert [line["metric"]["bits_per_token"] for line in lines(record, "metric")] == [6.0, 5.0, 4.0]
    assert entry["metric"]["bits_per_token"] == 4.0


def test_overwriting_a_run_removes_only_its_own_record(tmp_path: Path) -> None:
    fill(tmp_path / "a").close()
    fill(tmp_path / "b").close()
    remove(tmp_path / "a")
    assert set(table(tmp_path / "fitlog")) == {"b"}


def test_a_new_run_in_the_folder_of_a_removed_one_keeps_the_old_record(tmp_path: Path) -> None:
    for _ in range(2):
        fill(tmp_path / "a").close()
        (tmp_path / "a" / "log.jsonl").unlink()
    records = list((tmp_path / "fitlog").iterdir())
    assert len(records) == 2 and sum((record / "run.txt").exists() for record in records) == 1


@pytest.mark.parametrize("reason", ["read-only", "everyone's", "other", "file", "itself"])
def test_the_record_lies_in_the_run_folder_if_the_shared_one_is_unusable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    output = tmp_path / ("fitlog" if reason == "itself" else "run")
    output.mkdir()
    if reason == "read-only":
        monkeypatch.setattr(fitlog_record.os, "access", lambda path, mode: Path(path) != tmp_path)
    elif reason == "everyone's":
        tmp_path.chmod(0o777)
    elif reason == "other":
        (tmp_path / "fitlog" / "src").mkdir(parents=True)
    elif reason == "file":
        (tmp_path / "fitlog").write_text("mine")
    assert fitlog_folder(output) == output / "fitlog"


def test_a_full_disk_costs_one_fitlog_warning(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """On a full disk, fitlog's logging would print a traceback for every line."""
    tracker = Tracker(tmp_path / "run", SETTINGS, trackers=("fitlog",))
    for name in fitlog_record.LOGGERS:
        for handler in logging.getLogger(f"fitlog_{name}").handlers:
            handler.setStream(open("/dev/full", "w"))  # noqa: SIM115 (the record closes it)
    for step in range(1, 5):
        tracker.train(step, {"bits_per_token": 8.0})
        tracker.valid(step, {**REPORT, "bits_per_token": 8.0 - step}, best=True)
    tracker.close()
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1 and "warning: fitlog: OSError" in stderr and "No space left" in stderr


def test_missing_and_non_finite_figures_are_not_recorded(tmp_path: Path) -> None:
    record = FitlogRecord(tmp_path / "run", SETTINGS)
    record.train(1, {"bits_per_token": None})
    record.valid(1, {**REPORT, "bits_per_token": float("inf")}, best=True)
    record.valid(2, {**REPORT, "ppl_word": None}, best=True)
    record.finish()
    assert lines(record.folder, "loss") == [] and len(lines(record.folder, "metric")) == 1


def test_fitlog_leaves_the_users_git_repository_and_home_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fitlog can commit a user's code; a run begun within a repository must not."""
    repository, home = tmp_path / "repository", tmp_path / "home"
    home.mkdir()
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    (repository / "mine.py").write_text("x = 1\n")
    subprocess.run([*git, "add", "mine.py"], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    (repository / "mine.py").write_text("x = 2\n")

    def state() -> tuple[str, ...]:
        commands = (["log", "--all", "--format=%H"], ["status", "--porcelain", "mine.py"], ["stash", "list"])
        return tuple(subprocess.run([*git, *c], check=True, capture_output=True, text=True).stdout for c in commands)

    before, config = state(), (repository / ".git" / "config").read_text()
    monkeypatch.chdir(repository)
    monkeypatch.setenv("HOME", str(home))
    fill(repository / "out" / "run").close()
    assert state() == before and (repository / ".git" / "config").read_text() == config
    assert {path.name for path in repository.iterdir()} == {".git", "mine.py", "out"} and not list(home.iterdir())
    assert {path.name for path in (repository / "out").iterdir()} == {"run", "fitlog"}
