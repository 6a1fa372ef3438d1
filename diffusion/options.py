"""Settings of sampling and of the bound, and their reverse steps."""

import math
import sys
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar

from utils.errors import UserError, check_choices, check_ranges

HEURISTIC_SAMPLERS = ("confidence", "remdm")
"""Samplers whose samples are not distributed as p_theta (diffusion/masked/stepwise.py)."""
ORDERED, EXACT = "ordered", "exact"
"""Sampler that reveals tokens in a deterministic order, and the estimator of its likelihood (masked/ordered.py)."""
ORDERS = ("confidence", "entropy", "margin", "left-to-right", "random-fixed")
"""Values of --order; the first is the default."""
EMBEDDING_SAMPLERS = ("euler", "heun", "renoise", "sde")
"""Samplers of noisy embeddings (diffusion/score/sampling.py)."""


@dataclass(frozen=True, kw_only=True)
class TokenLaw:
    """How tokens are drawn from p(x0 | xt), and the order of sampler=ordered."""

    temperature: float = field(default=1.0, metadata={"help": "divisor of the logits of p(x0 | xt); 0.001 to 1000"})
    top_k: int = field(
        default=0, metadata={"aliases": ["--topk"], "help": "number of likeliest tokens to keep; 0 means all"}
    )
    top_p: float = field(default=1.0, metadata={"help": "probability mass of the likeliest tokens to keep, in (0, 1]"})
    order: str = field(
        default="",
        metadata={
            "choices": ["", *ORDERS],
            "help": "ordered: masked tokens to reveal next, by their predictions: largest probability (confidence), "
            "least entropy, or largest margin between the two likeliest tokens; or by position; default: confidence",
        },
    )
    tokens_per_step: int = field(
        default=1, metadata={"help": "ordered: number of tokens to reveal after each forward pass"}
    )

    def __post_init__(self) -> None:
        check_choices(self)
        if not 1e-3 <= self.temperature <= 1e3:
            raise UserError(f"temperature={self.temperature} must lie in [0.001, 1000] (use top_k=1 for the mode)")
        if self.top_k < 0:
            raise UserError(f"top_k={self.top_k} must be 0 (keep all) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} must lie in (0, 1]; 1 keeps every token")
        check_ranges(self, tokens_per_step=(1, 10**6))


@dataclass(frozen=True)
class SampleArgs(TokenLaw):
    """Settings of sampling from the reverse process."""

    group: ClassVar[str] = "sampler"

    num_steps: float = field(
        default=0,
        metadata={
            "aliases": ["--diffusion_steps"],
            "help": "number of reverse steps, 1 to T; 0 means 128, or T if less; inf: the limit of ever finer steps",
        },
    )
    sampler: str = field(
        default="auto",
        metadata={
            "choices": ["auto", "row-clocks", "ancestral", "cached", *HEURISTIC_SAMPLERS, ORDERED, *EMBEDDING_SAMPLERS],
            "help": "sampler; auto: the first that the process has. From p_theta: row-clocks, rows at their own steps; "
            "ancestral, a forward pass per step; cached, only for changed rows. From other laws: confidence, most "
            "confident first; remdm, with remasking; ordered, in the order of --order, with an exact likelihood. For "
            "process=score: euler, heun, renoise, sde",
        },
    )
    remask_eta: float = field(
        default=0.0, metadata={"help": "remdm: largest remasking probability per step; 0 means 0.02"}
    )
    confidence_threshold: float = field(
        default=0.0,
        metadata={"help": "confidence: probability above which a drawn token is revealed early; 0 means never"},
    )
    guidance: float = field(
        default=1.0,
        metadata={"help": "process=score: guidance scale; above 1 strengthens the given tokens, 1 means none"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.num_steps <= 1_000_000 and self.num_steps % 1 == 0) and self.num_steps != math.inf:
            raise UserError(f"num_steps={self.num_steps} must be a whole number in 1..1000000, 0 for 128, or inf")
        if not 0 <= self.remask_eta <= 1:
            raise UserError(f"remask_eta={self.remask_eta} must lie in [0, 1], a share; 0: 0.02")
        if self.remask_eta and self.sampler != "remdm":
            raise UserError(f"remask_eta is for sampler=remdm, not {self.sampler}; leave it out")
        if not 0 <= self.confidence_threshold < 1:
            raise UserError(f"confidence_threshold={self.confidence_threshold} must lie in [0, 1)")
        if self.confidence_threshold and self.sampler != "confidence":
            raise UserError(f"confidence_threshold is for sampler=confidence, not {self.sampler}; leave it out")
        check_ranges(self, guidance=(0, 100))
        if self.sampler != ORDERED and (self.order or self.tokens_per_step != 1):
            raise UserError(f"order and tokens_per_step are for sampler={ORDERED}, not {self.sampler}; leave them out")
        if self.sampler == ORDERED and self.num_steps:
            raise UserError(
                f"num_steps={self.num_steps:g}: sampler={ORDERED} has no time; give --tokens_per_step instead"
            )

    def require_tokens(self, name: str = "this process") -> None:
        """Refuse settings that apply only to noisy embeddings.

        Raises:
            UserError: with the remedy.
        """
        if self.sampler in EMBEDDING_SAMPLERS:
            raise UserError(f"sampler={self.sampler} is for process=score, not {name}; leave it out")
        if self.guidance != 1:
            raise UserError(f"guidance={self.guidance:g} is for process=score, not {name}; leave it out")

    def warn(self) -> None:
        """Print a note on stderr if samples are not distributed as p_theta."""
        if self.sampler in HEURISTIC_SAMPLERS:
            print(f"note: sampler={self.sampler}: the law is not the model's", file=sys.stderr)
        if self.sampler == ORDERED:
            how = f"compute_elbo.py --estimator {EXACT} computes the likelihood of whole texts"
            print(f"note: sampler={ORDERED} does not sample from p_theta; {how}", file=sys.stderr)


@dataclass(frozen=True)
class SemiArArgs:
    """Length of a text beyond one window."""

    group: ClassVar[str] = "texts longer than the window"

    semi_ar: bool = field(default=False, metadata={"help": "generation of texts longer than the network's window"})
    stride_length: int = field(
        default=0, metadata={"help": "tokens by which the window advances; 0 means half a window"}
    )
    num_strides: int = field(default=1, metadata={"help": "number of advances: window + num_strides * stride tokens"})

    def __post_init__(self) -> None:
        check_ranges(self, stride_length=(0, 10**6), num_strides=(1, 10**6))
        if not self.semi_ar and (self.stride_length or self.num_strides != 1):
            raise UserError("stride_length and num_strides need --semi_ar true; add it")

    def stride(self, window: int) -> int:
        """Return the stride for a window of `window` text tokens.

        Raises:
            UserError: if the stride is not shorter than the window.
        """
        stride = self.stride_length or max(1, window // 2)
        if not 0 < stride < window:
            raise UserError(
                f"stride_length={stride} must lie in 1..{window - 1}, less than the window of {window} tokens"
            )
        return stride


@dataclass(frozen=True)
class BoundArgs(TokenLaw):
    """Settings of the bound's estimator, and of the sampler whose likelihood is computed instead."""

    group: ClassVar[str] = "bound or exact likelihood"

    estimator: str = field(
        default="auto",
        metadata={
            "choices": ["auto", "windows", "stratified", "masked-count", "trajectory", EXACT],
            "help": "estimator of the bound. windows: every window, as published (auto, unless num_steps is inf); "
            "stratified: a sample of windows; masked-count: masked sets by their size; trajectory: the sets along a "
            "reverse process; exact: no bound, but -log p of sampler=ordered with --order, --tokens_per_step, "
            "--temperature, --top_k and --top_p",
        },
    )
    evaluations: int = field(
        default=0,
        metadata={
            "help": "number of forward passes per sentence and round (trajectory: trajectories); 0 means 16 "
            "(trajectory: 2)"
        },
    )
    target_se: float = field(
        default=0.0,
        metadata={"help": "relative standard error at which the rounds stop; 0 means two rounds"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.evaluations <= 1_000_000:
            raise UserError(f"evaluations={self.evaluations} must lie in 0..1000000; 0: the estimator's own choice")
        if self.target_se and not 1e-5 <= self.target_se < 1:
            raise UserError(f"target_se={self.target_se} must lie in [0.00001, 1), a share of the bound")
        for name in ("evaluations", "target_se"):
            if self.estimator == EXACT and getattr(self, name):
                raise UserError(f"{name} does not apply to estimator={EXACT}, which draws nothing; leave it out")

    @property
    def given(self) -> list[str]:
        """The settings of the sampler that are not at their defaults."""
        return [entry.name for entry in fields(TokenLaw) if getattr(self, entry.name) != entry.default]

    @property
    def law(self) -> dict[str, float | int | str]:
        """The sampler's settings, by name, whose exact likelihood is computed; none for a bound."""
        if self.estimator != EXACT:
            return {}
        found = {entry.name: getattr(self, entry.name) for entry in fields(TokenLaw)}
        return found | {"order": self.order or ORDERS[0]}

    def settled(self, num_steps: float, in_the_limit: str = "masked-count") -> "BoundArgs":
        """Resolve estimator=auto: every window for a finite number of steps, `in_the_limit` otherwise.

        Raises:
            UserError: if a number of evaluations is given with estimator=windows.
        """
        choice = "windows" if math.isfinite(num_steps) else in_the_limit
        found = replace(self, estimator=choice) if self.estimator == "auto" else self
        if found.evaluations and found.estimator == "windows":
            raise UserError(
                "evaluations does not apply to windows, which take one forward pass each; set --num_steps instead"
            )
        return found


def check_exact(args: BoundArgs, num_steps: float, name: str = "num_steps") -> None:
    """Refuse the sampler's settings for a bound, and a number of steps, or `name`, for an exact likelihood.

    Raises:
        UserError: with the remedy.
    """
    if args.given and not args.law:
        raise UserError(f"{args.given[0]} is for estimator={EXACT}, not {args.estimator}; add --estimator {EXACT}")
    if args.law and num_steps:
        raise UserError(
            f"{name}={num_steps:g}: the sampler of estimator={EXACT} has no time; give tokens_per_step instead"
        )


EVERY_WINDOW = BoundArgs("windows")
"""Estimator of the published bound."""


def step_windows(total_steps: int, num_steps: int = 0) -> list[tuple[int, int]]:
    """Return the reverse steps (t, s), s < t, from T to 0 in `num_steps` windows, as equal as whole steps allow.

    Args:
        total_steps: T.
        num_steps: 1 to T; 0 means 128, or T if that is less.

    Raises:
        UserError: if num_steps is out of range.
    """
    num_steps = num_steps or min(128, total_steps)
    if not 1 <= num_steps <= total_steps:
        raise UserError(f"num_steps={num_steps} must lie in 1..{total_steps}, the T this process was made with")
    grid = [total_steps * i // num_steps for i in range(num_steps, -1, -1)]
    return list(zip(grid, grid[1:], strict=False))


def reverse_steps(total_steps: float, num_steps: float, step_size: int, name: str = "step_size") -> float:
    """Return the number of reverse steps that a command line requests: num_steps, or T / step_size, rounded up.

    With neither it is 128, or T if that is less. An infinite num_steps is returned unchanged.

    Raises:
        UserError: if num_steps or `name` exceeds T, or if a step size is given for an infinite T.
    """
    if step_size and math.isinf(total_steps):
        raise UserError(f"{name}={step_size}: this checkpoint's time is continuous, without a T; give num_steps")
    if math.isinf(num_steps):
        return math.inf
    asked = step_size or int(num_steps)
    if asked > total_steps:
        raise UserError(f"num_steps or {name} = {asked} must lie in 1..{total_steps}, the T of this checkpoint")
    return -(-total_steps // step_size) if step_size else asked or min(128, total_steps)
