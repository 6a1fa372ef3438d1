"""The output folder of a training run: one process at a time has it, and what a new run finds there is cleared away."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from training import fitlog_record
from training.arguments import TrainArgs
from training.saved_state import write_settings
from training.tracking import cut_log
from utils import distributed, files

TOKENIZER = "tokenizer"
OUTPUTS = ("checkpoint", "checkpoint-last", "state", TOKENIZER, "log.jsonl", "curve.png", "fitlog", "run.json")
"""What a run leaves in its folder."""


@contextlib.contextmanager
def alone(args: TrainArgs) -> Iterator[None]:
    """No other job may look at the output folder or write to it meanwhile; the first process asks, all are refused."""
    output = Path(args.output_dir)
    refusal = f"output_dir={output}: another process is training into this folder; wait for it, or stop it"

    def began() -> bool:
        return any((output / name).exists() for name in OUTPUTS)

    with contextlib.ExitStack() as held:
        lock = files.held_alone(output / "run.lock", refusal, keep=began)
        distributed.leader_finds(lambda: held.enter_context(lock))
        yield


def claim(output: Path, settings: dict, step: int, *, use_fitlog: bool) -> None:
    """Makes the folder this run's: what others left is removed, what interrupted writing left too.

    Args:
        output: the folder.
        settings: of the run.
        step: where it stands; 0: at its beginning, and everything there is of no use.
        use_fitlog: whether its record there, which lies beside the folder, goes the same way.
    """
    files.clear_leftovers(output / "state", r"step-\d{12}")
    files.clear_leftovers(output, "|".join(map(re.escape, OUTPUTS)))
    if step:
        cut_log(output / "log.jsonl", step)
        (output / "curve.png").unlink(missing_ok=True)  # of a run that was done, and is to be longer
        write_settings(output, settings)
        return
    if use_fitlog and (output / "run.json").exists():
        with contextlib.suppress(Exception):  # a tracker stops no run
            fitlog_record.remove(output)
    for name in OUTPUTS:
        path = output / name
        if path.is_dir():
            files.remove_folder(path)
        else:
            path.unlink(missing_ok=True)
    (output / "state").mkdir()  # whose absence later says that saved states were removed
    write_settings(output, settings)
