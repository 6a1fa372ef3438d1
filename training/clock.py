"""Stop signals and time limit of a training run."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator

PROCESS_BEGAN = time.monotonic()
SLURM_RESERVE = 300
"""Seconds before the end of a Slurm job that --time_limit leaves unused."""
REPEAT_SECONDS = 5
"""Seconds within which torchrun may repeat a signal."""


class StopRequest:
    """Request to stop this process: SIGTERM (a cluster, torchrun) or SIGINT (Ctrl-C).

    The first signal is recorded, and the training stops after the current step. A second one has its default effect at
    once. torchrun repeats a signal that the cluster has already sent to every process; under it, a second signal counts
    only after `REPEAT_SECONDS`.
    """

    def __init__(self) -> None:
        """Start without a request."""
        self.signal_name = ""
        self._ignored_until = 0.0
        self._before: dict[int, object] = {}

    def _take(self, number: int, frame: object) -> None:
        first, now = not self.signal_name, time.monotonic()
        self.signal_name = signal.Signals(number).name
        if first:
            self._ignored_until = now + (REPEAT_SECONDS if "TORCHELASTIC_RUN_ID" in os.environ else 0)
        elif now >= self._ignored_until:
            signal.signal(number, self._before[number])
            os.kill(os.getpid(), number)

    @contextlib.contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Record signals within a block; outside the main thread, do nothing."""
        for each in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError):  # Python handles signals in the main thread only
                self._before[each] = signal.signal(each, self._take)
        try:
            yield self
        finally:
            for each, handler in self._before.items():
                signal.signal(each, handler)


class Deadline:
    """Time limit of a process, and whether its next piece of work would fit."""

    def __init__(self, minutes: float) -> None:
        """Set the limit to `minutes` after the process began, or to an earlier end of its Slurm job; 0: no limit."""
        self.minutes, self.longest, self.clock = minutes, 0.0, time.monotonic()

    def left(self) -> float:
        """Return the remaining seconds; negative after the limit."""
        left = 60 * self.minutes - (time.monotonic() - PROCESS_BEGAN)
        end = os.environ.get("SLURM_JOB_END_TIME", "")
        if end.isdecimal():  # a requeued process has only the rest of the job
            left = min(left, float(end) - time.time() - SLURM_RESERVE)
        return left

    def is_near(self) -> bool:
        """Return whether less time is left than two of the longest steps, saving included. Call it once a step."""
        self.longest = max(self.longest, time.monotonic() - self.clock)
        self.reset()
        return self.minutes > 0 and self.left() < 2 * self.longest

    def leaves(self, seconds: float) -> bool:
        """Return whether work of so many seconds, twice, and two steps still fit."""
        return not self.minutes or self.left() > 2 * (seconds + self.longest)

    def reset(self) -> None:
        """Start the time of a step now, so that earlier work is excluded."""
        self.clock = time.monotonic()

    def part_check(self) -> Callable[[], bool]:
        """Return a function to call before each part of an evaluation: whether the part and a step still fit."""
        clock, longest = time.monotonic(), 0.0

        def fits() -> bool:
            nonlocal clock, longest
            now = time.monotonic()
            longest, clock = max(longest, now - clock), now
            return not self.minutes or self.left() > 2 * (longest + self.longest)

        return fits
