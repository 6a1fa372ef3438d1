"""Matrix formulation of the process: an explicit distribution over V at every position, [B, L, V].

The project computes these quantities in closed form at masked positions only. This form is the baseline of
benchmarks/speed.py and the reference of the tests.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from data.batch import Batch
from diffusion.draws import Generators, filter_logits, uniform
from diffusion.options import SampleArgs, step_windows
from diffusion.process import Denoiser
from diffusion_word_freq import WordFreqDiffusion


def predictions(denoiser: Denoiser, xt: Tensor, t: Tensor, batch: Batch, support: Tensor, args: SampleArgs) -> Tensor:
    """Return pi = p(x0 | x_t) at every position, [B, L, V]."""
    logits = denoiser.decode(denoiser.encode(xt, t, batch.attention_mask)) + support
    return filter_logits(logits.flatten(0, 1), args).softmax(-1).view_as(logits)


def noisy_law(process: WordFreqDiffusion, x0: Tensor, t: Tensor, targets: Tensor) -> Tensor:
    """Return q(x_t | x0), [B, L, V]: alpha_bar on x0, the rest on [MASK]."""
    alpha_bar = process.alpha_bar(t, x0, targets)[..., None].where(targets[..., None], 1.0)
    size = len(process.schedule.statistic)
    return alpha_bar * F.one_hot(x0, size) + (1 - alpha_bar) * F.one_hot(torch.tensor(process.mask_id), size)


def posterior_law(process: WordFreqDiffusion, x0: Tensor, xt: Tensor, s: Tensor, t: Tensor, targets: Tensor) -> Tensor:
    """Return q(x_s | x_t, x0), [B, L, V], Eq. 5: a masked target is x0 with probability u; others keep x_t."""
    size = len(process.schedule.statistic)
    u = process.posterior(x0, s, t, targets)[..., None]
    law = u * F.one_hot(x0, size) + (1 - u) * F.one_hot(torch.tensor(process.mask_id), size)
    return torch.where((xt.eq(process.mask_id) & targets)[..., None], law, F.one_hot(xt, size).double())


def reverse_law(process: WordFreqDiffusion, pi: Tensor, xt: Tensor, s: Tensor, t: Tensor, targets: Tensor) -> Tensor:
    """Return p_theta(x_s | x_t), [B, L, V]: pi(k) u^(k) for k at a masked target, else [MASK]; others keep x_t."""
    masked = xt.eq(process.mask_id) & targets
    statistic = torch.where(masked, pi.double() @ process.schedule.statistic, process.schedule.statistic[xt])
    mean = (statistic * targets).sum(1, keepdim=True) / targets.sum(1, keepdim=True)
    h = process.schedule.informativeness_of(process.schedule.statistic, mean)
    u = process.schedule.reveal_probability(s[:, None], t[:, None], h)
    law = pi * u[:, None, :]
    law[..., process.mask_id] = 0
    law = law + (1 - law.sum(-1, keepdim=True)) * F.one_hot(torch.tensor(process.mask_id), pi.shape[-1])
    return torch.where(masked[..., None], law, F.one_hot(xt, pi.shape[-1]).double())


def divergence(q: Tensor, p: Tensor) -> Tensor:
    """Return KL(q || p) over the last axis, with 0 log 0 = 0."""
    return (q * (q.clamp(min=1e-300).log() - p.clamp(min=1e-300).log())).sum(-1)


def draw(law: Tensor, u: Tensor) -> Tensor:
    """Draw tokens [B, L] from distributions [B, L, V] by the inverse CDF at u."""
    cumulative = law.double().cumsum(-1)
    return torch.searchsorted(cumulative, u[..., None] * cumulative[..., -1:], right=True)[..., 0].clamp(
        max=law.shape[-1] - 1
    )


def terms_at(
    process: WordFreqDiffusion, denoiser: Denoiser, batch: Batch, xt: Tensor, s: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """Return one window's KL and the cross-entropy at masked targets, each [B, L]."""
    x0, targets = batch.input_ids, batch.target_mask
    pi = predictions(denoiser, xt, t, batch, process.support, SampleArgs())
    q = posterior_law(process, x0, xt, s, t, targets)
    kl = divergence(q, reverse_law(process, pi, xt, s, t, targets))
    cross_entropy = -(pi.clamp(min=1e-30).log() * F.one_hot(x0, pi.shape[-1])).sum(-1)
    return kl, cross_entropy * (xt.eq(process.mask_id) & targets)


def term(
    process: WordFreqDiffusion, denoiser: Denoiser, batch: Batch, s: Tensor, t: Tensor, generator: Generators = None
) -> tuple[Tensor, Tensor]:
    """Return `terms_at` of an x_t drawn from q(x_t | x0)."""
    u = uniform(torch.ones_like(batch.target_mask), generator)
    xt = draw(noisy_law(process, batch.input_ids, t, batch.target_mask), u)
    return terms_at(process, denoiser, batch, xt, s, t)


def sample(
    process: WordFreqDiffusion, denoiser: Denoiser, batch: Batch, args: SampleArgs, *, generator: Generators = None
) -> Tensor:
    """Draw int64 [B, L] by ancestral sampling with every step."""
    xt = batch.input_ids.masked_fill(batch.target_mask, process.mask_id)
    for window in step_windows(process.num_steps, int(args.num_steps)):
        t, s = (torch.full_like(xt[:, 0], step) for step in window)
        pi = predictions(denoiser, xt, t, batch, process.sampling_support, args)
        law = reverse_law(process, pi, xt, s, t, batch.target_mask)
        if window[1] == 0:
            law[..., process.mask_id] = 0  # rounding residue
        xt = draw(law, uniform(torch.ones_like(batch.target_mask), generator))
    return xt
