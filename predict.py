"""Sample sentences from a checkpoint, or fill the gaps of a given sentence.

python predict.py --checkpoint out/demo/checkpoint --num_samples 20
python predict.py --checkpoint out/demo/checkpoint --infill "the [MASK] [MASK] of the house"
python predict.py --checkpoint out/demo/checkpoint --show --num_samples 3
python predict.py --checkpoint out/wrapped/checkpoint --semi_ar true --stride_length 128 --num_strides 14
"""

import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Generator, Tensor
from tqdm import tqdm

from checkpoint.folder import load_checkpoint
from checkpoint.text_model import TextModel
from data.batch import Batch
from data.written_rows import blank_row, decode_row
from diffusion import infilling, semi_autoregressive
from diffusion.options import SampleArgs
from diffusion.process import Denoiser, StepCallback
from diffusion.semi_autoregressive import SemiArArgs
from evaluation import comparable
from utils import distributed, files, hub
from utils.command_line import FROM_CHECKPOINT, parse, run_script
from utils.device import pick_device, set_up_cpu
from utils.errors import UserError, check_ranges
from utils.screen import BRIGHT, DIM, PLAIN, Screen, Span

FORMATS = (".txt", ".jsonl")
MOST_SAMPLES = 1_000_000  # each has its own random generator of 5 kB
MOST_USED = ("checkpoint", "num_samples", "infill", "output", "num_steps", "temperature")
WITHOUT_EFFECT = {**FROM_CHECKPOINT, "--block_size": "lengths come from the training text; use --length to fix one"}


@dataclass(frozen=True)
class PredictArgs:
    """Checkpoint, number, length and output of the samples."""

    group: ClassVar[str] = "samples"

    checkpoint: str = field(metadata={"aliases": ["--checkpoint_path"], "help": "checkpoint folder written by main.py"})
    num_samples: int | None = field(
        default=None,
        metadata={"help": "number of samples, or of fillings with --infill; default: 20, or 1 with --show"},
    )
    length: int = field(
        default=0,
        metadata={"help": "tokens per sample; 0: drawn from the training lengths; process=ar: until the text ends"},
    )
    infill: str = field(
        default="",
        metadata={
            "help": "text with [MASK]s to fill, one token each; the rest stays. The first of a gap begins a word, "
            "the others may continue it"
        },
    )
    infill_pieces: bool = field(
        default=False,
        metadata={
            "help": "permission for word pieces that extend the given words beside a gap; false: whole words only"
        },
    )
    output: str = field(
        default="",
        metadata={
            "aliases": ["--output_file"],
            "help": "file for the samples, .txt or .jsonl, written in one piece at the end",
        },
    )
    show: bool = field(default=False, metadata={"help": "display of the samples during denoising, one after the other"})
    batch_size: int = field(default=64, metadata={"help": "sentences per forward pass; does not change the samples"})
    posterior: str = field(default="", metadata={"help": "posterior: exact or released; default: the checkpoint's"})
    precision: str = field(
        default="fp32", metadata={"choices": ["auto", "fp32", "bf16", "fp16"], "help": "precision of the network"}
    )
    seed: int = field(default=0, metadata={"help": "seed of the samples; equal seeds give equal samples"})
    threads: int = field(default=0, metadata={"help": "CPU threads; 0: torch's default"})
    device: str = field(default="auto", metadata={"help": "device: auto, cpu, cuda or cuda:N"})

    def __post_init__(self) -> None:
        if self.num_samples is None:
            object.__setattr__(self, "num_samples", 1 if self.show else 20)
        check_ranges(self, num_samples=(1, MOST_SAMPLES), batch_size=(1, 10**7), length=(0, 10**6), seed=(0, 2**63 - 1))
        if self.show and self.output:
            raise UserError("give --show or --output, not both: a display is not written to a file")
        if self.output and not self.output.endswith(FORMATS):
            raise UserError(f"output={self.output}: must end in {' or '.join(FORMATS)}")
        if self.posterior not in ("", "exact", "released"):
            raise UserError(f"posterior={self.posterior!r} must be exact or released")
        if self.length and self.infill:
            raise UserError("give --length or --infill, not both: the infilled text has its own length")
        if self.infill_pieces and not self.infill:
            raise UserError("infill_pieces is for --infill; leave it out")


def main() -> None:
    """Sample from a checkpoint; print, show or write the samples."""
    args, sampling, semi_ar = parse(
        [PredictArgs, SampleArgs, SemiArArgs], __doc__, most_used=MOST_USED, without_effect=WITHOUT_EFFECT
    )
    distributed.require_single("predict.py")
    hub.quiet_libraries()
    if args.output:
        files.require_writable("output", Path(args.output))
    set_up_cpu(args.threads)
    device = pick_device(args.device)
    model = load_checkpoint(args.checkpoint, device, precision=args.precision, posterior=args.posterior)
    if model.pairs:
        raise UserError(f"checkpoint {args.checkpoint} was trained on pairs; use predict_downstream_condition.py")
    if semi_ar.semi_ar:
        check_semi_ar(model, args)
    print_notes(model, args, sampling)
    if args.show:
        show(model, args, sampling, device)
    else:
        write([decode(model, row) for row in samples(model, args, sampling, device, semi_ar=semi_ar)], args.output)


def print_notes(model: TextModel, args: PredictArgs, sampling: SampleArgs) -> None:
    """Print notes on the limits of these samples to stderr."""
    text = infilling.parse_infill(model.tokenizer, args.infill).ids if args.infill else []
    unknown = text.count(model.tokenizer.unk_token_id)
    comparable.warn_if_longer_than_trained(model, len(text) or args.length)
    if args.infill and model.process_name == "ar":
        print("note: process=ar fills a gap from the text to its left only", file=sys.stderr)
    if unknown:
        print(f"note: {unknown} tokens of the infill text are unknown to this vocabulary", file=sys.stderr)
    sampling.warn()


def samples(
    model: TextModel,
    args: PredictArgs,
    sampling: SampleArgs,
    device: torch.device,
    on_step: StepCallback | None = None,
    semi_ar: SemiArArgs | None = None,
    numbers: Sequence[int] = (),
) -> list[Tensor]:
    """Return the token ids of each sample, int64 [L] without padding, in the order of their numbers.

    Sample i has its own random stream, so that it depends neither on the batch size nor on the number of samples.
    Batches hold sentences of similar length. With `on_step` there is no progress bar.

    Args:
        model, args, sampling, device: model, number and lengths of samples, sampler and device.
        on_step: called after each forward pass.
        semi_ar: settings of texts longer than one window.
        numbers: numbers of the samples to draw; default: all.
    """
    streams = [stream_of(args, i) for i in numbers or range(args.num_samples)]
    blanks = [blank(model, args, stream) for stream in streams]
    order = sorted(range(len(blanks)), key=lambda i: -len(blanks[i][0]))
    batch = stack([blanks[i] for i in order], model.tokenizer.pad_token_id).to(device)
    windows = semi_ar.num_strides + 1 if semi_ar and semi_ar.semi_ar else 1
    denoiser, hidden = denoiser_of(model, args, batch.input_ids.shape[1]), None if on_step is None else True
    with (
        tqdm(total=len(order) * windows, desc="sampling", unit="sentence", leave=False, disable=hidden) as bar,
        torch.no_grad(),
    ):

        def count(finished: Tensor, xt: Tensor) -> None:
            bar.update(len(finished))
            if on_step is not None:
                on_step(finished, xt)

        draw = functools.partial(
            model.process.sample,
            denoiser,
            args=sampling,
            rows_at_once=args.batch_size,
            generator=[streams[i] for i in order],
            on_step=count,
        )
        if windows > 1:
            stride = semi_ar.stride(int(batch.target_mask[0].sum()))
            return list(semi_autoregressive.write(batch, draw, stride, semi_ar.num_strides).cpu())
        tokens = draw(batch).cpu()
    drawn: list[Tensor] = [torch.empty(0)] * len(blanks)
    for i, row in zip(order, tokens, strict=True):
        drawn[i] = row[: len(blanks[i][0])]
    return drawn


def stream_of(args: PredictArgs, number: int) -> Generator:
    """Return the random generator of a sample."""
    return Generator().manual_seed(int(np.random.SeedSequence([args.seed, number]).generate_state(1)[0]))


def denoiser_of(model: TextModel, args: PredictArgs, width: int) -> Denoiser:
    """Return the denoiser; for infilling, restricted to tokens that do not extend the given words."""
    if not args.infill or args.infill_pieces:
        return model.denoiser
    gaps = infilling.parse_infill(model.tokenizer, args.infill)
    return infilling.restrict(model.denoiser, gaps, model.tokenizer, model.process.support, width)


def blank(model: TextModel, args: PredictArgs, stream: Generator) -> tuple[Tensor, Tensor]:
    """Return token ids and target mask, each [L], of one sentence to sample."""
    text = infilling.parse_infill(model.tokenizer, args.infill).ids if args.infill else []
    length = len(text) or args.length
    if model.text_format.row_format == "unpadded" and not model.causal:
        length = length or draw_length(model.length_histogram, stream)
    elif args.length and model.text_format.row_format != "unpadded":
        fixed = f"a row of row_format={model.text_format.row_format} has {model.max_length} tokens"
        raise UserError(f"length={length}: {fixed}; leave it out")
    most = model.denoiser.max_length if model.text_format.row_format == "unpadded" else model.max_length
    if length + 2 > most:
        raise UserError(f"{length} tokens with [CLS] and [SEP] exceed the {most} positions of this checkpoint")
    text = text or [model.tokenizer.mask_token_id] * length
    return blank_row(model.text_format, model.tokenizer, model.max_length, text, causal=model.causal)


def check_semi_ar(model: TextModel, args: PredictArgs) -> None:
    """Check that checkpoint and settings suit texts longer than the window.

    Raises:
        UserError: if they do not.
    """
    if model.text_format.row_format not in ("wrapped", "running"):
        how = f"this checkpoint's rows are {model.text_format.row_format}, single texts that end"
        raise UserError(f"semi_ar=true continues a block of text, but {how}; train one with --row_format wrapped")
    if args.infill or args.show:
        raise UserError("semi_ar=true samples whole texts; leave --infill and --show out")


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


def decode(model: TextModel, tokens: Tensor) -> str:
    """Return the text of a sample without [CLS] and [SEP]; other special tokens stay visible."""
    return decode_row(model.text_format, model.tokenizer, tokens)


def write(texts: list[str], output: str) -> None:
    """Write the samples to `output`, if given, then print them, one per line; line breaks in a sample become spaces.

    A .jsonl file keeps them. The file comes first, because a reader of stdout may stop early (`| head -1`).
    """
    lines = [" ".join(text.splitlines()) for text in texts]
    if output:
        path = Path(output)
        with files.written_whole(path) as file:
            for text, line in zip(texts, lines, strict=True):
                file.write(line if path.suffix == ".txt" else json.dumps({"text": text}, ensure_ascii=False))
                file.write("\n")
        print(f"{len(texts)} samples written to {path}", file=sys.stderr)
    for line in lines:
        print(line)


# ---- show ------------------------------------------------------------------------------------------------------------


def show(model: TextModel, args: PredictArgs, sampling: SampleArgs, device: torch.device) -> None:
    """Display each sample during denoising, with the number of forward passes."""
    screen = Screen(sys.stdout)
    for number in range(args.num_samples):
        display = SampleDisplay(model, args, screen, number)
        with screen.text():
            if screen.live:
                display.frame(display.row)
            (row,) = samples(model, args, sampling, device, display.on_step, numbers=[number])
            display.frame(row, last=True)


class SampleDisplay:
    """Display of one sample: masks are dots, newly revealed tokens bright, other tokens plain.

    In the last frame only tokens filled into a given text are bright.
    """

    def __init__(self, model: TextModel, args: PredictArgs, screen: Screen, number: int) -> None:
        """Draw the blank row of the sample."""
        self.model, self.screen, self.forwards = model, screen, 0
        self.name = f"{number + 1:>{len(str(args.num_samples))}}: " if args.num_samples > 1 else ""
        self.filled = bool(args.infill)
        self.row, self.targets = blank(model, args, stream_of(args, number))

    def on_step(self, finished: Tensor, xt: Tensor) -> None:
        """Display the row after a forward pass, as a StepCallback."""
        self.forwards += 1
        self.frame(xt[0].cpu())

    def frame(self, row: Tensor, *, last: bool = False) -> None:
        """Display a row, int64 [L]."""
        masked = row == self.model.tokenizer.mask_token_id
        fresh = self.targets & self.filled if last else row != self.row
        styles = [
            DIM if is_masked else BRIGHT if is_fresh else PLAIN
            for is_masked, is_fresh in zip(masked.tolist(), fresh.tolist(), strict=True)
        ]
        self.row = row.clone()
        self.screen.frame(f"{self.name}{self.forwards:>5}  ", self.styled(row, styles), last=last)

    def styled(self, row: Tensor, styles: list[str]) -> list[Span]:
        """Return the text of a row as runs of equal style."""
        if self.model.causal and not self.filled:  # tokens not yet generated are not shown as gaps
            row = row[: int((row != self.model.tokenizer.mask_token_id).long().cumprod(0).sum())]
        text, end, runs = self.text(row), row.new_tensor([self.model.tokenizer.sep_token_id]), []
        changes = [i for i in range(1, len(row)) if styles[i] != styles[i - 1]]
        cuts = [min(len(self.text(torch.cat([row[:i], end]))), len(text)) for i in changes]
        for i, begin, stop in zip([0, *changes], [0, *cuts], [*cuts, len(text)], strict=True):
            runs.append((text[begin:stop], styles[i]))
        return runs

    def text(self, row: Tensor) -> str:
        """Return the text of a row, with a dot for each [MASK]."""
        return decode(self.model, row).replace(self.model.tokenizer.mask_token, "·")


if __name__ == "__main__":
    run_script(main)
