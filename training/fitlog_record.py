"""A run's record for fitlog: one folder of them for all runs beside each other, so that its page compares them.

Its page draws every loss of a record in one chart and every metric in another, so each holds one figure: the training
loss, and the validation bound. What is constant, or of another scale, stands in the table's other columns.
"""

import contextlib
import logging
import math
import os
import re
import shlex
import stat
import warnings
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

from utils.files import read_text, remove_folder

LOSS, BOUND, PERPLEXITY = "bits_per_token", "bits_per_token", "ppl_word"
OWNER = "run.txt"
"""The file of a record that names the run's folder, relative to the parent of fitlog's."""
NAME = re.compile(r"log_\d{8}_\d{6}")  # or fitlog's server passes it over
OF_FITLOG = re.compile(rf"{NAME.pattern}|.*\.cfg|\..*|__pycache__")
LOGGERS = ("meta", "hyper", "metric", "other", "loss", "progress", "best_metric", "file")


class Record:
    """A run's record. Every method may raise whatever fitlog does; the caller decides what that is worth."""

    def __init__(self, output: Path, settings: dict, log: Iterable[dict] | None = None) -> None:
        """Open a new one, or that of a run that goes on, filled anew from the lines of its log."""
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # fitlog imports a library that wants a git
        import fitlog

        self.fitlog, self.best = fitlog, math.inf
        self.folder = _new_record(output) if log is None else _emptied_record(output)
        with warnings.catch_warnings(), _logging_in_silence():
            warnings.simplefilter("ignore")  # "Append to an already exist log."
            fitlog.set_log_dir(str(self.folder), new_log=True)
        _let_errors_through()
        for name, value in settings.items():  # one by one: fitlog's dict form needs numpy.str, which is gone
            fitlog.add_hyper(str(value), name=name)
        for record in log or ():
            if record["kind"] == "train":
                self.train(record["step"], record)
            elif record["kind"] == "valid":
                self.valid(record["step"], record, best=record[BOUND] < self.best)

    def train(self, step: int, values: dict) -> None:
        """The training loss of a step."""
        if _is_number(values.get(LOSS)):
            self.fitlog.add_loss(float(values[LOSS]), step, name=LOSS)

    def valid(self, step: int, values: dict, *, best: bool) -> None:
        """The validation bound after a step; of the best one, every other figure too."""
        if not _is_number(values.get(BOUND)):
            return
        self.fitlog.add_metric(float(values[BOUND]), step, name=BOUND)
        if not best:
            return
        self.best = values[BOUND]
        for name, value in values.items():
            if name in (BOUND, PERPLEXITY) and _is_number(value):
                self.fitlog.add_best_metric(float(value), name=name)
            elif _is_number(value) and name not in ("step", "seconds"):
                self.fitlog.add_other(value, name=name)

    def finish(self) -> None:
        """Say that the run is done."""
        self.fitlog.finish()
        self.close()

    def close(self) -> None:
        """Let go of its files, whatever state they are in."""
        for logger in map(_logger, LOGGERS):
            for handler in logger.handlers[:]:
                with contextlib.suppress(OSError, ValueError):
                    handler.close()
                logger.removeHandler(handler)


def command(output: Path) -> str:
    """What shows a run's record and those beside it, or "" if there is none."""
    own = output.resolve() / "fitlog"  # where all records were once
    folder = fitlog_folder(output) if any(_records_of(output)) else own
    if not folder.is_dir() or not any(NAME.fullmatch(path.name) for path in folder.iterdir()):
        return ""
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    return f"fitlog log {shlex.quote(str(folder))} --ip 127.0.0.1"


def fitlog_folder(output: Path) -> Path:
    """`fitlog` beside a run's folder; within it, where that cannot be written or everyone could tamper with it."""
    own = output.resolve()
    shared = own.parent / "fitlog"
    with contextlib.suppress(OSError):
        if own.name != shared.name and _is_safe(own.parent) and (not shared.exists() or _holds_records(shared)):
            return shared
    return own / "fitlog"


def remove(output: Path) -> None:
    """Remove what a run that is overwritten has recorded; the records of others stay."""
    for folder in _records_of(output):
        remove_folder(folder)


def _is_safe(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK) and not folder.stat().st_mode & stat.S_IWOTH


def _holds_records(folder: Path) -> bool:
    """Whether it is fitlog's, and not something else of that name."""
    return folder.is_dir() and _is_safe(folder) and all(OF_FITLOG.fullmatch(path.name) for path in folder.iterdir())


def _records_of(output: Path) -> Iterator[Path]:
    folder = fitlog_folder(output)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        with contextlib.suppress(OSError, ValueError):
            if NAME.fullmatch(path.name) and read_text(path / OWNER, 2**16).strip() == output.resolve().name:
                yield path


def _new_record(output: Path) -> Path:
    """A folder of its own, whatever else begins in this second; a record that the place had is nobody's from now on."""
    for earlier in _records_of(output):
        (earlier / OWNER).unlink()
    folder, now = fitlog_folder(output), datetime.now()
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        record = folder / f"log_{now:%Y%m%d_%H%M%S}"
        with contextlib.suppress(FileExistsError):
            record.mkdir()
            (record / "meta.log").touch()  # by this fitlog knows a record
            (record / OWNER).write_text(f"{output.resolve().name}\n", encoding="utf-8")
            return record
        now += timedelta(seconds=1)


def _emptied_record(output: Path) -> Path:
    """The one that the run had, or a new one: it may have been moved, or begun without fitlog."""
    found = list(_records_of(output))
    if not found:
        return _new_record(output)
    for file in found[-1].iterdir():
        if file.name != OWNER:
            file.unlink()
    (found[-1] / "meta.log").touch()
    return found[-1]


def _logger(name: str) -> logging.Logger:
    return logging.getLogger(f"fitlog_{name}")


@contextlib.contextmanager
def _logging_in_silence() -> Iterator[None]:
    """A failed write of the logging module says nothing, for the duration of a block."""
    before, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    finally:
        logging.raiseExceptions = before


def _let_errors_through() -> None:
    """A failed write of fitlog's reaches its caller, where logging would print a traceback and go on to the next."""

    def handle(record: logging.LogRecord) -> None:
        raise  # noqa: PLE0704 (logging calls this while it handles the error)

    for logger in map(_logger, LOGGERS):
        for handler in logger.handlers:
            handler.handleError = handle


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
