"""The machine: device, threads, precision; notices to stop; errors in one line."""

import contextlib
import ctypes
import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from process import UserError

MALLOC_OPTIONS = {-4: 0, -1: 2**31 - 1, -2: 2**28}
"""Of malloc.h: M_MMAP_MAX, no mapping per tensor; M_TRIM_THRESHOLD, M_TOP_PAD: a heap that grows in leaps and stays."""
PROCESS_BEGAN = time.monotonic()
SLURMS_LAST_MINUTES = 300
"""Seconds that are left to it, when a --time_limit is given."""
ECHO = 5
"""Seconds in which a signal that comes twice is one."""
PR_SET_PDEATHSIG = 1
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What a write may end in that says nothing of which file it was."""
REMEDIES = {
    **dict.fromkeys(NO_ROOM, "make room, or give another path"),
    errno.EMFILE: "close files or raise the limit (ulimit -n)",
    errno.ENFILE: "the system has too many files open; close some",
    errno.EIO: "the disk or the network behind it fails; give another path",
    errno.ELOOP: "a link leads to itself; give another path",
}
MOST_WORDS = 1500
"""Characters of an error line: its beginning names the value, its end the remedy."""


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; auto: this rank's GPU if there is one, else the CPU.

    Raises:
        UserError: if that device does not exist here.
    """
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # .item(), since nothing can be read from device "meta"
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device={name!r} cannot be used here ({reason}); use cpu, cuda, cuda:N or auto") from error
    return device


def set_up_cpu(threads: int) -> None:
    """CPU threads for torch (0 leaves torch's choice), and freed memory kept for the next step.

    Raises:
        UserError: if `threads` is out of range.
    """
    if not 0 <= threads <= 4096:
        raise UserError(f"threads={threads} must lie in 0..4096; 0: torch decides")
    if threads:
        torch.set_num_threads(threads)
    # glibc hands every large tensor back to the system, which then zeroes the same pages again for the next one: a
    # third of a training step over a vocabulary of 30,522. Other C libraries lack mallopt and go on as they are.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        for option, value in MALLOC_OPTIONS.items():
            mallopt(option, value)


def pick_precision(name: str, device: torch.device) -> str:
    """fp32, bf16 or fp16; auto takes bf16 where the hardware multiplies it natively, else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    # torch has no public question for this one; where it cannot be asked, float32 is always right
    return getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which the network runs; weights and losses stay in float32."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


def die_with_parent() -> None:
    """For a helper process: when the one that made it is killed, it goes too (Linux)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None
    if prctl:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Notice:
    """Whether someone asked this process to stop: SIGTERM (a cluster, torchrun) or SIGINT (Ctrl-C).

    The first signal is a notice, to be acted on when it suits; a second one does what it always does, at once. Under
    torchrun, which passes on what the cluster has told everyone already, the second must be as much later as `ECHO`.
    """

    def __init__(self) -> None:
        """None yet."""
        self.given = ""
        self.last = 0.0
        self._before: dict[int, object] = {}

    def _take(self, number: int, frame: object) -> None:
        first, now = not self.given, time.monotonic()
        self.given = signal.Signals(number).name
        if first:
            self.last = now + (ECHO if "TORCHELASTIC_RUN_ID" in os.environ else 0)
        elif now >= self.last:
            signal.signal(number, self._before[number])
            os.kill(os.getpid(), number)

    @contextlib.contextmanager
    def awaited(self) -> Iterator["Notice"]:
        """For the duration of a block; only a program's main thread is ever given signals."""
        for each in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError):
                self._before[each] = signal.signal(each, self._take)
        try:
            yield self
        finally:
            for each, handler in self._before.items():
                signal.signal(each, handler)


class Deadline:
    """When a process must have ended, and whether what comes next would fit before it."""

    def __init__(self, minutes: float) -> None:
        """So many after the process began, or as Slurm says if that is sooner; 0: never."""
        self.minutes, self.longest, self.clock = minutes, 0.0, time.monotonic()

    def left(self) -> float:
        """Seconds."""
        left = 60 * self.minutes - (time.monotonic() - PROCESS_BEGAN)
        end = os.environ.get("SLURM_JOB_END_TIME", "")
        if end.isdecimal():  # a process that was started again does not get the whole time again
            left = min(left, float(end) - time.time() - SLURMS_LAST_MINUTES)
        return left

    def is_near(self) -> bool:
        """To be asked once a step: whether two more as long as the longest, what they save included, would not fit."""
        self.longest = max(self.longest, time.monotonic() - self.clock)
        self.start_again()
        return self.minutes > 0 and self.left() < 2 * self.longest

    def start_again(self) -> None:
        """What came before is no part of a step."""
        self.clock = time.monotonic()

    def watch(self) -> Callable[[], bool]:
        """For work in parts that may be given up: to be asked before each, whether there is time for it and a step."""
        clock, longest = time.monotonic(), 0.0

        def ask() -> bool:
            nonlocal clock, longest
            now = time.monotonic()
            longest, clock = max(longest, now - clock), now
            return not self.minutes or self.left() > 2 * (longest + self.longest)

        return ask


def run_script(main: Callable[[], None]) -> None:
    """Calls `main`; what the user got wrong ends in one line on stderr and exit code 2, never a traceback."""
    for stream in (sys.stdout, sys.stderr):  # what a terminal's encoding cannot show must not lose a result
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")
    try:
        main()
        if sys.stdout is not None:  # closed before the start (>&-)
            sys.stdout.flush()  # here, where what goes wrong is one line, and not when Python ends
    except UserError as error:
        _refuse(str(error))
    except BrokenPipeError:  # the reader of our output has seen enough: `predict.py ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.filename is None and error.errno not in REMEDIES:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        _refuse(f"{where}{error.strerror}; {REMEDIES.get(error.errno, 'give another path')}")
    except UnicodeEncodeError as error:
        _refuse(f"a path that is not UTF-8: {error.object!r}; rename it")
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        _refuse(
            "a process that reads text was killed (for its memory?); give fewer --num_workers or a smaller "
            "--shuffle_buffer, and start again to go on from the last saved state"
        )
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _refuse(message: str) -> None:
    line = f"{Path(sys.argv[0]).name}: error: {' '.join(message.split())}"
    if len(line) > MOST_WORDS:
        line = f"{line[: MOST_WORDS // 2]} [...] {line[-MOST_WORDS // 2 :]}"
    print(line.encode(errors="backslashreplace").decode(), file=sys.stderr)
    sys.exit(2)
