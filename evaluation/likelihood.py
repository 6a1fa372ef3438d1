"""The likelihood of a text under a run: sums of nats, counts of tokens and words, divided once, with their error."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Generator, Tensor
from tqdm import tqdm

from batches import sorted_batches
from checkpoint import Run
from dataloader import Text
from diffusion_word_freq import entropy
from distributed import sum_over_ranks
from figures import MOST_NATS, number, perplexity
from process import EVERY_WINDOW, Batch, Bound, BoundArgs, UserError
from words import LOOKED_AT, are_set_apart


@dataclass(frozen=True)
class Likelihood:
    """Totals over sentences, and the figures that follow from them.

    Only text tokens count: no [CLS], [SEP], [PAD], unless the protocol says so; of process=ar the nats of a text's end
    do, not its token. Of pairs, the target is scored given its source, with its end: its nats are those of the whole
    window, its tokens are its text and [SEP].
    """

    nats: float
    """Sum of the bound over sentences."""
    nats_squared: float
    """Sum of the squared bound, for the standard error."""
    prior_nats: float
    reconstruction_nats: float
    unigram_nats: float
    """The same tokens under the training corpus's word frequencies."""
    num_sequences: int
    num_tokens: int
    num_words: float
    """Of texts that are cut, as much as is there."""
    num_steps: float
    estimator: str = "windows"
    network_evaluations: float = 0
    """Forwards a sentence went through, on average."""
    protocol: str = ""
    """How texts became rows (protocols.py); of pairs, empty."""
    detokenizer: str = ""
    length_nats: float | None = None
    """Sum over sentences of -log of how frequent their length was in training; None where none is given, or known."""
    draws_variance: float | None = None
    """Variance of `nats` by the draws of x_t alone; None if there was one round of them."""
    profile: dict[str, float] = field(default_factory=dict)
    """What the process has to say besides: sums over sentences, in nats, that are reported by token."""
    about: dict[str, float] = field(default_factory=dict)
    """And what is reported as it is."""
    set_apart: bool = True
    """Whether spaces stand between words: if not, there is no perplexity per word."""

    def report(self) -> dict[str, float | int | str | None]:
        """Every figure by its name.

        ppl_word is the paper's: exp of the mean nats per sequence over the mean number of whitespace words; None of
        text whose words are not set apart by spaces. A perplexity beyond the range of a float is None, too.
        standard_error_nats is that of nats_per_sequence, and covers both the choice of sentences and the draws of x_t;
        None for a single sentence. draws_error_nats is the part of the draws: what more evaluations would lessen.
        """
        n = self.num_sequences
        mean = self.nats / n
        variance = max(self.nats_squared / n - mean**2, 0) * n
        return {
            "nats_per_sequence": mean,
            "bits_per_token": self.nats / self.num_tokens / math.log(2),
            "ppl_token": perplexity(self.nats / self.num_tokens),
            "ppl_word": perplexity(self.nats / max(self.num_words, 1e-9)) if self.set_apart else None,
            "prior_nats": self.prior_nats / self.num_sequences,
            "reconstruction_nats": self.reconstruction_nats / self.num_sequences,
            "unigram_bits_per_token": self.unigram_nats / self.num_tokens / math.log(2),
            "num_steps": self.num_steps if math.isfinite(self.num_steps) else "inf",  # JSON has no infinity
            "num_sequences": self.num_sequences,
            "num_tokens": self.num_tokens,
            "num_words": round(self.num_words),
            "estimator": self.estimator,
            "protocol": self.protocol,
            "detokenizer": self.detokenizer,
            "length_nats": None if self.length_nats is None else self.length_nats / n,
            "network_evaluations": self.network_evaluations,
            "standard_error_nats": math.sqrt(variance / (n - 1) / n) if n > 1 else None,
            "draws_error_nats": None if self.draws_variance is None else math.sqrt(self.draws_variance) / n,
            **{name: nats / self.num_tokens for name, nats in self.profile.items()},
            **self.about,
        }


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

    def __init__(self, run: Run, device: torch.device) -> None:
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
def score(
    run: Run,
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
    found = summary(tally, counts, num_steps, bound_args.estimator, protocol, profile.totals())
    more = {} if run.pairs else {"detokenizer": run.form.detokenizer}
    more |= {"about": run.process.about(run.denoiser), "set_apart": words_set_apart(run, text, indices)}
    return replace(found, length_nats=length_nats(run, text.target_lengths[indices]), **more)


def words_set_apart(run: Run, text: Text, indices: np.ndarray) -> bool:
    """Whether spaces stand between the words of the chosen sentences; some of them are looked at."""
    chosen = np.sort(indices[:: -(-len(indices) // LOOKED_AT)])
    batches = (batch for _, batch in sorted_batches(text, chosen, 64, run.tokenizer))
    rows = (ids[mask] for batch in batches for ids, mask in zip(batch.input_ids, batch.target_mask, strict=True))
    texts = [run.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    return are_set_apart(texts, gaps=float(text.num_words[chosen].sum()) - len(texts))


def length_nats(run: Run, scored: np.ndarray) -> float | None:
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


def summary(
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


def count(run: Run, text: Text, mine: np.ndarray, batch_size: int, device: torch.device) -> Tensor:
    """Unigram nats, sentences, tokens and words of all processes' sentences, float64 [4]."""
    information, counts = entropy(run.token_counts), torch.zeros(4, dtype=torch.float64)
    for chosen, batch in sorted_batches(text, mine, batch_size, run.tokenizer):
        tokens = num_tokens(batch, run)
        words = float(text.num_words[np.sort(chosen)].sum())
        unigram = information[batch.input_ids[batch.target_mask]].sum().item()
        counts += torch.tensor([unigram, len(chosen), tokens, words], dtype=torch.float64)
    counts = counts.to(device)
    sum_over_ranks(counts)
    return counts


def num_tokens(batch: Batch, run: Run) -> int:
    """Target tokens of a batch. Of a pair's window, its text and [SEP]; the [PAD]s are scored, but are no tokens."""
    text = batch.input_ids != run.tokenizer.pad_token_id if run.pairs else True
    return int((batch.target_mask & text).sum())


def sentence_seed(seed: int, index: int, round_: int = 0) -> int:
    """A seed for one sentence of a run, unrelated to its neighbours' and to that of another round."""
    words = [seed, index, round_] if round_ else [seed, index]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


def pick(text: Text, limit: int, seed: int = 0) -> np.ndarray:
    """Indices of `limit` sentences drawn once for a seed, or of all if limit is 0 or more than there are."""
    if not 0 < limit < len(text):
        return np.arange(len(text))
    return np.sort(np.random.default_rng(seed).permutation(len(text))[:limit])


def describe(report: dict[str, float | int | str | None]) -> str:
    """A report in a few lines for people."""
    error, draws = report["standard_error_nats"], report["draws_error_nats"]
    margin = "unknown" if error is None else number(error, 3)
    of_estimator = "" if report["estimator"] == "windows" else f" by {report['estimator']}"
    given = "" if report["length_nats"] is None else f" given their lengths ({number(report['length_nats'], 3)} more)"
    margin += "" if draws is None else f" (of the draws alone {number(draws, 3)})"
    return (
        f"{number(report['bits_per_token'], 3)} bits/token (unigram {number(report['unigram_bits_per_token'], 3)}), "
        f"PPL {_perplexities(report)}\n"
        f"{number(report['nats_per_sequence'], 3)} nats/sequence{given}, standard error {margin}; of these prior "
        f"{number(report['prior_nats'], 3)}, reconstruction {number(report['reconstruction_nats'], 3)}\n"
        f"{report['num_steps']} steps{of_estimator}, {report['network_evaluations']:g} network evaluations a sequence; "
        f"{report['num_sequences']:,} sequences, {report['num_tokens']:,} tokens, {report['num_words']:,} words"
        + (f"; rows {report['protocol']}" if report["protocol"] else "")
        + (f", detokenized as {report['detokenizer']}" if report["detokenizer"] not in ("", "none") else "")
        + _by_level(report)
    )


def _perplexities(report: dict[str, float | int | str | None]) -> str:
    token, word = (None if report[name] is None else number(report[name], 2) for name in ("ppl_token", "ppl_word"))
    nats = report["nats_per_sequence"] * report["num_sequences"]
    beyond = nats > MOST_NATS * max(report["num_words"], 1e-9)
    without = "above 1e308 per word" if beyond else "none per word (no spaces between words)"
    return f"{token or 'above 1e308'} per token, " + (without if word is None else f"{word} per word")


def _by_level(report: dict[str, float | int | str | None]) -> str:
    prefix = "cross_entropy_at_"
    levels = [
        f"{name.removeprefix(prefix)}: {number(nats, 3)}" for name, nats in report.items() if name.startswith(prefix)
    ]
    return f"\ncross-entropy, nats a token, by noise level: {', '.join(levels)}" if levels else ""
