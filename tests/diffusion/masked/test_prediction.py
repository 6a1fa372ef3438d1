"""prediction.py: its sums and its gradient are those of the formulas, multiplied out over [B, L, V]."""

import math

import pytest
import torch
from torch import Tensor, nn

from benchmarks import matrix_formulation
from data.batch import Batch
from diffusion.chunked_logits import SENTENCE, cut
from diffusion.masked.warm_start import masked_lm_loss
from tests.conftest import TableDenoiser, text_batch
from tests.toy_process import MASK, make, steps

V = 5


class Learner(nn.Module):
    """Logits that can be learnt, one for every position and token."""

    time_conditioned = False

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self.logits = nn.Parameter(3 * torch.randn(*shape, V, dtype=dtype))

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        """As they stand."""
        return self.logits

    def decode(self, hidden: Tensor) -> Tensor:
        """The identity, as a tensor that may be changed."""
        return hidden.clone()


def case(dtype: torch.dtype) -> tuple[Learner, Batch, Tensor]:
    """Four sentences with a given token, some padding, and some targets masked; in one sentence none, in one all."""
    x0 = torch.tensor([[0, 1, 2, 4, 4, 0], [2, 2, 0, 0, 1, 4], [4, 0, 1, 1, 0, 0], [0, 0, 2, 1, 4, 4]])
    on = torch.arange(6) < torch.tensor([6, 6, 4, 5])[:, None]
    targets = on & (torch.arange(6) > 0)
    masked = torch.tensor([[0, 1, 0, 1, 0, 1], [0] * 6, [0, 1, 1, 1, 0, 0], [0, 0, 1, 0, 1, 0]]).bool()
    return Learner(x0.shape, dtype), Batch(x0, on, targets), x0.masked_fill(masked & targets, MASK)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("spindle", ["paper", "released", "none"])
@pytest.mark.parametrize("hybrid", [0.0, 0.3])
@pytest.mark.parametrize("fused", [False, True])
def test_loss_and_gradient_are_those_of_the_formulas(
    dtype: torch.dtype, tolerance: float, spindle: str, hybrid: float, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusion.chunked_logits.LOGITS_AT_ONCE", 5 * V)
    process = make(16, spindle)
    process.fused_loss = fused
    learner, batch, xt = case(dtype)
    for s, t in ((8, 9), (0, 1), (3, 16)):
        found = []
        for terms in (process.token_terms, lambda *rest: matrix_formulation.terms_at(process, *rest)):
            kl, cross_entropy = terms(learner, batch, xt, steps(4, s), steps(4, t))
            (gradient,) = torch.autograd.grad(kl.sum() + hybrid * cross_entropy.sum(), learner.logits)
            found.append((kl.detach().double(), cross_entropy.detach().double(), gradient))
        for mine, reference in zip(*found, strict=True):
            torch.testing.assert_close(mine, reference, atol=tolerance, rtol=tolerance)
        assert found[0][2].abs().max() > 1e-3


def test_parts_are_whole_sentences_of_so_many_positions() -> None:
    def ends(sizes: list[int], at_once: int) -> list[tuple[int, int]]:
        return [(part.start, part.stop) for part in cut(sizes, at_once)]

    assert SENTENCE == 5
    assert ends([3, 2, 1, 4], 15) == [(0, 2), (2, 4)]
    assert ends([90, 0, 0, 5, 1], 15) == [(0, 1), (1, 3), (3, 4), (4, 5)]  # what is too large is a part of its own
    assert ends([0, 0], 10) == [(0, 2)] and ends([0, 0], 9) == ends([1, 1], 0) == [(0, 1), (1, 2)]


class Head(nn.Module):
    """An embedding and a vocabulary matrix."""

    time_conditioned = False

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Embedding(V, 4), nn.Linear(4, V)

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        """Of the token and its place alone."""
        return self.body(xt) + torch.arange(xt.shape[1])[:, None] / 7

    def decode(self, hidden: Tensor) -> Tensor:
        """Logits."""
        return self.head(hidden)


@pytest.mark.parametrize("spindle", ["paper", "none"])
def test_fused_keeps_no_logits_for_the_gradient(spindle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusion.chunked_logits.LOGITS_AT_ONCE", 8 * V)
    batch = text_batch(torch.tensor([[0, 1, 2, 4, 4, 0]]).expand(40, 6))
    kept, gradients = {}, {}
    for fused in (False, True):
        process, head, sizes = make(16, spindle), Head(), []
        process.fused_loss = fused
        head.load_state_dict({n: torch.sin(torch.arange(p.numel())).view_as(p) for n, p in head.named_parameters()})
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: (sizes.append(x.shape), x)[1], lambda x: x
        ):
            loss = process.loss(head, batch, generator=torch.Generator().manual_seed(3))
        loss.total.backward()
        kept[fused] = [shape for shape in sizes if shape[-1:] == (V,) and shape[0] > V]
        gradients[fused] = torch.cat([p.grad.flatten() for p in head.parameters()])
    assert kept[False] and not kept[True]
    torch.testing.assert_close(gradients[True], gradients[False], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("spindle", ["paper", "none"])
def test_scoring_in_parts_scores_the_same(spindle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    process, batch, sizes = make(16, spindle), text_batch(torch.tensor([[0, 1, 2, 4, 4, 0]]).expand(40, 6)), []
    head, bounds = Head(), []
    real = head.decode
    monkeypatch.setattr(head, "decode", lambda hidden: (sizes.append(len(hidden)), real(hidden))[1])
    with torch.no_grad():
        for at_once in (10**6, 7 * V):
            monkeypatch.setattr("diffusion.chunked_logits.LOGITS_AT_ONCE", at_once)
            bounds.append(process.nll_bound(head, batch, 1, generator=torch.Generator().manual_seed(3)))
    torch.testing.assert_close(*bounds, atol=1e-6, rtol=1e-6)
    assert sizes == [240] + [6] * 40


def test_the_mean_is_learnt_through() -> None:
    """A masked token's gradient depends on its neighbours' predictions: they share the sentence mean."""
    process = make(16, "paper")
    learner, batch, xt = case(torch.float64)

    def gradient_at_first() -> Tensor:
        kl, _ = process.token_terms(learner, batch, xt, steps(4, 8), steps(4, 9))
        return torch.autograd.grad(kl[0, 1], learner.logits)[0][0]

    before = gradient_at_first()
    assert before[3].abs().max() > 1e-6 and before[2].abs().max() == 0  # position 3 is masked, position 2 is not
    with torch.no_grad():
        learner.logits[0, 3] += torch.tensor([2.0, 0, 0, 0, 0])
    assert not torch.allclose(before[1], gradient_at_first()[1])


# ---- the warm start -------------------------------------------------------------------------------------------------


def test_masked_lm_loss_weighs_a_token_one_in_expectation() -> None:
    """With a network that gives every token the same loss c, the expected total is c per target token."""
    denoiser = TableDenoiser(5, scale=0.0)  # uniform over 5 tokens: log 5 each
    batch = text_batch(torch.zeros(4000, 6, dtype=torch.long))
    loss = masked_lm_loss(make(64), denoiser, batch, rates=(0.1, 0.4))
    assert int(loss.num_tokens) == 24_000
    assert loss.total.item() / 24_000 == pytest.approx(math.log(5), rel=0.03)


def test_masked_lm_loss_tells_the_network_the_time_of_its_mask_rate() -> None:
    seen = []

    class Listener(TableDenoiser):
        def encode(self, xt: torch.Tensor, t: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            seen.extend(t.tolist())
            return super().encode(xt, t, attention_mask)

    batch = text_batch(torch.zeros(200, 6, dtype=torch.long))
    masked_lm_loss(make(1000), Listener(5), batch, rates=(0.1, 0.4))
    assert min(seen) in range(100, 110) and max(seen) in range(390, 401) and len(set(seen)) > 100


def test_masked_lm_loss_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusion.chunked_logits.LOGITS_AT_ONCE", 8 * V)
    batch, found = text_batch(torch.tensor([[0, 1, 2, 4, 4, 0]]).expand(40, 6)), []
    for fused in (False, True):
        head = Head()
        head.load_state_dict({n: torch.sin(torch.arange(p.numel())).view_as(p) for n, p in head.named_parameters()})
        loss = masked_lm_loss(
            make(64), head, batch, rates=(0.3, 0.9), fused=fused, generator=torch.Generator().manual_seed(3)
        )
        loss.total.backward()
        found.append(torch.cat([loss.total.detach()[None], *(p.grad.flatten() for p in head.parameters())]))
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-5)
