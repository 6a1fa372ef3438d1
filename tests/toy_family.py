"""Masked processes without spindle, small enough to enumerate, and their exact distributions."""

import itertools
import json
import math
from pathlib import Path

import torch
from torch import Tensor

from diffusion.masked.d3pm import D3pmDiffusion
from diffusion.masked.mdlm import MdlmDiffusion
from diffusion.masked.process import MaskedProcess
from diffusion.masked.sedd import SeddDiffusion
from diffusion.options import SampleArgs
from diffusion.process import Vocabulary
from diffusion.process_options import D3pmArgs, MdlmArgs, SeddArgs
from tests.conftest import TableDenoiser, text_batch
from tests.toy_process import COUNTS, MASK, every, make

V = len(COUNTS)
GOLDEN = Path(__file__).parent / "golden"


def mdlm(**settings: object) -> MdlmDiffusion:
    return MdlmDiffusion(MdlmArgs(**settings), Vocabulary(len(COUNTS), MASK))


def d3pm(**settings: object) -> D3pmDiffusion:
    return D3pmDiffusion(D3pmArgs(**settings), Vocabulary(len(COUNTS), MASK))


def sedd(**settings: object) -> SeddDiffusion:
    return SeddDiffusion(SeddArgs(**settings), Vocabulary(len(COUNTS), MASK))


PROCESSES = {
    "word_freq": lambda: make(12, "none"),
    "mdlm": mdlm,
    "mdlm, 12 steps": lambda: mdlm(num_steps=12),
    "mdlm, cosine": lambda: mdlm(noise="cosine"),
    "mdlm, geometric": lambda: mdlm(noise="geometric"),
    "d3pm": lambda: d3pm(num_steps=12),
    "d3pm, cosine": lambda: d3pm(num_steps=12, noise="cosine"),
    "d3pm, subs_masking": lambda: d3pm(num_steps=12, subs_masking=True),
}
"""Processes whose bound is defined for a finite number of steps."""


class Timed(TableDenoiser):
    """Denoiser whose predictions depend on the time input."""

    time_conditioned = True

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        """Scramble the logits differently at every t."""
        time_input = t.double().clamp(max=50)[:, None, None]
        return super().encode(xt, t, attention_mask) + torch.sin(time_input * 1.7 + torch.arange(self.vocab_size))


def patterns(length: int) -> list[Tensor]:
    """Return every mask pattern, bool [L] each."""
    return [torch.tensor(pattern) for pattern in itertools.product([False, True], repeat=length)]


def exact_bound(process: MaskedProcess, denoiser: TableDenoiser, x0: Tensor, num_windows: int) -> float:
    """Return E over x_t of the public `token_terms`, over every mask pattern at every window."""
    total = 0.0
    for t, s in process.schedule.windows(num_windows):
        keep = process.schedule.alpha_bar(t, torch.zeros((), dtype=torch.float64))
        for masked in patterns(len(x0)):
            weight = torch.where(masked, 1 - keep, keep).prod().item()
            if weight > 0:
                xt = x0.masked_fill(masked, MASK)[None]
                total += weight * process.token_terms(denoiser, text_batch(x0[None]), xt, s[None], t[None])[0].sum()
    return float(total)


def limit_bound(process: MaskedProcess, denoiser: TableDenoiser, x0: Tensor) -> float:
    """Return the bound in continuous time: k masked tokens have as weight the integral of r^(k - 1) (1 - r)^(L - k)."""
    total, length, time = 0.0, len(x0), torch.ones(1, dtype=torch.float64)
    for masked in patterns(length):
        if k := int(masked.sum()):
            xt = x0.masked_fill(masked, MASK)[None]
            nats = process.token_terms(denoiser, text_batch(x0[None]), xt, time, time, with_kl=False)[1].sum().item()
            total += nats * math.gamma(k) * math.gamma(length - k + 1) / math.gamma(length + 1)
    return total


def law_of_steps(process: MaskedProcess, denoiser: TableDenoiser, length: int, args: SampleArgs) -> dict[tuple, float]:
    """Return p_theta(x0) of every sentence, by propagating all states through `reverse_step` of each window."""
    law = {(MASK,) * length: 1.0}
    windows = process.schedule.windows(int(args.num_steps))
    for t, s in [*windows, windows[-1:, 1].expand(2)]:
        following: dict[tuple, float] = {}
        for state, mass in law.items():
            xt = torch.tensor([state])
            masked = xt[0] == MASK
            choices = [[(token, 1.0)] for token in state]
            if masked.any():
                logits = denoiser.encode(xt, process.time_input(t[None]), every(xt))[0][masked]
                stay, weights = process.reverse_step(logits, args, s, t)
                stay = stay if s < t else torch.zeros_like(stay)
                for i, still, pi in zip(masked.nonzero()[:, 0].tolist(), stay.tolist(), weights.tolist(), strict=True):
                    choices[i] = [(token, (1 - still) * p) for token, p in enumerate(pi)] + [(MASK, still)]
            for outcome in itertools.product(*choices):
                chance = mass * math.prod(p for _, p in outcome)
                if chance > 1e-14:
                    name = tuple(token for token, _ in outcome)
                    following[name] = following.get(name, 0.0) + chance
        law = following
    return law


def recorded(name: str) -> dict:
    """Read numbers recorded from the released MDLM."""
    return json.loads((GOLDEN / f"mdlm_{name}.json").read_text())


class Recorded:
    """Network of the recordings: logits[b, l, v] = sin(0.1 (b + 1)(l + 1) + 0.37 v + 0.05 time_input[b])."""

    def __init__(self, *, time_conditioned: bool) -> None:
        self.time_conditioned = time_conditioned

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the recorded network's logits in float64."""
        rows, positions, tokens = (torch.arange(n, dtype=torch.float64) for n in (*xt.shape, 8))
        time_input = t.double() if self.time_conditioned else torch.zeros(len(xt), dtype=torch.float64)
        angle = 0.1 * (rows + 1)[:, None, None] * (positions + 1)[:, None] + 0.37 * tokens
        return torch.sin(angle + 0.05 * time_input[:, None, None])

    def decode(self, hidden: Tensor) -> Tensor:
        """Return a copy of the logits, which the caller may change in place."""
        return hidden.clone()
