"""Start of a training run: new, resumed or finished, as determined from its output folder."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from training.arguments import TrainArgs
from training.output_folder import OUTPUTS
from training.saved_state import newest_state, read_settings, states
from utils.errors import UserError, shown
from utils.files import local_path, open_regular
from utils.job import name as job
from utils.job import started_again, world_size

WITHOUT_INFLUENCE = {
    "output_dir", "cache_dir", "device", "threads", "tracker", "num_log_samples", "sample_steps", "logging_steps",
    "overwrite", "resume", "save_every", "save_minutes", "keep_last", "time_limit", "max_skipped_steps", "strategy",
    "merge_lora", "compile", "attn_implementation", "gradient_checkpointing", "fused_loss", "num_workers", "world_size",
    "job",
}  # fmt: skip
"""Settings without effect on the trained weights, up to rounding."""
LENGTH_SETTINGS = {
    "max_steps",
    "num_train_epochs",
    "max_minutes",
    "eval_steps",
    "eval_minutes",
    "eval_sequences",
    "eval_step_size",
    "eval_estimator",
}
"""Settings that --resume true may change, to train for longer."""
BY_CONTENT = {"train_data", "valid_data", "word_freq_file", "tokenizer", "model_name_or_path"}
"""Settings that name a file or folder. If it exists, its content is compared (`require_same_text`), not its name."""
EARLIER_VALUES = {
    "process": "word_freq",
    **dict.fromkeys(("text_column", "source_column", "target_column"), ""),
    "row_format": "unpadded",
    "detokenizer": "none",
    "reconstruction_weight": 1.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.98,
    "dropout": -1.0,
    "first_layers": 0,
    "lora_rank": 0,
    "lora_targets": "auto",
    "trim_vocabulary": False,
    "head_learning_rate": 0.0,
    "head_first": 0.0,
    "eval_minutes": 0.0,
    "eval_estimator": "windows",
    "time_sampling": "uniform",
    "bell": "0.5,0.2",
    "bell_share": 1.0,
    "embedding_start": "random",
    "strip_accents": False,  # a learned vocabulary is saved with the run and keeps its own value
}
"""Values in runs that are older than the setting."""
RENAMED_SETTINGS = {"protocol": "row_format"}
"""Earlier names of settings, and their present names."""
IDENTITY_NAMES = {
    "data": "text",
    "valid_data": "validation text",
    "word_freq": "word frequencies",
    "network": "network settings",
}
"""Names of the identities in messages."""
REMEDY = "give another folder, or --overwrite true to replace it"


@dataclass(frozen=True)
class Start:
    """State from which a run starts."""

    path: Path | None = None
    """Folder of the saved state to resume from; None: no saved state."""
    facts: dict = field(default_factory=dict)
    """Content of its state.json."""
    kept: dict = field(default_factory=dict)
    """Settings that keep the values of the run's first process."""
    finished: bool = False
    """True if no training is left to do."""
    moved: bool = False
    """True if a path differs from that in run.json, so that its content is still to be compared."""

    @property
    def step(self) -> int:
        """Number of steps done."""
        return self.facts.get("step", 0)


def find_start(args: TrainArgs, settings: dict, say: Callable[[str], None]) -> Start:
    """Return the state from which a run with these settings starts in its output folder.

    Args:
        args: output_dir, resume and overwrite.
        settings: all settings by name.
        say: called with a warning for every damaged saved state.

    Raises:
        UserError: if the folder holds a run with other settings, a run although resume=false, no run although
            resume=true, or no intact state.
    """
    output = Path(args.output_dir)
    present = [name for name in OUTPUTS if (output / name).exists()]
    if (output / "log.jsonl").exists():
        open_regular(output / "log.jsonl").close()  # a pipe would block
    if not present and args.resume == "true":
        raise UserError(f"output_dir={output}: resume=true, but there is no run in it; leave --resume out")
    if not present or (args.overwrite and not _restarts_own_run(output, settings)):
        return Start()
    known = read_settings(output)
    if known is None:
        raise UserError(f"output_dir={output} holds another run ({', '.join(present)}); {REMEDY}")
    _require_same_settings(args, known, settings)
    kept = {name: known[name] for name in ("accumulation_steps", "world_size") if name in known}
    found = newest_state(output, say)
    moved = _moved(known, settings)
    if moved and (found is None or not set(found[1]) >= {"data", "network"}):
        raise UserError(f"output_dir={output} holds a run with other settings ({_listed(known, moved)}); {REMEDY}")
    if found is None:
        _require_no_lost_states(output)
        return Start(None, {"parts": kept["accumulation_steps"] * kept["world_size"]} if len(kept) == 2 else {}, kept)
    path, facts = found
    finished = bool(facts.get("finished")) and not differences(known, settings, set())
    return Start(path, facts, kept, finished, bool(moved))


def _require_same_settings(args: TrainArgs, known: dict, settings: dict) -> None:
    """Check that the run in the folder has these settings and may be resumed.

    Raises:
        UserError: if it may not.
    """
    differing = differences(known, settings, LENGTH_SETTINGS if args.resume == "true" else set())
    if differing:
        longer = "; --resume true continues it for longer" if set(differing) <= LENGTH_SETTINGS else ""
        listed = _listed(known, differing)
        raise UserError(f"output_dir={args.output_dir} holds a run with other settings ({listed}); {REMEDY}{longer}")
    if args.resume == "false":
        raise UserError(f"output_dir={args.output_dir} holds this run, and resume=false; {REMEDY}")


def _require_no_lost_states(output: Path) -> None:
    """Check that a folder without an intact saved state never had one, so that nothing valuable is overwritten.

    Raises:
        UserError: if its states are damaged or were removed.
    """
    if list(states(output)):
        raise UserError(f"output_dir={output}: none of its saved states is intact, see above; {REMEDY}")
    if _lost_states(output):
        raise UserError(
            f"output_dir={output}: it holds checkpoints of this run, but its saved states (state/) were removed; "
            f"{REMEDY}"
        )


def _listed(known: dict, names: list[str]) -> str:
    named = ["process"] if "process" in names else [name for name in names if name in known] or names
    return ", ".join(f"{name}={shown(known.get(name))}" for name in named[:4])


def _moved(known: dict, settings: dict) -> list[str]:
    """Return the path settings that differ from the run's and name an existing file or folder."""
    differing = (name for name in sorted(BY_CONTENT & set(settings)) if known.get(name) != settings[name])
    return [name for name in differing if settings[name] and local_path(str(settings[name])).exists()]


def _lost_states(output: Path) -> bool:
    """Tell whether saved states were removed: the first is saved right after the first evaluation."""
    if not any((output / name).exists() for name in ("checkpoint", "checkpoint-last")):
        return False
    evaluations = (
        (output / "log.jsonl").read_bytes().count(b'"kind": "valid"') if (output / "log.jsonl").exists() else 0
    )
    return not (output / "state").exists() or evaluations > 1 or (output / "curve.png").exists()


def _restarts_own_run(output: Path, settings: dict) -> bool:
    """Tell whether torchrun or Slurm has restarted the job that began this run; it then resumes despite overwrite."""
    try:
        known = read_settings(output) or {}
    except UserError:
        return False
    return bool(job()) and known.get("job") == job() and started_again() and not differences(known, settings, set())


def require_steps_left(args: TrainArgs, start: Start, total_steps: int) -> None:
    """Check that the run has steps left.

    Raises:
        UserError: if it has already taken `total_steps` steps.
    """
    if start.path and start.step >= total_steps and not start.facts.get("evaluation_due"):
        raise UserError(
            f"output_dir={args.output_dir}: this run has taken {start.step} steps, and would end at {total_steps}; "
            "give a larger --max_steps"
        )


def differences(known: dict, settings: dict, allowed: set[str]) -> list[str]:
    """Return the names of settings that differ from the run's, except paths whose content is compared later."""
    settings = json.loads(json.dumps(settings, default=str))
    known = {**EARLIER_VALUES, **{RENAMED_SETTINGS.get(name, name): value for name, value in known.items()}}
    ignored = WITHOUT_INFLUENCE | allowed | set(_moved(known, settings))
    if known.get("world_size") != settings["world_size"]:
        ignored = ignored | {"accumulation_steps"}  # follows from the batches per step, see `batches_per_process`
    return sorted(name for name in settings if name not in ignored and known.get(name) != settings[name])


def batches_per_process(args: TrainArgs, start: Start) -> int:
    """Return the batches per step of each process; a resumed run keeps its total number of batches per step.

    Raises:
        UserError: if the processes cannot share a step evenly.
    """
    parts = start.facts.get("parts", args.accumulation_steps * world_size())
    if parts % world_size():
        raise UserError(
            f"output_dir={args.output_dir}: a step of this run is {parts} batches, which {world_size()} processes "
            f"cannot share evenly; use a number of processes that divides {parts}"
        )
    return parts // world_size()


def require_same_text(
    start: Start, identities: dict[str, str], args: TrainArgs, before: Callable[[], dict[str, str]] = dict
) -> None:
    """Check that text, word frequencies and network are those the run began with.

    Args:
        start: state from which the run starts.
        identities: fingerprints by name: "data" (training text), "valid_data", "word_freq" and "network".
        args: settings with output_dir.
        before: returns the fingerprints of an older version; called if the present ones differ.

    Raises:
        UserError: if one of them differs.
    """
    for name, now in identities.items() if start.path else ():
        then = start.facts.get(name, now if name == "network" else None)  # older runs lack it
        if then != now and then != before().get(name):
            raise UserError(
                f"output_dir={args.output_dir} holds a run on other {IDENTITY_NAMES[name]} "
                "(changed files, or the same text in another format); "
                "restore the old files, give another folder, or --overwrite true"
            )


def note_versions(start: Start) -> str:
    """Return a note if the state was saved under another version of torch, else ""."""
    then = start.facts.get("torch", torch.__version__)
    if then == torch.__version__:
        return ""
    return f"note: saved under torch {then}, resumed under {torch.__version__}: the weights may differ by rounding"
