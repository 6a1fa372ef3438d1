"""Peak memory of a bert-base training step in bf16, by micro-batch size.

python benchmarks/memory.py 4 8 16

On a GPU the figure is the allocator's peak. On the CPU it is the growth of resident memory, in a separate process per
size. The CPU figure is an upper estimate, since a GPU keeps fewer intermediates of attention.
"""

import resource
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from transformers import BertConfig, BertForMaskedLM

from data.batch import Batch
from diffusion.process import Vocabulary
from diffusion_word_freq import WordFreqArgs, WordFreqDiffusion
from models.bert import BertDenoiser
from utils.device import autocast

LENGTH, VOCABULARY = 128, 30522


def measure(batch_size: int) -> float:
    """Return the peak in GiB over two training steps with the paper's spindle and the exact bound."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    denoiser = BertDenoiser(BertForMaskedLM(BertConfig()).train()).to(device)
    denoiser.autocast = autocast(device, "bf16")
    counts = (1e6 / torch.arange(1, VOCABULARY + 1)).long()
    process = WordFreqDiffusion(WordFreqArgs(), counts, Vocabulary(len(counts), 103, excluded_ids=(0, 101, 102))).to(
        device
    )
    optimizer = torch.optim.AdamW(denoiser.parameters(), fused=True)
    x0 = torch.randint(1000, VOCABULARY, (batch_size, LENGTH), device=device)
    everything = torch.ones_like(x0, dtype=torch.bool)
    for _ in range(2):
        loss = process.loss(denoiser, Batch(x0, everything, everything))
        (loss.total / loss.num_tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 - before


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(f"{int(sys.argv[2]):>4} x {LENGTH}: {measure(int(sys.argv[2])):6.2f} GiB")
    else:
        print(f"bert-base, bf16 autocast, AdamW, peak on {'cuda' if torch.cuda.is_available() else 'cpu'}", flush=True)
        for size in sys.argv[1:] or ["8", "16", "32"]:
            subprocess.run([sys.executable, __file__, "--one", size], check=True)
