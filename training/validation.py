"""Evaluation during training: the bound on validation sentences with averaged weights, and the checkpoints."""

import math
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from checkpoint.folder import save_checkpoint, weights_of
from checkpoint.model_parts import ModelParts
from checkpoint.rounds import Scoring
from data.tokenized_text import Text
from diffusion.options import BoundArgs
from evaluation.likelihood import OutOfTimeError, pick, score_text
from training.clock import Deadline
from training.config import TrainConfig
from training.outcome import Figures, uniform_bits
from training.pace import evaluation_plan, evaluation_steps, is_adaptable
from training.parallel import whole_weights
from training.plan import Plan
from training.step import TrainStep
from utils import job
from utils.errors import UserError


class Validation:
    """Schedule, sentences and results of a run's evaluations."""

    def __init__(
        self, config: TrainConfig, model: ModelParts, text: Text, trainer: TrainStep, plan: Plan, figures: Figures
    ) -> None:
        """Set the interval of evaluations and, unless the run is timed, the number of sentences."""
        self.config, self.model, self.text, self.trainer, self.plan = config, model, text, trainer, plan
        self.figures, self.deadline = figures, Deadline(config.run.time_limit)
        self.batch_size = config.data.slots // config.data.max_length  # fits at the maximum length
        self.interval, sequences = self._plan(plan.total_steps)
        """Steps between evaluations; 0: they are timed."""
        if not (plan.pace.max_minutes and is_adaptable(config.run)):
            figures.eval_sequences = sequences

    def is_due(self, step: int, seconds: float) -> bool:
        """Return whether an evaluation follows this step, which began `seconds` after the run; call it once a step.

        Timed evaluations are counted from the end of the last one, which is the start of the next step.
        """
        if self.interval:
            return step % self.interval == 0
        if self.figures.evaluated_at < 0:
            self.figures.evaluated_at = seconds
        return seconds >= self.figures.evaluated_at + 60 * self.config.run.eval_minutes

    def run(self, step: int, seconds: float, *, first: bool) -> tuple[dict, bool] | None:
        """Evaluate the model and update the figures. The caller has swapped in the averaged weights.

        Args:
            step: number of training steps done.
            seconds: training time so far.
            first: whether this is the first work of the process.

        Returns:
            The report and whether it is the best so far; None if the time limit left no time.

        Raises:
            UserError: if there was no time although it came `first`, or if the bound is not finite.
        """
        indices = self.sentences(step, seconds)
        scoring = Scoring(self.steps, self.estimator, batch_size=self.batch_size, seed=self.config.run.seed)
        try:
            with whole_weights(self.trainer.wrapped):
                found = score_text(self.model, self.text, indices, scoring, may_go_on=self.deadline.part_check())
        except OutOfTimeError as error:
            if first:
                raise UserError(
                    f"time_limit={self.config.run.time_limit} is too short for an evaluation of {len(indices)} "
                    "sentences; raise it, or lower --eval_sequences with --resume true"
                ) from error
            return None
        report = found.report()
        if not math.isfinite(report["nats_per_sequence"]):
            raise UserError("the validation bound is not finite; lower --learning_rate, or use --precision fp32")
        self.deadline.reset()  # an evaluation can be abandoned, so the longest step excludes it
        is_best = report["bits_per_token"] < self.figures.best
        self._update_figures(report, indices)
        return report, is_best

    @property
    def estimator(self) -> BoundArgs:
        """Estimator of the bound; in continuous time, that of the process."""
        if self.config.run.eval_estimator == "trajectory":
            return BoundArgs("trajectory", evaluations=1)
        return BoundArgs()

    @property
    def steps(self) -> float:
        """Number of reverse steps of the bound."""
        return evaluation_steps(self.model.process.num_steps, self.config.run.eval_step_size)

    def sentences(self, step: int, seconds: float) -> np.ndarray:
        """Return the indices of the validation sentences to score, int64 [n].

        A timed run sets their number at its first evaluation, from the measured speed.
        """
        if self.figures.eval_sequences < 0:
            share = max(self.plan.pace.progress(step + 1, seconds), 1e-9)
            self.figures.eval_sequences = self._plan(min(self.plan.total_steps, step / share))[1]
        return pick(self.text, self.figures.eval_sequences)

    def fewer_scored(self, seconds: float) -> str:
        """Return a note if fewer sentences are scored than the settings ask for, else ""."""
        requested = min(self.config.run.eval_sequences or len(self.text), len(self.text))
        scored = len(self.sentences(0, seconds)) if self.figures.eval_sequences >= 0 else requested
        if scored == requested:
            return ""
        return (
            f"\n{scored} of {requested} sentences are scored, since the run is short; --eval_steps scores all of them"
        )

    def _plan(self, total_steps: float) -> tuple[int, int]:
        return evaluation_plan(self.config.run, total_steps, self.plan.sentences, self.steps, len(self.text))

    def _update_figures(self, report: dict, indices: np.ndarray) -> None:
        figures = self.figures
        figures.evaluated_at = -1.0
        figures.last_bound = report["bits_per_token"]
        figures.last_of = float(zlib.crc32(repr((len(indices), self.steps, self.estimator)).encode()))
        if figures.last_bound < figures.best:
            figures.best, figures.best_of = figures.last_bound, figures.last_of
        figures.unigram = report["unigram_bits_per_token"]
        # num_tokens excludes the [PAD] of pairs
        scored = self.text.target_lengths[indices].sum() / report["num_tokens"]
        figures.uniform = float(scored * uniform_bits(self.model.denoiser.vocab_size))


def write_checkpoints(output: Path, model: ModelParts, facts: dict, *, is_best: bool) -> None:
    """Write checkpoint-last/, and checkpoint/ too if it is the best so far; a collective call.

    Raises:
        UserError: if the run's folder is gone.
    """
    weights = weights_of(model)
    for name in ("checkpoint-last", "checkpoint") if is_best else ("checkpoint-last",):
        if job.rank() == 0:
            require_output(output)
            save_checkpoint(output / name, replace(model, facts=facts), weights)


def require_output(output: Path) -> None:
    """Refuse to write into a folder that was removed or emptied during the run.

    Raises:
        UserError: if the folder has no run.json.
    """
    if not (output / "run.json").exists():
        raise UserError(
            f"output_dir={output}: the folder was removed or emptied during the run; give another, and start again"
        )
