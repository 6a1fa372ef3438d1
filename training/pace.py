"""Progress of a training run by steps or by time, its learning rate, and the number and size of its evaluations."""

import math
from dataclasses import dataclass

from training.arguments import OptimArgs, TrainArgs
from training.optim import learning_rate, warm_up_share

DEFAULT_SEQUENCES = TrainArgs("-").eval_sequences
MIN_SEQUENCES, PREFERRED_SEQUENCES = 16, 64
"""Validation sentences of an evaluation: the minimum, and the number below which evaluations become rarer instead."""
MAX_EVALUATION_SHARE = 1 / 3
"""Forward passes of all evaluations per training sentence: a ninth of the time, as a step costs about 3 forwards."""
CONTINUOUS_TIME_FORWARDS = 32
"""Forward passes per sentence in continuous time: two rounds of 16, see `likelihood.score`."""


@dataclass
class WarmUp:
    """End of the warm-up; part of every saved state, so that a resumed run has the same learning rates."""

    step: int = 0
    """First step at the peak learning rate; 0: not reached, or not recorded."""
    seconds: float = 0.0
    """Training time at that step."""


@dataclass(frozen=True)
class Pace:
    """Length of a training run in steps and minutes, and of its warm-up."""

    total_steps: int
    max_minutes: float
    """Time limit; 0: none."""
    warmup_steps: int
    """Length of the warm-up, at least 1."""

    @classmethod
    def of(cls, args: TrainArgs, optim: OptimArgs, total_steps: int) -> "Pace":
        """Return the pace set by the settings."""
        return cls(total_steps, args.max_minutes, optim.warmup_steps or max(1, total_steps // 100))

    def progress(self, step: int, seconds: float) -> float:
        """Return the share of the training done before `step`, by steps or by time, whichever is larger."""
        by_time = seconds / (60 * self.max_minutes) if self.max_minutes else 0.0
        return min(1.0, max((step - 1) / self.total_steps, by_time))

    def seconds_left(self, step: int, seconds: float, start_step: int, start_seconds: float) -> float | None:
        """Return the seconds from the end of `step` to the end of the training, at the speed since a start.

        Args:
            step: number of the step just done.
            seconds: training time at its end.
            start_step: last step before the start; 0 for a run that was not resumed.
            start_seconds: training time at the start.

        Returns:
            None if no step was done since the start.
        """
        if step <= start_step:
            return None
        by_steps = (self.total_steps - step) * (seconds - start_seconds) / (step - start_step)
        by_time = 60 * self.max_minutes - seconds if self.max_minutes else math.inf
        return max(0.0, min(by_steps, by_time))

    def rate(self, optim: OptimArgs, step: int, seconds: float, warm_up: WarmUp) -> float:
        """Return the learning rate of a step; record the end of the warm-up in `warm_up`.

        For a run resumed from a state without that record, constant speed is assumed.
        """
        progress = self.progress(step, seconds)
        if warm_up_share(optim, step, progress, self.warmup_steps) < 1:
            warm_up.step = 0
        elif not warm_up.step:
            warm_up.step = min(step, self.warmup_steps)
            warm_up.seconds = seconds * (warm_up.step - 1) / (step - 1) if warm_up.step < step else seconds
            # a hundredth of the time, in seconds
            default_seconds = 0.0 if optim.warmup_steps else 0.6 * self.max_minutes
            if 0 < 2 * default_seconds < warm_up.seconds:  # the run was resumed from a state without the record
                warm_up.step = max(1, round(warm_up.step * default_seconds / warm_up.seconds))
                warm_up.seconds = default_seconds
        warmed = self.progress(warm_up.step, warm_up.seconds) if warm_up.step else 0.0
        return learning_rate(optim, step, progress, self.warmup_steps, warmed)


def evaluation_steps(total_steps: float, step_size: int) -> float:
    """Return the number of windows of the validation bound: T over the window's size; infinite in continuous time."""
    return total_steps if math.isinf(total_steps) else max(1, int(total_steps) // step_size)


def is_adaptable(args: TrainArgs) -> bool:
    """Tell whether a short training may score fewer validation sentences than eval_sequences."""
    return not args.eval_steps and not args.eval_minutes and args.eval_sequences == DEFAULT_SEQUENCES


def evaluation_plan(
    args: TrainArgs, total_steps: float, sentences_per_step: float, windows: float, available: int
) -> tuple[int, int]:
    """Return the steps between evaluations (0: they are timed), and the validation sentences of each (0: all).

    With --eval_steps or --eval_minutes both are as given. Otherwise all evaluations together take at most
    MAX_EVALUATION_SHARE forward passes per training sentence, except for one evaluation of MIN_SEQUENCES sentences at
    the end. Forward passes are counted rather than time, so that the plan is equal on all machines. To meet the limit,
    ten evaluations become five, two or one; then the default number of sentences is reduced.

    Args:
        args: settings of the run.
        total_steps: optimizer steps of the run.
        sentences_per_step: mean number of sentences per step.
        windows: windows of the bound, see `evaluation_steps`.
        available: number of validation sentences.
    """
    if args.eval_steps or args.eval_minutes:
        return args.eval_steps, args.eval_sequences
    most = min(args.eval_sequences or available, available)
    adaptable = is_adaptable(args)
    enough = min(PREFERRED_SEQUENCES, most) if adaptable else most
    forwards = windows if math.isfinite(windows) else CONTINUOUS_TIME_FORWARDS
    sentences = MAX_EVALUATION_SHARE * total_steps * sentences_per_step / forwards
    for times in (10, 5, 2, 1):
        eval_steps = max(1, int(total_steps // times))
        affordable = int(sentences / math.ceil(total_steps / eval_steps))
        if affordable >= enough:
            break
    if adaptable and affordable < most:
        return eval_steps, max(MIN_SEQUENCES, affordable)
    return eval_steps, args.eval_sequences
