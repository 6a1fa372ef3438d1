"""Candidates for the targets of pairs: several samples of each source, each with its own random stream."""

import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Generator, Tensor
from tqdm import tqdm

from checkpoint.model_parts import ModelParts
from checkpoint.requests import CandidateRequest
from data.pairs import Layout, source_ids, target_text
from diffusion.draws import sentence_seed
from diffusion.options import SampleArgs
from diffusion.process import StepCallback

BATCHES_PER_CALL = 64  # many, since the sampler refills its batch until its rows run out


def draw_candidates(
    model: ModelParts,
    sources: list[str],
    request: CandidateRequest,
    sampling: SampleArgs,
    finish: Callable[[int, list[str]], None],
    *,
    numbers: Sequence[int] | None = None,
) -> None:
    """Draw candidates; call `finish(i, texts)` once source i has all of them, short sources first.

    Args:
        model: a model of pairs, on its device.
        sources: texts; one that is too long loses its first tokens.
        request: number of candidates, and the seed.
        sampling: the sampler.
        finish: called once per source.
        numbers: indices of the sources to draw for; default: all. The others do not change the candidates.
    """
    layout = Layout(model.pairs, model.tokenizer, model.max_length)
    ids = source_ids(layout, model.tokenizer, sources)
    if cut := sum(len(i) > layout.longest_source for i in ids):
        tqdm.write(f"note: {cut} sources cut to their last {layout.longest_source} tokens", file=sys.stderr)
    todo = sorted(range(len(sources)) if numbers is None else numbers, key=lambda i: len(ids[i]))
    per_call = max(1, BATCHES_PER_CALL * request.batch_size // request.mbr_size)

    def decoded(i: int, windows: list[Tensor]) -> None:
        finish(i, [target_text(model.tokenizer, window) for window in windows])

    for start in range(0, len(todo), per_call):
        draw_windows(model, layout, ids, todo[start : start + per_call], request, sampling, decoded)


@torch.no_grad()
def draw_windows(
    model: ModelParts,
    layout: Layout,
    ids: list[np.ndarray],
    chosen: Sequence[int],
    request: CandidateRequest,
    sampling: SampleArgs,
    finish: Callable[[int, list[Tensor]], None],
    *,
    on_step: StepCallback | None = None,
) -> None:
    """Draw target windows, each int64 [window], for the `chosen` of the sources `ids`.

    Call `finish(i, windows)` once source i has all of its own, and `on_step` after each forward pass.

    Candidate j of source i has its own random stream, seeded by (seed + j, i). So neither the batch size nor the other
    sources change it. The candidates of a source are adjacent rows and share their batches.
    """
    rows = [(i, j) for i in chosen for j in range(request.mbr_size)]
    streams = [Generator().manual_seed(sentence_seed(request.seed + j, i)) for i, j in rows]
    batch = layout.blanks([ids[i] for i, _ in rows])
    drawn: dict[int, dict[int, Tensor]] = {i: {} for i in chosen}

    def collect(finished: Tensor, xt: Tensor) -> None:
        for row, tokens in zip(finished.tolist(), xt[finished].cpu(), strict=True):
            i, j = rows[row]
            drawn[i][j] = tokens[batch.target_mask[row]]
            if len(drawn[i]) == request.mbr_size:
                finish(i, [drawn[i][j] for j in range(request.mbr_size)])
        if on_step is not None:
            on_step(finished, xt)

    model.process.sample(
        model.denoiser,
        batch.to(model.device),
        sampling,
        rows_at_once=request.batch_size,
        generator=streams,
        on_step=collect,
    )
