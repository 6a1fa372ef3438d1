"""records.py: every kind of line is read correctly or refused with a remedy."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from data import records
from data.corpus import holds_pairs, read_sentences, training_source
from data.records import decoded
from data.sources import Source
from tests.conftest import write_jsonl
from utils.errors import UserError


def texts(file: Path, column: str = "text") -> list[str]:
    return list(read_sentences(Source((file,), column=column)))


@pytest.mark.parametrize("names", [("src", "trg"), ("src", "tgt"), ("source", "target"), ("input", "output")])
def test_pairs_are_read_under_each_accepted_pair_of_keys(tmp_path: Path, names: tuple) -> None:
    file = tmp_path / "a.jsonl"
    write_jsonl(file, [{names[0]: f"s{i}", names[1]: f"t{i}", "id": i} for i in (1, 2)])
    assert holds_pairs(training_source(str(file)))
    assert texts(file, "src") == ["s1", "s2"] and texts(file, "trg") == ["t1", "t2"]
    table = tmp_path / "b.parquet"
    pyarrow.parquet.write_table(pyarrow.table({names[0]: ["s"], names[1]: ["t"]}), table)
    assert holds_pairs(Source((table,))) and texts(table, "trg") == ["t"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": null}', r'a.jsonl:1: .*string "text"; its "text" is null'),
        ("a.jsonl", '{"text": "x"}\n{"text": 5}', r'a.jsonl:2: .*its "text" is 5'),
        ("a.jsonl", '{"question": "a", "paraphrase": "b"}', r"its keys are .*; a pair's are src and trg, source and"),
        ("a.jsonl", '{"source": "a"}', r"its keys are \['source'\]"),
        ("a.jsonl", '{"text": "a", "src": "b", "trg": "c"}', '"text" and "src" and "trg"; remove'),
        ("a.jsonl", '{"source": "a", "target": "b", "input": "c", "output": "d"}', "its keys are"),
        ("a.jsonl", '[\n {"text": "a"}\n]', "one object per line, but an array or an object over several lines"),
        ("a.jsonl", '[{"text": "a"}]', "write one object per line"),
        ("a.jsonl", '{\n "text": "a"\n}', "an object over several"),
        ("a.txt", '[\n {"text": "a"}\n]', "a.txt:1: JSON in a .txt file; write one object per line"),
        ("a.txt", '{"text": "a"}\n{"text": "b"}', "a.txt:1: a JSON object in a .txt file; if every"),
        ("a.txt", "id,text\n1,hello", "a.txt:1: the header of a table with commas"),
        ("a.txt", '"id","text"\n1,hello', "the header of a table with commas"),
        ("a.TXT", "label\tsentence1\n1\thello", "the header of a table with tabs"),
        ("a.txt", "word " * 1_000_000, "a.txt:1: a text of 4,999,999 characters, more than 2,097,152; split it"),
        ("a.JSONL", '{"text": "' + "w " * 2_000_000 + '"}', "a.JSONL:1: a text of 3,999,999 characters"),
    ],
)  # fmt: skip
def test_an_invalid_record_is_refused_with_a_remedy(tmp_path: Path, name: str, content: str, message: str) -> None:
    file = tmp_path / name
    file.write_text(content + "\n")
    with pytest.raises(UserError, match=message) as caught:
        source = training_source(str(file))
        list(read_sentences(Source((file,), column="trg")) if holds_pairs(source) else read_sentences(source))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("text", ["{ is a brace", "[1] a note", "one, two, three", "text, label", "a\tb", "[MASK] it"])
def test_prose_that_resembles_data_is_read_as_prose(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.txt"
    file.write_text(text)
    assert texts(file) == [text]


def test_a_text_record_with_the_keys_of_a_pair_stays_text(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a", "source": "the web", "target": ""}\n')
    assert not holds_pairs(Source((file,))) and texts(file) == ["a"]


def test_src_and_trg_take_precedence_and_other_ambiguity_gives_no_pair(tmp_path: Path) -> None:
    assert records.pair_names({"src", "trg", "source", "target"}) == ("src", "trg")
    assert records.pair_names({"source", "target", "input", "output"}) is None


def test_byte_order_marks_are_dropped_and_carriage_return_files_refused(tmp_path: Path) -> None:
    mark = "\ufeff".encode()
    assert decoded(mark + b"a cat\n", Path("x"), 1) == decoded(mark + b"a cat\r\n", Path("x"), 7) == "a cat"
    assert decoded(b"one\rstray\n", Path("x"), 1) == "one\rstray"
    with pytest.raises(UserError, match="x: lines end in carriage returns alone; convert it"):
        decoded(b"one\rtwo\rthree\r", Path("x"), 1)
