"""Measurements behind Tables 2 and 3 of the DiffusionBERT paper, called by benchmarks/paper_tables.py."""

import argparse
import json
import math
import time
from pathlib import Path

import compute_elbo
from benchmarks.pretrained_table import read_json
from benchmarks.variants import Counted
from checkpoint.folder import find_checkpoint, load_checkpoint
from checkpoint.model_parts import ModelParts
from checkpoint.requests import SampleRequest
from checkpoint.rounds import Scoring
from checkpoint.sampling import decode, sample_rows
from data.sources import fingerprint, scored_source
from data.tokenized_text import Text
from diffusion.options import BoundArgs, SampleArgs
from evaluation.likelihood import pick, score_text
from evaluation.predictions import fingerprint_of
from utils.device import pick_device
from utils.errors import UserError
from utils.figures import number
from utils.files import require_writable, written_whole

STEPS = {
    2: (313.57, 0.66),
    8: (91.01, 1.39),
    16: (75.66, 1.80),
    64: (65.83, 4.25),
    128: (63.78, 7.53),
    512: (54.63, 27.48),
}
"""Table 3: perplexity and seconds by number of steps."""

KEPT = ("ppl_word", "nats_per_sequence", "standard_error_nats", "draws_error_nats")
"""Figures of the bound that `steps` keeps."""

PAPER_STEPS = 128
"""Reverse steps of the samples of Table 2."""


def draw(model: ModelParts, num_samples: int, sampling: SampleArgs, length: int) -> tuple[list[str], dict[str, float]]:
    """Return samples, and the forward passes per sample and seconds that they took."""
    denoiser = Counted(model.denoiser)
    denoiser.max_length = model.denoiser.max_length
    request = SampleRequest(num_samples, length, batch_size=256)
    counted = ModelParts(**{**vars(model), "denoiser": denoiser})
    began = time.monotonic()
    rows = sample_rows(counted, request, sampling)
    figures = {"seconds": time.monotonic() - began, "forwards": denoiser.rows / num_samples, "samples": num_samples}
    return [decode(model, row) for row in rows], figures


def samples(options: argparse.Namespace) -> None:
    """Write samples as in the paper (PAPER_STEPS, top-k 30), and their cost to OUTPUT less .txt plus .json.

    Raises:
        UserError: if the output is no .txt, or cannot be written.
    """
    if options.output.suffix != ".txt":
        raise UserError(f"output={options.output}: must end in .txt; the cost is written beside it as .json")
    for file in (options.output, options.output.with_suffix(".json")):
        require_writable("output", file)
    model = load(options)
    texts, figures = draw(model, options.num_samples, SampleArgs(num_steps=PAPER_STEPS, top_k=30), options.length)
    with written_whole(options.output) as file:
        file.writelines(text + "\n" for text in texts)
    write(options.output.with_suffix(".json"), figures)


def steps(options: argparse.Namespace) -> None:
    """Write bound and sampling time at the steps of Table 3, and in the limit, or at T where there is none.

    The output is written after each number of steps, and a second call goes on from there.

    Raises:
        UserError: if the output holds figures of another model, of another text or of other settings.
    """
    require_writable("output", options.output)
    settings = {name: getattr(options, name) for name in ("limit", "num_samples", "length", "precision")}
    settings["checkpoint"] = fingerprint_of(find_checkpoint(options.checkpoint), {}, [], [])
    settings["data"] = fingerprint(scored_source(options.data))
    read = read_json(options.output) if options.output.exists() else {"settings": settings, "steps": {}}
    if read.get("settings") != settings:
        raise UserError(
            f"{options.output} holds figures of other weights, another text or other settings; remove it or give "
            "another --output"
        )
    model, found = load(options), read["steps"]
    missing = [count for count in steps_of(model) if f"{count:g}" not in found]
    if not missing:
        print(f"{options.output}: measured before; remove it to measure again")
        return
    scored = compute_elbo.ElboArgs(options.checkpoint, options.data, cache_dir=options.cache_dir)
    text = compute_elbo.text_to_score(scored, model)
    for count in missing:
        found[f"{count:g}"] = row = measured(model, text, count, options)
        write(options.output, read)
        print(f"{count:g} steps: {number(row['ppl_word'], 1)} PPL/word, {number(row['seconds'], 1)} s")


def steps_of(model: ModelParts) -> list[float]:
    """Return the numbers of steps of Table 3 that the model has, and the limit, or T for a bound without a limit."""
    total = model.process.num_steps
    last = math.inf if model.process.limit_estimators else total  # a spindle's bound has no limit
    return list(dict.fromkeys([*(count for count in STEPS if count <= total), last]))


def measured(model: ModelParts, text: Text, count: float, options: argparse.Namespace) -> dict[str, float]:
    """Return the bound at a number of steps, and the cost of samples."""
    known = model.process.estimators if math.isfinite(count) else model.process.limit_estimators
    known = {*known} - ({"trajectory"} if model.denoiser.time_conditioned else set())
    name = next((each for each in ("trajectory", "stratified") if each in known), "auto")
    bound = BoundArgs(name, evaluations=int(name == "trajectory"))
    report = score_text(model, text, pick(text, options.limit), Scoring(count, bound, batch_size=128)).report()
    _, cost = draw(model, options.num_samples, SampleArgs(num_steps=count, top_k=30), options.length)
    return {name: report[name] for name in KEPT} | cost


def load(options: argparse.Namespace) -> ModelParts:
    """Load the checkpoint on this machine's device."""
    return load_checkpoint(options.checkpoint, pick_device(), precision=options.precision)


def write(path: Path, found: dict) -> None:
    """Write a JSON file in one piece."""
    with written_whole(path) as file:
        json.dump(found, file, indent=1)
