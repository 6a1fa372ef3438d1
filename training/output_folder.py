"""Output folder of a training run: a lock against other jobs, and the removal of earlier results."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from training.arguments import TrainArgs
from training.records import remove_records
from training.run_log import cut_log
from training.saved_state import write_settings
from utils import distributed, files
from utils.errors import UserError

TOKENIZER = "tokenizer"
RECORDS = ("fitlog", "tensorboard", "wandb")
"""Folders of trackers."""
OUTPUTS = ("checkpoint", "checkpoint-last", "state", TOKENIZER, "log.jsonl", "curve.png", *RECORDS, "run.json")
"""Names of a run's files and folders in its output folder."""


@contextlib.contextmanager
def exclusive_access(args: TrainArgs) -> Iterator[None]:
    """Hold the output folder's lock for the duration of a block; the first process takes it for all.

    Raises:
        UserError: on every process, if another job holds the lock.
    """
    output = Path(args.output_dir)
    refusal = f"output_dir={output}: another process is training into this folder; wait for it, or stop it"

    def began() -> bool:
        return any((output / name).exists() for name in OUTPUTS)

    with contextlib.ExitStack() as held:
        lock = files.held_alone(output / "run.lock", refusal, keep=began)
        distributed.call_on_leader(lambda: held.enter_context(lock))
        yield


def require_outside(output: Path, base: str) -> None:
    """Refuse adapters of a network that lies among the results of the run, which replace it.

    Resuming needs the network, since saved states hold the adapters only.

    Raises:
        UserError: naming the network's folder.
    """
    folder = files.local_path(base)
    if folder.exists() and any(folder.resolve().is_relative_to((output / name).resolve()) for name in OUTPUTS):
        raise UserError(
            f"output_dir={output}: this run would replace {base}, the network that its adapters need; give another "
            "folder"
        )


def claim(output: Path, settings: dict, step: int) -> None:
    """Prepare the folder for this run: remove files of interrupted writes and of later steps or other runs.

    Args:
        output: the folder.
        settings: settings of the run, by name.
        step: number of steps done; 0: all earlier results are removed.
    """
    files.clear_leftovers(output / "state", r"step-\d{12}")
    files.clear_leftovers(output, "|".join(map(re.escape, OUTPUTS)))
    if step:
        cut_log(output / "log.jsonl", step)
        (output / "curve.png").unlink(missing_ok=True)  # a finished run that continues for longer
        write_settings(output, settings)
        return
    if (output / "run.json").exists():
        with contextlib.suppress(Exception):  # a failing tracker must not stop a run
            remove_records(output)
    for name in OUTPUTS:
        path = output / name
        if path.is_dir():
            files.remove_folder(path)
        else:
            path.unlink(missing_ok=True)
    (output / "state").mkdir()  # its absence later shows that saved states were removed
    write_settings(output, settings)
