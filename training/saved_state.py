"""What a training run needs to go on as if it had never stopped, as folders of safetensors and JSON.

    run.json                     the settings: which run this folder is of
    state/step-00000500/         the newest few; each whole, or not there
        weights.safetensors      by the network's parameter names, whole, however many processes held them
        average.safetensors      the moving average of them, if there is one
        optimizer.safetensors    "adamw.exp_avg/" + name, ...
        state.json               step, position in the data, scaler, figures since the last line of the log
        manifest.json            size and SHA-256 of the others

Random numbers need no state: those of a batch follow from the seed, the step and the batch's number in it. Nothing
here is ever unpickled.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from training.optim import AveragedWeights
from utils.distributed import rank
from utils.errors import UserError
from utils.files import folder_written_whole, manifest_error, read_text, remove_folder, written_whole
from utils.gathering import held_by_leader, shard_like

FORMAT = 1
NAME = re.compile(r"step-\d{12}")
MOST_PARTS = 10**6
WEIGHTS, AVERAGE, OPTIMIZER = "weights.safetensors", "average.safetensors", "optimizer.safetensors"


class Learner:
    """Everything that a step changes but figures: weights, their average, optimizers, scaler."""

    def __init__(
        self,
        model: nn.Module,
        average: AveragedWeights,
        optimizers: list[torch.optim.Optimizer],
        scaler: torch.amp.GradScaler,
    ) -> None:
        """Keep them together."""
        self.model, self.average, self.optimizers, self.scaler = model, average, optimizers, scaler

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All of them by file and name. Every process must ask."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        found: dict[str, dict[str, Tensor]] = {WEIGHTS: {name: p.detach() for p, name in names.items()}}
        if self.average.decay:
            pairs = zip(self.average.parameters, self.average.shadow, strict=True)
            found[AVERAGE] = {names[parameter]: shadow for parameter, shadow in pairs}
        found[OPTIMIZER] = {
            f"{_name(optimizer)}.{key}/{names[parameter]}": value
            for optimizer in self.optimizers
            for parameter, values in optimizer.state.items()
            for key, value in values.items()
        }
        return found

    def facts(self) -> dict:
        """What of it is numbers: JSON."""
        return {"average_updates": self.average.updates, "scaler": self.scaler.state_dict()}

    @torch.no_grad()
    def restore(self, path: Path, facts: dict) -> None:
        """What `tensors` and `facts` were when a folder was written. Every process must ask.

        Raises:
            UserError: if the folder is of another network or optimizer.
        """
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        try:
            with safe_open(path / WEIGHTS, "pt") as file:
                _same_names(set(file.keys()), set(names.values()))
                for parameter, name in names.items():
                    _copy(file.get_tensor(name), parameter)
            if self.average.decay:
                with safe_open(path / AVERAGE, "pt") as file:
                    for parameter, shadow in zip(self.average.parameters, self.average.shadow, strict=True):
                        _copy(file.get_tensor(names[parameter]), shadow)
            with safe_open(path / OPTIMIZER, "pt") as file:
                for optimizer in self.optimizers:
                    _restore_optimizer(optimizer, names, file)
            self.average.updates = facts["average_updates"]
            if facts["scaler"]:
                self.scaler.load_state_dict(facts["scaler"])
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: does not fit this network or optimizer ({reason}); remove that folder") from error


def _name(optimizer: torch.optim.Optimizer) -> str:
    return type(optimizer).__name__.lower()


def _same_names(found: set[str], wanted: set[str]) -> None:
    if found != wanted:
        raise ValueError(f"e.g. {min(found ^ wanted)} is only in one of them")


def _copy(value: Tensor, target: Tensor) -> None:
    if value.shape != target.shape:
        raise ValueError(f"a tensor of shape {list(value.shape)} instead of {list(target.shape)}")
    target.copy_(shard_like(value.to(target.device), target))


def _restore_optimizer(optimizer: torch.optim.Optimizer, names: dict, file: safe_open) -> None:
    state, number = optimizer.state_dict(), 0
    held: dict[str, dict[str, str]] = {}
    for entry in list(file.keys()):
        key, _, name = entry.partition("/")
        if key.startswith(prefix := _name(optimizer) + "."):
            held.setdefault(name, {})[key.removeprefix(prefix)] = entry
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            entries = held.get(names[parameter], {})
            values = {key: file.get_tensor(entry) for key, entry in entries.items()}
            state["state"][number] = {
                key: shard_like(value, parameter) if value.shape == parameter.shape else value
                for key, value in values.items()
            }
            number += 1
    state["state"] = {number: values for number, values in state["state"].items() if values}
    optimizer.load_state_dict(state)


# ---- folders ---------------------------------------------------------------------------------------------------------


def save_state(output: Path, learner: Learner, facts: dict, *, keep_last: int) -> None:
    """Write the state of facts["step"] and drop the oldest beyond `keep_last`. Every process must ask."""
    kinds = learner.tensors()
    whole = {kind: held_by_leader(part) for kind, part in kinds.items()}
    if rank() == 0:
        with folder_written_whole(folder_of(output, facts["step"]), manifest=True) as folder:
            for kind, part in whole.items():
                save_file(part, folder / kind)
            (folder / "state.json").write_text(json.dumps({"format": FORMAT, **learner.facts(), **facts}, indent=1))
        kept = [path for path in sorted(states(output)) if path <= folder_of(output, facts["step"])][-keep_last:]
        for other in set(states(output)) - set(kept):  # older ones; and later ones, which were passed over as broken
            remove_folder(other)


def folder_of(output: Path, step: int) -> Path:
    """Where the state after so many steps is."""
    return output / "state" / f"step-{step:012d}"


def states(output: Path) -> Iterator[Path]:
    """The folders that claim to be one, in any order."""
    return (path for path in (output / "state").glob("step-*") if NAME.fullmatch(path.name) and path.is_dir())


def newest_state(output: Path, warn: Callable[[str], None]) -> tuple[Path, dict] | None:
    """The newest_state state that is whole, and its facts; those that are not are named and passed over."""
    for path in sorted(states(output), reverse=True):
        wrong = manifest_error(path)
        try:
            facts = json.loads(read_text(path / "state.json")) if not wrong else {}
            if not wrong and facts["format"] != FORMAT:
                wrong = f"of format {facts['format']}, this version reads {FORMAT}"
            elif not wrong:
                _check(facts, path)
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            wrong = f"state.json is damaged ({error})"
        if not wrong:
            return path, facts
        warn(f"warning: {path} is passed over: {wrong}")
    return None


def _check(facts: dict, path: Path) -> None:
    for name, right in RIGHT.items():
        if not right(facts[name]):
            raise ValueError(f"{name} cannot be {str(facts[name])[:50]!r}")
    if facts["step"] != int(path.name.removeprefix("step-")):
        raise ValueError(f"it is of step {facts['step']}")


def _count(value: object, least: int = 0) -> bool:
    return type(value) is int and value >= least


def _is_position(value: object) -> bool:
    if isinstance(value, list):  # batches.EpochBatches
        return len(value) == 2 and all(map(_count, value))
    counts = [value[name] for name in ("batches", "lanes", "pool")]  # streaming.StreamedBatches
    lanes = list(value["positions"].items())
    return (
        all(map(_count, counts))
        and 1 <= value["lanes"] <= MOST_PARTS
        and all(lane.isdecimal() and len(at) == 4 and all(map(_count, at)) for lane, at in lanes)
    )


RIGHT: dict[str, Callable[[object], bool]] = {
    "step": _count,
    "parts": lambda value: _count(value, 1) and value <= MOST_PARTS,
    "position": _is_position,
    "figures": lambda value: all(type(number) in (int, float) for number in value.values()),
    "average_updates": _count,
    "scaler": lambda value: isinstance(value, dict),
    "finished": lambda value: isinstance(value, bool),
    "of_pairs": lambda value: isinstance(value, bool),
    **{name: lambda value: isinstance(value, str) for name in ("torch", "data", "valid_data", "word_freq")},
}
"""What state.json must hold."""


def write_settings(output: Path, settings: dict) -> None:
    """From here on the folder is this run's."""
    with written_whole(output / "run.json") as file:
        json.dump(settings, file, indent=1, default=str)


def read_settings(output: Path) -> dict | None:
    """Which run a folder is of; None if it does not say.

    Raises:
        UserError: if it says so in a way that cannot be read.
    """
    try:
        settings = json.loads(read_text(output / "run.json"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{output / 'run.json'}: damaged ({error}); give another folder, or --overwrite true"
        ) from error
    counts = (
        [settings.get(name, 1) for name in ("world_size", "accumulation_steps")] if isinstance(settings, dict) else []
    )
    if not counts or not all(_count(number, 1) and number <= MOST_PARTS for number in counts):
        raise UserError(f"{output / 'run.json'}: damaged; give another folder, or --overwrite true")
    return settings
