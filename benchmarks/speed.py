"""A training step set beside its floor: a stock BertForMaskedLM step on the same batch, in turn, in one run.

python benchmarks/speed.py
python benchmarks/speed.py --layers 12 --hidden 768 --batch 4 --length 128

Absolute times depend on the machine and its neighbours; the ratios, taken pair by pair, hardly do.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.nn.functional as F
import transformers
from transformers import BertConfig, BertForMaskedLM

from diffusion_word_freq import WordFreqArgs, WordFreqDiffusion
from models.bert import BertDenoiser
from process import Batch

MASK, FIRST = 103, 1000
DEFAULTS = {"layers": 4, "hidden": 256, "vocab": 30522, "batch": 16, "length": 64, "rounds": 12, "threads": 2}
VARIANTS = {
    "spindle none, uniform": WordFreqArgs(spindle="none", loss_weighting="uniform"),
    "spindle none, elbo": WordFreqArgs(spindle="none"),
    "spindle paper, uniform": WordFreqArgs(loss_weighting="uniform"),
    "spindle paper, elbo (default)": WordFreqArgs(),
    "spindle released, elbo": WordFreqArgs(spindle="released"),
}


def network(options: argparse.Namespace) -> BertForMaskedLM:
    """A fresh BERT of the asked size."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=options.vocab,
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        intermediate_size=4 * options.hidden,
    )
    return BertForMaskedLM(config).train()


def stock_step(options: argparse.Namespace, x0: torch.Tensor) -> Callable[[], None]:
    """Forward, backward, AdamW of masked language modelling at 15 %, as transformers does it."""
    model = network(options)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        chosen = torch.rand(x0.shape) < 0.15
        logits = model(input_ids=x0.masked_fill(chosen, MASK)).logits
        F.cross_entropy(logits.flatten(0, 1), x0.masked_fill(~chosen, -100).flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def our_step(options: argparse.Namespace, x0: torch.Tensor, args: WordFreqArgs) -> Callable[[], None]:
    """The same with the diffusion loss."""
    denoiser = BertDenoiser(network(options))
    counts = (1e6 / torch.arange(1, options.vocab + 1)).long()
    process = WordFreqDiffusion(args, counts, mask_id=MASK, excluded_ids=(0, 101, 102))
    optimizer = torch.optim.AdamW(denoiser.parameters(), fused=True)
    everything = torch.ones_like(x0, dtype=torch.bool)
    batch = Batch(x0, everything, everything)

    def step() -> None:
        loss = process.loss(denoiser, batch)
        (loss.total / loss.num_tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(step: Callable[[], None]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def main() -> None:
    """Alternate the variants round by round; print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, value in DEFAULTS.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    torch.manual_seed(1)
    x0 = torch.randint(FIRST, options.vocab, (options.batch, options.length))
    steps = {"stock BertForMaskedLM": stock_step(options, x0)}
    steps |= {name: our_step(options, x0, args) for name, args in VARIANTS.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(options.rounds + 2):
        for name, step in steps.items():
            elapsed = seconds(step)
            if round_ >= 2:
                times[name].append(elapsed)
    floor = times["stock BertForMaskedLM"]
    shape = f"{options.layers} x {options.hidden}, {options.batch} x {options.length} tokens, V = {options.vocab}"
    print(f"{shape}, fp32, {options.threads} threads, {options.rounds} rounds")
    print(f"{'training step':32} {'ms':>7} {'ratio to stock (min, median, max)':>36}")
    for name, measured in times.items():
        ratios = sorted(a / b for a, b in zip(measured, floor, strict=True))
        spread = f"{ratios[0]:.2f}  {statistics.median(ratios):.2f}  {ratios[-1]:.2f}"
        print(f"{name:32} {1000 * statistics.median(measured):7.0f} {spread:>36}")


if __name__ == "__main__":
    main()
