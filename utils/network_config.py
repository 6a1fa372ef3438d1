"""Bounds on what a config.json of a model folder may say, checked before anything of it is built."""

import contextlib
import math
import re
from collections.abc import Iterator

from utils.errors import UserError, shown

MOST_JSON = 2**24
"""Bytes of a config.json; that of a network with 20,000 labels has one million."""
WEIGHTS = "model.safetensors"
MOST_LAYERS = 1000
COUNTS = re.compile(r".*layers?|depth|(num|n)_.*(layer|block|head|group|expert|stage).*")
"""Names of settings that say how often something is built."""
MOST_LABELS = 100_000
LARGEST = 2**26
"""Of any whole number in a config.json: vocabularies, widths and positions are far below it."""
LARGE_BY_NATURE = ("theta", "seed", "token", "_id", "dtype", "version")
"""Words in the names of settings that are no sizes."""


@contextlib.contextmanager
def code_refused(folder: str) -> Iterator[None]:
    """What transformers says of code that it would need, in words that do not ask for it to be run."""
    try:
        yield
    except ValueError as error:
        if "custom code" not in str(error):
            raise
        raise UserError(
            f"cannot read the model in {folder}: it names code of its own (auto_map), which is never run; give one "
            "that transformers knows by itself"
        ) from error


def check_config(settings: object, origin: str) -> None:
    """Refuse a configuration whose numbers no network has, or whose weights would be read by another package.

    Args:
        settings: what config.json holds, or `PretrainedConfig.to_dict`.
        origin: names it in the message.

    Raises:
        UserError: naming the setting and its bound.
    """
    if not isinstance(settings, dict):
        raise UserError(f"{origin}: config.json must hold an object; it holds {shown(settings)}")
    if settings.get("transformers_weights"):
        raise UserError(f"{origin}: config.json names its weights' file (transformers_weights); call it {WEIGHTS}")
    if settings.get("quantization_config"):
        raise UserError(f"{origin}: its weights are quantised; give a folder with float32, float16 or bfloat16 weights")
    if settings.get("return_dict") is False or settings.get("use_return_dict") is False:
        raise UserError(f"{origin}: config.json says return_dict=false; take that line out")
    for name, value in settings.items():
        if isinstance(value, dict | list) and len(value) > MOST_LABELS:
            raise UserError(f"{origin}: config.json has {len(value):,} entries in {name}; it may be {MOST_LABELS:,}")
    for name, value in _numbers(settings):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{origin}: config.json says {name}={value}; it must be a finite number")
        most = MOST_LAYERS if COUNTS.fullmatch(name) else MOST_LABELS if "label" in name else LARGEST
        if isinstance(value, int) and abs(value) > most and not any(word in name for word in LARGE_BY_NATURE):
            raise UserError(f"{origin}: config.json says {name}={value}; it may be {most:,} at most")


def _numbers(settings: dict | list, name: str = "") -> list[tuple[str, int | float]]:
    found: list[tuple[str, int | float]] = []
    entries = settings.items() if isinstance(settings, dict) else ((name, value) for value in settings)
    for key, value in entries:
        if isinstance(value, dict | list):
            found += _numbers(value, str(key))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((str(key), value))
    return found
