"""Compute the likelihood of a text under a checkpoint: a bound, or exactly for samplers in a fixed order.

python compute_elbo.py --checkpoint out/demo/checkpoint --data out/demo/corpus/test.txt
python compute_elbo.py --checkpoint out/demo/checkpoint --data out/demo/corpus/test.txt --num_steps 512 --json
python compute_elbo.py --checkpoint out/demo/checkpoint --data out/demo/corpus/test.txt --estimator trajectory \
    --target_se 0.005
python compute_elbo.py --checkpoint out/demo/checkpoint --data out/demo/corpus/test.txt --estimator exact \
    --order confidence --tokens_per_step 2
python compute_elbo.py --checkpoint out/demo/checkpoint --data out/demo/corpus/test.txt --limit 200 --referee \
    --picture samplers.png
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from checkpoint.requests import check_steps
from data.column_names import ColumnNames
from data.detokenizers import DETOKENIZERS
from data.options import ROW_FORMATS
from diffusion.options import BoundArgs, check_exact
from evaluation.options import RefereeArgs
from utils import files, hub, job
from utils.command_line import FROM_CHECKPOINT, PRECISIONS, parse, run_script
from utils.errors import UserError, check_choices, check_ranges, require_finite
from utils.figures import as_json
from utils.messages import note

if TYPE_CHECKING:
    import numpy as np

    from checkpoint.model_parts import ModelParts
    from data.tokenized_text import Text
    from evaluation.referee import Row

MOST_USED = ("checkpoint", "data", "num_steps", "estimator", "limit", "json")


@dataclass(frozen=True)
class ElboArgs(ColumnNames):
    """Checkpoint and text to score, and the number of reverse steps of the bound."""

    group: ClassVar[str] = "scoring"

    checkpoint: str = field(
        metadata={"aliases": ["--checkpoint_path"], "help": "folder written by main.py, or USER/NAME on the hub"}
    )
    data: str = field(metadata={"help": "text or pairs: a file, a folder (its test split), or a data set on the hub"})
    num_steps: float = field(
        default=0,
        metadata={
            "aliases": ["--diffusion_steps"],
            "help": "reverse steps; inf: the continuous-time limit; 0: 128, T if less, inf in continuous time",
        },
    )
    eval_step_size: int = field(
        default=0,
        metadata={"help": "diffusion steps per reverse step, T / num_steps; 0: set by num_steps"},
    )
    posterior: str = field(default="", metadata={"help": "posterior: exact or released; default: the checkpoint's"})
    row_format: str = field(
        default="",
        metadata={
            "aliases": ["--protocol"],
            "choices": ["", *ROW_FORMATS],
            "help": "row format of the text; default: the checkpoint's",
        },
    )
    detokenizer: str = field(
        default="",
        metadata={"choices": ["", *DETOKENIZERS], "help": "detokenizer of the text; default: the checkpoint's"},
    )
    limit: int = field(default=0, metadata={"help": "number of sentences to score, drawn with the seed; 0: all"})
    batch_size: int = field(default=64, metadata={"help": "sentences per forward pass; does not change the result"})
    json: bool = field(default=False, metadata={"help": "output of one JSON object and nothing else on stdout"})
    precision: str = field(default="fp32", metadata={"choices": list(PRECISIONS), "help": "precision of the network"})
    seed: int = field(default=0, metadata={"help": "seed of the draws of xt"})
    per_sentence: str = field(
        default="",
        metadata={"help": "JSONL file to write: number and nats of each scored sentence; default: none"},
    )
    cache_dir: str = field(default="out/cache", metadata={"help": "folder of cached tokenised text"})
    threads: int = field(default=0, metadata={"help": "CPU threads; 0: torch's default"})
    device: str = field(default="auto", metadata={"help": "device: auto, cpu, cuda, cuda:N or mps"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.num_steps)
        check_ranges(self, eval_step_size=(0, 10**6), limit=(0, 10**12), batch_size=(1, 10**7))
        check_ranges(self, seed=(0, 2**63 - 1))
        if self.num_steps and self.eval_step_size:
            raise UserError("give --num_steps or --eval_step_size, not both: num_steps is T / eval_step_size")
        check_choices(self)
        if self.posterior not in ("", "exact", "released"):
            raise UserError(f"posterior={self.posterior!r} must be exact or released")


def main() -> None:
    """Score a text and print the report; under torchrun every process scores its share."""
    kinds = [ElboArgs, BoundArgs, RefereeArgs]
    args, bound_args, referee_args = parse(kinds, __doc__, most_used=MOST_USED, without_effect=FROM_CHECKPOINT)
    check_together(args, bound_args, referee_args)
    hub.quiet_libraries()
    # imported here, since --help and refused settings need no torch
    from checkpoint.folder import load_checkpoint
    from checkpoint.rounds import Scoring, bound_steps
    from evaluation import referee
    from evaluation.likelihood import pick, score_text
    from utils import distributed
    from utils.device import pick_device, set_up_cpu

    set_up_cpu(args.threads)
    device = pick_device(args.device)
    with distributed.process_group(device):
        model = load_checkpoint(
            args.checkpoint,
            device,
            precision=args.precision,
            posterior=args.posterior,
            row_format=args.row_format,
            detokenizer=args.detokenizer,
        )
        with distributed.leader_first():
            text = text_to_score(args, model)
        scoring = Scoring(
            bound_steps(model.process.num_steps, args.num_steps, args.eval_step_size),
            bound_args,
            args.batch_size,
            args.seed,
        )
        chosen, notes = pick(text, args.limit, args.seed), []
        if bound_args.law or referee_args.referee:
            chosen, notes = drawable(args, model, text, chosen)
        if referee_args.referee:
            rows = referee.rows_of(model, text, chosen, referee_args, bound_args, scoring)
        else:
            found = score_text(model, text, chosen, scoring)
    if referee_args.referee:
        print_table(args, referee_args, rows, notes_of(model, text, notes))
    elif job.rank() == 0:
        print_report(args, model, text, found.report(), notes)
        if args.per_sentence:
            write_sentences(Path(args.per_sentence), chosen.tolist(), found.sentence_nats)


def drawable(args: ElboArgs, model: ModelParts, text: Text, chosen: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return the chosen sentences that sampler=ordered may draw, and notes on its likelihood.

    Raises:
        UserError: if there are none.
    """
    from evaluation import comparable
    from evaluation.likelihood import without_unsampled

    kept = without_unsampled(model, text, chosen)
    if not len(kept):
        raise UserError(f"{args.data}: every sentence contains [UNK], which is never sampled; score other text")
    notes = comparable.order_notes(model)
    if len(kept) < len(chosen):
        notes.append(
            f"{len(chosen) - len(kept):,} of {len(chosen):,} sentences contain [UNK], which is never sampled; left out"
        )
    if not model.pairs and model.text_format.row_format == "padded":
        notes.append("row_format=padded: exact nats are those of whole rows; a bound leaves those of [PAD] out")
    if args.precision != "fp32":
        notes.append(f"precision={args.precision}: the order may depend on the batch, by rounding; fp32 avoids this")
    return kept, notes


def check_together(args: ElboArgs, bound: BoundArgs, table: RefereeArgs) -> None:
    """Check settings that depend on each other, and that the files can be written.

    Raises:
        UserError: with the remedy.
    """
    if not table.referee:
        check_exact(bound, args.num_steps)
        check_exact(bound, args.eval_step_size, "eval_step_size")
    else:
        for name in ("per_sentence", "num_steps", "eval_step_size"):
            if getattr(args, name):
                raise UserError(f"{name} does not apply to --referee; leave it out (--table_steps sets the steps)")
        job.require_single("compute_elbo.py --referee")
    for name, path in (("per_sentence", args.per_sentence), ("picture", table.picture)):
        if path:
            files.require_writable(name, Path(path))


def write_sentences(path: Path, numbers: list[int], nats: list[float]) -> None:
    """Write a line for each scored sentence: its number in the text, from 0, and its nats, null if infinite."""
    with files.written_whole(path) as file:
        file.writelines(
            json.dumps({"sentence": number, "nats": value if math.isfinite(value) else None}) + "\n"
            for number, value in zip(numbers, nats, strict=True)
        )


def print_report(args: ElboArgs, model: ModelParts, text: Text, report: dict, further: list[str]) -> None:
    """Print the report, with notes on its validity and further ones.

    Raises:
        UserError: if a figure is not finite.
    """
    from evaluation.likelihood_report import format_report

    require_finite(report, remedy(args, model))
    notes = notes_of(model, text, further)
    if not model.process.is_bound:
        notes.append("the released posterior's figure is not a bound: it can lie below -log p(x0)")
        print(f"warning: {notes[-1]}", file=sys.stderr)
    print(as_json(report | {"notes": notes}) if args.json else format_report(report))


def notes_of(model: ModelParts, text: Text, further: list[str]) -> list[str]:
    """Return the notes on the validity of a report, and print them."""
    from data.corpus import announce
    from evaluation import comparable

    announce({"scored": text.source})
    notes = [*([text.cuts] if text.cuts else []), *comparable.comparability_notes(model, text), *further]
    for sentence in notes:
        note(sentence)
    return notes


def print_table(args: ElboArgs, table: RefereeArgs, rows: list[Row], notes: list[str]) -> None:
    """Print the table of all samplers, and draw it."""
    from evaluation import referee

    if args.json:
        print(as_json({"samplers": rows, "notes": notes}))
    else:
        print(referee.table(rows))
        print(referee.summary(rows))
    if table.picture:
        referee.draw(rows, Path(table.picture))
        print(f"picture written to {table.picture}", file=sys.stderr)


def remedy(args: ElboArgs, model: ModelParts) -> str:
    """Return the cause of a bound that is not finite, and what to do."""
    for name, weights in model.denoiser.network.named_parameters():
        if not weights.isfinite().all():
            return (
                f"the weights of {args.checkpoint} are damaged: {name} holds NaN or infinity; give another checkpoint"
            )
    if args.precision != "fp32":
        return f"precision={args.precision} may be too coarse for this network; give --precision fp32"
    return "the network's weights are finite, but its outputs for this text are not; score single sentences (--limit 1)"


def text_to_score(args: ElboArgs, model: ModelParts) -> Text:
    """Return the sentences of args.data, or its pairs for a checkpoint trained on pairs.

    Raises:
        UserError: if args.data holds the other kind.
    """
    from data.corpus import holds_pairs, scored_source
    from data.pairs import Layout, tokenize_pairs
    from data.row_formats import read_rows

    source = scored_source(args.data, args.column_names)
    if holds_pairs(source) != (model.pairs is not None):
        kinds = ("pairs", "text") if model.pairs else ("text", "pairs")
        raise UserError(f"{args.data}: the checkpoint was trained on {kinds[0]}, and this file holds {kinds[1]}")
    if model.pairs is None:
        tokenizer, text_format = model.tokenizer, model.text_format
        return read_rows(source, text_format, tokenizer, model.max_length, args.cache_dir, causal=model.causal)
    if args.row_format or args.detokenizer:
        raise UserError(f"{args.data} holds pairs; row_format and detokenizer are for text, leave them out")
    layout = Layout(model.pairs, model.tokenizer, model.max_length)
    return tokenize_pairs(source, "", None, layout, model.tokenizer, args.cache_dir)


if __name__ == "__main__":
    run_script(main)
