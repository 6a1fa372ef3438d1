"""TensorBoard records of runs: event files in the folder `tensorboard` of each run's folder.

A resumed run writes its record anew from its log, so that it holds no step twice.
"""

import threading
import time
from pathlib import Path

from training.records import charted, from_here, replay
from utils.files import remove_folder

FOLDER = "tensorboard"


class TensorboardRecord:
    """TensorBoard record of a run. Every method may raise any exception; the caller handles it."""

    def __init__(self, output: Path, settings: dict, log: list[dict] | None = None) -> None:
        """Open a new record, or rebuild the record of a resumed run from its `log`."""
        from torch.utils.tensorboard import SummaryWriter

        _silence_writer_threads()
        folder = output / FOLDER
        if folder.is_dir():
            remove_folder(folder)
        self.writer = SummaryWriter(str(folder))
        self.began = time.time() - (log[-1].get("seconds", 0.0) if log else 0.0)
        rows = [f"| {name} | {' '.join(str(value).split())} |" for name, value in settings.items()]
        self.writer.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *rows]))
        replay(self, log or ())

    def train(self, step: int, values: dict) -> None:
        """Record loss, learning rate and speed of a step."""
        self._draw("train", step, values)

    def valid(self, step: int, values: dict, *, best: bool) -> None:
        """Record the validation bound after a step."""
        self._draw("valid", step, values)
        self.writer.flush()

    def samples(self, step: int, texts: list[str]) -> None:
        """Record samples as they are, without reading them as Markdown."""
        self.writer.add_text("samples", "\n\n".join("    " + " ".join(text.splitlines()) for text in texts), step)

    def finish(self) -> None:
        """Close the record."""
        self.close()

    def close(self) -> None:
        """Write and close the record."""
        self.writer.close()

    def _draw(self, kind: str, step: int, values: dict) -> None:
        at = self.began + values["seconds"] if "seconds" in values else None  # a line of the log has its time
        for name, value in charted(kind, values).items():
            self.writer.add_scalar(name, value, step, walltime=at)


def _silence_writer_threads() -> None:
    """Print no traceback of a thread that could not write; the writer raises its error at the next call."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if type(args.thread).__name__ != "_AsyncWriterThread":
            before(args)

    hook.silences_writers = True
    if not hasattr(before, "silences_writers"):
        threading.excepthook = hook


open_record = TensorboardRecord


def command(output: Path) -> str:
    """Return the shell command that shows the records of a run and its siblings, or "" if there is none."""
    return f"tensorboard --logdir {from_here(output.resolve().parent)}" if (output / FOLDER).is_dir() else ""
