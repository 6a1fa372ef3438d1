"""Properties of every masked process: the bound is valid, and samples follow the enumerated distribution."""

import math

import pytest
import torch

from diffusion.masked.process import MaskedProcess
from diffusion.options import BoundArgs, SampleArgs
from tests.conftest import TableDenoiser, all_sentences, text_batch
from tests.diffusion.masked.test_row_clocks import AT_ONCE, N, agrees
from tests.toy_family import PROCESSES, Timed, V, d3pm, exact_bound, law_of_steps, limit_bound, mdlm, patterns, sedd
from tests.toy_process import MASK, TOKENS, make
from utils.errors import UserError

X0 = torch.tensor([0, 2, 1])
NEVER = torch.zeros((), dtype=torch.float64)


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("name", PROCESSES)
def test_exp_of_minus_the_bound_sums_to_at_most_one(name: str, timed: bool) -> None:
    """Any upper bound on -log p has this property."""
    process, denoiser = PROCESSES[name](), (Timed if timed else TableDenoiser)(V)
    for number in (1, 4, 12):
        bounds = [exact_bound(process, denoiser, x0, number) for x0 in all_sentences(TOKENS, 2)]
        assert sum(math.exp(-bound) for bound in bounds) <= 1 + 1e-9


@pytest.mark.parametrize("name", ["mdlm", "mdlm, 12 steps", "mdlm, cosine", "word_freq", "d3pm, subs_masking"])
def test_the_bound_is_no_less_than_minus_log_p(name: str) -> None:
    process, denoiser, args = PROCESSES[name](), TableDenoiser(V), SampleArgs(num_steps=4)
    law = law_of_steps(process, denoiser, 2, args)
    assert sum(law.values()) == pytest.approx(1)
    for x0 in all_sentences(TOKENS, 2):
        assert exact_bound(process, denoiser, x0, 4) >= -math.log(law[tuple(x0.tolist())]) - 1e-9


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("estimator", [BoundArgs("windows"), BoundArgs("stratified", evaluations=3)])
def test_the_mean_of_the_estimators_is_the_enumerated_bound(name: str, estimator: BoundArgs) -> None:
    process, denoiser = PROCESSES[name](), Timed(V)
    draws = process.bound(denoiser, text_batch(X0.expand(20_000, -1)), 6, estimator).total
    assert abs(draws.mean() - exact_bound(process, denoiser, X0, 6)) < 4 * draws.std() / math.sqrt(len(draws)) + 1e-9


LIMITS = [BoundArgs("masked-count", evaluations=2), BoundArgs("masked-count", evaluations=5), BoundArgs("trajectory")]


@pytest.mark.parametrize("name", ["word_freq", "mdlm", "mdlm, cosine", "mdlm, geometric"])
def test_continuous_time_estimators_have_one_mean_for_every_schedule(name: str) -> None:
    """The common mean is the limit of ever finer windows."""
    process, denoiser = PROCESSES[name](), TableDenoiser(V)
    expected = limit_bound(process, denoiser, X0)
    for args in LIMITS:
        draws = process.bound(denoiser, text_batch(X0.expand(20_000, -1)), math.inf, args).total
        assert abs(draws.mean() - expected) < 4 * draws.std() / math.sqrt(len(draws))
    if name == "mdlm":
        fine = [exact_bound(process, denoiser, X0, n) for n in (64, 128)]
        assert 2 * fine[1] - fine[0] == pytest.approx(expected, rel=1e-3)


def integral(process: MaskedProcess, denoiser: TableDenoiser, x0: torch.Tensor) -> float:
    """Return the bound in continuous time for a network with time input, by Gauss-Legendre over mask rates."""
    from numpy.polynomial.legendre import leggauss

    total, length = 0.0, len(x0)
    for node, weight in zip(*leggauss(24), strict=True):
        rate = (node + 1) / 2
        t = process.schedule.time_at(torch.tensor([1 - rate], dtype=torch.float64))
        for masked in patterns(length):
            if k := int(masked.sum()):
                xt = x0.masked_fill(masked, MASK)[None]
                nats = process.token_terms(denoiser, text_batch(x0[None]), xt, t, t, with_kl=False)[1].sum().item()
                total += weight / 2 * rate ** (k - 1) * (1 - rate) ** (length - k) * nats
    return total


@pytest.mark.parametrize("name", ["mdlm", "mdlm, cosine", "sedd"])
def test_in_continuous_time_the_time_input_is_that_of_the_noised_tokens(name: str) -> None:
    process = {**PROCESSES, "sedd": sedd}[name]()
    expected = integral(process, Timed(V), X0)
    assert abs(expected - limit_bound(process, TableDenoiser(V), X0)) > 0.05  # the time input changes the bound
    for evaluations in (1, 4):
        args = BoundArgs("masked-count", evaluations=evaluations)
        draws = process.bound(Timed(V), text_batch(X0.expand(20_000, -1)), math.inf, args).total
        assert abs(draws.mean() - expected) < 4 * draws.std() / math.sqrt(len(draws))
    assert draws.max() < 40  # the weight of a set is at most the number of tokens


def test_diffusionbert_without_spindle_is_mdlm() -> None:
    """Both have the same bound at equal windows and in the limit."""
    denoiser, finest = TableDenoiser(V), make(4096, "none")
    for number in (1, 5, 64):
        one, other = (exact_bound(process, denoiser, X0, number) for process in (finest, mdlm()))
        assert one == pytest.approx(other, rel=1e-3)
    assert limit_bound(finest, denoiser, X0) == limit_bound(mdlm(), denoiser, X0)
    assert exact_bound(make(64, "none"), denoiser, X0, 64) == pytest.approx(exact_bound(mdlm(), denoiser, X0, 64))


HARD = {"temperature": 0.7, "top_k": 3}


@pytest.mark.parametrize(
    ("name", "sampler", "windows", "filters", "timed"),
    [
        ("mdlm", "row-clocks", 5, {}, False),
        ("mdlm", "ancestral", 5, HARD, True),
        ("mdlm", "cached", 6, {}, False),
        ("mdlm, cosine", "row-clocks", 4, HARD, True),
        ("mdlm, geometric", "cached", 4, {}, False),
        ("word_freq", "ancestral", 6, {"top_p": 0.8}, False),
        ("d3pm", "auto", 6, {}, True),
        ("d3pm", "row-clocks", 5, HARD, False),
        ("d3pm, cosine", "row-clocks", 3, {}, False),
        ("d3pm", "ancestral", 6, {}, True),
        ("d3pm", "cached", 4, {}, False),
        ("d3pm, subs_masking", "ancestral", 3, HARD, False),
        ("sedd", "auto", 5, {}, True),
        ("sedd", "cached", 4, HARD, False),
        ("mdlm", "cached", 4, {}, True),
        ("sedd", "cached", 4, {}, True),
    ],
)
@pytest.mark.slow
def test_samples_follow_the_enumerated_law(name: str, sampler: str, windows: int, filters: dict, timed: bool) -> None:
    process, denoiser = {**PROCESSES, "sedd": sedd}[name](), (Timed if timed else TableDenoiser)(V)
    args = SampleArgs(num_steps=windows, sampler=sampler, **filters)
    law = law_of_steps(process, denoiser, 3, args)
    order = torch.tensor([law.get(tuple(x), 0.0) for x in all_sentences(list(range(V)), 3).tolist()])
    batch = text_batch(torch.zeros(N, 3, dtype=torch.long))
    assert agrees(process.sample(denoiser, batch, args, rows_at_once=AT_ONCE), batch, order.double())


@pytest.mark.slow
def test_infinitely_many_steps_draw_one_token_at_a_time() -> None:
    """First hitting: in the limit, MDLM draws tokens one by one in random order."""
    args = SampleArgs(num_steps=math.inf)
    batch = text_batch(torch.zeros(N, 3, dtype=torch.long))
    drawn = mdlm().sample(TableDenoiser(V), batch, args, rows_at_once=AT_ONCE)

    def law(n: int) -> torch.Tensor:
        probabilities = law_of_steps(mdlm(), TableDenoiser(V), 3, SampleArgs(num_steps=n))
        return torch.tensor(
            [probabilities.get(tuple(x), 0.0) for x in all_sentences(list(range(V)), 3).tolist()]
        ).double()

    assert agrees(drawn, batch, (2 * law(64) - law(32)).clamp(min=0))


def test_unsupported_samplers_and_estimators_are_refused() -> None:
    batch, denoiser = text_batch(X0[None]), TableDenoiser(V)
    for process, args, message in (
        (d3pm(), SampleArgs(num_steps=math.inf), "num_steps=inf: this process is sampled in whole steps"),
        (mdlm(), SampleArgs(num_steps=math.inf, sampler="cached"), "num_steps=inf is for sampler=row-clocks"),
        (
            sedd(),
            SampleArgs(sampler="row-clocks"),
            "sampler=row-clocks does not suit this process; it has cached, ancestral",
        ),
        (
            make(8, "paper"),
            SampleArgs(sampler="cached"),
            "sampler=cached does not suit this process; it has row-clocks, confidence",
        ),
        (mdlm(num_steps=4), SampleArgs(num_steps=5), "num_steps=5 must lie in 1..4"),
        (mdlm(), SampleArgs(sampler="euler"), "sampler=euler is for process=score, not a masked process"),
        (make(8, "paper"), SampleArgs(guidance=2.0), "guidance=2 is for process=score, not a masked process"),
    ):
        with pytest.raises(UserError, match=message):
            process.sample(denoiser, batch, args)
    for process, steps, args, message in (
        (make(8, "paper"), math.inf, LIMITS[0], "the bound of this process needs whole steps"),
        (d3pm(), math.inf, LIMITS[1], "the bound of this process needs whole steps"),
        (
            mdlm(),
            math.inf,
            BoundArgs("stratified"),
            "estimator=stratified does not suit this process; with num_steps=inf it has masked-count",
        ),
        (mdlm(), math.inf, BoundArgs("windows"), "estimator=windows does not suit this process"),
        (sedd(), 8, LIMITS[1], "the bound of process=sedd is in continuous time"),
        (
            d3pm(),
            8,
            LIMITS[2],
            "estimator=trajectory does not suit this process; with a number of steps it has windows",
        ),
    ):
        with pytest.raises(UserError, match=message):
            process.bound(denoiser, batch, steps, args)
