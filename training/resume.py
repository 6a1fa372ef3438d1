"""Whether a training run begins, goes on, or is done: what its output folder says of it."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from training.arguments import TrainArgs
from training.output_folder import OUTPUTS
from training.saved_state import newest_state, read_settings, states
from utils.distributed import job, started_again, world_size
from utils.errors import UserError, shown
from utils.files import local_path, open_regular

WITHOUT_INFLUENCE = {
    "output_dir", "cache_dir", "device", "threads", "fitlog", "logging_steps", "overwrite", "resume", "save_every",
    "save_minutes", "keep_last", "time_limit", "max_skipped_steps", "strategy", "compile", "attn_implementation",
    "gradient_checkpointing", "fused_loss", "num_workers", "world_size", "job",
}  # fmt: skip
"""Settings that change nothing, or only roundings, of what is learnt."""
LENGTH = {"max_steps", "num_train_epochs", "max_minutes", "eval_steps", "eval_sequences", "eval_step_size"}
"""Settings that --resume true may change: to train for longer."""


BY_CONTENT = {"train_data", "valid_data", "word_freq_file", "tokenizer", "model_name_or_path"}
"""Settings that name a place: of one that is there, what it holds is compared (`require_same_text`), not its name."""
BEFORE = {
    "process": "word_freq",
    "protocol": "unpadded",
    "detokenizer": "none",
    "reconstruction_weight": 1.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.98,
    "strip_accents": False,  # a learnt vocabulary did so, and goes on to: it is the run's own
}
"""Settings of runs that began before there was a choice."""
SAID = {
    "data": "text",
    "valid_data": "validation text",
    "word_freq": "word frequencies",
    "network": "network settings",
}


@dataclass(frozen=True)
class Start:
    """Where a run stands."""

    path: Path | None = None
    """The saved state to go on from; None: the beginning."""
    facts: dict = field(default_factory=dict)
    """Its state.json."""
    kept: dict = field(default_factory=dict)
    """Settings that stay as the run began with them, whatever this process was given."""
    finished: bool = False
    """Whether there is nothing left to do."""
    moved: bool = False
    """Whether a path is another than the run began with: what it holds is still to be compared."""

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self.facts.get("step", 0)


def find_start(args: TrainArgs, settings: dict, say: Callable[[str], None]) -> Start:
    """What the folder holds of a run of these settings.

    Args:
        args: with resume and overwrite.
        settings: all of them, by name.
        say: is told of saved states that are broken.

    Raises:
        UserError: if it holds a run of other settings, or one that may not be resumed, or none that must be, or none
            of whose states is whole.
    """
    output = Path(args.output_dir)
    present = [name for name in OUTPUTS if (output / name).exists()]
    if (output / "log.jsonl").exists():
        open_regular(output / "log.jsonl").close()  # a pipe would be waited for
    if not present and args.resume == "true":
        raise UserError(f"output_dir={output}: resume=true, but there is no run in it; leave --resume out")
    if not present or (args.overwrite and not _began_here(output, settings)):
        return Start()
    remedy = "give another folder, or --overwrite true to replace it"
    known = read_settings(output)
    if known is None:
        raise UserError(f"output_dir={output} holds another run ({', '.join(present)}); {remedy}")
    differing = differences(known, settings, LENGTH if args.resume == "true" else set())
    if differing:
        more = "" if not set(differing) <= LENGTH else "; --resume true goes on with it for longer"
        listed = _listed(known, differing)
        raise UserError(f"output_dir={output} holds a run with other settings ({listed}); {remedy}{more}")
    if args.resume == "false":
        raise UserError(f"output_dir={output} holds this very run, and resume=false; {remedy}")
    kept = {name: known[name] for name in ("accumulation_steps", "world_size") if name in known}
    found = newest_state(output, say)
    moved = _moved(known, settings)
    if moved and (found is None or not set(found[1]) >= {"data", "network"}):
        raise UserError(f"output_dir={output} holds a run with other settings ({_listed(known, moved)}); {remedy}")
    if found is None:
        if list(states(output)):  # never begin anew over what someone may still mend
            raise UserError(f"output_dir={output}: none of its saved states is whole, see above; {remedy}")
        if _lost_states(output):
            raise UserError(
                f"output_dir={output}: it holds checkpoints of this very run, but the saved states to go on from "
                f"(state/) were removed; {remedy}"
            )
        return Start(None, {"parts": kept["accumulation_steps"] * kept["world_size"]} if len(kept) == 2 else {}, kept)
    path, facts = found
    finished = bool(facts.get("finished")) and not differences(known, settings, set())
    return Start(path, facts, kept, finished, bool(moved))


def _listed(known: dict, names: list[str]) -> str:
    named = ["process"] if "process" in names else [name for name in names if name in known] or names
    return ", ".join(f"{name}={shown(known.get(name))}" for name in named[:4])


def _moved(known: dict, settings: dict) -> list[str]:
    """Settings that name another place than the run began with, if there is something to compare there."""
    differing = (name for name in sorted(BY_CONTENT & set(settings)) if known.get(name) != settings[name])
    return [name for name in differing if settings[name] and local_path(str(settings[name])).exists()]


def _lost_states(output: Path) -> bool:
    """Whether a run without saved states had some: its first is saved right after its first evaluation."""
    if not any((output / name).exists() for name in ("checkpoint", "checkpoint-last")):
        return False
    evaluations = (
        (output / "log.jsonl").read_bytes().count(b'"kind": "valid"') if (output / "log.jsonl").exists() else 0
    )
    return not (output / "state").exists() or evaluations > 1 or (output / "curve.png").exists()


def _began_here(output: Path, settings: dict) -> bool:
    """Whether torchrun or Slurm started again what this very command had begun: that is to go on, not to overwrite."""
    try:
        known = read_settings(output) or {}
    except UserError:
        return False
    return bool(job()) and known.get("job") == job() and started_again() and not differences(known, settings, set())


def require_steps_left(args: TrainArgs, start: Start, total_steps: int) -> None:
    """Refuses a length that the run has passed already.

    Raises:
        UserError: with both numbers.
    """
    if start.path and start.step >= total_steps and not start.facts.get("evaluation_due"):
        raise UserError(
            f"output_dir={args.output_dir}: this run has taken {start.step} steps, and would end at {total_steps}; "
            "give a larger --max_steps"
        )


def differences(known: dict, settings: dict, allowed: set[str]) -> list[str]:
    """Names of settings that would make another run; of a place, what it holds decides, once it is read."""
    settings = json.loads(json.dumps(settings, default=str))
    known = {**BEFORE, **known}
    ignored = WITHOUT_INFLUENCE | allowed | set(_moved(known, settings))
    if known.get("world_size") != settings["world_size"]:
        ignored = ignored | {"accumulation_steps"}  # follows from the steps' size, `batches_a_process`
    return sorted(name for name in settings if name not in ignored and known.get(name) != settings[name])


def batches_a_process(args: TrainArgs, start: Start) -> int:
    """How many batches each process contributes to a step: a resumed run keeps the size of its steps.

    Raises:
        UserError: if that many processes cannot share a step evenly.
    """
    parts = start.facts.get("parts", args.accumulation_steps * world_size())
    if parts % world_size():
        raise UserError(
            f"output_dir={args.output_dir}: a step of this run is {parts} batches, which {world_size()} processes "
            f"cannot share evenly; start a number of processes that divides {parts}"
        )
    return parts // world_size()


def require_same_text(
    start: Start, identities: dict[str, str], args: TrainArgs, before: Callable[[], dict[str, str]] = dict
) -> None:
    """Refuses to go on with other text, word frequencies or network than the run began with.

    Args:
        start: where the run stands.
        identities: of the training text ("data"), the validation text ("valid_data"), the "word_freq", the "network".
        args: with the folder's name.
        before: the identities that an older version gave the same; asked for if the others differ.

    Raises:
        UserError: with the remedy.
    """
    for what, now in identities.items() if start.path else ():
        then = start.facts.get(what, now if what == "network" else None)  # which older runs do not tell
        if then != now and then != before().get(what):
            raise UserError(
                f"output_dir={args.output_dir} holds a run on other {SAID[what]} "
                "(files that have changed, or the same text written otherwise); "
                "bring the old ones back, give another folder, or --overwrite true"
            )


def note_versions(start: Start) -> str:
    """What to tell a person about another torch than the state was saved under, or ""."""
    then = start.facts.get("torch", torch.__version__)
    if then == torch.__version__:
        return ""
    return f"note: saved under torch {then}, resumed under {torch.__version__}: the weights may differ in roundings"
