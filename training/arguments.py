"""Settings of a training run: length, evaluation, saved states, devices and output folder."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from diffusion.process_options import SETTINGS
from training.records import TRACKERS, trackers_of
from utils.errors import UserError, check_choices, check_ranges


@dataclass(frozen=True)
class TrainArgs:
    """Length of a training run, its process, evaluations, saved states and output folder."""

    group: ClassVar[str] = "run"

    output_dir: str = field(
        metadata={
            "aliases": ["-mdir"],
            "help": "folder for checkpoints, states and log",
        }
    )
    process: str = field(
        default="word_freq",
        metadata={"choices": list(SETTINGS), "help": "process to train"},
    )
    max_steps: int = field(default=0, metadata={"help": "optimizer steps; 0: set by num_train_epochs"})
    num_train_epochs: float = field(
        default=3.0, metadata={"aliases": ["--epochs"], "help": "passes over the training text"}
    )
    max_minutes: float = field(default=0.0, metadata={"help": "minutes until the schedule ends; 0: no limit"})
    accumulation_steps: int = field(
        default=1,
        metadata={"aliases": ["--gradient_accumulation_steps"], "help": "batches of each process per optimizer step"},
    )
    warm_start: float = field(default=0.0, metadata={"help": "share of plain masked-LM training at the start"})
    warm_start_rates: str = field(
        default="0.1,0.4", metadata={"metavar": "X,X", "help": "mask rates of warm_start: low,high"}
    )
    time_sampling: str = field(
        default="uniform",
        metadata={
            "choices": ["uniform", "bell"],
            "help": "density of t/T: uniform or bell (Gaussian)",
        },
    )
    bell: str = field(default="0.5,0.2", metadata={"metavar": "X,X", "help": "bell: its centre and width"})
    bell_share: float = field(default=1.0, metadata={"help": "bell: share of training until times are uniform"})
    precision: str = field(
        default="auto",
        metadata={
            "choices": ["auto", "fp32", "bf16", "fp16"],
            "help": "number format: fp32, bf16, fp16 or auto",
        },
    )
    fp16: bool = field(default=False, metadata={"help": "alias of --precision fp16"})
    fused_loss: bool = field(
        default=False,
        metadata={"help": "loss by parts: less memory, more time"},
    )
    eval_steps: int = field(
        default=0,
        metadata={
            "aliases": ["--eval_interval"],
            "help": "steps between evaluations; 0: up to ten in all",
        },
    )
    eval_minutes: float = field(default=0.0, metadata={"help": "minutes between evaluations; 0: by eval_steps"})
    eval_estimator: str = field(
        default="windows",
        metadata={
            "choices": ["windows", "trajectory"],
            "help": "validation estimator",
        },
    )
    eval_step_size: int = field(default=64, metadata={"help": "diffusion steps per validation window"})
    eval_sequences: int = field(
        default=256,
        metadata={"help": "validation sentences per evaluation; 0: all"},
    )
    logging_steps: int = field(default=50, metadata={"help": "steps between log lines after the first few"})
    resume: str = field(
        default="auto",
        metadata={
            "choices": ["auto", "true", "false"],
            "help": "continuation; auto: if settings are equal; true: also for longer; false: never",
        },
    )
    save_every: int = field(default=0, metadata={"help": "steps between states; 0: set by save_minutes"})
    save_minutes: float = field(default=10.0, metadata={"help": "minutes between saved states"})
    keep_last: int = field(default=2, metadata={"help": "number of saved states to keep"})
    time_limit: float = field(
        default=0.0,
        metadata={"help": "minutes until it saves and ends; 0: none"},
    )
    max_skipped_steps: int = field(default=20, metadata={"help": "limit of consecutive steps without finite loss"})
    strategy: str = field(
        default="ddp",
        metadata={
            "choices": ["ddp", "fsdp"],
            "help": "parallel training by replicas or shards",
        },
    )
    seed: int = field(default=42, metadata={"help": "seed of weights, data order and noise"})
    threads: int = field(default=0, metadata={"help": "CPU threads; 0: torch's default"})
    device: str = field(default="auto", metadata={"help": "device: auto, cpu, cuda, cuda:N or mps"})
    tracker: str = field(
        default="fitlog",
        metadata={
            "metavar": "NAME,...",
            "help": f"records of the run: {', '.join(TRACKERS)}, several by comma, or none",
        },
    )
    num_log_samples: int = field(default=3, metadata={"help": "samples printed and logged at each evaluation"})
    sample_steps: int = field(default=0, metadata={"help": "their reverse steps; 0: 128, or T if less"})
    overwrite: bool = field(default=False, metadata={"help": "replacement of the run in output_dir"})

    def __post_init__(self) -> None:
        if not self.output_dir.strip():
            raise UserError("output_dir is empty; give a folder for the run")
        if not 0 <= self.max_steps <= 10**12 or (self.max_steps == 0 and not 0 < self.num_train_epochs <= 1e6):
            raise UserError(
                f"max_steps={self.max_steps}, num_train_epochs={self.num_train_epochs}: give one of them above 0 "
                "(at most 1e12 steps, 1e6 epochs)"
            )
        if self.fp16 and self.precision not in ("auto", "fp16"):
            raise UserError(f"fp16=true contradicts precision={self.precision}; give one of them")
        from_one = ("accumulation_steps", "eval_step_size", "logging_steps", "keep_last", "max_skipped_steps")
        check_ranges(self, **dict.fromkeys(from_one, (1, 10**9)))
        for name in ("max_minutes", "eval_steps", "eval_sequences", "threads", "seed", "save_every", "time_limit"):
            if not 0 <= getattr(self, name) < 2**63:
                raise UserError(f"{name}={getattr(self, name)} must be 0 or more, and below 2**63")
        if not 0 <= self.eval_minutes < math.inf:
            raise UserError(f"eval_minutes={self.eval_minutes} must be 0 or more, and finite; 0: by eval_steps")
        if self.eval_minutes and self.eval_steps:
            raise UserError("give --eval_minutes or --eval_steps, not both")
        if not 0 < self.save_minutes < math.inf:
            raise UserError(f"save_minutes={self.save_minutes} must be above 0")
        check_choices(self)
        _ = self.trackers  # checks them
        check_ranges(self, num_log_samples=(0, 100), sample_steps=(0, 10**6))
        if self.overwrite and self.resume == "true":
            raise UserError("overwrite=true restarts and resume=true continues; give one of them")
        if not 0 <= self.warm_start <= 1:
            raise UserError(f"warm_start={self.warm_start} must lie in [0, 1]: it is a share of the training")
        low, high = self.rates
        if not 0 < low <= high <= 1:
            raise UserError(f"warm_start_rates={self.warm_start_rates!r} must be two rates, 0 < low <= high <= 1")
        if not 0 < self.bell_share <= 1:
            raise UserError(f"bell_share={self.bell_share} must lie in (0, 1]: it is a share of the training")
        centre, width = self.bell_shape
        if not (0 <= centre <= 1 and 0.05 <= width <= 10):
            raise UserError(f"bell={self.bell!r} must be a time in [0, 1] and a width in [0.05, 10]")
        if self.time_sampling == "bell" and self.bell_share <= self.warm_start:
            raise UserError(
                f"bell_share={self.bell_share} must be above warm_start={self.warm_start}, which comes first"
            )
        if self.time_sampling != "bell":
            for name, default in (("bell", "0.5,0.2"), ("bell_share", 1.0)):
                if getattr(self, name) != default:
                    raise UserError(f"{name} is for time_sampling=bell, not {self.time_sampling}; leave it out")

    @property
    def trackers(self) -> tuple[str, ...]:
        """Names of the programs for which the run is recorded."""
        return trackers_of(self.tracker)

    @property
    def rates(self) -> tuple[float, float]:
        """Lowest and highest mask rate of the warm start."""
        return two_numbers("warm_start_rates", self.warm_start_rates, "0.1,0.4")

    @property
    def bell_shape(self) -> tuple[float, float]:
        """Relative time of the bell's maximum, and its width."""
        return two_numbers("bell", self.bell, "0.5,0.2")


def two_numbers(name: str, text: str, example: str) -> tuple[float, float]:
    """Return the numbers of a setting such as 0.1,0.4.

    Raises:
        UserError: if there are not two.
    """
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"{name}={text!r} must look like {example}") from error
    return first, second


@dataclass(frozen=True)
class OptimArgs:
    """Settings of optimizer, learning rate schedule, gradient clipping and weight average."""

    group: ClassVar[str] = "optimisation"

    optimizer: str = field(
        default="adamw",
        metadata={"choices": ["adamw", "muon"], "help": "optimizer; muon: Muon for matrices only"},
    )
    learning_rate: float = field(default=5e-5, metadata={"aliases": ["--lr"], "help": "peak learning rate"})
    head_learning_rate: float = field(default=0.0, metadata={"help": "peak rate of the vocabulary head; 0: the same"})
    head_first: float = field(default=0.0, metadata={"help": "share of training for the head alone"})
    lr_schedule: str = field(
        default="cosine",
        metadata={
            "choices": ["constant", "cosine", "linear", "inverse_sqrt", "late_cosine"],
            "help": "decay (inverse_sqrt: released)",
        },
    )
    warmup_steps: int = field(default=0, metadata={"help": "steps of warm-up; 0: a hundredth of the training"})
    adam_beta1: float = field(default=0.9, metadata={"help": "decay of the mean gradient"})
    adam_beta2: float = field(default=0.98, metadata={"help": "decay of the mean square (released: 0.999)"})
    weight_decay: float = field(default=0.01, metadata={"help": "weight decay, on matrices only"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "bound on the gradient's norm; 0: none"})
    max_grad_value: float = field(default=0.0, metadata={"help": "bound on gradient entries (released: 5); 0: none"})
    ema_decay: float = field(default=0.0, metadata={"help": "decay of the average of weights; 0: no average"})

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 < self.learning_rate <= 1e3:
            raise UserError(f"learning_rate={self.learning_rate} must be above 0, and at most 1000")
        if not 0 <= self.head_learning_rate <= 1e3:
            raise UserError(f"head_learning_rate={self.head_learning_rate} must lie in 0..1000; 0: learning_rate")
        if not 0 <= self.head_first < 1:
            raise UserError(f"head_first={self.head_first} must lie in [0, 1): it is a share of the training")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay={self.ema_decay} must lie in [0, 1); 0.999 is usual, 0 switches it off")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must lie in [0, 1); 0.9 and 0.98 are the defaults")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm", "max_grad_value"):
            if not 0 <= getattr(self, name) <= 1e12:
                raise UserError(f"{name}={getattr(self, name)} must lie in 0..1e12")

    @property
    def separate_head(self) -> bool:
        """Whether the vocabulary head has a learning rate of its own, or is trained alone at first."""
        return bool(self.head_learning_rate or self.head_first)

    def factor(self, *, of_head: bool, progress: float) -> float:
        """Return the ratio of a weight's learning rate to that of the schedule."""
        if of_head:
            return self.head_learning_rate / self.learning_rate if self.head_learning_rate else 1.0
        return float(progress >= self.head_first)
