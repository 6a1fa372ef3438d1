"""Print the table of runs/pretrained.sh.

python benchmarks/pretrained_table.py out/pretrained pretrained-1 pretrained-2 small-1 small-2
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from training.outcome import verdict_in_log
from utils.command_line import run_script
from utils.errors import UserError
from utils.figures import spread

COLUMNS = {"nats_per_sequence": 2, "bits_per_token": 3, "ppl_word": 1}
"""Figures of compute_elbo.py, and their decimals."""


def table(out: Path, names: Sequence[str]) -> str:
    """Return a line for each network: its means over the trainings NETWORK-SEED, with their standard errors."""
    lines = ["| network | seeds | steps | nats per sequence | bits/token | PPL per word |", "|---|---|---|---|---|---|"]
    for network in dict.fromkeys(name.rsplit("-", 1)[0] for name in names):
        trainings = [name for name in names if name.rsplit("-", 1)[0] == network]
        reports = [read_json(out / f"{name}.json", *COLUMNS) for name in trainings]
        cells = [network, str(len(trainings)), f"{statistics.mean(steps_of(out / name) for name in trainings):,.0f}"]
        cells += [spread([report[key] for report in reports], digits) for key, digits in COLUMNS.items()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def steps_of(folder: Path) -> int:
    """Return the number of steps of a training."""
    return read_json(folder / "checkpoint-last" / "process.json", "facts")["facts"]["step"]


def verdicts(out: Path, names: Sequence[str]) -> list[str]:
    """Return a warning for each training that diverged or learned nothing, as main.py found."""
    found = {name: verdict_in_log(out / name / "log.jsonl") for name in names}
    return [f"warning: {name}: {verdict}" for name, verdict in found.items() if verdict]


def read_json(path: Path, *keys: str) -> dict:
    """Read a report.

    Raises:
        UserError: if it is no JSON object with these keys.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not {*keys} <= {*found}:
        wanted = f"JSON object with {', '.join(keys)}" if keys else "JSON object"
        raise UserError(f"{path}: no {wanted}; remove it and run the script again")
    return found


def main() -> None:
    """Print the table, and warnings below it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder of runs/pretrained.sh")
    parser.add_argument("names", nargs="+", metavar="NETWORK-SEED", help="finished trainings in it")
    options = parser.parse_args()
    print("\n".join([table(options.out, options.names), *verdicts(options.out, options.names)]))


if __name__ == "__main__":
    run_script(main)
