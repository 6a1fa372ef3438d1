"""Ancestral sampling of a masked process in which every row keeps its own clock: the same law, far fewer forwards.

A network that is not told the time changes its mind only when a token is revealed, so a row needs a forward only then,
and the rows of a batch may stand at different steps. When a token is due can be settled before the network is asked:

1. No token is revealed more willingly than the process's `boldest`. Every masked position draws its next moment from
   that token's law, by inverting its cumulative hazard at an exponential variable; the network has no part in it.
2. Only at the moment a position comes up does it need a prediction. A token is drawn from it and accepted with the odds
   of its own probability to be revealed now against the boldest's (thinning: Lewis and Shedler 1979). After a
   rejection the position draws its next moment, and the same prediction serves again, for nothing has changed.

Where a prediction has no say in when a token is revealed (no spindle, no [MASK] predicted), every moment is accepted,
and the vocabulary head runs at revealed positions only. Without windows (`--num_steps inf`) this is the first-hitting
sampler (Zheng et al. 2024, arXiv 2409.02908): one token a forward. A row takes as many forwards as it has moments with
a reveal in them, at most one a token. Rows that are done leave the batch and waiting ones take their places, so it
stays full to the end.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from data.batch import Batch
from diffusion.draws import Generators, filter_logits, sample_categorical, streams_of, uniform
from diffusion.options import SampleArgs
from diffusion.process import Denoiser, StepCallback

LOGITS_AT_ONCE = 2**22
"""Where every masked position is predicted: what fits a cache is quicker than what fits the memory."""


class Revealing(Protocol):
    """What the sampler asks of a masked process. What h is, of a token or a position, is the process's matter."""

    mask_id: int
    sampling_support: Tensor
    """[V], added to logits; -inf bars a token."""
    flat: bool
    """Whether all tokens are equally bold."""
    thins: bool
    """Whether a prediction has a say in when a token is revealed, so that it may be rejected when it comes up."""
    lingers: bool
    """Whether a token may still be masked after the last window; it is then revealed given the rest."""
    boldest: float
    """The h than which none is lower: what is revealed soonest."""
    statistic: Tensor
    """[V], what h is made of; unused if `flat`, as is `estimated_mean`."""

    def windows(self, num_steps: int) -> Tensor:
        """The reverse steps (t, s) from all [MASK] to clean, [n, 2]."""
        ...

    def time_at(self, level: Tensor) -> Tensor:
        """When alpha_bar of an average token is at `level`."""
        ...

    def told(self, t: Tensor) -> Tensor:
        """What a time-conditioned network is told at t."""
        ...

    def reveal_probability(self, h: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """Of a token that is masked at t: to be itself at s."""
        ...

    def keep_at(self, level: Tensor, h: Tensor) -> Tensor:
        """alpha_bar of a token, where that of an average one is `level`."""
        ...

    def reveal_rate(self, level: Tensor, h: Tensor) -> Tensor:
        """The reveal probability of a vanishing window, per unit of `level`."""
        ...

    def estimated_mean(self, expected: Tensor, xt: Tensor, masked: Tensor, target_mask: Tensor) -> Tensor:
        """[B], the sentence mean of the statistic, of which the masked positions have the expectations given."""
        ...

    def hesitation(self, logits: Tensor, token: Tensor, mean: Tensor | None) -> Tensor:
        """The h of drawn tokens, [n], predicted by logits [n, V], in sentences of that mean (None if `flat`)."""
        ...


class Clock(Protocol):
    """When masked positions come up. Moments are numbers that grow as the reverse process goes on, from 0."""

    def next(self, moment: Tensor, patience: Tensor) -> Tensor:
        """The first moment after `moment` at which the boldest token would be revealed; patience ~ Exp(1)."""
        ...

    def acceptance(self, moment: Tensor, h: Tensor) -> Tensor:
        """Probability that a token of informativeness h is revealed, given that the boldest would be."""
        ...

    def time(self, moment: Tensor) -> Tensor:
        """The time t, in the process's own count."""
        ...


class WindowClock:
    """Moments are the reverse steps 1..n of a grid from T to 0."""

    def __init__(self, process: Revealing, num_steps: int) -> None:
        """Sums the boldest token's hazard window by window; it is infinite in the last, which reveals what is left."""
        self.process = process
        self.t, self.s = process.windows(num_steps).unbind(1)
        if process.lingers:  # one window more, of no length
            self.t, self.s = torch.cat([self.t, self.s[-1:]]), torch.cat([self.s, self.s[-1:]])
        bold = torch.full(self.t.shape, process.boldest, dtype=torch.float64, device=self.t.device)
        self.bold = process.reveal_probability(bold, self.s, self.t)
        hazard = -torch.log1p(-self.bold.where(self.s > 0, 1.0))
        self.hazard = torch.cat([hazard.new_zeros(1), hazard.cumsum(0)])

    def next(self, moment: Tensor, patience: Tensor) -> Tensor:
        """See Clock."""
        reached = torch.searchsorted(self.hazard, self.hazard[moment.long()] + patience)
        return torch.maximum(reached, moment.long() + 1).double()

    def acceptance(self, moment: Tensor, h: Tensor) -> Tensor:
        """See Clock."""
        window = moment.long() - 1
        own = self.process.reveal_probability(h, self.s[window], self.t[window])
        return torch.where(window < len(self.s) - 1, own / self.bold[window], 1.0)

    def time(self, moment: Tensor) -> Tensor:
        """See Clock."""
        return self.t[moment.long() - 1]


class ContinuousClock:
    """The limit of ever finer windows; a moment is the boldest token's cumulative hazard, -log(1 - alpha_bar)."""

    def __init__(self, process: Revealing) -> None:
        """Nothing is tabulated."""
        self.process = process

    def level(self, moment: Tensor) -> Tensor:
        """The base schedule's alpha_bar at a moment, by bisection down to rounding."""
        low, high = torch.zeros_like(moment), torch.ones_like(moment)
        bold, wanted = torch.full_like(moment, self.process.boldest), -torch.expm1(-moment)
        for _ in range(60):
            middle = (low + high) / 2
            early = self.process.keep_at(middle, bold) < wanted
            low, high = torch.where(early, middle, low), torch.where(early, high, middle)
        return low.clamp(max=1 - 1e-12)  # beyond, rates are 0/0; no sentence is long enough to get there

    def next(self, moment: Tensor, patience: Tensor) -> Tensor:
        """See Clock."""
        return moment + patience

    def acceptance(self, moment: Tensor, h: Tensor) -> Tensor:
        """See Clock."""
        level, bold = self.level(moment), torch.full_like(h, self.process.boldest)
        return self.process.reveal_rate(level, h) / self.process.reveal_rate(level, bold)

    def time(self, moment: Tensor) -> Tensor:
        """See Clock."""
        return self.process.time_at(self.level(moment))


def exponential(u: Tensor) -> Tensor:
    """Exponential variables of mean 1, from uniform ones in [0, 1)."""
    return -torch.log1p(-u)


class RowClocks:
    """The sampler: where every row stands, and how it goes on."""

    def __init__(
        self, process: Revealing, denoiser: Denoiser, batch: Batch, args: SampleArgs, generator: Generators = None
    ) -> None:
        """All rows masked, none begun.

        Args:
            process: what is revealed when.
            denoiser: the network. One that is told the time needs a forward for every moment that comes up.
            batch: N rows, all that are wanted; those of like length side by side.
            args: number of reverse steps, or inf; temperature, top-k and top-p, which act on p(x0 | xt).
            generator: with one stream for each row, a row does not depend on the others.
        """
        self.process, self.denoiser, self.batch, self.args, self.generator = process, denoiser, batch, args, generator
        infinite = math.isinf(args.num_steps)
        self.clock: Clock = ContinuousClock(process) if infinite else WindowClock(process, int(args.num_steps))
        self.xt = batch.input_ids.masked_fill(batch.target_mask, process.mask_id)
        self.moment = torch.full(self.xt.shape, math.inf, dtype=torch.float64, device=self.xt.device)
        """[N, L], when a masked target comes up next; infinite elsewhere."""

    def run(self, rows_at_once: int = 0, on_step: StepCallback | None = None) -> Tensor:
        """x_0 ~ p_theta, int64 [N, L]: every target drawn anew, everything else as it was.

        Args:
            rows_at_once: how many rows a forward takes; 0: all.
            on_step: is told after each forward.
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
        """Uniform variables for some rows, float64 [b, L], at the True positions of `where`; 1 elsewhere."""
        return uniform(where, streams_of(self.generator, rows))

    def admit(self, rows: Tensor) -> None:
        """First moments of rows that join."""
        if len(rows):
            targets = self.batch.target_mask[rows]
            patience = exponential(self.draw(targets, rows).where(targets, 0.0))
            first = self.clock.next(torch.zeros_like(patience), patience)
            self.moment[rows] = first.where(targets, math.inf)

    def step(self, rows: Tensor) -> None:
        """One forward of some rows, and all that its predictions are good for: a reveal in each of them."""
        attention = self.batch.attention_mask[rows]
        width = int(attention.any(0).nonzero().max()) + 1
        xt = self.xt[rows, :width]
        t = self.process.told(self.clock.time(self.moment[rows].amin(1)))
        hidden = self.denoiser.encode(xt, t, attention[:, :width])
        mean = None if self.process.flat else self.sentence_mean(xt, hidden, self.batch.target_mask[rows, :width])
        pending = torch.arange(len(rows), device=rows.device)
        while len(pending):
            means = None if mean is None else mean[pending]
            pending = pending[~self.come_up(rows[pending], hidden[pending], means)]
            if self.denoiser.time_conditioned:
                break  # their next moments are other times, with predictions of their own

    def come_up(self, rows: Tensor, hidden: Tensor, mean: Tensor | None) -> Tensor:
        """The next moment of some rows: its positions draw tokens, and may reveal them.

        Args:
            rows: int64 [b], their numbers.
            hidden: [b, width, D], what the network made of them.
            mean: [b], the sentence means; None if all tokens are alike.

        Returns:
            bool [b], whether a row revealed anything.
        """
        moment = self.moment[rows, : hidden.shape[1]]
        due = moment == moment.amin(1, keepdim=True)
        place, column = due.nonzero().unbind(1)
        row, now = rows[place], moment[due]
        drawn = self.draw(due.repeat(1, 3 if self.process.thins else 1), rows).split(due.shape[1], dim=1)
        logits = self.denoiser.decode(hidden[due])
        token = sample_categorical(self.weights(logits), drawn[0][due])
        if not self.process.thins:
            self.xt[row, column], self.moment[row, column] = token, math.inf
            return torch.ones_like(rows, dtype=torch.bool)
        h = self.process.hesitation(logits, token, None if mean is None else mean[place])
        accepted = drawn[1][due] < self.clock.acceptance(now, h)
        later = self.clock.next(now, exponential(drawn[2][due]))
        self.xt[row, column] = token.where(accepted, self.process.mask_id)
        self.moment[row, column] = torch.where(accepted, math.inf, later)
        return torch.zeros_like(rows, dtype=torch.bool).index_fill(0, place[accepted], True)

    def weights(self, logits: Tensor) -> Tensor:
        """p(x0 | xt), [n, V]: float32 at least, filtered as asked."""
        return filter_logits(logits + self.process.sampling_support, self.args).softmax(-1)

    def sentence_mean(self, xt: Tensor, hidden: Tensor, targets: Tensor) -> Tensor:
        """What h is set against, as far as x_t shows it, float64 [b]: the one thing that takes every prediction."""
        masked = xt.eq(self.process.mask_id) & targets
        statistic = self.process.statistic
        at_once = max(1, LOGITS_AT_ONCE // len(statistic))
        predicted = (self.weights(self.denoiser.decode(part)) for part in hidden[masked].split(at_once))
        expected = torch.cat([weights @ statistic.to(weights.dtype) for weights in predicted])
        return self.process.estimated_mean(expected, xt, masked, targets)
