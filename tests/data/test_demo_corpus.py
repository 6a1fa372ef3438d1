"""demo_corpus.py: prose is kept, code and headings are dropped, splits share no sentence."""

import ast
import json
from pathlib import Path

import pytest

from data import demo_corpus
from data.demo_corpus import (
    CorpusArgs,
    collect,
    is_prose,
    name_words,
    paragraphs,
    sentences_of,
    split,
    summaries_of,
    walk_statements,
)
from tests.conftest import call
from utils.errors import UserError

SOURCE = '''
"""A module about small things that work well.

It spans two
lines of text here. And this is a second sentence of it.
"""
def f(x):
    """Return the largest of all the values given.

    Args:
        x: not prose.

    >>> f(1)
    1

    - An item of a list is prose as well.
    | tables | are | not |
    This mentions f(x) and is dropped.
    This one has no full stop
    """
'''


def test_prose_is_kept_and_everything_else_dropped(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text(SOURCE)
    assert [sentence for _, sentence in sentences_of(file)] == [
        "A module about small things that work well.",
        "It spans two lines of text here.",
        "And this is a second sentence of it.",
        "Return the largest of all the values given.",
        "An item of a list is prose as well.",
    ]


def test_a_file_that_does_not_parse_is_skipped(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    for content in (b"def f(:\n", b"\xff\xfe", b"x = '\x00'"):
        file.write_bytes(content)
        assert sentences_of(file) == []


@pytest.mark.parametrize(
    ("sentence", "prose"),
    [
        ("Return the mean of a known array, if there is one.", True),
        ("Return the mean of a well-known array.", False),
        ("Nothing is lost if it isn't empty.", False),
        ("Return `x` of the array.", False),
        ("Use numpy.array here.", False),
        ("Returns None or True for all of NaN.", False),
        ("lower case at the start.", False),
        ("No full stop", False),
        ("Two  spaces in it.", False),
    ],
)
def test_prose_is_recognised(sentence: str, prose: bool) -> None:
    assert is_prose(sentence) is prose


def test_headings_end_a_paragraph() -> None:
    assert list(paragraphs("One\ntwo\nReturns:\nthree\n---\nfour")) == ["One two", "three", "four"]


def test_sentences_of_known_words_and_allowed_lengths_are_collected_once(tmp_path: Path) -> None:
    body = 'def f{}():\n    """{}"""\n'
    texts = [
        "The common words are here again.",
        "the Common words are here again.",
        "The common words are unique zebra.",
        "Too short.",
    ]
    for i, text in enumerate([texts[0]] * 3 + texts):
        (tmp_path / f"{i}.py").write_text(body.format(i, text[0].upper() + text[1:]))
    files = sorted(tmp_path.glob("*.py"))
    kept = collect(files, CorpusArgs("x", known_words=6, workers=1))
    assert [sentence.lower() for _, sentence in kept] == ["the common words are here again."]


CODE = '''
class HTTPServer2Thing:
    """A thing that serves, :class:`~Thing` included."""

    def readAll_lines(self):
        """Read every line of a file

        More about it.
        """

    async def stop(self):
        """Stop the server. Then wait."""

    class Inner:
        def go(self):
            """Go on with it."""


def plain():
    """Takes ``some`` *marked* up-to-date code."""
    def nested():
        """Do what is nested."""
    def indexed():
        """Use x[0] of it."""
'''


def test_a_pair_is_a_name_and_the_first_sentence_about_it(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text(CODE)
    assert sorted(summaries_of(file)) == [
        ("http server 2 thing", "A thing that serves, Thing included."),
        ("http server 2 thing . read all lines", "Read every line of a file."),
        ("http server 2 thing . stop", "Stop the server."),
        ("inner . go", "Go on with it."),
        ("nested", "Do what is nested."),
        ("plain", "Takes some marked up-to-date code."),
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (".get_params", "get params"),
        ("SVDFlip.__call__", "svd flip . call"),
        (".x2_to_y", "x 2 to y"),
        (".", ""),
        (".__", ""),
    ],
)
def test_names_become_words(name: str, words: str) -> None:
    assert name_words(name) == words


def test_no_name_and_no_sentence_is_in_two_pairs(tmp_path: Path) -> None:
    body = 'def {}():\n    """{}"""\n'
    functions = [("one", "Do it now."), ("two", "do IT now."), ("one", "Do that now."), ("three", "Do that now.")]
    for i, (name, text) in enumerate(functions):
        (tmp_path / f"{i}.py").write_text(body.format(name, text[0].upper() + text[1:].lower()))
    kept = collect(sorted(tmp_path.glob("*.py")), CorpusArgs("x", pairs=True, min_words=2, workers=1))
    assert kept == [("one", "Do it now."), ("three", "Do that now.")]


def test_splits_are_stable_and_disjoint() -> None:
    records = [(f"name {i}", f"Sentence number {i} of the text.") for i in range(5000)]
    splits = split(records, 0.02)
    assert sorted(sum(splits.values(), [])) == sorted(records)
    assert all(60 < len(splits[name]) < 150 for name in ("valid", "test"))
    again = split([(name, sentence.upper()) for name, sentence in records[::-1]], 0.02)
    assert {s.lower() for _, s in splits["valid"]} == {s.lower() for _, s in again["valid"]}


@pytest.mark.slow
def test_the_installed_packages_yield_a_corpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """One file in forty, for speed, yields sentences for all three splits."""
    monkeypatch.setattr(demo_corpus, "source_files", lambda every=demo_corpus.source_files: every()[::40])
    assert call(demo_corpus.main, monkeypatch, "--output", tmp_path / "corpus") == 0
    lines = {p.name: p.read_text().splitlines() for p in (tmp_path / "corpus").iterdir()}
    assert set(lines) == {"train.txt", "valid.txt", "test.txt"} and len(lines["train.txt"]) > 150
    assert not set(lines["train.txt"]) & (set(lines["valid.txt"]) | set(lines["test.txt"]))
    assert "sentences" in capsys.readouterr().out


@pytest.mark.slow
def test_the_installed_packages_yield_pairs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(demo_corpus, "source_files", lambda every=demo_corpus.source_files: every()[::40])
    assert call(demo_corpus.main, monkeypatch, "--output", tmp_path / "pairs", "--pairs", "true") == 0
    parts = [[json.loads(line) for line in p.read_text().splitlines()] for p in sorted((tmp_path / "pairs").iterdir())]
    assert [p.name for p in sorted((tmp_path / "pairs").iterdir())] == ["test.jsonl", "train.jsonl", "valid.jsonl"]
    assert len(parts[1]) > 75 and all(set(pair) == {"src", "trg"} and all(pair.values()) for pair in parts[1])
    for side in ("src", "trg"):
        test, train, valid = ({pair[side].lower() for pair in part} for part in parts)
        assert not train & (test | valid) and not test & valid
    assert "pairs" in capsys.readouterr().out


@pytest.mark.parametrize(
    "setting",
    [
        {"min_words": 0},
        {"min_words": 9, "max_words": 8},
        {"known_words": 0},
        {"held_out_fraction": 0.0},
        {"held_out_fraction": 0.9},
        {"held_out_fraction": float("nan")},
        {"workers": 0},
    ],
)
def test_settings_out_of_range_are_refused(setting: dict) -> None:
    with pytest.raises(UserError, match=f"{next(iter(setting))}="):
        CorpusArgs("out", **setting)


def test_statements_are_walked_in_the_order_of_ast() -> None:
    source = """
def f():
    try:
        class A:
            def g(self): return [lambda: 1 for i in x if (yield)]
    except* E:
        with a as b:
            async def h(): pass
    else:
        def i(): pass
    finally:
        def j(): pass
if a:
    for k in l:
        def m(): pass
    else:
        class N: pass
elif b:
    while c:
        match d:
            case 1:
                class O:
                    def p(self): pass
            case _:
                def q(): pass
def r(): pass
"""
    tree = ast.parse(source)
    found = list(walk_statements(tree))
    assert found == [node for node in ast.walk(tree) if node in set(found)]
    names = {node.name for node in ast.walk(tree) if hasattr(node, "body") and hasattr(node, "name")}
    assert {node.name for node in found if hasattr(node, "body") and hasattr(node, "name")} == names
