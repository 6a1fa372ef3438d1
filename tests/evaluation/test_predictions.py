"""predictions.py: continuation of journals, round trip of DiffuSeq's files, refusal of malformed files."""

import json
import os
from pathlib import Path

import pytest

from evaluation.predictions import (
    Journal,
    fingerprint_of,
    read_predictions,
    read_samples,
    write_diffuseq,
    write_predictions,
)
from tests.conftest import write_jsonl
from utils.errors import UserError


def record(index: int, candidates: tuple[str, ...] = ("a b", "a c")) -> dict:
    sides = {"source": f"source {index}", "reference": f"reference {index}"}
    return {"index": index, **sides, "candidates": list(candidates), "prediction": candidates[0]}


def without(name: str) -> dict:
    return {key: value for key, value in record(0).items() if key != name}


def test_a_journal_is_continued(tmp_path: Path) -> None:
    output = tmp_path / "p.jsonl"
    first = Journal(output, "recipe")
    first.add(3, record(3))
    first.add(0, record(0))
    with open(first.path, "ab") as file:
        file.write(b'{"index": 1, "sour')  # killed while writing
    second = Journal(output, "recipe")
    assert second.records == {3: record(3), 0: record(0)}
    second.add(1, record(1))
    third = Journal(output, "recipe")
    assert set(third.records) == {0, 1, 3} and third.records[1] == record(1)
    third.add(2, record(2))
    assert third.finish(4) == [record(i) for i in range(4)]
    third.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_journal_of_another_recipe_is_cleared(tmp_path: Path) -> None:
    Journal(tmp_path / "p.jsonl", "one").add(0, record(0))
    assert Journal(tmp_path / "p.jsonl", "another").records == {}
    assert Journal(tmp_path / "p.jsonl", "one").records == {}


@pytest.mark.parametrize("content", [b"", b"\n", b"[]\n", b"not json\n", b'{"index": 0}\n', b"\xff\xfe\n"])
def test_a_malformed_journal_is_cleared(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.jsonl.part").write_bytes(content)
    journal = Journal(tmp_path / "p.jsonl", "recipe")
    assert journal.records == {}
    journal.add(0, record(0))
    assert Journal(tmp_path / "p.jsonl", "recipe").records == {0: record(0)}


def test_an_incomplete_record_is_drawn_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "p.jsonl", "recipe")
    journal.add(0, record(0))
    journal.add(1, {"index": 1})
    assert Journal(tmp_path / "p.jsonl", "recipe").records == {0: record(0)}


def test_unusual_line_separators_stay_within_a_line(tmp_path: Path) -> None:
    """U+2028, U+0085 and form feeds end a line for str.splitlines only, not for JSON and text files."""
    odd = "a\u2028b\x85c\x0cd"
    write_predictions(tmp_path / "p.jsonl", [record(0, (odd, "x"))])
    assert read_predictions(tmp_path / "p.jsonl")[0]["candidates"] == [odd, "x"]
    (tmp_path / "s.txt").write_text(f"{odd}\nsecond\n")
    assert read_samples(tmp_path / "s.txt") == [odd, "second"]


def test_a_folder_in_diffuseqs_format_holds_one_run(tmp_path: Path) -> None:
    write_diffuseq(tmp_path / "d", [record(0, ("a", "b", "c"))], seed=0, num_steps=9)
    write_diffuseq(tmp_path / "d", [record(0, ("x", "y"))], seed=0, num_steps=4)
    assert read_predictions(tmp_path / "d")[0]["candidates"] == ["x", "y"]


def test_the_fingerprint_depends_on_all_that_decides_the_candidates(tmp_path: Path) -> None:
    (tmp_path / "process.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"12")
    base = tmp_path, {"seed": 0}, ["a", "b"], ["c"]
    prints = [fingerprint_of(*base), fingerprint_of(tmp_path, {"seed": 1}, *base[2:])]
    prints += [fingerprint_of(*base[:2], ["a"], ["b", "d"]), fingerprint_of(*base[:2], ["ab"], ["c"])]
    prints += [fingerprint_of(*base[:3], ["d"])]
    assert fingerprint_of(*base) == prints[0]
    (tmp_path / "model.safetensors").write_bytes(b"13")
    prints.append(fingerprint_of(*base))
    assert len(set(prints)) == len(prints)


def test_diffuseq_files_survive_a_round_trip(tmp_path: Path) -> None:
    records = [record(i, ("x", "y", "x")) for i in range(12)]
    write_diffuseq(tmp_path / "d", records, seed=9, num_steps=20)
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == [
        "seed10_step20.json", "seed11_step20.json", "seed9_step20.json",
    ]  # fmt: skip
    predictions = read_predictions(tmp_path / "d")
    # seed 9 comes before seed 10: by number, not by name
    assert [r["candidates"] for r in predictions] == [["x", "y", "x"]] * 12
    assert [(r["source"], r["reference"]) for r in predictions] == [(r["source"], r["reference"]) for r in records]
    assert [r["candidates"] for r in read_predictions(tmp_path / "d" / "seed10_step20.json")] == [["y"]] * 12


def test_special_tokens_are_stripped_from_diffuseqs_lines(tmp_path: Path) -> None:
    line = {"recover": "[CLS] how are you? [SEP] [PAD]", "reference": "<s> how ?</s>", "source": "[CLS] a [SEP] [SEP]"}
    file = tmp_path / "seed1_step2.json"
    file.write_text(json.dumps(line))
    (prediction,) = read_predictions(file)
    assert (prediction["candidates"], prediction["reference"], prediction["source"]) == (["how are you?"], "how ?", "a")


def test_our_own_format_survives_a_round_trip(tmp_path: Path) -> None:
    records = [record(i, ("ä", "日本", "")) for i in range(3)]
    write_predictions(tmp_path / "p.jsonl", records)
    assert read_predictions(tmp_path / "p.jsonl") == records


def test_samples_keep_their_empty_lines(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("a b\n\nc\n")
    assert read_predictions(tmp_path / "s.txt") is None and read_samples(tmp_path / "s.txt") == ["a b", "", "c"]
    write_jsonl(tmp_path / "s.jsonl", [{"text": " a "}, {"text": ""}])
    assert read_predictions(tmp_path / "s.jsonl") is None and read_samples(tmp_path / "s.jsonl") == ["a", ""]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no predictions"),
        (["", " "], "no predictions"),
        (["", "", record(0), without("source")], ":4: every line"),
        ([{**record(0), "candidates": ["\ud800", "b"]}], ":1: a text has an unpaired surrogate"),
        (['{"candidates": ['], ":1: not JSON"),
        (["[]"], ":1: every line must be an object"),
        ([record(0), record(1, ("a",))], ":2: 1 candidates, where the first line has 2"),
        ([{**record(0), "candidates": []}], ":1: 0 candidates"),
        ([{**record(0), "candidates": [1, 2]}], ":1:"),
        ([record(0), without("reference")], ':2: every line must have a string "reference"'),
        ([without("prediction")], '"prediction"'),
    ],
)
def test_a_malformed_file_is_reported_with_its_line(tmp_path: Path, lines: list, message: str) -> None:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(UserError) as error:
        read_predictions(tmp_path / "p.jsonl")
    assert message in str(error.value) and "p.jsonl" in str(error.value)


def test_files_of_several_seeds_must_match(tmp_path: Path) -> None:
    write_diffuseq(tmp_path, [record(i) for i in range(3)], seed=0, num_steps=5)
    file = tmp_path / "seed1_step5.json"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:2]))
    with pytest.raises(UserError, match=r"seed1_step5.json: 2 lines, but .*seed0_step5.json has 3"):
        read_predictions(tmp_path)
    file.write_text("\n".join([lines[0], lines[2], lines[1]]))
    with pytest.raises(UserError, match="seed1_step5.json:2: its reference"):
        read_predictions(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(UserError, match="no .json file"):
        read_predictions(tmp_path)


def test_an_empty_file_of_samples_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("")
    with pytest.raises(UserError, match="no predictions"):
        read_samples(tmp_path / "s.txt")


# ---- encodings and kinds of files, as for corpora --------------------------------------------------------------------

BOM = b"\xef\xbb\xbf"


def test_byte_order_marks_and_dos_line_ends_are_removed(tmp_path: Path) -> None:
    (tmp_path / "s.TXT").write_bytes(BOM + b"a b\r\n\r\nc\r\n")
    assert read_predictions(tmp_path / "s.TXT") is None and read_samples(tmp_path / "s.TXT") == ["a b", "", "c"]
    (tmp_path / "s.jsonl").write_bytes(BOM + b'{"text": "a"}\r\n{"text": "b"}')
    assert read_samples(tmp_path / "s.jsonl") == ["a", "b"]
    write_predictions(tmp_path / "p.jsonl", [record(0), record(1)])
    (tmp_path / "p.jsonl").write_bytes(BOM + (tmp_path / "p.jsonl").read_bytes().replace(b"\n", b"\r\n"))
    assert read_predictions(tmp_path / "p.jsonl") == [record(0), record(1)]
    write_diffuseq(tmp_path / "d", [record(0)], seed=0, num_steps=9)
    for file in (tmp_path / "d").iterdir():
        file.write_bytes(BOM + file.read_bytes())
    assert read_predictions(tmp_path / "d")[0]["candidates"] == ["a b", "a c"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1", "shift-jis"])
@pytest.mark.parametrize("name", ["s.txt", "s.jsonl"])
def test_another_encoding_is_refused_with_its_line(tmp_path: Path, name: str, encoding: str) -> None:
    text = {"latin-1": "caf\xe9", "shift-jis": "\u732b"}.get(encoding, "a cat")
    line = json.dumps({"text": text}, ensure_ascii=False) if name == "s.jsonl" else text
    (tmp_path / name).write_bytes(f"{line}\n".encode(encoding))
    with pytest.raises(UserError, match=rf"{name}:1: .*convert (it|the file), e.g. with iconv"):
        read_samples(tmp_path / name)


@pytest.mark.parametrize("name", ["s.txt", "s.jsonl", "s.json"])
@pytest.mark.parametrize("kind", ["pipe", "zero"])
def test_a_path_that_is_no_regular_file_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(UserError, match=f"{name}: not a regular file"):
        read_samples(tmp_path / name)
    if name == "s.json":
        with pytest.raises(UserError, match=f"{name}: not a regular file"):
            read_predictions(tmp_path)


def test_a_file_above_the_size_limit_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("evaluation.predictions.MAX_BYTES", 10)
    (tmp_path / "s.txt").write_text("a\n" * 5)
    assert len(read_samples(tmp_path / "s.txt")) == 5
    (tmp_path / "s.txt").write_text("a\n" * 6)
    with pytest.raises(UserError, match="more than 10 bytes; split it"):
        read_samples(tmp_path / "s.txt")
