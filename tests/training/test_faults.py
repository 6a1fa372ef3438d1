"""Faults from outside a run, with real processes: signals, kills, a full disk, a read-only folder."""

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

UNDISTURBED_SECONDS = []
"""Holds the duration of the undisturbed run."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, slow_setup: None) -> Path:
    """Return a folder with a corpus and an undisturbed run."""
    folder, began = tmp_path_factory.mktemp("faults"), time.monotonic()
    faults.write_corpus(folder / "corpus.txt")
    assert faults.start(folder, "reference", 1).wait(120) == 0
    UNDISTURBED_SECONDS.append(time.monotonic() - began)
    return folder


def start(
    folder: Path, name: str, preexec: Callable[[], None] | None = None, flags: Iterable[str] = (), **pipes: object
) -> subprocess.Popen:
    """Start the same training into another folder."""
    command = [sys.executable, ROOT / "main.py", "--train_data", folder / "corpus.txt", "--cache_dir", folder / "cache"]
    command += ["--output_dir", folder / name, *faults.SETTINGS, *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    pipes = pipes or {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [str(word) for word in command], text=True, env=environment, preexec_fn=preexec, cwd=ROOT, **pipes
    )


def until(process: subprocess.Popen, text: str) -> None:
    """Read the output up to a line that contains a text."""
    for line in process.stdout:
        if text in line:
            return
    pytest.fail(f"the process ended without printing {text!r}: {process.stderr.read()}")


def resume_here(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str) -> None:
    """Repeat the command in this process, until the training ends."""
    flags = ["--train_data", folder / "corpus.txt", "--cache_dir", folder / "cache", "--output_dir", folder / name]
    assert call(main.main, monkeypatch, *flags, *faults.SETTINGS) == 0


def assert_equal_to_the_undisturbed_run(folder: Path, name: str) -> None:
    last = folder_of(folder / name, 60)
    assert faults.same(last, folder_of(folder / "reference", 60))
    assert faults.logged(folder / name) == faults.logged(folder / "reference")


def test_a_run_killed_at_random_moments_ends_in_the_same_bytes(folder: Path) -> None:
    """Run a short form of benchmarks/faults.py."""
    counts = {"identical": 0, "lost": 0, "kills": 0, "in_renames": 0}
    rng = random.Random(1)
    while not counts["kills"]:
        counts["identical"] = 0
        faults.one_run(folder, f"killed{rng.random()}", UNDISTURBED_SECONDS[0], rng, 1, counts)
    assert counts["identical"] == 1 and counts["lost"] == 0 and counts["kills"] > 0


@pytest.mark.parametrize("stop_signal", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_saves_the_state_and_exits_with_code_0(
    folder: Path, monkeypatch, capsys, stop_signal: signal.Signals
) -> None:
    process = start(folder, stop_signal.name)
    until(process, "step 20:")
    process.send_signal(stop_signal)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and not errors_of(errors)
    assert "asked to stop: stopped after step 2" in output and "the same command again to resume from there" in output
    resume_here(monkeypatch, folder, stop_signal.name)
    assert "resumed after step 2" in capsys.readouterr().out
    assert_equal_to_the_undisturbed_run(folder, stop_signal.name)


def test_a_second_stop_signal_ends_the_process_at_once(folder: Path) -> None:
    process = start(folder, "twice")
    until(process, "step 10:")
    process.send_signal(signal.SIGSTOP)  # SIGTERM stays pending until SIGCONT
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    for _ in range(2000):
        time.sleep(0.0005)
        process.send_signal(signal.SIGTERM)
        if process.poll() is not None:
            break
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM


def test_a_full_disk_is_a_one_line_error_and_the_last_state_stays_intact(folder: Path, monkeypatch) -> None:
    """Files are limited to 300 kB, so no further state fits."""
    process = start(folder, "full")
    until(process, "step 20:")
    process.kill()
    process.communicate()
    intact = sorted(states(folder / "full"))
    limit = 300_000
    full = start(folder, "full", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    _, errors = full.communicate(timeout=120)
    assert full.returncode == 2 and len(errors_of(errors)) == 1 and "cannot be written (" in errors, errors
    assert "arge" in errors and "make room" in errors  # File too large
    assert sorted(states(folder / "full")) == intact
    assert intact and all(manifest_error(state) == "" for state in intact)
    assert not list((folder / "full").glob(".*")) and not list((folder / "full" / "state").glob(".*"))
    resume_here(monkeypatch, folder, "full")
    assert_equal_to_the_undisturbed_run(folder, "full")


def test_a_killed_data_worker_ends_the_run_with_a_one_line_error(folder: Path) -> None:
    """The kernel kills a worker when memory runs out. The run resumes from its last state."""
    flags = ["--streaming", "true", "--num_workers", "1", "--save_every", "2", "--max_steps", "100000"]
    process = start(folder, "reader", flags=flags)
    until(process, "step 5:")
    for child in subprocess.check_output(["pgrep", "-P", str(process.pid)], text=True).split():
        if "python" in Path(f"/proc/{child}/cmdline").read_text():
            os.kill(int(child), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and "a process that reads text was killed" in errors, errors
    assert len(errors_of(errors)) == 1, errors
    again = start(folder, "reader", flags=flags)
    until(again, "resumed after step")
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=60)
    assert again.returncode == 0


@pytest.mark.parametrize("target", ["/sys/run", "/dev/null/run"])
def test_an_unwritable_output_folder_is_refused(monkeypatch, capsys, corpus: Path, target: str) -> None:
    flags = ["--train_data", corpus, "--cache_dir", corpus.parent / "cache", "--output_dir", target, *faults.SETTINGS]
    assert call(main.main, monkeypatch, *flags) == 2
    (message,) = errors_of(capsys.readouterr().err)
    assert target.rpartition("/")[0] in message


def test_the_log_of_the_undisturbed_run_holds_every_step(folder: Path) -> None:
    steps = [record["step"] for record in faults.logged(folder / "reference") if record["kind"] == "train"]
    assert steps == list(range(1, 61))
    assert json.loads((folder / "reference" / "run.json").read_text())["max_steps"] == 60
