"""transitions.py: unsupported settings are refused; pads and noise at given positions have no influence."""

import pytest
import torch
import torch.nn.functional as F

from data.batch import Batch
from diffusion.options import SampleArgs
from diffusion.process_options import ScoreArgs
from tests.diffusion.score.test_process import BATCH, GIVEN_ENDS, IDS, denoiser, process, seeded
from utils.errors import UserError


def test_pads_change_no_cross_entropy_and_have_no_gradient() -> None:
    diffusion, net = process(), denoiser()
    sigma = torch.full((4, 9), 3.0) * GIVEN_ENDS
    x = diffusion.noisy(net, BATCH, sigma, seeded())
    wide = F.pad(x.detach(), (0, 0, 0, 3), value=7.0).requires_grad_()
    batch = Batch(F.pad(IDS, (0, 3), value=5), F.pad(BATCH.attention_mask, (0, 3)), F.pad(BATCH.target_mask, (0, 3)))
    one = diffusion.cross_entropy(net, BATCH, diffusion.encode(net, x, sigma, BATCH), GIVEN_ENDS)
    other = diffusion.cross_entropy(
        net, batch, diffusion.encode(net, wide, F.pad(sigma, (0, 3)), batch), batch.target_mask
    )
    assert torch.allclose(one, other, atol=1e-5)
    other.sum().backward()
    assert not wide.grad[:, 9:].any() and wide.grad[GIVEN_ENDS.nonzero(as_tuple=True)].any(-1).all()


def test_the_output_is_invariant_to_noise_at_given_positions() -> None:
    diffusion, net = process(), denoiser()
    sigma = torch.where(torch.arange(9) < 4, 0.0, 5.0).expand(4, 9)
    x = diffusion.noisy(net, BATCH, sigma, seeded())
    other = x + torch.randn(x.shape) * (sigma == 0)[..., None] * 100
    assert not torch.equal(x, other)
    assert torch.equal(diffusion.encode(net, x, sigma, BATCH), diffusion.encode(net, other, sigma, BATCH))
    elsewhere = x + (sigma > 0)[..., None]
    assert not torch.equal(diffusion.encode(net, x, sigma, BATCH), diffusion.encode(net, elsewhere, sigma, BATCH))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma_max": 0.5}, "sigma_max=0.5 must be above sigma_min=1; 0 sets it by the size"),
        ({"sigma_min": 0.0}, "sigma_min=0.0 must lie in 0.001..1000.0"),
        ({"sigma_min": 200.0}, "sigma_min=200 must be below 18.75; or give sigma_max"),
        ({"rho": 0.0}, "rho=0.0 must lie in"),
        ({"position_levels": 1.5}, "position_levels=1.5 must lie in 0..1"),
        ({"given_kinds": "prefix,suffix"}, "given_kinds='prefix,suffix' must be some of prefix,span,infill"),
        ({"given_kinds": ""}, "must be some of"),
        ({"loss_weighting": "elbo"}, "must be one of uniform, edm"),
        ({"level_order": "rising", "time_warp": True}, "add time_warp=false"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ScoreArgs(**settings)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (SampleArgs(sampler="row-clocks"), "is for masked processes; this one has euler, heun, renoise, sde"),
        (SampleArgs(num_steps=float("inf")), "must be at most 10,000; give fewer"),
        (SampleArgs(guidance=2.0), "guidance=2 needs a checkpoint trained with --drop_given"),
    ],
)
def test_unsupported_sampling_settings_are_refused(args: SampleArgs, message: str) -> None:
    with pytest.raises(UserError, match=message):
        process().check_sampling(args)
    process(drop_given=0.1).check_sampling(SampleArgs(guidance=2.0, sampler="heun"))
    with pytest.raises(UserError, match="num_steps=5000 must be at most 2,000; give fewer"):
        process(level_order="rising", time_warp=False).check_sampling(SampleArgs(num_steps=5000))


def test_unsupported_training_settings_are_refused() -> None:
    with pytest.raises(UserError, match="warm_start is for masked processes"):
        ScoreArgs().check_training(
            time_conditioning="none", warm_start=0.1, time_sampling="uniform", packing=True, fused_loss=False
        )
    with pytest.raises(UserError, match="time_conditioning=token"):
        ScoreArgs().check_time("token")
