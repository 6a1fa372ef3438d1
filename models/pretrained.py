"""The one door through which transformers reads a folder that somebody handed us: its config, weights and tokenizer.

transformers runs code that a folder names (`auto_map`) when it is told to, and asks on stdin when it is not told
anything; a config.json can name an attention kernel on the hub, which is code, too. So every call says no to the one
and names the attention itself. Sizes are looked at before anything of them is built: a config.json of a hundred bytes
can ask for a network of a million layers, or for a billion labels. `tests/models/test_pretrained.py` holds that no
other file calls `from_pretrained` or `from_config`.
"""

import json
import math
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from utils.errors import UserError, shown
from utils.files import open_regular, read_text
from utils.network_config import MOST_JSON, WEIGHTS, check_config, code_refused

INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"model[\w.-]*\.safetensors")
ONES = 1.25
"""A network may have so many times the parameters that its weights file holds: heads and tied tables are not in it."""
HEADROOM = 2**22
"""And so many more."""


@dataclass(frozen=True)
class Loading:
    """What became of a network's tensors."""

    total: int
    """Tensors of the network."""
    missing: tuple[str, ...]
    """Those that the weights lack, or have in another shape; they hold random numbers."""
    unused: int
    """Tensors of the weights that the network has no place for."""


def read_config(folder: str) -> PretrainedConfig:
    """The configuration of a model folder.

    Raises:
        UserError: if it asks for what is never read or built.
        Exception: of many types, if it is missing or damaged.
    """
    settings = json.loads(read_text(Path(folder) / "config.json", MOST_JSON))
    check_config(settings, f"cannot read the network in {folder}")
    with code_refused(folder):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def read_network(kind: type, folder: str, **settings: object) -> tuple[PreTrainedModel, Loading]:
    """A network in float32, from safetensors, and what of it was in them.

    Args:
        kind: an AutoModel class.
        folder: with config.json and model.safetensors.
        settings: replace those of config.json.

    Raises:
        UserError: if the configuration asks for more than the weights hold, or a weight is not finite.
        Exception: of many types, if something is missing or damaged.
    """
    check_weights_files(Path(folder))
    config = read_config(folder)
    config.update(settings)
    with code_refused(folder):
        _compare_sizes(kind, config, Path(folder))
        network, report = kind.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported as missing, and refused by whoever needs them
            trust_remote_code=False,
            attn_implementation=attention_of(kind, config),
        )
    require_finite_weights(network, f"cannot read the network in {folder}")
    missing = {str(key) for key in report["missing_keys"]}
    missing |= {str(key[0] if isinstance(key, tuple) else key) for key in report["mismatched_keys"]}
    return network, Loading(len(network.state_dict()), tuple(sorted(missing)), len(report["unexpected_keys"]))


def make_network(kind: type, config: PretrainedConfig) -> PreTrainedModel:
    """A network of random weights, float32.

    Raises:
        UserError: if its numbers are out of bounds, or it does not fit into this machine's memory.
        Exception: of many types, if the numbers do not fit each other.
    """
    check_config(config.to_dict(), type(config).__name__)
    outline = _outline(kind, config)
    size = 4 * sum(tensor.numel() for tensor in (*outline.parameters(), *outline.buffers()))
    if size > _memory():
        raise UserError(
            f"{type(config).__name__}: its weights take {size / 2**30:,.1f} GiB and this machine has "
            f"{_memory() / 2**30:,.1f}; lower the sizes"
        )
    attention = attention_of(kind, config)
    return kind.from_config(config, dtype=torch.float32, trust_remote_code=False, attn_implementation=attention)


def attention_of(kind: type, config: PretrainedConfig) -> str:
    """The fused attention (sdpa) where the network's class has it, else eager: what transformers takes by default."""
    found = kind._model_mapping.get(type(config), None)
    found = found[0] if isinstance(found, tuple) else found
    return "sdpa" if getattr(found, "_supports_sdpa", False) else "eager"


def require_finite_weights(network: torch.nn.Module, origin: str) -> None:
    """Refuse weights that are no numbers: whatever is computed with them is none, and a sampler would still write text.

    Raises:
        UserError: naming the first such tensor.
    """
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            bad = int((~tensor.isfinite()).sum())
            raise UserError(
                f"{origin}: {bad:,} of the {tensor.numel():,} weights in {name} are not finite; the file is damaged, "
                "or its training diverged: take another checkpoint, or train again with a lower --learning_rate"
            )


def check_weights_files(folder: Path) -> None:
    """Refuse weights that are not safetensors files of the folder itself, whatever an index says.

    transformers reads what an index names: a pickle by torch.load, or a file of somewhere else.

    Raises:
        UserError: naming what is wrong.
    """
    index = folder / INDEX
    if index.exists():
        named = json.loads(read_text(index, MOST_JSON))
        found = named.get("weight_map") if isinstance(named, dict) else None
        if not isinstance(found, dict) or not found:
            raise UserError(f"cannot read the network in {folder}: {INDEX} has no weight_map")
        strange = [name for name in found.values() if not isinstance(name, str) or not SHARD.fullmatch(name)]
        if strange:
            raise UserError(
                f"cannot read the network in {folder}: {INDEX} names {shown(strange[0])}; weights are read from "
                "model*.safetensors beside it alone"
            )
    for file in _weights_files(folder):
        open_regular(file).close()


def _weights_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / INDEX).exists():
        named = json.loads(read_text(folder / INDEX, MOST_JSON))["weight_map"]
        return sorted({folder / name for name in named.values()})
    raise FileNotFoundError(f"no {WEIGHTS} in it")


def _compare_sizes(kind: type, config: PretrainedConfig, folder: Path) -> None:
    held = 0
    for file in _weights_files(folder):
        with safe_open(file, "pt") as weights:
            held += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    outline = _outline(kind, config)
    wanted = sum(tensor.numel() for tensor in (*outline.parameters(), *outline.buffers()))
    table = getattr(config, "vocab_size", 0) * (getattr(config, "hidden_size", 0) or 0)
    if wanted - table > ONES * held + HEADROOM:
        raise UserError(
            f"cannot read the network in {folder}: config.json describes {wanted:,} parameters and the weights hold "
            f"{held:,}; they are not of one network"
        )


def _outline(kind: type, config: PretrainedConfig) -> PreTrainedModel:
    """The network without its numbers: nothing is allocated."""
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):  # of sizes of 0
        return kind.from_config(
            config, dtype=torch.float32, trust_remote_code=False, attn_implementation=attention_of(kind, config)
        )


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**63
