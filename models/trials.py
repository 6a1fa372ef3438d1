"""Checks of a network before use: finite, deterministic output that does not depend on padding."""

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.hub import first_line

FAMILIES = "BERT, RoBERTa, XLM-R, CamemBERT, Data2Vec, MPNet, DistilBERT, ModernBERT, ALBERT, ELECTRA, DeBERTa-v2"
"""Families that `tests/models/test_bert.py` covers."""
SHORT, LONG = 5, 60
"""Tokens of the two trial sentences; the longer one exceeds the chunks into which some networks cut a row."""
PADDING = 65
"""Tokens of padding; more than the landmarks and windows of such networks."""
TOLERANCE = 1e-3
"""Largest difference between kernels, relative to the mean size of the hidden states."""


def try_out(denoiser: nn.Module, max_length: int, vocab_size: int, pad_id: int | None) -> None:
    """Refuse a network whose output is not finite, not deterministic, or depends on the padding of its row.

    With such output, samples and scores are noise or depend on the batch.

    Args:
        denoiser: a denoiser over tokens, on its device.
        max_length, vocab_size: limits of the network.
        pad_id: padding token; None: token 0.

    Raises:
        UserError: naming the families that work.
    """
    name = type(denoiser.network).__name__
    for length in (SHORT, LONG):
        if length > max_length:
            return
        alone = _hidden(denoiser, length, length, vocab_size, pad_id or 0)
        if not denoiser.decode(alone[:, :SHORT]).isfinite().all():
            raise UserError(f"{name}: its output on {SHORT} tokens is not finite; give weights that are not damaged")
        again = _hidden(denoiser, length, length, vocab_size, pad_id or 0)
        if (again - alone).abs().max() > TOLERANCE * alone.abs().mean():
            raise UserError(f"{name}: its output on the same tokens varies; use one of {FAMILIES}")
        width = min(length + PADDING, max_length)
        for fill in (pad_id or 0, (pad_id or 0) + 1):  # the embedding of [PAD] may be zero before training
            padded = _hidden(denoiser, length, width, vocab_size, fill)[:, :length]
            if (padded - alone).abs().max() > TOLERANCE * alone.abs().mean():
                raise UserError(
                    f"{name}: its output at a token depends on the padding after it, so samples and bounds would "
                    f"depend on the batch; use one of {FAMILIES}"
                )


@torch.no_grad()
def _hidden(denoiser: nn.Module, length: int, width: int, vocab_size: int, fill: int) -> Tensor:
    """Return the hidden states of a sentence padded to `width` tokens, [1, width, D]."""
    network: nn.Module = denoiser.network
    device, training = network.device, network.training
    xt = torch.full((1, width), fill % vocab_size, device=device)
    xt[0, :length] = torch.arange(length, device=device) % vocab_size
    attended = torch.arange(width, device=device)[None] < length
    network.eval()
    try:
        return denoiser.encode(xt, torch.ones(1, dtype=torch.long, device=device), attended)
    except UserError:
        raise
    except Exception as error:  # an unsupported network may raise any type
        raise UserError(f"{type(network).__name__} cannot read a row of {width} tokens: {first_line(error)}") from error
    finally:
        network.train(training)
