"""The likelihood of a text under a run: sums of nats, counts of tokens and words, divided once, with their error."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Generator, Tensor
from tqdm import tqdm

from checkpoint.text_model import TextModel
from data.batch import Batch
from data.batching import sorted_batches
from data.tokenized_text import Text
from data.word_counts import information
from diffusion.draws import sentence_seed
from diffusion.options import EVERY_WINDOW, BoundArgs
from diffusion.process import Bound
from evaluation.likelihood_report import Likelihood
from evaluation.words import LOOKED_AT, are_set_apart
from utils.distributed import sum_over_ranks
from utils.errors import UserError

OF_PROFILE = 2**31
"""A round of draws that no estimate takes."""
LEAST_DIFFERENCES = 20
"""Sentences times rounds but one, before the error of the draws is believed."""


class Tally:
    """Round by round, what each of this process's sentences was estimated at."""

    def __init__(self, num_sentences: int, device: torch.device) -> None:
        """Nothing yet."""
        self.rounds, self.device = 0, device
        self.sums = torch.zeros(5, num_sentences, dtype=torch.float64)
        """Of the bound, its square, its prior and reconstruction terms, and the forwards, over rounds."""

    def add(self, place: Tensor, bound: Bound) -> None:
        """One round of some sentences, by their place in the list."""
        nats = bound.total
        self.sums[:, place] += torch.stack(
            [nats, nats.square(), bound.prior, bound.reconstruction, bound.forwards]
        ).cpu()

    def totals(self) -> tuple[Tensor, float | None]:
        """Over all sentences of all processes: the mean bound's sum, sum of squares, and its variance by the draws.

        Between them its two terms, and the forwards of all rounds.
        """
        means = self.sums / self.rounds
        spread = (means[1] - means[0].square()).clamp(min=0) / max(1, self.rounds - 1)  # of each sentence's mean
        parts = (means[0], means[0].square(), means[2], means[3], self.sums[4], spread)
        totals = torch.stack([part.sum() for part in parts]).to(self.device)
        sum_over_ranks(totals)
        return totals[:5].cpu(), totals[5].item() if self.rounds > 1 else None


class Profile:
    """What the process has to say of sentences besides their bound."""

    def __init__(self, run: TextModel, device: torch.device) -> None:
        """Nothing yet."""
        self.run, self.names = run, run.process.profiled(run.denoiser)
        self.sums = torch.zeros(len(self.names), dtype=torch.float64, device=device)

    def fill(self, text: Text, mine: np.ndarray, batch_size: int, seed: int, may_go_on: Callable[[], bool]) -> bool:
        """Ask of this process's sentences; whether there was the time for it."""
        for chosen, batch in sorted_batches(text, mine, batch_size, self.run.tokenizer) if self.names else ():
            if not may_go_on():
                return False
            streams = [Generator().manual_seed(sentence_seed(seed, int(i), OF_PROFILE)) for i in chosen]
            self.sums += self.run.process.profile(self.run.denoiser, batch.to(self.sums.device), streams).sum(1)
        return True

    def totals(self) -> dict[str, float]:
        """Sums over all processes' sentences, in nats, by name; every process must ask."""
        sum_over_ranks(self.sums)
        return dict(zip(self.names, self.sums.tolist(), strict=True))


class OutOfTimeError(Exception):
    """An evaluation was given up."""


@torch.no_grad()
def score_text(
    run: TextModel,
    text: Text,
    indices: np.ndarray,
    *,
    num_steps: float,
    bound_args: BoundArgs = BoundArgs(),  # noqa: B008 (it is frozen)
    batch_size: int,
    seed: int,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    progress: bool = True,
    may_go_on: Callable[[], bool] = lambda: True,
) -> Likelihood:
    """The bound of the chosen sentences, at `num_steps` steps, with the true weights whatever the training used.

    Each sentence has a stream of random numbers of its own for every round (from `seed` and its index), so that neither
    the batch size nor the number of processes changes the result beyond rounding. Each round is unbiased: there is one
    of every window, as published; two of other estimators, whose difference tells the error of the draws; and with
    `bound_args.target_se` as many as it takes.

    Raises:
        UserError: if a target is given and the bound is not finite.
        OutOfTimeError: if `may_go_on`, which is asked before each batch, said no to a process.
    """
    mine = indices[rank::world_size]
    bound_args = bound_args.settled(num_steps, run.process.in_the_limit)
    tally, wanted = Tally(len(mine), device), 1 if bound_args == EVERY_WINDOW else 2
    if bound_args.target_se:  # fewer differences than this, and a small error may be luck
        wanted = max(2, 1 + math.ceil(LEAST_DIFFERENCES / len(indices)))
    counts = count(run, text, mine, batch_size, device)
    place, out_of_time = {int(index): i for i, index in enumerate(mine)}, False
    with tqdm(desc=f"scoring, {num_steps} steps", unit="sentence", leave=False, disable=not progress or None) as bar:
        while tally.rounds < wanted:
            bar.total = len(mine) * wanted
            for chosen, batch in sorted_batches(text, mine, batch_size, run.tokenizer):
                if out_of_time := out_of_time or not may_go_on():
                    break
                streams = [Generator().manual_seed(sentence_seed(seed, int(i), tally.rounds)) for i in chosen]
                bound = run.process.bound(run.denoiser, batch.to(device), num_steps, bound_args, generator=streams)
                tally.add(torch.tensor([place[int(i)] for i in chosen]), bound)
                bar.update(len(chosen))
            tally.rounds += 1
            if bound_args.target_se and tally.rounds == wanted:
                wanted = max(wanted, rounds_for(tally, bound_args.target_se))
    profile = Profile(run, device)
    out_of_time = out_of_time or not profile.fill(text, mine, batch_size, seed, may_go_on)
    given_up = torch.tensor(float(out_of_time), dtype=torch.float64, device=device)
    sum_over_ranks(given_up)
    if given_up:
        raise OutOfTimeError
    protocol = "" if run.pairs else run.form.protocol
    found = likelihood_of(tally, counts, num_steps, bound_args.estimator, protocol, profile.totals())
    more = {} if run.pairs else {"detokenizer": run.form.detokenizer}
    more |= {"about": run.process.about(run.denoiser), "set_apart": words_set_apart(run, text, indices)}
    return replace(found, length_nats=length_nats(run, text.target_lengths[indices]), **more)


def words_set_apart(run: TextModel, text: Text, indices: np.ndarray) -> bool:
    """Whether spaces stand between the words of the chosen sentences; some of them are looked at."""
    chosen = np.sort(indices[:: -(-len(indices) // LOOKED_AT)])
    batches = (batch for _, batch in sorted_batches(text, chosen, 64, run.tokenizer))
    rows = (ids[mask] for batch in batches for ids, mask in zip(batch.input_ids, batch.target_mask, strict=True))
    texts = [run.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    return are_set_apart(texts, gaps=float(text.num_words[chosen].sum()) - len(texts))


def length_nats(run: TextModel, scored: np.ndarray) -> float | None:
    """What lengths cost under the training text's, one added to each up to the longest: the sum.

    Args:
        run: of pairs, blocks or a causal network no length is given; of imported weights none is known.
        scored: int64 [n], scored tokens of each text.
    """
    single = ("unpadded", "padded")
    known = (run.trained_on or run.form.protocol) in single and sum(run.length_histogram) > 1
    if run.pairs or run.causal or run.form.protocol not in single or not known:
        return None
    own, trained = (2 * (p == "padded") for p in (run.form.protocol, run.trained_on or run.form.protocol))
    histogram, lengths = run.length_histogram[trained:], scored - own
    seen = np.zeros(max(run.max_length - 1, len(histogram), int(lengths.max()) + 1))
    seen[: len(histogram)] = histogram
    return float(-np.log((seen[1:] + 1) / (seen[1:] + 1).sum())[lengths - 1].sum())


def likelihood_of(
    tally: Tally, counts: Tensor, num_steps: float, estimator: str, protocol: str, profile: dict[str, float]
) -> Likelihood:
    """The totals of all rounds; `counts` are those of `count`, `profile` those of `Profile`."""
    (nats, squares, prior, reconstruction, forwards), variance = tally.totals()
    unigram, sequences, tokens, words = counts.tolist()
    return Likelihood(
        nats=nats.item(),
        nats_squared=squares.item(),
        prior_nats=prior.item(),
        reconstruction_nats=reconstruction.item(),
        unigram_nats=unigram,
        num_sequences=int(sequences),
        num_tokens=int(tokens),
        num_words=words,
        num_steps=num_steps,
        estimator=estimator,
        protocol=protocol,
        network_evaluations=round(forwards.item() / sequences, 1),
        draws_variance=variance,
        profile=profile,
    )


def rounds_for(tally: Tally, target: float) -> int:
    """How many rounds it will take until the draws' error is that share of the bound, as far as they show now.

    Raises:
        UserError: if the bound is not finite.
    """
    (nats, *_), variance = tally.totals()
    if not math.isfinite(variance) or not math.isfinite(nats):
        raise UserError(
            "the bound is not finite, so no target_se can be met; use --precision fp32, and look for NaN in the weights"
        )
    if math.sqrt(variance) <= target * nats.item():
        return tally.rounds
    return max(tally.rounds + 1, math.ceil(tally.rounds * variance / (target * nats.item()) ** 2))


def count(run: TextModel, text: Text, mine: np.ndarray, batch_size: int, device: torch.device) -> Tensor:
    """Unigram nats, sentences, tokens and words of all processes' sentences, float64 [4]."""
    nats, counts = information(run.token_counts), torch.zeros(4, dtype=torch.float64)
    for chosen, batch in sorted_batches(text, mine, batch_size, run.tokenizer):
        tokens = num_tokens(batch, run)
        words = float(text.num_words[np.sort(chosen)].sum())
        unigram = nats[batch.input_ids[batch.target_mask]].sum().item()
        counts += torch.tensor([unigram, len(chosen), tokens, words], dtype=torch.float64)
    counts = counts.to(device)
    sum_over_ranks(counts)
    return counts


def num_tokens(batch: Batch, run: TextModel) -> int:
    """Target tokens of a batch. Of a pair's window, its text and [SEP]; the [PAD]s are scored, but are no tokens."""
    text = batch.input_ids != run.tokenizer.pad_token_id if run.pairs else True
    return int((batch.target_mask & text).sum())


def pick(text: Text, limit: int, seed: int = 0) -> np.ndarray:
    """Indices of `limit` sentences drawn once for a seed, or of all if limit is 0 or more than there are."""
    if not 0 < limit < len(text):
        return np.arange(len(text))
    return np.sort(np.random.default_rng(seed).permutation(len(text))[:limit])
