"""Ancestral sampling with one clock per row: the distribution of step-by-step sampling in far fewer forward passes.

Without time input, the output of the network changes only when a token is revealed. A row therefore needs a forward
pass only then, and the rows of a batch may stand at different steps. The hazard of a masked position is its rate of
reveal, and it depends on the predicted token. Reveal times are drawn by thinning (Lewis and Shedler 1979):

1. Propose. Every masked position draws an exponential waiting time and inverts the cumulative hazard of the token that
   is revealed fastest. This maximum hazard bounds every other, and it needs no forward pass.
2. Accept. At a proposal the network predicts the position, and a token is drawn from p(x0 | xt). The acceptance
   probability is the token's reveal probability divided by the maximum. After a rejection the position draws its next
   proposal. The prediction is reused, since xt has not changed.

Where the reveal probability does not depend on the prediction (no spindle, no predicted [MASK]), every proposal is
accepted, and the vocabulary head runs at revealed positions only. Without windows (`--num_steps inf`) this is the
first-hitting sampler (Zheng et al. 2024, arXiv 2409.02908): one token per forward pass. A row needs one forward pass
per moment at which it reveals tokens, so at most one per token. Finished rows leave the batch and waiting rows replace
them, so that the batch stays full.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from data.batch import Batch
from diffusion.draws import Generators, filter_logits, sample_categorical, uniform
from diffusion.masked.transitions import MaskedTransitions, Thinning
from diffusion.options import SampleArgs
from diffusion.process import Denoiser, StepCallback, encode_at

MAX_LOGITS = 2**22
"""Maximum number of logits per chunk when every masked position is predicted; chunks that fit the cache are faster."""


class Clock(Protocol):
    """Times of proposals, counted in moments: numbers that rise from 0 as the reverse process runs from T to 0."""

    def next(self, moment: Tensor, wait: Tensor) -> Tensor:
        """Return the moment of the next proposal after `moment`; wait ~ Exp(1) is the increase in cumulative hazard."""
        ...

    def acceptance(self, moment: Tensor, mark: Tensor) -> Tensor:
        """Return the acceptance probability of a token with this mark, proposed at this moment."""
        ...

    def time(self, moment: Tensor) -> Tensor:
        """Return the time t of a moment, in the units of the schedule."""
        ...


class WindowClock:
    """A clock whose moments are the reverse steps 1..n of a grid from T to 0."""

    def __init__(self, process: MaskedTransitions, num_steps: int) -> None:
        """Tabulate the cumulative maximum hazard; it is infinite in the last window, which reveals every token."""
        self.thinning = process.thinning
        self.t, self.s = process.schedule.windows(num_steps).unbind(1)
        if process.leftover_masks:  # an empty window, which reveals the leftover masks
            self.t, self.s = torch.cat([self.t, self.s[-1:]]), torch.cat([self.s, self.s[-1:]])
        rates = self.thinning or process.schedule
        fastest = torch.full_like(self.t, fastest_mark(self.thinning), dtype=torch.float64)
        self.max_reveal = rates.reveal_probability(self.s, self.t, fastest)
        hazard = -torch.log1p(-self.max_reveal.where(self.s > 0, 1.0))
        self.hazard = torch.cat([hazard.new_zeros(1), hazard.cumsum(0)])

    def next(self, moment: Tensor, wait: Tensor) -> Tensor:
        """See Clock."""
        proposed = torch.searchsorted(self.hazard, self.hazard[moment.long()] + wait)
        return torch.maximum(proposed, moment.long() + 1).double()

    def acceptance(self, moment: Tensor, mark: Tensor) -> Tensor:
        """See Clock."""
        window = moment.long() - 1
        own = self.thinning.reveal_probability(self.s[window], self.t[window], mark)
        return torch.where(window < len(self.s) - 1, own / self.max_reveal[window], 1.0)

    def time(self, moment: Tensor) -> Tensor:
        """See Clock."""
        return self.t[moment.long() - 1]


class ContinuousClock:
    """A clock in the limit of ever finer windows; a moment is the cumulative maximum hazard, -log(1 - alpha_bar)."""

    def __init__(self, process: MaskedTransitions) -> None:
        """Take schedule and thinning from the process."""
        self.schedule, self.thinning = process.schedule, process.thinning

    def level(self, moment: Tensor) -> Tensor:
        """Return alpha_bar of an average token at a moment, by bisection to rounding error."""
        low, high = torch.zeros_like(moment), torch.ones_like(moment)
        fastest, wanted = torch.full_like(moment, fastest_mark(self.thinning)), -torch.expm1(-moment)
        for _ in range(60):
            middle = (low + high) / 2
            early = (self.thinning.alpha_bar(middle, fastest) if self.thinning else middle) < wanted
            low, high = torch.where(early, middle, low), torch.where(early, high, middle)
        return low.clamp(max=1 - 1e-12)  # hazards are 0/0 at 1; no sentence is long enough to reach it

    def next(self, moment: Tensor, wait: Tensor) -> Tensor:
        """See Clock."""
        return moment + wait

    def acceptance(self, moment: Tensor, mark: Tensor) -> Tensor:
        """See Clock."""
        level, fastest = self.level(moment), torch.full_like(mark, fastest_mark(self.thinning))
        return self.thinning.hazard(level, mark) / self.thinning.hazard(level, fastest)

    def time(self, moment: Tensor) -> Tensor:
        """See Clock."""
        return self.schedule.time_at(self.level(moment))


def fastest_mark(thinning: Thinning | None) -> float:
    """Return the mark with the maximum hazard; without thinning every token has h = 0."""
    return thinning.fastest_mark if thinning else 0.0


def exponential(u: Tensor) -> Tensor:
    """Return waiting times of distribution Exp(1), by inversion of u, uniform in [0, 1)."""
    return -torch.log1p(-u)


class RowClocks:
    """Sampler with one clock per row. It holds the tokens of all rows and the moments of their next proposals."""

    def __init__(
        self,
        process: MaskedTransitions,
        denoiser: Denoiser,
        batch: Batch,
        args: SampleArgs,
        generator: Generators = None,
    ) -> None:
        """Mask the targets of all rows.

        Args:
            process: the masked process, with schedule and thinning.
            denoiser: the network. With time input every proposal needs its own forward pass.
            batch: all N rows to be sampled; rows of similar length should be neighbours.
            args: number of reverse steps, or inf; temperature, top-k and top-p of p(x0 | xt).
            generator: with one stream per row, a sample does not depend on the other rows.
        """
        self.process, self.denoiser, self.batch, self.args, self.generator = process, denoiser, batch, args, generator
        infinite = math.isinf(args.num_steps)
        self.clock: Clock = ContinuousClock(process) if infinite else WindowClock(process, int(args.num_steps))
        self.xt = batch.input_ids.masked_fill(batch.target_mask, process.mask_id)
        self.moment = torch.full(self.xt.shape, math.inf, dtype=torch.float64, device=self.xt.device)
        """[N, L], moment of the next proposal of each masked target; infinite elsewhere."""

    def run(self, rows_at_once: int = 0, on_step: StepCallback | None = None) -> Tensor:
        """Draw the targets of x_0 ~ p_theta, int64 [N, L]; all other tokens keep their values.

        Args:
            rows_at_once: number of rows per forward pass; 0 means all.
            on_step: called after each forward pass.
        """
        waiting = self.batch.target_mask.any(1).nonzero()[:, 0]
        size = rows_at_once or len(waiting)
        active = waiting[:0]
        while len(active) or len(waiting):
            started, waiting = waiting.tensor_split([size - len(active)])
            self.start_rows(started)
            active = torch.cat([active, started])
            self.step(active)
            unfinished = self.moment[active].isfinite().any(1)
            finished, active = active[~unfinished], active[unfinished]
            if on_step is not None:
                on_step(finished, self.xt)
        return self.xt

    def draw_uniform(self, positions: Tensor, rows: Tensor) -> Tensor:
        """Draw uniform variables for these rows, float64 [b, L], where `positions` is True; 1 elsewhere."""
        return uniform(positions, self.generator, rows=rows)

    def start_rows(self, rows: Tensor) -> None:
        """Draw the first proposals of the rows that enter the batch."""
        if len(rows):
            targets = self.batch.target_mask[rows]
            wait = exponential(self.draw_uniform(targets, rows).where(targets, 0.0))
            first = self.clock.next(torch.zeros_like(wait), wait)
            self.moment[rows] = first.where(targets, math.inf)

    def step(self, rows: Tensor) -> None:
        """Run one forward pass of these rows, and propose until each row has revealed a token."""
        attention = self.batch.attention_mask[rows]
        width = int(attention.any(0).nonzero().max()) + 1
        xt = self.xt[rows, :width]
        t = self.process.time_input(self.clock.time(self.moment[rows].amin(1)))
        targets = self.batch.target_mask[rows, :width]
        # after a rejection, and for the sentence mean, further masked positions are needed
        needed = xt.eq(self.process.mask_id) & targets if self.process.thinning else self.due(rows, width)
        hidden = encode_at(self.denoiser, xt, t, attention[:, :width], needed)
        mean = self.sentence_mean(xt, hidden, targets)
        pending = torch.arange(len(rows), device=rows.device)
        while len(pending):
            means = None if mean is None else mean[pending]
            pending = pending[~self.propose(rows[pending], hidden[pending], means)]
            if self.denoiser.time_conditioned:
                break  # the next proposals are at other times, and need other predictions

    def propose(self, rows: Tensor, hidden: Tensor, mean: Tensor | None) -> Tensor:
        """Draw a token at the next proposal of each row, and accept or reject it.

        Args:
            rows: int64 [b], indices of the rows.
            hidden: [b, width, D], hidden states of the rows.
            mean: [b], sentence means that the marks need; None if they need none.

        Returns:
            bool [b], True where the row has revealed a token.
        """
        thinning, moment = self.process.thinning, self.moment[rows, : hidden.shape[1]]
        due = self.due(rows, hidden.shape[1])
        index, column = due.nonzero().unbind(1)
        row, now = rows[index], moment[due]
        drawn = self.draw_uniform(due.repeat(1, 3 if thinning else 1), rows).split(due.shape[1], dim=1)
        logits = self.denoiser.decode(hidden[due])
        token = sample_categorical(self.weights(logits), drawn[0][due])
        if thinning is None:
            self.xt[row, column], self.moment[row, column] = token, math.inf
            return torch.ones_like(rows, dtype=torch.bool)
        mark = thinning.mark(logits, token, None if mean is None else mean[index])
        accepted = drawn[1][due] < self.clock.acceptance(now, mark)
        later = self.clock.next(now, exponential(drawn[2][due]))
        self.xt[row, column] = token.where(accepted, self.process.mask_id)
        self.moment[row, column] = torch.where(accepted, math.inf, later)
        return torch.zeros_like(rows, dtype=torch.bool).index_fill(0, index[accepted], True)

    def due(self, rows: Tensor, width: int) -> Tensor:
        """Return the position of the next proposal of each of these rows, bool [b, width]."""
        moment = self.moment[rows, :width]
        return moment == moment.amin(1, keepdim=True)

    def weights(self, logits: Tensor) -> Tensor:
        """Return p(x0 | xt) after temperature, top-k and top-p, [n, V], float32 or float64."""
        return filter_logits(logits + self.process.sampling_support, self.args).softmax(-1)

    def sentence_mean(self, xt: Tensor, hidden: Tensor, targets: Tensor) -> Tensor | None:
        """Return the sentence means that the marks need, float64 [b], by predicting every masked position of xt."""
        thinning = self.process.thinning
        if thinning is None or thinning.statistic is None:
            return None
        masked, statistic = xt.eq(self.process.mask_id) & targets, thinning.statistic
        at_once = max(1, MAX_LOGITS // len(statistic))
        predicted = (self.weights(self.denoiser.decode(part)) for part in hidden[masked].split(at_once))
        expected = torch.cat([weights @ statistic.to(weights.dtype) for weights in predicted])
        return thinning.sentence_mean(expected, xt, masked, targets)
