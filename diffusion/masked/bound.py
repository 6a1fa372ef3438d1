"""Unbiased estimators of the variational bound on -log p(x0).

Windows j = 1..n run from T to 0, and M is the set of masked tokens. The bound of a sentence is

    sum_j E[f_j(M_j)],    M_j ~ q_j: every token is masked independently with probability 1 - alpha_bar(t_j),

where f_j(M) is the sum of the masked tokens' KL terms. A forward pass evaluates the network on one set M. All
estimators are unbiased. They choose different sets, and so differ in variance and in the number of forward passes.

windows       Draw one set for every window, as published: n forward passes.
stratified    Divide the windows into equal parts and draw one window from each: any number of forward passes.
masked-count  Without spindle and time input, f_j(M) is the posterior u_j times the cross-entropy C(M) of the masked
              tokens. One forward pass then serves all windows, and the bound is sum_k W(k) E[C(M) | |M| = k] with
              W(k) = sum_j u_j Binomial(k; L, 1 - alpha_bar(t_j)). This is exact for every n, and W(k) tends to 1/k
              (Zheng et al. 2024, arXiv 2409.02908; RADD, arXiv 2406.03736). To reduce the variance, the sizes k are
              stratified, and the sets together cover all tokens evenly.
trajectory    Draw one run of the reverse process that ends in x0. Every token is revealed in one window, so the sets
              are nested. A forward pass is needed only where the set changes: at most L passes for any n. The
              cross-entropy of a token is counted once, where it is revealed, and the sum is a chain rule. For a
              self-consistent network that reveals one token per window its variance is 0. A spindle adds the KL of
              the reveal time to f_j(M). This term is estimated from windows drawn among those that share a set.

In the limit of ever finer windows (num_steps inf, no spindle) the bound does not depend on the schedule. It is the
integral of C(M) / r over mask rates r, W(k) is 1/k, and a trajectory reveals the tokens in random order. In this limit
masked-count also serves networks with time input. For a set of k of L tokens it draws the mask rate r from
Beta(k, L - k + 1), whose density is proportional to Binomial(k; L, r) / r.
"""

import math

import torch
from torch import Tensor

from data.batch import Batch
from diffusion.draws import Generators, uniform
from diffusion.masked.prediction import Prediction
from diffusion.masked.transitions import MaskedTransitions
from diffusion.options import BoundArgs
from diffusion.process import Bound, Denoiser
from utils.errors import UserError

DEFAULT_EVALUATIONS = 16  # forward passes per sentence and round
WINDOWS_PER_SET = 2  # windows drawn among those that share a set, for the spindle term


def estimate(
    process: MaskedTransitions,
    denoiser: Denoiser,
    batch: Batch,
    num_steps: float,
    args: BoundArgs,
    *,
    generator: Generators = None,
) -> Bound:
    """Run one round of the estimator `args.estimator`; its mean is the bound at `num_steps` windows.

    Raises:
        UserError: if the estimator does not apply to this network or this process.
    """
    limit, name = math.isinf(num_steps), args.estimator
    check_estimator(process, denoiser, name, limit=limit)
    grid = None if limit else process.schedule.windows(int(num_steps))
    evaluations = args.evaluations or DEFAULT_EVALUATIONS
    if name == "windows":
        return every_window(process, denoiser, batch, grid, generator)
    if name == "stratified":
        return stratified(process, denoiser, batch, grid, evaluations, generator)
    if name == "trajectory":
        return trajectory(process, denoiser, batch, grid, args.evaluations or 2, generator)
    return masked_count(process, denoiser, batch, grid, evaluations, generator)


def check_estimator(process: MaskedTransitions, denoiser: Denoiser, name: str, *, limit: bool) -> None:
    """Check that the estimator applies to this network and this process, at whole steps or in the limit.

    Raises:
        UserError: if it does not apply.
    """
    known = process.limit_estimators if limit else process.estimators
    if not known:
        raise UserError("num_steps=inf: the bound of this process needs whole steps; give a number of steps")
    if name not in known:
        steps = "num_steps=inf" if limit else "a number of steps"
        raise UserError(f"estimator={name} does not suit this process; with {steps} it has {', '.join(known)}")
    by_set = name in ("masked-count", "trajectory")
    if by_set and denoiser.time_conditioned and not (limit and name == "masked-count"):
        raise UserError(f"estimator={name} needs a network without time conditioning; use windows or stratified")


def every_window(
    process: MaskedTransitions, denoiser: Denoiser, batch: Batch, grid: Tensor, generator: Generators
) -> Bound:
    """Evaluate every window once, each on its own set."""
    return stratified(process, denoiser, batch, grid, len(grid), generator, all_windows=True)


def stratified(
    process: MaskedTransitions,
    denoiser: Denoiser,
    batch: Batch,
    grid: Tensor,
    evaluations: int,
    generator: Generators,
    *,
    all_windows: bool = False,
) -> Bound:
    """Evaluate one window from each of `evaluations` equal parts, drawn per sentence.

    `all_windows` skips the draw: there are as many parts as windows.
    """
    rows = len(batch.input_ids)
    window = torch.arange(evaluations, device=grid.device).expand(rows, -1)
    if not all_windows:
        each = torch.ones_like(window, dtype=torch.bool)
        window = ((window + uniform(each, generator)) * (len(grid) / evaluations)).long().clamp(max=len(grid) - 1)
    t, s = grid[window].unbind(-1)
    terms = []
    for e in range(evaluations):
        xt = process.corrupt(batch.input_ids, t[:, e], batch.noised, generator=generator)
        terms.append(process.token_terms(denoiser, batch, xt, s[:, e], t[:, e])[0].sum(1))
    share = torch.stack(terms, 1) * (len(grid) / evaluations)
    reconstruction = share.where(s == 0, 0.0).sum(1)
    return bound_of(share.sum(1), reconstruction, torch.full_like(reconstruction, evaluations))


def bound_of(total: Tensor, reconstruction: Tensor, forwards: Tensor) -> Bound:
    """Return the bound, split into its terms; the prior term is 0, since every token is masked at T."""
    return Bound(torch.zeros_like(total), total - reconstruction, reconstruction, forwards)


# ---- masked-count ----------------------------------------------------------------------------------------------------


def masked_count(
    process: MaskedTransitions,
    denoiser: Denoiser,
    batch: Batch,
    grid: Tensor | None,
    evaluations: int,
    generator: Generators,
) -> Bound:
    """Evaluate `evaluations` sets of masked tokens, with one forward pass each, weighted by W(k)."""
    targets = batch.noised
    length = targets.sum(1)
    each = torch.ones(len(targets), evaluations, dtype=torch.bool, device=targets.device)
    size = draw_sizes(length, uniform(each, generator))
    weight = size_weights(process, length, size, grid) * length[:, None, None] / evaluations
    masked = balanced_sets(targets, size, generator)
    nats = []
    for e in range(evaluations):
        xt = batch.input_ids.masked_fill(masked[:, e], process.mask_id)
        t = torch.ones_like(length)  # not used without time input
        if denoiser.time_conditioned:
            t = process.schedule.time_at(1 - draw_mask_rate(targets, size[:, e], generator))
        prediction = process.predict(denoiser, batch, xt, t)
        nats.append(prediction.per_row(process.nats(prediction)))
    total, reconstruction = (weight * torch.stack(nats, 1)[..., None]).sum(1).unbind(-1)
    return bound_of(total, reconstruction, torch.full_like(total, evaluations))


def draw_mask_rate(targets: Tensor, size: Tensor, generator: Generators) -> Tensor:
    """Draw a mask rate from Beta(k, L - k + 1), k = size [B]: the k-th smallest of L uniform variables."""
    ordered = uniform(targets, generator).sort(1).values  # 1 at positions that are not targets
    return ordered.gather(1, (size - 1).clamp(min=0)[:, None])[:, 0]


def draw_sizes(lengths: Tensor, u: Tensor) -> Tensor:
    """Draw the number of masked tokens, int64 [B, E]: uniform on 1..L (0 if L is 0), stratified over E equal parts.

    Args:
        lengths: int64 [B], number L of targets in each sentence.
        u: float64 [B, E] in [0, 1).
    """
    share = (torch.arange(u.shape[1], device=u.device) + u) / u.shape[1]
    return torch.minimum((share * lengths[:, None]).long() + 1, lengths[:, None])


def size_weights(process: MaskedTransitions, lengths: Tensor, size: Tensor, grid: Tensor | None) -> Tensor:
    """Return W(k) and its term for the window that ends at 0, float64 [B, E, 2], for k = size [B, E] and L [B]."""
    if grid is None:
        limit = 1 / size.clamp(min=1).double()
        return torch.stack([limit, torch.zeros_like(limit)], -1)
    t, s = grid.unbind(1)
    average = torch.zeros(len(grid), dtype=torch.float64, device=grid.device)
    u, rate = process.schedule.reveal_probability(s, t, average), 1 - process.schedule.alpha_bar(t, average)
    weights = torch.zeros(*size.shape, 2, dtype=torch.float64, device=grid.device)
    for length in lengths.unique().tolist():
        k = torch.arange(length + 1, dtype=torch.float64, device=grid.device)[:, None]
        whole = torch.full_like(k, length)
        log_binomial = (whole + 1).lgamma() - (k + 1).lgamma() - (whole - k + 1).lgamma()
        # Binomial(k; L, rate), [L + 1, n]
        law = (log_binomial + torch.xlogy(k, rate) + torch.xlogy(whole - k, 1 - rate)).exp()
        table = torch.stack([(law * u).sum(-1), law[:, -1] * u[-1]], -1)
        weights[lengths == length] = table[size[lengths == length]]
    return weights


def balanced_sets(targets: Tensor, size: Tensor, generator: Generators) -> Tensor:
    """Draw sets of k targets, bool [B, E, L]; each set is uniform, and together they cover all tokens evenly.

    Each set takes the tokens with the smallest total weight so far; ties are broken at random. All tokens then have
    about equal total weight, and their differences in cross-entropy add little variance.

    Args:
        targets: bool [B, L].
        size: int64 [B, E], k of each set.
        generator: random streams.
    """
    weighed = torch.zeros(targets.shape, dtype=torch.float64, device=targets.device)
    sets = []
    for k in size[..., None].unbind(1):
        order = (weighed + 1e-9 * uniform(targets, generator)).masked_fill(~targets, torch.inf).argsort(1).argsort(1)
        sets.append(order < k)
        weighed = weighed + sets[-1] / k.clamp(min=1)  # W(k) is about 1 / k
    return torch.stack(sets, 1)


# ---- trajectory ------------------------------------------------------------------------------------------------------


def trajectory(
    process: MaskedTransitions,
    denoiser: Denoiser,
    batch: Batch,
    grid: Tensor | None,
    number: int,
    generator: Generators,
) -> Bound:
    """Average `number` trajectories; every second one reveals in the opposite order (antithetic variates)."""
    targets = batch.noised
    h = process.schedule.informativeness(batch.input_ids, targets)
    sums = torch.zeros(3, len(h), dtype=torch.float64, device=h.device)
    u = uniform(targets, generator)
    for i in range(number):
        if i > 0:
            u = (1 - u).clamp(max=1 - 2.0**-53) if i % 2 else uniform(targets, generator)
        found = rank_targets(u, targets) if grid is None else first_window(process, h, u, grid[:, 1])
        # one window per token; none ends at 0
        windows = torch.ones_like(h[:1].T).expand(-1, 2) if grid is None else grid
        sums += one_trajectory(process, denoiser, batch, windows, found.masked_fill(~targets, -1), generator)
    total, reconstruction, forwards = sums / torch.tensor([[number], [number], [1]], device=h.device)
    return bound_of(total, reconstruction, forwards)


def rank_targets(u: Tensor, targets: Tensor) -> Tensor:
    """Return the rank of each target by its u, int64 [B, L]."""
    return u.masked_fill(~targets, torch.inf).argsort(1).argsort(1)


def first_window(process: MaskedTransitions, h: Tensor, u: Tensor, ends: Tensor) -> Tensor:
    """Return the first window, of those that end at `ends` [n], at whose end alpha_bar exceeds u, int64 [B, L]."""
    low, high = torch.zeros_like(u, dtype=torch.long), torch.full_like(u, len(ends) - 1, dtype=torch.long)
    while (low < high).any():
        middle = (low + high) // 2
        late = process.schedule.alpha_bar(ends[middle], h) <= u
        low, high = torch.where(late, middle + 1, low), torch.where(late, high, middle)
    return low  # the last window always qualifies: alpha_bar(0) is 1


def one_trajectory(
    process: MaskedTransitions,
    denoiser: Denoiser,
    batch: Batch,
    grid: Tensor,
    revealed_in: Tensor,
    generator: Generators,
) -> Tensor:
    """Return the nats of one trajectory, those of its step that ends at 0, and its forward passes, [3, B].

    `revealed_in` is the window 0..n-1 that reveals each token, int64 [B, L]; -1 for a given token.
    """
    sums = torch.zeros(3, len(revealed_in), dtype=torch.float64, device=revealed_in.device)
    begin = torch.zeros_like(revealed_in[:, 0])  # first window with the current set
    while (active := (revealed_in >= begin[:, None]).any(1).nonzero()[:, 0]).numel():
        rows = batch.rows(active)
        when, since = revealed_in[active], begin[active]
        masked = when >= since[:, None]
        now = when.masked_fill(~masked, len(grid)).amin(1)
        t, s = grid[now].unbind(1)
        prediction = process.predict(denoiser, rows, rows.input_ids.masked_fill(masked, process.mask_id), t)
        due = (when == now[:, None])[prediction.masked]
        nats = prediction.per_row(process.nats(prediction).where(due, 0.0))
        at_the_end = nats.where(s == 0, 0.0)  # the KL of the reveal time is 0 there: every token is revealed
        if process.schedule.token_dependent:
            each = torch.ones(len(active), WINDOWS_PER_SET, dtype=torch.bool, device=grid.device)
            u = uniform(each, generator, rows=active)
            nats = nats + timing_terms(process, prediction, since, now, u, grid)
        sums[:, active] += torch.stack([nats, at_the_end, torch.ones_like(nats)])
        begin[active] = now + 1
    return sums


def timing_terms(
    process: MaskedTransitions, prediction: Prediction, since: Tensor, until: Tensor, u: Tensor, grid: Tensor
) -> Tensor:
    """Estimate the KL of the reveal times, the spindle's term, summed over windows since..until, [B]."""
    number = (until - since + 1)[:, None]
    share = (torch.arange(u.shape[1], device=u.device) + u) / u.shape[1]
    window = torch.minimum(since[:, None] + (share * number).long(), until[:, None])
    t, s = grid[window].unbind(-1)
    return prediction.per_row(process.timing(prediction, s, t)).sum(1) * number[:, 0] / u.shape[1]
