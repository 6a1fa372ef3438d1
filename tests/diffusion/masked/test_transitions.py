"""transitions.py: marginals, posteriors and corruption of every masked process; padding has no cost."""

import math

import pytest
import torch

from data.batch import Batch
from tests.conftest import TableDenoiser, text_batch
from tests.toy_family import PROCESSES, V
from tests.toy_process import MASK, every

X0 = torch.tensor([0, 2, 1])

NEVER = torch.zeros((), dtype=torch.float64)


@pytest.mark.parametrize("name", PROCESSES)
def test_alpha_bar_falls_from_1_to_0_and_windows_cover_it(name: str) -> None:
    process = PROCESSES[name]()
    for number in (1, 3, 12):
        windows = process.schedule.windows(number)
        t, s = windows.unbind(1)
        assert len(windows) == number and (s < t).all() and torch.equal(s[:-1], t[1:])
        kept = process.schedule.alpha_bar(torch.cat([t, s[-1:]]), torch.zeros(number + 1, dtype=torch.float64))
        assert kept[0] == 0 and kept[-1] == 1 and (kept.diff() > 0).all()
    level = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    if name.startswith("mdlm"):
        found = process.schedule.alpha_bar(process.schedule.time_at(level), torch.zeros_like(level))
        torch.testing.assert_close(found, level, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_posterior_composes_over_windows(name: str) -> None:
    """The probability of staying masked over two windows is the product over both."""
    process = PROCESSES[name]()
    (t, s), (_, r) = process.schedule.windows(12)[3], process.schedule.windows(12)[4]
    stay = [1 - process.schedule.reveal_probability(*pair, NEVER) for pair in ((s, t), (r, s), (r, t))]
    assert (stay[0] * stay[1]).item() == pytest.approx(stay[2].item())


@pytest.mark.parametrize("name", PROCESSES)
def test_corruption_has_the_mask_rate_and_keeps_given_tokens(name: str) -> None:
    process, n = PROCESSES[name](), 40_000
    t = process.schedule.windows(12)[5, 0].expand(n)
    targets = torch.tensor([True, False, True]).expand(n, -1)
    xt = process.corrupt(X0.expand(n, -1), t, targets)
    rate = 1 - process.schedule.alpha_bar(t[0], NEVER).item()
    masked = xt.eq(MASK).double().mean(0)
    assert masked[1] == 0
    for share in masked[[0, 2]].tolist():
        assert abs(share - rate) < 4 * math.sqrt(rate * (1 - rate) / n)


def test_padding_costs_nothing() -> None:
    on = torch.tensor([[True, True, True, False, False]])
    padded = Batch(torch.tensor([[0, 2, 1, 4, 4]]), on, on)
    for name in PROCESSES:
        process = PROCESSES[name]()
        t, s = process.schedule.windows(12)[6:7].unbind(1)
        xt = torch.tensor([[MASK, 2, MASK]])
        plain = process.token_terms(TableDenoiser(V), text_batch(X0[None]), xt, s, t)[0]
        wide = torch.cat([xt, padded.input_ids[:, 3:]], 1)
        torch.testing.assert_close(process.token_terms(TableDenoiser(V), padded, wide, s, t)[0][:, :3], plain)
        assert every(xt).shape == plain.shape
