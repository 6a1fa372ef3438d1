"""What the machine decides about a network: which attention runs, and whether it is compiled."""

import torch
from torch import Tensor
from transformers.utils import is_flash_attn_2_available

from models.bert import BertDenoiser
from models.networks import BertArgs
from utils.errors import UserError
from utils.hub import first_line


def fit_to_device(denoiser: BertDenoiser, args: BertArgs, device: torch.device, precision: str) -> None:
    """Settle `attn_implementation` and `compile` for a network that stands on its device, in its precision.

    Raises:
        UserError: if what was asked for does not work here.
    """
    if getattr(denoiser, "only_sdpa", False):
        if args.attn_implementation not in ("auto", "sdpa"):
            what = f"attn_implementation={args.attn_implementation!r}: {type(denoiser.network).__name__}"
            raise UserError(f"{what} has torch's own attention, and no other; leave it out")
        denoiser.network.set_attn_implementation("sdpa")
    elif args.attn_implementation == "auto":
        take_if_right(denoiser, attention_for(device, precision, packing=denoiser.row_capacity > 0))
    else:
        require(denoiser, args.attn_implementation)
    if args.compile:
        compile_network(denoiser, device)


def attention_for(device: torch.device, precision: str, *, packing: bool) -> str:
    """The likely fastest.

    On a CPU in bf16 eager: a training step takes .76 to .95 of sdpa's time, from 32 to 512 tokens; in fp32 there is no
    difference (`benchmarks/throughput.py --attn_implementation` tells of other machines). On CUDA flash_attention_2
    where it is installed and of use: it knows no fp32, and no mask by which packed sentences could be kept apart.
    """
    if device.type == "cpu":
        return "eager" if precision == "bf16" else "sdpa"
    flash = device.type == "cuda" and precision != "fp32" and not packing and is_flash_attn_2_available()
    return "flash_attention_2" if flash else "sdpa"


def take_if_right(denoiser: BertDenoiser, name: str) -> None:
    """Use an attention if it runs here and gives what sdpa gives, on two sentences of which one is padded."""
    network = denoiser.network
    network.set_attn_implementation("sdpa")
    if name == "sdpa":
        return
    expected = trial(denoiser)
    try:
        network.set_attn_implementation(name)
        found = trial(denoiser)
    except Exception:  # a kernel that does not suit a card fails in any way it likes
        found = torch.full_like(expected, torch.nan)
    if not (found - expected).abs().mean() <= 0.02 * expected.abs().mean():
        network.set_attn_implementation("sdpa")


def require(denoiser: BertDenoiser, name: str) -> None:
    """Use an attention that was asked for.

    Raises:
        UserError: if it cannot be trained with here.
    """
    try:
        denoiser.network.set_attn_implementation(name)
        trial(denoiser)
    except Exception as error:  # as above
        raise UserError(f"attn_implementation={name!r} cannot be used here: {first_line(error)}") from error


def trial(denoiser: BertDenoiser) -> Tensor:
    """Hidden states of a few tokens, float32 [n, D], without dropout; a gradient is taken too, and forgotten."""
    training, device = denoiser.training, denoiser.network.device
    denoiser.eval()
    width = min(8, denoiser.max_length)
    xt = torch.arange(2 * width, device=device).view(2, width) % denoiser.vocab_size
    attended = torch.arange(width, device=device) < torch.tensor([width, width - 1], device=device)[:, None]
    try:
        with torch.enable_grad():
            hidden = denoiser.encode(xt, torch.ones(2, dtype=torch.long, device=device), attended)[attended].float()
            torch.autograd.grad(hidden.sum(), denoiser.network.get_input_embeddings().weight)
        return hidden.detach()
    finally:
        denoiser.train(training)


def compile_network(denoiser: BertDenoiser, device: torch.device, backend: str = "inductor") -> None:
    """torch.compile the body and the head in place, for batches of any shape; parameters keep their names.

    Raises:
        UserError: if nothing can be compiled here.
    """
    try:
        torch.compile(torch.sin, backend=backend)(torch.zeros(2, device=device))
    except Exception as error:  # no compiler, no Triton, a card too old
        raise UserError(f"compile=true does not work here ({first_line(error)}); leave it out") from error
    for part in (denoiser.body, *(getattr(denoiser.network, name) for name in denoiser.head)):
        part.compile(dynamic=True, backend=backend)
