"""Ancestral sampling of a masked process in which every row has its own clock: the same law, far fewer forward passes.

The output of a network without time input changes only when a token is revealed. So a row needs a forward pass only
then, and the rows of a batch may stand at different steps. The times of the reveals are drawn by thinning (Lewis and
Shedler 1979):

1. Propose. Every masked position draws the time of its next proposal from the largest hazard that any token has, by
   inverting the cumulative hazard at an exponential variable. The network is not needed for this.
2. Accept. At a proposal the network predicts the position, and a token is drawn from p(x0 | xt). It is accepted with
   the ratio of its own reveal probability to the largest one. After a rejection the position draws its next proposal;
   xt has not changed, so the same prediction serves again.

Where the reveal probability does not depend on the prediction (no spindle, no predicted [MASK]), every proposal is
accepted, and the vocabulary head runs at revealed positions only. Without windows (`--num_steps inf`) this is the
first-hitting sampler (Zheng et al. 2024, arXiv 2409.02908): one token per forward pass. A row takes as many forward
passes as it has moments with a reveal, at most one per token. Finished rows leave the batch and waiting rows replace
them, so that the batch stays full to the end.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from data.batch import Batch
from diffusion.draws import Generators, filter_logits, sample_categorical, streams_of, uniform
from diffusion.masked.transitions import MaskedTransitions, Thinning
from diffusion.options import SampleArgs
from diffusion.process import Denoiser, StepCallback

LOGITS_AT_ONCE = 2**22
"""Logits in one piece where every masked position is predicted: pieces that fit the cache are faster."""


class Clock(Protocol):
    """Times of proposals, as moments: numbers that grow from 0 as the reverse process goes on."""

    def next(self, moment: Tensor, wait: Tensor) -> Tensor:
        """Return the first moment after `moment` at which the largest hazard reveals a token; wait ~ Exp(1)."""
        ...

    def acceptance(self, moment: Tensor, mark: Tensor) -> Tensor:
        """Return the acceptance probability of a token with this mark at a proposal."""
        ...

    def time(self, moment: Tensor) -> Tensor:
        """Return the time t of a moment, as the schedule counts it."""
        ...


class WindowClock:
    """Moments are the reverse steps 1..n of a grid from T to 0."""

    def __init__(self, process: MaskedTransitions, num_steps: int) -> None:
        """Sum the largest hazard window by window; it is infinite in the last, which reveals what is left."""
        self.thinning = process.thinning
        self.t, self.s = process.schedule.windows(num_steps).unbind(1)
        if process.leftover_masks:  # one window more, of no length
            self.t, self.s = torch.cat([self.t, self.s[-1:]]), torch.cat([self.s, self.s[-1:]])
        law = self.thinning or process.schedule
        fastest = torch.full_like(self.t, fastest_mark(self.thinning), dtype=torch.float64)
        self.largest = law.reveal_probability(self.s, self.t, fastest)
        hazard = -torch.log1p(-self.largest.where(self.s > 0, 1.0))
        self.hazard = torch.cat([hazard.new_zeros(1), hazard.cumsum(0)])

    def next(self, moment: Tensor, wait: Tensor) -> Tensor:
        """See Clock."""
        reached = torch.searchsorted(self.hazard, self.hazard[moment.long()] + wait)
        return torch.maximum(reached, moment.long() + 1).double()

    def acceptance(self, moment: Tensor, mark: Tensor) -> Tensor:
        """See Clock."""
        window = moment.long() - 1
        own = self.thinning.reveal_probability(self.s[window], self.t[window], mark)
        return torch.where(window < len(self.s) - 1, own / self.largest[window], 1.0)

    def time(self, moment: Tensor) -> Tensor:
        """See Clock."""
        return self.t[moment.long() - 1]


class ContinuousClock:
    """The limit of ever finer windows; a moment is the largest cumulative hazard, -log(1 - alpha_bar)."""

    def __init__(self, process: MaskedTransitions) -> None:
        """Nothing is tabulated."""
        self.schedule, self.thinning = process.schedule, process.thinning

    def level(self, moment: Tensor) -> Tensor:
        """alpha_bar of an average token at a moment, by bisection down to rounding."""
        low, high = torch.zeros_like(moment), torch.ones_like(moment)
        fastest, wanted = torch.full_like(moment, fastest_mark(self.thinning)), -torch.expm1(-moment)
        for _ in range(60):
            middle = (low + high) / 2
            early = (self.thinning.alpha_bar(middle, fastest) if self.thinning else middle) < wanted
            low, high = torch.where(early, middle, low), torch.where(early, high, middle)
        return low.clamp(max=1 - 1e-12)  # beyond, rates are 0/0; no sentence is long enough to get there

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
    """Return the mark with the largest hazard; without thinning all tokens are alike, with h = 0."""
    return thinning.fastest_mark if thinning else 0.0


def exponential(u: Tensor) -> Tensor:
    """Return exponential variables of mean 1, from uniform ones in [0, 1)."""
    return -torch.log1p(-u)


class RowClocks:
    """The sampler: the state of every row, and its steps."""

    def __init__(
        self,
        process: MaskedTransitions,
        denoiser: Denoiser,
        batch: Batch,
        args: SampleArgs,
        generator: Generators = None,
    ) -> None:
        """Mask the targets of all rows; no row has begun.

        Args:
            process: gives schedule and thinning.
            denoiser: the network. With time input it needs a forward pass for every proposal.
            batch: all N rows to be sampled; rows of similar length stand side by side.
            args: number of reverse steps, or inf; temperature, top-k and top-p, which act on p(x0 | xt).
            generator: with one stream per row, a row does not depend on the others.
        """
        self.process, self.denoiser, self.batch, self.args, self.generator = process, denoiser, batch, args, generator
        infinite = math.isinf(args.num_steps)
        self.clock: Clock = ContinuousClock(process) if infinite else WindowClock(process, int(args.num_steps))
        self.xt = batch.input_ids.masked_fill(batch.target_mask, process.mask_id)
        self.moment = torch.full(self.xt.shape, math.inf, dtype=torch.float64, device=self.xt.device)
        """[N, L], moment of the next proposal of each masked target; infinite elsewhere."""

    def run(self, rows_at_once: int = 0, on_step: StepCallback | None = None) -> Tensor:
        """Draw x_0 ~ p_theta, int64 [N, L]: every target anew; all other tokens stay.

        Args:
            rows_at_once: rows per forward pass; 0: all.
            on_step: called after each forward pass.
        """
        waiting = self.batch.target_mask.any(1).nonzero()[:, 0]
        size = rows_at_once or len(waiting)
        active = waiting[:0]
        while len(active) or len(waiting):
            admitted, waiting = waiting.tensor_split([size - len(active)])
            self.admit(admitted)
            active = torch.cat([active, admitted])
            self.step(active)
            unfinished = self.moment[active].isfinite().any(1)
            finished, active = active[~unfinished], active[unfinished]
            if on_step is not None:
                on_step(finished, self.xt)
        return self.xt

    def draw(self, where: Tensor, rows: Tensor) -> Tensor:
        """Return uniform variables for some rows, float64 [b, L], at the True positions of `where`; 1 elsewhere."""
        return uniform(where, streams_of(self.generator, rows))

    def admit(self, rows: Tensor) -> None:
        """Draw the first proposals of rows that join the batch."""
        if len(rows):
            targets = self.batch.target_mask[rows]
            wait = exponential(self.draw(targets, rows).where(targets, 0.0))
            first = self.clock.next(torch.zeros_like(wait), wait)
            self.moment[rows] = first.where(targets, math.inf)

    def step(self, rows: Tensor) -> None:
        """Run one forward pass of some rows, and propose until each of them has revealed a token."""
        attention = self.batch.attention_mask[rows]
        width = int(attention.any(0).nonzero().max()) + 1
        xt = self.xt[rows, :width]
        t = self.process.time_input(self.clock.time(self.moment[rows].amin(1)))
        hidden = self.denoiser.encode(xt, t, attention[:, :width])
        mean = self.sentence_mean(xt, hidden, self.batch.target_mask[rows, :width])
        pending = torch.arange(len(rows), device=rows.device)
        while len(pending):
            means = None if mean is None else mean[pending]
            pending = pending[~self.propose(rows[pending], hidden[pending], means)]
            if self.denoiser.time_conditioned:
                break  # the next proposals are at other times, and need predictions of their own

    def propose(self, rows: Tensor, hidden: Tensor, mean: Tensor | None) -> Tensor:
        """Process the next proposals of some rows: draw a token at each position, and accept or reject it.

        Args:
            rows: int64 [b], their numbers.
            hidden: [b, width, D], their hidden states.
            mean: [b], sentence means for the marks; None if the marks need none.

        Returns:
            bool [b], whether the row revealed a token.
        """
        thinning, moment = self.process.thinning, self.moment[rows, : hidden.shape[1]]
        due = moment == moment.amin(1, keepdim=True)
        index, column = due.nonzero().unbind(1)
        row, now = rows[index], moment[due]
        drawn = self.draw(due.repeat(1, 3 if thinning else 1), rows).split(due.shape[1], dim=1)
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

    def weights(self, logits: Tensor) -> Tensor:
        """Return p(x0 | xt), [n, V], float32 at least, after temperature, top-k and top-p."""
        return filter_logits(logits + self.process.sampling_support, self.args).softmax(-1)

    def sentence_mean(self, xt: Tensor, hidden: Tensor, targets: Tensor) -> Tensor | None:
        """Return the sentence means that marks need, float64 [b]: every masked position of x_t is predicted."""
        thinning = self.process.thinning
        if thinning is None or thinning.statistic is None:
            return None
        masked, statistic = xt.eq(self.process.mask_id) & targets, thinning.statistic
        at_once = max(1, LOGITS_AT_ONCE // len(statistic))
        predicted = (self.weights(self.denoiser.decode(part)) for part in hidden[masked].split(at_once))
        expected = torch.cat([weights @ statistic.to(weights.dtype) for weights in predicted])
        return thinning.sentence_mean(expected, xt, masked, targets)
