"""Log of a run: a JSONL file always, a fitlog record if fitlog works, a PNG of the curve at the end.

A failure to log never stops a training run; it becomes one warning. Lines that could not be written are kept and
written with the next one. Lines lost at the end are reported; saved states and checkpoints are not affected.
"""

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path

from training.fitlog_record import FitlogRecord
from utils.errors import UserError
from utils.files import rename, written_whole
from utils.messages import warn

MAX_PENDING = 2**24
"""Largest number of unwritten bytes kept in memory; later lines are lost."""


class Tracker:
    """Write `log.jsonl` and the fitlog record of a run; an inactive tracker writes nothing."""

    def __init__(
        self, folder: Path, settings: dict, *, active: bool = True, use_fitlog: bool = True, began: float = 0.0
    ) -> None:
        """Open the log of a run that has taken `began` seconds so far; `settings` are recorded once."""
        self.folder, self.active, self.started = folder, active, time.monotonic() - began
        self.record: FitlogRecord | None = None
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.log = Log(folder / "log.jsonl")
        resumed = self.log.holds_lines
        if not resumed:
            self._write({"kind": "settings", **settings})
        if use_fitlog:
            self._safely(lambda: self._open_record(settings, read_log(folder / "log.jsonl") if resumed else None))

    def train(self, step: int, values: dict, *, warm_start: bool = False) -> None:
        """Log the figures of a training step, and whether it belongs to the warm start."""
        if self.active:
            self._write({"kind": "train", "step": step, **values, **({"warm_start": True} if warm_start else {})})
            self._record(lambda record: record.train(step, values))

    def valid(self, step: int, values: dict, *, best: bool) -> None:
        """Log the figures of an evaluation; the `best` ones become fitlog's best metric."""
        if self.active:
            self._write({"kind": "valid", "step": step, **values})
            self._record(lambda record: record.valid(step, values, best=best))

    def note(self, values: dict) -> None:
        """Log a single event."""
        if self.active:
            self._write({"kind": "note", **values})

    def close(self, *, draw: bool = True) -> None:
        """Close the logs; draw curve.png, which marks the run as done."""
        if not self.active:
            return
        if draw:
            self._record(lambda record: record.finish())
        elif self.record:
            self.record.close()
        self.log.close()
        if draw:
            self._safely(lambda: draw_curve(self.folder / "log.jsonl", self.folder / "curve.png"), "curve.png")

    def _open_record(self, settings: dict, log: list[dict] | None) -> None:
        self.record = FitlogRecord(self.folder, settings, log)

    def _record(self, call: Callable[[FitlogRecord], object]) -> None:
        if self.record:
            self._safely(lambda: call(self.record))

    def _write(self, record: dict) -> None:
        record["seconds"] = round(time.monotonic() - self.started, 2)
        self.log.write(json.dumps(record, default=str) + "\n")

    def _safely(self, call: Callable[[], object], what: str = "fitlog") -> None:
        try:
            call()
        except Exception as error:  # no failure of a tracker may stop the run
            if self.record and what == "fitlog":
                self.record.close()
                self.record = None
            warn(f"{what}: {type(error).__name__}: {error}; the run goes on without it")


class Log:
    """Log file that keeps lines in memory while they cannot be written."""

    def __init__(self, path: Path) -> None:
        """Open the file for appending."""
        self.path, self.pending, self.lost, self.warned = path, b"", 0, False
        self.file = open(path, "ab", buffering=0)
        self.holds_lines = self.file.tell() > 0

    def write(self, line: str) -> None:
        """Write the pending lines, then this one."""
        content = line.encode(errors="replace")
        if len(self.pending) + len(content) > MAX_PENDING:
            self.lost += 1
        else:
            self.pending += content
        self._flush()

    def close(self) -> None:
        """Write the pending lines once more; warn if lines are lost."""
        self._flush()
        lost = self.lost + self.pending.count(b"\n")
        if lost:
            warn(f"{self.path}: {lost} lines of the log are lost; the checkpoints are complete")
        with contextlib.suppress(OSError):
            self.file.close()

    def _flush(self) -> None:
        try:
            while self.pending:
                self.pending = self.pending[self.file.write(self.pending) or 0 :]
        except OSError as error:
            if not self.warned:
                warn(
                    f"{self.path}: the log cannot be written ({error.strerror or error}); free disk space; "
                    "training continues, and these lines are written later"
                )
            self.warned = True


def read_log(log: Path) -> list[dict]:
    """Return the records of a log.

    Raises:
        UserError: if a line is damaged.
    """
    records = []
    for number, line in enumerate(log.read_text(encoding="utf-8").splitlines(), 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{log}:{number}: no JSON; resume the run to repair its log") from error
    return records


def cut_log(log: Path, step: int) -> None:
    """Remove the records of later steps from a log, and an incomplete last line."""
    kept = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else ():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict) or type(record.get("step", 0)) is not int:
            break
        if record.get("step", 0) > step or record.get("steps") is not None:
            break
        kept.append(line)
    with written_whole(log) as file:
        file.writelines(line + "\n" for line in kept)


def draw_curve(log: Path, picture: Path) -> None:
    """Plot training loss and validation bound over steps from a JSONL log; write a PNG.

    The warm start is shaded: at its end the mask rates rise, and the loss with them.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = read_log(log)
    train = _without_short_end([r for r in records if r["kind"] == "train"])
    valid = [r for r in records if r["kind"] == "valid"]
    warm = [r for r in train if r.get("warm_start")]
    later = [r for r in train if not r.get("warm_start")]
    figure, axis = pyplot.subplots(figsize=(8, 4.5), dpi=120)
    for phase, label in ((later, "training loss"), (warm, "" if later else "training loss")):
        axis.plot([r["step"] for r in phase], [_plotted(r) for r in phase], lw=0.8, color="C0", label=label)
    if warm:
        rates = str(records[0].get("warm_start_rates", "")).replace(",", " to ")
        axis.axvspan(0, warm[-1]["step"], color="C0", alpha=0.1, lw=0, label=f"warm start: mask rates {rates}")
    axis.plot(
        [r["step"] for r in valid], [_plotted(r) for r in valid], "o-", color="C1", ms=4, label="validation bound"
    )
    if valid:
        unigram = valid[-1]["unigram_bits_per_token"]
        axis.axhline(unigram, ls=":", color="grey", label="unigram model")
        if valid[-1]["bits_per_token"] > 1.3 * unigram:  # the run diverged; a linear axis would hide the rest
            axis.set_yscale("log")
        else:
            axis.set_ylim(0, 1.3 * unigram)
    axis.set(xlabel="step", ylabel="bits per token", title=log.parent.name)
    axis.legend(loc="best")
    axis.grid(alpha=0.3)
    figure.tight_layout()
    beside = picture.with_name(f".{picture.name}.unfinis_")
    figure.savefig(beside, format="png")
    rename(beside, picture)
    pyplot.close(figure)


def _without_short_end(train: list[dict]) -> list[dict]:
    """Leave out a last point that is the mean of far fewer steps than the others, and so only noise."""
    if len(train) < 3:
        return train
    (before, previous, last) = (record["step"] for record in train[-3:])
    return train[:-1] if 2 * (last - previous) < previous - before else train


def _plotted(record: dict) -> float:
    bits = record["bits_per_token"]
    return float("nan") if bits is None else min(bits, 1e9)  # a diverged run: matplotlib fails at 1e300
