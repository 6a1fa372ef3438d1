"""benchmarks/: the docs show the committed figures, and the benchmarks measure their definitions."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import family, memory, quality, speed, table, throughput, variants
from diffusion.options import SampleArgs
from models.bert import BertDenoiser
from tests.conftest import ROOT, TableDenoiser, text_batch
from tests.toy_process import make

RESULTS = ROOT / "benchmarks" / "results"


def test_the_docs_show_the_committed_figures() -> None:
    speed_page, results_page = ((ROOT / "docs" / name).read_text() for name in ("speed.md", "results.md"))
    small = json.loads((RESULTS / "amd-epyc-2-cores.small.json").read_text())
    assert table.table(small) in speed_page
    assert quality.table(json.loads((RESULTS / "quality.json").read_text())) in results_page
    costs = family.rows_of(json.loads((RESULTS / "family.json").read_text())).splitlines()
    assert all(line in speed_page for line in costs if line.startswith("|"))


def test_ratios_compare_times_of_the_same_round() -> None:
    calls = []
    steps = {"floor": lambda: calls.append("floor"), "other": lambda: calls.append("other")}
    least, median, most = speed.ratios(steps, "floor", 3)["other"]
    assert 0 < least <= median <= most and calls == ["floor", "other"] * 4


def test_the_counting_denoiser_counts_rows_and_calls() -> None:
    counted = variants.Counted(TableDenoiser(5))
    make(8, "none").sample(counted, text_batch(torch.zeros(10, 3, dtype=torch.long)), SampleArgs(num_steps=8))
    assert counted.calls <= 3 and 10 <= counted.rows <= 30


SHAPE = {"layers": 1, "hidden": 64, "rows": 2, "length": 8, "vocabulary": 1200}


@pytest.mark.parametrize("kind", ["TRAINING", "FUSED", "SAMPLING", "TERMS"])
def test_every_variant_takes_a_step(kind: str) -> None:
    for maker in getattr(variants, kind).values():
        maker(SHAPE)()


@pytest.mark.parametrize("batching", ["random", "buckets", "packing"])
def test_a_step_on_sentences_of_many_lengths_returns_its_number_of_tokens(batching: str) -> None:
    step = variants.on_lengths({**SHAPE, "rows": 32}, batching)  # four rows of 64 slots
    tokens = [step() for _ in range(3)]
    assert all(12 <= n <= 256 for n in tokens)
    assert min(tokens) > 0.9 * 256 if batching == "packing" else len(set(tokens)) > 1


def test_the_share_of_filled_slots_is_computed_over_all_sentences() -> None:
    shares = speed.part_slots({}, "small", None)
    assert (
        0.4 < shares["slots_random"] < 0.7 and shares["slots_buckets"] >= 0.97 and 0.98 <= shares["slots_packing"] < 1
    )


def test_the_memory_of_a_step_counts_each_tensor_once() -> None:
    network = torch.nn.Sequential(
        torch.nn.Linear(10, 20, bias=False), torch.nn.ReLU(), torch.nn.Linear(20, 5, bias=False)
    )
    network[0].requires_grad_(False)
    x = torch.randn(7, 10)
    # of the backward pass: the input of the trained map, which is the output of ReLU; weights are not counted again
    assert memory.held(network, lambda: network(x).sum()) == 4 * (200 + 100 + 3 * 100 + 7 * 20)
    network[0].requires_grad_(True)
    assert memory.held(network, lambda: network(x).sum()) == 4 * (4 * 300 + 7 * 20 + 7 * 10)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.slow
def test_the_memory_of_a_step_includes_what_it_allocates() -> None:
    """In a separate process, as it is used: the memory that other tests freed would be taken first."""
    program = """
import torch

from benchmarks import speed, variants

kept = []
variants.TERMS["large"] = lambda shape: lambda: kept.append(torch.ones(2**26))  # 256 MiB a step
speed.memory_of("TERMS.large", {})"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert float(done.stdout) == pytest.approx(512, abs=60)


def test_throughput_counts_the_flops_of_a_step() -> None:
    shape = {**SHAPE, "layers": 2, "length": 16}
    denoiser = BertDenoiser(variants.network(shape))
    layer = 4 * 64 * 64 + 2 * 64 * 256  # four attention matrices, two feed-forward matrices
    attention = 2 * 16 * 64  # per token with 16 keys: scores and weighted values
    head = 64 * 64 + 64 * 1200
    sparse = layer - 3 * 64 * 64  # after the last attention only masked positions are computed
    everywhere = 2 * (layer + attention) - sparse
    assert throughput.step_flops(denoiser, 32, 16, 10) == 6 * (32 * everywhere + 10 * (sparse + head))


def test_throughput_reports_rates_and_shares_of_the_peak(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(variants.SHAPES, "small", SHAPE)
    flags = "throughput.py --shape small --rows 2 4 --length 8 --samples 2 --seconds 0.1 --device cpu --fused_loss"
    flags += " --attn_implementation eager --precision fp32"
    monkeypatch.setattr(sys, "argv", [*flags.split(), "--peak_tflops", "0.5", "--threads", "1"])
    implementations, fit = [], throughput.fit_to_device

    def recorded_fit(denoiser: BertDenoiser, *rest: object) -> None:
        fit(denoiser, *rest)
        implementations.append(denoiser.network.config._attn_implementation)

    monkeypatch.setattr(throughput, "fit_to_device", recorded_fit)
    throughput.main()
    first, *rows, sampling = capsys.readouterr().out.splitlines()
    assert first.endswith("peak 0.5 TFLOP/s (given)") and [json.loads(row)["rows"] for row in rows] == [2, 4]
    for row in map(json.loads, rows):
        assert implementations.pop() == "eager"
        assert row["share_of_peak"] == pytest.approx(row["tflops"] / 0.5) and row["tokens_per_second"] > 0
    assert all(value > 0 for value in json.loads(sampling).values())


def test_the_cost_of_every_process_is_measured_on_a_network_of_its_kind() -> None:
    small = {**SHAPE, "rounds": 1}
    figures = {**family.part_train(small), **family.part_sample(small, 5), **family.part_long(small, 8, 16)}
    assert len([name for name in figures if name.startswith("train ")]) == len(family.TRAINED)
    for name, sampler in family.SAMPLED:
        _, calls, share = figures[f"sample {name} {sampler} 1"]
        assert 1 <= calls <= 8 and share > 0, (name, sampler)
    assert figures["sample mdlm released 1"][:2] == [pytest.approx(751.8, abs=0.1), 65] and figures["long ratio"] > 0
    assert all(name in family.rows_of(figures) for name in family.TRAINED)
