"""stepwise.py: given tokens stay, rows are independent, and cached hidden states save forward passes.

test_process.py compares the samples of every process with the enumerated distribution.
"""

import pytest
import torch

from data.batch import Batch
from diffusion.options import SampleArgs
from tests.conftest import TableDenoiser, text_batch
from tests.toy_family import V, d3pm, mdlm
from tests.toy_process import MASK


@pytest.mark.parametrize("sampler", ["ancestral", "cached"])
def test_given_tokens_stay_and_rows_do_not_depend_on_their_neighbours(sampler: str) -> None:
    ids = torch.tensor([[0, 2, 1, 4], [4, 1, 0, 0]])
    attended = torch.tensor([[True] * 4, [True, True, True, False]])
    targets = torch.tensor([[True, False, True, True], [True, False, True, False]])
    batch, args = Batch(ids, attended, targets), SampleArgs(num_steps=4, sampler=sampler)

    def streams(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    finished: list[int] = []
    together = mdlm().sample(
        TableDenoiser(V), batch, args, generator=streams(1, 2), on_step=lambda rows, xt: finished.extend(rows.tolist())
    )
    apart = [
        mdlm().sample(TableDenoiser(V), batch.rows(slice(i, i + 1)), args, generator=streams(i + 1)) for i in (0, 1)
    ]
    assert torch.equal(together, torch.cat(apart)) and sorted(finished) == [0, 1]
    assert torch.equal(together[~targets], ids[~targets]) and not together.eq(MASK).any()


def test_the_cached_sampler_runs_the_network_only_on_changed_rows() -> None:
    encoded = []

    class Counting(TableDenoiser):
        def encode(self, xt: torch.Tensor, t: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            encoded.append(len(xt))
            return super().encode(xt, t, attention_mask)

    batch = text_batch(torch.zeros(20, 6, dtype=torch.long))
    for sampler, most in (("ancestral", 20 * 1000), ("cached", 20 * 6)):
        encoded.clear()
        mdlm().sample(Counting(V), batch, SampleArgs(num_steps=1000, sampler=sampler))
        assert sum(encoded) <= most and (sampler == "cached" or sum(encoded) > 20 * 500)


def test_tokens_left_masked_are_drawn_at_the_end() -> None:
    """A network that predicts [MASK] keeps tokens masked to the last step."""

    class PredictsMask(TableDenoiser):
        def encode(self, xt: torch.Tensor, t: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return super().encode(xt, t, attention_mask) + 20 * torch.eye(V)[MASK]

    states: list[int] = []
    drawn = d3pm(num_steps=8).sample(
        PredictsMask(V),
        text_batch(torch.zeros(50, 4, dtype=torch.long)),
        SampleArgs(num_steps=8, sampler="ancestral"),
        on_step=lambda _, xt: states.append(int(xt.eq(MASK).sum())),
    )
    assert len(states) == 9 and states[-2] > 190 and states[-1] == 0 and not drawn.eq(MASK).any()


def test_rows_without_targets_do_not_change() -> None:
    ids, targets = torch.tensor([[0, 1], [2, 4]]), torch.tensor([[False, False], [True, False]])
    batch = Batch(ids, torch.ones_like(targets), targets)
    drawn = mdlm().sample(TableDenoiser(V), batch, SampleArgs(num_steps=3, sampler="ancestral"), rows_at_once=1)
    assert torch.equal(drawn[0], ids[0]) and drawn[1, 1] == 4
