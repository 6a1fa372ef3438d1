"""tasks.py: cards and rows are read or refused in one line; few examples are drawn by a seed, apart from each other."""

import json
from pathlib import Path

import pytest

from modular_prompts.tasks import (
    LABELLED,
    Row,
    find_answer,
    find_tasks,
    load_task,
    macro_f1,
    majority,
    read_inputs,
)
from tests.conftest import write_jsonl
from utils.errors import UserError

CARD = {"type": "classification", "labels": ["good", "bad"], "question": "How was it?", "language": "en"}
ROWS = [{"text": f"text {i}", "label": ("good", "bad")[i % 3 == 0]} for i in range(60)]
PAIR = {"text_a": "a", "text_b": "b", "label": "bad"}
SPAN = {"question": "who?", "text": "a b c", "answer": "b c"}
CHOICE = {"text": "which?", "options": ["x", "y z"], "label": 1}


TEST = [{"text": f"new {i}", "label": ("good", "bad")[i % 2]} for i in range(10)]


def folder_of(tmp_path: Path, card: object = CARD, train: list = ROWS, test: list = TEST) -> Path:
    folder = tmp_path / "my task"
    folder.mkdir()
    (folder / "card.json").write_text(card if isinstance(card, str) else json.dumps(card))
    for name, rows in (("train", train), ("test", test)):
        write_jsonl(folder / f"{name}.jsonl", rows)
    return folder


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        ("classification", {"text": "a", "label": "bad"}, Row(("a",), ("good", "bad"), 1)),
        ("pair", PAIR, Row(("a", "b"), ("good", "bad"), 1)),
        ("multiple-choice", {**CHOICE, "options": ["x", "y z", "", ""]}, Row(("which?",), ("x", "y z"), 1)),
        ("multiple-choice", CHOICE, Row(("which?",), ("x", "y z"), 1)),
        ("extraction", SPAN, Row(("who?", "a b c"), (), -1, "b c")),
        ("generation", {"src": "a", "trg": "b"}, Row(("a",), (), -1, "b")),
    ],
)
def test_rows_are_read_by_the_type_of_the_task(tmp_path: Path, kind: str, row: dict, expected: Row) -> None:
    labels = CARD["labels"] if kind in LABELLED else []
    task = load_task(folder_of(tmp_path, {**CARD, "type": kind, "labels": labels}, [row], [row, row]))
    assert task.train == [expected] and len(task.test) == 2
    assert (task.card.name, task.card.question) == ("my task", "How was it?")


@pytest.mark.parametrize(
    ("card", "row", "message"),
    [
        ("{", {}, "card.json: not JSON"),
        ([], {}, "card.json: must hold an object"),
        ({**CARD, "type": "essay"}, {}, "card.json: type='essay' must be one of classification, pair, multiple-choice"),
        ({**CARD, "labels": []}, {}, r"card.json: labels=\[\]: a task of this type needs 2 to 1000 different ones"),
        ({**CARD, "labels": ["a", "a"]}, {}, "different ones"),
        ({**CARD, "labels": ["a", ""]}, {}, "must be a list of texts"),
        ({**CARD, "question": 3}, {}, "question=3 must be a text"),
        (CARD, {"text": "a", "label": "fair"}, "train.jsonl:2: label='fair' is not in the card; it has good, bad"),
        (CARD, {"text": " ", "label": "bad"}, "train.jsonl:2: a row of this task needs text, not empty"),
        ({**CARD, "type": "pair"}, {"text_a": "a", "label": "bad"}, "needs text_a and text_b"),
        ({**CARD, "type": "multiple-choice"}, {**CHOICE, "label": 2}, "label=2 must be the number of an option, 0..1"),
        (
            {**CARD, "type": "multiple-choice"},
            {**CHOICE, "options": ["x", "", "y"]},
            "each must be a text that is not empty",
        ),
        ({**CARD, "type": "multiple-choice"}, {**CHOICE, "options": ["x", ""]}, "must be a list of 2 to 1000 texts"),
        ({"type": "extraction"}, {**SPAN, "answer": "d"}, "answer='d' does not occur in the text"),
        ({**CARD, "type": ["pair"]}, {}, r"card.json: type=\['pair'\] must be one of"),
        ({**CARD, "question": "\ud800"}, {}, "card.json: '.*' has half of a surrogate pair"),
        (CARD, {"text": "\ud800", "label": "bad"}, "train.jsonl:2: '.*' has half of a surrogate pair"),
        ({"type": "generation"}, {"src": "a", "trg": " "}, "trg=' ' must be a text of at most"),
    ],
)
def test_what_does_not_fit_the_card_is_refused_with_its_place(
    tmp_path: Path, card: object, row: dict, message: str
) -> None:
    kind = str(card.get("type")) if isinstance(card, dict) else ""
    first = {"pair": PAIR, "multiple-choice": CHOICE, "extraction": SPAN, "generation": {"src": "a", "trg": "b"}}.get(
        kind, {"text": "a", "label": "bad"}
    )
    with pytest.raises(UserError, match=message):
        load_task(folder_of(tmp_path, card, [first, row]))


def test_a_missing_folder_file_or_row_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder; it must contain card.json, train.jsonl and test.jsonl"):
        load_task(tmp_path / "none")
    folder = folder_of(tmp_path)
    (folder / "test.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"test.jsonl: empty; a task needs rows"):
        load_task(folder)
    (folder / "card.json").unlink()
    with pytest.raises(UserError, match=r"card.json: no such file"):
        load_task(folder)


def test_majority_and_macro_f1_are_those_of_the_definitions() -> None:
    rows = [Row(("a",), ("x", "y", "z"), label) for label in (0, 0, 0, 1)]
    assert majority(rows) == 0.75
    assert macro_f1([0, 0, 1, 1], [0, 0, 0, 1]) == pytest.approx((0.8 + 2 / 3) / 2)
    assert macro_f1([2, 2], [0, 1]) == 0.0


def test_a_folder_of_pairs_needs_no_card(tmp_path: Path) -> None:
    for name in ("train", "valid"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"src": "a", "trg": "b"}])
    task = load_task(tmp_path)
    assert task.card.kind == "generation" and task.test == [Row(("a",), (), -1, "b")] and task.test[0].target == "b"


def test_tasks_are_found_by_folder_split_and_language(tmp_path: Path) -> None:
    for name, split, language in (("a", "pretrain", "en"), ("b", "pretrain", "zh"), ("c d", "heldout", "en")):
        (tmp_path / "all").mkdir(exist_ok=True)
        folder_of(tmp_path, {**CARD, "split": split, "language": language}).rename(tmp_path / "all" / name)

    def names(*wanted: str) -> list[str]:
        return [path.name for path in find_tasks(*wanted)]

    assert names(str(tmp_path / "all")) == ["a", "b", "c d"]
    assert names(str(tmp_path / "all"), "pretrain") == ["a", "b"]
    assert names(str(tmp_path / "all"), "pretrain", "zh") == ["b"]
    assert names(f"{tmp_path}/all/c d, {tmp_path}/all/a") == ["c d", "a"]
    with pytest.raises(UserError, match="none is left with split='test'"):
        find_tasks(str(tmp_path / "all"), "test")
    with pytest.raises(UserError, match="two have the name a; rename a folder"):
        find_tasks(f"{tmp_path}/all,{tmp_path}/all/a")
    with pytest.raises(UserError, match="no task there; give folders with card.json, train.jsonl and test.jsonl"):
        find_tasks(str(tmp_path / "all" / "a" / "none"))


def test_an_answer_is_found_as_whole_words() -> None:
    assert find_answer("a", "the cat sees a tree.") == 13 and find_answer("is", "his is") == 4
    assert find_answer("tree", "the tree.") == 4 and find_answer("nd", "find") == 2 and find_answer("x", "a") == -1
    assert find_answer("树", "一棵树") == 2


def test_inputs_keep_the_entries_of_their_lines(tmp_path: Path) -> None:
    card = load_task(folder_of(tmp_path)).card
    write_jsonl(tmp_path / "ROWS.JSONL", [{"text": "a", "id": 7}, {"text": "b", "label": "unknown"}])
    found = read_inputs(tmp_path / "ROWS.JSONL", card)
    assert [entries for _, entries in found] == [{"text": "a", "id": 7}, {"text": "b", "label": "unknown"}]
    (tmp_path / "rows.txt").write_text("a\n\n b \n")
    assert [row.texts for row, _ in read_inputs(tmp_path / "rows.txt", card)] == [("a",), ("b",)]
    for name, content in (
        ("rows.csv", "text\na\n"),
        ("rows.json", '[{"text": "a"}]'),
        ("other.txt", '{"text": "a"}\n'),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=name):
            read_inputs(tmp_path / name, card)
