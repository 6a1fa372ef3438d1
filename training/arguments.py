"""Settings of a training run: length, evaluation, saved states, devices and output folder."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from checkpoint.model_parts import PROCESSES
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
        metadata={"choices": list(PROCESSES), "help": "process to train"},
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
        metadata={"help": "minutes until the process saves and ends; 0: none"},
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
    sample_steps: int = field(default=0, metadata={"help": "reverse steps of these samples; 0: 128, or T if less"})
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

    @property
    def trackers(self) -> tuple[str, ...]:
        """Names of the programs for which the run is recorded."""
        return trackers_of(self.tracker)

    @property
    def rates(self) -> tuple[float, float]:
        """Lowest and highest mask rate of the warm start."""
        try:
            low, high = (float(rate) for rate in self.warm_start_rates.split(","))
        except ValueError as error:
            raise UserError(f"warm_start_rates={self.warm_start_rates!r} must look like 0.1,0.4") from error
        return low, high
