"""rows.py: few examples are drawn by a seed; no row is drawn twice, or occurs in the test file or an unseen task."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from modular_prompts.rows import few_shots, identity, without_texts_of
from modular_prompts.tasks import Card, Row, Task, load_task
from tests.modular_prompts.test_tasks import CARD, CHOICE, folder_of
from utils.errors import UserError


def test_few_shots_have_k_rows_a_label_apart_from_those_of_development(tmp_path: Path) -> None:
    task = load_task(folder_of(tmp_path))
    train, develop = few_shots(task, 8, seed=13)
    assert Counter(row.label for row in train) == {0: 8, 1: 8} == Counter(row.label for row in develop)
    assert not {row.texts for row in train} & {row.texts for row in develop}
    assert few_shots(task, 8, seed=13) == (train, develop) != few_shots(task, 8, seed=21)
    fewer = few_shots(task, 16, seed=13)[1]  # 20 rows of the rare label
    assert Counter(row.label for row in fewer) == {0: 16, 1: 4}
    both = few_shots(task, 8, 13, develop_shots=3)
    assert both[0] == train and Counter(row.label for row in both[1]) == {0: 3, 1: 3}
    with pytest.raises(UserError, match="shots=20: label 'bad' of my task has 20 training rows that differ"):
        few_shots(task, 20, seed=13)


def test_multiple_choice_takes_twice_as_many_rows_in_all(tmp_path: Path) -> None:
    rows = [{**CHOICE, "text": f"which {i}?", "label": 0} for i in range(50)]
    task = load_task(folder_of(tmp_path, {"type": "multiple-choice"}, rows, [CHOICE]))
    train, develop = few_shots(task, 16, seed=1)
    assert len(train) == 32 and len(develop) == 18
    assert few_shots(task, 16, 1, develop_shots=4) == (train, develop[:8])


def test_no_text_is_drawn_twice_or_occurs_in_the_test_file(tmp_path: Path) -> None:
    rows = [{"text": f" Text {i % 30}", "label": ("good", "bad")[i % 2]} for i in range(300)]
    task = load_task(folder_of(tmp_path, CARD, rows, [{"text": "TEXT  7", "label": "bad"}]))
    train, develop = few_shots(task, 8, seed=3)
    texts = [row.texts[0] for row in (*train, *develop)]
    assert len(texts) == len(set(texts)) == 29 and " Text 7" not in texts


def test_rows_of_unseen_tasks_are_left_out(tmp_path: Path) -> None:
    first = load_task(folder_of(tmp_path))
    other = Task(first.card, [Row(("TEXT  3 ",), ("x", "y"), 0)], [Row(("new",), ("x", "y"), 0)])
    (kept,), removed = without_texts_of([first], [other])
    assert removed == 1 and [row for row in first.train if row not in kept.train] == [first.train[3]]
    assert kept.test == first.test
    pair = Card("pair", "pair", ("x", "y"))
    rows = [Row(("new", "Text 9"), ("x", "y"), 0), Row(("a", "b"), ("x", "y"), 0)]
    assert without_texts_of([Task(pair, rows, [])], [first])[0][0].train == rows[1:]  # one text suffices
    asked = [Row(("who?", "text 9"), (), -1, "9"), Row(("text 8", "a b"), (), -1, "a")]
    assert without_texts_of([Task(Card("asked", "extraction", ()), asked, [])], [first])[0][0].train == asked[1:]


def test_the_identity_covers_name_card_and_rows(tmp_path: Path) -> None:
    task = load_task(folder_of(tmp_path))
    others = [
        replace(task, card=replace(task.card, name="other")),
        replace(task, card=replace(task.card, question="?")),
        replace(task, train=task.train[1:]),
        replace(task, test=task.test[1:]),
    ]
    assert len({identity(each) for each in (task, *others)}) == 5 and identity(task) == identity(replace(task))


def test_rows_with_one_question_and_other_options_differ(tmp_path: Path) -> None:
    rows = [{"text": "which is right?", "options": [f"a {i}", f"b {i}"], "label": 0} for i in range(50)]
    task = load_task(folder_of(tmp_path, {"type": "multiple-choice"}, rows, rows[:10]))
    train, develop = few_shots(task, 10, seed=1)
    assert len({row.options for row in (*train, *develop)}) == 40
    assert without_texts_of([task], [replace(task, train=[])])[1] == 10
