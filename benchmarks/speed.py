"""Figures of speed and variance against their lower bounds and against the released code's formulation.

python benchmarks/speed.py                              # small: 4 layers x 256, vocabulary 30,522, 16 x 64 tokens
python benchmarks/speed.py --shape base --part train    # bert-base, 4 x 128
python benchmarks/speed.py --part elbo --checkpoint out/demo/checkpoint --data out/demo/corpus/test.txt

Variants are timed in turn and compared within a round, since times depend on the machine's load and ratios hardly do.
benchmarks/README.md defines each figure.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
import transformers
from torch import Tensor

from benchmarks import matrix_formulation, variants
from benchmarks.variants import STEPS, Step, fast, network, process_of, text
from checkpoint.folder import load_checkpoint
from checkpoint.model_parts import ModelParts, build_process
from data.batch import Batch
from data.batching import batch_indices
from data.corpus import find_source
from data.options import DataArgs
from data.tokenized_text import tokenize
from diffusion.options import BoundArgs, SampleArgs
from diffusion.process_options import WordFreqArgs
from models.bert import BertDenoiser
from models.packing import next_fit


def seconds(step: Step) -> float:
    """Return the wall time of one call."""
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def ratios(steps: dict[str, Step], floor: str, rounds: int) -> dict[str, list[float]]:
    """Return time / time of `floor` in the same round, for each variant: [minimum, median, maximum] over rounds."""
    for step in steps.values():
        step()
    found: dict[str, list[float]] = {name: [] for name in steps if name != floor}
    for _ in range(rounds):
        times = {name: seconds(step) for name, step in steps.items()}
        for name, ratio in found.items():
            ratio.append(times[name] / times[floor])
    return {name: [min(r), statistics.median(r), max(r)] for name, r in found.items()}


def growths(kind: str, names: dict[str, str], shape_name: str) -> dict[str, float]:
    """Return peak memory growth over two steps / that of the floor, each variant in a separate process.

    Args:
        kind: name of a dictionary of variants.py, such as SAMPLING.
        names: figure names by variant; the first variant is the floor.
        shape_name: name of the network's shape.
    """
    peaks = []
    for name in names:
        words = [sys.executable, __file__, "--shape", shape_name, "--memory_of", f"{kind}.{name}"]
        peaks.append(float(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1]))
    return {figure: mine / peaks[0] for figure, mine in zip(list(names.values())[1:], peaks[1:], strict=True)}


def memory_of(name: str, shape: dict) -> None:
    """Print the growth in MiB; runs in a separate process."""
    kind, name = name.split(".")
    step, before = getattr(variants, kind)[name](shape), peak()
    step(), step()
    print(peak() - before)


def peak() -> float:
    """Return the peak resident memory of this process in MiB; getrusage would include the parent's before the fork."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


# ---- a training step -------------------------------------------------------------------------------------------------


def part_train(shape: dict, shape_name: str, options: argparse.Namespace) -> dict:
    """Return time and memory of a step, with a larger vocabulary and with a fused loss."""
    steps = {name: make(shape) for name, make in variants.TRAINING.items() if "matrix" not in name}
    figures = ratios(steps, "stock", 2 * shape["rounds"])
    released = {"stock": steps["stock"], "matrix_train_ratio_hybrid": variants.matrix(shape)}
    figures |= ratios(released, "stock", shape["rounds"] // 2)  # separately, since its freed memory disturbs the others
    for figure, make in (("vocab_growth", variants.ours), ("matrix_vocab_growth", variants.matrix)):
        sizes = {"small": make({**shape, "vocabulary": 8192}), "whole": make(shape)}
        figures[figure] = ratios(sizes, "small", shape["rounds"] // 2)["whole"]
    names = {"stock": "", "train_ratio": "train_memory_ratio", "matrix_train_ratio_hybrid": "matrix_train_memory_ratio"}
    figures |= growths("TRAINING", names, shape_name)
    if shape_name == "small":
        figures |= ratios({name: make(shape) for name, make in variants.FUSED.items()}, "whole", shape["rounds"] // 2)
        figures |= growths("FUSED", {"whole": "", "fused_ratio": "fused_memory_ratio"}, shape_name)
        figures |= tokens_per_second(shape)
    return figures


def tokens_per_second(shape: dict) -> dict:
    """Return tokens trained on per second / those of random batches, for sentences of many lengths."""
    steps = {way: variants.on_lengths(shape, way) for way in ("random", "buckets", "packing")}
    found: dict[str, list[float]] = {way: [] for way in steps}
    for round_ in range(2 * shape["rounds"] + 1):
        for way, step in steps.items():
            begin = time.perf_counter()
            tokens = step()
            if round_:
                found[way].append(tokens / (time.perf_counter() - begin))
    floor = statistics.median(found["random"])
    return {f"tokens_ratio_{way}": statistics.median(found[way]) / floor for way in ("buckets", "packing")}


# ---- sampling --------------------------------------------------------------------------------------------------------


def overhead(
    shape: dict, rows: int, rounds: int, sampler: Callable, windows: int = STEPS, **settings: object
) -> list[float]:
    """Return sampling time / bare forward time of equal rows, encoded and decoded at every position."""
    denoiser, process = variants.Counted(BertDenoiser(network(shape).eval())), process_of(shape, **settings)
    batch, found = text(shape, rows), []
    t = torch.ones(rows, dtype=torch.long)

    def bare() -> Tensor:
        return denoiser.decode(denoiser.encode(batch.input_ids, t, batch.attention_mask))

    for _ in range(rounds):
        denoiser.rows = 0
        spent = seconds(lambda: sampler(process, denoiser, batch, SampleArgs(num_steps=windows)))
        evaluated = denoiser.rows
        found.append(spent / (evaluated / rows * statistics.median(seconds(bare) for _ in range(9))))
    return [min(found), statistics.median(found), max(found)]


def forwards(**settings: object) -> int:
    """Return network calls for 64 rows of 128 tokens at T = 1000, with a network of one layer."""
    shape = {"layers": 1, "hidden": 64, "vocabulary": 2000, "rows": 64, "length": 128}
    denoiser = variants.Counted(BertDenoiser(network(shape).eval()))
    process_of(shape, num_steps=1000, **settings).sample(denoiser, text(shape), SampleArgs(num_steps=1000))
    return denoiser.calls


@torch.no_grad()
def part_sample(shape: dict, shape_name: str, options: argparse.Namespace) -> dict:
    """Return overheads over bare forward passes, and numbers of forward passes."""
    none = {"spindle": "none"}
    return {
        "sample_overhead_b4": overhead(shape, 4, 3, fast, **none),
        "sample_overhead_b32": overhead(shape, 32, 3, fast, **none),
        "sample_overhead_spindle": overhead(shape, 32, 3, fast),
        "matrix_sample_overhead_b4": overhead(shape, 4, 3, matrix_formulation.sample, 4, **none),
        "matrix_sample_overhead_spindle": overhead(shape, 4, 3, matrix_formulation.sample, 4),
        "forwards_lambda0": forwards(**none),
        "forwards_spindle": forwards(),
        "matrix_forwards": 1000,  # one per step
        **growths(
            "SAMPLING",
            {"bare": "", "sample": "sample_memory_ratio", "matrix_sample": "matrix_sample_memory_ratio"},
            shape_name,
        ),
    }


# ---- the bound -------------------------------------------------------------------------------------------------------


def spread(run: ModelParts, batch: Batch, args: BoundArgs, seeds: int, **settings: object) -> tuple[float, float]:
    """Return mean and standard deviation over seeds of a batch's bound, in nats, at 128 windows."""
    noise = WordFreqArgs(**{**vars(run.process.args), **settings, "posterior": "exact"})
    process = build_process(noise, run.token_counts, run.tokenizer, run.denoiser.vocab_size, of_pairs=False)
    found = []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        found.append(process.bound(run.denoiser, batch, STEPS, args, generator=generator).total.sum().item())
    return statistics.mean(found), statistics.stdev(found)


@torch.no_grad()
def part_elbo(shape: dict, shape_name: str, options: argparse.Namespace) -> dict:
    """Return the cost of a term, and the estimators' error at equal cost, for a trained model."""
    figures: dict = ratios({name: make(shape) for name, make in variants.TERMS.items()}, "bare", shape["rounds"])
    names = {"bare": "", "elbo_term_ratio": "elbo_memory_ratio", "matrix_elbo_term_ratio": "matrix_elbo_memory_ratio"}
    figures |= growths("TERMS", names, shape_name)
    if not Path(options.checkpoint).exists():
        print(f"no {options.checkpoint}: the spread of the estimators needs a trained model", file=sys.stderr)
        return figures
    run = load_checkpoint(options.checkpoint, torch.device("cpu"))
    source = find_source(options.data, "test")
    held_out = tokenize(source, run.tokenizer, run.max_length - 2, "out/cache")
    sentences = held_out.batch(held_out.lengths.argsort()[-8:], run.tokenizer)
    longest = int(sentences.target_mask.sum(1).max())  # largest number of forward passes of a trajectory
    trajectories = max(1, STEPS // longest)
    for name, spindle in (("lambda0", "none"), ("spindle", "paper")):
        published = spread(run, sentences, BoundArgs("windows"), options.seeds, spindle=spindle)
        others = {
            "": BoundArgs(estimator="trajectory", evaluations=trajectories),
            "_stratified": BoundArgs(estimator="stratified", evaluations=STEPS),
        }
        if spindle == "none":
            others["_masked_count"] = BoundArgs(estimator="masked-count", evaluations=STEPS)
        figures[f"elbo_sd_{name}_windows"] = published[1] / published[0]
        for label, args in others.items():
            mean, sd = spread(run, sentences, args, options.seeds, spindle=spindle)
            figures[f"elbo_sd_ratio_{name}{label}"] = sd / published[1]
            figures[f"elbo_sd_ratio_{name}{label}_means"] = [published[0], mean]
    return figures


# ---- batches ---------------------------------------------------------------------------------------------------------


def part_slots(shape: dict, shape_name: str, options: argparse.Namespace) -> dict:
    """Return the share of slots that hold tokens, [CLS] and [SEP] included, for LM1B's lengths cut at 64."""
    widths, rng = variants.lm1b_widths(), np.random.default_rng(0)
    shuffled = rng.permutation(widths)
    batches = {"random": np.array_split(shuffled, len(shuffled) // 64)}
    for way in ("buckets", "packing"):
        args = DataArgs("", max_length=64, max_tokens=64 * 64, packing=way == "packing")
        batches[way] = [widths[batch] for batch in batch_indices(widths, args, rng)]

    def slots(way: str, batch: np.ndarray) -> int:
        return 64 * next_fit(batch.tolist(), 64)[1] if way == "packing" else len(batch) * int(batch.max())

    return {f"slots_{way}": int(widths.sum()) / sum(slots(way, b) for b in dealt) for way, dealt in batches.items()}


PARTS = {"slots": part_slots, "train": part_train, "sample": part_sample, "elbo": part_elbo}


def show(figures: dict) -> None:
    """Print names and medians, with minimum and maximum over rounds."""
    for name, value in figures.items():
        if isinstance(value, list) and len(value) == 3:
            print(f"{name:32} {value[1]:8.2f}   ({value[0]:.2f} to {value[2]:.2f})")
        elif isinstance(value, list):
            print(f"{name:32} {'  '.join(f'{v:.2f}' for v in value)}")
        else:
            print(f"{name:32} {value:8.3f}" if isinstance(value, float) else f"{name:32} {value:8}")


def main() -> None:
    """Run the parts, print them and write benchmarks/results/<machine>.<shape>.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=variants.SHAPES, default="small")
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=40, help="repeats of the bound")
    parser.add_argument("--checkpoint", default="out/demo/checkpoint", help="a trained model (bash run.sh demo)")
    parser.add_argument("--data", default="out/demo/corpus", help="held-out text for it")
    parser.add_argument("--machine", default=platform.node(), help="names the file of results")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    shape = variants.SHAPES[options.shape]
    if options.memory_of:
        memory_of(options.memory_of, shape)
        return
    figures: dict = {}
    for name, part in PARTS.items():
        if options.part in (name, "all"):
            figures |= part(shape, options.shape, options)
    print(json.dumps(figures)) if options.json else show(figures)
    path = Path(__file__).parent / "results" / f"{options.machine}.{options.shape}.json"
    path.parent.mkdir(exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
