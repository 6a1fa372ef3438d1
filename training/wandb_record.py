"""Weights & Biases records of runs: sent to its server if a key is at hand, else kept in the run's folder.

A kept record lies in the folder `wandb` of the run's folder; `wandb sync` sends it later. A resumed run continues its
record on the server, and writes a kept one anew from its log. No code, git state, packages or console output are
recorded.
"""

import contextlib
import glob
import os
import secrets
import warnings
from pathlib import Path

from training.records import charted, from_here, replay
from utils.files import read_text, remove_folder, written_whole
from utils.messages import warn

FOLDER, IDENTITY = "wandb", "id.txt"
PROJECT = "diffusionbert"
SECONDS = 60
"""Longest wait for the server at the start and at the end."""
STAGING = ("WANDB_DATA_DIR", "WANDB_CACHE_DIR")
"""Variables that name folders for tables before they are sent; by default they lie in the home folder."""
_staged: dict[str, str] = {}
"""Values of these variables that were set here, not by the user."""


class WandbRecord:
    """Weights & Biases record of a run. Every method may raise any exception; the caller handles it."""

    def __init__(self, output: Path, settings: dict, log: list[dict] | None = None) -> None:
        """Open a new record, or continue that of a resumed run."""
        folder = (output / FOLDER).resolve()
        (folder / "cache").mkdir(parents=True, exist_ok=True)
        _stage_in(folder / "cache")
        import wandb

        self.wandb, mode = wandb, mode_of(wandb)
        identity, before = _identity_of(folder) if log else ("", "")
        if before != mode:  # what was kept may be sent some day, and what was sent must not be sent again
            identity = ""
        elif mode == "offline":
            for kept in kept_records(folder, identity):
                remove_folder(kept)
        continues = bool(identity) and mode == "online"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.run = wandb.init(
                dir=str(output),
                mode=mode,
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=output.resolve().name,
                id=identity or secrets.token_hex(4),
                resume="allow" if continues else None,
                config={name: str(value) if isinstance(value, Path) else value for name, value in settings.items()},
                settings=quiet(wandb),
            )
        if mode != "disabled":
            with written_whole(folder / IDENTITY) as file:
                file.write(f"{self.run.id} {mode} {self.run.url or ''}\n")
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")
        if log and not continues:  # the server has the steps of a run that it knows
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
        """Close the record."""
        self.run.finish()

    close = finish
    """wandb shows a paused run as finished; a resumed run opens it again."""


open_record = WandbRecord


def mode_of(wandb) -> str:  # noqa: ANN001 (an optional module)
    """Return online, offline or disabled: as WANDB_MODE says, but online only with a key, which is never asked for."""
    wanted = os.environ.get("WANDB_MODE", "")
    if wanted == "disabled":
        return wanted
    if wanted in ("offline", "dryrun"):
        return "offline"
    found = has_key(wandb)
    if wanted and not found:
        warn(f"wandb: WANDB_MODE={wanted}, but there is no key in WANDB_API_KEY or from `wandb login`; kept here")
    return "online" if found else "offline"


def has_key(wandb) -> bool:  # noqa: ANN001 (an optional module)
    """Return whether a key is in the environment or stored by `wandb login`, without asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    before = os.environ.get("WANDB_SILENT")
    os.environ["WANDB_SILENT"] = "true"  # it prints where it found the key
    try:
        return bool(wandb.login(prompt=False))
    finally:
        del os.environ["WANDB_SILENT"]
        os.environ.update({"WANDB_SILENT": before} if before else {})


def quiet(wandb) -> object:  # noqa: ANN001 (an optional module)
    """Return wandb.Settings that print nothing and record the run's settings, figures and samples alone."""
    return wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_save_requirements=False,
        x_disable_machine_info=True,
        init_timeout=SECONDS,
        finish_timeout=SECONDS,
        finish_timeout_raises=True,
    )


def command(output: Path) -> str:
    """Return the address of a record that is sent, or the shell command that sends one that was kept; "" if none is."""
    identity, mode, *address = [*_read_identity(output / FOLDER), "", "", ""]
    if mode == "online":
        return address[0]
    kept = kept_records(output / FOLDER, identity) if identity else []
    return f"wandb sync {from_here(kept[-1])}" if kept else ""


def kept_records(folder: Path, identity: str) -> list[Path]:
    """Return the folders of a record that was kept, the newest last."""
    return sorted(folder.glob(f"offline-run-*-{glob.escape(identity)}"))


def _stage_in(folder: Path) -> None:
    for name in STAGING:
        if os.environ.get(name) in (None, _staged.get(name)):
            os.environ[name] = _staged[name] = str(folder)


def _identity_of(folder: Path) -> tuple[str, str]:
    """Return the name that wandb knows the record by, and the mode of the process that wrote it."""
    identity, mode, *_ = [*_read_identity(folder), "", ""]
    return identity, mode


def _read_identity(folder: Path) -> list[str]:
    with contextlib.suppress(Exception):  # a new record then
        return read_text(folder / IDENTITY, 2**10).split()
    return []
