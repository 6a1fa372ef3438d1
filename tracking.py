"""Where a run's numbers go: a JSONL file always, fitlog if it works, a PNG of the curve at the end.

A tracker never stops a training run: whatever it raises becomes one warning, and the JSONL log goes on.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from files import rename, written_whole


class Tracker:
    """Writes `log.jsonl` and a fitlog record into one folder. A tracker that is not `active` writes nothing."""

    def __init__(
        self, folder: Path, settings: dict, *, active: bool = True, use_fitlog: bool = True, began: float = 0.0
    ) -> None:
        """Open the log of a run that began so many seconds ago; `settings` are recorded once."""
        self.folder, self.active, self.started = folder, active, time.monotonic() - began
        self.fitlog = None
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.file = open(folder / "log.jsonl", "a", encoding="utf-8", buffering=1)
        if self.file.tell() == 0:
            self._write({"kind": "settings", **settings})
        if use_fitlog:
            self._safely(lambda: self._open_fitlog(settings))

    def train(self, step: int, values: dict[str, float]) -> None:
        """Figures of a training step."""
        self._log("train", step, values, "add_loss")

    def valid(self, step: int, values: dict, *, best: bool) -> None:
        """Figures of an evaluation; `best` ones become fitlog's best metric."""
        self._log("valid", step, values, "add_metric")
        if best and self.fitlog:
            self._safely(lambda: self._each(values, lambda name, value: self.fitlog.add_best_metric(value, name=name)))

    def note(self, values: dict) -> None:
        """Something that happens once."""
        if self.active:
            self._write({"kind": "note", **values})

    def close(self, *, draw: bool = True) -> None:
        """Finish the logs; draw curve.png, whose presence says that the run is done."""
        if not self.active:
            return
        if self.fitlog:
            self._safely(self.fitlog.finish)
        self.file.close()
        if draw:
            self._safely(lambda: draw_curve(self.folder / "log.jsonl", self.folder / "curve.png"))

    def _open_fitlog(self, settings: dict) -> None:
        import fitlog

        folder = self.folder / "fitlog"
        folder.mkdir(exist_ok=True)
        fitlog.set_log_dir(str(folder), new_log=True)
        for name, value in settings.items():  # one by one: fitlog's dict form needs numpy.str, which is gone
            fitlog.add_hyper(str(value), name=name)
        self.fitlog = fitlog

    def _log(self, kind: str, step: int, values: dict, verb: str) -> None:
        if not self.active:
            return
        self._write({"kind": kind, "step": step, **values})
        if self.fitlog:
            add = getattr(self.fitlog, verb)
            self._safely(lambda: self._each(values, lambda name, value: add(value, step, name=name)))

    @staticmethod
    def _each(values: dict, add: Callable[[str, float], None]) -> None:
        for name, value in values.items():
            if isinstance(value, int | float):  # a report also holds a name, and may hold no error
                add(name, float(value))

    def _write(self, record: dict) -> None:
        record["seconds"] = round(time.monotonic() - self.started, 2)
        self.file.write(json.dumps(record, default=str) + "\n")

    def _safely(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # any failure of a tracker is less important than the run
            self.fitlog = None
            print(f"warning: tracking went on without this: {type(error).__name__}: {error}", file=sys.stderr)


def cut_log(log: Path, step: int) -> None:
    """Forgets what a log says of later steps, and a last line that was never finished."""
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
    """Training loss and validation bound over steps, from a JSONL log, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    train = [r for r in records if r["kind"] == "train"]
    valid = [r for r in records if r["kind"] == "valid"]
    figure, axis = pyplot.subplots(figsize=(8, 4.5), dpi=120)
    axis.plot([r["step"] for r in train], [r["bits_per_token"] for r in train], lw=0.8, label="training loss")
    axis.plot([r["step"] for r in valid], [r["bits_per_token"] for r in valid], "o-", label="validation bound")
    if valid:
        unigram = valid[-1]["unigram_bits_per_token"]
        axis.axhline(unigram, ls=":", color="grey", label="unigram")
        axis.set_ylim(0, 1.3 * unigram)
    axis.set(xlabel="step", ylabel="bits per token", title=log.parent.name)
    axis.legend()
    axis.grid(alpha=0.3)
    figure.tight_layout()
    beside = picture.with_name(f".{picture.name}.unfinis_")
    figure.savefig(beside, format="png")
    rename(beside, picture)
    pyplot.close(figure)
