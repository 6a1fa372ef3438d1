"""Generative perplexity of samples under a causal language model, and the entropy of the samples.

Perplexity alone is misleading: repetitive samples, or samples drawn at low temperature, have a low one. The language
model is a local folder: a causal language model of transformers, or an `--process ar` checkpoint of this project.
Tokens are counted as in MDLM's evaluation (arXiv 2406.07524): of the ends of text in a sample only the first is scored;
text after it is scored too.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel

from checkpoint.folder import load_checkpoint
from data.batch import Batch
from data.tokenizers import encode
from diffusion.autoregressive import Autoregressive
from evaluation.model_metrics import load_language_model
from utils.errors import UserError
from utils.figures import perplexity

TEXTS_PER_CHUNK = 16
"""Texts tokenized together."""


@dataclass(frozen=True)
class LanguageModel:
    """Interface of a causal language model that scores texts."""

    tokens: Callable[[list[str]], list[list[int]]]
    """Map texts to token ids, without special tokens."""
    begin: tuple[int, ...]
    """Tokens before each text, not scored; if empty, the first token of a text is not scored."""
    end: int | None
    """End-of-text token; only the first one of a text is scored."""
    longest: int
    """Largest number of tokens in a row, including `begin`."""
    nats: Callable[[Tensor], Tensor]
    """Map a row, int64 [L], to -log p of tokens 1..L-1 given the tokens before, [L - 1]."""


@torch.no_grad()
def generative_perplexity(
    texts: Sequence[str], folder: str, device: torch.device, language_model: LanguageModel | None = None
) -> dict[str, float | int | None]:
    """Return exp of the mean nats per token of texts under a language model.

    A text longer than the model's window is scored in windows that overlap by half; each token is scored once.

    Args:
        texts: samples; a text too short to be scored counts no tokens.
        folder: folder of the language model.
        device: device of the language model.
        language_model: the language model, if it is loaded already.

    Returns:
        gen_ppl, None beyond the range of a float; gen_ppl_se, its standard error over texts, None for a single text;
        gen_tokens, the number of scored tokens; token_entropy, the entropy of the token frequencies within a text, in
        nats, averaged over texts.

    Raises:
        UserError: if the folder holds no causal language model, the result is not finite, or no token is scored.
    """
    language_model, sums, entropies = language_model or load_causal_model(folder, device), [], []
    chunks = range(0, len(texts), TEXTS_PER_CHUNK)
    for start in tqdm(chunks, desc="generative perplexity", leave=False, disable=None):
        for ids in language_model.tokens(list(texts[start : start + TEXTS_PER_CHUNK])):
            sums.append(nats_of_text(language_model, ids, device))
            entropies += [token_entropy(ids)] if ids else []
    nats, tokens = np.array(sums, dtype=float).reshape(-1, 2).T
    if not tokens.sum():
        raise UserError(f"judge_model={folder}: the texts are too short to be scored; give longer ones")
    if not np.isfinite(nats).all():
        number = int(np.flatnonzero(~np.isfinite(nats))[0]) + 1
        value = sums[number - 1][0]
        raise UserError(f"judge_model={folder} gives text {number} {value} nats; give another language model")
    value = perplexity(nats.sum() / tokens.sum())
    error = ratio_standard_error(nats, tokens) if len(nats) > 1 else math.inf
    margin = math.inf if value is None else value * error
    return {
        "gen_ppl": value,
        "gen_ppl_se": margin if math.isfinite(margin) else None,
        "gen_tokens": int(tokens.sum()),
        "token_entropy": float(np.mean(entropies)),
    }


def load_causal_model(folder: str, device: torch.device) -> LanguageModel:
    """Load a causal language model from a checkpoint of this project or a folder of transformers.

    Raises:
        UserError: if it cannot be read or is not causal.
    """
    path = Path(folder).expanduser()
    is_checkpoint = any((parent / "process.json").exists() for parent in (path, path / "checkpoint"))
    return _load_checkpoint(folder, device) if is_checkpoint else _load_transformers(folder, device)


def nats_of_text(language_model: LanguageModel, ids: list[int], device: torch.device) -> tuple[float, int]:
    """Return the nats of a text, and the number of scored tokens."""
    given, end_id = len(language_model.begin), language_model.end
    scored = scored_tokens([*language_model.begin, *ids], end_id)
    scored = torch.cat([torch.zeros(1 - given, dtype=torch.bool), scored])[: len(ids)]
    nats = torch.zeros(len(ids), dtype=torch.float64)
    for begin, end, first_new in sliding_windows(len(ids), language_model.longest - given):
        row = torch.tensor([*language_model.begin, *ids[begin:end]], device=device)
        first = max(first_new, begin + 1 - given)  # the first token with a context
        if first < end:
            nats[first:end] = language_model.nats(row)[first - begin - 1 + given :].cpu().double()
    return nats[scored].sum().item(), int(scored.sum())


def sliding_windows(length: int, width: int) -> Iterator[tuple[int, int, int]]:
    """Yield begin, end and first new token of windows of at most `width` tokens that overlap by half."""
    end = min(length, width)
    yield 0, end, 0
    while end < length:
        begin, first_new = end - width // 2, end
        end = min(length, begin + width)
        yield begin, end, first_new


def ratio_standard_error(nats: np.ndarray, tokens: np.ndarray) -> float:
    """Return the standard error over texts of sum(nats) / sum(tokens), by the delta method."""
    residual = ((nats - nats.sum() / tokens.sum() * tokens) ** 2).sum()
    return math.sqrt(residual * len(nats) / (len(nats) - 1)) / tokens.sum()


def token_entropy(ids: Sequence[int]) -> float:
    """Return the entropy of the token frequencies in a text, in nats."""
    frequency = np.unique(np.asarray(ids), return_counts=True)[1] / len(ids)
    return float(-(frequency * np.log(frequency)).sum())


def scored_tokens(ids: Sequence[int], end: int | None) -> Tensor:
    """Mark the scored tokens among 1..n-1, bool [n - 1]: all except ends of text after the first of all n."""
    row = torch.as_tensor(ids, dtype=torch.long)
    if end is None:
        return torch.ones(max(0, len(row) - 1), dtype=torch.bool)
    ends = row == end
    return (~ends | (ends.cumsum(0) == 1))[1:]


def _load_checkpoint(folder: str, device: torch.device) -> LanguageModel:
    """Load an autoregressive checkpoint of this project."""
    model = load_checkpoint(folder, device)
    if model.process_name != "ar" or model.pairs:
        found = "pairs" if model.pairs else f"process={model.process_name}, which only gives a bound"
        raise UserError(f"judge_model={folder} is a checkpoint of {found}; give one of text and process=ar")
    # no end_id: samples may be truncated, so their end is not scored
    process = Autoregressive(model.process.args, model.process.vocabulary).to(model.device)

    def nats(row: Tensor) -> Tensor:
        row = row.to(model.device)
        attended = torch.ones_like(row, dtype=torch.bool)[None]
        targets = attended & (torch.arange(len(row), device=row.device) > 0)
        return process.cross_entropy(model.denoiser, Batch(row[None], attended, targets))[0, 1:]

    longest = min(model.max_length, model.denoiser.max_length) - 1
    begin = (model.tokenizer.cls_token_id,)
    return LanguageModel(lambda texts: encode(model.tokenizer, texts)["input_ids"], begin, None, longest, nats)


def _load_transformers(folder: str, device: torch.device) -> LanguageModel:
    """Load a causal language model of transformers; texts begin with its beginning-of-text token, if it has one."""
    model, tokenizer = load_language_model(folder, eval_device=device, kind=AutoModelForCausalLM)
    require_causal(model, folder)
    begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id

    def nats(row: Tensor) -> Tensor:
        logits = model(input_ids=row[None]).logits[0, :-1].float()
        return torch.nn.functional.cross_entropy(logits, row[1:], reduction="none")

    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 1024), 1024)

    def tokens(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    return LanguageModel(tokens, () if begin is None else (begin,), tokenizer.eos_token_id, longest, nats)


def require_causal(model: PreTrainedModel, folder: str) -> None:
    """Require finite hidden states that do not depend on later tokens.

    Raises:
        UserError: naming the folder.
    """
    rows = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]], device=model.device) % model.config.vocab_size
    states = [model(input_ids=row[None], output_hidden_states=True).hidden_states[-1][0, :-1] for row in rows]
    if not all(state.isfinite().all() for state in states):
        raise UserError(f"judge_model={folder}: its hidden states are not finite; give another language model")
    if not torch.allclose(*states, atol=1e-6, rtol=1e-5):
        raise UserError(f"judge_model={folder} attends to later tokens; give a causal language model (GPT-2, ...)")
