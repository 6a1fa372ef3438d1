"""The arithmetic of the released DiffusionBERT, to reproduce its numbers: `--posterior released`.

It differs from the exact process of diffusion_word_freq.py in four points, each a defect:
1. The posterior combines the spindle marginals with the spindle-free kernel, so it is not Bayes' posterior.
2. p_theta uses the word frequencies of the true sentence, which no sampler has. The spindle ELBO is thus not a bound.
3. The prediction may be [MASK], and sampling filters the posterior instead of the prediction.
4. The last beta of the cosine and linear schedules is below 1, although alpha_bar(T) is set to 0.
Source: the released diffusion_word_freq.py (github.com/Hzfinfdu/Diffusion-BERT). The loss of visible positions is
exactly 0 here; in the released program it can be 0/0.
"""

import math

import torch
from torch import Tensor

from data.batch import Batch
from diffusion.draws import Generators, filter_logits, sample_categorical, streams_of, uniform
from diffusion.options import SampleArgs, step_windows
from diffusion.process import Denoiser, StepCallback, Vocabulary
from diffusion.process_options import WordFreqArgs
from diffusion_word_freq import SpindleSchedule, WordFreqDiffusion
from utils.errors import UserError

EPSILON = 1e-20  # inside the released program's logarithms


def released_betas(schedule: str, num_steps: int) -> Tensor:
    """Return the probability that step t -> t + 1 masks a visible token, t in 0..T-1, float32 [T], as released.

    Single precision changes the betas of cosine by up to 0.4 %, and the released figures include this error. The betas
    end at 0.999 for cosine and at 0.1 for linear, although alpha_bar(T) is set to 0.
    """
    t = torch.arange(num_steps, dtype=torch.float32)
    if schedule == "mutual":
        return 1 / (num_steps - t)
    if schedule == "linear":
        return 1e-1 * (t / num_steps) + 1e-3 * (1 - t / num_steps)

    def level(t: Tensor) -> Tensor:
        return torch.cos((t / num_steps + 0.008) / 1.008 * math.pi / 2)

    return (1 - level(t + 1) / level(t)).clamp(0, 0.999)


class ReleasedSchedule(SpindleSchedule):
    """The released schedule: unbounded h, clipped alpha_bar, and a posterior other than Bayes'."""

    def __init__(self, args: WordFreqArgs, token_counts: Tensor) -> None:
        """Make the released tables; for the arguments see SpindleSchedule."""
        super().__init__(args, token_counts)
        stays = 1 - released_betas(args.schedule, args.num_steps).double()
        self.unforced = torch.cat([torch.ones(1, dtype=torch.float64), stays]).cumprod(0)
        """alpha_bar(0..T) from the betas alone, float64 [T + 1]; above 0 at T if the last beta is below 1."""
        self.base = self.unforced.index_fill(0, torch.tensor([args.num_steps]), 0.0)

    def to(self, device: torch.device) -> "ReleasedSchedule":
        """Move the tables; return self."""
        self.unforced = self.unforced.to(device)
        super().to(device)
        return self

    def informativeness_of(self, statistic: Tensor, mean: Tensor) -> Tensor:
        """Return h without the clamp that makes the process absorbing."""
        return self.contrast(statistic, mean)

    def alpha_bar(self, t: Tensor, h: Tensor) -> Tensor:
        """Return clip(base(t) - lambda sin(pi t/T) h, 0, 0.999) for t > 0, and 1 at t = 0."""
        spindle = self.amplitude * torch.sin(math.pi * t / self.num_steps) * h
        return torch.where(t == 0, 1.0, (self.base[t] - spindle).clamp(0, 0.999))

    def base_kernel(self, s: Tensor, t: Tensor) -> Tensor:
        """Return the probability that a token visible at s is masked at t, without spindle, shaped like s and t."""
        return 1 - self.unforced[t] / self.unforced[s]

    def reveal_probability(self, s: Tensor, t: Tensor, h: Tensor) -> Tensor:
        """Return the released q(x_s = x0 | x_t = [MASK], x0); it is Bayes' posterior only for lambda = 0."""
        keep = self.alpha_bar(s, h)
        visible = self.base_kernel(s, t) * keep
        return visible / (visible + (1 - keep))  # this order of sums gives exactly 1 at s = 0


class ReleasedWordFreqDiffusion(WordFreqDiffusion):
    """The released process, as overrides of the exact one."""

    is_bound = False
    schedule: ReleasedSchedule
    make_schedule = ReleasedSchedule

    def __init__(
        self, args: WordFreqArgs, token_counts: Tensor, vocabulary: Vocabulary, *, fused_loss: bool = False
    ) -> None:
        """Make the released schedule; for the arguments see WordFreqDiffusion."""
        super().__init__(args, token_counts, vocabulary, fused_loss=fused_loss)
        self.samplers, self.thinning = (), None
        self.estimators, self.limit_estimators = ("windows", "stratified"), ()

    def check_sampling(self, args: SampleArgs) -> None:
        """See Process."""
        args.require_tokens("a masked process")
        if math.isinf(args.num_steps):
            raise UserError("num_steps=inf needs the exact process; the released one takes 1 to T steps")
        if args.sampler != "auto":
            raise UserError(f"sampler={args.sampler} needs the exact process; the released one has sampler=auto only")
        self.schedule.windows(int(args.num_steps))

    def soft_marginal(self, probs: Tensor, t: Tensor, h: Tensor) -> Tensor:
        """Return q(x_t) of a token that is v with probability probs[v], [B, L, V]; the remaining mass is on [MASK]."""
        if int(t.max()) == 0:
            return probs
        noisy = probs * self.schedule.alpha_bar(t[:, None], h)[..., None]
        noisy[..., self.mask_id] = 0
        noisy[..., self.mask_id] = 1 - noisy.sum(-1)
        return noisy

    def transition(self, xt: Tensor, s: Tensor, t: Tensor, vocab_size: int) -> Tensor:
        """Return the likelihood of x_t given each x_s under the base schedule alone, [B, L, V]."""
        kernel = self.schedule.base_kernel(s, t)[:, None, None].expand(*xt.shape, 1)
        stays = torch.nn.functional.one_hot(xt, vocab_size).double()
        from_any = kernel.expand(*xt.shape, vocab_size).clone()
        from_any[..., self.mask_id] = 1
        return torch.where(xt.eq(self.mask_id)[..., None], from_any, stays * (1 - kernel))

    def reverse_probs(self, probs: Tensor, xt: Tensor, s: Tensor, t: Tensor, h: Tensor) -> Tensor:
        """Return p_theta(x_s | x_t), [B, L, V]: transition times soft marginal of `probs`, normalised."""
        joint = self.transition(xt, s, t, probs.shape[-1]) * self.soft_marginal(probs, s, h)
        return joint / joint.sum(-1, keepdim=True)

    def token_terms(
        self, denoiser: Denoiser, batch: Batch, xt: Tensor, s: Tensor, t: Tensor, *, with_kl: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return the released KL and the cross-entropy of every target token, visible ones included, each [B, L], nats.

        The KL is from `posterior` to `reverse_probs`; both use h of the true sentence. It has a closed form, with
        k = keep probability at s, b = base kernel, m = pi([MASK]), a = posterior, Z0 = b k + 1 - k and
        Z = b k (1 - m) + 1 - k (1 - m):  KL = -a log pi(x0) + (1 - a) log((1 - k) / (1 - k (1 - m))) + log(Z / Z0).
        """
        target = batch.target_mask
        hidden = denoiser.encode(xt, t, batch.attention_mask)[target]
        log_probs = denoiser.decode(hidden).float().log_softmax(-1)
        cross_entropy = -log_probs.gather(-1, batch.input_ids[target][:, None]).squeeze(-1).double()
        not_mask = 1 - log_probs[:, self.mask_id].exp().double()
        keep = self.alpha_bar(s, batch.input_ids, target)[target]
        kernel = self.schedule.base_kernel(s, t)[:, None].expand(xt.shape)[target]
        reveal = self.posterior(batch.input_ids, s, t, target)[target]
        stays = (1 - reveal) * ((1 - keep).clamp(min=EPSILON).log() - (1 - keep * not_mask).clamp(min=EPSILON).log())
        evidence = (kernel * keep * not_mask + (1 - keep * not_mask)) / (kernel * keep + (1 - keep))
        kl = (reveal * cross_entropy + stays + evidence.log()).clamp(min=0) * xt.eq(self.mask_id)[target]
        zeros = torch.zeros(xt.shape, dtype=torch.float64, device=xt.device)
        return zeros.masked_scatter(target, kl), zeros.masked_scatter(target, cross_entropy)

    def sampling_probs(
        self, logits: Tensor, batch: Batch, xt: Tensor, s: Tensor, t: Tensor, args: SampleArgs
    ) -> Tensor:
        """Return the released distribution of x_s, [B, L, V]; temperature and top-k act on the posterior.

        h is that of the most probable sentence, with its mean over the targets.
        """
        probs = logits.double().softmax(-1)
        guess = probs.argmax(-1)
        h = self.schedule.informativeness(guess, batch.target_mask)
        score = (self.soft_marginal(probs, s, h) + EPSILON).log()
        score = score + (self.transition(xt, s, t, logits.shape[-1]) + EPSILON).log()
        return filter_logits(score.flatten(0, 1), args).softmax(-1).view_as(score)

    def _sample(
        self,
        denoiser: Denoiser,
        batch: Batch,
        args: SampleArgs,
        rows_at_once: int,
        generator: Generators,
        on_step: StepCallback | None,
    ) -> Tensor:
        """Sample as released: ancestral, with one forward pass per step."""
        xt = batch.input_ids.masked_fill(batch.target_mask, self.mask_id)
        for rows in torch.arange(len(xt)).split(rows_at_once or len(xt)):
            width = int(batch.attention_mask[rows].any(0).nonzero().max()) + 1
            part = batch.rows((rows.to(xt.device), slice(width)))
            streams = streams_of(generator, rows)
            for t, s in step_windows(self.num_steps, int(args.num_steps)):
                u = uniform(part.target_mask, streams)
                xt[rows, :width] = self.reverse_step(denoiser, part, xt[rows, :width], s, t, args, u)
                if on_step is not None:
                    on_step(rows if s == 0 else rows[:0], xt)
        return xt

    def reverse_step(
        self, denoiser: Denoiser, batch: Batch, xt: Tensor, s: int, t: int, args: SampleArgs, u: Tensor
    ) -> Tensor:
        """Draw x_s from `sampling_probs` by uniform u.

        Tokens that never occur in text are excluded, and [MASK] too at s = 0.
        The released program excludes no token: its samples may contain [CLS] or [MASK].
        """
        masked = xt.eq(self.mask_id) & batch.target_mask
        if not masked.any():
            return xt
        t, s = (torch.full_like(xt[:, 0], step) for step in (t, s))
        logits = denoiser.decode(denoiser.encode(xt, t, batch.attention_mask))
        barred = self.sampling_support.clone()
        if int(s[0]) > 0:
            barred[self.mask_id] = 0
        logits = logits.float() + barred
        probs = self.sampling_probs(logits, batch, xt, s, t, args)
        probs = probs.masked_fill(logits == -math.inf, 0)  # at a high temperature EPSILON alone would give them mass
        return xt.masked_scatter(masked, sample_categorical(probs[masked], u[masked]))


class ReleasedConditionalDiffusion(ReleasedWordFreqDiffusion):
    """The released process for pairs; it differs from the one for text in the last term of the loss."""

    def token_terms(
        self, denoiser: Denoiser, batch: Batch, xt: Tensor, s: Tensor, t: Tensor, *, with_kl: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return the terms for text, with plain cross-entropy at s = 0, at visible targets too, in place of the KL."""
        kl, cross_entropy = super().token_terms(denoiser, batch, xt, s, t, with_kl=with_kl)
        return torch.where(s[:, None] == 0, cross_entropy, kl), cross_entropy
