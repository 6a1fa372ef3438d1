"""Results of tuning: one line of results.jsonl for each task, method and seed, and the table of their means."""

import contextlib
import json
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from training.run_log import Log
from utils.errors import UserError, shown
from utils.figures import spread
from utils.files import held_alone, read_bytes, read_text, written_whole

RESULTS, SETTINGS = "results.jsonl", "settings.json"
WITHOUT_INFLUENCE = {
    "output_dir", "prompts", "model_name_or_path", "tasks", "split", "language", "methods", "seeds", "threads",
    "device", "precision",
}  # fmt: skip
"""Settings that the lines of one file may differ in. Of those that name files, the content is compared."""
ENTRIES = {"task": str, "rows": str, "method": str, "seed": int, "score": float, "metric": str}
"""Entries of a line, and their types."""


class Results:
    """File of results that grows."""

    def __init__(self, folder: Path) -> None:
        """Read the lines that are there, and open the file for more."""
        self.path = folder / RESULTS
        self.records = _read(self.path)
        self.log = Log(self.path)

    @classmethod
    @contextlib.contextmanager
    def opened(cls, folder: Path, settings: dict) -> Iterator["Results"]:
        """Hold a folder's results for the duration of a block.

        Raises:
            UserError: if they were made with other settings, or another process holds them.
        """
        known = {key: value for key, value in settings.items() if key not in WITHOUT_INFLUENCE}
        folder.mkdir(parents=True, exist_ok=True)
        with held_alone(folder / "run.lock", f"output_dir={folder}: another process writes there; wait for it"):
            if _read(folder / RESULTS):
                _require_same(known, folder)
            with written_whole(folder / SETTINGS) as file:
                json.dump(known, file, indent=1)
            results = cls(folder)
            try:
                yield results
            finally:
                results.log.close()

    def has(self, task: str, rows: str, method: str, seed: int) -> bool:
        """Return whether the line is there.

        Raises:
            UserError: if lines of a task with this name are those of other rows.
        """
        own = [line for line in self.records if line["task"] == task]
        if any(line["rows"] != rows for line in own):
            raise UserError(
                f"{self.path}: holds results of another task {task}, or its files changed; give another folder"
            )
        return any((line["method"], line["seed"]) == (method, seed) for line in own)

    def add(self, record: dict) -> None:
        """Add a line."""
        self.records.append(record)
        self.log.write(json.dumps(record) + "\n")


def _read(file: Path) -> list[dict]:
    """Return the lines of a file; an incomplete last one, of an interrupted write, is removed.

    Raises:
        UserError: if another one is damaged.
    """
    if not file.exists():
        return []
    content = read_bytes(file)
    whole, _, rest = content.rpartition(b"\n")
    if rest:
        with written_whole(file, binary=True) as stream:
            stream.write(whole + b"\n" if whole else b"")
    lines = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            record = json.loads(line)
            if not all(type(record[name]) in (kind, int) for name, kind in ENTRIES.items()):
                raise ValueError("an entry has another type")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{file}:{number}: damaged ({shown(str(error))}); remove that line") from error
        lines.append(record)
    return lines


def _require_same(settings: dict, folder: Path) -> None:
    """Require the settings with which the lines of a folder were made.

    Raises:
        UserError: naming one that differs.
    """
    try:
        known = json.loads(read_text(folder / SETTINGS))
    except (OSError, ValueError, RecursionError):
        known = None
    if not isinstance(known, dict):
        raise UserError(f"{folder / SETTINGS}: missing or damaged; give another folder")
    for name, value in settings.items():
        if known.get(name) != value:
            raise UserError(
                f"output_dir={folder}: its results were made with {name}={shown(known.get(name))}, not {shown(value)}; "
                "give another folder"
            )


def table(records: Sequence[dict], tasks: Sequence[str], methods: Sequence[str]) -> str:
    """Return the mean score over seeds of each task and method, and in the last line the mean over tasks.

    ± is the standard error of that mean over the seeds. The score is macro F1 for tasks marked by *, whose labels are
    uneven. For others it is what the entry "metric" of their lines says, mostly accuracy.
    """
    width, columns = max(6, *(len(task) + 1 for task in tasks)), [max(14, len(method)) for method in methods]
    head = [f"{method:>{column}}" for method, column in zip(methods, columns, strict=True)]
    lines = ["  ".join([f"{'task':{width}}", *head])]
    for task in tasks:
        own = [line for line in records if line["task"] == task]
        cells = [[line["score"] for line in own if line["method"] == method] for method in methods]
        mark = "*" if any(line["metric"] == "macro F1" for line in own) else ""
        lines.append("  ".join([f"{task + mark:{width}}", *map(_cell, cells, columns)]))
    means = [_means_over_tasks(records, tasks, method) for method in methods]
    return "\n".join([*lines, "  ".join([f"{'mean':{width}}", *map(_cell, means, columns)])])


def without_prompt(records: Sequence[dict], tasks: Sequence[str], methods: Sequence[str]) -> list[str]:
    """Return a line for each method some of whose tasks got no prompt: these tasks, and by how many seeds."""
    lines = []
    for method in methods:
        own = [line for line in records if line["method"] == method and line["task"] in tasks]
        seeds = Counter(line["task"] for line in own)
        dropped = Counter(line["task"] for line in own if "score_of_rejected" in line)
        counts = ", ".join(f"{task} ({dropped[task]} of {seeds[task]} seeds)" for task in tasks if dropped[task])
        if counts:
            lines.append(f"{method}: prompt dropped for {counts}; the network alone is better on development rows")
    return lines


def _means_over_tasks(records: Sequence[dict], tasks: Sequence[str], method: str) -> list[float]:
    """Return for each seed the mean over the tasks, of seeds that have all of them."""
    own = [line for line in records if line["method"] == method and line["task"] in tasks]
    by_seed = {seed: [line["score"] for line in own if line["seed"] == seed] for seed in {line["seed"] for line in own}}
    return [statistics.mean(scores) for scores in by_seed.values() if len(scores) == len(tasks)]


def _cell(values: Sequence[float], width: int) -> str:
    return f"{spread(values, 3) if values else '-':>{width}}"
