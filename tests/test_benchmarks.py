"""benchmarks/: what the README shows is what was measured, and the measuring sticks measure."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TableDenoiser, text_batch
from toy_process import make

from benchmarks import quality, speed, table
from process import SampleArgs

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def test_the_readme_shows_the_committed_figures() -> None:
    readme = (ROOT / "README.md").read_text()
    small = json.loads((RESULTS / "amd-epyc-2-cores.small.json").read_text())
    assert table.table(small) in readme
    assert quality.table(json.loads((RESULTS / "quality.json").read_text())) in readme


def test_ratios_are_of_the_same_round() -> None:
    calls = []
    steps = {"floor": lambda: calls.append("floor"), "other": lambda: calls.append("other")}
    least, median, most = speed.ratios(steps, "floor", 3)["other"]
    assert 0 < least <= median <= most and calls == ["floor", "other"] * 4


def test_counting_counts_rows_and_calls() -> None:
    counted = speed.Counted(TableDenoiser(5))
    make(8, "none").sample(counted, text_batch(torch.zeros(10, 3, dtype=torch.long)), SampleArgs(num_steps=8))
    assert counted.calls <= 3 and 10 <= counted.rows <= 30


@pytest.mark.parametrize("name", speed.TRAINING)
def test_every_training_variant_takes_a_step(name: str) -> None:
    speed.TRAINING[name]({"layers": 1, "hidden": 64, "rows": 2, "length": 8, "vocabulary": 1200})()
