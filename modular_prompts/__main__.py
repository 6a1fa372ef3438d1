"""Modular prompts: one frozen network, many tasks, a small file of prompts for each.

python -m modular_prompts pretrain|tune|blackbox|evaluate|predict|routers [--help]
"""

import sys
from importlib import import_module
from typing import NamedTuple

from diffusion.options import SampleArgs
from modular_prompts.arguments import (
    BlackBoxArgs,
    EvaluateArgs,
    FewShotArgs,
    FrozenArgs,
    MachineArgs,
    PoolArgs,
    PredictArgs,
    PretrainArgs,
    RoutersArgs,
    RunArgs,
    TaskArgs,
    TuneArgs,
)
from utils.command_line import parse, run_script
from utils.errors import UserError

PROGRAM = "python -m modular_prompts"


class Command(NamedTuple):
    """A command; its module is imported after the settings are read, so that --help and refusals are quick."""

    module: str
    function: str
    """Name of the function of the module that takes an instance of each of `kinds`."""
    purpose: str
    kinds: tuple[type, ...]
    most_used: tuple[str, ...]


FEW_SHOT = ("prompts", "tasks", "output_dir", "methods", "shots", "seeds")
COMMANDS = {
    "pretrain": Command(
        "pretraining_run",
        "pretrain",
        "train modules and the routers of many tasks together",
        (FrozenArgs, TaskArgs, PoolArgs, PretrainArgs, RunArgs, MachineArgs),
        ("model_name_or_path", "tasks", "split", "output_dir", "max_steps", "num_modules", "prompt_length"),
    ),
    "tune": Command(
        "few_shot_run",
        "tune",
        "learn new tasks from few examples, by gradient",
        (FewShotArgs, TaskArgs, TuneArgs, MachineArgs),
        FEW_SHOT,
    ),
    "blackbox": Command(
        "few_shot_run",
        "blackbox",
        "learn new tasks from the scores of the network alone",
        (FewShotArgs, TaskArgs, BlackBoxArgs, MachineArgs),
        FEW_SHOT,
    ),
    "evaluate": Command(
        "answers_run",
        "evaluate",
        "score the tasks of a folder of prompts on their test files",
        (EvaluateArgs, TaskArgs, MachineArgs),
        ("prompts", "tasks"),
    ),
    "routers": Command(
        "router_map", "routers", "show which modules each task uses", (RoutersArgs,), ("prompts", "picture")
    ),
    "predict": Command(
        "answers_run",
        "predict",
        "answer rows of a task",
        (PredictArgs, SampleArgs, MachineArgs),
        ("prompts", "task", "data", "output"),
    ),
}


def main() -> None:
    """Call the command that the first argument names."""
    name, arguments = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    if name in ("--help", "-h"):
        print(__doc__.strip(), "\n")
        for command, (_, _, purpose, *_) in COMMANDS.items():
            print(f"  {command:10}{purpose}")
    elif name not in COMMANDS:
        raise UserError(f"{name}: no such command; give {', '.join(COMMANDS)}")
    else:
        module, function, purpose, kinds, most_used = COMMANDS[name]
        sys.argv[0] = f"{PROGRAM} {name}"  # begins the usage and an error line
        settings = parse([*kinds], f"{purpose.capitalize()}.", most_used=most_used, argv=arguments)
        getattr(import_module(f"modular_prompts.{module}"), function)(*settings)


if __name__ == "__main__":
    sys.argv[0] = PROGRAM
    run_script(main)
