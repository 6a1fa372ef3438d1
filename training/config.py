"""Configuration of a training run: one dataclass for each part, read from the command line."""

import dataclasses
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from data.options import DataArgs, PairArgs, TextFormat
from diffusion.process_options import SETTINGS, ProcessArgs
from models.options import NetworkArgs
from training.arguments import OptimArgs, TrainArgs
from utils import job
from utils.command_line import parse, value_of
from utils.errors import UserError, shown

if TYPE_CHECKING:
    import torch

EPILOG = (
    "Shown are the settings of --process word_freq. For another process: main.py --help --process mdlm "
    f"(also {', '.join(name for name in SETTINGS if name not in ('word_freq', 'mdlm'))})"
)

MOST_WEIGHT = 300
"""Largest factor by which a density of times may raise the weight of a term of the bound."""
MOST_USED = ("train_data", "output_dir", "process", "model_name_or_path", "max_steps", "learning_rate")


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a training run."""

    run: TrainArgs
    data: DataArgs
    pairs: PairArgs
    network: NetworkArgs
    process: ProcessArgs
    optim: OptimArgs
    text: TextFormat

    @classmethod
    def parse(cls, description: str) -> "TrainConfig":
        """Read the command line; replace --time_conditioning auto by the default of the chosen process.

        Raises:
            UserError: if a setting is unknown or out of range.
        """
        process = chosen_process()
        config = cls(
            *parse(parts(process), description, most_used=MOST_USED, elsewhere=foreign_flags(process), epilog=EPILOG)
        )
        if config.network.time_conditioning != "auto":
            return config
        chosen = config.process.default_time_conditioning
        return replace(config, network=replace(config.network, time_conditioning=chosen))

    def by_name(self) -> dict:
        """Return all settings by name, with the number of processes and the job."""
        named = {name: value for part in vars(self).values() for name, value in asdict(part).items()}
        return {**named, "world_size": job.world_size(), "job": job.name()}

    def precision(self, device: "torch.device") -> str:
        """Return the precision of the network: fp32, bf16 or fp16."""
        from utils.device import pick_precision

        return "fp16" if self.run.fp16 else pick_precision(self.run.precision, device)

    def check(self, device: "torch.device") -> None:
        """Check that settings of different parts are compatible.

        Raises:
            UserError: if two of them are not.
        """
        self.process.check_training(
            time_conditioning=self.network.time_conditioning,
            warm_start=self.run.warm_start,
            time_sampling=self.run.time_sampling,
            packing=self.data.packing,
            fused_loss=self.run.fused_loss,
        )
        self._check_density()
        self.text.check(packing=self.data.packing, streaming=self.data.streaming)
        for setting, chosen in (
            ("trim_vocabulary", self.data.trim_vocabulary),
            ("head_learning_rate", self.optim.head_learning_rate),
            ("head_first", self.optim.head_first),
        ):
            if chosen and self.network.lora_rank:
                raise UserError(f"lora_rank={self.network.lora_rank} keeps the network's own head; leave {setting} out")
        if self.network.lora_rank:
            from models.lora import require_peft

            require_peft()
        sharded = self.run.strategy == "fsdp" and job.world_size() > 1
        for setting, chosen in (
            ("fp16", self.precision(device) == "fp16"),
            ("muon", self.optim.optimizer == "muon"),
            ("lora_rank", bool(self.network.lora_rank)),
        ):
            if chosen and sharded:
                raise UserError(
                    f"strategy=fsdp does not support {setting}; use strategy=ddp, or bf16 and adamw without adapters"
                )
        if self.data.streaming and not self.run.max_steps:
            raise UserError("streaming=true reads a text of unknown length; give max_steps")

    def _check_density(self) -> None:
        """Refuse a density of times that makes weights of the bound too large."""
        from diffusion.time_density import TimeDensity

        if self.run.time_sampling == "uniform" or getattr(self.process, "loss_weighting", "elbo") != "elbo":
            return
        largest = TimeDensity(*self.run.bell_shape).largest_weight
        if largest > MOST_WEIGHT:
            raise UserError(
                f"bell={self.run.bell}: the weights of the bound rise to {largest:.2g} times their value, at most "
                f"{MOST_WEIGHT} is allowed; give a wider bell, or --loss_weighting uniform where the process has it"
            )


def chosen_process(argv: list[str] | None = None) -> str:
    """Return the process named in a command line; the flags to parse depend on it.

    Raises:
        UserError: if no process has that name.
    """
    name = value_of("--process", argv) or TrainArgs.process
    if name not in SETTINGS:
        raise UserError(f"process={shown(name)} must be one of {', '.join(SETTINGS)}")
    return name


def parts(process: str) -> list[type]:
    """Return the dataclasses of the command line, in the order of TrainConfig's fields."""
    return [TrainArgs, DataArgs, PairArgs, NetworkArgs, SETTINGS[process], OptimArgs, TextFormat]


def foreign_flags(process: str) -> dict[str, str]:
    """Return the flags that only other processes have, each with a description of its processes."""
    own = {field.name for part in parts(process) for field in dataclasses.fields(part)}
    found: dict[str, list[str]] = {}
    for name, kind in SETTINGS.items():
        for field in dataclasses.fields(kind):
            if field.name not in own:
                found.setdefault(f"--{field.name}", []).append(f"--process {name}")
    return {flag: f"{' and '.join(names)}, not of --process {process}" for flag, names in found.items()}
