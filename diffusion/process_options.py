"""Settings of every process, saved with the checkpoint; sampling and evaluation read them from there."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from utils.errors import UserError, check_choices, check_ranges

NOISE = ("loglinear", "cosine", "cosinesqr", "linear", "geometric")
"""Noise schedules of MDLM, D3PM and SEDD (diffusion/masked/noise_schedules.py)."""
GIVEN_KINDS = ("prefix", "span", "infill")
"""Kinds of context: the part of a text that is given in training."""
RISING_STEPS = 2000
"""Number of whole steps of levels that rise from left to right, as in AR-Diffusion."""
SIGMA_MAX_PER_SQRT_E = 18.75
"""Default sigma_max divided by the square root of E: CDCD's 300 at its width of 256."""


class ProcessArgs:
    """Base class of a process's settings, which are saved with the checkpoint."""

    group: ClassVar[str] = "process"

    time_period: ClassVar[int] = 1
    """Period, over 2 pi, of the slowest sinusoid of the time input."""
    default_time_conditioning: ClassVar[str] = "none"
    """Value of --time_conditioning auto."""

    @property
    def network_settings(self) -> dict[str, bool] | None:
        """Settings required of a network over embeddings; None if the process needs a network over tokens."""
        return None

    def check_time(self, time_conditioning: str) -> None:
        """Refuse a time conditioning that does not suit the process.

        Raises:
            UserError: with the remedy.
        """

    def check_training(
        self, *, time_conditioning: str, warm_start: float, time_sampling: str, packing: bool, fused_loss: bool
    ) -> None:
        """Refuse training settings that are incompatible with the process.

        Raises:
            UserError: with the remedy.
        """
        self.check_time(time_conditioning)


class SigmaInputArgs(ProcessArgs):
    """Base class of the settings of processes whose time input is sigma(t)."""

    time_period: ClassVar[int] = 10_000

    def check_time(self, time_conditioning: str) -> None:
        """Refuse time tokens: sigma(t) is not a whole step."""
        if time_conditioning == "token":
            raise UserError("time_conditioning=token counts whole steps, sigma is continuous; use none or layerwise")


@dataclass(frozen=True)
class WordFreqArgs(ProcessArgs):
    """Settings of the process, saved with the checkpoint; sampling and evaluation read them from there."""

    num_steps: int = field(
        default=2048, metadata={"aliases": ["--diffusion_steps"], "help": "number of forward steps T"}
    )
    schedule: str = field(
        default="mutual",
        metadata={"aliases": ["--noise_schedule"], "choices": ["mutual", "cosine", "linear"], "help": "base schedule"},
    )
    spindle: str = field(
        default="paper",
        metadata={
            "choices": ["paper", "released", "none"],
            "help": "informativeness: paper, released, none",
        },
    )
    word_freq_lambda: float = field(default=0.3, metadata={"help": "amplitude of the spindle, lambda of Eq. 11"})
    posterior: str = field(
        default="exact",
        metadata={
            "choices": ["exact", "released"],
            "help": "posterior: exact (Bayes) or released",
        },
    )
    loss_weighting: str = field(
        default="elbo",
        metadata={
            "choices": ["elbo", "uniform"],
            "help": "loss weights: elbo (exact) or uniform",
        },
    )
    hybrid_lambda: float = field(default=0.0, metadata={"help": "auxiliary loss weight (released: 0.01)"})

    @property
    def time_period(self) -> int:
        """Return T; see ProcessArgs."""
        return self.num_steps

    def check_training(
        self, *, time_conditioning: str, warm_start: float, time_sampling: str, packing: bool, fused_loss: bool
    ) -> None:
        """See ProcessArgs."""
        if (self.posterior, self.loss_weighting) == ("released", "uniform"):
            raise UserError(
                "posterior=released excludes loss_weighting=uniform; add its cross-entropy term with --hybrid_lambda"
            )
        if self.posterior == "released" and fused_loss:
            raise UserError(
                "fused_loss=true excludes posterior=released, whose loss needs all logits at once; leave it out"
            )

    def __post_init__(self) -> None:
        check_choices(self)
        if not isinstance(self.num_steps, int) or not 1 <= self.num_steps <= 1_000_000:
            raise UserError(f"num_steps={self.num_steps} (T) must lie in 1..1000000")
        if self.schedule == "linear" and self.num_steps > 10_000:
            raise UserError(f"num_steps={self.num_steps}: schedule=linear underflows beyond 10000 steps; use mutual")
        if not 0 <= self.word_freq_lambda <= 10:
            raise UserError(f"word_freq_lambda={self.word_freq_lambda} must lie in [0, 10]; 0 switches the spindle off")
        if not 0 <= self.hybrid_lambda < math.inf:
            raise UserError(f"hybrid_lambda={self.hybrid_lambda} must be 0 or more")


@dataclass(frozen=True)
class MdlmArgs(SigmaInputArgs):
    """Settings of the process, saved with the checkpoint."""

    noise: str = field(default="loglinear", metadata={"choices": list(NOISE), "help": "noise schedule sigma(t)"})
    num_steps: int = field(default=0, metadata={"help": "number of time steps T in training; 0 means continuous time"})
    loss_weighting: str = field(
        default="elbo",
        metadata={
            "choices": ["elbo", "uniform"],
            "help": "weights of the training loss: those of the bound, or uniform",
        },
    )
    importance_sampling: bool = field(
        default=False, metadata={"help": "distribution of t that gives every cross-entropy the same weight"}
    )
    change_of_variables: bool = field(
        default=False,
        metadata={"help": "importance sampling with the scaled log mask rate as time input"},
    )
    sampling_eps: float = field(default=1e-3, metadata={"help": "smallest t in training"})

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, num_steps=(0, 10**6), sampling_eps=(1e-6, 0.5))
        if self.importance_sampling and self.change_of_variables:
            raise UserError("importance_sampling and change_of_variables exclude each other; give one")
        if self.loss_weighting == "uniform" and (self.importance_sampling or self.change_of_variables):
            raise UserError("loss_weighting=uniform excludes importance_sampling and change_of_variables; give one")
        if self.num_steps and (self.importance_sampling or self.change_of_variables):
            raise UserError(
                f"num_steps={self.num_steps}: importance sampling needs continuous time; leave num_steps at 0"
            )

    def check_training(
        self, *, time_conditioning: str, warm_start: float, time_sampling: str, packing: bool, fused_loss: bool
    ) -> None:
        """See ProcessArgs."""
        self.check_time(time_conditioning)
        if time_sampling != "uniform" and (self.importance_sampling or self.change_of_variables):
            raise UserError(
                f"time_sampling={time_sampling} excludes importance_sampling and change_of_variables; give one"
            )


@dataclass(frozen=True)
class D3pmArgs(SigmaInputArgs):
    """Settings of the process, saved with the checkpoint."""

    noise: str = field(
        default="loglinear",
        metadata={"choices": list(NOISE), "help": "noise schedule alpha_bar(t) at t = 0, 1/T, ..., 1"},
    )
    num_steps: int = field(
        default=1000, metadata={"aliases": ["--diffusion_steps"], "help": "number of forward steps T"}
    )
    subs_masking: bool = field(default=False, metadata={"help": "probability 0 for [MASK] in the prediction"})
    reconstruction_weight: float = field(
        default=1.0, metadata={"help": "weight of the reconstruction term in the training loss; the bound has weight 1"}
    )

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, num_steps=(1, 10**6), reconstruction_weight=(0, 1000))


@dataclass(frozen=True)
class SeddArgs(SigmaInputArgs):
    """Settings of the process, saved with the checkpoint."""

    noise: str = field(default="loglinear", metadata={"choices": list(NOISE), "help": "noise schedule sigma(t)"})
    sampling_eps: float = field(default=1e-3, metadata={"help": "smallest t in training"})
    default_time_conditioning: ClassVar[str] = "layerwise"

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, sampling_eps=(1e-6, 0.5))

    def check_time(self, time_conditioning: str) -> None:
        """Check that the network has sigma as its time input.

        Raises:
            UserError: if it has another time input or none.
        """
        if time_conditioning != "layerwise":
            raise UserError(f"time_conditioning={time_conditioning}: a score depends on sigma; use layerwise")

    def check_training(
        self, *, time_conditioning: str, warm_start: float, time_sampling: str, packing: bool, fused_loss: bool
    ) -> None:
        """See ProcessArgs."""
        self.check_time(time_conditioning)
        if warm_start:
            raise UserError("warm_start trains probabilities, but process=sedd predicts scores; leave it out")


@dataclass(frozen=True)
class AutoregressiveArgs(ProcessArgs):
    """Settings of the process; it has none."""

    num_steps: ClassVar[int] = 1
    """Reported number of steps; the likelihood does not use steps."""

    def check_time(self, time_conditioning: str) -> None:
        """See ProcessArgs."""
        if time_conditioning != "none":
            raise UserError(f"time_conditioning={time_conditioning}: process=ar has no time; leave it out")

    def check_training(
        self, *, time_conditioning: str, warm_start: float, time_sampling: str, packing: bool, fused_loss: bool
    ) -> None:
        """See ProcessArgs."""
        self.check_time(time_conditioning)
        if warm_start:
            raise UserError("warm_start is for masked processes; leave it out with process=ar")
        if time_sampling != "uniform":
            raise UserError(f"time_sampling={time_sampling} is for masked processes; leave it out with process=ar")
        if packing:
            raise UserError("packing=true is for masked processes; with process=ar use --max_tokens")


@dataclass(frozen=True)
class ScoreArgs(ProcessArgs):
    """Settings that define the process; saved with the checkpoint."""

    sigma_min: float = field(default=1.0, metadata={"help": "lowest noise level"})
    sigma_max: float = field(
        default=0.0, metadata={"help": "highest noise level; 0 means 18.75 times the square root of the embedding size"}
    )
    rho: float = field(
        default=3.0, metadata={"help": "exponent of the level spacing: 1 is even, more favours low levels"}
    )
    loss_weighting: str = field(
        default="uniform",
        metadata={"choices": ["uniform", "edm"], "help": "weight of the cross-entropy; edm: (sigma^2 + 1) / sigma^2"},
    )
    level_order: str = field(
        default="free",
        metadata={"choices": ["free", "rising"], "help": "order of the levels; rising: left to right (AR-Diffusion)"},
    )
    position_levels: float = field(
        default=0.1, metadata={"help": "share of sentences in which every position has its own noise level"}
    )
    given_share: float = field(default=0.5, metadata={"help": "share of sentences with given tokens"})
    given_kinds: str = field(
        default=",".join(GIVEN_KINDS), metadata={"help": "kinds of given parts: prefix, span, infill"}
    )
    drop_given: float = field(
        default=0.0, metadata={"help": "share of sentences whose given tokens are replaced by noise, for --guidance"}
    )
    output_prior: bool = field(
        default=True, metadata={"help": "log-likelihood of x_t under each token, added to the network's logits (Plaid)"}
    )
    self_conditioning: bool = field(
        default=True, metadata={"help": "the network's previous estimate as a second input"}
    )
    time_warp: bool = field(default=True, metadata={"help": "learned distribution of the training noise levels (CDCD)"})

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, sigma_min=(1e-3, 1e3), sigma_max=(0, 1e6), rho=(0.1, 100))
        check_ranges(self, position_levels=(0, 1), given_share=(0, 1), drop_given=(0, 1))
        if self.sigma_max and self.sigma_max <= self.sigma_min:
            raise UserError(
                f"sigma_max={self.sigma_max:g} must be above sigma_min={self.sigma_min:g}; 0 sets it by the size"
            )
        if not self.sigma_max and self.sigma_min >= SIGMA_MAX_PER_SQRT_E:
            raise UserError(f"sigma_min={self.sigma_min:g} must be below {SIGMA_MAX_PER_SQRT_E}; or give sigma_max")
        if not set(self.given_kinds.split(",")) <= set(GIVEN_KINDS):
            raise UserError(f"given_kinds={self.given_kinds!r} must be some of {','.join(GIVEN_KINDS)}")
        if self.level_order == "rising" and self.time_warp:
            raise UserError("level_order=rising fixes the levels; add time_warp=false")

    @property
    def num_steps(self) -> float:
        """T: infinite in continuous time; AR-Diffusion's number of whole steps with rising levels."""
        return RISING_STEPS if self.level_order == "rising" else math.inf

    @property
    def network_settings(self) -> dict[str, bool]:
        """Settings that a network made for this process must have."""
        return {"self_conditioning": self.self_conditioning, "time_warp": self.time_warp}

    def check_time(self, time_conditioning: str) -> None:
        """See ProcessArgs."""
        if time_conditioning == "token":
            raise UserError("time_conditioning=token: process=score always inputs the noise level; leave it out")

    def check_training(
        self, *, time_conditioning: str, warm_start: float, time_sampling: str, packing: bool, fused_loss: bool
    ) -> None:
        """See ProcessArgs."""
        self.check_time(time_conditioning)
        if warm_start:
            raise UserError("warm_start is for masked processes; leave it out with process=score")
        if time_sampling != "uniform":
            raise UserError(f"time_sampling={time_sampling} is for masked processes; leave it out with process=score")


SETTINGS: dict[str, type[ProcessArgs]] = {
    "word_freq": WordFreqArgs,
    "mdlm": MdlmArgs,
    "d3pm": D3pmArgs,
    "sedd": SeddArgs,
    "ar": AutoregressiveArgs,
    "score": ScoreArgs,
}
"""Settings of each process by its name, as in --process."""
