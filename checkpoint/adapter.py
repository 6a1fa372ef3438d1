"""Adapter of a checkpoint whose network is a pretrained one with LoRA adapters: the folder `adapter`.

adapter_config.json, adapter_model.safetensors   the adapters, as peft writes them; peft can load the folder
base.json                                        name of the pretrained network, and a hash of its weights
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from models.lora import adapter_weights, base_weights, inject
from models.networks import load_network
from models.pretrained import require_finite_weights
from utils.errors import UserError, shown
from utils.files import local_path, open_regular, read_text

FOLDER = "adapter"
WEIGHTS, CONFIG, BASE = "adapter_model.safetensors", "adapter_config.json", "base.json"
FILES = (WEIGHTS, CONFIG, BASE)
SETTINGS = ("r", "lora_alpha", "target_modules")
"""Entries of adapter_config.json that are read; other ones are left alone."""


@dataclass(frozen=True)
class Base:
    """Pretrained network below adapters."""

    name: str
    """Absolute path of a folder, a name on the hub or one in `utils.packaged.PACKAGED`."""
    weights: str
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
    """Write the folder `adapter` of a checkpoint; the network's weights are in float32."""
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
        config = json.loads(read_text(folder / CONFIG))
        base = Base(**{key: str(value) for key, value in json.loads(read_text(folder / BASE)).items()})
        settings = {entry: config[entry] for entry in SETTINGS}
        open_regular(folder / WEIGHTS).close()
        weights = load_file(folder / WEIGHTS)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise UserError(f"checkpoint {checkpoint}: its folder {FOLDER} is damaged ({shown(str(error))})") from error
    try:
        network = load_network(base.name, causal=causal)
    except UserError as error:
        raise UserError(
            f"checkpoint {checkpoint}: it holds adapters of the network {base.name}, which cannot be loaded ({error}); "
            "bring it back, or train with --merge_lora true"
        ) from error
    if fingerprint(network) != base.weights:
        raise UserError(
            f"checkpoint {checkpoint}: the weights of {base.name} are not those that its adapters were trained on; "
            "bring these back, or train with --merge_lora true"
        )
    network.config.initialized_from = base.initialized_from
    inject(network, settings)
    _fill(network, weights, checkpoint)
    return network, base


@torch.no_grad()
def _fill(network: PreTrainedModel, weights: dict, checkpoint: Path) -> None:
    wanted = adapter_weights(network)
    if wanted.keys() != weights.keys() or any(weights[name].shape != value.shape for name, value in wanted.items()):
        raise UserError(f"checkpoint {checkpoint}: the tensors of {FOLDER}/{WEIGHTS} do not fit the network")
    for name, value in wanted.items():
        value.copy_(weights[name])
    require_finite_weights(network, f"{checkpoint}/{FOLDER}")


def fingerprint(network: nn.Module) -> str:
    """Return a SHA-256 of the frozen weights by name, in float32."""
    digest = hashlib.sha256()
    for name, tensor in sorted(base_weights(network).items()):
        digest.update(f"{name}:{list(tensor.shape)}:".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
