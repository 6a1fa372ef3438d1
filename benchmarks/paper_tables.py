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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from scipy.stats import t as student_t

from benchmarks.paper_measurements import STEPS, samples, steps, write
from benchmarks.pretrained_table import read_json, verdicts
from utils import hub
from utils.command_line import run_script
from utils.device import set_up_cpu
from utils.errors import UserError
from utils.figures import number, spread, standard_error


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
    ("the released code's spindle helps", "pretrained_released_tad", "pretrained_none_tad"),
    ("the spindle helps, from scratch and layerwise", "scratch_paper_lte", "scratch_none_lte"),
)
"""Findings of the paper's Table 2: words, the row that has the lower perplexity there, and the other one.

The released code's spindle has another informativeness than Eq. 12 of the paper.
"""


NOTE_2 = "Seconds are those of drawing the samples on this machine."
NOTE_TRAININGS = "± is the standard error over trainings."
NOTE_3 = (
    "± is the error of the draws of x_t. Seconds are of a batch of samples on this machine; the paper's are on its GPU "
    "and cannot be compared."
)
NOTE_FINDINGS = (
    "Nats per sentence of the row that has the lower perplexity in the paper, relative to the other row. ± is the "
    "standard error of this paired difference: over the scored sentences and, with several trainings, also over "
    "trainings of the same seed. A difference that Student's t (95 %) does not separate from 0 is not distinguishable; "
    "there is no correction for the number of findings. One training of each says nothing about other trainings."
)


PARTS = ("exact.json", "released.json", "metrics.json", "samples.json", "exact.jsonl", "released.jsonl")
"""Files of a finished training: reports, and the nats of each scored sentence."""


def collected(out: Path, wanted: Sequence[str] = ()) -> dict[str, list[dict]]:
    """Return the reports of each finished training, by row; of those in `wanted` (ROW-SEED) only, if it is given."""
    found: dict[str, list[dict]] = {}
    for name in ROWS:
        for exact in sorted(out.glob(f"{name}-*.exact.json")):
            stem = exact.name.removesuffix(".exact.json")
            if all((out / f"{stem}.{part}").exists() for part in PARTS) and (not wanted or stem in wanted):
                read = {part: read_json(out / f"{stem}.{part}") for part in PARTS[:4]}
                each = {part: sentences(out / f"{stem}.{part}.jsonl") for part in ("exact", "released")}
                reports = {part.removesuffix(".json"): report for part, report in read.items()}
                found.setdefault(name, []).append({"seed": stem.rsplit("-", 1)[1], **reports, "sentences": each})
    return found


def sentences(path: Path) -> dict[int, float]:
    """Return the nats of each scored sentence by its index.

    Raises:
        UserError: if a line is damaged.
    """
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return {line["sentence"]: line["nats"] for line in lines}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not written by compute_elbo.py --per_sentence; remove it and score again") from error


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


def findings(found: dict[str, list[dict]]) -> list[dict[str, str]]:
    """Return whether each finding of the paper held, by the bound and by the released arithmetic."""
    lines = []
    for words, better, worse in CLAIMS:
        if better in found and worse in found:
            in_paper = ROWS[better].ppl is not None
            held = {
                part: verdict(found[better], found[worse], part, in_paper=in_paper) for part in ("exact", "released")
            }
            paper = f"{ROWS[better].ppl:g} < {ROWS[worse].ppl:g}" if in_paper else "not in the paper"
            lines.append({"finding": words, **held, "paper": paper})
    return lines


def table_of_findings(lines: list[dict[str, str]]) -> str:
    """Return the findings as Markdown."""
    head = ["| finding | by the bound | by the released arithmetic | PPL, paper |", "|---|---|---|---|"]
    return "\n".join(head + ["| " + " | ".join(line.values()) + " |" for line in lines])


def verdict(better: list[dict], worse: list[dict], part: str, *, in_paper: bool) -> str:
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
    held = "as in the paper" if in_paper else "held"
    answer = (held if mean < 0 else "reversed") if separated else "not distinguishable"
    return f"{'one training, ' if len(common) == 1 else ''}{answer}: {size}"


def paired(mine: dict, other: dict, part: str) -> list[float]:
    """Return the difference in nats of each sentence that both trainings have scored.

    Raises:
        UserError: if they have not scored the same sentences.
    """
    first, second = mine["sentences"][part], other["sentences"][part]
    if first.keys() != second.keys():
        raise UserError(f"two rows of seed {mine['seed']} have not scored the same sentences; score both again")
    if len(first) < 2:
        raise UserError(
            "one sentence is scored: a standard error needs two or more; raise LIMIT, or give a longer TEST"
        )
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
    several = any(len(trainings) > 1 for trainings in found.values())
    print(table_2(found) + "\n\n" + " ".join([NOTE_TRAININGS] * several + [NOTE_2]))
    for line in verdicts(options.out, [f"{name}-{each['seed']}" for name in found for each in found[name]]):
        print(line)
    if (options.out / "steps.json").exists():
        written["table_3"] = read_json(options.out / "steps.json")["steps"]
        print("\n" + table_3(written["table_3"]) + "\n\n" + NOTE_3)
    write(options.out / "tables.json", written)
    if lines := findings(found):
        print("\n" + table_of_findings(lines) + "\n\n" + NOTE_FINDINGS)
        write(options.out / "tables.json", written | {"findings": lines})


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parts = parser.add_subparsers(required=True, metavar="PART")
    for part in (samples, steps):
        summary = part.__doc__.split("\n")[0]
        command = parts.add_parser(part.__name__, help=summary, description=summary)
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
    options.part(options)


if __name__ == "__main__":
    run_script(main)
