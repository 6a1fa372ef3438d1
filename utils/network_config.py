"""Bounds on the settings in a model's config.json, checked before the network is built."""

import contextlib
import math
import re
from collections.abc import Iterator

from utils.errors import UserError, shown

MOST_JSON = 2**24
"""Bytes of a config.json; with 20,000 labels it has one million."""
WEIGHTS = "model.safetensors"
MOST_LAYERS = 1000
COUNTS = re.compile(r".*layers?|depth|(num|n)_.*(layer|block|head|group|expert|stage).*")
"""Names of settings that count layers, heads and the like."""
MOST_LABELS = 100_000
LARGEST = 2**26
"""Largest whole number in a config.json; vocabularies, widths and positions are far below it."""
LARGE_BY_NATURE = ("theta", "seed", "token", "_id", "dtype", "version")
"""Parts of the names of settings that are not sizes."""
UNUSED_KEYS = {
    "_name_or_path",
    "initialized_from",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "architectures",
}
"""Entries that do not affect a network's output."""


def used_entries(settings: dict) -> dict:
    """Return the entries of a configuration without `UNUSED_KEYS` and those with "attn" in their names.

    In the networks that are supported, the latter choose a kernel, which changes the output by rounding.
    """
    return {key: value for key, value in settings.items() if key not in UNUSED_KEYS and "attn" not in key}


@contextlib.contextmanager
def refuse_custom_code(folder: str) -> Iterator[None]:
    """Turn transformers' request to run a model's own code into a UserError."""
    try:
        yield
    except ValueError as error:
        if "custom code" not in str(error):
            raise
        raise UserError(
            f"cannot read the model in {folder}: it needs its own code (auto_map), which is never run; give a model "
            "that transformers supports"
        ) from error


def check_config(settings: object, origin: str) -> None:
    """Refuse a configuration with numbers out of bounds, or whose weights another package would have to read.

    Args:
        settings: content of config.json, or `PretrainedConfig.to_dict()`.
        origin: name of the configuration, for the message.

    Raises:
        UserError: with the setting and its bound.
    """
    if not isinstance(settings, dict):
        raise UserError(f"{origin}: config.json must hold an object; it holds {shown(settings)}")
    if settings.get("transformers_weights"):
        raise UserError(f"{origin}: config.json sets transformers_weights; remove it, and name the weights {WEIGHTS}")
    if settings.get("quantization_config"):
        raise UserError(f"{origin}: quantised weights; give a folder with float32, float16 or bfloat16 weights")
    if settings.get("return_dict") is False or settings.get("use_return_dict") is False:
        raise UserError(f"{origin}: config.json has return_dict=false; remove that line")
    for name, value in settings.items():
        if isinstance(value, dict | list) and len(value) > MOST_LABELS:
            raise UserError(f"{origin}: config.json has {len(value):,} entries in {name}; at most {MOST_LABELS:,}")
    for name, value in _numbers(settings):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{origin}: config.json has {name}={value}; it must be a finite number")
        most = MOST_LAYERS if COUNTS.fullmatch(name) else MOST_LABELS if "label" in name else LARGEST
        if isinstance(value, int) and abs(value) > most and not any(word in name for word in LARGE_BY_NATURE):
            raise UserError(f"{origin}: config.json has {name}={value}; it must be at most {most:,}")


def _numbers(settings: dict | list, name: str = "") -> list[tuple[str, int | float]]:
    found: list[tuple[str, int | float]] = []
    entries = settings.items() if isinstance(settings, dict) else ((name, value) for value in settings)
    for key, value in entries:
        if isinstance(value, dict | list):
            found += _numbers(value, str(key))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((str(key), value))
    return found
