"""Seq2seq: several candidates for every source, and the one that minimum Bayes risk prefers.

python predict_downstream_condition.py --checkpoint out/qqp/checkpoint --data conditional_data/qqp/test.jsonl \
    --mbr_size 10 --num_steps 200 --output out/qqp/predictions.jsonl
"""

import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Generator, Tensor
from tqdm import tqdm

from checkpoint.folder import find_checkpoint, load_checkpoint
from checkpoint.text_model import TextModel
from data.corpus import announce, holds_pairs, read_sentences, scored_source, training_source
from data.pairs import Layout, source_ids, target_text
from data.tokenizers import respell
from diffusion.draws import sentence_seed
from diffusion.options import SampleArgs, reverse_steps
from evaluation.predictions import Journal, fingerprint_of, lock_output, write_diffuseq, write_predictions
from evaluation.text_metrics import mbr_select
from utils import distributed, files, hub
from utils.command_line import FROM_CHECKPOINT, parse, run_script
from utils.device import pick_device, set_up_cpu
from utils.errors import UserError, check_ranges

BATCHES_AT_ONCE = 64  # in a call of the sampler, which keeps its batch full until it runs out of rows
MOST_USED = ("checkpoint", "data", "output", "mbr_size", "num_steps", "limit")
MEANINGLESS = {**FROM_CHECKPOINT, "--seq_len": "the checkpoint says how wide its target window is"}


@dataclass(frozen=True)
class DownstreamArgs:
    """Which sources, how many candidates, and where to."""

    group: ClassVar[str] = "predictions"

    checkpoint: str = field(
        metadata={"aliases": ["--checkpoint_path", "--ckpt_path"], "help": "a folder main.py wrote"}
    )
    data: str = field(
        metadata={
            "aliases": ["--task_name"],
            "help": "pairs: a .jsonl file, or a folder or hub data set (its test split)",
        }
    )
    output: str = field(
        default="generation_results/predictions.jsonl",
        metadata={"aliases": ["--output_file"], "help": "a .jsonl file, one source a line"},
    )
    mbr_size: int = field(default=3, metadata={"aliases": ["--MBR_size"], "help": "candidates a source"})
    step_size: int = field(default=0, metadata={"help": "the same as --num_steps T / step_size (released: 10)"})
    limit: int = field(default=0, metadata={"help": "only the first so many sources; 0: all"})
    batch_size: int = field(default=64, metadata={"help": "candidates at a time; does not change them"})
    diffuseq_format: bool = field(
        default=False, metadata={"help": "also write OUTPUT without .jsonl/seed{S}_step{N}.json, one file a candidate"}
    )
    shuffle_sources: bool = field(
        default=False, metadata={"help": "give every target another pair's source: what is not read cannot be missed"}
    )
    precision: str = field(
        default="fp32", metadata={"choices": ["auto", "fp32", "bf16", "fp16"], "help": "of the network"}
    )
    seed: int = field(default=0, metadata={"help": "candidate j is what --seed SEED+j --mbr_size 1 gives"})
    show: int = field(default=3, metadata={"help": "print so many sources with all that was made of them"})
    threads: int = field(default=0, metadata={"help": "CPU threads; 0: torch decides"})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:N"})

    def __post_init__(self) -> None:
        check_ranges(self, mbr_size=(1, 1000), batch_size=(1, 10**7), step_size=(0, 10**6), limit=(0, 10**12))
        check_ranges(self, seed=(0, 2**63 - 1), show=(0, 10**6))  # MBR compares all pairs of candidates
        if not self.output.endswith(".jsonl"):
            raise UserError(f"output={self.output}: must end in .jsonl")


def main() -> None:
    """Load, sample what is not there yet, choose, write, show."""
    args, sampling = parse([DownstreamArgs, SampleArgs], __doc__, most_used=MOST_USED, meaningless=MEANINGLESS)
    sampling.warn()
    distributed.require_single("predict_downstream_condition.py")
    hub.quiet_libraries()
    output = Path(args.output)
    files.require_writable("output", output)
    if output.exists() and files.local_path(args.data).exists() and output.samefile(files.local_path(args.data)):
        raise UserError(f"output={output} is the data file itself; give another")
    if args.diffuseq_format:
        files.require_writable("output (less .jsonl)", output.with_suffix(""), folder=True)
    set_up_cpu(args.threads)
    device = pick_device(args.device)
    model = load_checkpoint(args.checkpoint, device, precision=args.precision)
    if model.pairs is None:
        raise UserError(f"checkpoint {args.checkpoint} was trained on text, without pairs; use predict.py")
    sampling = replace(sampling, num_steps=steps(args, sampling, model.process.num_steps))
    model.process.check_sampling(sampling)  # before the journal of another attempt is touched
    sources, references = read_pairs(args)
    recipe = fingerprint_of(find_checkpoint(args.checkpoint), recipe_of(args, sampling), sources, references)
    sources, references = (side[: args.limit or None] for side in (sources, references))  # a limit changes no candidate
    with lock_output(output):
        records = written(model, args, sampling, sources, references, device, Journal(output, recipe))
    print(
        f"{len(records):,} sources with {args.mbr_size} candidates each written to {output}\n"
        f"next: python compute_metric.py --predictions {shlex.quote(str(output))}",
        file=sys.stderr,
    )
    show(records[: args.show])


def written(
    model: TextModel,
    args: DownstreamArgs,
    sampling: SampleArgs,
    sources: list[str],
    references: list[str],
    device: torch.device,
    journal: Journal,
) -> list[dict]:
    """The records of all sources, which are in the output file when this returns, and no more in the journal."""
    predict(model, args, sampling, sources, references, device, journal)
    records, output = journal.finish(len(sources)), Path(args.output)
    write_predictions(output, records)
    if args.diffuseq_format:
        write_diffuseq(output.with_suffix(""), records, args.seed, sampling.num_steps)
    journal.remove()
    return records


def steps(args: DownstreamArgs, sampling: SampleArgs, total: int) -> float:
    """How many reverse steps; the number and the size come from different dataclasses, so both are refused here."""
    if args.step_size and sampling.num_steps:
        raise UserError("give --num_steps or --step_size, not both: the one is T over the other")
    return reverse_steps(total, sampling.num_steps, args.step_size)


def recipe_of(args: DownstreamArgs, sampling: SampleArgs) -> dict:
    """What decides the candidates, the sampler included: work under others cannot be continued."""
    return {
        **asdict(sampling),
        **{name: getattr(args, name) for name in ("mbr_size", "seed", "precision")},
    }


def read_pairs(args: DownstreamArgs) -> tuple[list[str], list[str]]:
    """Sources and references.

    Raises:
        UserError: if the data are not pairs, or broken, or a folder of training data only.
    """
    source = scored_source(args.data)
    if not files.local_path(args.data).is_file() and source == training_source(args.data):
        raise UserError(
            f"{args.data}: neither a test nor a validation split; to predict training pairs, name their file"
        )
    if not holds_pairs(source):
        raise UserError(f'{source}: holds no pairs; every line must be an object with a string "src" and "trg"')
    columns = (read_sentences(replace(source, column=side), description=f"reading {side}") for side in ("src", "trg"))
    sources, references = ([*column] for column in columns)
    print(f"predicting {source}", file=sys.stderr)
    if source.folder:
        announce({"sources": source})
    if args.shuffle_sources:
        if len(sources) < 2:
            raise UserError("shuffle_sources needs at least two pairs")
        sources = [sources[i] for i in derangement(len(sources), args.seed)]
    return sources, references


def derangement(n: int, seed: int) -> list[int]:
    """A permutation without a fixed point: everyone gets the next one's in a random ring."""
    ring = np.random.default_rng(seed).permutation(n)
    following = np.empty(n, dtype=int)
    following[ring] = np.roll(ring, 1)
    return following.tolist()


def predict(
    model: TextModel,
    args: DownstreamArgs,
    sampling: SampleArgs,
    sources: list[str],
    references: list[str],
    device: torch.device,
    journal: Journal,
) -> None:
    """Candidates and choice for every source that the journal lacks; each is in the journal once it is whole."""
    layout = Layout(model.pairs, model.tokenizer, model.max_length)
    ids = source_ids(layout, model.tokenizer, sources)
    cut = sum(len(i) > layout.longest_source for i in ids)
    if cut:
        print(f"note: {cut} sources cut to their last {layout.longest_source} tokens", file=sys.stderr)
    spelled = respell(model.tokenizer, sources), respell(model.tokenizer, references)
    todo = [i for i in range(len(sources)) if i not in journal.records]
    if len(todo) < len(sources):
        print(f"note: continuing after {len(sources) - len(todo)} sources ({journal.path})", file=sys.stderr)
    todo.sort(key=lambda i: len(ids[i]))
    with tqdm(total=len(todo), desc="predicting", unit="source", leave=False, disable=None) as bar:

        def finish(i: int, windows: list[Tensor]) -> None:
            texts = [target_text(model.tokenizer, window) for window in windows]
            chosen = texts[mbr_select(texts)]
            record = {"source": spelled[0][i], "reference": spelled[1][i], "candidates": texts, "prediction": chosen}
            journal.add(i, {"index": i, **record})
            bar.update()

        at_once = max(1, BATCHES_AT_ONCE * args.batch_size // args.mbr_size)
        for start in range(0, len(todo), at_once):
            draw_candidates(model, layout, ids, todo[start : start + at_once], args, sampling, device, finish)


@torch.no_grad()
def draw_candidates(
    model: TextModel,
    layout: Layout,
    ids: list[np.ndarray],
    chosen: list[int],
    args: DownstreamArgs,
    sampling: SampleArgs,
    device: torch.device,
    finish: Callable[[int, list[Tensor]], None],
) -> None:
    """Calls `finish` with every chosen source and its target windows, each int64 [window], as soon as it has them all.

    Candidate j of source i has a stream of random numbers of its own, that of seed + j and i: neither the batch size
    nor the other sources change it. The candidates of a source lie side by side, so they share their batches.
    """
    rows = [(i, j) for i in chosen for j in range(args.mbr_size)]
    streams = [Generator().manual_seed(sentence_seed(args.seed + j, i)) for i, j in rows]
    batch = layout.blanks([ids[i] for i, _ in rows])
    drawn: dict[int, dict[int, Tensor]] = {i: {} for i in chosen}

    def collect(finished: Tensor, xt: Tensor) -> None:
        for row, tokens in zip(finished.tolist(), xt[finished].cpu(), strict=True):
            i, j = rows[row]
            drawn[i][j] = tokens[batch.target_mask[row]]
            if len(drawn[i]) == args.mbr_size:
                finish(i, [drawn[i][j] for j in range(args.mbr_size)])

    model.process.sample(
        model.denoiser, batch.to(device), sampling, rows_at_once=args.batch_size, generator=streams, on_step=collect
    )


def show(records: list[dict]) -> None:
    """A few sources with everything that was made of them."""
    for record in records:
        print(f"\nsource      {record['source']}")
        for text in record["candidates"]:
            print(f"candidate   {text}")
        print(f"MBR choice  {record['prediction']}\nreference   {record['reference']}")


if __name__ == "__main__":
    run_script(main)
