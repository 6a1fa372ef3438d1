"""Settings of sampling and of the bound, and the reverse steps they ask for."""

import math
import sys
from dataclasses import dataclass, field, replace
from typing import ClassVar

from utils.errors import UserError, check_choices, check_ranges

OTHER_LAWS = ("confidence", "remdm")
"""Samplers whose samples do not follow p_theta (diffusion/masked/stepwise.py)."""
OF_EMBEDDINGS = ("euler", "heun", "renoise", "sde")
"""Samplers of noisy embeddings (diffusion/score/sampling.py)."""


@dataclass(frozen=True)
class SampleArgs:
    """How to draw from the reverse process."""

    group: ClassVar[str] = "sampler"

    num_steps: float = field(
        default=0,
        metadata={
            "aliases": ["--diffusion_steps"],
            "help": "reverse steps, 1 to T; 0: 128, or T if less; inf: the limit of ever finer steps",
        },
    )
    temperature: float = field(default=1.0, metadata={"help": "divides the logits of p(x0 | xt); 0.001 to 1000"})
    top_k: int = field(default=0, metadata={"aliases": ["--topk"], "help": "keep the k likeliest tokens; 0: all"})
    sampler: str = field(
        default="auto",
        metadata={
            "choices": ["auto", "row-clocks", "ancestral", "cached", *OTHER_LAWS, *OF_EMBEDDINGS],
            "help": "rows at steps of their own; every step a forward; or only when a row has changed: the same law. "
            "confidence and remdm draw from other laws: the surest first, or what is visible masked again. "
            "euler, heun, renoise and sde are for process=score (diffusion/score/sampling.py)",
        },
    )
    remask_eta: float = field(
        default=0.0, metadata={"help": "remdm: how often a visible token is masked again, at most, a step; 0: 0.02"}
    )
    confidence_threshold: float = field(
        default=0.0, metadata={"help": "confidence: what is drawn more surely is revealed at once; 0: as many as due"}
    )
    guidance: float = field(
        default=1.0,
        metadata={"help": "process=score: above 1, more of what is given than the model says; 1: as it says"},
    )
    top_p: float = field(default=1.0, metadata={"help": "keep the likeliest tokens that hold this mass; in (0, 1]"})

    def __post_init__(self) -> None:
        check_choices(self)
        if not (0 <= self.num_steps <= 1_000_000 and self.num_steps % 1 == 0) and self.num_steps != math.inf:
            raise UserError(f"num_steps={self.num_steps} must be a whole number in 1..1000000, 0 for 128, or inf")
        if not 1e-3 <= self.temperature <= 1e3:
            raise UserError(f"temperature={self.temperature} must lie in [0.001, 1000] (use top_k=1 for the mode)")
        if self.top_k < 0:
            raise UserError(f"top_k={self.top_k} must be 0 (keep all) or more")
        if not 0 <= self.remask_eta <= 1:
            raise UserError(f"remask_eta={self.remask_eta} must lie in [0, 1], a share; 0: 0.02")
        if self.remask_eta and self.sampler != "remdm":
            raise UserError(f"remask_eta is for sampler=remdm, not {self.sampler}; leave it out")
        if not 0 <= self.confidence_threshold < 1:
            raise UserError(f"confidence_threshold={self.confidence_threshold} must lie in [0, 1)")
        if self.confidence_threshold and self.sampler != "confidence":
            raise UserError(f"confidence_threshold is for sampler=confidence, not {self.sampler}; leave it out")
        check_ranges(self, guidance=(0, 100))
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} must lie in (0, 1]; 1 keeps every token")

    def require_tokens(self, name: str = "this process") -> None:
        """Refuses what is for noisy embeddings.

        Raises:
            UserError: with the remedy.
        """
        if self.sampler in OF_EMBEDDINGS:
            raise UserError(f"sampler={self.sampler} is for process=score, not {name}; leave it out")
        if self.guidance != 1:
            raise UserError(f"guidance={self.guidance:g} is for process=score, not {name}; leave it out")

    def warn(self) -> None:
        """Say on stderr if samples will not be the model's own."""
        if self.sampler in OTHER_LAWS:
            print(
                f"note: sampler={self.sampler}: the law is not the model's",
                file=sys.stderr,
            )


@dataclass(frozen=True)
class BoundArgs:
    """How the bound is estimated."""

    group: ClassVar[str] = "bound"

    estimator: str = field(
        default="auto",
        metadata={
            "choices": ["auto", "windows", "stratified", "masked-count", "trajectory"],
            "help": "every window, as published (auto, unless num_steps is inf); fewer of them; sets by their size; "
            "or the sets of a reverse process",
        },
    )
    evaluations: int = field(
        default=0,
        metadata={"help": "forwards a sentence and round (trajectory: trajectories); 0: 16 (trajectory: 2)"},
    )
    target_se: float = field(
        default=0.0,
        metadata={"help": "go on, round by round, to this relative error of the draws; 0: two rounds"},
    )

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 <= self.evaluations <= 1_000_000:
            raise UserError(f"evaluations={self.evaluations} must lie in 0..1000000; 0: the estimator's own choice")
        if self.target_se and not 1e-5 <= self.target_se < 1:
            raise UserError(f"target_se={self.target_se} must lie in [0.00001, 1), a share of the bound")

    def settled(self, num_steps: float, in_the_limit: str = "masked-count") -> "BoundArgs":
        """What auto stands for: every window; in the limit, where they cannot be counted, what the process says.

        Raises:
            UserError: if a number of evaluations is given, and windows are meant.
        """
        choice = "windows" if math.isfinite(num_steps) else in_the_limit
        found = replace(self, estimator=choice) if self.estimator == "auto" else self
        if found.evaluations and found.estimator == "windows":
            raise UserError("evaluations is for the other estimators; windows takes one forward a window (--num_steps)")
        return found


EVERY_WINDOW = BoundArgs("windows")
"""The bound as published."""


class ProcessArgs:
    """Base of the settings of a process, which are saved with the checkpoint."""

    group: ClassVar[str] = "process"

    time_period: ClassVar[int] = 1
    """Period of the slowest sinusoid of a time-conditioned network, over 2 pi."""
    default_time_conditioning: ClassVar[str] = "none"
    """What --time_conditioning auto stands for."""

    @property
    def network_settings(self) -> dict[str, bool] | None:
        """Settings that a network over embeddings must be made with; None: the process needs one over tokens."""
        return None

    def check_time(self, time_conditioning: str) -> None:
        """Refuse a way to give the network the time that does not suit the process.

        Raises:
            UserError: with the remedy.
        """

    def check_training(self, *, time_conditioning: str, warm_start: float, packing: bool, fused_loss: bool) -> None:
        """Refuse settings of the training that do not go with these.

        Raises:
            UserError: with the remedy.
        """
        self.check_time(time_conditioning)


class SigmaInputArgs(ProcessArgs):
    """Base of the settings of processes whose time input is sigma(t)."""

    time_period: ClassVar[int] = 10_000

    def check_time(self, time_conditioning: str) -> None:
        """See ProcessArgs."""
        if time_conditioning == "token":
            raise UserError("time_conditioning=token counts whole steps, and sigma is none; use none or layerwise")


def step_windows(total_steps: int, num_steps: int = 0) -> list[tuple[int, int]]:
    """Return the reverse steps (t, s), s < t, from T to 0 in `num_steps` windows, as equal as whole steps allow.

    Args:
        total_steps: T.
        num_steps: 1 to T; 0 stands for 128, or T if that is less.

    Raises:
        UserError: if num_steps is out of range.
    """
    num_steps = num_steps or min(128, total_steps)
    if not 1 <= num_steps <= total_steps:
        raise UserError(f"num_steps={num_steps} must lie in 1..{total_steps}, the T this process was made with")
    grid = [total_steps * i // num_steps for i in range(num_steps, -1, -1)]
    return list(zip(grid, grid[1:], strict=False))


def reverse_steps(total_steps: float, num_steps: float, step_size: int, name: str = "step_size") -> float:
    """How many reverse steps a command line asks for: a number, or T over a size; neither: 128, or T if that is fewer.

    An infinite number stays one.

    Raises:
        UserError: if what was asked for, called num_steps or `name`, is more than T, or a part of an infinite T.
    """
    if step_size and math.isinf(total_steps):
        raise UserError(f"{name}={step_size}: this checkpoint's time is continuous, without a T; give num_steps")
    if math.isinf(num_steps):
        return math.inf
    asked = step_size or int(num_steps)
    if asked > total_steps:
        raise UserError(f"num_steps or {name} = {asked} must lie in 1..{total_steps}, the T of this checkpoint")
    return -(-total_steps // step_size) if step_size else asked or min(128, total_steps)
