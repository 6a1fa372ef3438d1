"""d3pm.py: recorded losses of the released D3PM, and Bayes' rule by explicit summation."""

import math

import pytest
import torch

from diffusion.draws import Share
from diffusion.masked.d3pm import D3pmDiffusion
from diffusion.options import SampleArgs
from diffusion.process import Vocabulary
from diffusion.process_options import D3pmArgs
from diffusion.time_density import UNIFORM, TimeDensity
from tests.conftest import TableDenoiser, text_batch
from tests.diffusion.masked.test_mdlm import BATCH, LOSSES, MASK8, OUTPUTS, X0, XT
from tests.toy_family import Recorded, V, d3pm, exact_bound
from tests.toy_process import MASK
from utils.errors import UserError

CASES = [case for case in LOSSES["cases"] if case["parameterization"] == "d3pm"]


def name_of(case: dict) -> str:
    return f"T={case['T']} subs_masking={case['subs_masking']} timed={case['time_conditioning']}"


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_the_loss_of_a_token_is_the_recorded_one(case: dict) -> None:
    """T times the KL of a step at masked tokens, and the reconstruction at all of them."""
    args = D3pmArgs(num_steps=case["T"], subs_masking=case["subs_masking"])
    process = D3pmDiffusion(args, Vocabulary(8, MASK8))
    denoiser, t = Recorded(time_conditioned=case["time_conditioning"]), torch.tensor(case["t_used"]).double()
    kl, _ = process.token_terms(denoiser, BATCH, XT, t - 1 / case["T"], t)
    found = case["T"] * kl + process.reconstruction(denoiser, BATCH)
    torch.testing.assert_close(found, torch.tensor(case["loss_per_token"]).double(), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("case", [c for c in OUTPUTS["cases"] if c["parameterization"] == "d3pm"], ids=str)
def test_the_prediction_is_the_recorded_one(case: dict) -> None:
    process = D3pmDiffusion(D3pmArgs(subs_masking=case["subs_masking"]), Vocabulary(8, MASK8))
    t = torch.tensor(OUTPUTS["inputs"]["t"]).double()
    found = process.predict(Recorded(time_conditioned=case["time_conditioning"]), BATCH, XT, t).probs.double().log()
    expected = torch.tensor(case["output"]).double()[XT.eq(MASK8)]
    possible = [v for v in range(8) if v != MASK8 or not case["subs_masking"]]
    torch.testing.assert_close(found[:, possible], expected[:, possible], rtol=1e-4, atol=1e-5)


def test_p_theta_is_bayes_rule_summed_over_x0() -> None:
    """p(x_s | x_t = M) by summing q(x_s, x_t | x0) pi(x0) over x0 in the vocabulary, [MASK] included."""
    process, xt = d3pm(num_steps=8), torch.tensor([[MASK, 1]])
    logits = TableDenoiser(V).encode(xt, None, torch.ones_like(xt))[0, :1]
    pi = logits.softmax(-1)[0]
    for t, s in process.schedule.windows(8):
        keep_s, keep_t = (float(process.schedule.alpha_bar(time, torch.zeros(()).double())) for time in (s, t))
        joint = torch.zeros(V).double()
        for x0 in range(V):
            if x0 == MASK:
                joint[MASK] += pi[x0]
                continue
            joint[x0] += pi[x0] * keep_s * (1 - keep_t / keep_s)
            joint[MASK] += pi[x0] * (1 - keep_s)
        law = joint / joint.sum()
        stay, weights = process.reverse_step(logits, SampleArgs(), s, t)
        torch.testing.assert_close(stay[0], law[MASK])
        torch.testing.assert_close((1 - stay[0]) * weights[0], law.index_fill(0, torch.tensor(MASK), 0))
        q = torch.tensor([(keep_s - keep_t) / (1 - keep_t), (1 - keep_s) / (1 - keep_t)])
        p = torch.stack([law[2], law[MASK]])
        expected = torch.special.xlogy(q, q / p).sum()
        batch, xt2 = text_batch(torch.tensor([[2, 1]])), torch.tensor([[MASK, 1]])
        kl, _ = process.token_terms(TableDenoiser(V), batch, xt2, s[None], t[None])
        last = process.reconstruction(TableDenoiser(V), batch)[0, 0] if s == 0 else 0.0
        assert kl[0, 0].item() - last == pytest.approx(expected.item())


@pytest.mark.parametrize("density", [UNIFORM, TimeDensity(0.4, 0.3)])
def test_the_mean_of_the_loss_is_the_bound(density: TimeDensity) -> None:
    process, x0 = d3pm(num_steps=6), torch.tensor([0, 2, 1])
    batch, share = text_batch(x0.expand(6000, -1)), Share(density=density)
    losses = torch.stack([process.loss(TableDenoiser(V), batch, share=share).total / 6000 for _ in range(20)])
    expected = exact_bound(process, TableDenoiser(V), x0, 6)
    assert abs(losses.mean() - expected) < 5 * losses.std() / math.sqrt(len(losses))


def test_without_a_mask_probability_d3pm_is_mdlm_plus_reconstruction() -> None:
    from tests.toy_family import mdlm

    x0, denoiser = torch.tensor([0, 2, 1]), TableDenoiser(V)
    process = d3pm(num_steps=8, subs_masking=True)
    apart = process.reconstruction(denoiser, text_batch(x0[None])).sum().item()
    whole = exact_bound(process, denoiser, x0, 8)
    assert whole == pytest.approx(exact_bound(mdlm(num_steps=8), denoiser, x0, 8) + apart)


def test_the_reconstruction_weight_scales_the_loss_but_not_the_bound() -> None:
    x0, denoiser = torch.tensor([0, 2, 1]), TableDenoiser(V)
    batch, apart = text_batch(x0[None]), d3pm(num_steps=8).reconstruction(denoiser, text_batch(x0[None])).sum()

    def loss(weight: float) -> torch.Tensor:
        process = d3pm(num_steps=8, reconstruction_weight=weight)
        return process.loss(denoiser, batch, generator=torch.Generator().manual_seed(1)).total

    torch.testing.assert_close(loss(2.0) - loss(0.0), 2 * apart)
    torch.testing.assert_close(loss(1.0) - loss(0.0), apart)
    bounds = [exact_bound(d3pm(num_steps=8, reconstruction_weight=w), denoiser, x0, 8) for w in (0.0, 1.0)]
    assert bounds[0] == bounds[1]


def test_losses_at_the_first_step_are_finite() -> None:
    process = D3pmDiffusion(D3pmArgs(num_steps=1000), Vocabulary(8, MASK8))
    t = torch.tensor([1 / 1000, 1.0]).double()
    kl, _ = process.token_terms(Recorded(time_conditioned=True), BATCH, XT, t - 1 / 1000, t)
    assert kl.isfinite().all() and X0.shape == kl.shape


def test_unsupported_settings_are_refused() -> None:
    with pytest.raises(UserError, match="num_steps=0 must lie in 1..1000000"):
        D3pmArgs(num_steps=0)
    with pytest.raises(UserError, match="time_conditioning=token counts whole steps"):
        D3pmArgs().check_time("token")
