"""Throughput of a machine: tokens trained on and samples drawn per second, share of peak FLOP/s, and memory.

python benchmarks/throughput.py                                    # bert-base, 128 tokens, on the GPU if there is one
python benchmarks/throughput.py --rows 64 128 256 --compile        # with settings of main.py
python benchmarks/throughput.py --shape small --rows 32 --samples 64

The peak is that of a large matrix product on the same machine in the same precision, or --peak_tflops.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import Tensor

from benchmarks.variants import SHAPES, STEPS, Counted, Step, network, process_of, text
from data.batch import Batch
from diffusion.options import SampleArgs
from models.attention import fit_to_device
from models.bert import BertDenoiser
from models.options import NetworkArgs
from utils.device import autocast, pick_device, set_up_cpu


def rate(step: Step, device: torch.device, seconds: float) -> float:
    """Return steps per second, after three steps of warm-up."""
    for _ in range(3):
        step()
    finish(device)
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        step()
        count += 1
        finish(device)
    return count / (time.perf_counter() - begin)


def finish(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_peak(device: torch.device, precision: str) -> float:
    """Return the FLOP/s of a large matrix product."""
    size = 8192 if device.type == "cuda" else 2048
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    a = torch.randn(size, size, device=device).to(kind)
    return 2 * size**3 * rate(lambda: a @ a, device, 2.0)


def step_flops(denoiser: BertDenoiser, tokens: int, length: int, masked: int) -> int:
    """Return FLOPs of forward and backward: matrices, attention, and at masked positions what is left out elsewhere.

    Recomputation is excluded.
    """
    matrices = sum(p.numel() for n, p in denoiser.body.named_parameters() if p.ndim == 2 and "embeddings" not in n)
    config = denoiser.network.config
    attention = 2 * config.num_hidden_layers * length * config.hidden_size
    head = config.hidden_size * (config.vocab_size + config.hidden_size)
    sparse = denoiser.last_layer.num_weights if denoiser.last_layer else 0
    return 6 * (tokens * (matrices - sparse + attention) + masked * (sparse + head))


def settle(denoiser: BertDenoiser, device: torch.device, options: argparse.Namespace) -> None:
    """Set precision, attention and compilation as main.py does."""
    denoiser.autocast = autocast(device, options.precision)
    settings = NetworkArgs(attn_implementation=options.attn_implementation, compile=options.compile)
    fit_to_device(denoiser, settings, device, options.precision)


class Training:
    """Training step of main.py on random sentences without padding."""

    def __init__(self, shape: dict, device: torch.device, options: argparse.Namespace) -> None:
        self.denoiser = BertDenoiser(network(shape)).to(device)
        settle(self.denoiser, device, options)
        self.process, self.batch = process_of(shape).to(device), text(shape).to(device)
        self.process.fused_loss = options.fused_loss
        self.optimizer = torch.optim.AdamW(self.denoiser.parameters(), fused=True)

    def __call__(self) -> None:
        """Run forward, backward and AdamW."""
        loss = self.process.loss(self.denoiser, self.batch)
        (loss.total / loss.num_tokens).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def training(options: argparse.Namespace, shape: dict, device: torch.device, peak: float) -> dict:
    """Return tokens per second and share of peak; on CUDA also memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    step = Training(shape, device, options)
    tokens = shape["rows"] * shape["length"]
    per_second = rate(step, device, options.seconds)
    flops = step_flops(step.denoiser, tokens, shape["length"], tokens // 2) * per_second  # half are masked on average
    found = {"rows": shape["rows"], "tokens_per_second": per_second * tokens, "tflops": flops / 1e12}
    found["share_of_peak"] = flops / peak
    if device.type == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return found


@torch.no_grad()
def sampling(options: argparse.Namespace, shape: dict, device: torch.device) -> dict:
    """Return samples per second, and time / bare forward time of equal rows, encoded and decoded at every position."""
    denoiser = BertDenoiser(network(shape).eval()).to(device)
    settle(denoiser, device, options)
    counted, batch = Counted(denoiser), text(shape, options.samples).to(device)
    t = torch.ones(options.samples, dtype=torch.long, device=device)

    def bare(batch: Batch = batch) -> Tensor:
        return denoiser.decode(denoiser.encode(batch.input_ids, t, batch.attention_mask))

    found, bare_rows = {}, options.samples * rate(bare, device, options.seconds)
    for name, spindle in (("lambda0", "none"), ("spindle", "paper")):
        process = process_of(shape, spindle=spindle).to(device)
        process.sample(denoiser, batch.rows(slice(0, 2)), SampleArgs(num_steps=STEPS))
        counted.rows = 0
        begin = time.perf_counter()
        process.sample(counted, batch, SampleArgs(num_steps=STEPS))
        finish(device)
        spent = time.perf_counter() - begin
        found[f"samples_per_second_{name}"] = options.samples / spent
        found[f"sample_overhead_{name}"] = spent * bare_rows / counted.rows
    return found


def main() -> None:
    """Print one line for each number of rows, then one for sampling."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="base")
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[16], help="sentences of a step; several are tried in turn"
    )
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--samples", type=int, default=256, help="drawn together; 0: none")
    parser.add_argument("--seconds", type=float, default=10, help="measured, after three steps to warm up")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="bf16")
    parser.add_argument("--attn_implementation", default="auto")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--fused_loss", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--peak_tflops", type=float, default=0, help="0: measured")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--machine", default="", help="keep the figures in benchmarks/results/MACHINE.throughput.json")
    options = parser.parse_args()
    set_up_cpu(options.threads)
    device = pick_device(options.device)
    peak = options.peak_tflops * 1e12 or matmul_peak(device, options.precision)
    print(
        f"{device}, {options.precision}: peak {peak / 1e12:.3g} TFLOP/s" + (" (given)" if options.peak_tflops else "")
    )
    named = ("shape", "length", "precision", "attn_implementation", "compile", "fused_loss")
    key = ", ".join(f"{name} {getattr(options, name)}" for name in named)
    figures: dict = {"peak_tflops": peak / 1e12, "train": []}
    for rows in options.rows:
        shape = {**SHAPES[options.shape], "rows": rows, "length": options.length}
        try:
            figures["train"].append(training(options, shape, device, peak))
        except torch.OutOfMemoryError:
            figures["train"].append({"rows": rows, "peak_gib": None})
        print(json.dumps(figures["train"][-1]), flush=True)
    if options.samples:
        figures["sample"] = sampling(options, {**SHAPES[options.shape], "length": options.length}, device)
        print(json.dumps(figures["sample"]))
    if options.machine:
        path = Path(__file__).parent / "results" / f"{options.machine}.throughput.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**known, key: figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
