"""parallel.py: training is independent of the number of processes and of sharding. Real processes, on gloo."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import compute_elbo
import main
from checkpoint.folder import load_checkpoint
from tests.conftest import ROOT, SENTENCES, TINY, call
from tests.training.test_resume import stop_after
from training.config import TrainConfig
from training.resume import Start
from training.setup import prepare
from utils.errors import UserError

STEPS = ["--max_steps", 50, "--eval_steps", 25, "--logging_steps", 1, "--batch_size", 8, "--ema_decay", 0.9]
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def settings(folder: Path, name: str) -> list[object]:
    """Return the flags of a training into folder/name, and write its text."""
    (folder / "corpus.txt").write_text("\n".join(SENTENCES) + "\n")
    base = [*TINY, "--train_data", folder / "corpus.txt", "--cache_dir", folder / "cache", "--valid_fraction", 0.1]
    return [*base, "--output_dir", folder / name, *STEPS]


def launch(folder: Path, name: str, processes: int, *flags: object, options: tuple = (), script: str = "") -> str:
    """Run main.py, or a script that patches it, on `processes` processes; return its output."""
    command = [*LAUNCHER, processes, *options, script or ROOT / "main.py", *settings(folder, name), *flags]
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def train_alone(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str) -> None:
    """Run main.py in this process, with four batches a step."""
    assert call(main.main, monkeypatch, *settings(folder, name), "--accumulation_steps", 4) == 0


def losses(run: Path) -> torch.Tensor:
    """Return fifty training losses and two bounds."""
    records = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return torch.tensor([r["bits_per_token"] for r in records if r["kind"] in ("train", "valid")])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, slow_setup: None) -> Path:
    """Return a folder with the run of one process, whose steps are four batches."""
    folder = tmp_path_factory.mktemp("parallel")
    with pytest.MonkeyPatch.context() as patch:
        train_alone(patch, folder, "one")
    return folder


def assert_equal_to_the_run_of_one_process(run: Path, folder: Path) -> None:
    """Compare fifty losses, two bounds and all weights."""
    assert len(losses(run)) == 52
    torch.testing.assert_close(losses(run), losses(folder / "one"), rtol=1e-5, atol=0)
    one, other = (load_file(file / "checkpoint-last" / "model.safetensors") for file in (folder / "one", run))
    assert one.keys() == other.keys()
    for weight in one:
        torch.testing.assert_close(other[weight], one[weight], rtol=1e-4, atol=1e-5)


def test_losses_and_weights_do_not_depend_on_the_number_of_processes(folder: Path) -> None:
    """Two processes with shards; further tests compare two and four processes with whole weights."""
    output = launch(folder, "shards", 2, "--accumulation_steps", 2, "--strategy", "fsdp")
    assert "2 processes" in output and output.count("trained 50 steps") == 1
    assert_equal_to_the_run_of_one_process(folder / "shards", folder)


def test_a_checkpoint_saved_from_shards_loads_in_one_process(folder: Path) -> None:
    run = load_checkpoint(str(folder / "shards"), torch.device("cpu"))
    assert run.facts["step"] == 50 and all(p.shape.numel() for p in run.denoiser.parameters())


def test_two_processes_with_shards_resume_the_state_of_one(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """A resumed step still has four batches, shared by two processes. The test of stop signals resumes four as one."""
    shutil.copytree(folder / "cache", tmp_path / "cache")
    with monkeypatch.context() as patch:
        stop_after(patch, 20)
        train_alone(patch, tmp_path, "run")
    assert "stopped after step 20" in capsys.readouterr().out
    output = launch(tmp_path, "run", 2, "--accumulation_steps", 4, "--strategy", "fsdp")
    assert "resumed after step 20" in output and "50 steps of 32 sentences" in output
    assert_equal_to_the_run_of_one_process(tmp_path / "run", folder)


DIES = """
import os, signal, sys
import main
from training.bookkeeper import Bookkeeper
from utils import distributed, job
from utils.command_line import run_script
real, calls = Bookkeeper.agree, []
def agree(self, parts, stop_signal):
    calls.append(1)
    if len(calls) == 30 and job.rank() == 1 and not job.restarts():
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, parts, stop_signal)
Bookkeeper.agree = agree
run_script(main.main)
"""


def test_a_killed_process_is_reported_and_the_restart_by_torchrun_resumes(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text(DIES)
    shutil.copytree(folder / "cache", tmp_path / "cache")  # a tokenizer learnt again may break ties differently
    options = ("--max_restarts", 1)
    flags = ("--accumulation_steps", 2, "--save_every", 10, "--overwrite", "true")
    output = launch(tmp_path, "run", 2, *flags, options=options, script=str(tmp_path / "dies.py"))
    # by torchrun; the error of the remaining process may come too late
    assert "exitcode: -9" in output and "local_rank: 1" in output
    assert "resumed after step 2" in output
    assert_equal_to_the_run_of_one_process(tmp_path / "run", folder)


def test_bounds_do_not_depend_on_the_number_of_processes(folder: Path, monkeypatch, capsys) -> None:
    """One process and two give the same report, also with --target_se."""
    flags = ["--checkpoint", folder / "one", "--threads", 1, "--estimator", "trajectory", "--target_se", 0.05]
    flags += ["--data", folder / "corpus.txt", "--cache_dir", folder / "cache", "--limit", 41, "--json", "true"]
    assert call(compute_elbo.main, monkeypatch, *flags) == 0
    alone = json.loads(capsys.readouterr().out)
    done = subprocess.run(
        [str(word) for word in [*LAUNCHER, 2, ROOT / "compute_elbo.py", *flags]], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shared = json.loads(done.stdout)
    for name, value in alone.items():
        assert shared[name] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), name


def test_stop_signals_to_all_processes_count_as_one(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Slurm sends SIGTERM to torchrun and its workers; torchrun repeats it to the workers."""
    shutil.copytree(folder / "cache", tmp_path / "cache")
    command = [*LAUNCHER, 4, ROOT / "main.py", *settings(tmp_path, "run")]
    process = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    output = ""
    while "step 10:" not in output:
        output = process.stdout.readline()
    for child in subprocess.check_output(["pgrep", "-P", str(process.pid)], text=True).split():
        os.kill(int(child), signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=90)
    assert "asked to stop: stopped after step 1" in output
    train_alone(monkeypatch, tmp_path, "run")  # one process resumes the state of four
    output = capsys.readouterr().out
    assert "resumed after step 1" in output and "50 steps of 32 sentences" in output
    assert_equal_to_the_run_of_one_process(tmp_path / "run", folder)


def test_unsupported_combinations_are_refused_before_anything_is_written(tmp_path: Path, monkeypatch) -> None:
    for processes, strategy, flags, message in (
        (2, "fsdp", ["--optimizer", "muon"], "strategy=fsdp does not support muon"),
        (2, "fsdp", ["--precision", "fp16"], "strategy=fsdp does not support fp16"),
        (1, "fsdp", ["--optimizer", "muon"], ""),
        (2, "ddp", ["--optimizer", "muon"], ""),
    ):
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        flags = [*settings(tmp_path, "run"), "--strategy", strategy, *flags]
        monkeypatch.setattr("sys.argv", ["main.py", *map(str, flags)])
        config = TrainConfig.parse("training")
        if message:
            with pytest.raises(UserError, match=message):
                prepare(config, torch.device("cpu"), Start())
        else:
            config.check(torch.device("cpu"))
    assert [file.name for file in tmp_path.iterdir()] == ["corpus.txt"]
