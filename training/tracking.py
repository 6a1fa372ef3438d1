"""Log of a run: a JSONL file always, the records of the chosen trackers if they work, a PNG of the curve at the end.

A failure to log never stops a training run; it becomes one warning, and a tracker that has failed is not called again.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from training.curve import draw_curve
from training.records import Record, open_record
from training.run_log import Log, read_log
from utils.messages import warn


class Tracker:
    """Write `log.jsonl` and the trackers' records of a run; all processes but the first have an inactive one."""

    def __init__(
        self, folder: Path, settings: dict, *, active: bool = True, trackers: tuple[str, ...] = (), began: float = 0.0
    ) -> None:
        """Open the log of a run that has taken `began` seconds so far; `settings` are recorded once."""
        self.folder, self.active, self.started = folder, active, time.monotonic() - began
        self.records: dict[str, Record] = {}
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.log = Log(folder / "log.jsonl")
        resumed = self.log.holds_lines
        if not resumed:
            self._write({"kind": "settings", **settings})
        for name in trackers:
            self._safely(name, partial(self._open_record, name, settings, resumed=resumed))

    def train(self, step: int, values: dict, *, warm_start: bool = False) -> None:
        """Log the figures of a training step, and whether it belongs to the warm start."""
        if self.active:
            self._write({"kind": "train", "step": step, **values, **({"warm_start": True} if warm_start else {})})
            self._record(lambda record: record.train(step, values))

    def valid(self, step: int, values: dict, *, best: bool) -> None:
        """Log the figures of an evaluation; the `best` ones become those of the run."""
        if self.active:
            self._write({"kind": "valid", "step": step, **values})
            self._record(lambda record: record.valid(step, values, best=best))

    def samples(self, step: int, texts: list[str]) -> None:
        """Log the samples of an evaluation."""
        if self.active:
            self._write({"kind": "samples", "step": step, "texts": texts})
            self._record(lambda record: record.samples(step, texts))

    def note(self, values: dict) -> None:
        """Log a single event."""
        if self.active:
            self._write({"kind": "note", **values})

    def close(self, *, draw: bool = True) -> None:
        """Close the logs; draw curve.png, which marks the run as done."""
        if not self.active:
            return
        self._record(lambda record: record.finish() if draw else record.close())
        self.log.close()
        if draw:
            self._safely("curve.png", lambda: draw_curve(self.folder / "log.jsonl", self.folder / "curve.png"))

    def _open_record(self, name: str, settings: dict, *, resumed: bool) -> None:
        log = read_log(self.folder / "log.jsonl") if resumed else None
        self.records[name] = open_record(name, self.folder, settings, log)

    def _record(self, call: Callable[[Record], object]) -> None:
        for name, record in list(self.records.items()):
            self._safely(name, partial(call, record))

    def _write(self, record: dict) -> None:
        record["seconds"] = round(time.monotonic() - self.started, 2)
        self.log.write(json.dumps(record, default=str) + "\n")

    def _safely(self, what: str, call: Callable[[], object]) -> None:
        try:
            call()
        except (Exception, SystemExit) as error:  # no failure of a tracker may stop the run
            failed = self.records.pop(what, None)
            try:
                if failed:
                    failed.close()
            except (Exception, SystemExit):  # noqa: S110 (it has failed already)
                pass
            warn(f"{what}: {type(error).__name__}: {error}; the run goes on without it")
