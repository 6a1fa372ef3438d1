"""Variants that the benchmarks compare: the floor, this project, and the matrix formulation in [B, L, V]."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from benchmarks import matrix_formulation
from data.batch import Batch
from data.batching import batch_indices
from data.options import DataArgs
from diffusion.draws import stratified_timesteps
from diffusion.options import SampleArgs, step_windows
from diffusion.process import Vocabulary, encode_at
from diffusion.process_options import WordFreqArgs
from diffusion_word_freq import WordFreqDiffusion
from models.bert import BertDenoiser

MASK, FIRST = 103, 1000
SHAPES = {
    "small": {"layers": 4, "hidden": 256, "rows": 16, "length": 64, "rounds": 12, "vocabulary": 30522},
    "base": {"layers": 12, "hidden": 768, "rows": 4, "length": 128, "rounds": 6, "vocabulary": 30522},
}
STEPS = 128
LM1B_LENGTHS = Path(__file__).parent.parent / "tests" / "golden" / "lm1b_lengths.json"
Step = Callable[[], object]
Maker = Callable[[dict], Step]


def network(shape: dict) -> BertForMaskedLM:
    """Return a randomly initialised BERT."""
    torch.manual_seed(0)
    sizes = {"hidden_size": shape["hidden"], "num_hidden_layers": shape["layers"]}
    sizes |= {"num_attention_heads": shape["hidden"] // 64, "intermediate_size": 4 * shape["hidden"]}
    return BertForMaskedLM(BertConfig(vocab_size=shape["vocabulary"], **sizes)).train()


def process_of(shape: dict, **settings: object) -> WordFreqDiffusion:
    """Return the process over a Zipf vocabulary."""
    counts = (1e6 / torch.arange(1, shape["vocabulary"] + 1)).long()
    return WordFreqDiffusion(
        WordFreqArgs(**settings), counts, Vocabulary(len(counts), MASK, excluded_ids=(0, 101, 102))
    )


def text(shape: dict, rows: int = 0) -> Batch:
    """Return random sentences; every token is a target."""
    torch.manual_seed(1)
    x0 = torch.randint(FIRST, shape["vocabulary"], (rows or shape["rows"], shape["length"]))
    everything = torch.ones_like(x0, dtype=torch.bool)
    return Batch(x0, everything, everything)


# ---- a training step -------------------------------------------------------------------------------------------------


def trained(model: torch.nn.Module, loss: Callable[[], Tensor]) -> Step:
    """Return a step of forward, backward and AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def stock(shape: dict) -> Step:
    """Return a step of masked language modelling at 15 %, as in transformers."""
    model, x0 = network(shape), text(shape).input_ids

    def loss() -> Tensor:
        chosen = torch.rand(x0.shape) < 0.15
        logits = model(input_ids=x0.masked_fill(chosen, MASK)).logits
        return F.cross_entropy(logits.flatten(0, 1), x0.masked_fill(~chosen, -100).flatten())

    return trained(model, loss)


def ours(shape: dict, *, fused: bool = False, **settings: object) -> Step:
    """Return a step of the diffusion loss."""
    denoiser, process, batch = BertDenoiser(network(shape)), process_of(shape, **settings), text(shape)
    process.fused_loss = fused

    def loss() -> Tensor:
        found = process.loss(denoiser, batch)
        return found.total / found.num_tokens

    return trained(denoiser, loss)


def matrix(shape: dict) -> Step:
    """Return a step of the released loss in [B, L, V], hybrid term included."""
    denoiser, process, batch = BertDenoiser(network(shape)), process_of(shape), text(shape)

    def loss() -> Tensor:
        t = stratified_timesteps(len(batch.input_ids), process.num_steps)
        kl, cross_entropy = matrix_formulation.term(process, denoiser, batch, t - 1, t)
        return process.num_steps * (kl.sum() + 0.01 * cross_entropy.sum()) / batch.target_mask.sum()

    return trained(denoiser, loss)


TRAINING: dict[str, Maker] = {
    "stock": stock,
    "train_ratio": ours,
    "train_ratio_hybrid": lambda shape: ours(shape, hybrid_lambda=0.01),
    "train_ratio_lambda0": lambda shape: ours(shape, spindle="none"),
    "train_ratio_uniform": lambda shape: ours(shape, loss_weighting="uniform"),
    "matrix_train_ratio_hybrid": matrix,
}

FUSED: dict[str, Maker] = {
    "whole": lambda shape: ours({**shape, "rows": 4 * shape["rows"]}),
    "fused_ratio": lambda shape: ours({**shape, "rows": 4 * shape["rows"]}, fused=True),
}
"""Four times the rows: enough for several parts."""


# ---- batches of sentences of many lengths ----------------------------------------------------------------------------


def lm1b_widths() -> np.ndarray:
    """Return the slots of LM1B's sentences cut at 64, [CLS] and [SEP] included."""
    lengths = json.loads(LM1B_LENGTHS.read_text())["histogram"]
    return np.minimum(np.repeat(np.arange(len(lengths)), lengths), 62) + 2


def on_lengths(shape: dict, way: str) -> Step:
    """Return a step on sentences of LM1B's lengths in about rows x length slots; the step returns its tokens."""
    widths, rng, length = lm1b_widths(), np.random.default_rng(0), 64
    rows = shape["rows"] * shape["length"] // length
    args = DataArgs("", batch_size=rows, max_length=length, max_tokens=rows * length, packing=way == "packing")
    denoiser, process, tokens = BertDenoiser(network(shape)), process_of(shape), []
    denoiser.pack_rows(length if way == "packing" else 0)
    random = (rng.choice(len(widths), rows) for _ in iter(int, 1))
    batches = random if way == "random" else batch_indices(widths, args, rng)

    def loss() -> Tensor:
        mine = torch.from_numpy(widths[next(batches)])
        on = torch.arange(int(mine.max())) < mine[:, None]
        x0 = torch.randint(FIRST, shape["vocabulary"], on.shape)
        tokens.append(int(mine.sum()))
        found = process.loss(denoiser, Batch(x0, on, on))
        return found.total / found.num_tokens

    step = trained(denoiser, loss)
    return lambda: (step(), tokens[-1])[1]


# ---- sampling and the bound ------------------------------------------------------------------------------------------


def bare(shape: dict) -> Step:
    """Return a forward pass, encoded and decoded at every position."""
    denoiser, batch = BertDenoiser(network(shape).eval()), text(shape)
    t = torch.ones(shape["rows"], dtype=torch.long)
    return torch.no_grad()(lambda: denoiser.decode(denoiser.encode(batch.input_ids, t, batch.attention_mask)))


def sampled(shape: dict, sampler: Callable, windows: int) -> Step:
    """Return a few reverse steps with the spindle."""
    denoiser, process, batch = BertDenoiser(network(shape).eval()), process_of(shape), text(shape)
    return torch.no_grad()(lambda: sampler(process, denoiser, batch, SampleArgs(num_steps=windows)))


def fast(process: WordFreqDiffusion, *rest: object) -> Tensor:
    """Return this project's sampler."""
    return process.sample(*rest)


def term(shape: dict, of: str) -> Step:
    """Return one window's terms of the bound for 8 sentences."""
    denoiser, process, batch = BertDenoiser(network(shape).eval()), process_of(shape), text(shape, 8)
    t, s = (torch.full((8,), step) for step in step_windows(process.num_steps, STEPS)[STEPS // 2])

    @torch.no_grad()
    def step() -> Tensor:
        if of == "matrix":
            return matrix_formulation.term(process, denoiser, batch, s, t)[0]
        xt = process.corrupt(batch.input_ids, t, batch.target_mask)
        return process.token_terms(denoiser, batch, xt, s, t)[0]

    return step


SAMPLING: dict[str, Maker] = {
    "bare": bare,
    "sample": lambda shape: sampled(shape, fast, 16),
    "matrix_sample": lambda shape: sampled(shape, matrix_formulation.sample, 2),
}
TERMS: dict[str, Maker] = {
    "bare": lambda shape: bare({**shape, "rows": 8}),
    "elbo_term_ratio": lambda shape: term(shape, "ours"),
    "matrix_elbo_term_ratio": lambda shape: term(shape, "matrix"),
}


class Counted:
    """Denoiser that counts its calls and the rows it encodes."""

    def __init__(self, denoiser: BertDenoiser) -> None:
        self.inner, self.time_conditioned, self.rows, self.calls = denoiser, denoiser.time_conditioned, 0, 0

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        """Count the call and its rows, then encode."""
        self.rows, self.calls = self.rows + len(xt), self.calls + 1
        return self.inner.encode(xt, t, attention_mask)

    def encode_at(self, xt: Tensor, t: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        """Count the call and its rows, then encode."""
        self.rows, self.calls = self.rows + len(xt), self.calls + 1
        return encode_at(self.inner, xt, t, attention_mask, positions)

    def decode(self, hidden: Tensor) -> Tensor:
        """Decode with the inner denoiser."""
        return self.inner.decode(hidden)
