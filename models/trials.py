"""What a network is tried for before it is trusted: finite output, and nothing read from its padding."""

import torch
from torch import Tensor, nn

from process import Denoiser, UserError

FAMILIES = "BERT, RoBERTa, XLM-R, CamemBERT, Data2Vec, MPNet, DistilBERT, ModernBERT, ALBERT, ELECTRA and DeBERTa-v2"
"""Networks that `tests/test_bert.py` wraps, trains and pads."""
TOKENS = 5
"""Of the sentence that is tried."""
WIDTH = 70
"""Slots that it is padded to: more than the landmarks or windows of networks that look at blocks of a row."""
CLOSE = 1e-3
"""Difference that kernels may make, as a share of the size of the hidden states."""


def try_out(denoiser: Denoiser, max_length: int, vocab_size: int, pad_id: int | None) -> None:
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
    alone = _hidden(denoiser, TOKENS, vocab_size, pad_id)
    if not denoiser.decode(alone).isfinite().all():
        raise UserError(f"{name}: its output on {TOKENS} tokens is not finite; its weights are damaged, or too large")
    width = min(WIDTH, max_length)
    if width <= TOKENS:
        return
    padded = _hidden(denoiser, width, vocab_size, pad_id)[:, :TOKENS]
    if (padded - alone).abs().max() > CLOSE * alone.abs().mean():
        raise UserError(
            f"{name} reads its padding: its output at a token changes when [PAD]s follow, so samples and bounds would "
            f"depend on the batch; {FAMILIES} do not"
        )


@torch.no_grad()
def _hidden(denoiser: Denoiser, width: int, vocab_size: int, pad_id: int | None) -> Tensor:
    """The hidden states of a sentence in a row of so many slots, [1, width, D], in full precision."""
    network: nn.Module = denoiser.network
    device, training = network.device, network.training
    tokens = torch.arange(TOKENS, device=device) % vocab_size
    xt = torch.full((1, width), (pad_id or 0) % vocab_size, device=device)
    xt[0, :TOKENS] = tokens
    attended = torch.arange(width, device=device)[None] < TOKENS
    network.eval()
    try:
        return denoiser.encode(xt, torch.ones(1, dtype=torch.long, device=device), attended)
    finally:
        network.train(training)
