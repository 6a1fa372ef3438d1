"""Likelihood of a text under a model: sums of nats, counts of tokens and words, and their standard error."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Generator, Tensor

from checkpoint.model_parts import ModelParts
from checkpoint.rounds import Rounds, Scoring, Tally, rounds_wanted
from data.batch import Batch
from data.batching import sorted_batches
from data.tokenized_text import Text
from data.word_counts import information
from diffusion.draws import sentence_seed
from evaluation.likelihood_report import Likelihood
from evaluation.words import SAMPLE, has_separated_words
from utils.distributed import sum_over_ranks
from utils.job import rank, world_size

PROFILE_ROUND = 2**31
"""Round number of the profile's random streams; estimates of the bound never reach it."""


class Profile:
    """Sums of the process's additional per-sentence figures, such as the cross-entropy by noise level."""

    def __init__(self, model: ModelParts, device: torch.device) -> None:
        self.model, self.names = model, model.process.profile_names(model.denoiser)
        self.sums = torch.zeros(len(self.names), dtype=torch.float64, device=device)

    def fill(self, text: Text, mine: np.ndarray, batch_size: int, seed: int, may_go_on: Callable[[], bool]) -> bool:
        """Add this process's sentences; return False if time ran out."""
        for chosen, batch in sorted_batches(text, mine, batch_size, self.model.tokenizer) if self.names else ():
            if not may_go_on():
                return False
            streams = [Generator().manual_seed(sentence_seed(seed, int(i), PROFILE_ROUND)) for i in chosen]
            self.sums += self.model.process.profile(self.model.denoiser, batch.to(self.sums.device), streams).sum(1)
        return True

    def totals(self) -> dict[str, float]:
        """Return sums over all processes' sentences, in nats, by name; every process must call this."""
        sum_over_ranks(self.sums)
        return dict(zip(self.names, self.sums.tolist(), strict=True))


class OutOfTimeError(Exception):
    """An evaluation was stopped for lack of time."""


@torch.no_grad()
def score_text(
    model: ModelParts,
    text: Text,
    indices: np.ndarray,
    scoring: Scoring,
    *,
    progress: bool = True,
    may_go_on: Callable[[], bool] = lambda: True,
) -> Likelihood:
    """Estimate the bound of the chosen sentences with its true weights, which training may have changed.

    Each sentence has its own random stream per round, derived from the seed and its index. So batch size and number of
    processes change the result by rounding only. Each round is unbiased.

    Args:
        model: the model, on its device; each process of a job scores its share of the sentences.
        text: the text.
        indices: int64 [n], sentences to score.
        scoring: settings.
        progress: show a progress bar.
        may_go_on: called before each batch; False stops the evaluation.

    Raises:
        UserError: if a target error is given and the bound is not finite.
        OutOfTimeError: if `may_go_on` returned False in any process.
    """
    mine, device = indices[rank() :: world_size()], model.process.barred.device
    args = scoring.bound.settled(scoring.num_steps, model.process.limit_estimator)
    counts = count_totals(model, text, mine, scoring.batch_size, device)
    tally, profile = Tally(len(mine), device), Profile(model, device)
    rounds = Rounds(model, text, mine, replace(scoring, bound=args), may_go_on)
    in_time = rounds.run(tally, rounds_wanted(args, len(indices)), progress=progress)
    in_time = in_time and profile.fill(text, mine, scoring.batch_size, scoring.seed, may_go_on)
    num_stopped = torch.tensor(float(not in_time), dtype=torch.float64, device=device)
    sum_over_ranks(num_stopped)
    if num_stopped:
        raise OutOfTimeError
    found = likelihood_of(tally, counts, scoring.num_steps, args.estimator, profile.totals())
    return replace(
        found,
        sentence_nats=sentence_nats(tally, len(indices)),
        length_nats=length_nats(model, text.target_lengths[indices]),
        row_format="" if model.pairs else model.text_format.row_format,
        detokenizer="" if model.pairs else model.text_format.detokenizer,
        network_figures=model.process.network_figures(model.denoiser),
        words_separated=are_words_separated(model, text, indices),
        law=args.law,
    )


def sentence_nats(tally: Tally, number: int) -> list[float]:
    """Return the mean bound of each of the `number` sentences of all processes, in their order."""
    nats = torch.zeros(number, dtype=torch.float64, device=tally.device)
    nats[rank() :: world_size()] = tally.means().to(tally.device)
    sum_over_ranks(nats)
    return nats.tolist()


def are_words_separated(model: ModelParts, text: Text, indices: np.ndarray) -> bool:
    """Test on a sample of the chosen sentences whether spaces separate their words."""
    chosen = np.sort(indices[:: -(-len(indices) // SAMPLE)])
    batches = (batch for _, batch in sorted_batches(text, chosen, 64, model.tokenizer))
    rows = (ids[mask] for batch in batches for ids, mask in zip(batch.input_ids, batch.target_mask, strict=True))
    texts = [model.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    return has_separated_words(texts, gaps=float(text.num_words[chosen].sum()) - len(texts))


def length_nats(model: ModelParts, scored: np.ndarray) -> float | None:
    """Return the sum over texts of -log p(length), p from the training lengths with add-one smoothing.

    None for pairs, blocks and causal networks, which need no given length, and for imported weights.

    Args:
        model: the model.
        scored: int64 [n], number of scored tokens of each text.
    """
    known = model.trained_format.single and sum(model.length_histogram) > 1
    if model.pairs or model.causal or not model.text_format.single or not known:
        return None
    scored_ends, trained_ends = (
        2 * (form.row_format == "padded") for form in (model.text_format, model.trained_format)
    )
    histogram, lengths = model.length_histogram[trained_ends:], scored - scored_ends
    counts = np.zeros(max(model.max_length - 1, len(histogram), int(lengths.max()) + 1))
    counts[: len(histogram)] = histogram
    return float(-np.log((counts[1:] + 1) / (counts[1:] + 1).sum())[lengths - 1].sum())


def likelihood_of(
    tally: Tally, counts: Tensor, num_steps: float, estimator: str, profile: dict[str, float]
) -> Likelihood:
    """Combine the tally with the totals of `count_totals` and `Profile`."""
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
        network_evaluations=forwards.item() / sequences,
        draws_variance=variance,
        profile=profile,
    )


def without_unsampled(model: ModelParts, text: Text, indices: np.ndarray) -> np.ndarray:
    """Return the sentences without a target that is scored but never sampled ([UNK])."""
    unsampled = torch.tensor(model.process.vocabulary.unsampled_ids)
    kept = [
        chosen[~(torch.isin(batch.input_ids, unsampled) & batch.noised).any(1).numpy()]
        for chosen, batch in sorted_batches(text, indices, 64, model.tokenizer)
    ]
    return np.sort(np.concatenate(kept))


def count_totals(model: ModelParts, text: Text, mine: np.ndarray, batch_size: int, device: torch.device) -> Tensor:
    """Return unigram nats, sentences, tokens and words of all processes' sentences, float64 [4]."""
    nats, counts = information(model.token_counts), torch.zeros(4, dtype=torch.float64)
    for chosen, batch in sorted_batches(text, mine, batch_size, model.tokenizer):
        tokens = num_tokens(batch, model)
        words = float(text.num_words[np.sort(chosen)].sum())
        unigram = nats[batch.input_ids[batch.target_mask]].sum().item()
        counts += torch.tensor([unigram, len(chosen), tokens, words], dtype=torch.float64)
    counts = counts.to(device)
    sum_over_ranks(counts)
    return counts


def num_tokens(batch: Batch, model: ModelParts) -> int:
    """Count the target tokens of a batch; in the window of a pair, [PAD] is scored but not counted."""
    counted = batch.input_ids != model.tokenizer.pad_token_id if model.pairs else True
    return int((batch.target_mask & counted).sum())


def pick(text: Text, limit: int, seed: int = 0) -> np.ndarray:
    """Return sorted indices of `limit` random sentences; of all if limit is 0 or exceeds their number."""
    if not 0 < limit < len(text):
        return np.arange(len(text))
    return np.sort(np.random.default_rng(seed).permutation(len(text))[:limit])
