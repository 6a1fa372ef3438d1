"""Sample sentences from a checkpoint, or fill the gaps of a given sentence.

python predict.py --checkpoint out/demo/checkpoint --num_samples 20
python predict.py --checkpoint out/demo/checkpoint --infill "the [MASK] [MASK] of the house"
python predict.py --checkpoint out/demo/checkpoint --show --num_samples 3
python predict.py --checkpoint out/demo/checkpoint --film film.html
python predict.py --checkpoint out/wrapped/checkpoint --semi_ar true --stride_length 128 --num_strides 14
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from checkpoint.requests import SampleRequest
from diffusion.options import ORDERED, SampleArgs, SemiArArgs
from utils import files, hub, job
from utils.command_line import FROM_CHECKPOINT, PRECISIONS, parse, run_script
from utils.errors import UserError
from utils.film_file import check_film, save_film
from utils.messages import note

if TYPE_CHECKING:
    from checkpoint.model_parts import ModelParts

FORMATS = (".txt", ".jsonl")
MOST_USED = ("checkpoint", "num_samples", "infill", "film", "output", "num_steps", "temperature")
WITHOUT_EFFECT = {**FROM_CHECKPOINT, "--block_size": "lengths come from the training text; use --length to fix one"}


@dataclass(frozen=True)
class PredictArgs:
    """Checkpoint, number, length and output of the samples."""

    group: ClassVar[str] = "samples"

    checkpoint: str = field(
        metadata={"aliases": ["--checkpoint_path"], "help": "folder written by main.py, or USER/NAME on the hub"}
    )
    num_samples: int | None = field(
        default=None,
        metadata={"help": "number of samples, or of fillings with --infill; default: 20, 5 with --film, 1 with --show"},
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
    film: str = field(
        default="",
        metadata={"help": "film of the samples during denoising: .html, a page that plays without a network, or .gif"},
    )
    batch_size: int = field(default=64, metadata={"help": "sentences per forward pass; does not change the samples"})
    posterior: str = field(default="", metadata={"help": "posterior: exact or released; default: the checkpoint's"})
    precision: str = field(default="fp32", metadata={"choices": list(PRECISIONS), "help": "precision of the network"})
    seed: int = field(default=0, metadata={"help": "seed of the samples; equal seeds give equal samples"})
    threads: int = field(default=0, metadata={"help": "CPU threads; 0: torch's default"})
    device: str = field(default="auto", metadata={"help": "device: auto, cpu, cuda, cuda:N or mps"})

    def __post_init__(self) -> None:
        if self.num_samples is None:
            object.__setattr__(self, "num_samples", 1 if self.show else 5 if self.film else 20)
        _ = self.request  # checks it
        if self.show and self.output:
            raise UserError("give --show or --output, not both: a display is not written to a file")
        if self.film and (self.show or self.output):
            raise UserError("give --film alone, without --show and --output: it holds the samples")
        if self.film:
            check_film(Path(self.film), self.num_samples)
        if self.output and not self.output.endswith(FORMATS):
            raise UserError(f"output={self.output}: must end in {' or '.join(FORMATS)}")
        if self.posterior not in ("", "exact", "released"):
            raise UserError(f"posterior={self.posterior!r} must be exact or released")

    @property
    def request(self) -> SampleRequest:
        """The samples wanted."""
        return SampleRequest(**{entry.name: getattr(self, entry.name) for entry in fields(SampleRequest)})


def main() -> None:
    """Sample from a checkpoint; print, show or write the samples."""
    args, sampling, semi_ar = parse(
        [PredictArgs, SampleArgs, SemiArArgs], __doc__, most_used=MOST_USED, without_effect=WITHOUT_EFFECT
    )
    job.require_single("predict.py")
    hub.quiet_libraries()
    # imported here, since --help and refused settings need no torch
    from checkpoint.display import show
    from checkpoint.folder import load_checkpoint
    from checkpoint.sampling import blank, decode, sample_rows, stream_of
    from utils.device import pick_device, set_up_cpu

    if args.output:
        files.require_writable("output", Path(args.output))
    set_up_cpu(args.threads)
    device = pick_device(args.device)
    model = load_checkpoint(args.checkpoint, device, precision=args.precision, posterior=args.posterior)
    if model.pairs:
        raise UserError(f"checkpoint {args.checkpoint} was trained on pairs; use predict_downstream_condition.py")
    model.process.check_sampling(sampling)
    if semi_ar.semi_ar:
        check_semi_ar(model, args)
    _, target_mask = blank(model, args.request, stream_of(args.request, 0))  # refuses lengths and texts that do not fit
    if semi_ar.semi_ar:
        semi_ar.stride(int(target_mask.sum()))
    print_notes(model, args, sampling)
    if args.show:
        show(model, args.request, sampling)
    elif args.film:
        write_film(model, args, sampling)
    else:
        write([decode(model, row) for row in sample_rows(model, args.request, sampling, semi_ar=semi_ar)], args.output)


def print_notes(model: ModelParts, args: PredictArgs, sampling: SampleArgs) -> None:
    """Print notes on the limits of these samples to stderr."""
    from diffusion import infilling
    from evaluation import comparable

    text = infilling.parse_infill(model.tokenizer, args.infill).ids if args.infill else []
    unknown = text.count(model.tokenizer.unk_token_id)
    comparable.warn_if_longer_than_trained(model, len(text) or args.length)
    if args.infill and model.process_name == "ar":
        print("note: process=ar fills a gap from the text to its left only", file=sys.stderr)
    if unknown:
        print(f"note: {unknown} tokens of the infill text are unknown to this vocabulary", file=sys.stderr)
    sampling.warn()
    for sentence in comparable.order_notes(model) if sampling.sampler == ORDERED else ():
        note(sentence)


def check_semi_ar(model: ModelParts, args: PredictArgs) -> None:
    """Check that checkpoint and settings suit texts longer than the window.

    Raises:
        UserError: if they do not.
    """
    if model.text_format.row_format not in ("wrapped", "running"):
        how = f"this checkpoint's rows are {model.text_format.row_format}, single texts that end"
        raise UserError(f"semi_ar=true continues a block of text, but {how}; train one with --row_format wrapped")
    if args.infill or args.show or args.film:
        raise UserError("semi_ar=true samples whole texts; leave --infill, --show and --film out")


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


def write_film(model: ModelParts, args: PredictArgs, sampling: SampleArgs) -> None:
    """Sample and write the film; print where it is."""
    from checkpoint.film import film

    films = film(model, args.request, sampling)
    save_film(Path(args.film), films, model.process_name)
    texts = "1 text" if len(films) == 1 else f"{len(films)} texts"
    print(f"film of {texts} written to {args.film}; open it in a browser", file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
