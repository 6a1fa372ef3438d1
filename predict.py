"""Sample sentences from a checkpoint, or fill the gaps of one.

python predict.py --checkpoint out/demo/checkpoint --num_samples 20
python predict.py --checkpoint out/demo/checkpoint --infill "the [MASK] [MASK] of the house"
python predict.py --checkpoint out/demo/checkpoint --show
python predict.py --checkpoint out/wrapped/checkpoint --semi_ar true --stride_length 128 --num_strides 14
"""

import functools
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor
from tqdm import tqdm

import checkpoint
import comparable
import distributed
import files
import hub
import protocols
import runtime
import semi_autoregressive
from config import FROM_CHECKPOINT, parse
from process import Batch, SampleArgs, StepCallback, UserError, check_ranges
from semi_autoregressive import SemiArArgs

FORMATS = (".txt", ".jsonl")
MOST_SAMPLES = 1_000_000  # each has a generator of its own, 5 kB
MEANINGLESS = {**FROM_CHECKPOINT, "--block_size": "lengths come from the training text; use --length to fix one"}


@dataclass(frozen=True)
class PredictArgs:
    """What to sample, and where to."""

    checkpoint: str = field(metadata={"aliases": ["--checkpoint_path"], "help": "a folder written by main.py"})
    num_samples: int = field(default=20, metadata={"help": "how many (per --infill, how many ways to fill it)"})
    length: int = field(
        default=0, metadata={"help": "tokens each; 0: drawn as in the training text, or as long as process=ar goes on"}
    )
    infill: str = field(default="", metadata={"help": "text with [MASK]s to fill; the rest stays as it is"})
    output: str = field(default="", metadata={"aliases": ["--output_file"], "help": "a .txt or .jsonl file"})
    show: bool = field(default=False, metadata={"help": "watch one sentence being denoised"})
    batch_size: int = field(default=64, metadata={"help": "sentences at a time; does not change the samples"})
    posterior: str = field(default="", metadata={"help": "exact or released; default: the checkpoint's"})
    precision: str = field(
        default="fp32", metadata={"choices": ["auto", "fp32", "bf16", "fp16"], "help": "of the network"}
    )
    seed: int = field(default=0, metadata={"help": "the same seed gives the same samples"})
    threads: int = field(default=0, metadata={"help": "CPU threads; 0: torch decides"})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:N"})

    def __post_init__(self) -> None:
        check_ranges(self, num_samples=(1, MOST_SAMPLES), batch_size=(1, 10**7), length=(0, 10**6), seed=(0, 2**63 - 1))
        if self.show and self.output:
            raise UserError("give --show or --output, not both: what is shown is not written")
        if self.output and not self.output.endswith(FORMATS):
            raise UserError(f"output={self.output}: must end in {' or '.join(FORMATS)}")
        if self.posterior not in ("", "exact", "released"):
            raise UserError(f"posterior={self.posterior!r} must be exact or released")
        if self.length and self.infill:
            raise UserError("give --length or --infill, not both: the infilled text has its own length")


def main() -> None:
    """Load, sample, print and write."""
    args, sampling, longer = parse([PredictArgs, SampleArgs, SemiArArgs], __doc__, meaningless=MEANINGLESS)
    distributed.require_single("predict.py")
    hub.quiet_libraries()
    if args.output:
        files.require_writable("output", Path(args.output))
    runtime.set_up_cpu(args.threads)
    device = runtime.pick_device(args.device)
    run = checkpoint.load(args.checkpoint, device, posterior=args.posterior)
    if run.pairs:
        raise UserError(f"checkpoint {args.checkpoint} was trained on pairs; use predict_downstream_condition.py")
    run.denoiser.autocast = runtime.autocast(device, runtime.pick_precision(args.precision, device))
    if longer.semi_ar:
        check_semi_ar(run, args)
    comparable.warn_of_length(run, len(parse_infill(run, args.infill)) if args.infill else args.length)
    if args.show:
        show(run, args, sampling, device)
        return
    unknown = parse_infill(run, args.infill).count(run.tokenizer.unk_token_id) if args.infill else 0
    if args.infill and run.process_name == "ar":
        print("note: process=ar fills a gap given what is to its left, and does not see the rest", file=sys.stderr)
    if unknown:
        print(f"note: {unknown} tokens of the infill text are unknown to this vocabulary", file=sys.stderr)
    sampling.warn()
    texts = [decode(run, row) for row in samples(run, args, sampling, device, longer=longer)]
    write(texts, args.output)


def samples(
    run: checkpoint.Run,
    args: PredictArgs,
    sampling: SampleArgs,
    device: torch.device,
    on_step: StepCallback | None = None,
    longer: SemiArArgs | None = None,
) -> list[Tensor]:
    """Token ids of each sample, without padding, in the order of their numbers; `longer` than a window if so told.

    Sample i has a stream of random numbers of its own, so that neither the batch size nor the number of samples asked
    for changes it; sentences of like length lie side by side.
    """
    seeds = [int(np.random.SeedSequence([args.seed, i]).generate_state(1)[0]) for i in range(args.num_samples)]
    streams = [Generator().manual_seed(seed) for seed in seeds]
    blanks = [blank(run, args, stream) for stream in streams]
    order = sorted(range(args.num_samples), key=lambda i: -len(blanks[i][0]))
    batch = stack([blanks[i] for i in order], run.tokenizer.pad_token_id).to(device)
    windows = longer.num_strides + 1 if longer and longer.semi_ar else 1
    with (
        tqdm(total=len(order) * windows, desc="sampling", unit="sentence", leave=False, disable=None) as bar,
        torch.no_grad(),
    ):

        def count(finished: Tensor, xt: Tensor) -> None:
            bar.update(len(finished))
            if on_step is not None:
                on_step(finished, xt)

        words = {"rows_at_once": args.batch_size, "generator": [streams[i] for i in order], "on_step": count}
        draw = functools.partial(run.process.sample, run.denoiser, args=sampling, **words)
        if windows > 1:
            stride = longer.stride(int(batch.target_mask[0].sum()))
            return list(semi_autoregressive.write(batch, draw, stride, longer.num_strides).cpu())
        tokens = draw(batch).cpu()
    drawn: list[Tensor] = [torch.empty(0)] * args.num_samples
    for i, row in zip(order, tokens, strict=True):
        drawn[i] = row[: len(blanks[i][0])]
    return drawn


def blank(run: checkpoint.Run, args: PredictArgs, stream: Generator) -> tuple[Tensor, Tensor]:
    """Token ids and target mask, each [L], of one sentence to be drawn."""
    text = parse_infill(run, args.infill) if args.infill else []
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
    return protocols.blank_row(run.form, run.tokenizer, run.max_length, text, causal=run.causal)


def parse_infill(run: checkpoint.Run, text: str) -> list[int]:
    """Ids of a text in which [MASK] (or the tokenizer's own mask token) stands for a token to fill.

    The text is tokenised whole: in byte-level vocabularies a word is another token with a space before it.
    """
    tokenizer = run.tokenizer
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"infill={text!r}: not UTF-8") from error
    ids = tokenizer(text.replace("[MASK]", tokenizer.mask_token), add_special_tokens=False, verbose=False)["input_ids"]
    if tokenizer.mask_token_id not in ids:
        raise UserError(f"infill={text!r}: no [MASK] in it; every [MASK] stands for one token to fill")
    special = set(ids) & (set(tokenizer.all_special_ids) - {tokenizer.mask_token_id, tokenizer.unk_token_id})
    if special:
        names = ", ".join(tokenizer.convert_ids_to_tokens(sorted(special)))
        raise UserError(f"infill={text!r}: {names} cannot stand in a text; only [MASK] can")
    return ids


def check_semi_ar(run: checkpoint.Run, args: PredictArgs) -> None:
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


def decode(run: checkpoint.Run, tokens: Tensor) -> str:
    """Text of a sample without its [CLS] and [SEP]; anything else special in it would be shown, not hidden."""
    return protocols.written(run.form, run.tokenizer, tokens)


def write(texts: list[str], output: str) -> None:
    """Print the samples, and write them to `output` if one is given; a .txt has one a line, without their own ends."""
    lines = [" ".join(text.splitlines()) for text in texts]
    for line in lines:
        print(line)
    if not output:
        return
    path = Path(output)
    with files.written_whole(path) as file:
        for text, line in zip(texts, lines, strict=True):
            file.write(line if path.suffix == ".txt" else json.dumps({"text": text}, ensure_ascii=False))
            file.write("\n")
    print(f"{len(texts)} samples written to {path}", file=sys.stderr)


def show(run: checkpoint.Run, args: PredictArgs, sampling: SampleArgs, device: torch.device) -> None:
    """Print the sentence and the number of forwards whenever it changes; on a terminal, over itself."""
    live, forwards, previous = sys.stdout.isatty(), 0, ""
    one = PredictArgs(**{**vars(args), "num_samples": 1})

    def on_step(finished: Tensor, xt: Tensor) -> None:
        nonlocal forwards, previous
        forwards += 1
        text = decode(run, xt[0].cpu()).replace(run.tokenizer.mask_token, "·")
        if text != previous:
            line = f"{forwards:>5}  {text}"
            print(f"{chr(13)}\x1b[2K{line}" if live else line, end="" if live else "\n", flush=True)
            previous = text

    for _ in samples(run, one, sampling, device, on_step):
        print()


if __name__ == "__main__":
    runtime.run_script(main)
