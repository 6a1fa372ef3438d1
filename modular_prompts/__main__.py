"""Modular prompts: one frozen network, many tasks, a small file of prompts for each.

python -m modular_prompts pretrain|tune|blackbox|evaluate|predict|routers [--help]
"""

import sys
from importlib import import_module

from utils.command_line import run_script
from utils.errors import UserError

PROGRAM = "python -m modular_prompts"
COMMANDS = {
    "pretrain": ("pretraining_run", "main", "train modules and the routers of many tasks together"),
    "tune": ("few_shot_run", "tune", "learn new tasks from few examples, by gradient"),
    "blackbox": ("few_shot_run", "blackbox", "learn new tasks from the scores of the network alone"),
    "evaluate": ("answers_run", "evaluate", "score the tasks of a folder of prompts on their test files"),
    "routers": ("router_map", "routers", "show which modules each task uses"),
    "predict": ("answers_run", "predict", "answer rows of a task"),
}
"""Module of each command, its function, which takes the arguments, and what it does."""


def main() -> None:
    """Call the command that the first argument names."""
    name, arguments = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    if name in ("--help", "-h"):
        print(__doc__.strip(), "\n")
        for command, (_, _, purpose) in COMMANDS.items():
            print(f"  {command:10}{purpose}")
    elif name not in COMMANDS:
        raise UserError(f"{name}: no such command; give {', '.join(COMMANDS)}")
    else:
        module, function, _ = COMMANDS[name]
        sys.argv[0] = f"{PROGRAM} {name}"  # begins the usage and an error line
        getattr(import_module(f"modular_prompts.{module}"), function)(arguments)


if __name__ == "__main__":
    sys.argv[0] = PROGRAM
    run_script(main)
