"""answers_run.py: answers of .jsonl and .txt files, their scores, and the refusals."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from modular_prompts.answers_run import scores_of
from modular_prompts.frozen import open_prompts
from modular_prompts.options import PoolShape
from modular_prompts.pool import PromptPool
from modular_prompts.readouts import Cosine
from modular_prompts.saved import SavedPrompts, save_prompts
from modular_prompts.spans import Spans
from modular_prompts.tasks import Card, load_task
from modular_prompts.tuning import prompt_of
from tests.conftest import NOUNS, PAIRS, write_jsonl
from tests.modular_prompts.test_frozen import Machine, open_frozen
from tests.modular_prompts.toy_tasks import TINY, WORDS, command, make_network, make_task

CHOICE = Card("choice", "multiple-choice", ())
WHO = Card("who", "extraction", ())


@pytest.fixture
def run(tmp_path: Path, tokenizer, monkeypatch, capsys):  # noqa: ANN001, ANN201
    """Return a function that runs a command with prompts of three tasks; it returns exit code, output and error."""
    network = make_network(tmp_path / "net", tokenizer)
    task = load_task(make_task(tmp_path / "animal", WORDS["animal"]))
    for readout in ("cosine", "spans"):
        reader = open_frozen(str(network), readout, 40, 3, Machine)
        cards = {"animal": task.card, "choice": CHOICE, "who": WHO}
        if readout == "cosine":
            del cards["who"]
        pool = PromptPool(PoolShape(2, 3, 32, 2))
        routers = {name: torch.zeros(1, 2) for name in cards}
        head = reader.head.weight if isinstance(reader, Spans) else None
        saved = SavedPrompts(pool, routers, readout, reader.placeholders, 40, cards, head=head)
        save_prompts(tmp_path / readout, saved, reader.denoiser, reader.tokenizer, str(network))

    def call_it(name: str, *flags: object, readout: str = "cosine") -> tuple[int, str, str]:
        base = ["--prompts", tmp_path / readout, "--model_name_or_path", network, *TINY]
        capsys.readouterr()
        return command(monkeypatch, name, *base, *flags), *capsys.readouterr()

    return call_it


def test_answers_are_the_options_of_the_largest_score(run, tmp_path: Path) -> None:  # noqa: ANN001
    texts = ["the cat sees a tree.", "a dog likes it.", "my bird finds ünïcode."]
    (tmp_path / "my rows.txt").write_text("\n".join(texts) + "\n\n", encoding="utf-8")
    write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in texts])
    outputs = [run("predict", "--task", "animal", "--data", tmp_path / name) for name in ("my rows.txt", "rows.jsonl")]
    assert outputs[0][:2] == outputs[1][:2] and outputs[0][0] == 0
    found = [json.loads(line) for line in outputs[0][1].splitlines()]
    assert [record["text"] for record in found] == texts
    reader = open_frozen(str(tmp_path / "net"), "cosine", 40, 3, Machine)
    saved = load_task(tmp_path / "animal")
    from modular_prompts.saved import load_prompts

    prompt = load_prompts(tmp_path / "cosine", reader.denoiser, reader.tokenizer).prompt("animal")
    rows = [type(saved.test[0])((text,), WORDS["animal"], -1) for text in texts]
    scores = reader.examples((saved.card, rows)).scores(torch.arange(3), prompt).softmax(-1)
    for record, each in zip(found, scores.tolist(), strict=True):
        assert record["scores"] == pytest.approx(each, abs=1e-4)
        assert record["prediction"] == WORDS["animal"][each.index(max(each))]
    assert run("predict", "--task", "animal", "--data", tmp_path / "rows.jsonl", "--batch_size", 1)[1] == outputs[1][1]


def test_options_of_each_row_and_spans_are_answered(run, tmp_path: Path) -> None:  # noqa: ANN001
    rows = [{"text": "which?", "options": ["a cat", "a dog", "it"]}, {"text": "what?", "options": ["a tree", "it"]}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    for readout in ("cosine", "spans"):
        flags = ["--task", "choice", "--data", tmp_path / "rows.jsonl", "--output", tmp_path / "new" / "a.jsonl"]
        code, out, _ = run("predict", *flags, readout=readout)
        found = [json.loads(line) for line in (tmp_path / "new" / "a.jsonl").read_text().splitlines()]
        assert code == 0 and "2 answers in" in out
        assert [len(record["scores"]) for record in found] == [3, 2]
        assert all(record["prediction"] in row["options"] for record, row in zip(found, rows, strict=True))
    write_jsonl(tmp_path / "asked.jsonl", [{"question": "who?", "text": "the old man sees a tree."}])
    code, out, _ = run("predict", "--task", "who", "--data", tmp_path / "asked.jsonl", readout="spans")
    assert code == 0 and json.loads(out)["prediction"] in "the old man sees a tree."


def test_evaluate_prints_majority_the_network_alone_and_the_prompt(run, tmp_path: Path) -> None:  # noqa: ANN001
    code, out, _ = run("evaluate", "--tasks", tmp_path / "animal")
    head, row = (line.split() for line in out.splitlines())
    assert code == 0 and head == ["task", "rows", "majority", "no", "prompt", "prompt", "metric"]
    task = load_task(tmp_path / "animal")
    reader = open_frozen(str(tmp_path / "net"), "cosine", 40, 3, Machine)
    from modular_prompts.saved import load_prompts

    saved = load_prompts(tmp_path / "cosine", reader.denoiser, reader.tokenizer)
    own = reader.examples((task.card, task.test)).accuracy(prompt_of(saved.pool, torch.zeros(1, 2)))
    assert row[0] == "animal" and int(row[1]) == len(task.test) and row[4] == f"{own:.3f}" and row[5] == "accuracy"
    assert isinstance(reader, Cosine)


def without_tokens(folder: Path, tasks: list[str]) -> None:
    """Give tasks of saved prompts a prompt without tokens."""
    tensors = load_file(folder / "prompts.safetensors")
    save_file(tensors | {f"prompt.{task}": torch.zeros(1, 0, 32) for task in tasks}, folder / "prompts.safetensors")


@pytest.mark.parametrize("readout", ["cosine", "spans"])
def test_a_task_without_a_prompt_is_answered_by_the_network_alone(run, tmp_path: Path, readout: str) -> None:  # noqa: ANN001
    without_tokens(tmp_path / readout, ["animal"])
    reader, saved = open_prompts(str(tmp_path / readout), str(tmp_path / "net"), Machine)
    task = load_task(tmp_path / "animal")
    own, prompted = (
        each.examples((task.card, task.test)).scores(torch.arange(len(task.test)), prompt).softmax(-1)
        for each, prompt in ((reader.plain(), reader.nothing), (reader, torch.zeros(1, 2, 3, 32)))
    )
    _, out, _ = run("predict", "--task", "animal", "--data", tmp_path / "animal" / "test.jsonl", readout=readout)
    found = torch.tensor([json.loads(line)["scores"] for line in out.splitlines()])
    assert torch.allclose(found, own, atol=1e-4) and not torch.allclose(prompted, own, atol=1e-3)
    rows = [replace(row, label=int(label)) for row, label in zip(task.test, own.argmax(-1), strict=True)]
    alone, with_its_prompt = scores_of(task, rows, reader, saved)
    assert alone["accuracy"] == with_its_prompt["accuracy"] == 1
    if readout == "spans":  # where placeholders change answers
        assert reader.examples((task.card, rows)).accuracy(reader.nothing) < 1


def test_another_card_and_the_data_file_as_output_are_refused(run, tmp_path: Path) -> None:  # noqa: ANN001
    make_task(tmp_path / "other" / "animal", WORDS["verb"])
    code, out, err = run("evaluate", "--tasks", tmp_path / "other" / "animal")
    message = "their task animal has labels=['cat', 'dog'], and the card in --tasks has ['likes', 'sees']"
    assert code == 2 and message in err and not out
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a cat", "id": 7}])
    before = rows.read_text()
    code, _, err = run("predict", "--task", "animal", "--data", rows, "--output", rows)
    assert code == 2 and "is the data file itself; give another --output" in err
    assert rows.read_text() == before


def test_the_batch_size_changes_no_answer(trained_pairs: Path, tmp_path: Path, monkeypatch, capsys) -> None:  # noqa: ANN001
    reader = open_frozen(str(trained_pairs), "auto", 0, 3, Machine)
    cards = {"turn": Card("turn", "generation", ()), "choice": CHOICE}
    pool = PromptPool(PoolShape(2, 3, reader.denoiser.network.config.hidden_size, 2))
    routers = {name: torch.zeros(1, 2) for name in cards}
    saved = SavedPrompts(pool, routers, "window", reader.placeholders, reader.max_length, cards)
    save_prompts(tmp_path / "p", saved, reader.denoiser, reader.tokenizer, str(trained_pairs))
    write_jsonl(tmp_path / "turn.jsonl", [{"src": pair["src"]} for pair in PAIRS[:9]])
    write_jsonl(tmp_path / "choice.jsonl", [{"text": pair["src"], "options": NOUNS[:3]} for pair in PAIRS[:9]])
    for task in cards:
        found = []
        for size in (1, 4, 64):
            flags = ["--prompts", tmp_path / "p", "--model_name_or_path", trained_pairs, "--task", task, *TINY]
            flags += ["--data", tmp_path / f"{task}.jsonl", "--batch_size", size, "--num_steps", 8]
            assert command(monkeypatch, "predict", *flags) == 0
            found.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
        scores = [[record.pop("scores", []) for record in records] for records in found]
        assert found[0] == found[1] == found[2] and len(found[0]) == 9
        np.testing.assert_allclose(scores[0], scores[1], atol=2e-4)  # they are rounded to four digits
        np.testing.assert_allclose(scores[0], scores[2], atol=2e-4)


@pytest.mark.parametrize(
    ("name", "content", "task", "message"),
    [
        ("a.txt", "", "animal", "a.txt: empty; give rows"),
        ("a.txt", "x\n", "nothing", "no task 'nothing'; they have animal, choice; tune learns a new one"),
        ("a.txt", "x\n", "choice", "a row of choice needs text; give a .jsonl file"),
        ("a.csv", "x\n", "animal", "a row of animal needs text; give a .jsonl file, or a .txt file of texts"),
        ("a.jsonl", '{"text": 3}\n', "animal", "a.jsonl:1: a row of this task needs text, not empty"),
        ("a.jsonl", '{"text": "\\ud800"}\n', "animal", "half of a surrogate pair"),
        ("a.jsonl", '{"text": "x", "options": ["y"]}\n', "choice", "must be a list of 2 to 1000 texts"),
        ("a.jsonl", "[1]\n", "animal", "every line must be an object"),
    ],
)
def test_rows_that_do_not_fit_are_refused_in_one_line(run, tmp_path: Path, name, content, task, message) -> None:  # noqa: ANN001
    (tmp_path / name).write_text(content)
    code, out, err = run("predict", "--task", task, "--data", tmp_path / name)
    assert code == 2 and message in err and len(err.splitlines()) == 1 and not out
