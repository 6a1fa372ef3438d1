"""warm_start.py: masked language modelling at drawn mask rates; a token has weight one in expectation."""

import math

import pytest
import torch

from diffusion.masked.warm_start import masked_lm_loss
from tests.conftest import TableDenoiser, text_batch
from tests.diffusion.test_chunked_logits import Head, V
from tests.toy_process import make


def test_a_token_of_masked_lm_loss_has_weight_one_in_expectation() -> None:
    """With a network that gives every token the same loss c, the expected total is c per target token."""
    denoiser = TableDenoiser(5, scale=0.0)  # uniform over 5 tokens: log 5 each
    batch = text_batch(torch.zeros(4000, 6, dtype=torch.long))
    loss = masked_lm_loss(make(64), denoiser, batch, rates=(0.1, 0.4))
    assert int(loss.num_tokens) == 24_000
    assert loss.total.item() / 24_000 == pytest.approx(math.log(5), rel=0.03)


def test_masked_lm_loss_passes_the_time_of_the_mask_rate_to_the_network() -> None:
    seen = []

    class Recording(TableDenoiser):
        def encode(self, xt: torch.Tensor, t: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            seen.extend(t.tolist())
            return super().encode(xt, t, attention_mask)

    batch = text_batch(torch.zeros(200, 6, dtype=torch.long))
    masked_lm_loss(make(1000), Recording(5), batch, rates=(0.1, 0.4))
    assert min(seen) in range(100, 110) and max(seen) in range(390, 401) and len(set(seen)) > 100


def test_masked_lm_loss_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusion.chunked_logits.MAX_LOGITS", 8 * V)
    batch, results = text_batch(torch.tensor([[0, 1, 2, 4, 4, 0]]).expand(40, 6)), []
    for fused in (False, True):
        head = Head()
        head.load_state_dict({n: torch.sin(torch.arange(p.numel())).view_as(p) for n, p in head.named_parameters()})
        loss = masked_lm_loss(
            make(64), head, batch, rates=(0.3, 0.9), fused=fused, generator=torch.Generator().manual_seed(3)
        )
        loss.total.backward()
        results.append(torch.cat([loss.total.detach()[None], *(p.grad.flatten() for p in head.parameters())]))
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-5)
