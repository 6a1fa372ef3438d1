"""Records of a run for the programs that show runs: fitlog, TensorBoard and Weights & Biases.

Each program is optional. A record may raise any exception; `tracking.Tracker` handles it.
"""

import contextlib
import importlib
import math
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from utils.errors import UserError, shown

TRACKERS = ("fitlog", "tensorboard", "wandb")
"""Names for --tracker. Each has a module training/NAME_record.py with `open_record`, `command` and `remove`."""
CHARTED = {
    "train": ("bits_per_token", "learning_rate", "tokens_per_second"),
    "valid": ("bits_per_token", "nats_per_sequence", "ppl_token", "ppl_word"),
}
"""Figures of the log that TensorBoard and Weights & Biases draw."""


class Record(Protocol):
    """Record of a run."""

    def train(self, step: int, values: dict) -> None:
        """Record the figures of a training step."""

    def valid(self, step: int, values: dict, *, best: bool) -> None:
        """Record the figures of an evaluation."""

    def samples(self, step: int, texts: list[str]) -> None:
        """Record the samples of an evaluation."""

    def finish(self) -> None:
        """Mark the run as finished and close the record."""

    def close(self) -> None:
        """Close the record of a run that will resume."""


def trackers_of(text: str) -> tuple[str, ...]:
    """Return the trackers that a setting such as "fitlog,tensorboard" names; "none": none.

    Raises:
        UserError: if a name is unknown or given twice.
    """
    names = tuple(name.strip() for name in text.split(","))
    if names == ("none",):
        return ()
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"tracker={shown(text)}: {shown(name)} must be one of {', '.join(TRACKERS)}; or none alone")
    if len(set(names)) < len(names):
        raise UserError(f"tracker={shown(text)} names a tracker twice; give each once")
    return names


def open_record(name: str, output: Path, settings: dict, log: list[dict] | None) -> Record:
    """Open a new record of a run, or continue the record of a resumed run with this `log`.

    Raises:
        ImportError: if the program is not installed.
    """
    try:
        return _module(name).open_record(output, settings, log)
    except ImportError as error:
        raise ImportError(f"{error}; pip install {name}") from error


def view_commands(trackers: tuple[str, ...], output: Path) -> list[str]:
    """Return the shell commands that show the records of a run; records that cannot be read have none."""
    commands = []
    for name in trackers:
        with contextlib.suppress(OSError):
            commands.append(_module(name).command(output))
    return [command for command in commands if command]


def remove_records(output: Path) -> None:
    """Remove the records of an overwritten run that lie outside its folder."""
    _module("fitlog").remove(output)


def replay(record: Record, log: Iterable[dict]) -> None:
    """Write the lines of a log into a new record."""
    best = math.inf
    for line in log:
        if line["kind"] == "train":
            record.train(line["step"], line)
        elif line["kind"] == "samples":
            record.samples(line["step"], line["texts"])
        elif line["kind"] == "valid":
            record.valid(line["step"], line, best=line["bits_per_token"] < best)
            best = min(best, line["bits_per_token"])


def charted(kind: str, values: dict) -> dict[str, float]:
    """Return the figures to draw, each with its kind in its name, as in valid/ppl_word."""
    return {f"{kind}/{name}": float(values[name]) for name in CHARTED[kind] if is_number(values.get(name))}


def is_number(value: object) -> bool:
    """Return whether a figure is there and finite."""
    return isinstance(value, int | float) and math.isfinite(value)


def from_here(folder: Path) -> str:
    """Return a folder's name from the working folder, quoted for a shell."""
    folder = folder.resolve()
    return shlex.quote(str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder))


def _module(name: str):  # noqa: ANN202 (a module of three functions)
    return importlib.import_module(f"training.{name}_record")
