"""Sample sentences from a checkpoint, or fill the gaps of one.

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

import numpy as np
import torch
from torch import Generator, Tensor
from tqdm import tqdm

from checkpoint.folder import load_checkpoint
from checkpoint.text_model import TextModel
from data.batch import Batch
from data.row_formats import blank_row, written
from diffusion import infilling, semi_autoregressive
from diffusion.options import SampleArgs
from diffusion.process import Denoiser, StepCallback
from diffusion.semi_autoregressive import SemiArArgs
from evaluation import comparable
from utils import distributed, files, hub
from utils.command_line import FROM_CHECKPOINT, parse, run_script
from utils.device import autocast, pick_device, pick_precision, set_up_cpu
from utils.errors import UserError, check_ranges
from utils.screen import BRIGHT, DIM, PLAIN, Run, Screen

FORMATS = (".txt", ".jsonl")
MOST_SAMPLES = 1_000_000  # each has a generator of its own, 5 kB
MEANINGLESS = {**FROM_CHECKPOINT, "--block_size": "lengths come from the training text; use --length to fix one"}


@dataclass(frozen=True)
class PredictArgs:
    """What to sample, and where to."""

    checkpoint: str = field(metadata={"aliases": ["--checkpoint_path"], "help": "a folder written by main.py"})
    num_samples: int | None = field(
        default=None,
        metadata={"help": "number of samples, or of ways to fill an --infill; by default 20, with --show 1"},
    )
    length: int = field(
        default=0, metadata={"help": "tokens each; 0: drawn as in the training text, or as long as process=ar goes on"}
    )
    infill: str = field(
        default="",
        metadata={
            "help": "text with [MASK]s to fill, a token each; the rest stays as it is. The first of several in a row "
            "begins a word, the others may go on with it"
        },
    )
    infill_pieces: bool = field(
        default=False,
        metadata={
            "help": "pieces of words may be glued to the given words beside a gap, as the model says; false: never"
        },
    )
    output: str = field(
        default="",
        metadata={
            "aliases": ["--output_file"],
            "help": "a .txt or .jsonl file, written whole at the end: of two commands at once the later one's",
        },
    )
    show: bool = field(
        default=False, metadata={"help": "display of samples while they are denoised, one after the other"}
    )
    batch_size: int = field(default=64, metadata={"help": "sentences at a time; does not change the samples"})
    posterior: str = field(default="", metadata={"help": "exact or released; default: the checkpoint's"})
    precision: str = field(
        default="fp32", metadata={"choices": ["auto", "fp32", "bf16", "fp16"], "help": "of the network"}
    )
    seed: int = field(default=0, metadata={"help": "the same seed gives the same samples"})
    threads: int = field(default=0, metadata={"help": "CPU threads; 0: torch decides"})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:N"})

    def __post_init__(self) -> None:
        if self.num_samples is None:
            object.__setattr__(self, "num_samples", 1 if self.show else 20)
        check_ranges(self, num_samples=(1, MOST_SAMPLES), batch_size=(1, 10**7), length=(0, 10**6), seed=(0, 2**63 - 1))
        if self.show and self.output:
            raise UserError("give --show or --output, not both: what is shown is not written")
        if self.output and not self.output.endswith(FORMATS):
            raise UserError(f"output={self.output}: must end in {' or '.join(FORMATS)}")
        if self.posterior not in ("", "exact", "released"):
            raise UserError(f"posterior={self.posterior!r} must be exact or released")
        if self.length and self.infill:
            raise UserError("give --length or --infill, not both: the infilled text has its own length")
        if self.infill_pieces and not self.infill:
            raise UserError("infill_pieces is for --infill; leave it out")


def main() -> None:
    """Load, sample, print and write."""
    args, sampling, longer = parse([PredictArgs, SampleArgs, SemiArArgs], __doc__, meaningless=MEANINGLESS)
    distributed.require_single("predict.py")
    hub.quiet_libraries()
    if args.output:
        files.require_writable("output", Path(args.output))
    set_up_cpu(args.threads)
    device = pick_device(args.device)
    run = load_checkpoint(args.checkpoint, device, posterior=args.posterior)
    if run.pairs:
        raise UserError(f"checkpoint {args.checkpoint} was trained on pairs; use predict_downstream_condition.py")
    run.denoiser.autocast = autocast(device, pick_precision(args.precision, device))
    if longer.semi_ar:
        check_semi_ar(run, args)
    say(run, args, sampling)
    if args.show:
        show(run, args, sampling, device)
    else:
        write([decode(run, row) for row in samples(run, args, sampling, device, longer=longer)], args.output)


def say(run: TextModel, args: PredictArgs, sampling: SampleArgs) -> None:
    """Notes on stderr: what the samples will not be."""
    text = infilling.parse(run.tokenizer, args.infill).ids if args.infill else []
    unknown = text.count(run.tokenizer.unk_token_id)
    comparable.warn_of_length(run, len(text) or args.length)
    if args.infill and run.process_name == "ar":
        print("note: process=ar fills a gap given what is to its left, and does not see the rest", file=sys.stderr)
    if unknown:
        print(f"note: {unknown} tokens of the infill text are unknown to this vocabulary", file=sys.stderr)
    sampling.warn()


def samples(
    run: TextModel,
    args: PredictArgs,
    sampling: SampleArgs,
    device: torch.device,
    on_step: StepCallback | None = None,
    longer: SemiArArgs | None = None,
    numbers: Sequence[int] = (),
) -> list[Tensor]:
    """Token ids of each sample, without padding, in the order of their numbers; `longer` than a window if so told.

    Sample i has a stream of random numbers of its own, so that neither the batch size nor the number of samples asked
    for changes it; sentences of like length lie side by side. Who is told of the steps sees no progress bar.

    Args:
        run, args, sampling, device: what to sample, and how.
        on_step: is told after each forward.
        longer: how far a text goes beyond one window.
        numbers: which samples; by default all.
    """
    streams = [stream_of(args, i) for i in numbers or range(args.num_samples)]
    blanks = [blank(run, args, stream) for stream in streams]
    order = sorted(range(len(blanks)), key=lambda i: -len(blanks[i][0]))
    batch = stack([blanks[i] for i in order], run.tokenizer.pad_token_id).to(device)
    windows = longer.num_strides + 1 if longer and longer.semi_ar else 1
    denoiser, shown = denoiser_of(run, args, batch.input_ids.shape[1]), {"disable": None if on_step is None else True}
    with (
        tqdm(total=len(order) * windows, desc="sampling", unit="sentence", leave=False, **shown) as bar,
        torch.no_grad(),
    ):

        def count(finished: Tensor, xt: Tensor) -> None:
            bar.update(len(finished))
            if on_step is not None:
                on_step(finished, xt)

        words = {"rows_at_once": args.batch_size, "generator": [streams[i] for i in order], "on_step": count}
        draw = functools.partial(run.process.sample, denoiser, args=sampling, **words)
        if windows > 1:
            stride = longer.stride(int(batch.target_mask[0].sum()))
            return list(semi_autoregressive.write(batch, draw, stride, longer.num_strides).cpu())
        tokens = draw(batch).cpu()
    drawn: list[Tensor] = [torch.empty(0)] * len(blanks)
    for i, row in zip(order, tokens, strict=True):
        drawn[i] = row[: len(blanks[i][0])]
    return drawn


def stream_of(args: PredictArgs, number: int) -> Generator:
    """The random numbers of a sample."""
    return Generator().manual_seed(int(np.random.SeedSequence([args.seed, number]).generate_state(1)[0]))


def denoiser_of(run: TextModel, args: PredictArgs, width: int) -> Denoiser:
    """The network; where a text is filled, without the pieces that would be glued to what is given."""
    if not args.infill or args.infill_pieces:
        return run.denoiser
    gaps = infilling.parse(run.tokenizer, args.infill)
    return infilling.restrict(run.denoiser, gaps, run.tokenizer, run.process.support, width)


def blank(run: TextModel, args: PredictArgs, stream: Generator) -> tuple[Tensor, Tensor]:
    """Token ids and target mask, each [L], of one sentence to be drawn."""
    text = infilling.parse(run.tokenizer, args.infill).ids if args.infill else []
    length = len(text) or args.length
    if run.form.protocol == "unpadded" and not run.causal:
        length = length or draw_length(run.length_histogram, stream)
    elif args.length and run.form.protocol != "unpadded":
        fixed = f"a row of protocol={run.form.protocol} has {run.max_length} tokens"
        raise UserError(f"length={length}: {fixed}; leave it out")
    most = run.denoiser.max_length if run.form.protocol == "unpadded" else run.max_length
    if length + 2 > most:
        raise UserError(f"{length} tokens with [CLS] and [SEP] exceed the {most} positions of this checkpoint")
    text = text or [run.tokenizer.mask_token_id] * length
    return blank_row(run.form, run.tokenizer, run.max_length, text, causal=run.causal)


def check_semi_ar(run: TextModel, args: PredictArgs) -> None:
    """Refuses what does not go with texts longer than the window.

    Raises:
        UserError: with the remedy.
    """
    if run.form.protocol not in ("wrapped", "running"):
        how = f"this checkpoint's rows are {run.form.protocol}, single texts that end"
        raise UserError(f"semi_ar=true goes on from a block of text, and {how}; train one with --protocol wrapped")
    if args.infill or args.show:
        raise UserError("semi_ar=true writes texts from nothing; leave --infill and --show out")


def draw_length(histogram: list[int], stream: Generator) -> int:
    """A number of tokens, as often as in the training text."""
    weights = torch.tensor([0, *histogram[1:]], dtype=torch.float64)
    return int(torch.multinomial(weights, 1, generator=stream))


def stack(blanks: list[tuple[Tensor, Tensor]], pad_id: int) -> Batch:
    """A batch of sentences of different lengths."""
    pad = torch.nn.utils.rnn.pad_sequence
    input_ids = pad([ids for ids, _ in blanks], batch_first=True, padding_value=pad_id)
    target_mask = pad([mask for _, mask in blanks], batch_first=True, padding_value=False)
    attention_mask = pad([torch.ones_like(mask) for _, mask in blanks], batch_first=True, padding_value=False)
    return Batch(input_ids, attention_mask, target_mask)


def decode(run: TextModel, tokens: Tensor) -> str:
    """Text of a sample without its [CLS] and [SEP]; anything else special in it would be shown, not hidden."""
    return written(run.form, run.tokenizer, tokens)


def write(texts: list[str], output: str) -> None:
    """Write the samples to `output`, if one is given, and print them; a .txt has one a line, without their own ends.

    In this order: whoever reads what is printed may stop reading (`predict.py ... | head -1`).
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


def show(run: TextModel, args: PredictArgs, sampling: SampleArgs, device: torch.device) -> None:
    """Show one sample after the other as it emerges, with the number of forwards, and if there are many its own."""
    screen = Screen(sys.stdout)
    for number in range(args.num_samples):
        watched = Watched(run, args, screen, number)
        with screen.text():
            if screen.live:
                watched.frame(watched.row)
            (row,) = samples(run, args, sampling, device, watched.on_step, numbers=[number])
            watched.frame(row, last=True)


class Watched:
    """One sample on a screen: masks as dots, what has just been revealed bright, the rest plain.

    The last frame is all plain, but for what was filled into a given text.
    """

    def __init__(self, run: TextModel, args: PredictArgs, screen: Screen, number: int) -> None:
        """Nothing is revealed yet."""
        self.run, self.screen, self.forwards = run, screen, 0
        self.name = f"{number + 1:>{len(str(args.num_samples))}}: " if args.num_samples > 1 else ""
        self.filled = bool(args.infill)
        self.row, self.targets = blank(run, args, stream_of(args, number))

    def on_step(self, finished: Tensor, xt: Tensor) -> None:
        """See StepCallback."""
        self.forwards += 1
        self.frame(xt[0].cpu())

    def frame(self, row: Tensor, *, last: bool = False) -> None:
        """Show a row, int64 [L]."""
        masked = row == self.run.tokenizer.mask_token_id
        fresh = self.targets & self.filled if last else row != self.row
        styles = [
            DIM if is_masked else BRIGHT if is_fresh else PLAIN
            for is_masked, is_fresh in zip(masked.tolist(), fresh.tolist(), strict=True)
        ]
        self.row = row.clone()
        self.screen.frame(f"{self.name}{self.forwards:>5}  ", self.styled(row, styles), last=last)

    def styled(self, row: Tensor, styles: list[str]) -> list[Run]:
        """The text of a row, cut where its tokens' styles change: at the lengths of the texts up to there."""
        if self.run.causal and not self.filled:  # what is not written yet is no gap
            row = row[: int((row != self.run.tokenizer.mask_token_id).long().cumprod(0).sum())]
        text, end, runs = self.text(row), row.new_tensor([self.run.tokenizer.sep_token_id]), []
        changes = [i for i in range(1, len(row)) if styles[i] != styles[i - 1]]
        cuts = [min(len(self.text(torch.cat([row[:i], end]))), len(text)) for i in changes]
        for i, begin, stop in zip([0, *changes], [0, *cuts], [*cuts, len(text)], strict=True):
            runs.append((text[begin:stop], styles[i]))
        return runs

    def text(self, row: Tensor) -> str:
        """A row in words, [MASK] as a dot."""
        return decode(self.run, row).replace(self.run.tokenizer.mask_token, "·")


if __name__ == "__main__":
    run_script(main)
