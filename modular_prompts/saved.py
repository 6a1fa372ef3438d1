"""Prompts on disk: a folder that says what it holds and to which network it belongs.

prompts.safetensors   the pool's tensors; for each task its router [1 or layers, K], and if it was tuned its own prompt
prompts.json          sizes, read-out, placeholders, cards of the tasks, name and SHA-256 of the network
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from checkpoint.adapter import fingerprint
from models.denoiser import NetworkDenoiser
from modular_prompts.pool import PoolShape, PromptPool
from modular_prompts.tasks import Card, checked_card
from modular_prompts.tuning import prompt_of
from utils.errors import UserError, shown
from utils.files import folder_written_whole, label_of, local_path, open_regular, read_text

WEIGHTS, DESCRIPTION = "prompts.safetensors", "prompts.json"
FORMAT = 1
ROUTER, PROMPT, HEAD = "router.", "prompt.", "head"
"""Prefixes of a task's tensors, which its name follows, and the name of the span head."""


@dataclass(frozen=True)
class SavedPrompts:
    """Pool, routers and tuned prompts of a frozen network."""

    pool: PromptPool
    routers: dict[str, Tensor]
    """Router logits, [1 or layers, K], by the name of the task."""
    readout: str
    """Name of the read-out."""
    placeholders: list[int]
    """Ids at the positions of the prompt."""
    max_length: int
    cards: dict[str, Card] = field(default_factory=dict)
    """Cards of the tasks that have a router."""
    prompts: dict[str, Tensor] = field(default_factory=dict)
    """Tuned prompts, [layers, P, D], by the name of the task; the others are mixtures of the pool."""
    head: Tensor | None = None
    """Weights of the span head, [2, D], for the read-out spans."""

    def prompt(self, task: str) -> Tensor:
        """Return the prompt of a task, [1, layers, P, D]."""
        return self.prompts[task][None] if task in self.prompts else prompt_of(self.pool, self.routers[task])


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
        "network_sha256": network_digest(denoiser),
        "shape": asdict(prompts.pool.shape),
        "tasks": {task: prompts.cards[task].entries() for task in sorted(prompts.routers)},
        "readout": prompts.readout,
        "placeholders": prompts.placeholders,
        "max_length": prompts.max_length,
    }
    tensors = {f"pool.{key}": value for key, value in prompts.pool.state_dict().items()}
    tensors |= {f"{ROUTER}{task}": logits for task, logits in prompts.routers.items()}
    tensors |= {f"{PROMPT}{task}": prompt for task, prompt in prompts.prompts.items()}
    tensors |= {HEAD: prompts.head} if prompts.head is not None else {}
    with folder_written_whole(folder) as temporary:
        save_file({key: value.detach().contiguous().cpu() for key, value in tensors.items()}, temporary / WEIGHTS)
        (temporary / DESCRIPTION).write_text(json.dumps(description, indent=1, ensure_ascii=False), encoding="utf-8")


def network_digest(denoiser: NetworkDenoiser) -> str:
    """Return the SHA-256 of a network's weights, without those of a head that is new and random at each loading."""
    return fingerprint(denoiser.network, getattr(denoiser.network, "new_tensors", ()))


def described(folder: str | Path) -> dict:
    """Return the entries of prompts.json, unchecked but for its being an object: before the network is known.

    Raises:
        UserError: if there are no prompts.
    """
    path = local_path(folder)
    if not (path / DESCRIPTION).exists():
        raise UserError(f"prompts {path}: no {DESCRIPTION} there; give a folder written by python -m modular_prompts")
    try:
        about = json.loads(read_text(path / DESCRIPTION))
    except (ValueError, RecursionError) as error:
        raise UserError(f"prompts {path}: damaged ({shown(str(error))}); give another folder") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UserError(f"prompts {path}: {DESCRIPTION} is damaged, or not of format {FORMAT}; give another folder")
    return about


def load_prompts(folder: str | Path, denoiser: NetworkDenoiser) -> SavedPrompts:
    """Read prompts for a network.

    Raises:
        UserError: if there are none, they are damaged, or they belong to another network.
    """
    about, routers, prompts, tensors = read_tensors(folder)
    path = local_path(folder)
    try:
        name, sha256 = str(about["network"]), str(about["network_sha256"])
        readout, max_length = str(about["readout"]), int(about["max_length"])
        placeholders = [int(i) for i in about["placeholders"]]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    if network_digest(denoiser) != sha256:
        raise UserError(
            f"prompts {path}: they belong to the network {name} (SHA-256 {sha256[:12]}...), and this one has other "
            "weights; give that network, or train prompts for this one"
        )
    pool = PromptPool(PoolShape(**about["shape"]))
    pool.load_state_dict({key.removeprefix("pool."): tensors[key] for key in tensors if key.startswith("pool.")})
    cards = {task: checked_card(card, task, "card") for task, card in about["tasks"].items()}
    return SavedPrompts(pool, routers, readout, placeholders, max_length, cards, prompts, tensors.get(HEAD))


def read_tensors(folder: str | Path) -> tuple[dict, dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Return description, routers and tuned prompts by task, and all tensors, of whatever network.

    Raises:
        UserError: if there are none, or they are damaged.
    """
    path, about = local_path(folder), described(folder)
    try:
        shape = PoolShape(**about["shape"])
        for task, card in about["tasks"].items():
            checked_card(card, task, f"task {shown(task)}")
        open_regular(path / WEIGHTS).close()
        tensors = load_file(path / WEIGHTS)
    except UserError as error:
        raise UserError(f"prompts {path}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise _damaged(path, error) from error
    _require_sizes(path, shape, list(about["tasks"]), tensors)
    routers, prompts = (
        {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
        for start in (ROUTER, PROMPT)
    )
    return about, routers, prompts, tensors


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"prompts {path}: damaged ({shown(str(error))}); give another folder")


def _require_sizes(path: Path, shape: PoolShape, tasks: list[str], tensors: dict[str, Tensor]) -> None:
    """Require tensors of exactly the described sizes; these are compared before a pool is made.

    Raises:
        UserError: if one is missing, of another size, or not finite.
    """
    layers, number, size = shape.num_layers, shape.num_modules, shape.length * shape.hidden_size
    fitting = {"pool.free": [(layers, number, size)]}
    if shape.intrinsic_size:
        codes, projection = (layers, number, shape.intrinsic_size), (layers, shape.intrinsic_size, size)
        fitting = {"pool.codes": [codes], "pool.projection": [projection]}
    needed = {*fitting, *(f"{ROUTER}{task}" for task in tasks)}
    for task in tasks:
        fitting[f"{ROUTER}{task}"] = [(1, number), (layers, number)]
        fitting[f"{PROMPT}{task}"] = [(layers, shape.length, shape.hidden_size)]
    fitting[HEAD] = [(2, shape.hidden_size)]
    fits = needed <= tensors.keys() <= fitting.keys()
    fits = fits and all(tuple(tensor.shape) in fitting[name] for name, tensor in tensors.items())
    if not fits or not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise UserError(
            f"prompts {path}: the tensors of {WEIGHTS} are not those that {DESCRIPTION} describes, or not finite"
        )
