"""The Hugging Face hub behind a bad line: its libraries kept quiet, its silence noticed once."""

import functools
import hashlib
import os
import re
import sys
from pathlib import Path

import huggingface_hub
import transformers
from huggingface_hub import constants

PATIENCE = 10  # seconds for the hub's first answer
MOST_REASON = 300
"""Characters of what a library says of an error."""
OF_A_CONFIG = ["config.json"]
OF_A_NETWORK = [*OF_A_CONFIG, "model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]
OF_A_TOKENIZER = [
    *OF_A_CONFIG,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
]
"""Files of a repository that are ever asked for: no pickle is among them, and no program."""


VERIFIED: set[Path] = set()
"""Files of the cache that this process has compared with their checksums."""


class WrongChecksumError(Exception):
    """What was downloaded is not what the hub says it is."""


def quiet_libraries() -> None:
    """Warnings and progress bars of the libraries off: what goes wrong reaches the user as one line of ours."""
    os.environ.setdefault("DATASETS_VERBOSITY", "critical")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # `datasets` is imported where it is needed
        huggingface_hub.utils.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.logging.set_verbosity_error()


@functools.cache
def look_for_hub() -> str:
    """Asks the hub for a sign of life before the first use of it, and says why there is none, or "".

    Without an answer, only the hub's cache on this machine is read from then on, as with HF_HUB_OFFLINE=1: the
    libraries would try each name of each file six times, half a minute every time.
    """
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=PATIENCE)
        return ""
    except Exception as error:  # any failure to connect, of whichever HTTP library this is
        silence = f"{without_credentials(constants.ENDPOINT)} does not answer: {first_line(error)}"
    os.environ["HF_HUB_OFFLINE"] = "1"  # for libraries that are not imported yet
    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True
    return silence


def fetch(name: str, files: list[str]) -> str:
    """The folder in the hub's cache with some of a model's files, downloaded if need be, whatever breaks off resumed.

    Raises:
        Exception: of many types, if the hub does not give them, or gives others than it says.
    """
    look_for_hub()
    folder = huggingface_hub.snapshot_download(name, allow_patterns=files)
    verify(name, "model")
    return folder


def verify(name: str, kind: str) -> None:
    """Compares what the cache holds of a repository with the checksums by which the hub names it.

    The libraries compare sizes only. Files in git's large storage are named by their SHA-256, others as git names them.

    Raises:
        WrongChecksumError: if they differ; the file is removed from the cache.
    """
    folder = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}" / "blobs"
    for blob in sorted(folder.iterdir()) if folder.is_dir() else ():
        if blob in VERIFIED:
            continue
        if len(blob.name) == 64:
            found = hashlib.sha256()
        elif len(blob.name) == 40:
            found = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
        else:
            continue  # a download that is not finished
        with open(blob, "rb") as stream:
            while block := stream.read(1 << 20):
                found.update(block)
        if found.hexdigest() != blob.name:
            blob.unlink()
            raise WrongChecksumError(
                f"{name}: a file has the checksum {found.hexdigest()} instead of {blob.name}, try again"
            )


def first_line(error: Exception) -> str:
    """What an error says, without the essay that follows; a line that ends in a colon takes the next one with it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = without_credentials(" ".join(line.strip() for line in lines[: 1 + lines[0].endswith(":")]))
    return line if len(line) <= MOST_REASON else f"{line[: MOST_REASON // 2]}...{line[-MOST_REASON // 2 :]}"


def without_credentials(text: str) -> str:
    """A text whose addresses (HF_ENDPOINT may hold one of https://name:password@host) do not tell who calls."""
    return re.sub(r"://[^/@\s]+@", "://***@", text)


def why_not_given(error: Exception) -> str:
    """Why a name could not be had: the hub is silent and the cache lacks it, or what the hub said."""
    silence = look_for_hub()
    return f"{silence}; not in the cache here either" if silence else first_line(error)
