"""The likelihood of a text under a run: sums of nats, counts of tokens and words, divided once, with their error."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator
from tqdm import tqdm

from checkpoint import Run
from dataloader import Text, sorted_batches
from diffusion_word_freq import entropy
from process import Batch
from runtime import sum_over_ranks


@dataclass(frozen=True)
class Likelihood:
    """Totals over sentences, and the figures that follow from them.

    Only text tokens count: no [CLS], [SEP], [PAD]. Of pairs, the target is scored given its source, with its end: its
    nats are those of the whole window, its tokens are its text and [SEP].
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
    num_words: int
    num_steps: int

    def report(self) -> dict[str, float | int | None]:
        """Every figure by its name.

        ppl_word is the paper's: exp of the mean nats per sequence over the mean number of whitespace words.
        network_evaluations counts the forwards each sentence goes through. standard_error_nats is that of
        nats_per_sequence, and covers both the choice of sentences and the draws of x_t; None for a single sentence.
        """
        n = self.num_sequences
        mean = self.nats / n
        variance = max(self.nats_squared / n - mean**2, 0) * n
        return {
            "nats_per_sequence": mean,
            "bits_per_token": self.nats / self.num_tokens / math.log(2),
            "ppl_token": _exp(self.nats / self.num_tokens),
            "ppl_word": _exp(self.nats / self.num_words),
            "prior_nats": self.prior_nats / self.num_sequences,
            "reconstruction_nats": self.reconstruction_nats / self.num_sequences,
            "unigram_bits_per_token": self.unigram_nats / self.num_tokens / math.log(2),
            "num_steps": self.num_steps,
            "num_sequences": self.num_sequences,
            "num_tokens": self.num_tokens,
            "num_words": self.num_words,
            "network_evaluations": self.num_steps,
            "standard_error_nats": math.sqrt(variance / (n - 1) / n) if n > 1 else None,
        }


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))  # an untrained network's perplexity may leave the range of a float


@torch.no_grad()
def score(
    run: Run,
    text: Text,
    indices: np.ndarray,
    *,
    num_steps: int,
    batch_size: int,
    seed: int,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    progress: bool = True,
) -> Likelihood:
    """The bound of the chosen sentences, at `num_steps` steps, with the true weights whatever the training used.

    Each sentence has a stream of random numbers of its own (from `seed` and its index), so that neither the batch
    size nor the number of processes changes the result beyond rounding.
    """
    information = entropy(run.token_counts)
    totals = torch.zeros(8, dtype=torch.float64)
    mine = indices[rank::world_size]
    batches = sorted_batches(text, mine, batch_size, run.tokenizer)
    with tqdm(
        total=len(mine), desc=f"scoring, {num_steps} steps", unit="sentence", leave=False, disable=not progress or None
    ) as bar:
        for chosen, batch in batches:
            streams = [Generator().manual_seed(sentence_seed(seed, int(i))) for i in chosen]
            bound = run.process.bound(run.denoiser, batch.to(device), num_steps, generator=streams)
            nats = bound.total.cpu()
            tokens = batch.input_ids[batch.target_mask]
            totals += torch.stack([
                nats.sum(),
                nats.square().sum(),
                bound.prior.sum().cpu(),
                bound.reconstruction.sum().cpu(),
                information[tokens].sum(),
                torch.tensor(float(len(chosen))),
                torch.tensor(float(num_tokens(batch, run.tokenizer.pad_token_id))),
                torch.tensor(float(text.num_words[np.sort(chosen)].sum())),
            ])  # fmt: skip
            bar.update(len(chosen))
    on_device = totals.to(device)
    sum_over_ranks(on_device)
    *nats_sums, sequences, tokens, words = on_device.tolist()
    return Likelihood(*nats_sums, int(sequences), int(tokens), int(words), num_steps)


def num_tokens(batch: Batch, pad_id: int) -> int:
    """Target tokens of a batch. Of a pair's window, its text and [SEP]; the [PAD]s are scored, but are no tokens."""
    return int((batch.target_mask & (batch.input_ids != pad_id)).sum())


def sentence_seed(seed: int, index: int) -> int:
    """A seed for one sentence of a run, unrelated to its neighbours'."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> 1)


def pick(text: Text, limit: int, seed: int = 0) -> np.ndarray:
    """Indices of `limit` sentences drawn once for a seed, or of all if limit is 0 or more than there are."""
    if not 0 < limit < len(text):
        return np.arange(len(text))
    return np.sort(np.random.default_rng(seed).permutation(len(text))[:limit])


def describe(report: dict[str, float | int | None]) -> str:
    """A report in three lines for people."""
    error = report["standard_error_nats"]
    margin = "unknown" if error is None else f"{error:.3f}"
    return (
        f"{report['bits_per_token']:.3f} bits/token (unigram {report['unigram_bits_per_token']:.3f}), "
        f"PPL {report['ppl_token']:.2f} per token, {report['ppl_word']:.2f} per word\n"
        f"{report['nats_per_sequence']:.3f} nats/sequence, standard error {margin}; "
        f"of these prior {report['prior_nats']:.3f}, reconstruction {report['reconstruction_nats']:.3f}\n"
        f"{report['num_steps']} steps, {report['network_evaluations']} network evaluations a sequence; "
        f"{report['num_sequences']:,} sequences, {report['num_tokens']:,} tokens, {report['num_words']:,} words"
    )
