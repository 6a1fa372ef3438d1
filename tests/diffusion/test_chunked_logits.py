"""chunked_logits.py: parts are whole sentences; scored or trained in parts, figures and gradients stay the same."""

import pytest
import torch
from torch import Tensor, nn

from diffusion.chunked_logits import SENTENCE, slices_of
from tests.conftest import text_batch
from tests.toy_process import make

V = 5


def test_parts_are_whole_sentences_within_a_number_of_positions() -> None:
    def ends(sizes: list[int], at_once: int) -> list[tuple[int, int]]:
        return [(part.start, part.stop) for part in slices_of(sizes, at_once)]

    assert SENTENCE == 5
    assert ends([3, 2, 1, 4], 15) == [(0, 2), (2, 4)]
    # a sentence above the limit is a part of its own
    assert ends([90, 0, 0, 5, 1], 15) == [(0, 1), (1, 3), (3, 4), (4, 5)]
    assert ends([0, 0], 10) == [(0, 2)] and ends([0, 0], 9) == ends([1, 1], 0) == [(0, 1), (1, 2)]


class Head(nn.Module):
    """An embedding and a vocabulary matrix."""

    time_conditioned = False

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Embedding(V, 4), nn.Linear(4, V)

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        """Hidden states of the token and its position alone."""
        return self.body(xt) + torch.arange(xt.shape[1])[:, None] / 7

    def decode(self, hidden: Tensor) -> Tensor:
        """Logits."""
        return self.head(hidden)


@pytest.mark.parametrize("spindle", ["paper", "none"])
def test_a_fused_loss_keeps_no_logits_for_the_gradient(spindle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits of a part are computed twice: once for the loss, once for the gradient."""
    monkeypatch.setattr("diffusion.chunked_logits.MAX_LOGITS", 8 * V)
    batch = text_batch(torch.tensor([[0, 1, 2, 4, 4, 0]]).expand(40, 6))
    kept, gradients, calls = {}, {}, {False: [], True: []}
    for fused in (False, True):
        process, head, sizes = make(16, spindle, fused_loss=fused), Head(), []
        real = head.decode
        monkeypatch.setattr(head, "decode", lambda hidden, f=fused, real=real: (calls[f].append(1), real(hidden))[1])
        head.load_state_dict({n: torch.sin(torch.arange(p.numel())).view_as(p) for n, p in head.named_parameters()})
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: (sizes.append(x.shape), x)[1], lambda x: x
        ):
            loss = process.loss(head, batch, generator=torch.Generator().manual_seed(3))
        before = len(calls[fused])
        loss.total.backward()
        assert len(calls[fused]) == (2 * before if fused else 1)
        kept[fused] = [shape for shape in sizes if shape[-1:] == (V,) and shape[0] > V]
        gradients[fused] = torch.cat([p.grad.flatten() for p in head.parameters()])
    assert kept[False] and not kept[True] and len(calls[True]) > 10
    torch.testing.assert_close(gradients[True], gradients[False], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("spindle", ["paper", "none"])
def test_scoring_in_parts_gives_the_same_bound(spindle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    process, batch, sizes = make(16, spindle), text_batch(torch.tensor([[0, 1, 2, 4, 4, 0]]).expand(40, 6)), []
    head, bounds = Head(), []
    real = head.decode
    monkeypatch.setattr(head, "decode", lambda hidden: (sizes.append(len(hidden)), real(hidden))[1])
    with torch.no_grad():
        for at_once in (10**6, 7 * V):
            monkeypatch.setattr("diffusion.chunked_logits.MAX_LOGITS", at_once)
            bounds.append(process.bound(head, batch, 1, generator=torch.Generator().manual_seed(3)).total)
    torch.testing.assert_close(*bounds, atol=1e-6, rtol=1e-6)
    assert sizes == [240] + [6] * 40
