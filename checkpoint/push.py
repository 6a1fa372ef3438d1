"""Publish a checkpoint on the Hugging Face hub, with a model card.

python -m checkpoint.push out/mine/checkpoint USER/NAME --data "LM1B" --license apache-2.0

The token is that of the environment (HF_TOKEN) or of `hf auth login`. Sent are the checkpoint's safetensors and JSON,
its vocabulary, and the card, in one commit. Every script loads it by --checkpoint USER/NAME.
"""

import re
import sys
import unicodedata
from dataclasses import dataclass, field
from typing import ClassVar

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from utils import hub, job
from utils.command_line import parse, run_script, with_flags
from utils.errors import UserError, shown

NAMES = ("checkpoint", "name")
"""Flags whose names may be left out."""
LICENCE = re.compile("[a-z0-9][a-z0-9.+-]*")


@dataclass(frozen=True)
class PushArgs:
    """Checkpoint, name on the hub, and what its card says."""

    group: ClassVar[str] = "publication"

    checkpoint: str = field(metadata={"help": "folder written by main.py, given first or as a flag"})
    name: str = field(metadata={"metavar": "USER/NAME", "help": "repository on the hub, given second or as a flag"})
    data: str = field(default="", metadata={"metavar": "TEXT", "help": "training text in words, for the card"})
    license: str = field(
        default="", metadata={"metavar": "NAME", "help": "licence as the hub spells it: apache-2.0, mit, cc-by-4.0"}
    )
    private: bool = field(default=False, metadata={"help": "a repository that others cannot see"})
    dry_run: bool = field(default=False, metadata={"help": "the files and the card are printed, nothing is sent"})

    def __post_init__(self) -> None:
        if not hub.REPOSITORY.fullmatch(self.name):
            raise UserError(f"name={shown(self.name)} must be USER/NAME of a repository on the hub")
        try:
            validate_repo_id(self.name)
        except HFValidationError as error:
            raise UserError(f"name={shown(self.name)}: {hub.first_line(error)}") from error
        if any(unicodedata.category(character) == "Cc" for character in self.data):
            raise UserError(f"data={shown(self.data)} must be one line of text")
        if self.license and not LICENCE.fullmatch(self.license):
            raise UserError(f"license={shown(self.license)} must be one word of lower case, such as apache-2.0")


def main() -> None:
    """Check the checkpoint by loading it, then send it; print its address."""
    (args,) = parse([PushArgs], __doc__, most_used=NAMES, argv=with_flags(sys.argv[1:], NAMES))
    job.require_single("checkpoint.push")
    hub.quiet_libraries()
    # imported here, since --help and refused settings need no torch
    import torch

    from checkpoint.folder import find_checkpoint, load_checkpoint
    from checkpoint.model_card import Publication, model_card, sample_command
    from checkpoint.publication import files_to_send, require_public_base, send

    folder = find_checkpoint(args.checkpoint)
    model = load_checkpoint(folder, torch.device("cpu"))
    require_public_base(model)
    card = model_card(model, Publication(args.name, args.data, args.license))
    files = files_to_send(folder)
    if args.dry_run:
        sizes = (f"{file.stat().st_size / 1e6:10.2f} MB  {file.relative_to(folder)}" for file in files)
        print("\n".join([*sizes, f"{len(card.encode()) / 1e6:10.2f} MB  README.md", "", card]))
        return
    address = send(args.name, folder, files, card, private=args.private)
    print(f"sent to {address}\nnext: {sample_command(model, args.name)}")


if __name__ == "__main__":
    run_script(main)
