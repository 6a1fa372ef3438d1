"""Checkpoint folders. Sampling and scoring need the folder's path only.

    config.json, model.safetensors     the network, written by save_pretrained; stock transformers can load it
    tokenizer.json, ...                the tokenizer
    process.json                       process, settings, time conditioning, length histogram, metrics
    word_freq.json                     {token: count} of the training corpus
    time_conditioning.safetensors      parameters of the time conditioning, if any
    adapter/                           LoRA adapters, in place of model.safetensors (checkpoint/adapter.py)
    README.md                          instructions

All files are safetensors or JSON; no pickle is ever loaded.
"""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from checkpoint.adapter import FILES as ADAPTER_FILES
from checkpoint.adapter import FOLDER, Base, load_adapter, save_adapter
from checkpoint.description import FILE, Description
from checkpoint.model_card import model_card
from checkpoint.model_parts import PROCESSES, ModelParts, build_process, process_name_of
from data.tokenizers import load_tokenizer, vocabulary_size
from data.word_counts import read_word_freq, write_word_freq
from models.denoiser import NetworkDenoiser
from models.factory import make_denoiser
from models.lora import has_lora, merged_weights
from models.networks import load_network, require_vocabulary
from models.pretrained import require_finite_weights
from utils.device import pick_precision
from utils.errors import UserError
from utils.files import folder_written_whole, local_path, open_regular
from utils.gathering import held_by_leader, state_to_save
from utils.hub import NETWORK_FILES, REPOSITORY, REVISION, TOKENIZER_FILES, download_error, fetch

TIME = "time_conditioning.safetensors"


def weights_of(model: ModelParts) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of the network and of its time conditioning; every process of a sharded job must call this.

    Adapters are merged, unless they are saved by themselves; they are not sharded.
    """
    network = model.denoiser.network
    if has_lora(network):
        own = {} if model.adapter_base else held_by_leader(merged_weights(network))
    else:
        own = state_to_save(network)
    return own, state_to_save(model.denoiser.time or nn.Module())


def save_checkpoint(
    path: Path, model: ModelParts, weights: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None
) -> None:
    """Write a model to a temporary folder and rename it to `path`, replacing an earlier checkpoint atomically."""
    network_weights, time_weights = weights or weights_of(model)
    with folder_written_whole(path) as folder:
        if model.adapter_base:
            model.denoiser.network.config.save_pretrained(folder)
            save_adapter(folder, model.denoiser.network, model.adapter_base)
        else:  # a copy of the weights, since it empties its input
            model.denoiser.network.save_pretrained(folder, state_dict=dict(network_weights))
        model.tokenizer.save_pretrained(folder)
        if time_weights:
            save_file(time_weights, folder / TIME)
        detokenizer = "none" if model.pairs else model.trained_format.detokenizer
        write_word_freq(folder / "word_freq.json", model.token_counts, model.tokenizer, detokenizer)
        Description.of(model).write(folder)
        (folder / "README.md").write_text(model_card(model), encoding="utf-8")


def load_checkpoint(
    name: str | Path,
    device: torch.device,
    *,
    precision: str = "fp32",
    posterior: str = "",
    row_format: str = "",
    detokenizer: str = "",
) -> ModelParts:
    """Load a model for inference.

    Args:
        name: a checkpoint folder, or an output folder of main.py that contains one.
        device: device of the model.
        precision: precision of the network: fp32, bf16, fp16, or auto.
        posterior: replaces the saved posterior (exact or released), unless empty.
        row_format, detokenizer: replace the saved text format, unless empty.

    Raises:
        UserError: if the folder is missing or damaged, or its process is unknown.
    """
    path = find_checkpoint(name)
    refuse_links(path)
    about = Description.read(path, posterior)
    tokenizer, denoiser, base = load_parts(path, about)
    counts = read_word_freq(path / "word_freq.json", tokenizer, denoiser.vocab_size, detokenizer=None)
    text_format = about.text_format.overridden(row_format, detokenizer)
    of_pairs, size = about.pairs is not None, denoiser.vocab_size
    process = build_process(about.process_args, counts, tokenizer, size, of_pairs=of_pairs, text_format=text_format)
    text_format.check_process(token_dependent=process.token_dependent)
    denoiser.eval().use_precision(device, pick_precision(precision, device))
    model = about.model(denoiser, process, tokenizer, counts, text_format)
    return replace(model, adapter_base=base).to(device)


def load_parts(path: Path, about: Description) -> tuple[PreTrainedTokenizerBase, NetworkDenoiser, Base | None]:
    """Load the tokenizer and the denoiser of a checkpoint, and the description of the network below adapters.

    Raises:
        UserError: if one is damaged, or they do not fit each other.
    """
    kind = PROCESSES[process_name_of(about.process_args)]
    if (path / FOLDER).exists():
        if whole := next(path.glob("model*.safetensors"), None):
            raise UserError(f"checkpoint {path}: holds both {FOLDER}/ and {whole.name}; remove one of them")
        network, base = load_adapter(path, causal=kind.causal)
    else:
        network, base = load_network(str(path), whole=True, causal=kind.causal), None
    tokenizer = load_tokenizer(str(path))
    try:
        about.process_args.check_time(about.time_conditioning)
        denoiser = make_denoiser(
            network,
            about.time_conditioning,
            about.process_args.time_period,
            causal=kind.causal,
            over_embeddings=kind.over_embeddings,
        )
        require_vocabulary(str(path), denoiser.vocab_size, vocabulary_size(tokenizer))
    except UserError as error:
        raise UserError(f"checkpoint {path}: {error}") from error
    if denoiser.time is not None:
        _load_time_conditioning(denoiser.time, path / TIME)
    return tokenizer, denoiser, base


FILES = [
    *NETWORK_FILES, *TOKENIZER_FILES, FILE, "word_freq.json", TIME,
    *(f"{FOLDER}/{name}" for name in ADAPTER_FILES),
]  # fmt: skip
"""Files of a checkpoint that are read, and sent to the hub."""


def find_checkpoint(name: str | Path) -> Path:
    """Return the checkpoint folder at `name`, or inside it if `name` is an output folder of main.py.

    USER/NAME, or USER/NAME@COMMIT, is a repository of the hub if there is no folder USER here; its checkpoint is
    downloaded, unless cached.

    Raises:
        UserError: if there is none.
    """
    path = local_path(name)
    of_hub = REVISION.fullmatch(str(name)) or REPOSITORY.fullmatch(str(name))
    if of_hub and not path.exists() and not path.parent.exists():
        path, of_hub = _from_hub(str(name)), None
    if path.is_file():
        raise UserError(f"checkpoint {path}: is a file; give a folder made by main.py (no pickle is ever loaded)")
    if not path.is_dir():
        aside = f", and the hub was not asked, since there is a folder {path.parent}" if of_hub else ""
        raise UserError(
            f"checkpoint {path}: no such folder{aside}; train a model with main.py --output_dir, or `bash run.sh demo`"
        )
    if not (path / FILE).exists() and (path / "checkpoint" / FILE).exists():
        return path / "checkpoint"
    if not (path / FILE).exists():
        raise UserError(f"checkpoint {path}: it has no {FILE}; give a folder made by main.py")
    return path


def _from_hub(name: str) -> Path:
    try:
        return Path(fetch(name, FILES))
    except Exception as error:  # the libraries below raise many types
        raise UserError(
            f"checkpoint {name}: no such folder, and not on the hub ({download_error(error)}); give a folder made by "
            "main.py --output_dir, or USER/NAME of a checkpoint there"
        ) from error


def refuse_links(path: Path) -> None:
    """Refuse a folder with links to files outside it; the hub's cache may link to ../../blobs.

    Raises:
        UserError: naming the first such link.
    """
    allowed = (path.resolve(), path.resolve().parent.parent / "blobs")
    for file in path.rglob("*"):
        if file.is_symlink() and not any(file.resolve().is_relative_to(folder) for folder in allowed):
            raise UserError(f"checkpoint {path}: {file.name} links out of the folder; replace it by a copy of the file")


def _load_time_conditioning(module: nn.Module, file: Path) -> None:
    try:
        open_regular(file).close()
        module.load_state_dict(load_file(file))
        require_finite_weights(module, str(file))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"checkpoint {file.parent}: {file.name} is missing, truncated or of another size ({reason})"
        ) from error
