"""cache.py: a damaged folder is rebuilt, and the remains of killed processes are removed."""

import fcntl
import os
from pathlib import Path

import numpy as np
import pytest

from data import cache
from data.corpus import training_source
from data.tokenized_text import tokenize
from data.word_counts import count_tokens


def test_only_leftovers_of_ended_processes_are_removed(corpus: Path, tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cache._tidy.cache_clear()
    for name in (".0123456789ab.abcd_123", ".0123456789ab.living_1", "other", ".mine"):
        (folder / name).mkdir(parents=True)
        (folder / name / "tokens.bin").write_bytes(b"x")
    handle = os.open(folder / ".0123456789ab.living_1", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    text = tokenize(training_source(str(corpus)), tokenizer, 32, str(folder))
    os.close(handle)
    assert {p.name for p in folder.iterdir()} == {".0123456789ab.living_1", "other", ".mine", text.identity}


def corrupt(file: Path, how: str) -> None:
    """Change the content, not the size."""
    content = bytearray(file.read_bytes())
    if how == "first":
        content[0] ^= 1
    elif how == "last":
        content[-1] ^= 64
    else:
        content[len(content) // 2 :] = b"\xff" * (len(content) - len(content) // 2)
    file.write_bytes(content)


@pytest.mark.parametrize("how", ["first", "last", "half"])
@pytest.mark.parametrize(
    "name", ["tokens.bin", "offsets.npy", "num_words.npy", "places.npy", "meta.json", "manifest.json"]
)
def test_a_corrupted_cache_of_the_same_size_is_rebuilt(
    corpus, tokenizer, tmp_path, capsys, name: str, how: str
) -> None:
    def get() -> list:
        text = tokenize(training_source(str(corpus)), tokenizer, 32, str(tmp_path / "cache"))
        return [np.asarray(part).tolist() for part in (text.tokens, text.offsets, text.num_words, text.locations)]

    whole = get()
    (file,) = (tmp_path / "cache").glob(f"*/{name}")
    corrupt(file, how)
    assert get() == whole and "it is rebuilt" in capsys.readouterr().err
    assert get() == whole and not capsys.readouterr().err


def test_a_cache_without_checksums_is_rebuilt(corpus: Path, tokenizer, tmp_path: Path, capsys) -> None:
    for _ in range(2):
        text = tokenize(training_source(str(corpus)), tokenizer, 32, str(tmp_path / "cache"))
        (tmp_path / "cache" / text.identity / "manifest.json").unlink()
    assert "manifest.json is missing; it is rebuilt" in capsys.readouterr().err


def test_corrupted_counts_are_counted_again(corpus: Path, tokenizer, tmp_path: Path, capsys) -> None:
    cache_dir = str(tmp_path / "cache")
    first = count_tokens(training_source(str(corpus)), tokenizer, 300, cache_dir=cache_dir, identity="a")
    corrupt(tmp_path / "cache" / "counts-a" / "counts.safetensors", "last")
    again = count_tokens(training_source(str(corpus)), tokenizer, 300, cache_dir=cache_dir, identity="a")
    assert again.equal(first)
    assert "it is rebuilt" in capsys.readouterr().err
