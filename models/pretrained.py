"""Safe loading of untrusted model folders; the only module that loads networks through transformers.

transformers can run code that a folder names (`auto_map`), and asks on stdin unless `trust_remote_code` is given. A
config.json can also name an attention kernel on the hub, which is code too. So every call forbids remote code and names
the attention. Sizes are checked before anything is built: a config.json of a hundred bytes can describe a million
layers or a billion labels. `tests/models/test_pretrained.py` checks that no other file calls `from_pretrained` or
`from_config`.
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
from utils.network_config import MOST_JSON, WEIGHTS, check_config, refuse_custom_code

INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"model[\w.-]*\.safetensors")
SIZE_RATIO = 1.25
"""Largest ratio of a network's parameters to those in its weights file, which lacks heads and tied tables."""
SIZE_MARGIN = 2**22
"""Parameters allowed beyond that ratio."""


@dataclass(frozen=True)
class Loading:
    """Result of loading a network's tensors."""

    total: int
    """Number of tensors of the network."""
    missing: tuple[str, ...]
    """Tensors absent from the weights or of another shape there; they are initialized at random."""
    unused: int
    """Number of tensors in the weights that the network lacks."""


def read_config(folder: str) -> PretrainedConfig:
    """Read the configuration of a model folder.

    Raises:
        UserError: if it names code or exceeds a size limit.
        Exception: of many types, if it is missing or damaged.
    """
    settings = json.loads(read_text(Path(folder) / "config.json", MOST_JSON))
    check_config(settings, f"cannot read the network in {folder}")
    with refuse_custom_code(folder):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def read_network(kind: type, folder: str, **settings: object) -> tuple[PreTrainedModel, Loading]:
    """Load a network in float32 from safetensors.

    Args:
        kind: an AutoModel class.
        folder: contains config.json and model.safetensors.
        settings: replace entries of config.json.

    Raises:
        UserError: if the configuration describes more than the weights hold, or a weight is not finite.
        Exception: of many types, if something is missing or damaged.
    """
    check_weights_files(Path(folder))
    config = read_config(folder)
    config.update(settings)
    with refuse_custom_code(folder):
        _compare_sizes(kind, config, Path(folder))
        network, report = kind.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported as missing; callers refuse them
            trust_remote_code=False,
            attn_implementation=attention_of(kind, config),
        )
    require_finite_weights(network, f"cannot read the network in {folder}")
    missing = {str(key) for key in report["missing_keys"]}
    missing |= {str(key[0] if isinstance(key, tuple) else key) for key in report["mismatched_keys"]}
    return network, Loading(len(network.state_dict()), tuple(sorted(missing)), len(report["unexpected_keys"]))


def make_network(kind: type, config: PretrainedConfig) -> PreTrainedModel:
    """Create a network with random weights, float32.

    Raises:
        UserError: if a size is out of bounds, or the network exceeds this machine's memory.
        Exception: of many types, if the sizes are inconsistent.
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
    """Return transformers' default attention: fused (sdpa) where the network's class supports it, else eager."""
    found = kind._model_mapping.get(type(config), None)
    found = found[0] if isinstance(found, tuple) else found
    return "sdpa" if getattr(found, "_supports_sdpa", False) else "eager"


def require_finite_weights(network: torch.nn.Module, origin: str) -> None:
    """Require finite weights; a sampler writes text even from NaN.

    Raises:
        UserError: naming the first tensor that is not finite.
    """
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            bad = int((~tensor.isfinite()).sum())
            raise UserError(
                f"{origin}: {bad:,} of the {tensor.numel():,} weights in {name} are not finite; the file is damaged, "
                "or its training diverged: take another checkpoint, or train again with a lower --learning_rate"
            )


def check_weights_files(folder: Path) -> None:
    """Require that all weights are safetensors files inside the folder.

    transformers reads any file an index names: a pickle by torch.load, or a file outside the folder. If peft is
    installed, it also adds any adapters that it finds beside the weights, without a word.

    Raises:
        UserError: naming the first other file.
    """
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"cannot read the network in {folder}: adapter_config.json describes adapters beside the weights; merge "
            "them (peft: merge_and_unload, save_pretrained), or move the file away"
        )
    index = folder / INDEX
    if index.exists():
        named = json.loads(read_text(index, MOST_JSON))
        found = named.get("weight_map") if isinstance(named, dict) else None
        if not isinstance(found, dict) or not found:
            raise UserError(f"cannot read the network in {folder}: {INDEX} has no weight_map")
        refused = [name for name in found.values() if not isinstance(name, str) or not SHARD.fullmatch(name)]
        if refused:
            raise UserError(
                f"cannot read the network in {folder}: {INDEX} names {shown(refused[0])}; weights are read from "
                "model*.safetensors in the same folder only"
            )
    for file in _weights_files(folder):
        open_regular(file).close()


def _weights_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / INDEX).exists():
        named = json.loads(read_text(folder / INDEX, MOST_JSON))["weight_map"]
        return sorted({folder / name for name in named.values()})
    raise FileNotFoundError(f"it has no {WEIGHTS}")


def _compare_sizes(kind: type, config: PretrainedConfig, folder: Path) -> None:
    """Refuse a configuration that describes many more parameters than the weights file holds."""
    held = 0
    for file in _weights_files(folder):
        with safe_open(file, "pt") as weights:
            held += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    outline = _outline(kind, config)
    wanted = sum(tensor.numel() for tensor in (*outline.parameters(), *outline.buffers()))
    table = getattr(config, "vocab_size", 0) * (getattr(config, "hidden_size", 0) or 0)
    if wanted - table > SIZE_RATIO * held + SIZE_MARGIN:
        raise UserError(
            f"cannot read the network in {folder}: config.json describes {wanted:,} parameters and the weights hold "
            f"{held:,}; give a folder whose files belong together"
        )


def _outline(kind: type, config: PretrainedConfig) -> PreTrainedModel:
    """Create the network on the meta device, which allocates no memory."""
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):  # sizes of 0 warn
        return kind.from_config(
            config, dtype=torch.float32, trust_remote_code=False, attn_implementation=attention_of(kind, config)
        )


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**63
