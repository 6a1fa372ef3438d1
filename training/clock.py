"""Signals that ask a training to stop, and the time that is left to it."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator

PROCESS_BEGAN = time.monotonic()
SLURMS_LAST_MINUTES = 300
"""Seconds that are left to it, when a --time_limit is given."""
ECHO = 5
"""Seconds in which a signal that comes twice is one."""


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
