"""Predict targets of sources (seq2seq): draw several candidates, choose one by minimum Bayes risk.

python predict_downstream_condition.py --checkpoint out/qqp/checkpoint --data conditional_data/qqp/test.jsonl \
    --mbr_size 10 --num_steps 200 --output out/qqp/predictions.jsonl
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tqdm import tqdm

from checkpoint.requests import CandidateRequest
from data.column_names import ColumnNames
from diffusion.options import ORDERED, SampleArgs, reverse_steps
from utils import files, hub, job
from utils.command_line import FROM_CHECKPOINT, PRECISIONS, parse, run_script
from utils.errors import UserError, check_ranges

if TYPE_CHECKING:
    from checkpoint.model_parts import ModelParts
    from evaluation.predictions import Journal

MOST_USED = ("checkpoint", "data", "output", "mbr_size", "num_steps", "limit")
WITHOUT_EFFECT = {**FROM_CHECKPOINT, "--seq_len": "the checkpoint sets the width of the target window"}


@dataclass(frozen=True)
class DownstreamArgs(ColumnNames):
    """Sources, candidates and output."""

    group: ClassVar[str] = "predictions"

    checkpoint: str = field(
        metadata={"aliases": ["--checkpoint_path", "--ckpt_path"], "help": "folder written by main.py"}
    )
    data: str = field(
        metadata={
            "aliases": ["--task_name"],
            "help": "pairs: a .jsonl file, or a folder or hub data set (its test split)",
        }
    )
    prompts: str = field(
        default="", metadata={"help": "folder of modular prompts for this checkpoint (python -m modular_prompts)"}
    )
    prompts_task: str = field(default="", metadata={"help": "task among them; default: the only one"})
    output: str = field(
        default="generation_results/predictions.jsonl",
        metadata={"aliases": ["--output_file"], "help": "output file, .jsonl, one source per line"},
    )
    mbr_size: int = field(default=3, metadata={"aliases": ["--MBR_size"], "help": "number of candidates per source"})
    step_size: int = field(
        default=0, metadata={"help": "stride of reverse steps: --num_steps is T / step_size (released: 10)"}
    )
    limit: int = field(default=0, metadata={"help": "number of sources, from the first; 0: all"})
    batch_size: int = field(default=64, metadata={"help": "number of candidates per batch; does not change them"})
    diffuseq_format: bool = field(
        default=False,
        metadata={
            "help": "further files in DiffuSeq's format: OUTPUT without .jsonl/seed{S}_step{N}.json, one per seed"
        },
    )
    shuffle_sources: bool = field(
        default=False, metadata={"help": "control: predict each target from another pair's source"}
    )
    precision: str = field(default="fp32", metadata={"choices": list(PRECISIONS), "help": "precision of the network"})
    seed: int = field(
        default=0, metadata={"help": "random seed; candidate j equals that of --seed SEED+j --mbr_size 1"}
    )
    show: int = field(default=3, metadata={"help": "number of sources to print with their candidates"})
    threads: int = field(default=0, metadata={"help": "number of CPU threads; 0: torch's default"})
    device: str = field(default="auto", metadata={"help": "device: auto, cpu, cuda, cuda:N or mps"})

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.request  # checks it
        check_ranges(self, step_size=(0, 10**6), limit=(0, 10**12), show=(0, 10**6))
        if self.prompts_task and not self.prompts:
            raise UserError(f"prompts_task={self.prompts_task}: names a task among --prompts; give these")
        if not self.output.endswith(".jsonl"):
            raise UserError(f"output={self.output}: must end in .jsonl")

    @property
    def request(self) -> CandidateRequest:
        """The candidates wanted."""
        return CandidateRequest(self.mbr_size, self.seed, self.batch_size)


@dataclass(frozen=True)
class Task:
    """Model, settings and pairs of one prediction run."""

    model: ModelParts
    args: DownstreamArgs
    sampling: SampleArgs
    sources: list[str]
    references: list[str]


def main() -> None:
    """Load the model and the pairs, predict every source, write and show the predictions."""
    args, sampling = parse([DownstreamArgs, SampleArgs], __doc__, most_used=MOST_USED, without_effect=WITHOUT_EFFECT)
    job.require_single("predict_downstream_condition.py")
    hub.quiet_libraries()
    # imported here, since --help and refused settings need no torch
    from checkpoint.folder import find_checkpoint, load_checkpoint
    from evaluation.predictions import Journal, fingerprint_of, lock_output
    from modular_prompts.target_window import with_saved_prompt
    from utils.device import pick_device, set_up_cpu

    output = Path(args.output)
    files.require_writable("output", output)
    if output.exists() and files.local_path(args.data).exists() and output.samefile(files.local_path(args.data)):
        raise UserError(f"output={output} is the data file itself; give another --output")
    if args.diffuseq_format:
        files.require_writable("output (less .jsonl)", output.with_suffix(""), folder=True)
    set_up_cpu(args.threads)
    model = load_checkpoint(args.checkpoint, pick_device(args.device), precision=args.precision)
    if model.pairs is None:
        raise UserError(f"checkpoint {args.checkpoint} was trained on text, without pairs; use predict.py")
    if args.prompts:
        model = with_saved_prompt(model, args.prompts, args.prompts_task)
    sampling = replace(sampling, num_steps=steps(args, sampling, model.process.num_steps))
    model.process.check_sampling(sampling)  # before the journal of an interrupted run is opened
    sources, references = read_pairs(args)
    fingerprint = fingerprint_of(
        find_checkpoint(args.checkpoint), candidate_settings(args, sampling), sources, references
    )
    # the fingerprint excludes the limit
    sources, references = (side[: args.limit or None] for side in (sources, references))
    task = Task(model, args, sampling, sources, references)
    with lock_output(output):
        sampling.warn()
        records = predict_and_write(task, Journal(output, fingerprint))
    print(
        f"{len(records):,} sources with {args.mbr_size} candidates each written to {output}\n"
        f"next: python compute_metric.py --predictions {shlex.quote(str(output))}",
        file=sys.stderr,
    )
    show(records[: args.show])


def predict_and_write(task: Task, journal: Journal) -> list[dict]:
    """Predict all sources, write the output files and remove the journal; return the records."""
    from evaluation.predictions import write_diffuseq, write_predictions

    predict(task, journal)
    records, output = journal.finish(len(task.sources)), Path(task.args.output)
    write_predictions(output, records)
    if task.args.diffuseq_format:
        write_diffuseq(output.with_suffix(""), records, task.args.seed, task.sampling.num_steps)
    journal.remove()
    return records


def steps(args: DownstreamArgs, sampling: SampleArgs, total: int) -> float:
    """Return the number of reverse steps from --num_steps or --step_size; 0 for a sampler without time.

    Raises:
        UserError: if both are given, or one is out of range.
    """
    if args.step_size and sampling.num_steps:
        raise UserError("give --num_steps or --step_size, not both")
    if sampling.sampler == ORDERED:
        if args.step_size:
            raise UserError(
                f"step_size={args.step_size}: sampler={ORDERED} has no time; give --tokens_per_step instead"
            )
        return 0
    return reverse_steps(total, sampling.num_steps, args.step_size)


def candidate_settings(args: DownstreamArgs, sampling: SampleArgs) -> dict:
    """Return the settings that determine the candidates; a journal with other settings is not continued."""
    folder = files.local_path(args.prompts)
    prompted = {"prompts": files.checksums(folder), "prompts_task": args.prompts_task} if args.prompts else {}
    later = {"order": "", "tokens_per_step": 1}  # their defaults; journals from before these settings go on
    sampler = {name: value for name, value in asdict(sampling).items() if later.get(name) != value}
    return {
        **sampler,
        **{name: getattr(args, name) for name in ("mbr_size", "seed", "precision")},
        **prompted,
    }


def read_pairs(args: DownstreamArgs) -> tuple[list[str], list[str]]:
    """Return sources and references.

    Raises:
        UserError: if the data hold no pairs, are malformed, or are a folder without test and validation data.
    """
    from data.corpus import announce, holds_pairs, read_sentences, scored_source, training_source

    names = args.column_names
    source = scored_source(args.data, names)
    if not files.local_path(args.data).is_file() and source == training_source(args.data, names):
        raise UserError(
            f"{args.data}: neither a test nor a validation split; to predict training pairs, give their file"
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
    """Return a permutation of 0..n-1 without a fixed point: one random cycle."""
    import numpy as np

    ring = np.random.default_rng(seed).permutation(n)
    following = np.empty(n, dtype=int)
    following[ring] = np.roll(ring, 1)
    return following.tolist()


def predict(task: Task, journal: Journal) -> None:
    """Draw candidates and choose one for each source that the journal lacks; add its record when complete."""
    from checkpoint.candidates import draw_candidates
    from checkpoint.minimum_bayes_risk import mbr_select
    from data.tokenizers import respell

    model, sources = task.model, task.sources
    spelled = respell(model.tokenizer, sources), respell(model.tokenizer, task.references)
    todo = [i for i in range(len(sources)) if i not in journal.records]
    if len(todo) < len(sources):
        print(f"note: continuing after {len(sources) - len(todo)} sources ({journal.path})", file=sys.stderr)
    with tqdm(total=len(todo), desc="predicting", unit="source", leave=False, disable=None) as bar:

        def finish(i: int, texts: list[str]) -> None:
            chosen = texts[mbr_select(texts)]
            record = {"source": spelled[0][i], "reference": spelled[1][i], "candidates": texts, "prediction": chosen}
            journal.add(i, {"index": i, **record})
            bar.update()

        draw_candidates(model, sources, task.args.request, task.sampling, finish, numbers=todo)


def show(records: list[dict]) -> None:
    """Print records with their candidates."""
    for record in records:
        print(f"\nsource      {record['source']}")
        for text in record["candidates"]:
            print(f"candidate   {text}")
        print(f"MBR choice  {record['prediction']}\nreference   {record['reference']}")


if __name__ == "__main__":
    run_script(main)
