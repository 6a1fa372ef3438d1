"""External faults of a run: signals, kills, a full disk, a read-only folder. Real processes."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

import main
from tests.conftest import ROOT, call, errors_of
from training.saved_state import folder_of, states
from utils.files import manifest_error

sys.path.insert(0, str(ROOT / "benchmarks"))
import faults  # noqa: E402

TOOK = []
"""Seconds of the run that nothing happens to."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, slow_setup: None) -> Path:
    """Return a folder with a corpus and an undisturbed run."""
    place, began = tmp_path_factory.mktemp("faults"), time.monotonic()
    faults.write_corpus(place / "corpus.txt")
    assert faults.start(place, "reference", 1).wait(120) == 0
    TOOK.append(time.monotonic() - began)
    return place


def start(
    place: Path, name: str, prepare: Callable[[], None] | None = None, words: Iterable[str] = (), **pipes: object
) -> subprocess.Popen:
    """Start the same training into another folder."""
    more = list(words)
    words = [sys.executable, ROOT / "main.py", "--train_data", place / "corpus.txt", "--cache_dir", place / "cache"]
    words += ["--output_dir", place / name, *faults.SETTINGS, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    pipes = pipes or {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [str(word) for word in words], text=True, env=environment, preexec_fn=prepare, cwd=ROOT, **pipes
    )


def until(process: subprocess.Popen, text: str) -> None:
    """Read the output up to a line that contains a text."""
    for line in process.stdout:
        if text in line:
            return
    pytest.fail(f"it ended without saying {text!r}: {process.stderr.read()}")


def assert_as_if_nothing_had_been(place: Path, name: str) -> None:
    last = folder_of(place / name, 60)
    assert faults.same(last, folder_of(place / "reference", 60))
    assert faults.logged(place / name) == faults.logged(place / "reference")


def test_killed_at_random_moments_a_run_ends_in_the_same_bytes(place: Path) -> None:
    """Short form of benchmarks/faults.py."""
    found = {"identical": 0, "lost": 0, "kills": 0, "in_renames": 0}
    rng = random.Random(1)
    while not found["kills"]:
        found["identical"] = 0
        faults.one_run(place, f"killed{rng.random()}", TOOK[0], rng, 1, found)
    assert found["identical"] == 1 and found["lost"] == 0 and found["kills"] > 0


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_a_notice_saves_and_ends_well(place: Path, which: signal.Signals) -> None:
    process = start(place, which.name)
    until(process, "step 20:")
    process.send_signal(which)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and not errors_of(errors)
    assert "asked to stop: stopped after step 2" in said and "the same command again to resume from there" in said
    said, errors = (again := start(place, which.name)).communicate(timeout=120)
    assert again.returncode == 0 and "resumed after step 2" in said
    assert_as_if_nothing_had_been(place, which.name)


def test_a_second_notice_is_obeyed_at_once(place: Path) -> None:
    process = start(place, "twice")
    until(process, "step 10:")
    process.send_signal(signal.SIGSTOP)  # both wait for this process
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    for _ in range(2000):
        time.sleep(0.0005)
        process.send_signal(signal.SIGTERM)
        if process.poll() is not None:
            break
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM


def test_a_full_disk_ends_in_one_line_and_spares_the_last_state(place: Path) -> None:
    """Files are limited to 300 kB, so no further state fits."""
    process = start(place, "full")
    until(process, "step 22:")
    process.kill()
    process.communicate()
    whole = sorted(states(place / "full"))
    limit = 300_000
    full = start(place, "full", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    said, errors = full.communicate(timeout=120)
    assert full.returncode == 2 and len(errors_of(errors)) == 1 and "cannot be written (" in errors, errors
    assert "arge" in errors and "make room" in errors  # File too large
    assert sorted(states(place / "full")) == whole
    assert whole and all(manifest_error(state) == "" for state in whole)
    assert not list((place / "full").glob(".*")) and not list((place / "full" / "state").glob(".*"))
    assert start(place, "full", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).wait(120) == 0
    assert_as_if_nothing_had_been(place, "full")


def test_a_reader_that_is_killed_ends_the_run_in_one_line(place: Path) -> None:
    """A data worker is killed, as when memory runs out; the run resumes from its last state."""
    words = ["--streaming", "true", "--num_workers", "1", "--save_every", "2", "--max_steps", "100000"]
    process = start(place, "reader", words=words)
    until(process, "step 5:")
    for child in subprocess.check_output(["pgrep", "-P", str(process.pid)], text=True).split():
        if "python" in Path(f"/proc/{child}/cmdline").read_text():
            os.kill(int(child), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and "a process that reads text was killed" in errors, errors
    assert len(errors_of(errors)) == 1, errors
    again = start(place, "reader", words=words)
    until(again, "resumed after step")
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=60)
    assert again.returncode == 0


@pytest.mark.parametrize("folder", ["/sys/run", "/dev/null/run"])
def test_a_place_that_cannot_be_written_is_refused(monkeypatch, capsys, corpus: Path, folder: str) -> None:
    words = ["--train_data", corpus, "--cache_dir", corpus.parent / "cache", "--output_dir", folder, *faults.SETTINGS]
    assert call(main.main, monkeypatch, *words) == 2
    (said,) = errors_of(capsys.readouterr().err)
    assert folder.rpartition("/")[0] in said


def test_what_the_log_says_survives_too(place: Path) -> None:
    steps = [record["step"] for record in faults.logged(place / "reference") if record["kind"] == "train"]
    assert steps == list(range(1, 61))
    assert json.loads((place / "reference" / "run.json").read_text())["max_steps"] == 60
