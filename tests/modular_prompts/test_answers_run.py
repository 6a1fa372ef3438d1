"""answers_run.py: answers of .jsonl and .txt files, their scores, and the refusals."""

import json
from pathlib import Path

import pytest
import torch

from modular_prompts.pool import PoolShape, PromptPool
from modular_prompts.readouts import Cosine
from modular_prompts.saved import SavedPrompts, save_prompts
from modular_prompts.spans import Spans
from modular_prompts.tasks import Card, load_task
from modular_prompts.tuning import prompt_of
from tests.conftest import write_jsonl
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
        save_prompts(tmp_path / readout, saved, reader.denoiser, str(network))

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

    prompt = load_prompts(tmp_path / "cosine", reader.denoiser).prompt("animal")
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

    saved = load_prompts(tmp_path / "cosine", reader.denoiser)
    own = reader.examples((task.card, task.test)).accuracy(prompt_of(saved.pool, torch.zeros(1, 2)))
    assert row[0] == "animal" and int(row[1]) == len(task.test) and row[4] == f"{own:.3f}" and row[5] == "accuracy"
    assert isinstance(reader, Cosine)


@pytest.mark.parametrize(
    ("name", "content", "task", "message"),
    [
        ("a.txt", "", "animal", "a.txt: empty; give rows"),
        ("a.txt", "x\n", "nothing", "no task 'nothing'; they have animal, choice; tune learns a new one"),
        ("a.txt", "x\n", "choice", "a row of choice needs text; give a .jsonl file"),
        ("a.jsonl", '{"text": 3}\n', "animal", "a.jsonl:1: a row of this task needs text with at most"),
        ("a.jsonl", '{"text": "\\ud800"}\n', "animal", "half of a surrogate pair"),
        ("a.jsonl", '{"text": "x", "options": ["y"]}\n', "choice", "must be a list of 2 to 1000 texts"),
        ("a.jsonl", "[1]\n", "animal", "every line must be an object"),
    ],
)
def test_rows_that_do_not_fit_are_refused_in_one_line(run, tmp_path: Path, name, content, task, message) -> None:  # noqa: ANN001
    (tmp_path / name).write_text(content)
    code, out, err = run("predict", "--task", task, "--data", tmp_path / name)
    assert code == 2 and message in err and len(err.splitlines()) == 1 and not out
