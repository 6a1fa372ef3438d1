"""Publish a checkpoint on the Hugging Face hub, with a model card.

python -m checkpoint.push out/mine/checkpoint USER/NAME --data "LM1B" --license apache-2.0

The token is that of the environment (HF_TOKEN) or of `hf auth login`. Sent are the checkpoint's safetensors and JSON,
its vocabulary, and the card, in one commit. Every script loads it by --checkpoint USER/NAME.
"""

import fnmatch
import json
import re
import sys
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from checkpoint.description import FILE
from checkpoint.folder import FILES, find_checkpoint, load_checkpoint
from checkpoint.model_card import Publication, model_card, sample_command, shown_facts, without_folders
from checkpoint.model_parts import ModelParts
from utils import distributed, hub
from utils.command_line import parse, run_script, with_flags
from utils.errors import UserError, shown
from utils.files import read_text

NAMES = ("checkpoint", "name")
"""Flags whose names may be left out."""
LICENCE = re.compile("[a-z0-9][a-z0-9.+-]*")
LOGIN = "set HF_TOKEN to a token with write access, or run `hf auth login`"


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
    distributed.require_single("checkpoint.push")
    hub.quiet_libraries()
    folder = find_checkpoint(args.checkpoint)
    model = load_checkpoint(folder, torch.device("cpu"))
    require_public_base(model)
    card = model_card(model, Publication(args.name, args.data, args.license))
    files = files_to_send(folder)
    if args.dry_run:
        sizes = (f"{file.stat().st_size / 1e6:10.2f} MB  {file.relative_to(folder)}" for file in files)
        print("\n".join([*sizes, f"{len(card.encode()) / 1e6:10.2f} MB  README.md", "", card]))
        return
    print(f"sent to {send(args, folder, files, card)}\nnext: {sample_command(model, args.name)}")


def require_public_base(model: ModelParts) -> None:
    """Refuse adapters of a network that lies in a folder of this machine only.

    Raises:
        UserError: naming the folder.
    """
    if model.adapter_base and Path(model.adapter_base.name).is_absolute():
        raise UserError(
            f"the checkpoint holds adapters of the network in {model.adapter_base.name}, which others do not have; "
            "merge them: python -m checkpoint.merge CHECKPOINT NEW_FOLDER"
        )


def files_to_send(folder: Path) -> list[Path]:
    """Return the files of a checkpoint, without anything else that lies in its folder."""
    return sorted({file for pattern in FILES for file in folder.glob(pattern) if file.is_file()})


def content_of(file: Path) -> str | bytes:
    """Return the path of a file to send, or the content of a JSON file that may name folders of this machine."""
    if file.name not in ("config.json", "process.json"):
        return str(file)
    entries = json.loads(read_text(file))
    if "facts" in entries:
        entries["facts"] = shown_facts(entries["facts"])
    if "initialized_from" in entries:
        entries["initialized_from"] = without_folders(str(entries["initialized_from"]))
    return json.dumps(entries, indent=1).encode()


def send(args: PushArgs, folder: Path, files: list[Path], card: str) -> str:
    """Send all files in one commit, to a new repository or in place of the checkpoint in it; return its address.

    Raises:
        UserError: without a token, if the repository holds something else, or if the hub refuses or does not answer.
    """
    api, created = HfApi(), False
    if silence := hub.check_hub():
        raise UserError(f"nothing was sent: {silence}; check the network, or look at the files with --dry_run true")
    operations = [CommitOperationAdd(str(file.relative_to(folder)), content_of(file)) for file in files]
    operations.append(CommitOperationAdd("README.md", card.encode()))
    try:
        api.whoami()
        if api.repo_exists(args.name):
            sent = {operation.path_in_repo for operation in operations}
            operations += [CommitOperationDelete(name) for name in superseded(api, args, sent)]
        else:
            api.create_repo(args.name, private=args.private)
            created = True
        api.create_commit(args.name, operations, commit_message="A DiffusionBERT checkpoint")
    except UserError:
        raise
    except LocalTokenNotFoundError as error:
        raise UserError(f"nothing was sent: there is no token for the hub; {LOGIN}") from error
    except Exception as error:  # of the hub, the connection or the disk, of many types
        response = getattr(error, "response", None)
        refused = response is not None and response.status_code in (401, 403)
        left = f"; {args.name} was created and is empty" if created else ""
        remedy = LOGIN if refused else "repeat the command"
        raise UserError(f"{args.name} could not be sent ({hub.first_line(error)}){left}; {remedy}") from error
    return f"{api.endpoint}/{args.name}"


def superseded(api: HfApi, args: PushArgs, sent: set[str]) -> list[str]:
    """Return the files of an existing repository that would be read as part of the checkpoint but are not `sent`.

    Raises:
        UserError: if it holds something else than a checkpoint, or is public and a private one is wanted.
    """
    found = api.repo_info(args.name)
    names = [file.rfilename for file in found.siblings or ()]
    if args.private and not found.private:
        raise UserError(f"private=true, but {args.name} exists and is public; make it private on the hub first")
    others = [name for name in names if name not in (".gitattributes", "README.md") and not name.startswith("LICENSE")]
    if FILE not in names and others:
        raise UserError(f"{args.name} holds {shown(others[0])} and no checkpoint ({FILE}); give another name")
    return [name for name in names if name not in sent and any(fnmatch.fnmatchcase(name, p) for p in FILES)]


if __name__ == "__main__":
    run_script(main)
