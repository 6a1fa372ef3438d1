"""Prompts on disk: a folder that says what it holds and to which network it belongs.

prompts.safetensors   the pool's tensors, and one router [1 or layers, K] for each task
prompts.json          sizes, read-out, placeholders, names of the tasks, name and SHA-256 of the network
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from checkpoint.adapter import fingerprint
from models.denoiser import NetworkDenoiser
from modular_prompts.pool import PoolShape, PromptPool
from utils.errors import UserError, shown
from utils.files import folder_written_whole, label_of, local_path, open_regular, read_text

WEIGHTS, DESCRIPTION = "prompts.safetensors", "prompts.json"
FORMAT = 1
ROUTER = "router."
"""Prefix of a router's tensor; the task's name follows."""


@dataclass(frozen=True)
class SavedPrompts:
    """Pool and routers of a frozen network."""

    pool: PromptPool
    routers: dict[str, Tensor]
    """Router logits, [1 or layers, K], by the name of the task."""
    readout: str
    """Name of the read-out: verbaliser or cosine."""
    placeholders: list[int]
    """Ids at the positions of the prompt."""
    max_length: int


def save_prompts(folder: Path, prompts: SavedPrompts, denoiser: NetworkDenoiser, network: str) -> None:
    """Write prompts to a temporary folder and rename it, replacing earlier ones.

    Args:
        folder: where they go.
        prompts: what is saved.
        denoiser: the frozen network, in float32.
        network: its name on the hub, or its folder, of which the last part is kept.
    """
    name = label_of(local_path(network).resolve()) if local_path(network).exists() else network
    description = {
        "format": FORMAT,
        "network": name,
        "network_sha256": fingerprint(denoiser.network),
        "shape": asdict(prompts.pool.shape),
        "tasks": sorted(prompts.routers),
        "readout": prompts.readout,
        "placeholders": prompts.placeholders,
        "max_length": prompts.max_length,
    }
    tensors = {f"pool.{key}": value for key, value in prompts.pool.state_dict().items()}
    tensors |= {f"{ROUTER}{task}": logits for task, logits in prompts.routers.items()}
    with folder_written_whole(folder) as temporary:
        save_file({key: value.detach().contiguous().cpu() for key, value in tensors.items()}, temporary / WEIGHTS)
        (temporary / DESCRIPTION).write_text(json.dumps(description, indent=1, ensure_ascii=False), encoding="utf-8")


def load_prompts(folder: str | Path, denoiser: NetworkDenoiser) -> SavedPrompts:
    """Read prompts for a network.

    Raises:
        UserError: if there are none, they are damaged, or they belong to another network.
    """
    path = local_path(folder)
    if not (path / DESCRIPTION).exists():
        raise UserError(f"prompts {path}: no {DESCRIPTION} there; give a folder written by python -m modular_prompts")
    try:
        about = json.loads(read_text(path / DESCRIPTION))
        shape = PoolShape(**about["shape"])
        name, sha256 = str(about["network"]), str(about["network_sha256"])
        readout, max_length = str(about["readout"]), int(about["max_length"])
        placeholders, tasks = [int(i) for i in about["placeholders"]], [str(task) for task in about["tasks"]]
        open_regular(path / WEIGHTS).close()
        tensors = load_file(path / WEIGHTS)
    except UserError as error:
        raise UserError(f"prompts {path}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise UserError(f"prompts {path}: damaged ({shown(str(error))}); give another folder") from error
    if fingerprint(denoiser.network) != sha256:
        raise UserError(
            f"prompts {path}: they belong to the network {name} (SHA-256 {sha256[:12]}...), and this one has other "
            "weights; give that network, or train prompts for this one"
        )
    return SavedPrompts(*_filled(path, shape, tasks, tensors), readout, placeholders, max_length)


def _filled(
    path: Path, shape: PoolShape, tasks: list[str], tensors: dict[str, Tensor]
) -> tuple[PromptPool, dict[str, Tensor]]:
    """Return pool and routers with tensors of exactly the described sizes; these are compared before a pool is made."""
    size = shape.length * shape.hidden_size
    sizes = {"pool.free": (shape.num_layers, shape.num_modules, size)}
    if shape.intrinsic_size:
        sizes = {
            "pool.codes": (shape.num_layers, shape.num_modules, shape.intrinsic_size),
            "pool.projection": (shape.num_layers, shape.intrinsic_size, size),
        }
    names = {*sizes, *(f"{ROUTER}{task}" for task in tasks)}
    routers = {task: tensors.get(f"{ROUTER}{task}", torch.empty(0)) for task in tasks}
    fits = tensors.keys() == names and all(tuple(tensors[name].shape) == wanted for name, wanted in sizes.items())
    fits = fits and all(
        tuple(r.shape) in {(n, shape.num_modules) for n in (1, shape.num_layers)} for r in routers.values()
    )
    if not fits or not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise UserError(
            f"prompts {path}: the tensors of {WEIGHTS} are not those that {DESCRIPTION} describes, or not finite"
        )
    pool = PromptPool(shape)
    pool.load_state_dict({name.removeprefix("pool."): tensors[name] for name in sizes})
    return pool, routers
