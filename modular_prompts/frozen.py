"""The frozen network of a command, and how its answers are read."""

import shlex
from typing import Protocol

from torch import nn

from checkpoint.description import FILE
from checkpoint.folder import find_checkpoint, load_checkpoint
from checkpoint.model_parts import PROCESSES
from data.tokenizers import load_tokenizer
from models.denoiser import NetworkDenoiser
from models.factory import make_denoiser
from models.networks import load_network
from modular_prompts.arguments import LONGEST
from modular_prompts.readouts import Cosine, Readout, Verbaliser
from modular_prompts.saved import Description, SavedPrompts, load_prompts
from modular_prompts.spans import Spans
from modular_prompts.target_window import TargetWindow
from utils.device import pick_device, pick_precision, set_up_cpu
from utils.errors import UserError
from utils.files import local_path

READOUTS: dict[str, type[Readout]] = {
    "verbaliser": Verbaliser,
    "cosine": Cosine,
    "spans": Spans,
    "window": TargetWindow,
}
"""Read-outs by the value of --readout."""


class Machine(Protocol):
    """Number format and device; see `arguments.MachineArgs`."""

    precision: str
    threads: int
    device: str


def number_format(machine: Machine) -> str:
    """Return the number format that a machine's settings give here: fp32, bf16 or fp16."""
    return pick_precision(machine.precision, pick_device(machine.device))


def open_frozen(name: str, readout: str, max_length: int, prompt_length: int, machine: Machine) -> Readout:
    """Load a network and freeze it.

    Args:
        name: a folder, a name on the hub, one in `utils.packaged.PACKAGED`, or a checkpoint of main.py.
        readout: a key of `READOUTS`; auto: window for a checkpoint of pairs, else see `fitting`.
        max_length: tokens of a row; 0: up to `LONGEST`.
        prompt_length: P.
        machine: number format and device.

    Raises:
        UserError: if it cannot be read, or the read-out does not fit it.
    """
    set_up_cpu(machine.threads)
    device, path = pick_device(machine.device), local_path(name)
    precision = number_format(machine)
    if (path / FILE).exists() or (path / "checkpoint" / FILE).exists():
        model = load_checkpoint(find_checkpoint(name), device, precision=precision)
        denoiser, tokenizer = model.denoiser, model.tokenizer
        if model.causal or PROCESSES[model.process_name].over_embeddings:
            raise UserError(f"the checkpoint {name} has process={model.process_name}; give one of a masked process")
        if readout == "window" or (readout == "auto" and model.pairs):
            require_layers(denoiser, name)
            return TargetWindow(model, prompt_length)
    else:
        denoiser, tokenizer = make_denoiser(load_network(name), "none", 1), load_tokenizer(name)
        denoiser.use_precision(device, precision).to(device)
    require_layers(denoiser, name)
    if readout == "window":
        raise UserError(f"readout=window: {name} is no checkpoint of main.py; give one that was trained on pairs")
    kind = fitting(denoiser) if readout == "auto" else READOUTS[readout]
    if kind is Verbaliser and (new := getattr(denoiser.network, "new_tensors", ())):
        raise UserError(
            f"readout=verbaliser: the masked-LM head of {name} is new and random (e.g. {new[0]}); use readout=cosine"
        )
    return kind(denoiser, tokenizer, prompt_length, max_length or min(LONGEST, denoiser.max_length))


def open_prompts(folder: str, name: str, machine: Machine) -> tuple[Readout, SavedPrompts]:
    """Load prompts and their network.

    Args:
        folder: where the prompts are.
        name: the network; "": the name that is saved with the prompts.
        machine: number format and device.

    Raises:
        UserError: if they are damaged, the network is not found, or it is another one.
    """
    about = Description.read(local_path(folder))
    try:
        reader = open_frozen(name or about.network, about.readout, about.max_length, about.shape.length, machine)
    except UserError as error:
        missing = not name and "no such local folder" in str(error)
        hint = "; --model_name_or_path names the network" if missing else ""
        raise UserError(f"prompts {folder}: {error}{hint}") from error
    saved = load_prompts(folder, reader.denoiser, reader.tokenizer)
    reader.placeholders = saved.placeholders
    if saved.head is not None:
        reader.head.weight = nn.Parameter(saved.head, requires_grad=False)
    return reader, saved


def readout_name(readout: Readout) -> str:
    """Return the name of a read-out, as in --readout."""
    return next(name for name, kind in READOUTS.items() if type(readout) is kind)


def fitting(denoiser: NetworkDenoiser) -> type[Readout]:
    """Return the verbaliser, or the cosine if weights of the masked-LM head were missing and are random."""
    return Cosine if getattr(denoiser.network, "new_tensors", ()) else Verbaliser


def require_layers(denoiser: NetworkDenoiser, name: str) -> None:
    """Require that prompts can be added before each layer.

    Raises:
        UserError: naming the network.
    """
    layers = denoiser.layers
    if not layers or len(set(map(id, layers))) < len(layers):
        raise UserError(
            f"the network {name} ({type(denoiser.network).__name__}) has no known list of layers, or repeats one as "
            "ALBERT does, so prompts cannot be added before each; use BERT, RoBERTa, ModernBERT, DistilBERT or ELECTRA"
        )
    if denoiser.time_conditioned:
        raise UserError(f"the network {name} has a time input; train one with --time_conditioning none")


def hint_of(network: str) -> str:
    """Return the flag that names a network in a command that is suggested; "" if prompts name it themselves."""
    return f" --model_name_or_path {shlex.quote(network)}" if network and local_path(network).exists() else ""
