"""Models by name: from an installed package, or from the Hugging Face hub, checked for an answer and by checksums."""

import functools
import hashlib
import os
import re
import sys
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants

from utils.packaged import PACKAGED, packaged_folder

HUB_TIMEOUT = 10  # seconds for the hub's first answer
MOST_REASON = 300
"""Characters of a library's error message."""
CONFIG_FILES = ["config.json"]
NETWORK_FILES = [*CONFIG_FILES, "model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]
TOKENIZER_FILES = [
    *CONFIG_FILES,
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
"""Files of a repository that may be downloaded: neither pickles nor programs."""
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""Name of a repository of the hub."""
REVISION = re.compile(rf"({REPOSITORY.pattern})@([\w.-]+)")
"""Name of a repository, and a commit, branch or tag of it."""

VERIFIED: set[Path] = set()
"""Files of the cache whose checksums this process has verified."""


class WrongChecksumError(Exception):
    """Difference between a downloaded file and the hub's checksum."""


def quiet_libraries() -> None:
    """Turn off the libraries' warnings and progress bars; errors reach the user as one line."""
    import transformers  # two seconds, which --help does not need

    os.environ.setdefault("DATASETS_VERBOSITY", "critical")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # `datasets` is imported where it is needed
        huggingface_hub.utils.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.logging.set_verbosity_error()


@functools.cache
def check_hub() -> str:
    """Send one request before the first use of the hub; return why it does not answer, or "".

    Without an answer, only the local cache is read from then on, as with HF_HUB_OFFLINE=1. Otherwise the libraries
    would try each file six times, for half a minute each.
    """
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
        return ""
    except Exception as error:  # any failure to connect, of any HTTP library
        silence = f"{without_credentials(constants.ENDPOINT)} does not answer: {first_line(error)}"
    os.environ["HF_HUB_OFFLINE"] = "1"  # for libraries that are not imported yet
    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True
    return silence


def fetch(name: str, files: list[str]) -> str:
    """Download some of a model's files, unless cached; return their folder. An interrupted download is resumed.

    `name` may end in @ and a commit, branch or tag; otherwise the newest commit is taken. A name in `PACKAGED` is
    looked up among the installed packages instead.

    Raises:
        UserError: if that package is missing or changed.
        Exception: of many types, if the download fails or a checksum differs.
    """
    if name in PACKAGED:
        return packaged_folder(name)
    check_hub()
    pinned = REVISION.fullmatch(name)
    repository, revision = pinned.groups() if pinned else (name, None)
    folder = huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=files)
    verify(repository, "model")
    return folder


def verify(name: str, kind: str) -> None:
    """Compare the cached files of a repository with the hub's checksums, which are the names of the blobs.

    The libraries compare sizes only. Files in Git LFS are named by SHA-256, others by their git SHA-1.

    Raises:
        WrongChecksumError: if one differs; the file is removed from the cache.
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
            continue  # an unfinished download
        with open(blob, "rb") as stream:
            while block := stream.read(1 << 20):
                found.update(block)
        if found.hexdigest() != blob.name:
            blob.unlink()
            raise WrongChecksumError(
                f"{name}: a file has the checksum {found.hexdigest()} instead of {blob.name}, try again"
            )


def first_line(error: Exception) -> str:
    """Return the first line of an error message; if it ends in a colon, the second line too."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = without_credentials(" ".join(line.strip() for line in lines[: 1 + lines[0].endswith(":")]))
    return line if len(line) <= MOST_REASON else f"{line[: MOST_REASON // 2]}...{line[-MOST_REASON // 2 :]}"


def without_credentials(text: str) -> str:
    """Remove credentials from addresses in a text (HF_ENDPOINT may be https://name:password@host)."""
    return re.sub(r"://[^/@\s]+@", "://***@", text)


def download_error(error: Exception) -> str:
    """Return why a download failed: the hub does not answer and the cache lacks the name, or the hub's own error."""
    silence = check_hub()
    return f"{silence}; not in the local cache either" if silence else first_line(error)
