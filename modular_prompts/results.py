"""Results of tuning: one line of results.jsonl for each task, method and seed, and the table of their means."""

import contextlib
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from training.run_log import Log, read_log
from utils.errors import UserError, shown
from utils.figures import spread
from utils.files import held_alone, read_text, written_whole

RESULTS, SETTINGS = "results.jsonl", "settings.json"
WITHOUT_INFLUENCE = {"output_dir", "tasks", "split", "language", "methods", "seeds", "threads", "device"}
"""Settings that the lines of one file may differ in."""


class Results:
    """File of results that grows."""

    def __init__(self, folder: Path) -> None:
        """Read the lines that are there, and open the file for more."""
        self.path = folder / RESULTS
        self.records = read_log(self.path) if self.path.exists() else []
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
            with contextlib.suppress(FileNotFoundError):
                _require_same(json.loads(read_text(folder / SETTINGS)), known, folder)
            with written_whole(folder / SETTINGS) as file:
                json.dump(known, file, indent=1)
            results = cls(folder)
            try:
                yield results
            finally:
                results.log.close()

    def has(self, task: str, method: str, seed: int) -> bool:
        """Return whether the line is there."""
        key = (task, method, seed)
        return any((line["task"], line["method"], line["seed"]) == key for line in self.records)

    def add(self, record: dict) -> None:
        """Add a line."""
        self.records.append(record)
        self.log.write(json.dumps(record) + "\n")


def _require_same(known: dict, settings: dict, folder: Path) -> None:
    for name, value in settings.items():
        if known.get(name) != value:
            raise UserError(
                f"output_dir={folder}: its results were made with {name}={shown(known.get(name))}, not {shown(value)}; "
                "give another folder"
            )


def table(records: Sequence[dict], tasks: Sequence[str], methods: Sequence[str]) -> str:
    """Return the mean score over seeds of each task and method, and in the last line the mean over tasks.

    ± is the standard error of that mean over the seeds. The score is macro F1 for tasks marked by *, whose labels are
    uneven, and accuracy for others.
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


def _means_over_tasks(records: Sequence[dict], tasks: Sequence[str], method: str) -> list[float]:
    """Return for each seed the mean over the tasks, of seeds that have all of them."""
    own = [line for line in records if line["method"] == method and line["task"] in tasks]
    by_seed = {seed: [line["score"] for line in own if line["seed"] == seed] for seed in {line["seed"] for line in own}}
    return [statistics.mean(scores) for scores in by_seed.values() if len(scores) == len(tasks)]


def _cell(values: Sequence[float], width: int) -> str:
    return f"{spread(values, 3) if values else '-':>{width}}"
