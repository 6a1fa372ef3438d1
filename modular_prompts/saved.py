"""Prompts on disk: a folder that says what it holds and to which network it belongs.

prompts.safetensors   the pool's tensors; for each task its router [1 or layers, K], and if it was tuned its own prompt
prompts.json          sizes, read-out, placeholders, cards of the tasks, name and SHA-256 of the network
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from checkpoint.adapter import fingerprint
from data.tokenizers import tokenizer_fingerprint
from models.denoiser import NetworkDenoiser
from models.lora import adapter_weights
from modular_prompts.options import PoolShape
from modular_prompts.pool import PromptPool
from modular_prompts.tasks import LABELLED, WRITTEN, Card, checked_card
from modular_prompts.tuning import prompt_of
from utils.errors import UserError, shown
from utils.files import folder_written_whole, label_of, local_path, open_regular, read_text
from utils.network_config import used_entries

WEIGHTS, DESCRIPTION = "prompts.safetensors", "prompts.json"
FORMAT = 1
ROUTER, PROMPT, HEAD = "router.", "prompt.", "head"
"""Prefixes of a task's tensors, which its name follows, and the name of the span head."""
CHOICES = (*LABELLED, "multiple-choice")
ANSWERED = {
    "verbaliser": CHOICES,
    "cosine": CHOICES,
    "spans": (*CHOICES, "extraction"),
    "window": (*CHOICES, *WRITTEN),
}
"""Types of tasks that each read-out can answer."""


@dataclass(frozen=True)
class Description:
    """Content of prompts.json."""

    network: str
    """Name on the hub, or the last part of a folder's path."""
    network_sha256: str
    """`network_digest` of the network."""
    shape: PoolShape
    readout: str
    """A key of `ANSWERED`."""
    placeholders: list[int]
    """Ids at the positions of the prompt."""
    max_length: int
    cards: dict[str, Card]
    """Cards of the tasks."""

    @classmethod
    def read(cls, folder: Path) -> "Description":
        """Read and check the description in a folder.

        Raises:
            UserError: if there is none, or it is damaged.
        """
        file = folder / DESCRIPTION
        if not file.exists():
            raise UserError(f"prompts {folder}: no {DESCRIPTION} there; give a folder of python -m modular_prompts")
        try:
            about = json.loads(read_text(file))
            if about["format"] != FORMAT:
                raise ValueError(f"format {shown(about['format'])} instead of {FORMAT}")
            found = cls(
                str(about["network"]),
                str(about["network_sha256"]),
                PoolShape(**about["shape"]),
                about["readout"],
                list(about["placeholders"]),
                about["max_length"],
                {task: checked_card(card, task, f"task {shown(task)}") for task, card in about["tasks"].items()},
            )
            found._check()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:  # UserError is a ValueError
            raise UserError(f"prompts {folder}: damaged ({shown(str(error))}); give another folder") from error
        return found

    def _check(self) -> None:
        whole = [*self.placeholders, self.max_length]
        if not all(type(number) is int and 0 <= number < 2**31 for number in whole):
            raise ValueError("placeholders and max_length must be whole numbers")
        if len(self.placeholders) != self.shape.length:
            raise ValueError(f"{len(self.placeholders)} placeholders for prompts of {self.shape.length} tokens")
        if self.readout not in ANSWERED:
            raise ValueError(f"readout={shown(self.readout)} is none of {', '.join(ANSWERED)}")
        for name, card in self.cards.items():
            if card.kind not in ANSWERED[self.readout]:
                raise ValueError(f"task {name} of type {card.kind} with readout={self.readout}")


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
    """Tuned prompts, [layers, P, D], by the name of the task; the others are mixtures of the pool.

    A task that the network answers better alone has a prompt without tokens, [1, 0, D].
    """
    head: Tensor | None = None
    """Weights of the span head, [2, D], for the read-out spans."""

    def prompt(self, task: str) -> Tensor:
        """Return the prompt of a task, [1, layers, P, D], or without tokens [1, 1, 0, D]."""
        return self.prompts[task][None] if task in self.prompts else prompt_of(self.pool, self.routers[task])


def network_digest(denoiser: NetworkDenoiser, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a SHA-256 of a network's weights, adapters, configuration and tokenizer.

    The weights of a head that is missing in the network's files, and so random at each loading, are left out.
    """
    network = denoiser.network
    digest = hashlib.sha256(fingerprint(network, getattr(network, "new_tensors", ())).encode())
    for name, tensor in sorted(adapter_weights(network).items()):
        digest.update(f"{name}:{list(tensor.shape)}:".encode())
        digest.update(tensor.cpu().contiguous().float().numpy().tobytes())
    entries = {key: value for key, value in used_entries(network.config.to_dict()).items() if "drop" not in key}
    digest.update(json.dumps(entries, sort_keys=True, default=str).encode())
    digest.update(tokenizer_fingerprint(tokenizer).encode())
    return digest.hexdigest()


def save_prompts(
    folder: Path, prompts: SavedPrompts, denoiser: NetworkDenoiser, tokenizer: PreTrainedTokenizerBase, network: str
) -> None:
    """Write prompts to a temporary folder and rename it, replacing earlier ones.

    Args:
        folder: where they go.
        prompts: what is saved.
        denoiser: the frozen network, in float32.
        tokenizer: its tokenizer.
        network: its name on the hub, or its folder, of which the last part is kept.
    """
    name = label_of(local_path(network).resolve()) if local_path(network).exists() else network
    description = {
        "format": FORMAT,
        "network": name,
        "network_sha256": network_digest(denoiser, tokenizer),
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


def load_prompts(folder: str | Path, denoiser: NetworkDenoiser, tokenizer: PreTrainedTokenizerBase) -> SavedPrompts:
    """Read prompts for a network.

    Raises:
        UserError: if there are none, they are damaged, or they belong to another network.
    """
    path = local_path(folder)
    about = Description.read(path)
    tensors = read_tensors(path, about)
    if network_digest(denoiser, tokenizer) != about.network_sha256:
        raise UserError(
            f"prompts {path}: they belong to the network {about.network} (SHA-256 {about.network_sha256[:12]}...), and "
            "this one has other weights, another configuration or another tokenizer; give that network, or train "
            "prompts for this one"
        )
    shape = about.shape
    fits = shape.hidden_size == denoiser.network.config.hidden_size and shape.num_layers <= len(denoiser.layers)
    if not fits or max(about.placeholders) >= denoiser.network.get_input_embeddings().weight.shape[0]:
        raise UserError(f"prompts {path}: damaged (sizes that this network does not have); give another folder")
    pool = PromptPool(shape)
    pool.load_state_dict({key.removeprefix("pool."): tensors[key] for key in tensors if key.startswith("pool.")})
    routers, prompts = by_task(tensors, ROUTER), by_task(tensors, PROMPT)
    return SavedPrompts(
        pool, routers, about.readout, about.placeholders, about.max_length, about.cards, prompts, tensors.get(HEAD)
    )


def by_task(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, by the rest of their names."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def read_tensors(path: Path, about: Description) -> dict[str, Tensor]:
    """Read the tensors; their sizes are those of the description, and compared before a pool is made.

    Raises:
        UserError: if one is missing, of another size, or not finite.
    """
    shape, tasks = about.shape, list(about.cards)
    layers, number, size = shape.num_layers, shape.num_modules, shape.length * shape.hidden_size
    fitting = {"pool.free": [(layers, number, size)]}
    if shape.intrinsic_size:
        codes, projection = (layers, number, shape.intrinsic_size), (layers, shape.intrinsic_size, size)
        fitting = {"pool.codes": [codes], "pool.projection": [projection]}
    needed = {*fitting, *(f"{ROUTER}{task}" for task in tasks)}
    for task in tasks:
        fitting[f"{ROUTER}{task}"] = [(1, number), (layers, number)]
        fitting[f"{PROMPT}{task}"] = [(layers, shape.length, shape.hidden_size), (1, 0, shape.hidden_size)]
    if about.readout == "spans":
        fitting[HEAD] = [(2, shape.hidden_size)]
        needed.add(HEAD)
    try:
        open_regular(path / WEIGHTS).close()
        tensors = load_file(path / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"prompts {path}: damaged ({shown(str(error))}); give another folder") from error
    fits = needed <= tensors.keys() <= fitting.keys()
    fits = fits and all(tuple(tensor.shape) in fitting[name] for name, tensor in tensors.items())
    if not fits or not all(t.dtype == torch.float32 and t.isfinite().all() for t in tensors.values()):
        raise UserError(
            f"prompts {path}: the tensors of {WEIGHTS} are not those that {DESCRIPTION} describes, or not finite; give "
            "another folder"
        )
    return tensors
