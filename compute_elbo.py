"""The likelihood bound of a text under a checkpoint.

python compute_elbo.py --checkpoint out/demo/checkpoint --data out/demo/corpus/test.txt
python compute_elbo.py --checkpoint out/demo/checkpoint --data out/demo/corpus/test.txt --num_steps 512 --json
python compute_elbo.py --checkpoint out/demo/checkpoint --data out/demo/corpus/test.txt --estimator trajectory \
    --target_se 0.005
"""

import math
import sys
from dataclasses import dataclass, field

from checkpoint.folder import load_checkpoint
from checkpoint.text_model import TextModel
from data.corpus import announce, holds_pairs, scored_source
from data.detokenizers import DETOKENIZERS
from data.pairs import Layout, tokenize_pairs
from data.row_formats import ROW_FORMATS, read_rows
from data.tokenized_text import Text
from diffusion.options import BoundArgs, reverse_steps
from evaluation import comparable
from evaluation.likelihood import pick, score_text
from evaluation.likelihood_report import describe
from utils import distributed, hub
from utils.command_line import FROM_CHECKPOINT, parse, run_script
from utils.device import autocast, pick_device, pick_precision, set_up_cpu
from utils.errors import UserError, check_choices, check_ranges, require_finite
from utils.figures import as_json
from utils.messages import note


@dataclass(frozen=True)
class ElboArgs:
    """What to score, and how finely."""

    checkpoint: str = field(metadata={"aliases": ["--checkpoint_path"], "help": "a folder written by main.py"})
    data: str = field(metadata={"help": "text or pairs: a file, a folder (its test split), or a data set on the hub"})
    num_steps: float = field(
        default=0,
        metadata={
            "aliases": ["--diffusion_steps"],
            "help": "reverse steps; inf: the limit of ever finer ones; 0: 128, or T if less, or inf in continuous time",
        },
    )
    eval_step_size: int = field(default=0, metadata={"help": "the same, as steps of T per window"})
    posterior: str = field(default="", metadata={"help": "exact or released; default: the checkpoint's"})
    protocol: str = field(
        default="", metadata={"choices": ["", *ROW_FORMATS], "help": "of rows; default: the checkpoint's"}
    )
    detokenizer: str = field(
        default="", metadata={"choices": ["", *DETOKENIZERS], "help": "of this text; default: the checkpoint's"}
    )
    limit: int = field(default=0, metadata={"help": "score this many sentences, drawn once for a seed; 0: all"})
    batch_size: int = field(default=64, metadata={"help": "sentences at a time; does not change the result"})
    json: bool = field(default=False, metadata={"help": "print one JSON object and nothing else on stdout"})
    precision: str = field(
        default="fp32", metadata={"choices": ["auto", "fp32", "bf16", "fp16"], "help": "of the network"}
    )
    seed: int = field(default=0, metadata={"help": "of the draws of x_t"})
    cache_dir: str = field(default="out/cache", metadata={"help": "where tokenised text is kept"})
    threads: int = field(default=0, metadata={"help": "CPU threads; 0: torch decides"})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:N"})

    def __post_init__(self) -> None:
        if not (0 <= self.num_steps <= 10**6 and self.num_steps % 1 == 0) and self.num_steps != math.inf:
            raise UserError(f"num_steps={self.num_steps:g} must be a whole number in 0..1000000, or inf")
        check_ranges(self, eval_step_size=(0, 10**6), limit=(0, 10**12), batch_size=(1, 10**7))
        check_ranges(self, seed=(0, 2**63 - 1))
        if self.num_steps and self.eval_step_size:
            raise UserError("give --num_steps or --eval_step_size, not both: the one is T over the other")
        check_choices(self)
        if self.posterior not in ("", "exact", "released"):
            raise UserError(f"posterior={self.posterior!r} must be exact or released")


def main() -> None:
    """Load, score, print; under torchrun every process scores its share."""
    args, bound_args = parse([ElboArgs, BoundArgs], __doc__, meaningless=FROM_CHECKPOINT)
    hub.quiet_libraries()
    set_up_cpu(args.threads)
    device = pick_device(args.device)
    with distributed.process_group(device):
        of_text = {"protocol": args.protocol, "detokenizer": args.detokenizer}
        run = load_checkpoint(args.checkpoint, device, posterior=args.posterior, **of_text)
        run.denoiser.autocast = autocast(device, pick_precision(args.precision, device))
        with distributed.leader_first():
            text = read_text(args, run)
        report = score_text(
            run,
            text,
            pick(text, args.limit, args.seed),
            num_steps=steps(args, run.process.num_steps),
            bound_args=bound_args,
            batch_size=args.batch_size,
            seed=args.seed,
            device=device,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        ).report()
    if distributed.rank() == 0:
        say(args, run, text, report)


def steps(args: ElboArgs, total: float) -> float:
    """How many reverse steps the bound has; of a process in continuous time, left to itself, it is the limit."""
    if math.isinf(total) and not args.num_steps and not args.eval_step_size:
        return total
    return reverse_steps(total, args.num_steps, args.eval_step_size, "eval_step_size")


def say(args: ElboArgs, run: TextModel, text: Text, report: dict) -> None:
    """The report, and what a person should know of it.

    Raises:
        UserError: if a figure is not finite.
    """
    require_finite(report, remedy(args, run))
    announce({"scored": text.source})
    notes = [text.cuts] if text.cuts else []
    notes += comparable.other_than_trained(run, text)
    for sentence in notes:
        note(sentence)
    if not run.process.is_bound:
        notes.append("the released posterior's figure is not a bound: it can lie below -log p(x0)")
        print(f"warning: {notes[-1]}", file=sys.stderr)
    print(as_json(report | {"notes": notes}) if args.json else describe(report))


def remedy(args: ElboArgs, run: TextModel) -> str:
    """What to do about a bound that is not finite."""
    for name, weights in run.denoiser.network.named_parameters():
        if not weights.isfinite().all():
            return (
                f"the weights of {args.checkpoint} are damaged: {name} holds NaN or infinity; give another checkpoint"
            )
    if args.precision != "fp32":
        return f"precision={args.precision} may be too coarse for this network; give --precision fp32"
    return "the network's weights are finite, but not what it makes of this text; try its lines one by one (--limit 1)"


def read_text(args: ElboArgs, run: TextModel) -> Text:
    """The sentences, or the pairs, of args.data: whichever the checkpoint was trained on.

    Raises:
        UserError: if they are of the other kind.
    """
    source = scored_source(args.data)
    if holds_pairs(source) != (run.pairs is not None):
        kinds = ("pairs", "text") if run.pairs else ("text", "pairs")
        raise UserError(f"{args.data}: the checkpoint was trained on {kinds[0]}, and this file holds {kinds[1]}")
    if run.pairs is None:
        where = run.tokenizer, run.max_length, args.cache_dir
        return read_rows(source, run.form, *where, causal=run.causal)
    if args.protocol or args.detokenizer:
        raise UserError(f"{args.data} holds pairs; protocol and detokenizer are for text, leave them out")
    layout = Layout(run.pairs, run.tokenizer, run.max_length)
    return tokenize_pairs(source, "", None, layout, run.tokenizer, args.cache_dir)


if __name__ == "__main__":
    run_script(main)
