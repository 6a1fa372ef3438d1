"""Generative perplexity: how surprising samples are to a causal language model, with their entropy beside it.

The one without the other says nothing: a model that repeats itself, or is sampled cold, surprises nobody. A judge is a
local folder: any causal language model of transformers, or an `--process ar` checkpoint of this project. The count of
tokens is that of MDLM's evaluation (arXiv 2406.07524): an end of text after the first is not scored, text after it is.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM

import checkpoint
from dataloader import collate
from metrics_of_models import load
from process import UserError
from vocabulary import encode

AT_ONCE = 16
Scored = tuple[float, int, list[int]]
"""Of a text: its nats, how many tokens they are of, and all its tokens."""


@torch.no_grad()
def generative_perplexity(texts: Sequence[str], folder: str, device: torch.device) -> dict[str, float | int]:
    """Exp of the mean nats per token that a judge gives the texts.

    Args:
        texts: samples; of one of fewer than two tokens there may be nothing to score.
        folder: the judge.
        device: where it runs.

    Returns:
        gen_ppl with its standard error over texts, gen_tokens that were scored, and token_entropy, the mean over texts
        of the entropy of a text's own token frequencies, in nats.

    Raises:
        UserError: if the folder is no judge, or there is nothing to score.
    """
    with tqdm(total=len(texts), desc="judging", unit="text", leave=False, disable=None) as bar:
        path, scored = Path(folder).expanduser(), []
        own = any((place / "process.json").exists() for place in (path, path / "checkpoint"))
        for one in (_by_checkpoint if own else _by_transformers)(texts, folder, device):
            scored.append(one)
            bar.update(1)
    nats, tokens = (np.array(column, dtype=float) for column in zip(*[s[:2] for s in scored], strict=True))
    if not tokens.sum():
        raise UserError(f"judge_model={folder}: the texts are too short to be scored; each needs two tokens")
    mean = nats.sum() / tokens.sum()
    spread = ((nats - mean * tokens) ** 2).sum() * len(nats) / max(1, len(nats) - 1)
    perplexity = math.exp(min(mean, 700.0))
    return {
        "gen_ppl": perplexity,
        "gen_ppl_se": perplexity * math.sqrt(spread) / tokens.sum(),
        "gen_tokens": int(tokens.sum()),
        "token_entropy": float(np.mean([entropy(ids) for *_, ids in scored if ids])),
    }


def entropy(ids: Sequence[int]) -> float:
    """Of the frequencies of the tokens in one text, nats."""
    share = np.unique(np.asarray(ids), return_counts=True)[1] / len(ids)
    return float(-(share * np.log(share)).sum())


def scored_tokens(ids: Tensor, end: int | None) -> Tensor:
    """Which of the tokens 1..n-1 count, bool [n - 1]: all but ends of text other than the first of all n."""
    if end is None:
        return torch.ones(len(ids) - 1, dtype=torch.bool)
    ends = ids == end
    return (~ends | (ends.cumsum(0) == 1))[1:]


def _by_checkpoint(texts: Sequence[str], folder: str, device: torch.device) -> Iterator[Scored]:
    """By an autoregressive checkpoint of this project: -log p, exact, of each text given [CLS]."""
    run = checkpoint.load(folder, device)
    if run.process_name != "ar":
        raise UserError(
            f"judge_model={folder} is of process={run.process_name}, which has a bound only; give one of ar"
        )
    longest = min(run.max_length, run.denoiser.max_length) - 2
    for start in range(0, len(texts), AT_ONCE):
        rows = [ids[:longest] for ids in encode(run.tokenizer, list(texts[start : start + AT_ONCE]))["input_ids"]]
        batch = collate([np.asarray(ids) for ids in rows], run.tokenizer).to(device)
        no_end = batch.attention_mask & batch.input_ids.ne(run.tokenizer.sep_token_id)  # samples may be cut
        batch = replace(batch, attention_mask=no_end)
        nats = run.process.nll_bound(run.denoiser, batch, 1).tolist()
        yield from zip(nats, map(len, rows), rows, strict=True)


def _by_transformers(texts: Sequence[str], folder: str, device: torch.device) -> Iterator[Scored]:
    """By a stock causal language model: a beginning of text is given, if its tokenizer has one."""
    model, tokenizer = load(folder, eval_device=device, kind=AutoModelForCausalLM)
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    begin = end if begin is None else begin
    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 1024), 1024)
    for start in range(0, len(texts), AT_ONCE):
        chunk = tokenizer(list(texts[start : start + AT_ONCE]), add_special_tokens=False, verbose=False)["input_ids"]
        rows = [torch.tensor(([] if begin is None else [begin]) + ids)[:longest].long() for ids in chunk]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
        attended = torch.arange(ids.shape[1], device=device) < torch.tensor([[len(row)] for row in rows], device=device)
        logits = model(input_ids=ids, attention_mask=attended.long()).logits[:, :-1].float()
        nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").double().cpu()
        for row, own, of_row in zip(rows, chunk, nats, strict=True):
            counted = scored_tokens(row, end) if len(row) else torch.zeros(0, dtype=torch.bool)
            yield of_row[: len(counted)][counted].sum().item(), int(counted.sum()), own
