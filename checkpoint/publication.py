"""Sending of a checkpoint to the Hugging Face hub: its files and its card, in one commit."""

import fnmatch
import json
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import LocalTokenNotFoundError

from checkpoint.description import FILE
from checkpoint.folder import FILES
from checkpoint.model_card import shown_facts, without_folders
from checkpoint.model_parts import ModelParts
from utils import hub
from utils.errors import UserError, shown
from utils.files import read_text

LOGIN = "set HF_TOKEN to a token with write access, or run `hf auth login`"


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


def send(name: str, folder: Path, files: list[Path], card: str, *, private: bool = False) -> str:
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
        if api.repo_exists(name):
            sent = {operation.path_in_repo for operation in operations}
            operations += [CommitOperationDelete(path) for path in superseded(api, name, sent, private=private)]
        else:
            api.create_repo(name, private=private)
            created = True
        api.create_commit(name, operations, commit_message="A DiffusionBERT checkpoint")
    except UserError:
        raise
    except LocalTokenNotFoundError as error:
        raise UserError(f"nothing was sent: there is no token for the hub; {LOGIN}") from error
    except Exception as error:  # of the hub, the connection or the disk, of many types
        response = getattr(error, "response", None)
        refused = response is not None and response.status_code in (401, 403)
        left = f"; {name} was created and is empty" if created else ""
        remedy = LOGIN if refused else "repeat the command"
        raise UserError(f"{name} could not be sent ({hub.first_line(error)}){left}; {remedy}") from error
    return f"{api.endpoint}/{name}"


def superseded(api: HfApi, name: str, sent: set[str], *, private: bool) -> list[str]:
    """Return the files of an existing repository that would be read as part of the checkpoint but are not `sent`.

    Raises:
        UserError: if it holds something else than a checkpoint, or is public and a private one is wanted.
    """
    found = api.repo_info(name)
    paths = [file.rfilename for file in found.siblings or ()]
    if private and not found.private:
        raise UserError(f"private=true, but {name} exists and is public; make it private on the hub first")
    others = [path for path in paths if path not in (".gitattributes", "README.md") and not path.startswith("LICENSE")]
    if FILE not in paths and others:
        raise UserError(f"{name} holds {shown(others[0])} and no checkpoint ({FILE}); give another name")
    return [path for path in paths if path not in sent and any(fnmatch.fnmatchcase(path, p) for p in FILES)]
