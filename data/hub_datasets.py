"""Data sets on the hub: NAME or NAME:CONFIGURATION, and the repositories tried for it."""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from utils.errors import UserError
from utils.hub import check_hub, download_error


class HubDataset(NamedTuple):
    """A data set as `datasets` names it."""

    repo: str
    configuration: str | None = None
    revision: str | None = None


LM1B = (
    HubDataset("dvruette/lm1b"),
    HubDataset("billion-word-benchmark/lm1b", revision="refs/convert/parquet"),
    HubDataset("FrankCCCCC/lm1b"),
)
"""Repositories with LM1B as parquet; its own entry is a loading script, which `datasets` no longer runs."""
MOST_NAMES = 10
"""Largest number of configurations in a message."""


def is_hub_name(name: str) -> bool:
    """Tell whether a name has the form of a data set on the hub; paths of other systems, as with a drive, do not."""
    return bool(re.fullmatch(r"([\w.-]+/)?[\w.-]{2,}(:[^/\\:]+)?", name, re.ASCII))


def candidates(name: str) -> tuple[HubDataset, ...]:
    """Return the data sets to try for a name, in order."""
    repo, _, configuration = name.partition(":")
    return LM1B if name == "lm1b" else (HubDataset(repo, configuration or None),)


def split_in(name: str, wanted: Iterable[str]) -> str | None:
    """Return the first of the wanted splits that a data set has; None if it has none of them.

    Raises:
        UserError: see `first_reachable`.
    """
    from datasets import get_dataset_split_names

    names = first_reachable(name, lambda of: get_dataset_split_names(of.repo, of.configuration, revision=of.revision))
    return next((candidate for candidate in wanted if candidate in names), None)


def first_reachable(name: str, call: Callable[[HubDataset], object]) -> object:
    """Return `call`'s result for the first candidate of a name that can be reached.

    Raises:
        UserError: if none can be reached, or the configuration is unknown or missing.
    """
    check_hub()
    tried = []
    for candidate in candidates(name):
        try:
            return call(candidate)
        except Exception as error:  # of many types; each is a reason to try the next repository
            if re.search(r"Config name is missing|BuilderConfig .* not found|for config ", str(error)):
                raise UserError(_choice_of_configuration(candidate)) from error
            tried.append(f"{candidate.repo}: {download_error(error)}")
    raise UserError(
        f"{name}: no such file or folder, and no data set of that name from the hub ({'; '.join(tried)}). "
        "Offline: give a .txt or .jsonl file, or a folder with train.txt"
    )


def _choice_of_configuration(of: HubDataset) -> str:
    from datasets import get_dataset_config_names

    has = f"has no configuration {of.configuration}" if of.configuration else "has several configurations"
    try:
        names = get_dataset_config_names(of.repo, revision=of.revision)
    except Exception:  # of many types; the names are an aid only
        return f"data set {of.repo} {has}; give one of its own: {of.repo}:CONFIGURATION"
    more = f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
    return f"data set {of.repo} {has}; give one of {', '.join(f'{of.repo}:{n}' for n in names[:MOST_NAMES])}{more}"
