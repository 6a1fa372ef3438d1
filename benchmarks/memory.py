"""Memory of a bert-base training step by micro-batch size, in bf16 or, on a CPU without it, in fp32.

python benchmarks/memory.py 4 8 16
python benchmarks/memory.py 16 --lora_rank 16      # with LoRA adapters in the frozen network

On a GPU the figure is the allocator's peak. On the CPU it is the sum of weights, gradients, AdamW's state and the
tensors kept for the backward pass, a lower bound: the allocator's own memory and short-lived tensors are not in it.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from data.batch import Batch
from diffusion.process import Vocabulary
from diffusion.process_options import WordFreqArgs
from diffusion_word_freq import WordFreqDiffusion
from models.bert import BertDenoiser
from models.lora import add_lora
from utils.device import autocast, pick_precision

LENGTH, VOCABULARY = 128, 30522


def measure(batch_size: int, lora_rank: int = 0) -> float:
    """Return the memory in GiB of a training step with the paper's spindle and the exact bound."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    denoiser = BertDenoiser(BertForMaskedLM(BertConfig()).train())
    if lora_rank:
        add_lora(denoiser, lora_rank, "auto")
    denoiser.to(device).train().autocast = autocast(device, precision_of(device))
    counts = (1e6 / torch.arange(1, VOCABULARY + 1)).long()
    vocabulary = Vocabulary(len(counts), 103, excluded_ids=(0, 101, 102))
    process = WordFreqDiffusion(WordFreqArgs(), counts, vocabulary).to(device)
    x0 = torch.randint(1000, VOCABULARY, (batch_size, LENGTH), device=device)
    batch = Batch(x0, torch.ones_like(x0, dtype=torch.bool), torch.ones_like(x0, dtype=torch.bool))
    if device.type == "cpu":
        return held(denoiser, lambda: process.loss(denoiser, batch)) / 2**30
    optimizer = torch.optim.AdamW([p for p in denoiser.parameters() if p.requires_grad], fused=True)
    for _ in range(2):
        loss = process.loss(denoiser, batch)
        (loss.total / loss.num_tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cuda.max_memory_allocated() / 2**30


def held(module: nn.Module, forward: Callable[[], object]) -> int:
    """Return the bytes that a step holds: weights, gradients, AdamW's two means, and what the backward pass reads."""
    weights = sum(p.nbytes for p in module.parameters())
    learning = sum(p.nbytes for p in module.parameters() if p.requires_grad)
    known = {p.untyped_storage().data_ptr() for p in module.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return weights + 3 * learning + sum(storage.nbytes() for storage in saved.values())


def precision_of(device: torch.device) -> str:
    """Return bf16, or fp32 on a CPU without bf16 instructions."""
    return "bf16" if device.type == "cuda" else pick_precision("auto", device)


def main() -> None:
    """Measure each size in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sizes", nargs="*", type=int, default=[8, 16, 32], help="sentences of 128 tokens in a step")
    parser.add_argument("--lora_rank", type=int, default=0, help="rank of LoRA adapters; 0: the network is trained")
    parser.add_argument("--one", action="store_true", help="measure the one size in this process")
    options = parser.parse_args()
    if options.one:
        print(f"{options.sizes[0]:>4} x {LENGTH}: {measure(options.sizes[0], options.lora_rank):6.2f} GiB")
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    adapters = f"LoRA of rank {options.lora_rank}, " if options.lora_rank else ""
    print(f"bert-base, {adapters}{precision_of(device)}, AdamW, memory on {device.type}", flush=True)
    for size in options.sizes:
        rank = ["--lora_rank", str(options.lora_rank)]
        subprocess.run([sys.executable, __file__, "--one", str(size), *rank], check=True)


if __name__ == "__main__":
    main()
