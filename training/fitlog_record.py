"""fitlog records of runs. Sibling runs share one folder of records, so that fitlog's page compares them.

The page draws all losses of a record in one chart and all metrics in another. So each holds one figure: the training
loss and the validation bound. Constants and figures of another scale go into the table's other columns.
"""

import contextlib
import logging
import os
import re
import stat
import warnings
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

from training.records import from_here, is_number, replay
from utils.files import read_text, remove_folder

LOSS, BOUND, PERPLEXITY = "bits_per_token", "bits_per_token", "ppl_word"
OWNER = "run.txt"
"""File of a record that names the run's folder, relative to the parent of fitlog's folder."""
RECORD_NAME = re.compile(r"log_\d{8}_\d{6}")  # fitlog's server ignores other names
FITLOG_FILES = re.compile(rf"{RECORD_NAME.pattern}|.*\.cfg|\..*|__pycache__")
LOGGERS = ("meta", "hyper", "metric", "other", "loss", "progress", "best_metric", "file")


class FitlogRecord:
    """fitlog record of a run. Every method may raise any exception of fitlog; the caller handles it."""

    def __init__(self, output: Path, settings: dict, log: Iterable[dict] | None = None) -> None:
        """Open a new record, or rebuild the record of a resumed run from its `log`."""
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # fitlog imports GitPython, which warns without git
        import fitlog

        self.fitlog = fitlog
        self.folder = _new_record(output) if log is None else _emptied_record(output)
        with warnings.catch_warnings(), _silent_logging():
            warnings.simplefilter("ignore")  # "Append to an already exist log."
            fitlog.set_log_dir(str(self.folder), new_log=True)
        _raise_write_errors()
        for name, value in settings.items():  # fitlog's dict form needs numpy.str, which numpy removed
            fitlog.add_hyper(str(value), name=name)
        replay(self, log or ())

    def train(self, step: int, values: dict) -> None:
        """Record the training loss of a step."""
        if is_number(values.get(LOSS)):
            self.fitlog.add_loss(float(values[LOSS]), step, name=LOSS)

    def valid(self, step: int, values: dict, *, best: bool) -> None:
        """Record the validation bound after a step, and all other figures if it is the `best`."""
        if not is_number(values.get(BOUND)):
            return
        self.fitlog.add_metric(float(values[BOUND]), step, name=BOUND)
        if not best:
            return
        for name, value in values.items():
            if name in (BOUND, PERPLEXITY) and is_number(value):
                self.fitlog.add_best_metric(float(value), name=name)
            elif is_number(value) and name not in ("step", "seconds"):
                self.fitlog.add_other(value, name=name)

    def samples(self, step: int, texts: list[str]) -> None:
        """Do nothing: fitlog has no place for texts."""

    def finish(self) -> None:
        """Mark the run as finished and close the record."""
        self.fitlog.finish()
        self.close()

    def close(self) -> None:
        """Close the record's files and ignore errors."""
        for logger in map(_logger, LOGGERS):
            for handler in logger.handlers[:]:
                with contextlib.suppress(OSError, ValueError):
                    handler.close()
                logger.removeHandler(handler)


open_record = FitlogRecord


def command(output: Path) -> str:
    """Return the shell command that shows the records of a run and its siblings, or "" if there is none."""
    own = output.resolve() / "fitlog"  # location used by earlier versions
    folder = fitlog_folder(output) if any(_records_of(output)) else own
    if not folder.is_dir() or not any(RECORD_NAME.fullmatch(path.name) for path in folder.iterdir()):
        return ""
    return f"fitlog log {from_here(folder)} --ip 127.0.0.1"


def fitlog_folder(output: Path) -> Path:
    """Return `fitlog` beside a run's folder, or within it if the parent is not writable or is world-writable."""
    own = output.resolve()
    shared = own.parent / "fitlog"
    with contextlib.suppress(OSError):
        if own.name != shared.name and _is_safe(own.parent) and (not shared.exists() or _holds_records(shared)):
            return shared
    return own / "fitlog"


def remove(output: Path) -> None:
    """Remove the records of an overwritten run."""
    for folder in _records_of(output):
        remove_folder(folder)


def _is_safe(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK) and not folder.stat().st_mode & stat.S_IWOTH


def _holds_records(folder: Path) -> bool:
    """Return whether a folder is safe and holds fitlog's files only."""
    return folder.is_dir() and _is_safe(folder) and all(FITLOG_FILES.fullmatch(path.name) for path in folder.iterdir())


def _records_of(output: Path) -> Iterator[Path]:
    folder = fitlog_folder(output)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        with contextlib.suppress(OSError, ValueError):
            if RECORD_NAME.fullmatch(path.name) and read_text(path / OWNER, 2**16).strip() == output.resolve().name:
                yield path


def _new_record(output: Path) -> Path:
    """Create a record folder of a unique name, and detach earlier records from the run's folder."""
    for earlier in _records_of(output):
        (earlier / OWNER).unlink()
    folder, now = fitlog_folder(output), datetime.now()
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        record = folder / f"log_{now:%Y%m%d_%H%M%S}"
        with contextlib.suppress(FileExistsError):
            record.mkdir()
            (record / "meta.log").touch()  # fitlog identifies a record by this file
            (record / OWNER).write_text(f"{output.resolve().name}\n", encoding="utf-8")
            return record
        now += timedelta(seconds=1)


def _emptied_record(output: Path) -> Path:
    """Empty the run's record, or create one if it was moved or the run began without fitlog."""
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
def _silent_logging() -> Iterator[None]:
    """Suppress the logging module's error messages within a block."""
    before, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    finally:
        logging.raiseExceptions = before


def _raise_write_errors() -> None:
    """Raise fitlog's write errors to its caller; logging would print a traceback and continue."""

    def handle(record: logging.LogRecord) -> None:
        raise  # noqa: PLE0704 (logging calls this while it handles the error)

    for logger in map(_logger, LOGGERS):
        for handler in logger.handlers:
            handler.handleError = handle
