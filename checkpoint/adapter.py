"""Adapter of a checkpoint whose network is a pretrained one with LoRA adapters: the folder `adapter`.

adapter_config.json, adapter_model.safetensors   the adapters, as peft writes them; peft can load the folder
base.json                                        name of the pretrained network, and a hash of its weights

The config.json beside the folder is that of the pretrained network, which must not change either.
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from models.lora import adapter_weights, base_weights, default_settings, inject
from models.networks import load_network
from models.options import MOST_RANK
from models.pretrained import read_config, require_finite_weights
from utils.errors import UserError, shown
from utils.files import local_path, open_regular, read_text
from utils.hub import first_line
from utils.network_config import used_entries

FOLDER = "adapter"
WEIGHTS, CONFIG, BASE = "adapter_model.safetensors", "adapter_config.json", "base.json"
FILES = (WEIGHTS, CONFIG, BASE)
SETTINGS = ("r", "lora_alpha", "target_modules")
"""Entries of adapter_config.json that are read. Targets are ends of names: peft shortens a list of twenty or more."""
UNUSED = (
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout", "init_lora_weights",
)  # fmt: skip
"""Entries without effect on the output of plain adapters. Any other one must be empty or peft's default."""
PLAIN_STARTS = (True, False, "gaussian")
"""Values of init_lora_weights that leave the network below as it is."""
MOST_ALPHA = 1e6
MERGE = "merge them where it is, with python -m checkpoint.merge CHECKPOINT NEW_FOLDER"


@dataclass(frozen=True)
class Base:
    """Pretrained network below adapters."""

    name: str
    """Absolute path of a folder, a name on the hub or one in `utils.packaged.PACKAGED`."""
    sha256: str
    """`fingerprint` of its weights."""
    initialized_from: str
    """Source of its weights, in words."""

    @classmethod
    def of(cls, network: PreTrainedModel, name: str) -> "Base":
        """Describe the network that was loaded from `name`, with or without adapters."""
        path = local_path(name)
        absolute = str(path.resolve()) if path.exists() else name
        return cls(absolute, fingerprint(network), str(network.config.initialized_from))


def save_adapter(checkpoint: Path, network: PreTrainedModel, base: Base) -> None:
    """Write the folder `adapter` of a checkpoint. The network's weights must be in float32, as the recorded hash is."""
    folder = checkpoint / FOLDER
    folder.mkdir()
    (config,) = network.peft_config.values()
    config.base_model_name_or_path, config.target_modules = base.name, sorted(config.target_modules)
    config.save_pretrained(folder)
    save_file({key: value.contiguous().cpu() for key, value in adapter_weights(network).items()}, folder / WEIGHTS)
    (folder / BASE).write_text(json.dumps(asdict(base), indent=1), encoding="utf-8")


def load_adapter(checkpoint: Path, *, causal: bool = False) -> tuple[PreTrainedModel, Base]:
    """Load the pretrained network of a checkpoint, with its adapters, and its description.

    Raises:
        UserError: if the pretrained network is not found or another one, or the adapter is damaged.
    """
    folder = checkpoint / FOLDER
    try:
        settings = checked_settings(json.loads(read_text(folder / CONFIG)))
        base = Base(**{key: str(value) for key, value in json.loads(read_text(folder / BASE)).items()})
        open_regular(folder / WEIGHTS).close()
        weights = load_file(folder / WEIGHTS)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise UserError(f"checkpoint {checkpoint}: its folder {FOLDER} cannot be used ({shown(str(error))})") from error
    try:
        network = load_network(base.name, causal=causal)
    except (UserError, OSError) as error:  # OSError: a name that no file can have
        raise UserError(
            f"checkpoint {checkpoint}: it holds adapters of the network {shown(base.name)[1:-1]}, which cannot be "
            f"loaded ({first_line(error)}); bring it back, or {MERGE}"
        ) from error
    _require_base(network, base, checkpoint)
    for target in settings["target_modules"]:
        named = [m for name, m in network.named_modules() if name == target or name.endswith(f".{target}")]
        if not named or not all(isinstance(module, nn.Linear) for module in named):
            raise UserError(f"checkpoint {checkpoint}: {base.name} has no linear map {shown(target)} for its {FOLDER}")
    network.config.initialized_from = base.initialized_from
    inject(network, settings)
    _fill(network, weights, checkpoint)
    return network, base


def checked_settings(config: dict) -> dict:
    """Return the `SETTINGS` of adapter_config.json.

    Raises:
        ValueError: if one is out of bounds, or the file describes other adapters than LoRA's plain ones.
    """
    rank, alpha, targets = (config[name] for name in SETTINGS)
    if type(rank) is not int or not 1 <= rank <= MOST_RANK:
        raise ValueError(f"r={shown(rank)} must lie in 1..{MOST_RANK}")
    if type(alpha) not in (int, float) or not 0 < alpha <= MOST_ALPHA:
        raise ValueError(f"lora_alpha={shown(alpha)} must be above 0, at most {MOST_ALPHA:g}")
    if not isinstance(targets, list) or not targets or not all(isinstance(name, str) for name in targets):
        raise ValueError("target_modules must be a list of names")
    defaults = default_settings()
    for name, value in config.items():
        if name not in (*SETTINGS, *UNUSED) and value and value != defaults.get(name):
            raise ValueError(f"{shown(name)} is {shown(value)}, which is not supported")
    if config.get("init_lora_weights", True) not in PLAIN_STARTS:
        raise ValueError(f"init_lora_weights is {shown(config['init_lora_weights'])}, which is not supported")
    return {"r": rank, "lora_alpha": alpha, "target_modules": targets}


def _require_base(network: PreTrainedModel, base: Base, checkpoint: Path) -> None:
    """Require that a network is the one below a checkpoint's adapters, in weights and configuration.

    Raises:
        UserError: if it has changed.
    """
    if fingerprint(network) != base.sha256:
        raise UserError(
            f"checkpoint {checkpoint}: the weights of {base.name} are not those that its adapters were trained on; "
            f"bring these back, or {MERGE}"
        )
    own, found = (used_entries(config.to_dict()) for config in (read_config(str(checkpoint)), network.config))
    for key in sorted({*own, *found}):
        if own.get(key) != found.get(key) and "drop" not in key:  # --dropout, which is for training
            raise UserError(
                f"checkpoint {checkpoint}: its adapters were trained with {key}={shown(own.get(key))} in the "
                f"config.json of {base.name}, which now has {shown(found.get(key))}; bring that back"
            )


@torch.no_grad()
def _fill(network: PreTrainedModel, weights: dict, checkpoint: Path) -> None:
    wanted = adapter_weights(network)
    if wanted.keys() != weights.keys() or any(weights[name].shape != value.shape for name, value in wanted.items()):
        raise UserError(f"checkpoint {checkpoint}: the tensors of {FOLDER}/{WEIGHTS} do not fit the network")
    for name, value in wanted.items():
        value.copy_(weights[name])
    require_finite_weights(network, f"{checkpoint}/{FOLDER}")


def fingerprint(network: nn.Module, without: Collection[str] = ()) -> str:
    """Return a SHA-256 of the frozen weights by name, in float32; `without` names tensors to leave out."""
    digest = hashlib.sha256()
    for name, tensor in sorted(base_weights(network).items()):
        if name in without:
            continue
        digest.update(f"{name}:{list(tensor.shape)}:".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
