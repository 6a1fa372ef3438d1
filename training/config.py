"""What the command line of a training is read into: a dataclass for each part, that of the process by its name."""

import dataclasses

from checkpoint.text_model import PROCESSES
from data.pairs import PairArgs
from data.row_formats import RowFormat
from data.splits import DataArgs
from models.networks import BertArgs
from training.arguments import TrainArgs
from training.optim import OptimArgs
from utils import distributed
from utils.command_line import parse, value_of
from utils.errors import UserError, shown

EPILOG = (
    "Shown are the settings of --process word_freq, or of the process that is named: main.py --help --process mdlm "
    f"(also {', '.join(name for name in PROCESSES if name not in ('word_freq', 'mdlm'))})"
)
Settings = tuple[TrainArgs, DataArgs, PairArgs, BertArgs, object, OptimArgs, RowFormat]
"""One dataclass each; the fifth is that of the process."""


def read(description: str) -> Settings:
    """The settings of this process's command line.

    Raises:
        UserError: if one is unknown or out of range.
    """
    process = chosen_process()
    return settled(parse(kinds(process), description, elsewhere=of_others(process), epilog=EPILOG))


def chosen_process(argv: list[str] | None = None) -> str:
    """Return the process that a command line names: its settings are flags too, so it must be known before parsing.

    Raises:
        UserError: if there is none of that name.
    """
    name = value_of("--process", argv) or TrainArgs.process
    if name not in PROCESSES:
        raise UserError(f"process={shown(name)} must be one of {', '.join(PROCESSES)}")
    return name


def kinds(process: str) -> list[type]:
    """The dataclasses that the command line is read into."""
    noise = PROCESSES[process].settings
    return [TrainArgs, DataArgs, PairArgs, BertArgs, noise, OptimArgs, RowFormat]


def of_others(process: str) -> dict[str, str]:
    """Flags that are settings of other processes than the chosen one, and of which."""
    own = {field.name for kind in kinds(process) for field in dataclasses.fields(kind)}
    found: dict[str, list[str]] = {}
    for name, kind in PROCESSES.items():
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
