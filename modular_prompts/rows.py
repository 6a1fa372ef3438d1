"""Rows that are drawn: a few examples by a seed, none of them twice, in the test file, or in an unseen task."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from modular_prompts.tasks import Card, Row, Task
from utils.errors import UserError


def fresh_rows(task: Task) -> list[Row]:
    """Return the training rows that occur neither in the test file nor earlier in the training file."""
    known, found = {folded(row) for row in task.test}, []
    for row in task.train:
        if (key := folded(row)) not in known:
            known.add(key)
            found.append(row)
    return found


def few_shots(task: Task, shots: int, seed: int, develop_shots: int = 0) -> tuple[list[Row], list[Row]]:
    """Return training and development rows, drawn from the training file by a seed.

    Rows whose texts occur in the test file or earlier in the training file are left out, and the others are shuffled.
    The first `shots` rows of each label are for training, and the next ones for development, at most `develop_shots`,
    by default `shots`. Where the card has no labels, both numbers count twice.

    Raises:
        UserError: if a label has fewer rows, or none is left for development.
    """
    fresh = fresh_rows(task)
    rows = [fresh[i] for i in np.random.default_rng(seed).permutation(len(fresh))]
    kinds = [row.label if task.card.labels else 0 for row in rows]
    wanted, looked_at = (number if task.card.labels else 2 * number for number in (shots, develop_shots or shots))
    groups = [
        [row for row, kind in zip(rows, kinds, strict=True) if kind == k] for k in range(max(1, len(task.card.labels)))
    ]
    for number, group in enumerate(groups):
        if len(group) <= wanted:
            what = f"label {task.card.labels[number]!r}" if task.card.labels else "the task"
            raise UserError(
                f"shots={shots}: {what} of {task.card.name} has {len(group)} training rows that differ and are not in "
                f"the test file; more than {wanted} are needed, since some are for development; lower --shots"
            )
    train, develop = (
        [row for group in groups for row in group[part]] for part in (slice(wanted), slice(wanted, wanted + looked_at))
    )
    return train, develop


def without_texts_of(tasks: Sequence[Task], unseen: Sequence[Task]) -> tuple[list[Task], int]:
    """Remove training rows one of whose texts occurs in unseen tasks, case folded; return the tasks and how many rows.

    One question may be asked of many texts: of extraction the texts alone are compared, and of multiple choice the
    question together with its options.
    """
    known = {text for task in unseen for row in (*task.train, *task.test) for text in _compared(task.card, row)}
    kept = [replace(task, train=[row for row in task.train if not known & _compared(task.card, row)]) for task in tasks]
    return kept, sum(len(task.train) for task in tasks) - sum(len(task.train) for task in kept)


def _compared(card: Card, row: Row) -> set[str]:
    if card.kind == "multiple-choice":
        return {" ".join(folded(row))}
    return {spelt(text) for text in (row.texts[-1:] if card.kind == "extraction" else row.texts)}


def folded(row: Row) -> tuple[str, ...]:
    """Return the texts and the options of a row, case folded."""
    return tuple(map(spelt, (*row.texts, *row.options)))


def spelt(text: str) -> str:
    """Return a text case folded and with single spaces."""
    return " ".join(text.casefold().split())


def identity(task: Task) -> str:
    """Return a hash of a task's name, card and rows."""
    rows = [[[row.texts, row.options, row.label, row.answer] for row in part] for part in (task.train, task.test)]
    content = json.dumps([task.card.name, task.card.entries(), rows])
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
