"""Saved training states: folders of safetensors and JSON, from which a run resumes exactly.

    run.json                     settings of the run that owns the folder
    state/step-000000000500/     the newest few, each written atomically
        weights.safetensors      parameters by name, gathered from all processes
        average.safetensors      their moving average, with --ema_decay
        optimizer.safetensors    "adamw.exp_avg/" + name, ...
        state.json               step, position in the data, scaler, figures of the run
        manifest.json            size and SHA-256 of the other files

Random numbers need no state: those of a batch follow from the seed, the step and the batch's number. Nothing is
unpickled.
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
from utils.errors import UserError
from utils.files import folder_written_whole, manifest_error, read_text, remove_folder, written_whole
from utils.gathering import held_by_leader, shard_like
from utils.job import rank

FORMAT = 1
STATE_NAME = re.compile(r"step-\d{12}")
MAX_PARTS = 10**6
"""Largest number of batches in a step, or of lanes of a stream, that a state may name."""
WEIGHTS, AVERAGE, OPTIMIZER = "weights.safetensors", "average.safetensors", "optimizer.safetensors"


class Learner:
    """Training state that a step changes: weights, their average, optimizers and scaler."""

    def __init__(
        self,
        model: nn.Module,
        average: AveragedWeights,
        optimizers: list[torch.optim.Optimizer],
        scaler: torch.amp.GradScaler,
    ) -> None:
        """Hold references to the four."""
        self.model, self.average, self.optimizers, self.scaler = model, average, optimizers, scaler

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return all tensors by file and name; a collective call."""
        names = self._names()
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

    def _names(self) -> dict[Tensor, str]:
        """Return the names of the parameters; below adapters, whose network is frozen, of the trained ones only."""
        partial = any(".lora_" in name for name, _ in self.model.named_parameters())
        return {p: name for name, p in self.model.named_parameters() if p.requires_grad or not partial}

    def facts(self) -> dict:
        """Return the values that state.json holds."""
        return {"average_updates": self.average.updates, "scaler": self.scaler.state_dict()}

    @torch.no_grad()
    def restore(self, path: Path, facts: dict) -> None:
        """Restore `tensors` and `facts` from a folder; a collective call.

        Raises:
            UserError: if the folder was written for another network or optimizer.
        """
        names = self._names()
        try:
            with safe_open(path / WEIGHTS, "pt") as file:
                _require_same_names(set(file.keys()), set(names.values()))
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


def _require_same_names(found: set[str], wanted: set[str]) -> None:
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
    """Write the state of facts["step"] and keep the newest `keep_last`; a collective call."""
    whole = {file: held_by_leader(tensors) for file, tensors in learner.tensors().items()}
    if rank() == 0:
        with folder_written_whole(folder_of(output, facts["step"]), manifest=True) as folder:
            for file, tensors in whole.items():
                save_file(tensors, folder / file)
            (folder / "state.json").write_text(json.dumps({"format": FORMAT, **learner.facts(), **facts}, indent=1))
        kept = [path for path in sorted(states(output)) if path <= folder_of(output, facts["step"])][-keep_last:]
        for other in set(states(output)) - set(kept):  # older states, and later ones that were damaged
            remove_folder(other)


def folder_of(output: Path, step: int) -> Path:
    """Return the folder of the state after `step` steps."""
    return output / "state" / f"step-{step:012d}"


def states(output: Path) -> Iterator[Path]:
    """Return the folders named like a state, in any order."""
    return (path for path in (output / "state").glob("step-*") if STATE_NAME.fullmatch(path.name) and path.is_dir())


def newest_state(output: Path, warn: Callable[[str], None]) -> tuple[Path, dict] | None:
    """Return the newest intact state and its facts, or None; warn of each damaged one."""
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
    for name, is_valid in VALIDATORS.items():
        if not is_valid(facts[name]):
            raise ValueError(f"{name} cannot be {str(facts[name])[:50]!r}")
    if facts["step"] != int(path.name.removeprefix("step-")):
        raise ValueError(f"step is {facts['step']}, the folder is {path.name}")


def _count(value: object, least: int = 0) -> bool:
    return type(value) is int and value >= least


def _is_position(value: object) -> bool:
    if isinstance(value, list):  # batching.EpochBatches
        return len(value) == 2 and all(map(_count, value))
    counts = [value[name] for name in ("batches", "lanes", "pool")]  # streaming.StreamedBatches
    lanes = list(value["positions"].items())
    return (
        all(map(_count, counts))
        and 1 <= value["lanes"] <= MAX_PARTS
        and all(lane.isdecimal() and len(at) == 4 and all(map(_count, at)) for lane, at in lanes)
    )


VALIDATORS: dict[str, Callable[[object], bool]] = {
    "step": _count,
    "parts": lambda value: _count(value, 1) and value <= MAX_PARTS,
    "position": _is_position,
    "figures": lambda value: all(type(number) in (int, float) for number in value.values()),
    "average_updates": _count,
    "scaler": lambda value: isinstance(value, dict),
    "finished": lambda value: isinstance(value, bool),
    "of_pairs": lambda value: isinstance(value, bool),
    **{name: lambda value: isinstance(value, str) for name in ("torch", "data", "valid_data", "word_freq")},
}
"""Required entries of state.json and their checks."""


def write_settings(output: Path, settings: dict) -> None:
    """Write run.json, which assigns the folder to this run."""
    with written_whole(output / "run.json") as file:
        json.dump(settings, file, indent=1, default=str)


def read_settings(output: Path) -> dict | None:
    """Return the settings in run.json, or None if there is none.

    Raises:
        UserError: if run.json is damaged.
    """
    try:
        settings = json.loads(read_text(output / "run.json"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{output / 'run.json'}: damaged ({error}); give another --output_dir, or --overwrite true"
        ) from error
    counts = (
        [settings.get(name, 1) for name in ("world_size", "accumulation_steps")] if isinstance(settings, dict) else []
    )
    if not counts or not all(_count(number, 1) and number <= MAX_PARTS for number in counts):
        raise UserError(f"{output / 'run.json'}: damaged; give another --output_dir, or --overwrite true")
    return settings
