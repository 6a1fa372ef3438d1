"""row_clocks.py: samples follow p_theta exactly, and the number of forward passes is as stated."""

import math
from functools import partial

import pytest
import torch
from scipy.stats import chisquare
from torch import Generator, Tensor

from benchmarks import matrix_formulation
from data.batch import Batch
from diffusion.masked import row_clocks
from diffusion.masked.row_clocks import ContinuousClock, RowClocks, WindowClock
from diffusion.options import SampleArgs, step_windows
from diffusion_word_freq import WordFreqDiffusion
from tests.conftest import TableDenoiser, all_sentences, text_batch
from tests.toy_process import MASK, SCHEDULES, SPINDLES, make

N, V, AT_ONCE = 100_000, 5, 20_011
HARD = {"temperature": 0.7, "top_k": 3}


class TimedDenoiser(TableDenoiser):
    """Denoiser whose predictions depend on the time input."""

    time_conditioned = True

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits that differ at every t."""
        return super().encode(xt, t, attention_mask) + torch.sin(t[:, None, None] * 1.7 + torch.arange(V))


class Counting(TableDenoiser):
    """Denoiser that counts encoded rows and decoded positions."""

    def __init__(self, vocab_size: int = V) -> None:
        super().__init__(vocab_size)
        self.rows: list[int] = []
        self.decoded = 0

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        """Count the rows."""
        self.rows.append(len(xt))
        return super().encode(xt, t, attention_mask)

    def decode(self, hidden: Tensor) -> Tensor:
        """Count the positions."""
        self.decoded += len(hidden)
        return hidden


def law_of(process: WordFreqDiffusion, denoiser: TableDenoiser, batch: Batch, args: SampleArgs) -> Tensor:
    """Return the probability of every value of a one-row batch's targets, by propagating all states."""
    targets = batch.target_mask[0].nonzero()[:, 0]
    values = all_sentences(list(range(V)), len(targets))
    many = batch.rows(torch.zeros(len(values), dtype=torch.long))
    states = many.input_ids.clone()
    states[:, targets] = values
    law = values.eq(MASK).all(1).double()
    for window in step_windows(process.num_steps, int(args.num_steps)):
        t, s = (torch.full((len(states),), step) for step in window)
        pi = matrix_formulation.predictions(denoiser, states, t, many, process.sampling_support, args)
        step = matrix_formulation.reverse_law(process, pi, states, s, t, many.target_mask)
        moves = torch.ones(len(states), 1, dtype=torch.float64)
        for i in targets:
            moves = (moves[:, :, None] * step[:, i, None, :]).flatten(1)  # in the order of all_sentences
        law = law @ moves
    return law


def agrees(drawn: Tensor, batch: Batch, law: Tensor) -> bool:
    """Test N rows against a distribution over the values of their targets, by chi-square."""
    assert torch.equal(drawn[~batch.target_mask], batch.input_ids[~batch.target_mask])
    values = drawn[batch.target_mask].view(len(drawn), -1)
    digit = V ** torch.arange(values.shape[1] - 1, -1, -1)
    counts = torch.bincount((values * digit).sum(1), minlength=len(law)).double()
    possible = law > 1e-9
    assert counts[~possible].sum() == 0 and law[possible].sum().item() == pytest.approx(1)
    expected = law[possible] / law[possible].sum() * len(drawn)
    return chisquare(counts[possible].numpy(), expected.numpy()).pvalue > 1e-3


def conditioned(n: int) -> Batch:
    """Return n rows of three targets around a given token, with one token of padding."""
    given = torch.tensor([[0, 2, 0, 0, 4]]).expand(n, -1)
    attended = torch.tensor([[True, True, True, True, False]]).expand(n, -1)
    return Batch(given, attended, torch.tensor([[True, False, True, True, False]]).expand(n, -1))


BATCHES = {"text": lambda n: text_batch(torch.zeros(n, 3, dtype=torch.long)), "conditioned": conditioned}
SAMPLERS = {
    "row clocks": lambda process, *rest: process.sample(*rest, rows_at_once=AT_ONCE),
    "plain ancestral": matrix_formulation.sample,
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    ("spindle", "schedule", "num_steps", "windows", "filters", "data"),
    [
        ("none", "mutual", 6, 6, {}, "text"),
        ("none", "cosine", 16, 5, HARD, "conditioned"),
        ("paper", "mutual", 6, 6, {}, "text"),
        ("paper", "mutual", 64, 64, HARD, "text"),
        ("paper", "cosine", 16, 5, {"top_p": 0.8}, "conditioned"),
        ("released", "linear", 8, 3, {}, "conditioned"),
    ],
)
@pytest.mark.slow
def test_the_joint_law_is_that_of_ancestral_sampling(
    sampler: str, spindle: str, schedule: str, num_steps: int, windows: int, filters: dict, data: str
) -> None:
    process, args = make(num_steps, spindle, schedule=schedule), SampleArgs(num_steps=windows, **filters)
    law, batch = law_of(process, TableDenoiser(V), BATCHES[data](1), args), BATCHES[data](N)
    assert agrees(SAMPLERS[sampler](process, TableDenoiser(V), batch, args), batch, law)


@pytest.mark.parametrize("spindle", ["none", "paper"])
@pytest.mark.parametrize("data", BATCHES)
@pytest.mark.slow
def test_infinitely_many_steps_are_the_limit_of_finer_ones(spindle: str, data: str) -> None:
    """At n windows the distribution is the limit + O(1/n); extrapolation from 512 and 1024 gives six digits."""

    def law(n: int) -> Tensor:
        return law_of(make(n, spindle), TableDenoiser(V), BATCHES[data](1), SampleArgs(num_steps=n, **HARD))

    args, batch = SampleArgs(num_steps=math.inf, **HARD), BATCHES[data](N)
    drawn = make(4, spindle).sample(TableDenoiser(V), batch, args, rows_at_once=AT_ONCE)
    assert agrees(drawn, batch, (2 * law(1024) - law(512)).clamp(min=0))
    assert not agrees(drawn, batch, law(4))


@pytest.mark.parametrize("spindle", ["none", "paper"])
def test_a_time_conditioned_network_receives_the_time_of_its_window(spindle: str) -> None:
    process, args = make(16, spindle), SampleArgs(num_steps=5)
    law, batch = law_of(process, TimedDenoiser(V), BATCHES["text"](1), args), BATCHES["text"](N)
    assert agrees(process.sample(TimedDenoiser(V), batch, args), batch, law)
    assert not agrees(process.sample(TableDenoiser(V), batch, args), batch, law)


# ---- clocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("spindle", ["paper", "released"])
@pytest.mark.parametrize("lam", [0.1, 0.3, 3.0])
def test_acceptance_is_at_most_one_and_one_for_the_fastest_token(schedule: str, spindle: str, lam: float) -> None:
    process = make(256, spindle, lam=lam, schedule=schedule)
    h = torch.linspace(-1, 1, 101, dtype=torch.float64) * process.schedule.largest_h
    for clock, moments in (
        (WindowClock(process, 256), torch.arange(1, 257)),
        (WindowClock(process, 7), torch.arange(1, 8)),
        (ContinuousClock(process), torch.linspace(1e-9, 20, 200, dtype=torch.float64)),
    ):
        for moment in moments[:: max(1, len(moments) // 32)]:
            odds = clock.acceptance(moment.expand_as(h), h)
            assert (odds >= 0).all() and (odds <= 1 + 1e-6).all() and odds[0].item() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_spindle_windows_are_drawn_by_their_share_of_the_schedule(schedule: str) -> None:
    process = make(40, "none", schedule=schedule)
    clock = WindowClock(process, 7)
    u = torch.rand(N, dtype=torch.float64)
    window = clock.next(torch.zeros(N, dtype=torch.float64), row_clocks.exponential(u)).long()
    share = process.schedule.base[clock.s] - process.schedule.base[clock.t]
    assert chisquare(torch.bincount(window - 1, minlength=7).numpy(), (share * N).numpy()).pvalue > 1e-3


def test_after_a_rejection_the_largest_hazard_continues_from_its_window() -> None:
    """After window 3, the next proposal follows the maximum hazard and is always later."""
    clock = WindowClock(make(16), 8)
    following = clock.next(
        torch.full((N,), 3.0, dtype=torch.float64), row_clocks.exponential(torch.rand(N, dtype=torch.float64))
    )
    survives = torch.cat([torch.ones(1), (1 - clock.max_reveal[3:]).cumprod(0)])
    law = survives[:-1] * clock.max_reveal[3:]
    assert following.min() == 4
    assert chisquare(torch.bincount(following.long() - 4, minlength=5).numpy(), (law * N).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("spindle", SPINDLES)
def test_the_continuous_clock_inverts_the_largest_hazard(spindle: str) -> None:
    process = make(8, spindle)
    clock, moment = ContinuousClock(process), torch.linspace(1e-6, 15, 100, dtype=torch.float64)
    fastest = torch.full_like(moment, row_clocks.fastest_mark(process.thinning))
    alpha_bar = process.schedule.alpha_bar_at(clock.level(moment), fastest)
    torch.testing.assert_close(-torch.log1p(-alpha_bar), moment, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("spindle", SPINDLES)
def test_the_reveal_rate_is_the_limit_of_the_reveal_probability(spindle: str) -> None:
    process = make(1_000_000, spindle)
    h = torch.tensor([-0.9, 0.0, 0.4], dtype=torch.float64) * (0 if not process.token_dependent else 1)
    for t in (900_000, 500_000, 20_000):
        at = torch.tensor(t)
        rate = process.schedule.reveal_probability(at - 1, at, h) / (
            process.schedule.base[t - 1] - process.schedule.base[t]
        )
        torch.testing.assert_close(process.schedule.hazard(process.schedule.base[t], h), rate, rtol=1e-3, atol=0)


def test_the_time_of_a_clock_is_the_step_of_its_window() -> None:
    process = make(12, "none", schedule="cosine")
    assert WindowClock(process, 4).time(torch.tensor([1.0, 2.0, 4.0])).tolist() == [12, 9, 3]
    for t in range(1, 13):  # the continuous clock returns the step in which the level lies
        level = (process.schedule.base[t] + process.schedule.base[t - 1]) / 2
        assert ContinuousClock(process).time(-torch.log1p(-level)[None]).tolist() == [t]


# ---- cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spindle", "num_steps", "most"),
    [("none", 1000, 130), ("paper", 1000, 135), ("none", math.inf, 128), ("paper", math.inf, 128)],
)
@pytest.mark.slow
def test_forward_passes_are_as_many_as_the_most_moments_of_a_row(spindle: str, num_steps: float, most: int) -> None:
    denoiser, process = Counting(), make(1000, spindle)
    drawn = process.sample(
        denoiser, text_batch(torch.zeros(64, 128, dtype=torch.long)), SampleArgs(num_steps=num_steps)
    )
    assert 100 < len(denoiser.rows) <= most and not drawn.eq(MASK).any()
    if math.isinf(num_steps):
        assert denoiser.rows == [64] * 128
    if spindle == "none":
        assert denoiser.decoded == 64 * 128


def test_the_batch_stays_full_until_no_row_waits() -> None:
    denoiser = Counting()
    make(32, "paper").sample(
        denoiser, text_batch(torch.zeros(40, 6, dtype=torch.long)), SampleArgs(num_steps=32), rows_at_once=8
    )
    assert max(denoiser.rows) == 8 and denoiser.rows == sorted(denoiser.rows, reverse=True)
    assert sum(denoiser.rows) <= 40 * 6  # at most one forward pass per token
    assert 8 * denoiser.rows.count(8) >= 0.7 * sum(denoiser.rows)


@pytest.mark.parametrize("spindle", ["none", "paper"])
@pytest.mark.parametrize("num_steps", [16, math.inf])
def test_a_row_with_its_own_stream_does_not_depend_on_the_others(spindle: str, num_steps: float) -> None:
    process, batch = make(64, spindle), BATCHES["conditioned"](33)
    draw = partial(process.sample, TableDenoiser(V), args=SampleArgs(num_steps=num_steps, **HARD))

    def streams() -> list[Generator]:
        return [Generator().manual_seed(i) for i in range(33)]

    whole = draw(batch, generator=streams())
    for size in (1, 7, 32):
        assert torch.equal(draw(batch, generator=streams(), rows_at_once=size), whole)
    alone = draw(batch.rows(slice(5, 6)), generator=streams()[5:6])
    assert torch.equal(alone, whole[5:6]) and len(whole.unique(dim=0)) > 5


def test_every_row_is_reported_once_when_it_is_finished() -> None:
    finished: list[int] = []

    def on_step(rows: Tensor, xt: Tensor) -> None:
        finished.extend(rows.tolist())
        assert not xt[finished].eq(MASK).any()
        waiting = [i for i in range(20) if i not in finished]
        assert xt[waiting].eq(MASK).any(1).all()

    batch = BATCHES["text"](20)
    nothing_to_do = Batch(batch.input_ids, batch.attention_mask, batch.target_mask & (torch.arange(20) != 7)[:, None])
    drawn = make(16).sample(TableDenoiser(V), nothing_to_do, SampleArgs(num_steps=16), rows_at_once=6)
    assert drawn[7].tolist() == [0, 0, 0]
    make(16).sample(TableDenoiser(V), batch, SampleArgs(num_steps=16), rows_at_once=6, on_step=on_step)
    assert sorted(finished) == list(range(20))


def test_padding_of_finished_rows_is_not_computed() -> None:
    widths = []

    class Watching(TableDenoiser):
        def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
            widths.append(xt.shape[1])
            return super().encode(xt, t, attention_mask)

    attended = torch.arange(9) < torch.tensor([9, 9, 3, 3])[:, None]
    batch = Batch(torch.zeros(4, 9, dtype=torch.long), attended, attended)
    RowClocks(make(8), Watching(V), batch, SampleArgs(num_steps=8)).run(2)
    assert widths[0] == 9 and widths[-1] == 3
