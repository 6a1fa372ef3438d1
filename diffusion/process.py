"""What every diffusion process shares: the data it sees, the network it calls, the numbers it returns.

Letters: B sentences in a batch, L tokens in a sentence, V entries in the vocabulary, T noise steps, D hidden units.
A process (diffusion_*.py) knows networks only as a `Denoiser`; a network (models/*.py) knows nothing of noise.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Protocol

import torch
from torch import Generator, Tensor

Generators = Generator | Sequence[Generator] | None
"""One stream for the whole batch, or one stream per sentence (then a sentence's draws do not depend on its batch)."""


class UserError(ValueError):
    """Something the user gave cannot be used; the message names the value, the bound and the remedy."""


def check_choices(args: object) -> None:
    """Refuses a setting that is none of the choices its field names, however the dataclass was made.

    Raises:
        UserError: naming the setting and its choices.
    """
    for part in fields(args):
        choices, value = part.metadata.get("choices"), getattr(args, part.name)
        if choices and value not in choices:
            raise UserError(f"{part.name}={value!r} must be one of {', '.join(choices)}")


def check_ranges(args: object, **bounds: tuple[float, float]) -> None:
    """Refuses a setting outside its bounds, (least, most); one that is not a number is outside.

    Raises:
        UserError: naming the setting and its bounds.
    """
    for name, (least, most) in bounds.items():
        if not least <= getattr(args, name) <= most:
            raise UserError(f"{name}={getattr(args, name)} must lie in {least}..{most}")


MOST_SHOWN = 200
"""Characters of a refused value that an error quotes."""


def shown(value: object) -> str:
    """A value as an error message quotes it: its repr, the middle left out if it is long."""
    text = repr(value)
    half = MOST_SHOWN // 2
    return text if len(text) <= MOST_SHOWN else f"{text[:half]}...{text[-half:]} ({len(text):,} characters)"


def require_finite(report: dict[str, object], remedy: str) -> None:
    """Refuse to report a figure that is no number: JSON has no NaN, and a reader would take it for a result.

    Args:
        report: figures by name; what is not a float is left alone.
        remedy: ends the message.

    Raises:
        UserError: naming the first such figure.
    """
    for name, value in report.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name} is {value}, not a finite number; {remedy}")


@dataclass(frozen=True)
class Batch:
    """Sentences padded to one length. Conditioning is data: what is not in `target_mask` is given."""

    input_ids: Tensor
    """int64 [B, L], clean tokens x0, special tokens included."""
    attention_mask: Tensor
    """bool [B, L], True where a token may be attended to."""
    target_mask: Tensor
    """bool [B, L], True where a token is noised and scored: all text, or the target side of a pair."""
    noised_mask: Tensor | None = None
    """bool [B, L], True where a token is noised, whether scored or not (MDLM's [PAD]s); None: targets alone are."""

    @property
    def noised(self) -> Tensor:
        """Bool [B, L], True where a token is noised."""
        return self.target_mask if self.noised_mask is None else self.noised_mask

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def rows(self, chosen: slice | Tensor | tuple) -> "Batch":
        """Some of the sentences; of a pair of indices, some columns of them."""
        return self._each(lambda tensor: tensor[chosen])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(*(tensor if tensor is None else change(tensor) for tensor in vars(self).values()))


@dataclass(frozen=True)
class Share:
    """Which part of a training step a batch is, so that the noise levels of all parts are spread over the step."""

    part: int = 0
    parts: int = 1
    seed: int = 0
    """One for all parts of a step."""


WHOLE = Share()
"""A batch that is a step by itself."""


@dataclass(frozen=True)
class Loss:
    """Sums and counts of one batch, never means: dividing is left to whoever knows the whole step."""

    total: Tensor
    """Scalar to back-propagate, in nats summed over target tokens."""
    num_tokens: Tensor
    """Scalar int64, target tokens in the batch."""
    terms: dict[str, Tensor]
    """Detached scalar sums for the log, in nats."""


@dataclass(frozen=True)
class Bound:
    """The three terms of an upper bound of -log p(x0), each [B] in nats per sentence (D3PM, Eq. 1)."""

    prior: Tensor
    """KL(q(x_T | x0) || p(x_T)); zero whenever everything is masked at step T."""
    diffusion: Tensor
    """Sum of KL(q(x_s | x_t, x0) || p(x_s | x_t)) over the steps that end at s > 0."""
    reconstruction: Tensor
    """-log p(x0 | x_t) of the step that ends at s = 0."""
    forwards: Tensor
    """How often the network saw each sentence; no part of the bound."""

    @property
    def total(self) -> Tensor:
        """[B], nats per sentence."""
        return self.prior + self.diffusion + self.reconstruction


OTHER_LAWS = ("confidence", "remdm")
"""Samplers whose samples do not follow p_theta (decoding.py)."""
OF_EMBEDDINGS = ("euler", "heun", "renoise", "sde")
"""Samplers of noisy embeddings (score_samplers.py)."""


@dataclass(frozen=True)
class SampleArgs:
    """How to draw from the reverse process."""

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
            "euler, heun, renoise and sde are for process=score (score_samplers.py)",
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
            print(f"note: sampler={self.sampler}: the law is not the model's (decoding.py)", file=sys.stderr)


@dataclass(frozen=True)
class BoundArgs:
    """How the bound is estimated."""

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


class Denoiser(Protocol):
    """A network p_theta(x0 | xt), split in two so that the vocabulary is touched only where it is needed."""

    time_conditioned: bool
    """Whether the output depends on t at all."""

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 [B, L], int64 [B] in 1..T, bool [B, L] -> hidden states [B, L, D]."""
        ...

    def decode(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] -> logits [..., V], a tensor that the caller may change."""
        ...


class ScoreDenoiser(Denoiser, Protocol):
    """A network over embeddings, see models/score_denoiser.py."""

    embedding_size: int
    self_conditioning: bool
    warp: object | None

    def embed(self, tokens: Tensor) -> Tensor:
        """int64 [...] -> [..., E]."""

    def table(self) -> Tensor:
        """[V, E]."""

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor, previous: Tensor | None = None) -> Tensor:
        """Scaled noisy embeddings [B, L, E], levels [B, L], bool [B, L] -> hidden states [B, L, D]."""


StepCallback = Callable[[Tensor, Tensor], None]
"""on_step(finished, xt): after each forward, the rows that it finished, int64 [n], and how all stand, int64 [N, L].

Rows without a target are nobody's work and are not reported. xt is the sampler's own: copy what is to be kept.
"""


class Process(Protocol):
    """The verbs that scripts may call."""

    fused_loss: bool = False
    """Whether the loss makes logits a few sentences at a time, and again for the gradient, instead of keeping them."""

    def loss(
        self, denoiser: Denoiser, batch: Batch, *, generator: Generator | None = None, share: Share = WHOLE
    ) -> Loss:
        """An unbiased training loss of the batch, which is `share` of a step."""
        ...

    def bound(
        self,
        denoiser: Denoiser,
        batch: Batch,
        num_steps: int,
        args: BoundArgs = EVERY_WINDOW,
        *,
        generator: Generators = None,
    ) -> Bound:
        """The terms of the likelihood bound over `num_steps` reverse steps."""
        ...

    def nll_bound(
        self,
        denoiser: Denoiser,
        batch: Batch,
        num_steps: int,
        args: BoundArgs = EVERY_WINDOW,
        *,
        generator: Generators = None,
    ) -> Tensor:
        """[B], nats per sentence: an unbiased estimate of an upper bound of -log p_theta(x0) at `num_steps` steps."""
        return self.bound(denoiser, batch, num_steps, args, generator=generator).total

    def check_sampling(self, args: SampleArgs) -> None:
        """Refuses settings that it cannot be sampled with, before any work.

        Raises:
            UserError: with the remedy.
        """
        ...

    def sample(
        self,
        denoiser: Denoiser,
        batch: Batch,
        args: SampleArgs,
        *,
        rows_at_once: int = 0,
        generator: Generators = None,
        on_step: StepCallback | None = None,
    ) -> Tensor:
        """int64 [N, L]: the batch with every target token drawn anew, so many rows in a forward (0: all)."""
        ...


def step_windows(total_steps: int, num_steps: int = 0) -> Iterator[tuple[int, int]]:
    """The reverse steps (t, s), s < t, that lead from T to 0 in `num_steps` windows, as equal as whole steps allow.

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
    yield from zip(grid, grid[1:], strict=False)


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
