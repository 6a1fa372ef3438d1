"""Every figure of speed and variance beside its floor, and beside the formulation of the released code, in one run.

python benchmarks/speed.py                              # small: 4 layers x 256, vocabulary 30,522, 16 x 64 tokens
python benchmarks/speed.py --shape base --part train    # bert-base, 4 x 128
python benchmarks/speed.py --part elbo --checkpoint out/demo/checkpoint --data out/demo/corpus/test.txt

Variants are timed in turn, round by round, and compared within a round: times depend on the machine and its neighbours,
the ratios hardly do. benchmarks/README.md says what each figure is.
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
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

import checkpoint
import dataloader
from benchmarks import matrix_formulation
from corpus import find_source
from diffusion_word_freq import WordFreqArgs, WordFreqDiffusion
from models.bert import BertDenoiser
from process import Batch, BoundArgs, SampleArgs, step_windows, stratified_timesteps

ROOT = Path(__file__).parent.parent
MASK, FIRST = 103, 1000
SHAPES = {
    "small": {"layers": 4, "hidden": 256, "rows": 16, "length": 64, "rounds": 12, "vocabulary": 30522},
    "base": {"layers": 12, "hidden": 768, "rows": 4, "length": 128, "rounds": 6, "vocabulary": 30522},
}
STEPS = 128
Step = Callable[[], object]


def network(shape: dict) -> BertForMaskedLM:
    """A fresh BERT."""
    torch.manual_seed(0)
    sizes = {"hidden_size": shape["hidden"], "num_hidden_layers": shape["layers"]}
    sizes |= {"num_attention_heads": shape["hidden"] // 64, "intermediate_size": 4 * shape["hidden"]}
    return BertForMaskedLM(BertConfig(vocab_size=shape["vocabulary"], **sizes)).train()


def process_of(shape: dict, **settings: object) -> WordFreqDiffusion:
    """The process over a Zipf vocabulary."""
    counts = (1e6 / torch.arange(1, shape["vocabulary"] + 1)).long()
    return WordFreqDiffusion(WordFreqArgs(**settings), counts, mask_id=MASK, excluded_ids=(0, 101, 102))


def text(shape: dict, rows: int = 0) -> Batch:
    """Random sentences, every token a target."""
    torch.manual_seed(1)
    x0 = torch.randint(FIRST, shape["vocabulary"], (rows or shape["rows"], shape["length"]))
    everything = torch.ones_like(x0, dtype=torch.bool)
    return Batch(x0, everything, everything)


def seconds(step: Step) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def ratios(steps: dict[str, Step], floor: str, rounds: int) -> dict[str, list[float]]:
    """Time of each variant over that of the floor in the same round; [least, median, most] over rounds."""
    for step in steps.values():
        step()
    found: dict[str, list[float]] = {name: [] for name in steps if name != floor}
    for _ in range(rounds):
        times = {name: seconds(step) for name, step in steps.items()}
        for name, ratio in found.items():
            ratio.append(times[name] / times[floor])
    return {name: [min(r), statistics.median(r), max(r)] for name, r in found.items()}


# ---- a training step -------------------------------------------------------------------------------------------------


def trained(model: torch.nn.Module, loss: Callable[[], Tensor]) -> Step:
    """Forward, backward, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def stock(shape: dict) -> Step:
    """Masked language modelling at 15 %, as transformers does it."""
    model, x0 = network(shape), text(shape).input_ids

    def loss() -> Tensor:
        chosen = torch.rand(x0.shape) < 0.15
        logits = model(input_ids=x0.masked_fill(chosen, MASK)).logits
        return F.cross_entropy(logits.flatten(0, 1), x0.masked_fill(~chosen, -100).flatten())

    return trained(model, loss)


def ours(shape: dict, **settings: object) -> Step:
    """The diffusion loss."""
    denoiser, process, batch = BertDenoiser(network(shape)), process_of(shape, **settings), text(shape)

    def loss() -> Tensor:
        found = process.loss(denoiser, batch)
        return found.total / found.num_tokens

    return trained(denoiser, loss)


def matrix(shape: dict) -> Step:
    """The released loss, hybrid term included, in [B, L, V]."""
    denoiser, process, batch = BertDenoiser(network(shape)), process_of(shape), text(shape)

    def loss() -> Tensor:
        t = stratified_timesteps(len(batch.input_ids), process.num_steps)
        kl, cross_entropy = matrix_formulation.term(process, denoiser, batch, t - 1, t)
        return process.num_steps * (kl.sum() + 0.01 * cross_entropy.sum()) / batch.target_mask.sum()

    return trained(denoiser, loss)


TRAINING: dict[str, Callable[[dict], Step]] = {
    "stock": stock,
    "train_ratio": ours,
    "train_ratio_hybrid": lambda shape: ours(shape, hybrid_lambda=0.01),
    "train_ratio_lambda0": lambda shape: ours(shape, spindle="none"),
    "train_ratio_uniform": lambda shape: ours(shape, loss_weighting="uniform"),
    "matrix_train_ratio_hybrid": matrix,
}


def growth(name: str, shape_name: str) -> float:
    """MiB by which two training steps raise the peak of a fresh process."""
    words = [sys.executable, __file__, "--shape", shape_name, "--memory_of", name]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1])


def memory_of(name: str, shape: dict) -> None:
    """In the process of its own: print the growth."""
    step, before = TRAINING[name](shape), peak()
    step(), step()
    print(peak() - before)


def peak() -> float:
    """MiB, the most this process has held (getrusage would count what its parent held before it began)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def part_train(shape: dict, shape_name: str, options: argparse.Namespace) -> dict:
    """Time and memory of a step, and what a larger vocabulary costs."""
    figures = ratios({name: make(shape) for name, make in TRAINING.items()}, "stock", shape["rounds"])
    sizes = {"small": ours({**shape, "vocabulary": 8192}), "whole": ours(shape)}
    figures["vocab_growth"] = ratios(sizes, "small", shape["rounds"])["whole"]
    peaks = {name: growth(name, shape_name) for name in ("stock", "train_ratio", "matrix_train_ratio_hybrid")}
    figures["train_memory_ratio"] = peaks["train_ratio"] / peaks["stock"]
    figures["matrix_train_memory_ratio"] = peaks["matrix_train_ratio_hybrid"] / peaks["stock"]
    return figures


# ---- sampling --------------------------------------------------------------------------------------------------------


class Counted:
    """A denoiser that counts the rows it encodes and the calls."""

    def __init__(self, denoiser: BertDenoiser) -> None:
        self.inner, self.time_conditioned, self.rows, self.calls = denoiser, denoiser.time_conditioned, 0, 0

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        """The inner one's."""
        self.rows, self.calls = self.rows + len(xt), self.calls + 1
        return self.inner.encode(xt, t, attention_mask)

    def decode(self, hidden: Tensor) -> Tensor:
        """The inner one's."""
        return self.inner.decode(hidden)


def overhead(
    shape: dict, rows: int, rounds: int, sampler: Callable, windows: int = STEPS, **settings: object
) -> list[float]:
    """Time of sampling over that of as many row evaluations of a bare forward, encoded and decoded everywhere."""
    denoiser, process = Counted(BertDenoiser(network(shape).eval())), process_of(shape, **settings)
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
    """Calls of the network for 64 rows of 128 tokens at T = 1000, with a network of one layer."""
    shape = {"layers": 1, "hidden": 64, "vocabulary": 2000, "rows": 64, "length": 128}
    denoiser = Counted(BertDenoiser(network(shape).eval()))
    process_of(shape, num_steps=1000, **settings).sample(denoiser, text(shape), SampleArgs(num_steps=1000))
    return denoiser.calls


@torch.no_grad()
def part_sample(shape: dict, shape_name: str, options: argparse.Namespace) -> dict:
    """Overheads over bare forwards, and how many forwards there are."""

    def fast(process: WordFreqDiffusion, *rest: object) -> Tensor:
        return process.sample(*rest)

    none = {"spindle": "none"}
    return {
        "sample_overhead_b4": overhead(shape, 4, 3, fast, **none),
        "sample_overhead_b32": overhead(shape, 32, 3, fast, **none),
        "sample_overhead_spindle": overhead(shape, 32, 3, fast),
        "matrix_sample_overhead_b4": overhead(shape, 4, 3, matrix_formulation.sample, 4, **none),
        "matrix_sample_overhead_spindle": overhead(shape, 4, 3, matrix_formulation.sample, 4),
        "forwards_lambda0": forwards(**none),
        "forwards_spindle": forwards(),
        "matrix_forwards": 1000,  # one a step, whatever happens in it
    }


# ---- the bound -------------------------------------------------------------------------------------------------------


def spread(run: checkpoint.Run, batch: Batch, args: BoundArgs, seeds: int, **settings: object) -> tuple[float, float]:
    """Mean and standard deviation over seeds of the bound of a batch, in nats, at 128 windows."""
    noise = WordFreqArgs(**{**vars(run.process_args), **settings, "posterior": "exact"})
    process = checkpoint.build_process(noise, run.token_counts, run.tokenizer, run.denoiser.vocab_size, of_pairs=False)
    found = []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        found.append(process.nll_bound(run.denoiser, batch, STEPS, args, generator=generator).sum().item())
    return statistics.mean(found), statistics.stdev(found)


@torch.no_grad()
def part_elbo(shape: dict, shape_name: str, options: argparse.Namespace) -> dict:
    """The price of a term, and the error of the estimators at equal price, of a trained model."""
    denoiser, process, batch = BertDenoiser(network(shape).eval()), process_of(shape), text(shape, 8)
    t, s = (torch.full((8,), step) for step in list(step_windows(process.num_steps, STEPS))[STEPS // 2])

    def ours_term() -> Tensor:
        xt = process.corrupt(batch.input_ids, t, batch.target_mask)
        return process.token_terms(denoiser, batch, xt, s, t)[0]

    steps = {
        "bare": lambda: denoiser.decode(denoiser.encode(batch.input_ids, t, batch.attention_mask)),
        "elbo_term_ratio": ours_term,
        "matrix_elbo_term_ratio": lambda: matrix_formulation.term(process, denoiser, batch, s, t)[0],
    }
    figures: dict = ratios(steps, "bare", shape["rounds"])
    if not Path(options.checkpoint).exists():
        print(f"no {options.checkpoint}: the spread of the estimators needs a trained model", file=sys.stderr)
        return figures
    run = checkpoint.load(options.checkpoint, torch.device("cpu"))
    source = find_source(options.data, "test")
    held_out = dataloader.tokenize(source, run.tokenizer, run.max_length - 2, "out/cache")
    sentences = held_out.batch(held_out.lengths.argsort()[-8:], run.tokenizer)
    longest = int(sentences.target_mask.sum(1).max())  # forwards of a trajectory, at most
    trajectories = max(1, STEPS // longest)
    for name, spindle in (("lambda0", "none"), ("spindle", "paper")):
        published = spread(run, sentences, BoundArgs(), options.seeds, spindle=spindle)
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
    """The share of slots that hold tokens, [CLS] and [SEP] among them, of LM1B's lengths cut at 64."""
    lengths = json.loads((ROOT / "tests" / "golden" / "lm1b_lengths.json").read_text())["histogram"]
    widths = np.minimum(np.repeat(np.arange(len(lengths)), lengths), 62) + 2
    batches = dataloader.length_buckets(widths, 64, np.random.default_rng(0), 64 * 64)
    return {"slots_buckets": float(widths.sum() / sum(len(batch) * widths[batch].max() for batch in batches))}


PARTS = {"slots": part_slots, "train": part_train, "sample": part_sample, "elbo": part_elbo}


def show(figures: dict) -> None:
    """Names and medians, with the least and most where there are rounds."""
    for name, value in figures.items():
        if isinstance(value, list) and len(value) == 3:
            print(f"{name:32} {value[1]:8.2f}   ({value[0]:.2f} to {value[2]:.2f})")
        elif isinstance(value, list):
            print(f"{name:32} {'  '.join(f'{v:.2f}' for v in value)}")
        else:
            print(f"{name:32} {value:8.3f}" if isinstance(value, float) else f"{name:32} {value:8}")


def main() -> None:
    """Run the parts; print, and write benchmarks/results/<machine>.<shape>.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="small")
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
    shape = SHAPES[options.shape]
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
