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

from utils.figures import spread

COLUMNS = {"nats_per_sequence": 2, "bits_per_token": 3, "ppl_word": 1}
"""Figures of compute_elbo.py, and their decimals."""


def table(out: Path, names: Sequence[str]) -> str:
    """Return a line for each network: its means over the trainings NETWORK-SEED, with their standard errors."""
    lines = ["| network | seeds | steps | nats per sequence | bits/token | PPL per word |", "|---|---|---|---|---|---|"]
    for network in dict.fromkeys(name.rsplit("-", 1)[0] for name in names):
        trainings = [name for name in names if name.rsplit("-", 1)[0] == network]
        reports = [json.loads((out / f"{name}.json").read_text()) for name in trainings]
        cells = [network, str(len(trainings)), f"{statistics.mean(steps_of(out / name) for name in trainings):,.0f}"]
        cells += [spread([report[key] for report in reports], digits) for key, digits in COLUMNS.items()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def steps_of(folder: Path) -> int:
    """Return the number of steps of a training."""
    return json.loads((folder / "checkpoint-last" / "process.json").read_text())["facts"]["step"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder of runs/pretrained.sh")
    parser.add_argument("names", nargs="+", metavar="NETWORK-SEED", help="finished trainings in it")
    options = parser.parse_args()
    try:
        print(table(options.out, options.names))
    except OSError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")


if __name__ == "__main__":
    main()
