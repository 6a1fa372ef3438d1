"""device.py: files are whole or absent, errors are one line, devices and precisions are what was asked for."""

import platform
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT, call
from training.clock import Deadline
from utils.command_line import run_script
from utils.device import autocast, pick_device, pick_precision, set_up_cpu
from utils.errors import UserError


def fail() -> None:
    raise UserError("size=3 is too small\n  give 4 or more")


def test_a_user_error_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert call(fail, monkeypatch) == 2
    assert capsys.readouterr().err == "script.py: error: size=3 is too small give 4 or more\n"


def test_a_file_that_cannot_be_had_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert call(lambda: open("/dev/null/x", "w"), monkeypatch) == 2
    assert capsys.readouterr().err.startswith("script.py: error: /dev/null/x: Not a directory; give another path")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    program = "import runtime\nruntime.run_script(lambda: [print('x' * 99) for _ in range(99999)])"
    shell = f"'{sys.executable}' -c \"{program}\" | head -1"
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "x" * 99 + "\n" and not done.stderr


def test_a_programming_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        call(lambda: 1 / 0, monkeypatch)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_memory_of_a_large_tensor_is_kept_for_the_next_one() -> None:
    """In a process of its own: 20 tensors of 64 MiB, one after another, touch hardly any new pages."""
    program = """
import resource
import sys

import torch

import runtime

if sys.argv[1] == "kept":
    runtime.set_up_cpu(1)
for _ in range(5):
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"""
    faults = {
        how: int(subprocess.run([sys.executable, "-c", program, how], cwd=ROOT, capture_output=True, text=True).stdout)
        for how in ("kept", "as it was")
    }
    assert faults["kept"] * 2 < faults["as it was"]


def test_precision_is_as_asked_and_auto_is_something_the_machine_has() -> None:
    cpu = torch.device("cpu")
    assert [pick_precision(p, cpu) for p in ("fp32", "bf16", "fp16")] == ["fp32", "bf16", "fp16"]
    assert pick_precision("auto", cpu) in ("fp32", "bf16")
    with autocast(cpu, "bf16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with autocast(cpu, "fp32"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed."),
            "a process that reads text was killed",
        ),
        (UnicodeEncodeError("utf-8", "caf\udce9.txt", 3, 4, "surrogates"), "a path that is not UTF-8: 'caf"),
    ],
)
def test_what_others_raise_is_one_line_too(capsys: pytest.CaptureFixture, error: Exception, words: str) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run_script(main)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and words in said and said.count("\n") == 1
    with pytest.raises(RuntimeError, match="something else"):
        run_script(lambda: (_ for _ in ()).throw(RuntimeError("something else")))


def test_there_must_be_time_for_two_more_of_the_longest_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [97.0]
    monkeypatch.setattr("training.clock.time.monotonic", lambda: now[0])
    monkeypatch.setattr("training.clock.PROCESS_BEGAN", 0.0)
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    deadline, never = Deadline(2.0), Deadline(0)
    for then, near in ((100, False), (105, False), (113, True), (113.5, True)):  # steps of 3, 5, 8; 20, 15, 7 are left
        now[0] = then
        assert deadline.is_near() == near and not never.is_near()


def test_work_in_parts_is_given_up_when_the_next_might_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("training.clock.time.monotonic", lambda: now[0])
    monkeypatch.setattr("training.clock.time.time", lambda: 1000 + now[0])
    monkeypatch.setattr("training.clock.PROCESS_BEGAN", 0.0)
    ask, never = Deadline(1.0).watch(), Deadline(0).watch()
    for then, fits in ((0, True), (10, True), (30, True), (31, False)):  # 20 is the longest, of which 2 must fit
        now[0] = then
        assert ask() == (fits and then < 30) and never()
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(1000 + 300 + 40))  # of which the last five minutes are not ours
    now[0] = 0.0
    assert Deadline(1.0).left() == 40
    monkeypatch.setenv("SLURM_JOB_END_TIME", "tomorrow")
    assert Deadline(1.0).left() == 60


def test_devices_and_threads_that_do_not_exist_are_refused() -> None:
    assert pick_device("cpu").type == "cpu"
    for name in ("gpu9", "cuda:99"):
        with pytest.raises(UserError, match=f"device='{name}' cannot be used here"):
            pick_device(name)
    with pytest.raises(UserError, match="threads=-1"):
        set_up_cpu(-1)
