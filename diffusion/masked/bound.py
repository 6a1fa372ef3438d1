"""Estimators of the likelihood bound: the same expectation, at different prices.

With windows j = 1..n that lead from T to 0, and M the set of masked tokens, the bound of a sentence is

    sum_j E[f_j(M_j)],    M_j ~ q_j, every token masked on its own with probability 1 - alpha_bar(t_j),

where f_j(M) is the sum of the masked tokens' KL terms. An estimator is a way to choose the sets the network is shown.

windows       every window once, each with a set of its own: as published.
stratified    fewer windows than there are, evenly spread: any number of forwards.
masked-count  without spindle, if the network is not told the time: f_j(M) is u_j times the cross-entropy C(M) of the
              masked tokens, which one forward gives for every window at once, so the bound is sum_k W(k) E[C(M) given
              |M| = k] with W(k) = sum_j u_j Binomial(k; L, 1 - alpha_bar(t_j)): exact for every n, 1/k in the limit of
              many (that limit: Zheng et al. 2024, arXiv 2409.02908; RADD, arXiv 2406.03736). The sizes k are evenly
              spread, and the sets together cover all tokens evenly.
trajectory    what the sampler would do if it were to write x0: every token has a window in which it is revealed, the
              sets are nested, and a forward is needed only where they change: at most L of them, whatever n. A token's
              cross-entropy is counted once, where it is revealed; so the sum is a chain rule, and a network that
              agrees with itself is estimated without error. What a spindle adds to f_j(M), whether a token was
              expected to be revealed now, is averaged over windows drawn from those that share a set.

In the limit of ever finer windows (num_steps inf; only where all tokens are alike) the bound does not depend on the
schedule: it is the integral over mask rates r of C(M) / r, W(k) is 1/k, and a trajectory is a random order. A network
that is told the time may be shown sets by their size there, too: the rate that goes with a set of k out of L is then
drawn from what is left of that integral, a Beta(k, L - k + 1).
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from data.batch import Batch
from diffusion.draws import Generators, streams_of, uniform
from diffusion.masked.prediction import Prediction
from diffusion.options import BoundArgs
from diffusion.process import Bound, Denoiser
from utils.errors import UserError

FEW = 16  # forwards a sentence and round, unless told otherwise
WINDOWS_A_SET = 2  # drawn from those that share a set, with a spindle


class Estimated(Protocol):
    """What the estimators ask of a masked process."""

    mask_id: int
    exact: bool
    """Whether u is Bayes' and visible tokens cost nothing."""
    flat: bool
    """Whether every token has the same alpha_bar."""

    def windows(self, num_steps: int) -> Tensor:
        """The reverse steps (t, s) from all [MASK] to clean, [n, 2]."""
        ...

    def time_at(self, level: Tensor) -> Tensor:
        """When alpha_bar is at `level`."""
        ...

    def corrupt(self, x0: Tensor, t: Tensor, target_mask: Tensor, *, generator: Generators = None) -> Tensor:
        """x_t, int64 [B, L]."""
        ...

    def token_terms(
        self, denoiser: Denoiser, batch: Batch, xt: Tensor, s: Tensor, t: Tensor, *, with_kl: bool = True
    ) -> tuple[Tensor, Tensor]:
        """KL, and what a masked token costs over the whole of time, each [B, L]."""
        ...

    def informativeness_of(self, x0: Tensor, target_mask: Tensor) -> Tensor:
        """The h of every token, [B, L]."""
        ...

    def keep_probability(self, t: Tensor, h: Tensor) -> Tensor:
        """alpha_bar of informativeness h."""
        ...

    def reveal_probability(self, h: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """The probability u that a token masked at t is itself at s."""
        ...

    def posterior(self, x0: Tensor, s: Tensor, t: Tensor, target_mask: Tensor) -> Tensor:
        """The same of every token, [B, L]."""
        ...

    def predict(self, denoiser: Denoiser, batch: Batch, xt: Tensor, t: Tensor) -> Prediction:
        """What the network makes of the masked targets."""
        ...

    def nats(self, prediction: Prediction) -> Tensor:
        """What a masked target costs over the whole of time, [n]."""
        ...

    def divergence(self, prediction: Prediction, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The KL terms of a window and the cross-entropies, each [n], for s and t int64 [B]."""
        ...


def estimate(
    process: Estimated,
    denoiser: Denoiser,
    batch: Batch,
    num_steps: float,
    args: BoundArgs,
    *,
    generator: Generators = None,
) -> Bound:
    """One round of the estimator that `args` name: unbiased for the bound at `num_steps` windows.

    Raises:
        UserError: if the estimator cannot serve this network or this process.
    """
    limit, name = math.isinf(num_steps), args.estimator
    refuse(process, denoiser, name, limit=limit)
    grid = None if limit else process.windows(int(num_steps))
    evaluations = args.evaluations or FEW
    if name == "windows":
        return every_window(process, denoiser, batch, grid, generator)
    if name == "stratified":
        return stratified(process, denoiser, batch, grid, evaluations, generator)
    if name == "trajectory":
        return trajectory(process, denoiser, batch, grid, args.evaluations or 2, generator)
    return masked_count(process, denoiser, batch, grid, evaluations, generator)


def refuse(process: Estimated, denoiser: Denoiser, name: str, *, limit: bool) -> None:
    """Refuses an estimator that cannot serve this network, this process, or the limit of ever finer windows.

    Raises:
        UserError: with the remedy.
    """
    if limit and not process.flat:
        raise UserError("num_steps=inf is for processes without spindle; give a number of steps")
    if limit and not process.exact:
        raise UserError("num_steps=inf: this process is one of whole steps; give a number of them")
    if limit and name in ("windows", "stratified"):
        raise UserError(f"estimator={name} needs a number of steps; with num_steps=inf use masked-count")
    if name in ("windows", "stratified"):
        return
    if not process.exact:
        raise UserError(f"estimator={name} needs the exact posterior; use windows or stratified")
    if denoiser.time_conditioned and not (limit and name == "masked-count"):
        raise UserError(f"estimator={name} needs a network that is not told the time; use windows or stratified")
    if name == "masked-count" and not process.flat:
        raise UserError("estimator=masked-count is for checkpoints without spindle; use trajectory")


def every_window(process: Estimated, denoiser: Denoiser, batch: Batch, grid: Tensor, generator: Generators) -> Bound:
    """Every window once."""
    return stratified(process, denoiser, batch, grid, len(grid), generator, everywhere=True)


def stratified(
    process: Estimated,
    denoiser: Denoiser,
    batch: Batch,
    grid: Tensor,
    evaluations: int,
    generator: Generators,
    *,
    everywhere: bool = False,
) -> Bound:
    """One window out of each of so many equal parts of them, per sentence; `everywhere`: the part is the window."""
    rows = len(batch.input_ids)
    place = torch.arange(evaluations, device=grid.device).expand(rows, -1)
    if not everywhere:
        where = torch.ones_like(place, dtype=torch.bool)
        place = ((place + uniform(where, generator)) * (len(grid) / evaluations)).long().clamp(max=len(grid) - 1)
    t, s = grid[place].unbind(-1)
    terms = []
    for e in range(evaluations):
        xt = process.corrupt(batch.input_ids, t[:, e], batch.noised, generator=generator)
        terms.append(process.token_terms(denoiser, batch, xt, s[:, e], t[:, e])[0].sum(1))
    share = torch.stack(terms, 1) * (len(grid) / evaluations)
    reconstruction = share.where(s == 0, 0.0).sum(1)
    return bound_of(share.sum(1), reconstruction, torch.full_like(reconstruction, evaluations))


def bound_of(total: Tensor, reconstruction: Tensor, forwards: Tensor) -> Bound:
    """The prior is 0, for nothing is visible at T."""
    return Bound(torch.zeros_like(total), total - reconstruction, reconstruction, forwards)


# ---- by the number of masked tokens ----------------------------------------------------------------------------------


def masked_count(
    process: Estimated, denoiser: Denoiser, batch: Batch, grid: Tensor | None, evaluations: int, generator: Generators
) -> Bound:
    """One forward for each of `evaluations` sets of masked tokens."""
    targets = batch.noised
    length = targets.sum(1)
    each = torch.ones(len(targets), evaluations, dtype=torch.bool, device=targets.device)
    size = draw_sizes(length, uniform(each, generator))
    weight = size_weights(process, length, size, grid) * length[:, None, None] / evaluations
    masked = balanced_sets(targets, size, generator)
    nats = []
    for e in range(evaluations):
        xt = batch.input_ids.masked_fill(masked[:, e], process.mask_id)
        told = denoiser.time_conditioned  # otherwise the time is all the same
        t = process.time_at(1 - rate_of(targets, size[:, e], generator)) if told else torch.ones_like(length)
        prediction = process.predict(denoiser, batch, xt, t)
        nats.append(prediction.per_row(process.nats(prediction)))
    total, reconstruction = (weight * torch.stack(nats, 1)[..., None]).sum(1).unbind(-1)
    return bound_of(total, reconstruction, torch.full_like(total, evaluations))


def rate_of(targets: Tensor, size: Tensor, generator: Generators) -> Tensor:
    """Beta(k, L - k + 1) for k = size [B]: the k-th smallest of as many uniform variables as there are targets."""
    ordered = uniform(targets, generator).sort(1).values  # 1 where there is no target
    return ordered.gather(1, (size - 1).clamp(min=0)[:, None])[:, 0]


def draw_sizes(lengths: Tensor, u: Tensor) -> Tensor:
    """How many tokens to mask, int64 [B, E]: uniform on 1..L (0 if there are none), one from each of E equal parts.

    Args:
        lengths: int64 [B], L of each sentence.
        u: float64 [B, E] in [0, 1).
    """
    share = (torch.arange(u.shape[1], device=u.device) + u) / u.shape[1]
    return torch.minimum((share * lengths[:, None]).long() + 1, lengths[:, None])


def size_weights(process: Estimated, lengths: Tensor, size: Tensor, grid: Tensor | None) -> Tensor:
    """W(k), and its part of the window that ends at 0, float64 [B, E, 2], for sizes k [B, E] of L = lengths [B]."""
    if grid is None:
        limit = 1 / size.clamp(min=1).double()
        return torch.stack([limit, torch.zeros_like(limit)], -1)
    t, s = grid.unbind(1)
    average = torch.zeros(len(grid), dtype=torch.float64, device=grid.device)
    u, rate = process.reveal_probability(average, s, t), 1 - process.keep_probability(t, average)
    weights = torch.zeros(*size.shape, 2, dtype=torch.float64, device=grid.device)
    for length in lengths.unique().tolist():
        k = torch.arange(length + 1, dtype=torch.float64, device=grid.device)[:, None]
        whole = torch.full_like(k, length)
        ways = (whole + 1).lgamma() - (k + 1).lgamma() - (whole - k + 1).lgamma()
        law = (ways + torch.xlogy(k, rate) + torch.xlogy(whole - k, 1 - rate)).exp()  # Binomial(k; L, rate), [L + 1, n]
        table = torch.stack([(law * u).sum(-1), law[:, -1] * u[-1]], -1)
        weights[lengths == length] = table[size[lengths == length]]
    return weights


def balanced_sets(targets: Tensor, size: Tensor, generator: Generators) -> Tensor:
    """Sets of k targets, all equally likely, bool [B, E, L].

    Each takes the tokens that have weighed least so far, of equals any: no token is special, so each set alone is
    uniform, but together they cover all tokens evenly, and what one token costs more than another is no error any more.

    Args:
        targets: bool [B, L].
        size: int64 [B, E], k.
        generator: streams.
    """
    weighed = torch.zeros(targets.shape, dtype=torch.float64, device=targets.device)
    sets = []
    for k in size[..., None].unbind(1):
        order = (weighed + 1e-9 * uniform(targets, generator)).masked_fill(~targets, torch.inf).argsort(1).argsort(1)
        sets.append(order < k)
        weighed = weighed + sets[-1] / k.clamp(min=1)  # W(k) is about 1 / k
    return torch.stack(sets, 1)


# ---- along the reverse process ---------------------------------------------------------------------------------------


def trajectory(
    process: Estimated, denoiser: Denoiser, batch: Batch, grid: Tensor | None, number: int, generator: Generators
) -> Bound:
    """The mean of so many; every second one reveals in the opposite order, so that a lucky start is paid back."""
    targets = batch.noised
    h = process.informativeness_of(batch.input_ids, targets)
    sums = torch.zeros(3, len(h), dtype=torch.float64, device=h.device)
    u = uniform(targets, generator)
    for i in range(number):
        if i > 0:
            u = (1 - u).clamp(max=1 - 2.0**-53) if i % 2 else uniform(targets, generator)
        found = order_of(u, targets) if grid is None else first_window(process, h, u, grid[:, 1])
        moments = torch.ones_like(h[:1].T).expand(-1, 2) if grid is None else grid  # one a token; none ends at 0
        sums += one_trajectory(process, denoiser, batch, moments, found.masked_fill(~targets, -1), generator)
    total, reconstruction, forwards = sums / torch.tensor([[number], [number], [1]], device=h.device)
    return bound_of(total, reconstruction, forwards)


def order_of(u: Tensor, targets: Tensor) -> Tensor:
    """The place of every target in the order of u, int64 [B, L]: one after another."""
    return u.masked_fill(~targets, torch.inf).argsort(1).argsort(1)


def first_window(process: Estimated, h: Tensor, u: Tensor, ends: Tensor) -> Tensor:
    """The first window, of those that end at `ends` [n], after which alpha_bar is above u, int64 [B, L]."""
    low, high = torch.zeros_like(u, dtype=torch.long), torch.full_like(u, len(ends) - 1, dtype=torch.long)
    while (low < high).any():
        middle = (low + high) // 2
        late = process.keep_probability(ends[middle], h) <= u
        low, high = torch.where(late, middle + 1, low), torch.where(late, high, middle)
    return low  # the last is never too early: alpha_bar(0) is 1


def one_trajectory(
    process: Estimated, denoiser: Denoiser, batch: Batch, grid: Tensor, revealed_in: Tensor, generator: Generators
) -> Tensor:
    """Nats, those of the step that ends at 0, and forwards, [3, B]; tokens are revealed in 0..n-1, or given (-1)."""
    sums = torch.zeros(3, len(revealed_in), dtype=torch.float64, device=revealed_in.device)
    begin = torch.zeros_like(revealed_in[:, 0])  # the first window that sees the present set
    while (active := (revealed_in >= begin[:, None]).any(1).nonzero()[:, 0]).numel():
        rows = batch.rows(active)
        when, since = revealed_in[active], begin[active]
        masked = when >= since[:, None]
        now = when.masked_fill(~masked, len(grid)).amin(1)
        t, s = grid[now].unbind(1)
        prediction = process.predict(denoiser, rows, rows.input_ids.masked_fill(masked, process.mask_id), t)
        due = (when == now[:, None])[prediction.masked]
        nats = prediction.per_row(process.nats(prediction).where(due, 0.0))
        at_the_end = nats.where(s == 0, 0.0)  # where everything is revealed, and its time is no surprise
        if not process.flat:
            each = torch.ones(len(active), WINDOWS_A_SET, dtype=torch.bool, device=grid.device)
            u = uniform(each, streams_of(generator, active))
            nats = nats + timing_terms(process, prediction, since, now, u, grid)
        sums[:, active] += torch.stack([nats, at_the_end, torch.ones_like(nats)])
        begin[active] = now + 1
    return sums


def timing_terms(
    process: Estimated, prediction: Prediction, since: Tensor, until: Tensor, u: Tensor, grid: Tensor
) -> Tensor:
    """What a spindle adds to u times the cross-entropy, [B], summed over windows since..until: estimated from some."""
    number, batch = until - since + 1, prediction.batch
    total = torch.zeros(len(since), dtype=torch.float64, device=grid.device)
    for i, place in enumerate(u.unbind(1)):
        window = since + ((i + place) / u.shape[1] * number).long()
        t, s = grid[torch.minimum(window, until)].unbind(1)
        kl, cross_entropy = process.divergence(prediction, s, t)
        weight = process.posterior(batch.input_ids, s, t, batch.target_mask)[prediction.masked]
        total += prediction.per_row(kl - weight * cross_entropy)
    return total * number / u.shape[1]
