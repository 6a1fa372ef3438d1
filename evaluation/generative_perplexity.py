"""Generative perplexity: how surprising samples are to a causal language model, with their entropy beside it.

The one without the other says nothing: a model that repeats itself, or is sampled cold, surprises nobody. A judge is a
local folder: any causal language model of transformers, or an `--process ar` checkpoint of this project. The count of
tokens is that of MDLM's evaluation (arXiv 2406.07524): an end of text after the first is not scored, text after it is.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from checkpoint.folder import load_checkpoint
from data.batch import Batch
from data.tokenizers import encode
from evaluation.model_metrics import load_language_model
from utils.errors import UserError
from utils.figures import perplexity

AT_ONCE = 16


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model, as far as it matters here."""

    tokens: Callable[[list[str]], list[list[int]]]
    """Texts to ids, nothing added."""
    begin: tuple[int, ...]
    """What stands before a text and is given; may be nothing, and then a text's first token is."""
    end: int | None
    """The end of text, of which the first of a row alone is scored."""
    longest: int
    """Tokens in a row, `begin` among them."""
    nats: Callable[[Tensor], Tensor]
    """A row, int64 [L] -> -log p of tokens 1..L-1 given those before, [L - 1]."""


@torch.no_grad()
def generative_perplexity(texts: Sequence[str], folder: str, device: torch.device) -> dict[str, float | int | None]:
    """Exp of the mean nats per token that a judge gives the texts.

    A text longer than the judge's window is read in windows that overlap by half, each token scored once.

    Args:
        texts: samples; of one too short for the judge there is nothing to score.
        folder: the judge.
        device: where it runs.

    Returns:
        gen_ppl (None beyond the range of a float) with its standard error over texts (None for a single one),
        gen_tokens that were scored, and token_entropy, the mean over texts of the entropy of a text's own token
        frequencies, in nats.

    Raises:
        UserError: if the folder is no judge, or gives no finite figure, or there is nothing to score.
    """
    path, sums, entropies = Path(folder).expanduser(), [], []
    own = any((place / "process.json").exists() for place in (path, path / "checkpoint"))
    judge = (_of_checkpoint if own else _of_transformers)(folder, device)
    for start in tqdm(range(0, len(texts), AT_ONCE), desc="judging", leave=False, disable=None):
        for ids in judge.tokens(list(texts[start : start + AT_ONCE])):
            sums.append(nats_of_text(judge, ids, device))
            entropies += [token_entropy(ids)] if ids else []
    nats, tokens = np.array(sums, dtype=float).reshape(-1, 2).T
    if not tokens.sum():
        raise UserError(f"judge_model={folder}: the texts are too short to be scored; give longer ones")
    if not np.isfinite(nats).all():
        place = int(np.flatnonzero(~np.isfinite(nats))[0]) + 1
        raise UserError(f"judge_model={folder} gives text {place} {sums[place - 1][0]} nats; give another judge")
    value = perplexity(nats.sum() / tokens.sum())
    error = error_of_ratio(nats, tokens) if len(nats) > 1 else math.inf
    margin = math.inf if value is None else value * error
    return {
        "gen_ppl": value,
        "gen_ppl_se": margin if math.isfinite(margin) else None,
        "gen_tokens": int(tokens.sum()),
        "token_entropy": float(np.mean(entropies)),
    }


def nats_of_text(judge: LanguageModel, ids: list[int], device: torch.device) -> tuple[float, int]:
    """Nats of a text, and how many tokens they are of."""
    given = len(judge.begin)
    counted = torch.cat([torch.zeros(1 - given, dtype=torch.bool), scored_tokens([*judge.begin, *ids], judge.end)])
    nats = torch.zeros(len(ids), dtype=torch.float64)
    for begin, end, fresh in sliding_windows(len(ids), judge.longest - given):
        row = torch.tensor([*judge.begin, *ids[begin:end]], device=device)
        first = max(fresh, begin + 1 - given)  # the first that has something before it
        if first < end:
            nats[first:end] = judge.nats(row)[first - begin - 1 + given :].double().cpu()
    return nats[counted[: len(ids)]].sum().item(), int(counted[: len(ids)].sum())


def sliding_windows(length: int, most: int) -> Iterator[tuple[int, int, int]]:
    """Begin and end of sliding_windows of at most so many tokens, and from where on their tokens are new."""
    end = min(length, most)
    yield 0, end, 0
    while end < length:
        begin, fresh = end - most // 2, end
        end = min(length, begin + most)
        yield begin, end, fresh


def error_of_ratio(nats: np.ndarray, tokens: np.ndarray) -> float:
    """Standard error over texts of sum(nats) / sum(tokens) (delta method)."""
    spread = ((nats - nats.sum() / tokens.sum() * tokens) ** 2).sum()
    return math.sqrt(spread * len(nats) / (len(nats) - 1)) / tokens.sum()


def token_entropy(ids: Sequence[int]) -> float:
    """Of the frequencies of the tokens in one text, nats."""
    share = np.unique(np.asarray(ids), return_counts=True)[1] / len(ids)
    return float(-(share * np.log(share)).sum())


def scored_tokens(ids: Sequence[int], end: int | None) -> Tensor:
    """Which of the tokens 1..n-1 count, bool [n - 1]: all but ends of text other than the first of all n."""
    row = torch.as_tensor(ids, dtype=torch.long)
    if end is None:
        return torch.ones(max(0, len(row) - 1), dtype=torch.bool)
    ends = row == end
    return (~ends | (ends.cumsum(0) == 1))[1:]


def _of_checkpoint(folder: str, device: torch.device) -> LanguageModel:
    """An autoregressive checkpoint of this project."""
    run = load_checkpoint(folder, device)
    if run.process_name != "ar" or run.pairs:
        what = "pairs" if run.pairs else f"process={run.process_name}, which has a bound only"
        raise UserError(f"judge_model={folder} is of {what}; give one of text and process=ar")
    run.process.end_id = None  # samples may be cut

    def nats(row: Tensor) -> Tensor:
        there = torch.ones_like(row, dtype=torch.bool)[None]
        targets = there & (torch.arange(len(row), device=device) > 0)
        return run.process.cross_entropy(run.denoiser, Batch(row[None], there, targets))[0, 1:]

    longest = min(run.max_length, run.denoiser.max_length) - 1
    begin = (run.tokenizer.cls_token_id,)
    return LanguageModel(lambda texts: encode(run.tokenizer, texts)["input_ids"], begin, None, longest, nats)


def _of_transformers(folder: str, device: torch.device) -> LanguageModel:
    """A stock causal language model; the beginning of text, if its tokenizer has one, is given."""
    model, tokenizer = load_language_model(folder, eval_device=device, kind=AutoModelForCausalLM)
    begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id

    def nats(row: Tensor) -> Tensor:
        logits = model(input_ids=row[None]).logits[0, :-1].float()
        return torch.nn.functional.cross_entropy(logits, row[1:], reduction="none")

    rows = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]], device=device) % model.config.vocab_size
    states = (model(input_ids=row[None], output_hidden_states=True).hidden_states[-1][0, :-1] for row in rows)
    states = [*states]
    if not all(state.isfinite().all() for state in states):
        raise UserError(f"judge_model={folder}: its hidden states are not finite; give another judge")
    if not torch.allclose(*states, atol=1e-6, rtol=1e-5):
        raise UserError(f"judge_model={folder} sees what is to come; give a causal language model (GPT-2, ...)")
    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 1024), 1024)

    def tokens(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    return LanguageModel(tokens, () if begin is None else (begin,), tokenizer.eos_token_id, longest, nats)
