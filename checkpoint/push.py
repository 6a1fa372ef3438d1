"""Publish a checkpoint on the Hugging Face hub, with a model card.

python -m checkpoint.push out/mine/checkpoint USER/NAME --data "LM1B" --license apache-2.0

The token is that of the environment (HF_TOKEN) or of `hf auth login`. Sent are the checkpoint's safetensors and JSON,
its vocabulary, and the card, in one commit. `predict.py --checkpoint USER/NAME` loads it.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import huggingface_hub
import torch
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from checkpoint.folder import FILES, find_checkpoint, load_checkpoint
from checkpoint.model_card import Publication, model_card, shown_facts, without_folders
from checkpoint.model_parts import ModelParts
from utils import hub
from utils.command_line import parse, run_script
from utils.errors import UserError, shown
from utils.files import read_text

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
    private: bool = field(default=False, metadata={"help": "a new repository that others cannot see"})
    dry_run: bool = field(default=False, metadata={"help": "the files and the card are printed, nothing is sent"})

    def __post_init__(self) -> None:
        if not hub.REPOSITORY.fullmatch(self.name):
            raise UserError(f"name={shown(self.name)} must be USER/NAME of a repository on the hub")
        if len(self.data.splitlines()) > 1 or any(c in self.license for c in " \n:"):
            raise UserError("data must be one line of text, license one word such as apache-2.0")


def main() -> None:
    """Check the checkpoint by loading it, then send it; print its address."""
    (args,) = parse([PushArgs], __doc__, most_used=("checkpoint", "name"), argv=with_flags(sys.argv[1:]))
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
    print(f"sent to {send(args, folder, files, card)}\nnext: python predict.py --checkpoint {args.name}")


def with_flags(argv: list[str]) -> list[str]:
    """Return the arguments with the first two that are not flags named --checkpoint and --name."""
    found, names = [], iter(("--checkpoint", "--name"))
    for i, argument in enumerate(argv):
        before = argv[i - 1] if i else ""
        is_value = before.startswith("-") and "=" not in before
        name = None if argument.startswith("-") or is_value else next(names, None)
        found += [argument] if name is None else [name, argument]
    return found


def require_public_base(model: ModelParts) -> None:
    """Refuse adapters of a network that lies in a folder of this machine only.

    Raises:
        UserError: naming the folder.
    """
    if model.adapter_base and Path(model.adapter_base.name).is_absolute():
        raise UserError(
            f"the checkpoint holds adapters of the network in {model.adapter_base.name}, which others do not have; "
            "train with --merge_lora true, or from a network of the hub"
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
    """Create the repository, unless it exists, and send all files in one commit; return its address.

    Raises:
        UserError: without a token, or if the hub refuses or does not answer.
    """
    api = HfApi()
    if silence := hub.check_hub():
        raise UserError(f"nothing was sent: {silence}")
    try:
        api.whoami()
        address = api.create_repo(args.name, private=args.private, exist_ok=True)
        operations = [CommitOperationAdd(str(file.relative_to(folder)), content_of(file)) for file in files]
        operations.append(CommitOperationAdd("README.md", card.encode()))
        api.create_commit(args.name, operations, commit_message="A DiffusionBERT checkpoint")
        return str(address)
    except LocalTokenNotFoundError as error:
        raise UserError(f"nothing was sent: there is no token for the hub; {LOGIN}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        remedy = f"; {LOGIN}" if status in (401, 403) else ""
        raise UserError(f"the hub refuses {args.name} ({hub.first_line(error)}){remedy}") from error
    except (OSError, ValueError, huggingface_hub.errors.HFValidationError) as error:
        raise UserError(f"{args.name} could not be sent ({hub.first_line(error)}); repeat the command") from error


if __name__ == "__main__":
    run_script(main)
