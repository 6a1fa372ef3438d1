"""How far a training is: its progress by steps or by the clock, the end of its warm-up, the cost of its evaluations."""

import math
from dataclasses import dataclass

from training.arguments import TrainArgs
from training.optim import OptimArgs, learning_rate, warmth

DEFAULT_SEQUENCES = TrainArgs("-").eval_sequences
FEWEST_SEQUENCES, ENOUGH_SEQUENCES = 16, 64
"""Validation sentences of an evaluation: never fewer; and rather fewer evaluations than fewer sentences than this."""
SHARE_OF_SCORING = 1 / 3
"""Forwards of all evaluations, over sentences trained on: a ninth of the time, as a step costs about 3 forwards."""
FORWARDS_IN_THE_LIMIT = 32
"""A sentence, in continuous time: two rounds of 16, `likelihood.score`."""


@dataclass
class WarmUp:
    """Where the warm-up ended; saved with a state, so that a resumed run takes the same rates."""

    step: int = 0
    """The first step at the peak rate; 0: it has not come yet, or nobody wrote it down."""
    seconds: float = 0.0
    """The run's clock then."""


@dataclass(frozen=True)
class Pace:
    """A training's length, in steps and minutes."""

    total_steps: int
    max_minutes: float
    """0: as long as the steps take."""
    warmup_steps: int
    """At least 1."""

    @classmethod
    def of(cls, args: TrainArgs, optim: OptimArgs, total_steps: int) -> "Pace":
        """The pace that the settings ask for."""
        return cls(total_steps, args.max_minutes, optim.warmup_steps or max(1, total_steps // 100))

    def progress(self, step: int, seconds: float) -> float:
        """The share of the training that is done before `step`: by steps, or by the clock if that is further on."""
        by_clock = seconds / (60 * self.max_minutes) if self.max_minutes else 0.0
        return min(1.0, max((step - 1) / self.total_steps, by_clock))

    def rate(self, optim: OptimArgs, step: int, seconds: float, warm_up: WarmUp) -> float:
        """The learning rate of a step, and a note in `warm_up` if the warm-up ends with it.

        A run that was resumed from a state without that note is taken to have been as fast before as after.
        """
        progress = self.progress(step, seconds)
        if warmth(optim, step, progress, self.warmup_steps) < 1:
            warm_up.step = 0
        elif not warm_up.step:
            warm_up.step = min(step, self.warmup_steps)
            warm_up.seconds = seconds * (warm_up.step - 1) / (step - 1) if warm_up.step < step else seconds
            by_default = 0.0 if optim.warmup_steps else 0.6 * self.max_minutes  # a hundredth of the time, in seconds
            if 0 < 2 * by_default < warm_up.seconds:  # long ago: a run resumed from a state without the note
                warm_up.step = max(1, round(warm_up.step * by_default / warm_up.seconds))
                warm_up.seconds = by_default
        warmed = self.progress(warm_up.step, warm_up.seconds) if warm_up.step else 0.0
        return learning_rate(optim, step, progress, self.warmup_steps, warmed)


def evaluation_steps(total_steps: float, step_size: int) -> float:
    """How many windows the bound has during a training: T over the size of one, without an end in continuous time."""
    return total_steps if math.isinf(total_steps) else max(1, int(total_steps) // step_size)


def is_adaptable(args: TrainArgs) -> bool:
    """Whether a short training may score fewer validation sentences than the settings say."""
    return not args.eval_steps and args.eval_sequences == DEFAULT_SEQUENCES


def evaluation_plan(
    args: TrainArgs, total_steps: float, sentences_a_step: float, windows: float, available: int
) -> tuple[int, int]:
    """Steps between evaluations, and validation sentences of each (0: all).

    With --eval_steps both are as given. Without, all evaluations together take at most SHARE_OF_SCORING of a forward
    for every sentence trained on, but for one of FEWEST_SEQUENCES at the end: work is counted and not time, so that no
    machine evaluates otherwise than another. Ten evaluations become five, two, one; of the default number of sentences
    as many are left as can be afforded.

    Args:
        args: the settings.
        total_steps: of the training.
        sentences_a_step: on average.
        windows: of the bound, `evaluation_steps`.
        available: validation sentences that there are.
    """
    if args.eval_steps:
        return args.eval_steps, args.eval_sequences
    most = min(args.eval_sequences or available, available)
    adaptable = is_adaptable(args)
    enough = min(ENOUGH_SEQUENCES, most) if adaptable else most
    forwards = windows if math.isfinite(windows) else FORWARDS_IN_THE_LIMIT
    sentences = SHARE_OF_SCORING * total_steps * sentences_a_step / forwards
    for times in (10, 5, 2, 1):
        eval_steps = max(1, int(total_steps // times))
        affordable = int(sentences / math.ceil(total_steps / eval_steps))
        if affordable >= enough:
            break
    if adaptable and affordable < most:
        return eval_steps, max(FEWEST_SEQUENCES, affordable)
    return eval_steps, args.eval_sequences
