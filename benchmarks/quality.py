"""Quality and diversity of samples, and the bound, against the number of reverse steps and forward passes.

python benchmarks/quality.py --checkpoint out/demo/checkpoint --data out/demo/corpus
"""

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.variants import Counted
from checkpoint.folder import load_checkpoint
from checkpoint.model_parts import ModelParts
from checkpoint.requests import SampleRequest
from checkpoint.rounds import Scoring
from checkpoint.sampling import decode, sample_rows
from data.corpus import find_source, read_sentences
from data.tokenized_text import tokenize
from diffusion.options import BoundArgs, SampleArgs
from evaluation import text_metrics
from evaluation.likelihood import pick, score_text
from utils.device import set_up_cpu
from utils.figures import number

STEPS = (16, 64, 128, 1000, math.inf)
RESULTS = Path(__file__).parent / "results"


def sampled(run: ModelParts, steps: float, options: argparse.Namespace) -> dict[str, float]:
    """Return figures of `options.samples` samples; `forwards` is the number of rows encoded per sample."""
    denoiser, network = Counted(run.denoiser), run.denoiser
    denoiser.max_length = network.max_length
    request = SampleRequest(num_samples=options.samples, batch_size=256)
    sampling = SampleArgs(num_steps=steps, temperature=options.temperature)
    rows = sample_rows(replace(run, denoiser=denoiser), request, sampling)
    texts = [decode(run, row).split() for row in rows]
    references = read_sentences(find_source(options.data, "test"))
    corpus = text_metrics.ReferenceCorpus(text.lower().split() for text in references)
    return {
        "forwards": denoiser.rows / len(texts),
        "bleu_4": float(np.mean([corpus.bleu(text) for text in texts])),
        "self_bleu_4": float(np.mean(text_metrics.self_bleu(texts))),
        **{f"distinct_{order}": text_metrics.distinct(texts, order) for order in (1, 2, 4)},
        "unigram_entropy": text_metrics.unigram_entropy(texts),
    }


def bound(run: ModelParts, steps: float, options: argparse.Namespace) -> dict[str, float]:
    """Return bits per token and perplexity per word of the test sentences at `steps` steps (inf: T)."""
    text = tokenize(find_source(options.data, "test"), run.tokenizer, run.max_length - 2, "out/cache")
    scoring = Scoring(int(min(steps, run.process.num_steps)), BoundArgs(estimator="trajectory"), batch_size=128)
    report = score_text(run, text, pick(text, 0), scoring).report()
    return {name: report[name] for name in ("bits_per_token", "draws_error_nats", "nats_per_sequence", "ppl_word")}


def draw(found: dict[str, dict[str, float]], path: Path) -> None:
    """Plot quality and diversity over forward passes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), dpi=120)
    forwards = [row["forwards"] for row in found.values()]
    for axis, names in zip(axes, (("bleu_4", "self_bleu_4", "distinct_4"), ("ppl_word",)), strict=True):
        for name in names:
            axis.plot(forwards, [row[name] for row in found.values()], "o-", label=name)
        for steps, row in found.items():
            axis.annotate(
                steps, (row["forwards"], row[names[0]]), fontsize=7, xytext=(3, 4), textcoords="offset points"
            )
        axis.set(xlabel="forwards a sample")
        axis.legend()
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)


def table(found: dict[str, dict[str, float]]) -> str:
    """Return the figures as a Markdown table."""
    columns = ("forwards", "bleu_4", "self_bleu_4", "distinct_1", "distinct_4", "unigram_entropy", "ppl_word")
    lines = ["| steps | " + " | ".join(columns).replace("_", "-") + " |", "|" + "---|" * (len(columns) + 1)]
    for steps, row in found.items():
        cells = [number(row[name], 1 if (row[name] or 0) >= 20 else 3).lstrip("0") for name in columns]
        lines.append(f"| {steps} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@torch.no_grad()
def main() -> None:
    """Sample, measure, and write benchmarks/results/quality.json and .png."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", default="out/demo/checkpoint")
    parser.add_argument("--data", default="out/demo/corpus")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--temperature", type=float, default=0.5, help="as in the demo")
    options = parser.parse_args()
    set_up_cpu(2)
    run = load_checkpoint(options.checkpoint, torch.device("cpu"))
    found = {
        f"{steps:g}": {**sampled(run, steps, options), **bound(run, steps, options)}
        for steps in tqdm(STEPS, desc="steps", disable=None)
    }
    print(table(found))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "quality.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found, RESULTS / "quality.png")


if __name__ == "__main__":
    main()
