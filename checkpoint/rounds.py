"""Rounds of estimates of the bound of each sentence, and their sums."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor
from tqdm import tqdm

from checkpoint.model_parts import ModelParts
from data.batching import sorted_batches
from data.tokenized_text import Text
from diffusion.draws import sentence_seed
from diffusion.options import EVERY_WINDOW, BoundArgs, reverse_steps
from diffusion.process import Bound
from utils.distributed import sum_over_ranks
from utils.errors import UserError, check_ranges

MIN_DEGREES_OF_FREEDOM = 20
"""Sentences * (rounds - 1) required before the error of the draws is used as a stopping criterion."""


@dataclass(frozen=True)
class Scoring:
    """Settings of an evaluation."""

    num_steps: float
    """Number of reverse steps; inf: the continuous-time limit."""
    bound: BoundArgs = BoundArgs()
    batch_size: int = 64
    """Sentences per batch; changes the result by rounding only."""
    seed: int = 0
    """Seed of the draws of x_t."""

    def __post_init__(self) -> None:
        check_ranges(self, batch_size=(1, 10**7), seed=(0, 2**63 - 1))


def bound_steps(total: float, num_steps: float = 0, step_size: int = 0) -> float:
    """Return the number of reverse steps of a bound; by default infinity for a process in continuous time.

    Args:
        total: T of the process.
        num_steps, step_size: the number, or diffusion steps per reverse step; 0 and 0: the default.
    """
    if math.isinf(total) and not num_steps and not step_size:
        return total
    return reverse_steps(total, num_steps, step_size, "eval_step_size")


class Tally:
    """Sums over rounds of the estimates for this process's sentences."""

    def __init__(self, num_sentences: int, device: torch.device) -> None:
        self.rounds, self.device = 0, device
        self.sums = torch.zeros(5, num_sentences, dtype=torch.float64)
        """Sums of the bound, its square, its prior and reconstruction terms, and forward passes."""

    def add(self, index: Tensor, bound: Bound) -> None:
        """Add the estimates of one round for the sentences at these indices of the list."""
        nats = bound.total
        self.sums[:, index] += torch.stack(
            [nats, nats.square(), bound.prior, bound.reconstruction, bound.forwards]
        ).cpu()

    def means(self) -> Tensor:
        """Return the mean bound of each sentence over the rounds, float64 [N]."""
        return self.sums[0] / self.rounds

    def errors(self) -> Tensor:
        """Return the standard error of each mean over the draws of xt, float64 [N]; needs two rounds."""
        variance = (self.sums[1] / self.rounds - self.means().square()).clamp(min=0)
        return (variance / (self.rounds - 1)).sqrt()

    def totals(self) -> tuple[Tensor, float | None]:
        """Return totals over all sentences of all processes.

        Returns:
            float64 [5]: the mean bound, its square, its prior and reconstruction terms, and the forward passes of all
            rounds; and the variance of the mean bound due to the draws of x_t, None after a single round.
        """
        means = self.sums / self.rounds
        variance = (means[1] - means[0].square()).clamp(min=0) / max(1, self.rounds - 1)  # of each sentence's mean
        parts = (means[0], means[0].square(), means[2], means[3], self.sums[4], variance)
        totals = torch.stack([part.sum() for part in parts]).to(self.device)
        sum_over_ranks(totals)
        return totals[:5].cpu(), totals[5].item() if self.rounds > 1 else None


class Rounds:
    """Rounds of draws over this process's sentences."""

    def __init__(
        self, model: ModelParts, text: Text, mine: np.ndarray, scoring: Scoring, may_go_on: Callable[[], bool]
    ) -> None:
        self.model, self.text, self.mine, self.scoring, self.may_go_on = model, text, mine, scoring, may_go_on
        self.row_of = {int(index): i for i, index in enumerate(mine)}
        """Row of the tally by sentence index."""

    def run(self, tally: Tally, wanted: int, *, progress: bool) -> bool:
        """Fill the tally with `wanted` rounds, or more to reach the target error; return False if time ran out."""
        target = self.scoring.bound.target_se
        how = "exactly" if self.scoring.bound.law else f"{self.scoring.num_steps} steps"
        with tqdm(desc=f"scoring, {how}", unit="sentence", leave=False, disable=not progress or None) as bar:
            in_time = True
            while tally.rounds < wanted:
                bar.total = len(self.mine) * wanted
                in_time = in_time and self.run_one(tally, bar)
                tally.rounds += 1
                if target and tally.rounds == wanted:
                    wanted = max(wanted, rounds_for(tally, target))
        return in_time

    def run_one(self, tally: Tally, bar: tqdm) -> bool:
        """Estimate the bound of each sentence once; return False if time ran out."""
        scoring, model = self.scoring, self.model
        for chosen, batch in sorted_batches(self.text, self.mine, scoring.batch_size, model.tokenizer):
            if not self.may_go_on():
                return False
            streams = [Generator().manual_seed(sentence_seed(scoring.seed, int(i), tally.rounds)) for i in chosen]
            bound = model.process.bound(
                model.denoiser, batch.to(tally.device), scoring.num_steps, scoring.bound, generator=streams
            )
            tally.add(torch.tensor([self.row_of[int(i)] for i in chosen]), bound)
            bar.update(len(chosen))
        return True


def rounds_wanted(args: BoundArgs, num_sentences: int) -> int:
    """Return the minimum number of rounds: 1 for every window or an exact likelihood, else 2, which give the error.

    With a target error, more rounds provide MIN_DEGREES_OF_FREEDOM, since the estimate of few may be small by chance.
    """
    if args.target_se:
        return max(2, 1 + math.ceil(MIN_DEGREES_OF_FREEDOM / num_sentences))
    return 1 if args == EVERY_WINDOW or args.law else 2


def rounds_for(tally: Tally, target: float) -> int:
    """Return the estimated number of rounds until the relative error of the draws is `target`.

    Raises:
        UserError: if the bound is not finite.
    """
    (nats, *_), variance = tally.totals()
    if not math.isfinite(variance) or not math.isfinite(nats):
        raise UserError(
            "the bound is not finite, so target_se cannot be met; use --precision fp32 and check the weights for NaN"
        )
    if math.sqrt(variance) <= target * nats.item():
        return tally.rounds
    return max(tally.rounds + 1, math.ceil(tally.rounds * variance / (target * nats.item()) ** 2))
