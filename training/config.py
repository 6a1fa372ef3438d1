"""What the command line of a training is read into: a dataclass for each part, that of the process by its name."""

import dataclasses

import checkpoint
import dataloader
import distributed
import pairs
import protocols
from config import TrainArgs, chosen_process, parse
from models.networks import BertArgs
from optim import OptimArgs

EPILOG = (
    "Shown are the settings of --process word_freq, or of the process that is named: main.py --help --process mdlm "
    f"(also {', '.join(name for name in checkpoint.PROCESSES if name not in ('word_freq', 'mdlm'))})"
)
Settings = tuple[TrainArgs, dataloader.DataArgs, pairs.PairArgs, BertArgs, object, OptimArgs, protocols.TextForm]
"""One dataclass each; the fifth is that of the process."""


def read(description: str) -> Settings:
    """The settings of this process's command line.

    Raises:
        UserError: if one is unknown or out of range.
    """
    process = chosen_process()
    return settled(parse(kinds(process), description, elsewhere=of_others(process), epilog=EPILOG))


def kinds(process: str) -> list[type]:
    """The dataclasses that the command line is read into."""
    noise = checkpoint.PROCESSES[process].settings
    return [TrainArgs, dataloader.DataArgs, pairs.PairArgs, BertArgs, noise, OptimArgs, protocols.TextForm]


def of_others(process: str) -> dict[str, str]:
    """Flags that are settings of other processes than the chosen one, and of which."""
    own = {field.name for kind in kinds(process) for field in dataclasses.fields(kind)}
    found: dict[str, list[str]] = {}
    for name, kind in checkpoint.PROCESSES.items():
        for field in dataclasses.fields(kind.settings):
            if field.name not in own:
                found.setdefault(f"--{field.name}", []).append(f"--process {name}")
    return {flag: f"{' and '.join(names)}, not of --process {process}" for flag, names in found.items()}


def settled(settings: Settings) -> Settings:
    """The settings, the time conditioning that is left to the process as the process has it."""
    network, noise = settings[3], settings[4]
    if network.time_conditioning != "auto":
        return settings
    network = dataclasses.replace(network, time_conditioning=getattr(noise, "own_time", "none"))
    return (*settings[:3], network, *settings[4:])


def by_name(settings: Settings) -> dict:
    """Every setting, and how many processes there are."""
    named = {name: value for part in settings for name, value in dataclasses.asdict(part).items()}
    return {**named, "world_size": distributed.world_size(), "job": distributed.job()}
