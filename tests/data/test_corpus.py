"""corpus.py: every kind of source gives the same sentences; errors name file and line."""

import gzip
import json
import lzma
from pathlib import Path

import pytest

from data.corpus import find_source, fingerprint, held_out, read_sentences, training_source
from tests.conftest import SENTENCES
from utils.errors import UserError

TEXT = ["Erste Zeile.", "zweite, mit Ümläuten", "a third  with two  spaces"]


def as_jsonl(lines: list[str]) -> str:
    return "\n".join(json.dumps({"text": line, "other": 1}) for line in lines)


@pytest.mark.parametrize("suffix", ["txt", "txt.gz", "txt.xz", "jsonl", "jsonl.gz", "jsonl.xz"])
def test_every_format_gives_the_same_sentences(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"corpus.{suffix}"
    body = (as_jsonl(TEXT) if "jsonl" in suffix else "\n".join(TEXT)) + "\n\n   \n"
    opener = {"gz": gzip.open, "xz": lzma.open}.get(suffix.split(".")[-1], open)
    with opener(file, "wb") as stream:
        stream.write(body.encode())
    assert list(read_sentences(training_source(str(file)))) == TEXT


def test_windows_line_ends_and_byte_order_marks_are_removed(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffone\r\ntwo\r\n".encode())
    assert list(read_sentences(training_source(str(file)))) == ["one", "two"]


def test_a_folder_is_split_by_file_names(tmp_path: Path) -> None:
    for name in ("train.txt", "dev.jsonl", "test.txt.gz", "notes.md"):
        (tmp_path / name).write_text("x")
    for split, name in (("train", "train.txt"), ("valid", "dev.jsonl"), ("test", "test.txt.gz")):
        assert [f.name for f in find_source(str(tmp_path), split).files] == [name]


def test_files_of_a_folder_that_name_no_split_are_training_text(tmp_path: Path) -> None:
    for name in ("b.txt", "a.jsonl", "latest.txt"):
        (tmp_path / name).write_text("x")
    assert [f.name for f in training_source(str(tmp_path)).files] == ["a.jsonl", "b.txt", "latest.txt"]
    assert find_source(str(tmp_path), "valid") is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\nbad \xff here\n", r"a\.txt:2: not UTF-8 \(byte 5 of the line is 0xff\); convert"),
        ("a.txt", b"", "contains no text"),
        ("a.txt", b"\n \n", "contains no text"),
        ("a.jsonl", b'{"text": "fine"}\n{"text": \n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", b'{"text": "fine"}\n\n{"txt": "x"}\n', r"""a\.jsonl:3: .*"text"; its keys are \['txt'\]"""),
        ("a.jsonl", b'{"text": 5}\n', r"a\.jsonl:1: .*string"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl:1: .*it is a list"),
        ("a.jsonl", b'{"text": "half \\ud800 a pair"}\n', r"a\.jsonl:1: .*half a surrogate pair"),
        ("a.jsonl", b'{"text": "x", "n": 1' + b"0" * 5000 + b"}\n", r"a\.jsonl:1: not JSON"),
        ("a.txt.gz", gzip.compress(b"damaged " * 99, mtime=0)[:20] + b"\xff" * 40, r"a\.txt\.gz: cannot be read"),
        ("a.txt.gz", b"no gzip", r"a\.txt\.gz: cannot be read"),
        ("a.txt.xz", lzma.compress(b"cut short " * 9)[:-9], r"a\.txt\.xz: cannot be read"),
        ("a.pdf", b"x", "not a supported kind of file"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        list(read_sentences(training_source(str(tmp_path / name))))
    assert name in str(caught.value)


@pytest.mark.parametrize("missing", ["./nowhere", "nowhere.txt", "/no/such/place", "~nobody-here/x.txt", ""])
def test_a_missing_path_is_reported_and_not_looked_up_on_the_hub(missing: str) -> None:
    with pytest.raises(UserError, match="no such file or folder$"):
        training_source(missing)


def test_an_empty_or_ambiguous_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text in this folder"):
        training_source(str(tmp_path))
    (tmp_path / "test.txt").write_text("x")
    with pytest.raises(UserError, match="no train.txt or train.jsonl"):
        training_source(str(tmp_path))
    (tmp_path / "test.jsonl").write_text("{}")
    with pytest.raises(UserError, match="test.jsonl, test.txt hold one text twice"):
        find_source(str(tmp_path), "test")


def test_the_held_out_share_is_stable_and_nested() -> None:
    aside = held_out(0.1)
    chosen = [s for s in SENTENCES if aside(s)]
    assert 0.04 < len(chosen) / len(SENTENCES) < 0.18
    assert all(aside(s) for s in chosen)
    wider = held_out(0.2)
    assert all(wider(s) for s in chosen)  # a larger share contains the smaller one
    assert sum(held_out(0.02)(str(i)) for i in range(50_000)) == pytest.approx(1000, abs=100)


def test_the_fingerprint_depends_on_the_content(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one")
    before = fingerprint(training_source(str(file)))
    assert before == fingerprint(training_source(str(file)))
    file.write_text("two")
    assert before != fingerprint(training_source(str(file)))
