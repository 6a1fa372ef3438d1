"""Choice of the attention implementation for the device, and compilation."""

import torch
from torch import Tensor
from transformers.utils import is_flash_attn_2_available

from models.denoiser import NetworkDenoiser
from models.options import NetworkArgs
from utils.errors import UserError
from utils.hub import first_line


def fit_to_device(denoiser: NetworkDenoiser, args: NetworkArgs, device: torch.device, precision: str) -> None:
    """Apply the settings `attn_implementation` and `compile` to a network on its device, in its precision.

    Raises:
        UserError: if a requested setting does not work on this machine.
    """
    if denoiser.fixed_attention:
        if args.attn_implementation not in ("auto", "sdpa"):
            setting = f"attn_implementation={args.attn_implementation!r}: {type(denoiser.network).__name__}"
            raise UserError(f"{setting} only supports torch's own attention (sdpa); leave the flag out")
        denoiser.network.set_attn_implementation("sdpa")
    elif args.attn_implementation == "auto":
        use_if_correct(denoiser, preferred_attention(device, precision, packing=denoiser.row_capacity > 0))
    else:
        use_attention(denoiser, args.attn_implementation)
    if args.compile:
        compile_network(denoiser, device)


def preferred_attention(device: torch.device, precision: str, *, packing: bool) -> str:
    """Return the implementation that is likely the fastest.

    On a CPU in bf16, eager: a training step takes 0.76 to 0.95 of sdpa's time at 32 to 512 tokens. In fp32 the two are
    equal (`benchmarks/throughput.py --attn_implementation` measures other machines). On CUDA, flash_attention_2 if it
    is installed; it supports neither fp32 nor the mask that separates packed sentences.
    """
    if device.type == "cpu":
        return "eager" if precision == "bf16" else "sdpa"
    flash = device.type == "cuda" and precision != "fp32" and not packing and is_flash_attn_2_available()
    return "flash_attention_2" if flash else "sdpa"


def use_if_correct(denoiser: NetworkDenoiser, name: str) -> None:
    """Use an attention if it runs here and agrees with sdpa on two sentences, one of them padded; else use sdpa."""
    network = denoiser.network
    network.set_attn_implementation("sdpa")
    if name == "sdpa":
        return
    expected = trial_hidden_states(denoiser)
    try:
        network.set_attn_implementation(name)
        found = trial_hidden_states(denoiser)
    except Exception:  # an unsupported kernel may raise any type
        found = torch.full_like(expected, torch.nan)
    if not (found - expected).abs().mean() <= 0.02 * expected.abs().mean():
        network.set_attn_implementation("sdpa")


def use_attention(denoiser: NetworkDenoiser, name: str) -> None:
    """Use a requested attention.

    Raises:
        UserError: if it does not run here or has no gradient.
    """
    try:
        denoiser.network.set_attn_implementation(name)
        trial_hidden_states(denoiser)
    except Exception as error:  # an unsupported kernel may raise any type
        raise UserError(f"attn_implementation={name!r} cannot be used here: {first_line(error)}") from error


def trial_hidden_states(denoiser: NetworkDenoiser) -> Tensor:
    """Return hidden states of a few tokens, float32 [n, D], without dropout; a backward pass is run and discarded."""
    training, device = denoiser.training, denoiser.network.device
    denoiser.eval()
    width = min(8, denoiser.max_length)
    xt = torch.arange(2 * width, device=device).view(2, width) % denoiser.vocab_size
    attended = torch.arange(width, device=device) < torch.tensor([width, width - 1], device=device)[:, None]
    try:
        with torch.enable_grad():
            hidden = denoiser.encode(xt, torch.ones(2, dtype=torch.long, device=device), attended)
            hidden = hidden[attended.to(hidden.device)].float()
            weights = (denoiser.network.get_input_embeddings().weight, *denoiser.body.parameters())
            trained = next((weight for weight in weights if weight.requires_grad), None)  # LoRA freezes most or all
            if trained is not None:
                torch.autograd.grad(hidden.sum(), trained)
        return hidden.detach()
    finally:
        denoiser.train(training)


def compile_network(denoiser: NetworkDenoiser, device: torch.device, backend: str = "inductor") -> None:
    """Compile body and head in place for batches of any shape; parameters keep their names.

    Raises:
        UserError: if torch.compile does not work on this machine.
    """
    try:
        torch.compile(torch.sin, backend=backend)(torch.zeros(2, device=device))
    except Exception as error:  # no compiler, no Triton, or an unsupported GPU
        raise UserError(f"compile=true does not work here ({first_line(error)}); leave it out") from error
    if denoiser.last_layer:  # shapes would depend on the data
        denoiser.last_layer.remove()
        denoiser.last_layer = None
    for part in (denoiser.body, *(getattr(denoiser.network, name) for name in denoiser.head)):
        part.compile(dynamic=True, backend=backend)
