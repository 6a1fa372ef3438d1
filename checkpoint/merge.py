"""Merge the LoRA adapters of a checkpoint into its network, so that it loads without the pretrained one.

python -m checkpoint.merge out/lora/checkpoint out/merged

The new folder holds W + (alpha / r) B A as an ordinary checkpoint, as after a training with --merge_lora true.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from utils import hub, job
from utils.command_line import parse, run_script, with_flags
from utils.errors import UserError
from utils.files import local_path

if TYPE_CHECKING:
    from checkpoint.model_parts import ModelParts


@dataclass(frozen=True)
class MergeArgs:
    """A checkpoint with adapters, and the folder of the one without."""

    group: ClassVar[str] = "folders"

    checkpoint: str = field(metadata={"help": "folder with adapters, given first or as a flag"})
    output: str = field(metadata={"metavar": "DIR", "help": "new folder, given second or as a flag"})


def main() -> None:
    """Merge and print what to type next."""
    names = ("checkpoint", "output")
    (args,) = parse([MergeArgs], __doc__, most_used=names, argv=with_flags(sys.argv[1:], names))
    job.require_single("checkpoint.merge")
    hub.quiet_libraries()
    from checkpoint.model_card import sample_command

    model = merge(args.checkpoint, output := local_path(args.output))
    print(f"written to {output}\nnext: {sample_command(model, shlex.quote(str(output)))}")


def merge(name: str | Path, output: Path) -> ModelParts:
    """Write the merged checkpoint and return the model.

    Raises:
        UserError: if the checkpoint has no adapters, or the folder exists.
    """
    import torch

    from checkpoint.folder import load_checkpoint, save_checkpoint

    if output.exists():
        raise UserError(f"output={output}: it exists; give a new folder")
    model = load_checkpoint(name, torch.device("cpu"))
    if not model.adapter_base:
        raise UserError(f"checkpoint {name}: it holds no adapters, so there is nothing to merge")
    save_checkpoint(output, replace(model, adapter_base=None))
    return model


if __name__ == "__main__":
    run_script(main)
