"""Samples of a model of text: blank rows with lengths of the training text or a text with gaps, and their tokens."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Generator, Tensor
from tqdm import tqdm

from checkpoint.model_parts import ModelParts
from checkpoint.requests import SampleRequest
from data.batch import Batch
from data.written_rows import blank_row, decode_row
from diffusion import infilling, semi_autoregressive
from diffusion.options import SampleArgs, SemiArArgs
from diffusion.process import Denoiser, StepCallback
from utils.errors import UserError


def sample_rows(
    model: ModelParts,
    request: SampleRequest,
    sampling: SampleArgs,
    on_step: StepCallback | None = None,
    semi_ar: SemiArArgs | None = None,
    numbers: Sequence[int] = (),
) -> list[Tensor]:
    """Return the token ids of each sample, int64 [L] without padding, in the order of their numbers.

    Sample i has its own random stream, so that it depends neither on the batch size nor on the number of samples.
    Batches hold sentences of similar length. With `on_step` there is no progress bar.

    Args:
        model: the model, on its device.
        request: number and lengths of the samples.
        sampling: the sampler.
        on_step: called after each forward pass.
        semi_ar: settings of texts longer than one window.
        numbers: numbers of the samples to draw; default: all.
    """
    streams = [stream_of(request, i) for i in numbers or range(request.num_samples)]
    blanks = [blank(model, request, stream) for stream in streams]
    order = sorted(range(len(blanks)), key=lambda i: -len(blanks[i][0]))
    batch = stack([blanks[i] for i in order], model.tokenizer.pad_token_id).to(model.device)
    sampler = functools.partial(
        model.process.sample,
        denoiser_of(model, request, batch.input_ids.shape[1]),
        args=sampling,
        rows_at_once=request.batch_size,
        generator=[streams[i] for i in order],
    )
    if semi_ar and semi_ar.semi_ar:
        return list(_in_strides(sampler, batch, semi_ar, on_step))
    with _counted(len(order), on_step) as count:
        tokens = sampler(batch, on_step=count).cpu()
    drawn: list[Tensor] = [torch.empty(0)] * len(blanks)
    for i, row in zip(order, tokens, strict=True):
        drawn[i] = row[: len(blanks[i][0])]
    return drawn


def _in_strides(
    sampler: Callable[..., Tensor], batch: Batch, semi_ar: SemiArArgs, on_step: StepCallback | None
) -> Tensor:
    """Return texts longer than one window, int64 [B, L]; all have one length."""
    stride = semi_ar.stride(int(batch.target_mask[0].sum()))
    with _counted(len(batch.input_ids) * (semi_ar.num_strides + 1), on_step) as count:
        of_batch = functools.partial(sampler, on_step=count)
        return semi_autoregressive.write(batch, of_batch, stride, semi_ar.num_strides).cpu()


@contextlib.contextmanager
def _counted(total: int, on_step: StepCallback | None) -> Iterator[StepCallback]:
    """Yield a callback that counts finished sentences in a bar; with `on_step` it calls that, without a bar."""
    hidden = None if on_step is None else True
    with tqdm(total=total, desc="sampling", unit="sentence", leave=False, disable=hidden) as bar, torch.no_grad():

        def count(finished: Tensor, xt: Tensor) -> None:
            bar.update(len(finished))
            if on_step is not None:
                on_step(finished, xt)

        yield count


def stream_of(request: SampleRequest, number: int) -> Generator:
    """Return the random generator of a sample."""
    return Generator().manual_seed(int(np.random.SeedSequence([request.seed, number]).generate_state(1)[0]))


def denoiser_of(model: ModelParts, request: SampleRequest, width: int) -> Denoiser:
    """Return the denoiser; for infilling, restricted to tokens that do not extend the given words."""
    if not request.infill or request.infill_pieces:
        return model.denoiser
    gaps = infilling.parse_infill(model.tokenizer, request.infill)
    return infilling.restrict(model.denoiser, gaps, model.tokenizer, model.process.support, width)


def blank(model: ModelParts, request: SampleRequest, stream: Generator) -> tuple[Tensor, Tensor]:
    """Return token ids and target mask, each [L], of one sentence to sample."""
    text = infilling.parse_infill(model.tokenizer, request.infill).ids if request.infill else []
    length = len(text) or request.length
    if model.text_format.row_format == "unpadded" and not model.causal:
        length = length or draw_length(model.length_histogram, stream)
    elif request.length and model.text_format.row_format != "unpadded":
        fixed = f"a row of row_format={model.text_format.row_format} has {model.max_length} tokens"
        raise UserError(f"length={length}: {fixed}; leave it out")
    most = model.denoiser.max_length if model.text_format.row_format == "unpadded" else model.max_length
    if length + 2 > most:
        raise UserError(f"{length} tokens with [CLS] and [SEP] exceed the {most} positions of this checkpoint")
    text = text or [model.tokenizer.mask_token_id] * length
    return blank_row(model.text_format, model.tokenizer, model.max_length, text, causal=model.causal)


def draw_length(histogram: list[int], stream: Generator) -> int:
    """Draw a number of tokens from the length histogram of the training text."""
    weights = torch.tensor([0, *histogram[1:]], dtype=torch.float64)
    return int(torch.multinomial(weights, 1, generator=stream))


def stack(blanks: list[tuple[Tensor, Tensor]], pad_id: int) -> Batch:
    """Return a padded batch of sentences of different lengths."""
    pad = torch.nn.utils.rnn.pad_sequence
    input_ids = pad([ids for ids, _ in blanks], batch_first=True, padding_value=pad_id)
    target_mask = pad([mask for _, mask in blanks], batch_first=True, padding_value=False)
    attention_mask = pad([torch.ones_like(mask) for _, mask in blanks], batch_first=True, padding_value=False)
    return Batch(input_ids, attention_mask, target_mask)


def decode(model: ModelParts, tokens: Tensor) -> str:
    """Return the text of a sample without [CLS] and [SEP]; other special tokens stay visible."""
    return decode_row(model.text_format, model.tokenizer, tokens)
