"""sedd.py: recorded score entropies and analytic steps of the released SEDD; with normalised scores it is MDLM."""

import math

import pytest
import torch

from diffusion.draws import Share
from diffusion.masked.noise_schedules import geometric
from diffusion.masked.sedd import SeddDiffusion
from diffusion.options import BoundArgs, SampleArgs
from diffusion.process import Vocabulary
from diffusion.process_options import SeddArgs
from diffusion.time_density import UNIFORM, TimeDensity
from tests.conftest import TableDenoiser, all_sentences, text_batch
from tests.diffusion.masked.test_mdlm import BATCH, LOSSES, MASK8, OUTPUTS, STEPS, XT, RawSchedule
from tests.toy_family import Recorded, Timed, V, limit_bound, mdlm, sedd
from tests.toy_process import TOKENS
from utils.errors import UserError


def of_sedd(cases: list[dict]) -> list[dict]:
    return [case for case in cases if case["parameterization"] == "sedd"]


def process_of(case: dict) -> SeddDiffusion:
    process = SeddDiffusion(SeddArgs(noise=case.get("noise", "loglinear")), Vocabulary(8, MASK8))
    if case.get("noise") == "geometric":
        process.schedule.noise = geometric(1e-3, 1.0)  # the schedule of the recordings
    return process


@pytest.mark.parametrize("case", of_sedd(LOSSES["cases"]), ids=lambda case: case["noise"])
def test_the_score_entropy_is_the_recorded_one(case: dict) -> None:
    process, t = process_of(case), torch.tensor(case["t_used"]).double()
    entropy = process.token_terms(Recorded(time_conditioned=True), BATCH, XT, t, t, with_kl=False)[1]
    found = process.schedule.noise.weight(t)[:, None] * entropy
    torch.testing.assert_close(found, torch.tensor(case["loss_per_token"]).double(), rtol=2e-3, atol=1e-4)


def test_the_log_score_is_the_recorded_one() -> None:
    (case,) = (c for c in of_sedd(OUTPUTS["cases"]) if c["time_conditioning"])
    process, t = process_of({}), torch.tensor(OUTPUTS["inputs"]["t"]).double()
    masked, sigma = XT.eq(MASK8), process.time_input(t).double()
    logits = Recorded(time_conditioned=True).encode(XT, sigma, BATCH.attention_mask)
    log_r = -torch.expm1(sigma).log()[:, None].expand(XT.shape)[masked]
    found = process.log_ratios(logits[masked]) + log_r[:, None]
    expected = torch.tensor(case["output"]).double()[masked]
    tokens = [v for v in range(8) if v != MASK8]
    torch.testing.assert_close(found[:, tokens], expected[:, tokens], rtol=1e-4, atol=1e-5)
    assert (expected[:, MASK8] == 0).all()  # the score of the current state


@pytest.mark.parametrize(
    "case", of_sedd(STEPS["cases"]), ids=lambda c: f"{c['algorithm']} {c['noise']} {c['t']} {c['dt']}"
)
def test_an_analytic_step_is_the_recorded_one(case: dict) -> None:
    """At the released mask rates; entries below 0 in the released table are normalised away here."""
    process, t = process_of(case), torch.tensor(case["t"], dtype=torch.float64)
    process.schedule.noise = RawSchedule(process.schedule.noise)
    masked = XT.eq(MASK8)
    logits = Recorded(time_conditioned=True).encode(XT, process.time_input(t[None]).expand(2), BATCH.attention_mask)[
        masked
    ]
    s = t - case["dt"] if case["algorithm"] == "analytic" else torch.zeros_like(t)
    stay, weights = process.reverse_step(logits, SampleArgs(), s, t)
    stay = torch.zeros_like(stay) if case["algorithm"] == "denoiser" else stay
    found = (weights * (1 - stay)[:, None]).index_copy(1, torch.tensor([MASK8]), stay[:, None])
    expected = torch.tensor(case["prob"]).double()[masked]
    proper = (expected >= 0).all(-1)
    assert proper.any()
    torch.testing.assert_close(found[proper], expected[proper], rtol=2e-3, atol=1e-4)


class Normalised(TableDenoiser):
    """Denoiser with normalised scores: q is a distribution over the tokens other than [MASK]."""

    def encode(self, xt, t, attention_mask):
        logits = super().encode(xt, t, attention_mask)
        tokens = torch.tensor(TOKENS)
        return logits - logits[..., tokens].logsumexp(-1, keepdim=True) + math.log(V - 1)


def test_sedd_with_normalised_scores_is_mdlm() -> None:
    for x0 in all_sentences(TOKENS, 2)[:6]:
        assert limit_bound(sedd(), Normalised(V), x0) == pytest.approx(limit_bound(mdlm(), Normalised(V), x0))
        assert limit_bound(sedd(), TableDenoiser(V), x0) > limit_bound(mdlm(), TableDenoiser(V), x0)
    logits, t, s = (
        Normalised(V).encode(torch.tensor([[3, 1]]), None, torch.ones(1, 2))[0],
        *mdlm().schedule.windows(8)[3],
    )
    for ours, theirs in zip(*(p.reverse_step(logits, SampleArgs(), s, t) for p in (sedd(), mdlm())), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_exp_of_minus_the_bound_sums_to_at_most_one() -> None:
    bounds = [limit_bound(sedd(), TableDenoiser(V), x0) for x0 in all_sentences(TOKENS, 2)]
    assert sum(math.exp(-bound) for bound in bounds) <= 1


@pytest.mark.parametrize("density", [UNIFORM, TimeDensity(0.4, 0.3)])
def test_the_mean_of_loss_and_estimator_is_the_bound(density: TimeDensity) -> None:
    x0 = torch.tensor([0, 2, 1])
    expected = limit_bound(sedd(), TableDenoiser(V), x0)
    for noise in ("loglinear", "geometric"):
        process = sedd(noise=noise, sampling_eps=1e-6)
        batch = text_batch(x0.expand(4000, -1))
        share = Share(density=density)
        losses = torch.stack([process.loss(TableDenoiser(V), batch, share=share).total / 4000 for _ in range(20)])
        assert abs(losses.mean() - expected) < 5 * losses.std() / math.sqrt(len(losses))
        draws = process.bound(TableDenoiser(V), batch, math.inf, BoundArgs("masked-count", evaluations=4)).total
        assert abs(draws.mean() - expected) < 4 * draws.std() / math.sqrt(len(draws))


def test_the_network_receives_decreasing_sigmas() -> None:
    x0, sigmas = torch.tensor([[0, 2, 1]]), []

    class Recording(Timed):
        def encode(self, xt, t, attention_mask):
            sigmas.extend(t.tolist())
            return super().encode(xt, t, attention_mask)

    sedd().sample(Recording(V), text_batch(x0), SampleArgs(num_steps=4))
    assert sigmas[0] == pytest.approx(6.9078, rel=1e-3) and sigmas == sorted(sigmas, reverse=True)


def test_unsupported_settings_are_refused() -> None:
    for settings, message in (
        ({"time_conditioning": "none", "warm_start": 0}, "a score depends on sigma; use layerwise"),
        ({"time_conditioning": "token", "warm_start": 0}, "a score depends on sigma; use layerwise"),
        ({"time_conditioning": "layerwise", "warm_start": 0.3}, "warm_start trains probabilities"),
    ):
        with pytest.raises(UserError, match=message):
            SeddArgs().check_training(**{"packing": False, "fused_loss": False, **settings}, time_sampling="uniform")
    with pytest.raises(UserError, match="sampling_eps=1.0 must lie in"):
        SeddArgs(sampling_eps=1.0)
