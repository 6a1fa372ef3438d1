"""Estimators of the likelihood bound: the same expectation, at different prices.

With windows j = 1..n that lead from T to 0, and M the set of masked tokens, the bound of a sentence is

    sum_j E[f_j(M_j)],    M_j ~ q_j, every token masked on its own with probability 1 - alpha_bar(t_j),

where f_j(M) is the sum of the masked tokens' KL terms. An estimator is a way to choose the sets the network is shown.

windows       every window once, each with a set of its own: as published.
stratified    fewer windows than there are, evenly spread: any number of forwards.
masked-count  a network that is not told the time sees M alone, so that one forward serves every window. The number k of
              masked tokens is stratified, M is drawn given k, and the windows are summed, or drawn, given M:
              sum_j E_{q_j}[f_j(M)] = E_g[ sum_j q_j(M) f_j(M) / g(M) ]   for any law g of M.
              Without spindle f_j(M) is u_j times a cross-entropy, and a size weighs W(k) = sum_j u_j
              Binomial(k; L, 1 - alpha_bar(t_j)): exact for every n, and 1/k in the limit of many (that limit: Zheng et
              al. 2024, arXiv 2409.02908; RADD, arXiv 2406.03736). Sets that together cover all tokens evenly, and
              tokens of different alpha_bar, are this project's additions.
"""

from typing import Protocol

import torch
from torch import Tensor

from masked_prediction import Prediction
from process import Batch, Bound, BoundArgs, Denoiser, Generators, UserError, step_windows, uniform

PROPOSALS = 64  # windows whose laws propose sets, at most: among more the sets hardly differ
WINDOWS_A_SET = 4  # drawn given a set, with a spindle
GOLDEN = (5**0.5 - 1) / 2


class Estimated(Protocol):
    """What the estimators ask of a masked process."""

    mask_id: int
    num_steps: int
    """T."""
    flat: bool
    """Whether every token has the same alpha_bar."""

    def alpha_bar(self, t: Tensor, x0: Tensor, target_mask: Tensor) -> Tensor:
        """float64 [B, L]."""
        ...

    def corrupt(self, x0: Tensor, t: Tensor, target_mask: Tensor, *, generator: Generators = None) -> Tensor:
        """x_t, int64 [B, L]."""
        ...

    def token_terms(self, denoiser: Denoiser, batch: Batch, xt: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """KL and cross-entropy, each [B, L]."""
        ...

    def reveal_probability(self, h: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """U of a token masked at t, by s."""
        ...

    def predict(self, denoiser: Denoiser, batch: Batch, xt: Tensor, t: Tensor) -> Prediction:
        """What the network makes of the masked targets."""
        ...

    def divergence(self, prediction: Prediction, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The KL terms of a window and the cross-entropies, each [n], for s and t int64 [B]."""
        ...


def estimate(
    process: Estimated,
    denoiser: Denoiser,
    batch: Batch,
    num_steps: int,
    args: BoundArgs,
    *,
    generator: Generators = None,
) -> Bound:
    """One round of the estimator that `args` name: unbiased for the bound at `num_steps` windows.

    Raises:
        UserError: if the estimator cannot serve this network or this process.
    """
    grid = torch.tensor(list(step_windows(process.num_steps, num_steps)), device=batch.input_ids.device)
    evaluations = args.evaluations or len(grid)
    if args.estimator == "windows":
        return windows(process, denoiser, batch, grid, generator)
    if args.estimator == "stratified":
        return stratified(process, denoiser, batch, grid, evaluations, generator)
    if denoiser.time_conditioned:
        raise UserError("estimator=masked-count needs a network that is not told the time; use windows or stratified")
    return masked_count(process, denoiser, batch, grid, evaluations, generator)


def split(terms: Tensor, s: Tensor) -> Bound:
    """[B, n] terms of windows that end at s [B, n]; the prior is 0, for nothing is visible at T."""
    last = s == 0
    total, reconstruction = terms.sum(1), terms.where(last, 0.0).sum(1)
    return Bound(torch.zeros_like(total), total - reconstruction, reconstruction)


def windows(process: Estimated, denoiser: Denoiser, batch: Batch, grid: Tensor, generator: Generators) -> Bound:
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
        xt = process.corrupt(batch.input_ids, t[:, e], batch.target_mask, generator=generator)
        terms.append(process.token_terms(denoiser, batch, xt, s[:, e], t[:, e])[0].sum(1))
    return split(torch.stack(terms, 1) * (len(grid) / evaluations), s)


# ---- by the number of masked tokens ----------------------------------------------------------------------------------


def masked_count(
    process: Estimated, denoiser: Denoiser, batch: Batch, grid: Tensor, evaluations: int, generator: Generators
) -> Bound:
    """One forward for each of `evaluations` sets of masked tokens; see the head of this file."""
    x0, targets = batch.input_ids, batch.target_mask
    draws = torch.ones(len(x0), evaluations, dtype=torch.bool, device=x0.device)
    length = targets.sum(1, keepdim=True)
    size = draw_sizes(length[:, 0], uniform(draws, generator))
    keep = torch.stack([process.alpha_bar(t.expand(len(x0)), x0, targets) for t in grid[:, 0]], 1)
    keep = keep.masked_fill(~targets[:, None], 1.0)
    choose = balanced_sets if process.flat else conditional_sets
    masked, log_proposal = choose(keep, targets, size, generator)
    log_law = log_probability(keep, targets, masked)
    weight = (log_law.logsumexp(-1) - log_proposal).exp() * length / evaluations  # sum_j q_j(M) / g(M)
    of_windows = log_law.softmax(-1)
    picked = draw_windows(of_windows, uniform(draws.repeat(1, WINDOWS_A_SET), generator))
    terms = []
    for e in range(evaluations):
        xt = x0.masked_fill(masked[:, e], process.mask_id)
        prediction = process.predict(denoiser, batch, xt, grid[picked[:, e, 0], 0])
        if process.flat:
            terms.append(every_window(process, prediction, of_windows[:, e], grid))
        else:
            terms.append(some_windows(process, prediction, picked[:, e], grid))
    total, reconstruction = (weight[..., None] * torch.stack(terms, 1)).sum(1).unbind(-1)
    return Bound(torch.zeros_like(total), total - reconstruction, reconstruction)


def every_window(process: Estimated, prediction: Prediction, of_windows: Tensor, grid: Tensor) -> Tensor:
    """E over windows [B, n] of f(M), and the last window's part of it, [B, 2]: u_j times the cross-entropy."""
    t, s = grid.unbind(1)
    u = process.reveal_probability(torch.zeros(len(grid), dtype=torch.float64, device=grid.device), s, t)
    share = of_windows * u
    return prediction.per_row(prediction.cross_entropy)[:, None] * torch.stack([share.sum(1), share[:, -1]], 1)


def some_windows(process: Estimated, prediction: Prediction, picked: Tensor, grid: Tensor) -> Tensor:
    """The same as a mean over the windows drawn, int64 [B, m]."""
    terms = torch.zeros(len(picked), 2, dtype=torch.float64, device=grid.device)
    for window in picked.unbind(1):
        t, s = grid[window].unbind(1)
        f = prediction.per_row(process.divergence(prediction, s, t)[0])
        terms += torch.stack([f, f.where(s == 0, 0.0)], 1) / picked.shape[1]
    return terms


def draw_sizes(lengths: Tensor, u: Tensor) -> Tensor:
    """How many tokens to mask, int64 [B, E]: uniform on 1..L (0 if there are none), one from each of E equal parts.

    Args:
        lengths: int64 [B], L of each sentence.
        u: float64 [B, E] in [0, 1).
    """
    share = (torch.arange(u.shape[1], device=u.device) + u) / u.shape[1]
    return torch.minimum((share * lengths[:, None]).long() + 1, lengths[:, None])


def balanced_sets(keep: Tensor, targets: Tensor, size: Tensor, generator: Generators) -> tuple[Tensor, Tensor]:
    """Sets of k targets, all equally likely, bool [B, E, L], and the log of that probability, [B, E].

    Each takes the tokens that have weighed least so far, of equals any: no token is special, so each set alone is
    uniform, but together they cover all tokens evenly, and what one token costs more than another is no error any more.

    Args:
        keep: not looked at, for it is the same for every token.
        targets: bool [B, L].
        size: int64 [B, E], k.
        generator: streams.
    """
    length = targets.sum(1, keepdim=True).double()
    weighed = torch.zeros(targets.shape, dtype=torch.float64, device=targets.device)
    sets = []
    for k in size.unbind(1):
        k = k[:, None]
        order = (weighed + 1e-9 * uniform(targets, generator)).masked_fill(~targets, torch.inf).argsort(1).argsort(1)
        sets.append(order < k)
        weighed = weighed + sets[-1] / k.clamp(min=1)  # W(k) is about 1 / k
    ways = (length + 1.0).lgamma() - (size + 1.0).lgamma() - (length - size + 1.0).lgamma()
    return torch.stack(sets, 1), -ways


def conditional_sets(keep: Tensor, targets: Tensor, size: Tensor, generator: Generators) -> tuple[Tensor, Tensor]:
    """Sets of k targets from the mixture of the windows' laws, given k; bool [B, E, L] and log probability [B, E].

    A window is drawn given k, then a set given both, token by token with the odds that the rest can still make up k.
    Within a set the tokens' uniform variables are independent; from set to set each is turned on by the golden section,
    so that a token is masked about as often as it should be, and what it costs more than another is hardly an error.

    Args:
        keep: float64 [B, n, L], alpha_bar of every token at every window's t; 1 for what is no target.
        targets: bool [B, L].
        size: int64 [B, E], k.
        generator: streams.
    """
    stride = max(1, keep.shape[1] // PROPOSALS)
    proposals = keep[:, stride // 2 :: stride]
    counts = count_laws(1 - proposals)[:, :, 0]  # P_j(k), [B, n', L + 1]
    of_size = counts.gather(2, size[:, None, :].expand(-1, counts.shape[1], -1)).transpose(1, 2)  # [B, E, n']
    draws = torch.ones_like(size, dtype=torch.bool)
    window = draw_windows(of_size, uniform(draws, generator))[..., 0]
    rate = 1 - proposals.gather(1, window[..., None].expand(-1, -1, keep.shape[2]))  # [B, E, L]
    rest = count_laws(rate)
    turns = GOLDEN * torch.arange(size.shape[1], device=size.device)
    u = (uniform(targets, generator)[:, None] + turns[:, None]) % 1
    left, masked = size.clone(), torch.zeros_like(rate, dtype=torch.bool)
    for i in range(rate.shape[2]):
        taken = rate[..., i] * rest[:, :, i + 1].gather(2, (left - 1).clamp(min=0)[..., None])[..., 0]
        whole = rest[:, :, i].gather(2, left[..., None])[..., 0]
        masked[..., i] = (u[..., i] * whole < taken) & (left > 0)
        left = left - masked[..., i].long()
    log_proposal = log_probability(proposals, targets, masked).logsumexp(-1) - of_size.sum(-1).log()
    return masked, log_proposal


def count_laws(rate: Tensor) -> Tensor:
    """P(so many of tokens i.. are masked), [..., L + 1, L + 1] (from i, how many), for mask rates [..., L]."""
    length = rate.shape[-1]
    laws = [torch.zeros(*rate.shape[:-1], length + 1, dtype=rate.dtype, device=rate.device)]
    laws[0][..., 0] = 1
    for i in range(length - 1, -1, -1):
        following, p = laws[-1], rate[..., i, None]
        one_more = torch.cat([torch.zeros_like(following[..., :1]), following[..., :-1]], -1)
        laws.append((1 - p) * following + p * one_more)
    return torch.stack(laws[::-1], -2)


def log_probability(keep: Tensor, targets: Tensor, masked: Tensor) -> Tensor:
    """Log q_j(M), [B, E, n], of sets [B, E, L] under windows [B, n, L]."""
    kept, gone = (p.clamp(min=1e-300).log().masked_fill(~targets[:, None], 0.0) for p in (keep, 1 - keep))
    return kept.sum(-1)[:, None] + masked.double() @ (gone - kept).transpose(1, 2)


def draw_windows(weights: Tensor, u: Tensor) -> Tensor:
    """Windows drawn in proportion to `weights` [B, E, n] by u [B, E m], stratified over m: int64 [B, E, m]."""
    cumulative = weights.cumsum(-1)
    u = u.view(*weights.shape[:2], -1)
    quantile = (torch.arange(u.shape[-1], device=u.device) + u) / u.shape[-1] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, quantile, right=True).clamp(max=weights.shape[-1] - 1)
