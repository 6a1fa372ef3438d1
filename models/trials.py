"""What a network is tried for before it is trusted: finite output, and nothing read from its padding."""

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.hub import first_line

FAMILIES = "BERT, RoBERTa, XLM-R, CamemBERT, Data2Vec, MPNet, DistilBERT, ModernBERT, ALBERT, ELECTRA and DeBERTa-v2"
"""Networks that `tests/models/test_bert.py` wraps, trains and pads."""
FEW, MANY = 5, 60
"""Tokens of the sentences that are tried: the longer one is longer than a chunk of networks that cut rows,"""
MORE = 65
"""and so is the padding: more than their landmarks and windows."""
CLOSE = 1e-3
"""Difference that kernels may make, as a share of the size of the hidden states."""


def try_out(denoiser: nn.Module, max_length: int, vocab_size: int, pad_id: int | None) -> None:
    """Refuse a network that makes no numbers, or whose output at a token depends on the padding of its row.

    Of the one every sample and score would be noise; of the other they would depend on the batch.

    Args:
        denoiser: of tokens, on its device.
        max_length, vocab_size: of the network.
        pad_id: what it is padded with; None: token 0.

    Raises:
        UserError: with the families that work.
    """
    name = type(denoiser.network).__name__
    for length in (FEW, MANY):
        if length > max_length:
            return
        alone = _hidden(denoiser, length, length, vocab_size, pad_id or 0)
        if not denoiser.decode(alone[:, :FEW]).isfinite().all():
            raise UserError(f"{name}: its output on {FEW} tokens is not finite; its weights are damaged, or too large")
        again = _hidden(denoiser, length, length, vocab_size, pad_id or 0)
        if (again - alone).abs().max() > CLOSE * alone.abs().mean():
            raise UserError(f"{name}: the same tokens give another output every time; {FAMILIES} work")
        width = min(length + MORE, max_length)
        for fill in (pad_id or 0, (pad_id or 0) + 1):  # the row of [PAD] may be zero before it is trained
            padded = _hidden(denoiser, length, width, vocab_size, fill)[:, :length]
            if (padded - alone).abs().max() > CLOSE * alone.abs().mean():
                raise UserError(
                    f"{name} reads its padding: its output at a token changes when [PAD]s follow, so samples and "
                    f"bounds would depend on the batch; {FAMILIES} do not"
                )


@torch.no_grad()
def _hidden(denoiser: nn.Module, length: int, width: int, vocab_size: int, fill: int) -> Tensor:
    """The hidden states of a sentence in a row of so many slots, [1, width, D]."""
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
    except Exception as error:  # what it needs of a row, it says in any way it likes
        raise UserError(f"{type(network).__name__} cannot read a row of {width} tokens: {first_line(error)}") from error
    finally:
        network.train(training)
