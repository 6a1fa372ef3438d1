"""The referee: the bound of p_theta and the exact likelihood of ordered samplers, with forward passes, in one table.

The bound applies to p_theta, which reveals tokens at random times. Samplers in a deterministic order have a law of
their own, and its likelihood is exact (diffusion/masked/ordered.py). All rows of the table score the same sentences.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from checkpoint.model_parts import ModelParts
from checkpoint.requests import SampleRequest
from checkpoint.rounds import Scoring
from checkpoint.sampling import decode, sample_rows
from data.tokenized_text import Text
from diffusion.options import EXACT, ORDERED, BoundArgs, SampleArgs
from evaluation.generative_perplexity import LanguageModel, generative_perplexity, load_causal_model
from evaluation.likelihood import score_text
from evaluation.likelihood_report import FILTERS, Likelihood
from evaluation.options import RefereeArgs
from utils.errors import UserError, require_finite
from utils.figures import number

Row = dict[str, float | int | str | None]
TRAJECTORIES, ROUNDS = 2, 2
"""Trajectories a round, and rounds, of a bound that is estimated by trajectories."""


@dataclass(frozen=True)
class Sampler:
    """A row of the table: a sampler, and how its likelihood is found."""

    name: str
    num_steps: float
    """Reverse steps of the bound; an exact likelihood does not use it."""
    bound: BoundArgs
    sampling: SampleArgs | None
    """None: the process has no such sampler, only its bound."""


def samplers(model: ModelParts, args: RefereeArgs, law: BoundArgs) -> Iterator[Sampler]:
    """Yield the rows: the bound at several numbers of steps and in the limit, then every order.

    Args:
        model: the model.
        args: steps, orders and numbers of tokens.
        law: temperature, top-k and top-p of the orders.
    """
    process, timed = model.process, model.denoiser.time_conditioned
    steps = sorted({min(count, process.num_steps) for count in args.steps})
    for count in [*(steps if process.estimators else []), *([math.inf] if process.limit_estimators else [])]:
        known = process.limit_estimators if math.isinf(count) else process.estimators
        drawn = "masked-count" if math.isinf(count) else "windows"
        by = "trajectory" if "trajectory" in known and not timed else drawn
        bound = BoundArgs(by, TRAJECTORIES if by == "trajectory" else 0)
        name = "p_theta, limit" if math.isinf(count) else f"p_theta, {count:g} steps"
        drawable = math.isfinite(count) or process.limit_samplers
        yield Sampler(name, count, bound, SampleArgs(num_steps=count) if drawable else None)
    filters = {name: getattr(law, name) for name in FILTERS}
    for order in args.orders:
        for k in args.tokens:
            own = {"order": order, "tokens_per_step": k, **filters}
            yield Sampler(f"{order}, {k} per pass", 1, BoundArgs(EXACT, **own), SampleArgs(sampler=ORDERED, **own))


def check(model: ModelParts, args: RefereeArgs, law: BoundArgs) -> None:
    """Refuse what the table cannot hold.

    Raises:
        UserError: with the remedy.
    """
    if ORDERED not in model.process.samplers:
        raise UserError(
            f"referee=true: this checkpoint's process {model.process_name} has no sampler={ORDERED}; give one of a "
            "masked process with the exact posterior"
        )
    own = {"order": "table_orders", "tokens_per_step": "table_tokens"}
    for name in own.keys() & set(law.given):
        raise UserError(f"{name} does not apply to --referee; give --{own[name]} {getattr(law, name)} instead")
    if law.estimator not in ("auto", EXACT) or law.evaluations or law.target_se:
        raise UserError(
            "estimator, evaluations and target_se do not apply to --referee, which chooses them; leave them out"
        )
    if args.judge_model and model.pairs:
        raise UserError("judge_model scores samples of text, and this checkpoint was trained on pairs; leave it out")


def rows_of(
    model: ModelParts, text: Text, chosen: np.ndarray, args: RefereeArgs, law: BoundArgs, scoring: Scoring
) -> list[Row]:
    """Return the table.

    Args:
        model: the model.
        text, chosen: the text, and the sentences that every row scores.
        args: the table's settings.
        law: temperature, top-k and top-p of the orders.
        scoring: batch size and seed.

    Raises:
        UserError: also if a figure is not finite.
    """
    check(model, args, law)
    judge = load_causal_model(args.judge_model, model.device) if args.judge_model else None
    every, found = list(samplers(model, args, law)), []
    for sampler in tqdm(every, desc="samplers", unit="sampler", disable=None):
        settings = Scoring(sampler.num_steps, sampler.bound, scoring.batch_size, scoring.seed)
        likelihood = score_text(model, text, chosen, settings)
        require_finite(likelihood.report(), f"{sampler.name}: give --precision fp32, or another checkpoint")
        row = row_of(sampler, likelihood)
        if judge and sampler.sampling:
            row |= judged(model, sampler.sampling, args, judge, scoring)
        found.append(row)
    return found


def row_of(sampler: Sampler, likelihood: Likelihood) -> Row:
    """Return the row of a sampler.

    forwards_per_token is what sampling costs: the forward passes of one path from all masks to a text, divided by its
    scored tokens; None where the network has time input, so that the estimate needs other passes.
    """
    report, sequences, tokens = likelihood.report(), likelihood.num_sequences, likelihood.num_tokens
    paths = {EXACT: 1, "trajectory": TRAJECTORIES * ROUNDS}.get(sampler.bound.estimator)
    error = report["draws_error_nats"]
    return {
        "sampler": sampler.name,
        "forwards_per_token": likelihood.network_evaluations * sequences / tokens / paths if paths else None,
        "draws_error_bits": None if error is None else error * sequences / tokens / math.log(2),
        **{key: report.get(key) for key in ("order", "tokens_per_step", *FILTERS, "excluded_sequences")},
        **{
            key: report[key]
            for key in ("nats_per_sequence", "standard_error_nats", "bits_per_token", "ppl_token", "ppl_word")
        },
        **{key: report[key] for key in ("estimator", "num_steps", "num_sequences", "num_tokens")},
        **{key: report[key] for key in ("protocol", "detokenizer")},
    }


def judged(model: ModelParts, sampling: SampleArgs, args: RefereeArgs, judge: LanguageModel, scoring: Scoring) -> Row:
    """Return generative perplexity and entropy of samples."""
    request = SampleRequest(args.judge_samples, batch_size=scoring.batch_size, seed=scoring.seed)
    drawn = sample_rows(model, request, sampling)
    texts = [decode(model, row) for row in drawn]
    return generative_perplexity(texts, args.judge_model, model.device, judge)


# ---- output ----------------------------------------------------------------------------------------------------------

COLUMNS = ("passes/token", "bits/token", "PPL/token", "PPL/word")
JUDGED = ("gen. PPL", "entropy")


def table(rows: list[Row]) -> str:
    """Return the rows as text."""
    heads = ["sampler", *COLUMNS, *(JUDGED if any("gen_ppl" in row for row in rows) else ())]
    cells = [heads, *(_cells(row, len(heads)) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    lines = (
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def summary(rows: list[Row]) -> str:
    """Return what the rows are about, in a line."""
    text, law = rows[0], rows[-1]
    filters = [f"{name}={law[name]:g}" for name, none in FILTERS.items() if law[name] != none]
    return (
        f"{text['num_sequences']:,} sequences, {text['num_tokens']:,} tokens; passes: forward passes of sampling"
        + "".join(f"; {entry}" for entry in filters)
    )


def _cells(row: Row, width: int) -> list[str]:
    error, excluded = row["draws_error_bits"], row["excluded_sequences"]
    bits = number(row["bits_per_token"], 3) + (f" ± {error:.3f}" if error else "")
    figures = [bits, *(number(row[name], 2) for name in ("ppl_token", "ppl_word"))]
    if excluded:
        figures = [f"infinite ({excluded:,} of {row['num_sequences']:,})", "", ""]
    passes = "" if row["forwards_per_token"] is None else f"{row['forwards_per_token']:.2f}"
    found = [row["sampler"], passes, *figures]
    if width > len(found):
        error = row.get("gen_ppl_se")
        margin = "" if error is None else f" ± {number(error, 1)}"
        found += [number(row.get("gen_ppl"), 1) + margin, number(row.get("token_entropy"), 2)]
    return found


def draw(rows: list[Row], picture: Path) -> None:
    """Write a picture of the table, PNG: perplexity per token by forward passes per token, a line for each order."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from utils.files import written_whole

    figure, axis = pyplot.subplots(figsize=(6.5, 4.5), dpi=120)
    for order in dict.fromkeys(row["order"] for row in rows if row["order"]):
        own = [row for row in rows if row["order"] == order and row["ppl_token"]]
        if own:
            axis.plot(
                *zip(*((r["forwards_per_token"], r["ppl_token"]) for r in own), strict=True), "o-", ms=4, label=order
            )
    bounds = [row for row in rows if not row["order"] and row["ppl_token"]]
    counted = [(row["forwards_per_token"], row["ppl_token"]) for row in bounds if row["forwards_per_token"]]
    if counted:
        axis.plot(*zip(*counted, strict=True), "s--", ms=4, color="gray", label="p_theta (bound)")
    elif bounds:
        axis.axhline(bounds[-1]["ppl_token"], ls="--", color="gray", label=f"{bounds[-1]['sampler']} (bound)")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set(xlabel="forward passes per token", ylabel="perplexity per token (lower: better)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    with written_whole(picture, binary=True) as file:
        figure.savefig(file, format="png")
    pyplot.close(figure)
