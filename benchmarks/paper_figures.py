"""Draw the figures of the DiffusionBERT paper for your own models, as PNGs.

python benchmarks/paper_figures.py schedule --checkpoint out/demo/checkpoint --sentence "return the name of the file."
python benchmarks/paper_figures.py convergence --runs out/demo_pretrained out/demo --output docs/convergence.png
python benchmarks/paper_figures.py diversity --checkpoints out/demo_pretrained/checkpoint out/demo/checkpoint \
    --references out/demo/corpus/test.txt --output docs/diversity.png
python benchmarks/paper_figures.py decoding --checkpoint out/demo/checkpoint --output docs/decoding.png

schedule: alpha_bar of every token of a sentence, for each spindle. convergence: perplexity per word over steps and over
minutes. diversity: BLEU-4 and self-BLEU of samples over the temperature. decoding: a sample at five times (Table 1).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from torch import Tensor
from tqdm import tqdm

from checkpoint.folder import load_checkpoint
from checkpoint.model_parts import ModelParts
from checkpoint.requests import SampleRequest
from checkpoint.sampling import blank, decode, sample_rows, stack, stream_of
from data.corpus import read_sentences, scored_source
from data.plain_text import encode
from data.tokenizers import respell
from diffusion.masked.row_clocks import RowClocks
from diffusion.options import SampleArgs
from diffusion.process_options import WordFreqArgs
from diffusion_word_freq import SpindleSchedule
from evaluation import text_metrics
from training.run_log import read_log
from utils import hub
from utils.command_line import run_script
from utils.device import set_up_cpu
from utils.errors import UserError
from utils.files import require_writable

TEMPERATURES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
TIMES = (0, 8, 16, 24, 32)
"""Reverse steps shown by `decoding`, of 32, as in the paper's Table 1."""


def schedule(options: argparse.Namespace) -> None:
    """Plot alpha_bar over t/T for every token of a sentence; the colour shows the informativeness."""
    model = load_checkpoint(options.checkpoint, torch.device("cpu"))
    ids = torch.tensor(encode(model.tokenizer, [options.sentence])["input_ids"])
    if not ids.numel():
        raise UserError("sentence is empty; give one with a word in it")
    words = model.tokenizer.convert_ids_to_tokens(ids[0].tolist())
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4.2), dpi=110, sharey=True)
    for axis, name in zip(axes, ("paper", "released", "none"), strict=True):
        args = WordFreqArgs(spindle=name, num_steps=1000, word_freq_lambda=options.word_freq_lambda)
        of_tokens(axis, SpindleSchedule(args, model.token_counts), ids, words)
        axis.set(title=f"spindle {name}", xlabel="t/T")
    axes[0].set_ylabel("alpha_bar: probability that the token is still visible")
    save(figure, options.output)


def of_tokens(axis: Axes, found: SpindleSchedule, ids: Tensor, words: list[str]) -> None:
    """Draw the curves of one schedule, with the tokens in a column at the right."""
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    h = found.informativeness(ids, everywhere)[0]
    t = torch.arange(found.num_steps + 1)
    curves = found.alpha_bar(t[:, None], h[None])
    order = torch.argsort(h)
    low, high = h.min().item(), max(h.max().item(), h.min().item() + 1e-9)
    axis.plot(t / found.num_steps, 1 - t / found.num_steps, color="grey", ls=":", lw=1)
    for rank, i in enumerate(order.tolist()):
        colour = pyplot.cm.viridis(0.9 * (h[i].item() - low) / (high - low))
        axis.plot(t / found.num_steps, curves[:, i], color=colour, lw=1.2)
        height = 0.97 - 0.06 * rank  # labels in a column, common tokens first
        axis.text(1.02, height, words[i], color=colour, fontsize=8, va="top", transform=axis.transAxes)
    axis.set(xlim=(0, 1), ylim=(0, 1))
    axis.grid(alpha=0.3)


def convergence(options: argparse.Namespace) -> None:
    """Plot the validation perplexity of some runs over steps and over minutes.

    It is per word, since bits per token of different vocabularies cannot be compared.
    """
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), dpi=110, sharey=True)
    for folder in options.runs:
        valid = [record for record in read_log(Path(folder) / "log.jsonl") if record["kind"] == "valid"]
        bound = [record["ppl_word"] for record in valid]
        label = Path(folder).name
        axes[0].plot([record["step"] for record in valid], bound, "o-", ms=3, label=label)
        axes[1].plot([record["seconds"] / 60 for record in valid], bound, "o-", ms=3, label=label)
    axes[0].set(xlabel="step", ylabel="validation perplexity per word (a bound)", yscale="log")
    axes[1].set(xlabel="minutes")
    axes[0].legend()
    for axis in axes:
        axis.grid(alpha=0.3)
    save(figure, options.output)


def diversity(options: argparse.Namespace) -> None:
    """Plot BLEU-4 against a corpus over self-BLEU, one point for each temperature."""
    figure, axis = pyplot.subplots(figsize=(6.5, 4.5), dpi=110)
    for checkpoint in options.checkpoints:
        model = text_model(checkpoint, precision="auto")
        texts = respell(model.tokenizer, read_sentences(scored_source(options.references)))
        corpus = text_metrics.ReferenceCorpus(text.split() for text in texts)
        points = [quality(model, corpus, options.samples, each) for each in tqdm(TEMPERATURES, disable=None)]
        axis.plot(*zip(*points, strict=True), "o-", ms=4, label=label_of(checkpoint))
        for each, point in zip(TEMPERATURES, points, strict=True):
            axis.annotate(f"{each:g}", point, fontsize=7, xytext=(3, 4), textcoords="offset points")
            print(f"{checkpoint} temperature {each:g}: self-BLEU {point[0]:.3f}, BLEU-4 {point[1]:.3f}")
    axis.set(xlabel="self-BLEU (lower: more diverse)", ylabel="BLEU-4 against held-out text (higher: better)")
    axis.legend()
    axis.grid(alpha=0.3)
    save(figure, options.output)


def text_model(checkpoint: str, precision: str = "fp32") -> ModelParts:
    """Load a model of texts on the CPU.

    Raises:
        UserError: if it was trained on pairs.
    """
    model = load_checkpoint(checkpoint, torch.device("cpu"), precision=precision)
    if model.pairs:
        raise UserError(f"checkpoint {checkpoint} was trained on pairs; give one trained on text")
    return model


def label_of(checkpoint: str) -> str:
    """Return the name of a run's folder, given it or a checkpoint in it."""
    path = Path(checkpoint)
    return path.resolve().parent.name if path.name in ("checkpoint", "checkpoint-last") else path.resolve().name


def quality(
    model: ModelParts, corpus: text_metrics.ReferenceCorpus, count: int, temperature: float
) -> tuple[float, float]:
    """Return self-BLEU and BLEU-4 of `count` samples."""
    rows = sample_rows(model, SampleRequest(count, batch_size=250), SampleArgs(temperature=temperature))
    texts = [decode(model, row).split() for row in rows]
    return float(np.mean(text_metrics.self_bleu(texts))), float(np.mean([corpus.bleu(text) for text in texts]))


def decoding(options: argparse.Namespace) -> None:
    """Write a sample at the times of `TIMES` as lines of text."""
    model = text_model(options.checkpoint)
    last = TIMES[-1]
    sampling = SampleArgs(num_steps=last, sampler="row-clocks", temperature=options.temperature, top_k=options.top_k)
    model.process.check_sampling(sampling)
    lines = [(f"t = {last - step}", readable(model, row)) for step, row in frames_of(model, sampling, options.seed)]
    width = max(len(text) for _, text in lines)
    figure = pyplot.figure(figsize=(1.1 + 0.078 * width, 0.35 * len(lines) + 0.2), dpi=130)
    for i, (label, text) in enumerate(lines):
        height = 1 - (i + 0.6) / len(lines)
        figure.text(0.01, height, label, fontsize=9, color="grey", family="monospace")
        figure.text(0.9 / figure.get_figwidth(), height, text, fontsize=9, family="monospace")
        print(f"{label:>7}  {text}")
    save(figure, options.output, tight=False)


class Recorder(RowClocks):
    """Sampler of one row that keeps its tokens after every reveal."""

    def __init__(self, *given: object) -> None:
        """Start with every target masked."""
        super().__init__(*given)
        self.history = [(0.0, self.xt[0].clone())]
        """Step of each reveal, from 1, and the tokens after it, int64 [L]."""

    def propose(self, rows: Tensor, hidden: Tensor, mean: Tensor | None) -> Tensor:
        """See RowClocks; record the row if a token is revealed."""
        now = self.moment[rows].amin().item()
        accepted = super().propose(rows, hidden, mean)
        if accepted.any():
            self.history.append((now, self.xt[0].clone()))
        return accepted


@torch.no_grad()
def frames_of(model: ModelParts, sampling: SampleArgs, seed: int) -> list[tuple[int, Tensor]]:
    """Return the number of steps done and x_t, int64 [L], at each time of `TIMES`."""
    request = SampleRequest(seed=seed)
    stream = stream_of(request, 0)
    batch = stack([blank(model, request, stream)], model.tokenizer.pad_token_id)
    recorder = Recorder(model.process, model.denoiser, batch, sampling, [stream])
    recorder.run()
    targets = batch.target_mask[0]
    shown = (max((moment, i) for i, (moment, _) in enumerate(recorder.history) if moment <= step) for step in TIMES)
    return [(step, recorder.history[i][1][targets]) for step, (_, i) in zip(TIMES, shown, strict=True)]


def readable(model: ModelParts, row: Tensor) -> str:
    """Return a row as text with [M] for each mask."""
    return model.tokenizer.decode(row).replace(model.tokenizer.mask_token, "[M]")


def save(figure: pyplot.Figure, output: Path, *, tight: bool = True) -> None:
    """Write a PNG."""
    if tight:
        figure.tight_layout()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, format="png")
    pyplot.close(figure)
    print(output)


def main() -> None:
    """Draw one figure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    kinds = parser.add_subparsers(required=True, metavar="FIGURE")
    for draw in (schedule, convergence, diversity, decoding):
        kind = kinds.add_parser(draw.__name__, help=draw.__doc__, description=draw.__doc__)
        kind.set_defaults(draw=draw)
        kind.add_argument("--output", type=Path, default=Path(f"{draw.__name__}.png"), help=".png file to write")
        if draw in (schedule, decoding):
            kind.add_argument("--checkpoint", default="out/demo/checkpoint", help="checkpoint trained on text")
        if draw is schedule:
            kind.add_argument("--sentence", required=True, help="sentence whose tokens are drawn")
            kind.add_argument("--word_freq_lambda", type=float, default=0.3, help="amplitude of the spindle")
        if draw is convergence:
            kind.add_argument("--runs", nargs="+", required=True, help="folders of main.py")
        if draw is diversity:
            kind.add_argument("--checkpoints", nargs="+", required=True, help="checkpoints trained on text")
            kind.add_argument("--references", required=True, help="held-out text")
            kind.add_argument("--samples", type=int, default=200, help="number of samples per temperature")
        if draw is decoding:
            kind.add_argument("--seed", type=int, default=0, help="seed of the sample")
            kind.add_argument("--temperature", type=float, default=0.5, help="temperature of the sample")
            kind.add_argument("--top_k", type=int, default=30, help="number of likeliest tokens to keep")
    options = parser.parse_args()
    require_writable("output", options.output)
    hub.quiet_libraries()
    set_up_cpu(2)
    options.draw(options)


if __name__ == "__main__":
    run_script(main)
