"""Cost of each process of the family: training step, sample, and text longer than the window.

python benchmarks/family.py                    # training steps, samples, long texts
python benchmarks/family.py --part sample

All use a BERT of 4 layers x 256, vocabulary 30,522, random weights and tokens, fp32. --process ar uses its causal
variant, --process score a network of the same size over embeddings of 64. Training steps are timed in turn and divided
within a round by stock masked language modelling on the same batch.

Samples are timed in units of a bare forward pass: equal rows, encoded and decoded at every position. MDLM's released
cached sampler is given in the same unit, measured on two cores of an AMD EPYC with a network of this size. At T = 1000
and 64 tokens it took 10.3 s and 65 calls for one row (forward pass 0.0137 s), 237 s and 401 calls for eight (0.088 s).
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import transformers
from transformers import BertConfig, BertForMaskedLM, BertLMHeadModel

from benchmarks import variants
from benchmarks.speed import ratios, seconds
from benchmarks.variants import MASK, Step, text, trained
from data.batch import Batch
from diffusion.autoregressive import Autoregressive
from diffusion.masked.d3pm import D3pmDiffusion
from diffusion.masked.mdlm import MdlmDiffusion
from diffusion.masked.sedd import SeddDiffusion
from diffusion.options import SampleArgs
from diffusion.process import Process, Vocabulary
from diffusion.process_options import AutoregressiveArgs, D3pmArgs, MdlmArgs, ScoreArgs, SeddArgs
from diffusion.score.process import ScoreDiffusion
from diffusion.semi_autoregressive import write
from models.bert import BertDenoiser
from models.score_denoiser import ScoreDenoiser
from models.score_lm import ScoreLmConfig, ScoreLmNetwork

MDLM_UNITS = {1: (10.3 / 0.0137, 65), 8: (237 / 0.088, 401)}
"""Rows -> MDLM's cached sampler: time in bare forward passes, number of network calls."""
RESULTS = Path(__file__).parent / "results" / "family.json"


def process_of(name: str, shape: dict) -> Process:
    """Return a process by name, without word frequencies."""
    kinds = {
        "mdlm": (MdlmDiffusion, MdlmArgs()),
        "d3pm": (D3pmDiffusion, D3pmArgs()),
        "sedd": (SeddDiffusion, SeddArgs()),
        "ar": (Autoregressive, AutoregressiveArgs()),
        "score": (ScoreDiffusion, ScoreArgs()),
    }
    if name.startswith("word_freq"):
        return variants.process_of(shape, num_steps=1000, spindle="paper" if name == "word_freq" else "none")
    kind, settings = kinds[name]
    return kind(settings, Vocabulary(shape["vocabulary"], MASK, excluded_ids=(0, 101, 102)))


def denoiser_of(name: str, shape: dict, *, timed: bool | None = None) -> BertDenoiser | ScoreDenoiser:
    """Return a process's network: score, causal, or time-conditioned if the process or `timed` requires it."""
    torch.manual_seed(0)
    sizes = {"vocab_size": shape["vocabulary"], "hidden_size": shape["hidden"], "num_hidden_layers": shape["layers"]}
    sizes |= {"num_attention_heads": shape["hidden"] // 64, "intermediate_size": 4 * shape["hidden"]}
    if name == "score":
        config = ScoreLmConfig(embedding_size=64, **process_of(name, shape).args.network_settings, **sizes)
        return ScoreDenoiser(ScoreLmNetwork(config))
    config = BertConfig(max_position_embeddings=4096, is_decoder=name == "ar", **sizes)
    timed = name == "sedd" if timed is None else timed
    kind = BertLMHeadModel if name == "ar" else BertForMaskedLM
    return BertDenoiser(kind(config), "layerwise" if timed else "none", 10_000)


def training(name: str, shape: dict) -> Step:
    """Return a step of the process's own loss: forward, backward and AdamW."""
    denoiser, process, batch = denoiser_of(name, shape), process_of(name, shape), text(shape)

    def loss() -> torch.Tensor:
        found = process.loss(denoiser, batch)
        return found.total / found.num_tokens

    return trained(denoiser, loss)


TRAINED = ("word_freq", "word_freq_none", "mdlm", "d3pm", "sedd", "ar", "score")


def part_train(shape: dict) -> dict:
    """Return training step time / stock step time: [minimum, median, maximum]."""
    steps = {"stock": variants.stock(shape), **{name: training(name, shape) for name in TRAINED}}
    return {f"train {name}": found for name, found in ratios(steps, "stock", shape["rounds"]).items()}


SAMPLED = [
    ("mdlm", "row-clocks"),
    ("mdlm", "cached"),
    ("mdlm", "ancestral"),
    ("word_freq", "row-clocks"),
    ("d3pm", "row-clocks"),
    ("d3pm", "cached"),
    ("sedd", "ancestral"),
    ("ar", "auto"),
]
"""Pairs of process and sampler."""


@torch.no_grad()
def part_sample(shape: dict, num_steps: int = 1000) -> dict:
    """Return `sampled` of each process and sampler for one row and for eight."""
    found = {}
    for rows in (1, 8):
        for name, sampler in SAMPLED:
            if rows > 1 and sampler in ("ancestral", "cached"):
                continue  # many minutes; the cost of a step is known from one row
            shown = denoiser_of(name, shape).eval()
            args = SampleArgs(num_steps=0 if name == "ar" else num_steps, sampler=sampler)
            batch = text(shape, rows)
            if name == "ar":
                batch.target_mask[:, 0] = False  # the first token is given
            found[f"sample {name} {sampler} {rows}"] = sampled(process_of(name, shape), shown, batch, args)
        found[f"sample mdlm released {rows}"] = [*MDLM_UNITS[rows], None]
    return found


def sampled(process: Process, denoiser: BertDenoiser, batch: Batch, args: SampleArgs) -> list[float]:
    """Return [time in bare forward passes, network calls, time / bare forward time of the rows encoded]."""
    counted = variants.Counted(denoiser)
    counted.extend = counting_extend(counted)
    t = torch.ones(len(batch.input_ids), dtype=torch.long)

    def bare() -> torch.Tensor:
        return denoiser.decode(denoiser.encode(batch.input_ids, t, batch.attention_mask))

    bare()
    forward = statistics.median(seconds(bare) for _ in range(15))
    spent = seconds(lambda: process.sample(counted, batch, args))
    forward = statistics.median([forward, *(seconds(bare) for _ in range(15))])
    units = spent / forward
    return [units, counted.calls, units / (counted.rows / len(batch.input_ids))]


def counting_extend(counted: variants.Counted) -> Callable:
    """Return the cached forward pass of an autoregressive network, counted as one call with all its rows."""

    def extend(tokens: torch.Tensor, cache: object) -> tuple:
        counted.calls += 1
        counted.rows += len(tokens)
        return counted.inner.extend(tokens, cache)

    return extend


@torch.no_grad()
def part_long(shape: dict, window: int = 256, length: int = 2048) -> dict:
    """Return seconds for a text of `length` tokens by strides of half a window, and in separate windows.

    Each step reveals two tokens. Strides overlap, so they take about twice the forward passes for half the tokens each.
    """
    process, denoiser, stride = process_of("mdlm", shape), denoiser_of("mdlm", shape).eval(), window // 2

    def draw(batch: Batch) -> torch.Tensor:
        return process.sample(denoiser, batch, SampleArgs(num_steps=int(batch.target_mask.sum()) // 2))

    def by_strides() -> torch.Tensor:
        return write(text({**shape, "length": window}, 1), draw, stride, (length - window) // stride)

    def plain() -> torch.Tensor:
        return torch.cat([draw(text({**shape, "length": window}, 1)) for _ in range(length // window)], 1)

    drawn: list[torch.Tensor] = []
    one, other = (seconds(lambda way=way: drawn.append(way())) for way in (by_strides, plain))
    assert all(row.shape == (1, length) for row in drawn)
    return {"long by strides, seconds": one, "long in plain windows, seconds": other, "long ratio": one / other}


def rows_of(figures: dict) -> str:
    """Return the tables of the measured parts."""
    lines = ["| process | training step / stock masked LM |", "|---|---|"]
    for name in TRAINED:
        if found := figures.get(f"train {name}"):
            lines.append(f"| {name} | {found[1]:.2f} ({found[0]:.2f} to {found[2]:.2f}) |")
    lines += ["", "| process | sampler | 1 row: time | calls | time / calls | 8: time | calls | time / calls |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, sampler in [*SAMPLED, ("mdlm", "released")]:
        cells = []
        for rows in (1, 8):
            units, calls, share = figures.get(f"sample {name} {sampler} {rows}", [None] * 3)
            cells += ["" if units is None else f"{units:,.0f}", "" if calls is None else f"{calls}"]
            cells.append("" if share is None else f"{share:.2f}")
        lines.append(f"| {name} | {sampler} | {' | '.join(cells)} |")
    lines += ["", *(f"{name}: {value:.2f}" for name, value in figures.items() if name.startswith("long"))]
    return "\n".join(lines)


PARTS = {"train": part_train, "sample": part_sample, "long": part_long}


def main() -> None:
    """Run the parts, print their tables and write benchmarks/results/family.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    figures = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name, part in PARTS.items():
        if options.part in (name, "all"):
            figures |= part(variants.SHAPES["small"])
            RESULTS.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures) if options.json else rows_of(figures))


if __name__ == "__main__":
    main()
