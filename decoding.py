"""Two ways to sample by which texts come sooner or read better, and whose law is not that of the process.

No likelihood or bound that is reported here is one of such samples.

confidence  as many tokens a step as the schedule says, but those that were drawn with the highest probability first
            (MaskGIT: Chang et al. 2022, arXiv 2202.04200); with a threshold whatever is above it, too, so that few
            steps are needed (Fast-dLLM: Wu et al. 2025, arXiv 2505.22618). The commonest tokens are the surest: texts
            get plainer.
remdm       a visible token is masked again with probability sigma, and drawn anew; masked ones are revealed by so much
            sooner that as many are masked at every time as without it (Wang et al. 2025, arXiv 2503.00307; sigma is
            `remask_eta`, as far as that can be: the paper's capped schedule). It mends what was drawn too early.
"""

import torch
from torch import Tensor

from ancestral import Group
from draws import filter_logits, sample_categorical, uniform

USUAL_ETA = 0.02


class Confident(Group):
    """sampler=confidence."""

    def step(self, t: Tensor, s: Tensor) -> bool:
        """See Group; the number of masked tokens after it is that of all targets times 1 - alpha_bar(s), rounded up."""
        masked = self.xt.eq(self.process.mask_id) & self.targets
        if not masked.any():
            return False
        self.look(masked.any(1), t)
        logits = self.denoiser.decode(self.hidden[masked[:, : self.width]]) + self.process.sampling_support
        weights = filter_logits(logits, self.args).softmax(-1)
        token = sample_categorical(weights, uniform(masked, self.streams)[masked])
        sure = torch.full(masked.shape, -1.0, dtype=torch.float64, device=masked.device)
        sure[masked] = weights.gather(1, token[:, None])[:, 0].double()
        average = torch.zeros((), dtype=torch.float64, device=masked.device)
        left = torch.ceil((1 - self.process.keep_probability(s, average)) * self.targets.sum(1) - 1e-9)
        rank = (-sure).argsort(dim=1, stable=True).argsort(dim=1)
        reveal = masked & (rank < (masked.sum(1) - left)[:, None])
        if self.args.confidence_threshold:
            reveal |= masked & (sure > self.args.confidence_threshold)
        self.xt[reveal] = token[reveal[masked]]
        self.changed = reveal.any(1)
        return True


def remask_rates(at_s: Tensor, at_t: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """Probabilities that a visible token is masked again and that a masked one is revealed, as alpha_bar rises.

    The former is eta, or less where more would leave too many masked; the latter makes up for it, so that a token that
    was masked with probability 1 - at_t is so with 1 - at_s.
    """
    again = torch.minimum(torch.full_like(at_s, eta), (1 - at_s) / at_t.clamp(min=1e-300))
    return again, ((at_s - (1 - again) * at_t) / (1 - at_t)).clamp(max=1)


class Remasking(Group):
    """sampler=remdm."""

    ends_early = False

    def step(self, t: Tensor, s: Tensor) -> bool:
        """See Group."""
        masked, average = self.xt.eq(self.process.mask_id) & self.targets, torch.zeros_like(t, dtype=torch.float64)
        at_s, at_t = (self.process.keep_probability(time, average) for time in (s, t))
        again, reveal = remask_rates(at_s, at_t, self.args.remask_eta or USUAL_ETA)
        visible = self.targets & ~masked
        drawn = self.xt.clone()
        if masked.any():
            self.look(masked.any(1), t)
            logits = self.denoiser.decode(self.hidden[masked[:, : self.width]]) + self.process.sampling_support
            first, second = (uniform(masked, self.streams)[masked] for _ in range(2))
            token = sample_categorical(filter_logits(logits, self.args).softmax(-1), second)
            drawn[masked] = token.where(first < (reveal if s < t else 1), self.process.mask_id)
        drawn[visible & (uniform(visible, self.streams) < (again if s < t else 0))] = self.process.mask_id
        self.changed = (drawn != self.xt).any(1)
        self.xt = drawn
        return bool((masked if s == t else self.targets).any())
