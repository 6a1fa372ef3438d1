"""Weights & Biases records of runs: sent to its server if a key is at hand, else kept in the run's folder.

A kept record lies in the folder `wandb` of the run's folder; `wandb sync` sends it later. A resumed run continues its
record on the server, and writes a kept one anew from its log. No code, git state or console output is recorded.
"""

import os
import secrets
import warnings
from pathlib import Path

from training.records import charted, from_here, replay
from utils.files import read_text, remove_folder, written_whole

FOLDER, IDENTITY = "wandb", "id.txt"
PROJECT = "diffusionbert"
SECONDS = 60
"""Longest wait for the server at the start and at the end."""


class WandbRecord:
    """Weights & Biases record of a run. Every method may raise any exception; the caller handles it."""

    def __init__(self, output: Path, settings: dict, log: list[dict] | None = None) -> None:
        """Open a new record, or continue that of a resumed run."""
        folder = (output / FOLDER).resolve()
        for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):  # tables pass through the home folder otherwise
            os.environ.setdefault(name, str(folder / "cache"))
        import wandb

        self.wandb = wandb
        mode = os.environ.get("WANDB_MODE") or ("online" if has_key(wandb) else "offline")
        identity = _identity_of(folder) if log else ""
        if mode == "offline" and folder.is_dir():
            remove_folder(folder)
        (folder / "cache").mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.run = wandb.init(
                dir=str(output),
                mode=mode,
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=output.resolve().name,
                id=identity or secrets.token_hex(4),
                resume="allow" if identity and mode == "online" else None,
                config={name: str(value) if isinstance(value, Path) else value for name, value in settings.items()},
                settings=quiet(wandb),
            )
        with written_whole(folder / IDENTITY) as file:
            file.write(f"{self.run.id}\n")
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")
        if log and not (identity and mode == "online"):  # the server has the steps of a run that it knows
            replay(self, log)

    def train(self, step: int, values: dict) -> None:
        """Record loss, learning rate and speed of a step."""
        self.run.log({"step": step, **charted("train", values)})

    def valid(self, step: int, values: dict, *, best: bool) -> None:
        """Record the validation bound after a step; the `best` one is the run's."""
        found = charted("valid", values)
        self.run.log({"step": step, **found})
        if best:
            self.run.summary.update({f"best/{name.partition('/')[2]}": value for name, value in found.items()})

    def samples(self, step: int, texts: list[str]) -> None:
        """Record samples as a table."""
        table = self.wandb.Table(columns=["step", "text"], data=[[step, text] for text in texts])
        self.run.log({"step": step, "samples": table})

    def finish(self) -> None:
        """Mark the run as finished and close the record."""
        self.run.finish()

    def close(self) -> None:
        """Close the record; a resumed run opens it again."""
        self.run.finish()


open_record = WandbRecord


def quiet(wandb):  # noqa: ANN001, ANN201 (an optional module and its settings)
    """Return settings that neither print nor prompt, and record the figures alone."""
    return wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_disable_machine_info=True,
        init_timeout=SECONDS,
        finish_timeout=SECONDS,
        finish_timeout_raises=True,
    )


def has_key(wandb) -> bool:  # noqa: ANN001 (an optional module)
    """Return whether a key is in the environment or stored by `wandb login`, without asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return bool(wandb.login(prompt=False))
    except TypeError:  # an older version
        return bool(wandb.api.api_key)


def command(output: Path) -> str:
    """Return the shell command that sends a record that was kept, or "" if there is none."""
    kept = sorted((output / FOLDER).glob("offline-run-*"))
    return f"wandb sync {from_here(kept[-1])}" if kept else ""


def _identity_of(folder: Path) -> str:
    try:
        return read_text(folder / IDENTITY, 2**10).strip()
    except Exception:  # a new record then
        return ""
