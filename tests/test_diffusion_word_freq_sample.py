"""The sampler of diffusion_word_freq.py: complete samples, given tokens, temperature, excluded tokens."""

import itertools

import pytest
import torch
from torch import Tensor

from data.batch import Batch
from diffusion.options import SampleArgs
from diffusion.process import Vocabulary
from diffusion.process_options import WordFreqArgs
from diffusion_word_freq import WordFreqDiffusion
from tests.conftest import TableDenoiser, text_batch
from tests.toy_process import COUNTS, MASK, SPINDLES, every, make


@pytest.mark.parametrize("spindle", SPINDLES)
@pytest.mark.parametrize("num_windows", [1, 3, 7, 16])
def test_samples_contain_no_mask_and_keep_the_given_tokens(spindle: str, num_windows: int) -> None:
    process = make(num_steps=16, spindle=spindle)
    target = torch.tensor([[False, True, True, True, False]]).expand(64, -1)
    batch = Batch(torch.tensor([[2, 4, 4, 4, 1]]).expand(64, -1), every(target), target)
    states: list[Tensor] = []
    drawn = process.sample(
        TableDenoiser(5),
        batch,
        SampleArgs(num_steps=num_windows, temperature=0.1, top_k=2, top_p=0.5),
        on_step=lambda finished, xt: states.append(xt.clone()),
    )
    assert not drawn.eq(MASK).any()
    assert torch.equal(drawn[~target], batch.input_ids[~target])
    assert len(states) <= num_windows and torch.equal(states[-1], drawn)
    for earlier, later in itertools.pairwise(states):
        revealed = ~earlier.eq(MASK)
        assert torch.equal(earlier[revealed], later[revealed])


def test_temperature_acts_on_the_prediction_not_on_the_reveal_times() -> None:
    """The released code applies temperature to the posterior, whose mode is [MASK]: 0.1 delays almost every reveal."""
    process, batch = make(num_steps=16, spindle="none"), text_batch(torch.zeros(500, 8, dtype=torch.long))
    hidden, drawn = {}, {}
    for temperature in (1.0, 0.1):
        masks: list[Tensor] = []
        streams = [torch.Generator().manual_seed(i) for i in range(500)]
        args = SampleArgs(num_steps=16, temperature=temperature)
        drawn[temperature] = process.sample(
            TableDenoiser(5),
            batch,
            args,
            generator=streams,
            on_step=lambda finished, xt, masks=masks: masks.append(xt.eq(MASK)),
        )
        hidden[temperature] = torch.stack(masks)
    assert torch.equal(hidden[0.1], hidden[1.0]) and not torch.equal(drawn[0.1], drawn[1.0])


def test_excluded_tokens_are_never_predicted_and_unsampled_ones_never_drawn() -> None:
    args = WordFreqArgs(num_steps=4)
    process = WordFreqDiffusion(args, COUNTS, Vocabulary(len(COUNTS), MASK, excluded_ids=(0,), unsampled_ids=(1,)))
    drawn = process.sample(
        TableDenoiser(5), text_batch(torch.zeros(2000, 3, dtype=torch.long)), SampleArgs(num_steps=4)
    )
    assert set(drawn.unique().tolist()) == {2, 4}
    bound = process.bound(TableDenoiser(5), text_batch(torch.tensor([[1, 2, 4]])), 4).total
    assert bound.isfinite().all()


@pytest.mark.parametrize("spindle", SPINDLES)
def test_the_last_step_reveals_every_remaining_mask(spindle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the largest uniform number every proposal falls in the last window and is accepted there."""
    nearly_one = torch.tensor(1 - 2.0**-53, dtype=torch.float64)
    monkeypatch.setattr("diffusion.masked.row_clocks.uniform", lambda where, *_, **__: nearly_one.expand(where.shape))
    states: list[Tensor] = []
    process, batch = make(num_steps=8, spindle=spindle), text_batch(torch.randint(0, 3, (400, 6)))
    args = SampleArgs(num_steps=8)
    process.sample(TableDenoiser(5), batch, args, on_step=lambda finished, xt: states.append(xt.clone()))
    assert len(states) == 1 and not states[0].eq(MASK).any()
