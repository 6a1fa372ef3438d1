"""pretraining_run.py: a run is validated, saved, interrupted and resumed to the same bytes."""

import json
from pathlib import Path

import pytest

from data.wordpiece import train_wordpiece
from modular_prompts.pretraining import Pretraining
from tests.conftest import write_jsonl
from tests.modular_prompts.toy_tasks import TINY, WORDS, command, make_network, make_task, make_tasks


@pytest.fixture
def pretrain(tmp_path: Path, tokenizer, monkeypatch, capsys):  # noqa: ANN001, ANN201
    """Return a function that runs the command in a folder; it returns exit code, standard output and error."""
    network, tasks = make_network(tmp_path / "my network", tokenizer), make_tasks(tmp_path / "tasks")

    def run(output: str, *flags: object) -> tuple[int, str, str]:
        base = ["--model_name_or_path", network, "--tasks", tasks, "--output_dir", tmp_path / output, *TINY]
        base += ["--num_modules", 3, "--prompt_length", 2, "--max_steps", 12, "--eval_steps", 4, "--valid_rows", 16]
        code = command(monkeypatch, "pretrain", *base, "--max_length", 40, *flags)
        return code, *capsys.readouterr()

    return run


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_run_is_validated_beside_majority_and_the_network_alone(pretrain, tmp_path: Path) -> None:  # noqa: ANN001
    flags = ["--max_steps", 150, "--eval_steps", 50, "--rows_per_task", 16, "--prompt_rate", 0.05]
    code, out, _ = pretrain("run", *flags)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert code == 0 and [line["step"] for line in lines] == [0, 50, 100, 150]
    means = {line["step"]: line["mean"] for line in lines}
    assert set(lines[1]["tasks"]) == {"animal", "verb"}
    assert means[0] == pytest.approx(sum(lines[0]["tasks"].values()) / 2)
    table = out.split("task ")[1].splitlines()
    assert table[0].split()[:5] == ["majority", "no", "prompt", "prompt", "(validation"]
    best = max(lines[1:], key=lambda line: line["mean"])
    assert [float(row.split()[-1]) for row in table[1:3]] == [round(best["tasks"][t], 3) for t in ("animal", "verb")]
    assert (
        lines[-1]["loss"] < 0.8 * lines[1]["loss"] and f"best mean validation score {best['mean']:.3f} at step" in out
    )
    prompts, network = tmp_path / "run" / "checkpoint", tmp_path / "my network"
    assert f"tune --prompts {prompts} --model_name_or_path '{network}' --tasks MY_TASK" in out
    about = json.loads((tmp_path / "run" / "checkpoint" / "prompts.json").read_text())
    assert about["network"] == "my network" and about["tasks"]["animal"]["labels"] == ["cat", "dog"]
    code, out, _ = pretrain("run", *flags)
    assert code == 0 and out.startswith("pre-trained 150 steps")


@pytest.mark.parametrize("stopped_at", [3, 4, 7])
def test_an_interrupted_run_resumes_to_the_same_bytes(pretrain, tmp_path: Path, monkeypatch, stopped_at: int) -> None:  # noqa: ANN001
    assert pretrain("whole")[0] == 0
    step = Pretraining.step

    def interrupted(self: Pretraining, number: int) -> float:
        if number == stopped_at + 1:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(Pretraining, "step", interrupted)
    assert pretrain("parts", "--save_minutes", 0.001)[0] == 130
    monkeypatch.setattr(Pretraining, "step", step)
    code, out, _ = pretrain("parts", "--save_minutes", 0.001)
    assert code == 0
    assert bytes_of(tmp_path / "whole" / "checkpoint") == bytes_of(tmp_path / "parts" / "checkpoint")
    last = [bytes_of(tmp_path / run / "state" / "step-000000000012") for run in ("whole", "parts")]
    assert all(last[0][name] == last[1][name] for name in ("weights.safetensors", "optimizer.safetensors"))
    logs = [(tmp_path / run / "log.jsonl").read_text() for run in ("whole", "parts")]
    assert logs[0] == logs[1]


def test_a_time_limit_ends_the_process_and_says_how_to_go_on(pretrain, tmp_path: Path) -> None:  # noqa: ANN001
    code, out, _ = pretrain("run", "--time_limit", 0.0001)
    assert code == 0 and "stopped after step 1, and saved" in out and "run the same command again" in out
    code, out, _ = pretrain("run")
    assert code == 0 and "resumed after step 1" in out and "pre-trained 12 steps" in out


def test_another_run_in_the_folder_is_refused(pretrain, tmp_path: Path) -> None:  # noqa: ANN001
    assert pretrain("run")[0] == 0
    code, _, err = pretrain("run", "--num_modules", 4)
    assert code == 2 and "holds a run with other settings (num_modules=3)" in err and err.count("\n") == 1
    with (tmp_path / "tasks" / "animal" / "train.jsonl").open("a") as file:
        file.write(json.dumps({"text": "the cat is new", "label": "cat"}) + "\n")
    (tmp_path / "run" / "state").rename(tmp_path / "elsewhere")
    code, _, err = pretrain("run", "--max_steps", 20, "--resume", "true")
    assert code == 2 and "saved states (state/) were removed" in err
    (tmp_path / "elsewhere").rename(tmp_path / "run" / "state")
    code, _, err = pretrain("run", "--max_steps", 20, "--resume", "true")
    assert code == 2 and "holds a run on other text" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt_length", 30], "leave no room for a text in max_length=40"),
        (["--num_layers", 3], "num_layers=3: the network has 2"),
        (["--split", "test"], "none is left with split='test'"),
        (["--num_module", 3], "unknown flag --num_module; did you mean --num_modules?"),
    ],
)
def test_bad_settings_are_refused_in_one_line(pretrain, tmp_path: Path, flags: list, message: str) -> None:  # noqa: ANN001
    code, _, err = pretrain("run", *flags)
    assert code == 2 and message in err and len(err.splitlines()) == 1 and not (tmp_path / "run" / "state").exists()


def test_a_loss_that_is_not_finite_ends_the_run(pretrain, monkeypatch) -> None:  # noqa: ANN001
    monkeypatch.setattr(Pretraining, "step", lambda *_: float("nan"))
    code, _, err = pretrain("run")
    assert code == 2 and err.endswith("the loss of step 1 is not finite; lower --prompt_rate or --router_rate\n")


def test_the_same_seed_gives_the_same_head_of_spans(pretrain, tmp_path: Path) -> None:  # noqa: ANN001
    out = [pretrain(name, "--readout", "spans")[1] for name in ("one", "two")]
    assert bytes_of(tmp_path / "one" / "checkpoint") == bytes_of(tmp_path / "two" / "checkpoint")
    assert [row.split()[2] for row in out[0].split("task ")[1].splitlines()[1:3]] == ["-", "-"]  # no head, no score


def test_repeated_rows_and_test_rows_are_not_trained_on(pretrain, tmp_path: Path) -> None:  # noqa: ANN001
    folder = tmp_path / "tasks" / "animal"
    rows = (folder / "train.jsonl").read_text()
    before = pretrain("one")[1]
    (folder / "train.jsonl").write_text(rows * 3 + (folder / "test.jsonl").read_text())
    assert pretrain("two")[1].splitlines()[0] == before.splitlines()[0]  # the same number of training rows


def test_validation_rows_are_drawn_from_a_sorted_file(pretrain, tmp_path: Path) -> None:  # noqa: ANN001
    file = tmp_path / "tasks" / "animal" / "train.jsonl"
    file.write_text("".join(sorted(file.read_text().splitlines(keepends=True), key=lambda line: '"dog"' in line)))
    code, out, _ = pretrain("run")
    assert code == 0 and float(out.split("animal ")[1].split()[0]) < 0.8


def test_a_changed_name_or_a_shorter_end_is_refused(pretrain, tmp_path: Path) -> None:  # noqa: ANN001
    assert pretrain("run")[0] == 0
    settings = (tmp_path / "run" / "run.json").read_bytes()
    code, _, err = pretrain("run", "--max_steps", 6, "--resume", "true")
    assert code == 2 and "this run has taken 12 steps, and would end at 6; give a larger --max_steps" in err
    assert (tmp_path / "run" / "run.json").read_bytes() == settings
    (tmp_path / "tasks" / "animal").rename(tmp_path / "tasks" / "none beast")
    code, _, err = pretrain("run", "--max_steps", 20, "--resume", "true")
    assert code == 2 and "holds a run on other text" in err


def test_rows_of_unseen_tasks_are_left_out(pretrain, tmp_path: Path) -> None:  # noqa: ANN001
    make_task(tmp_path / "later", WORDS["verb"])
    code, out, _ = pretrain("run", "--tasks", tmp_path / "tasks" / "animal", "--unseen", tmp_path / "later")
    texts = [{json.loads(line)["text"] for line in (folder / "train.jsonl").read_text().splitlines()}
             | ({json.loads(line)["text"] for line in (folder / "test.jsonl").read_text().splitlines()} if i else set())
             for i, folder in enumerate((tmp_path / "tasks" / "animal", tmp_path / "later"))]  # fmt: skip
    assert code == 0 and out.startswith(f"{len(texts[0] & texts[1])} training rows left out")


WHO, WHAT = ("小猫", "小狗", "老人", "孩子"), ("看见", "喜欢", "跟着", "找到")
THINGS = ("一棵树", "那所房子", "红色的球", "一条鱼", "它", "他的姐妹")
CHINESE = [f"{who}{what}{thing}。" for who in WHO for what in WHAT for thing in THINGS]


def test_chinese_tasks_are_read_by_characters(tmp_path: Path, monkeypatch, capsys) -> None:  # noqa: ANN001
    """A stand-in for bert-base-chinese: a vocabulary of single characters, labels of several."""
    tokenizer = train_wordpiece([*CHINESE, "哪一个？答案：，"], 200)
    network = make_network(tmp_path / "net", tokenizer)
    assert all(len(token) == 1 for token in tokenizer.tokenize(CHINESE[0]))
    rows = [{"text": text, "label": text[:2]} for text in CHINESE if text[:2] in ("小猫", "老人")]
    write_jsonl(tmp_path / "zh" / "train.jsonl", rows[::2] + rows[1::4])
    write_jsonl(tmp_path / "zh" / "test.jsonl", rows[3::4])
    card = {"type": "classification", "labels": ["小猫", "老人"], "question": "哪一个？", "language": "zh"}
    (tmp_path / "zh" / "card.json").write_text(json.dumps(card), encoding="utf-8")
    for readout in ("verbaliser", "spans"):
        flags = ["--model_name_or_path", network, "--tasks", tmp_path / "zh", "--language", "zh", *TINY]
        flags += ["--prompt_length", 2, "--max_steps", 200, "--rows_per_task", 16, "--prompt_rate", 0.05]
        code = command(monkeypatch, "pretrain", *flags, "--readout", readout, "--output_dir", tmp_path / readout)
        out = capsys.readouterr().out
        assert code == 0 and f"read-out {readout}" in out
        losses = [float(line.split("training loss ")[1].split(",")[0]) for line in out.splitlines() if "loss" in line]
        assert losses[-1] < 0.5 * losses[0]
