"""Measure and print Tables 2 and 3 of the DiffusionBERT paper for runs/paper_tables.sh.

python benchmarks/paper_tables.py samples --checkpoint out/paper_tables/pretrained_paper_tad-1/checkpoint-last \
    --output samples.txt
python benchmarks/paper_tables.py steps --checkpoint out/paper_tables/pretrained_paper_tad-1/checkpoint-last \
    --data test.txt --output steps.json
python benchmarks/paper_tables.py print out/paper_tables

samples: draw samples; write them, and beside them their number of forward passes and seconds. steps: bound and
sampling time at the steps of Table 3. print: both tables as Markdown with the paper's figures beside, and the findings
of the paper with the difference in standard errors; the figures are also written to OUT/tables.json.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from scipy.stats import t as student_t

import compute_elbo
import predict
from benchmarks.variants import Counted
from checkpoint.folder import load_checkpoint
from checkpoint.text_model import TextModel
from diffusion.options import BoundArgs, SampleArgs
from evaluation.likelihood import Scoring, pick, score_text
from utils import hub
from utils.device import pick_device, set_up_cpu
from utils.errors import UserError
from utils.figures import number, spread, standard_error
from utils.files import written_whole


@dataclass(frozen=True)
class Row:
    """A row of Table 2 and the paper's figures for it."""

    pretrained: bool
    spindle: str
    time: str
    ppl: float | None = None
    bleu: float | None = None
    self_bleu: float | None = None


ROWS = {
    "scratch_none_lte": Row(False, "none", "LTE", 82.34, 0.3897, 0.2347),
    "scratch_none_tad": Row(False, "none", "TAD", 125.15, 0.3390, 0.2720),
    "scratch_paper_lte": Row(False, "paper", "LTE", 77.50, 0.4241, 0.2288),
    "pretrained_none_lte": Row(True, "none", "LTE", 92.53, 0.3995, 0.2118),
    "pretrained_none_pte": Row(True, "none", "PTE", 79.95, 0.3886, 0.2156),
    "pretrained_none_tad": Row(True, "none", "TAD", 78.76, 0.4213, 0.2116),
    "pretrained_paper_tad": Row(True, "paper", "TAD", 63.78, 0.4358, 0.2151),
    "pretrained_released_tad": Row(True, "released", "TAD"),
}
"""Table 2 of He et al. 2023 (the rows named D3PM and DiffusionBERT), and the released code's spindle."""

STEPS = {
    2: (313.57, 0.66),
    8: (91.01, 1.39),
    16: (75.66, 1.80),
    64: (65.83, 4.25),
    128: (63.78, 7.53),
    512: (54.63, 27.48),
}
"""Table 3: perplexity and seconds by number of steps."""

PAPER_STEPS = 128
"""Reverse steps of the samples of Table 2."""

CLAIMS = (
    ("pretrained weights help, time-agnostic", "pretrained_none_tad", "scratch_none_tad"),
    ("pretrained weights harm, layerwise time", "scratch_none_lte", "pretrained_none_lte"),
    ("from pretrained weights, time-agnostic is better than layerwise", "pretrained_none_tad", "pretrained_none_lte"),
    (
        "from pretrained weights, time-agnostic is better than a time token",
        "pretrained_none_tad",
        "pretrained_none_pte",
    ),
    ("from scratch, layerwise is better than time-agnostic", "scratch_none_lte", "scratch_none_tad"),
    ("the spindle helps, pretrained and time-agnostic", "pretrained_paper_tad", "pretrained_none_tad"),
    ("the same with the released code's spindle", "pretrained_released_tad", "pretrained_none_tad"),
    ("the spindle helps, from scratch and layerwise", "scratch_paper_lte", "scratch_none_lte"),
)
"""Findings of the paper's Table 2: words, the row that has the lower perplexity there, and the other one.

The released code's spindle has another informativeness than Eq. 12 of the paper.
"""


NOTE_2 = "± is the standard error over trainings. Seconds are those of drawing the samples on this machine."
NOTE_3 = (
    "± is the error of the draws of x_t. Seconds are of a batch of samples on this machine; the paper's are on its GPU "
    "and cannot be compared."
)
NOTE_CLAIMS = (
    "Nats per sentence of the row that has the lower perplexity in the paper, relative to the other row. ± is the "
    "standard error of this paired difference: over the scored sentences and, with several trainings, also over "
    "trainings of the same seed. A difference that Student's t (95 %) does not separate from 0 is not distinguishable; "
    "there is no correction for the number of findings. One training of each says nothing about other trainings."
)


# ---- measurement -----------------------------------------------------------------------------------------------------


def draw(model: TextModel, num_samples: int, sampling: SampleArgs, length: int) -> tuple[list[str], dict[str, float]]:
    """Return samples, and the forward passes per sample and seconds that they took."""
    denoiser = Counted(model.denoiser)
    denoiser.max_length = model.denoiser.max_length
    args = predict.PredictArgs("-", num_samples=num_samples, length=length, batch_size=256)
    counted = TextModel(**{**vars(model), "denoiser": denoiser})
    began = time.monotonic()
    rows = predict.samples(counted, args, sampling, model.process.barred.device)
    figures = {"seconds": time.monotonic() - began, "forwards": denoiser.rows / num_samples, "samples": num_samples}
    return [predict.decode(model, row) for row in rows], figures


def samples(options: argparse.Namespace) -> None:
    """Write samples as in the paper (PAPER_STEPS, top-k 30), and OUTPUT.json with their cost."""
    model = load(options)
    texts, figures = draw(model, options.num_samples, SampleArgs(num_steps=PAPER_STEPS, top_k=30), options.length)
    with written_whole(options.output) as file:
        file.writelines(text + "\n" for text in texts)
    write(options.output.with_suffix(".json"), figures)


def steps(options: argparse.Namespace) -> None:
    """Write bound and sampling time at the steps of Table 3, and in the limit, or at T where there is none.

    The output is written after each number of steps, and a second call goes on from there.
    """
    settings = {name: getattr(options, name) for name in ("limit", "num_samples", "length", "precision")}
    settings |= {"checkpoint": "/".join(Path(options.checkpoint).parts[-2:]), "data": Path(options.data).name}
    read = json.loads(options.output.read_text()) if options.output.exists() else {"settings": settings, "steps": {}}
    if (others := read.get("settings")) != settings:
        raise UserError(
            f"{options.output} holds figures of other settings ({others}); remove it or give another --output"
        )
    found = read["steps"]
    if len(found) > len(STEPS):
        print(f"{options.output}: measured before; remove it to measure again")
        return
    model = load(options)
    scored = compute_elbo.ElboArgs(options.checkpoint, options.data, cache_dir=options.cache_dir)
    text = compute_elbo.text_to_score(scored, model)
    last = math.inf if model.process.limit_estimators else model.process.num_steps  # a spindle's bound has no limit
    for count in (*STEPS, last):
        if f"{count:g}" not in found:
            scoring = Scoring(count, BoundArgs("trajectory", evaluations=1), batch_size=128)
            report = score_text(model, text, pick(text, options.limit), scoring).report()
            _, cost = draw(model, options.num_samples, SampleArgs(num_steps=count, top_k=30), options.length)
            kept = ("ppl_word", "nats_per_sequence", "standard_error_nats", "draws_error_nats")
            found[f"{count:g}"] = {name: report[name] for name in kept} | cost
            write(options.output, read)
            print(f"{count:g} steps: {number(report['ppl_word'], 1)} PPL/word, {number(cost['seconds'], 1)} s")


def load(options: argparse.Namespace) -> TextModel:
    """Load the checkpoint on this machine's device."""
    return load_checkpoint(options.checkpoint, pick_device(), precision=options.precision)


def write(path: Path, found: dict) -> None:
    """Write a JSON file in one piece."""
    with written_whole(path) as file:
        json.dump(found, file, indent=1)


# ---- tables ----------------------------------------------------------------------------------------------------------


PARTS = ("exact.json", "released.json", "metrics.json", "samples.json", "exact.jsonl", "released.jsonl")
"""Files of a finished training: reports, and the nats of each scored sentence."""


def collected(out: Path, wanted: Sequence[str] = ()) -> dict[str, list[dict]]:
    """Return the reports of each finished training, by row; of those in `wanted` (ROW-SEED) only, if it is given."""
    found: dict[str, list[dict]] = {}
    for name in ROWS:
        for exact in sorted(out.glob(f"{name}-*.exact.json")):
            stem = exact.name.removesuffix(".exact.json")
            if all((out / f"{stem}.{part}").exists() for part in PARTS) and (not wanted or stem in wanted):
                read = {part: json.loads((out / f"{stem}.{part}").read_text()) for part in PARTS[:4]}
                each = {part: sentences(out / f"{stem}.{part}.jsonl") for part in ("exact", "released")}
                reports = {part.removesuffix(".json"): report for part, report in read.items()}
                found.setdefault(name, []).append({"seed": stem.rsplit("-", 1)[1], **reports, "sentences": each})
    return found


def sentences(path: Path) -> dict[int, float]:
    """Return the nats of each scored sentence by its index."""
    lines = map(json.loads, path.read_text().splitlines())
    return {line["sentence"]: line["nats"] for line in lines}


def table_2(found: dict[str, list[dict]]) -> str:
    """Return Table 2 as Markdown."""
    head = "weights | spindle | time | nats/sequence | PPL, bound | PPL, released arithmetic | PPL, paper"
    head += " | BLEU-4 | paper | self-BLEU | paper | forwards | seconds"
    lines = [f"| {head} |", "|" + "---|" * 13]
    for name, trainings in found.items():
        row = ROWS[name]
        column = {
            key: [training[part][key] for training in trainings]
            for part, keys in (
                ("exact", ("nats_per_sequence", "ppl_word")),
                ("metrics", ("bleu_4", "self_bleu_4")),
                ("samples", ("forwards", "seconds")),
            )
            for key in keys
        }
        claimed = [training["released"]["ppl_word"] for training in trainings]
        paper = [f"{value:g}" if value else "" for value in (row.ppl, row.bleu, row.self_bleu)]
        cells = ["pretrained" if row.pretrained else "scratch", row.spindle, row.time]
        cells += [spread(column["nats_per_sequence"], 2), spread(column["ppl_word"], 1), spread(claimed, 1), paper[0]]
        cells += [spread(column["bleu_4"], 4), paper[1], spread(column["self_bleu_4"], 4), paper[2]]
        cells += [spread(column["forwards"], 1), spread(column["seconds"], 1)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table_3(found: dict[str, dict[str, float]]) -> str:
    """Return Table 3 as Markdown."""
    lines = ["| steps | nats/sequence | PPL | PPL, paper | forwards | seconds | seconds, paper |", "|" + "---|" * 7]
    for count, row in found.items():
        ppl, seconds = STEPS.get(int(count), ("", "")) if count != "inf" else ("", "")
        nats = f"{number(row['nats_per_sequence'], 2)} ± {number(row['draws_error_nats'], 2)}"
        cost = f"{number(row['forwards'], 1)} | {number(row['seconds'], 1)}"
        lines.append(f"| {count} | {nats} | {number(row['ppl_word'], 1)} | {ppl} | {cost} | {seconds} |")
    return "\n".join(lines)


def claims(found: dict[str, list[dict]]) -> str:
    """Return whether each finding of the paper held, by the bound and by the released arithmetic."""
    lines = ["| finding of the paper | by the bound | by the released arithmetic | PPL, paper |", "|---|---|---|---|"]
    for words, better, worse in CLAIMS:
        if better in found and worse in found:
            cells = [verdict(found[better], found[worse], part) for part in ("exact", "released")]
            paper = f"{ROWS[better].ppl:g} < {ROWS[worse].ppl:g}" if ROWS[better].ppl else ""
            lines.append(f"| {words} | {cells[0]} | {cells[1]} | {paper} |")
    return "\n".join(lines)


def verdict(better: list[dict], worse: list[dict], part: str) -> str:
    """Return whether the first row has fewer nats, and the difference in standard errors."""
    others = {training["seed"]: training for training in worse}
    common = [(training, others[training["seed"]]) for training in better if training["seed"] in others]
    if not common:
        return "no common seed"
    mean, error, freedom = difference([paired(mine, each, part) for mine, each in common])
    separated = abs(mean) > student_t.ppf(0.975, freedom) * error
    lower = "lower" if mean < 0 else "higher"
    size = f"{lower} by {number(abs(mean), 2)} ± {number(error, 2)} nats"
    if error > 1e-6:
        size += f" ({number(abs(mean) / error, 1)} standard errors)"
    answer = ("as in the paper" if mean < 0 else "reversed") if separated else "not distinguishable"
    return f"{'one training, ' if len(common) == 1 else ''}{answer}: {size}"


def paired(mine: dict, other: dict, part: str) -> list[float]:
    """Return the difference in nats of each sentence that both trainings have scored.

    Raises:
        UserError: if they have not scored the same sentences.
    """
    first, second = mine["sentences"][part], other["sentences"][part]
    if first.keys() != second.keys() or len(first) < 2:
        raise UserError(f"two rows of seed {mine['seed']} have not scored the same sentences; score both again")
    return [first[index] - second[index] for index in first]


def difference(trainings: list[list[float]]) -> tuple[float, float, int]:
    """Return the mean of paired differences, its standard error and degrees of freedom.

    Sentences and trainings are both samples, so the variance is the sum of that over sentences and that over trainings.
    With one training the second is unknown and left out. The degrees of freedom are those of the smaller sample, which
    makes the test a cautious one.

    Args:
        trainings: differences of the same sentences, for each pair of trainings.
    """
    parts = [np.mean(trainings, axis=0).tolist(), np.mean(trainings, axis=1).tolist()]
    parts = [values for values in parts if len(values) > 1]
    error = math.hypot(*(standard_error(values) for values in parts))
    return float(np.mean(trainings)), error, min(len(values) - 1 for values in parts)


def print_tables(options: argparse.Namespace) -> None:
    """Print both tables and the claims; write OUT/tables.json."""
    found = collected(options.out, options.rows)
    if not found:
        raise UserError(f"{options.out}: no finished row; run runs/paper_tables.sh first")
    reports = {
        name: [{part: report for part, report in each.items() if part != "sentences"} for each in trainings]
        for name, trainings in found.items()
    }
    written = {"table_2": reports}
    print(table_2(found) + "\n\n" + NOTE_2)
    if (options.out / "steps.json").exists():
        written["table_3"] = json.loads((options.out / "steps.json").read_text())["steps"]
        print("\n" + table_3(written["table_3"]) + "\n\n" + NOTE_3)
    if any(better in found and worse in found for _, better, worse in CLAIMS):
        print("\n" + claims(found) + "\n\n" + NOTE_CLAIMS)
    write(options.out / "tables.json", written)


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parts = parser.add_subparsers(required=True, metavar="PART")
    for part in (samples, steps):
        command = parts.add_parser(part.__name__, help=part.__doc__, description=part.__doc__)
        command.set_defaults(part=part)
        command.add_argument("--checkpoint", required=True, help="checkpoint trained on text")
        command.add_argument("--output", type=Path, required=True, help="file to write")
        command.add_argument("--num_samples", type=int, default=1000, help="number of samples")
        command.add_argument("--length", type=int, default=0, help="tokens per sample; 0: drawn from training lengths")
        command.add_argument(
            "--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"], help="precision of the network"
        )
        command.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's default")
        if part is steps:
            command.add_argument("--data", required=True, help="text to score")
            command.add_argument("--limit", type=int, default=0, help="number of sentences to score; 0: all")
            command.add_argument("--cache_dir", default="out/cache", help="folder of cached tokenised text")
    command = parts.add_parser("print", help=print_tables.__doc__, description=print_tables.__doc__)
    command.set_defaults(part=print_tables, threads=0)
    command.add_argument("out", type=Path, help="folder of runs/paper_tables.sh")
    command.add_argument("--rows", nargs="*", default=(), metavar="ROW-SEED", help="trainings to print; default: all")
    options = parser.parse_args()
    hub.quiet_libraries()
    set_up_cpu(options.threads)
    try:
        options.part(options)
    except (UserError, OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")


if __name__ == "__main__":
    main()
