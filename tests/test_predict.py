"""predict.py: samples are text and depend on the seed only; infilling keeps the given text."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import AddedToken, RobertaTokenizerFast

import predict
from diffusion import infilling
from tests.conftest import SENTENCES, call


def run_predict(monkeypatch: pytest.MonkeyPatch, trained: Path, *flags: object) -> int:
    return call(predict.main, monkeypatch, "--checkpoint", trained, "--threads", 1, "--num_steps", 16, *flags)


def lines(capsys: pytest.CaptureFixture) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_samples_are_sentences_of_the_training_language(
    monkeypatch: pytest.MonkeyPatch, trained: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run_predict(monkeypatch, trained, "--num_samples", 40, "--temperature", 0.5, "--num_steps", 64) == 0
    texts = lines(capsys)
    assert len(texts) == 40 and not any(re.search(r"\[[A-Z]+\]", text) for text in texts)
    words = {word for sentence in SENTENCES for word in sentence.rstrip(".").split()}
    known = [word in words for text in texts for word in text.rstrip(".").split()]
    assert sum(known) / len(known) > 0.9
    assert len(set(texts)) > 5


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_same_seed_gives_the_same_samples_at_any_batch_size(
    monkeypatch: pytest.MonkeyPatch, trained: Path, capsys: pytest.CaptureFixture, batch_size: int
) -> None:
    run_predict(monkeypatch, trained, "--num_samples", 10, "--seed", 5)
    expected = lines(capsys)
    run_predict(monkeypatch, trained, "--num_samples", 10, "--seed", 5, "--batch_size", batch_size)
    assert lines(capsys) == expected
    run_predict(monkeypatch, trained, "--num_samples", 4, "--seed", 5)
    assert lines(capsys) == expected[:4]
    run_predict(monkeypatch, trained, "--num_samples", 10, "--seed", 6)
    assert lines(capsys) != expected


def test_a_gap_in_a_byte_level_vocabulary_keeps_the_spaces_around_it() -> None:
    """In such a vocabulary " of" and "of" are different tokens; splitting at the gap must keep them apart."""
    trainer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer.train_from_iterator(["the value of the house"] * 9, special_tokens=special)
    model = json.loads(trainer.to_str())["model"]
    tokenizer = RobertaTokenizerFast(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        mask_token=AddedToken("<mask>", lstrip=True, special=True),
    )
    pieces = tokenizer.convert_ids_to_tokens(infilling.parse_infill(tokenizer, "the [MASK] of the house").ids)
    assert pieces == ["the", "<mask>", "Ġof", "Ġthe", "Ġhouse"]


def test_num_steps_defaults_to_all_steps_of_a_short_process(
    monkeypatch: pytest.MonkeyPatch, trained: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = ["--checkpoint", trained, "--threads", 1, "--num_samples", 2]
    assert call(predict.main, monkeypatch, *flags) == 0  # the command that main.py suggests; T is 64 here
    by_default = lines(capsys)
    assert call(predict.main, monkeypatch, *flags, "--num_steps", 64) == 0 and lines(capsys) == by_default


@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_samples_are_written_as_txt_or_jsonl(
    monkeypatch: pytest.MonkeyPatch, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture, suffix: str
) -> None:
    file = tmp_path / "new" / f"samples.{suffix}"
    assert run_predict(monkeypatch, trained, "--num_samples", 5, "--output", file) == 0
    written = file.read_text().splitlines()
    assert [json.loads(w)["text"] if suffix == "jsonl" else w for w in written] == lines(capsys)


def test_infilling_fills_the_gaps_and_keeps_the_rest(
    monkeypatch: pytest.MonkeyPatch, trained: Path, capsys: pytest.CaptureFixture
) -> None:
    assert (
        run_predict(
            monkeypatch, trained, "--infill", "The cat [MASK] the [MASK].", "--num_samples", 20, "--temperature", 0.3
        )
        == 0
    )
    texts = lines(capsys)
    assert len(texts) == 20 and all(
        re.fullmatch(r"the cat \S+ the \S+( \S+)?\.", text) or text.startswith("the cat") for text in texts
    )
    assert all(text.startswith("the cat ") and text.endswith(".") and "[MASK]" not in text for text in texts)
    assert sum("sees the" in t or "likes the" in t or "follows the" in t for t in texts) >= 10


def test_the_ordered_sampler_fills_and_writes(monkeypatch: pytest.MonkeyPatch, trained: Path, capsys) -> None:
    """Samples depend on the seed alone; the note names the command that computes their likelihood."""
    ordered = [
        "--checkpoint",
        trained,
        "--threads",
        1,
        "--sampler",
        "ordered",
        "--order",
        "entropy",
        "--num_samples",
        12,
    ]
    assert call(predict.main, monkeypatch, *ordered, "--temperature", 0.5) == 0
    captured = capsys.readouterr()
    texts = captured.out.splitlines()
    assert len(texts) == 12 and "compute_elbo.py --estimator exact" in captured.err
    assert sum(text.endswith(".") and "[MASK]" not in text for text in texts) >= 10
    call(predict.main, monkeypatch, *ordered, "--temperature", 0.5, "--batch_size", 5)
    assert capsys.readouterr().out.splitlines() == texts
    assert (
        call(predict.main, monkeypatch, *ordered, "--infill", "The cat [MASK] the [MASK].", "--tokens_per_step", 2) == 0
    )
    assert all(text.startswith("the cat ") and text.endswith(".") for text in lines(capsys))
    assert call(predict.main, monkeypatch, *ordered, "--num_steps", 8) == 2
    assert "num_steps=8: sampler=ordered has no time" in capsys.readouterr().err


def test_the_released_posterior_excludes_infinitely_many_steps(monkeypatch, trained: Path, capsys) -> None:
    flags = ["--posterior", "released", "--num_samples", 3]
    assert run_predict(monkeypatch, trained, *flags, "--num_steps", "inf") == 2
    assert "num_steps=inf needs the exact process" in capsys.readouterr().err
    assert run_predict(monkeypatch, trained, *flags, "--num_steps", 8, "--batch_size", 2) == 0
    assert len(lines(capsys)) == 3


def test_num_steps_inf_gives_complete_sentences(monkeypatch, trained: Path, capsys) -> None:
    assert run_predict(monkeypatch, trained, "--num_samples", 20, "--num_steps", "inf") == 0
    texts = lines(capsys)
    assert len(texts) == 20 and sum(text.endswith(".") and "[MASK]" not in text for text in texts) >= 18


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_steps", 65], "num_steps=65 must lie in 1..64"),
        (
            ["--num_steps", 65, "--sampler", "confidence"],
            "num_steps=65 must lie in 1..64",
        ),  # before the note on its law
        (["--temperature", 0], "temperature=0.0 must lie in [0.001, 1000]"),
        (["--top_p", 0], "top_p=0.0 must lie in (0, 1]"),
        (["--num_samples", 0], "num_samples=0 must lie in 1..1000000"),
        (
            ["--length", 600],
            "600 tokens with [CLS] and [SEP] exceed the 512 positions of this checkpoint",
        ),
        (["--length", 600, "--sampler", "confidence"], "600 tokens with [CLS] and [SEP] exceed the 512 positions"),
        (["--length", 10**18], "length=1000000000000000000 must lie in 0..1000000"),
        (["--num_samples", 10**9], "num_samples=1000000000 must lie in 1.."),
        (["--infill", "a [MASK] b [SEP]"], "[SEP] cannot stand in a text"),
        (["--infill", "a [MASK] \udcff"], "not UTF-8"),
        (["--show", "true", "--output", "a.txt"], "give --show or --output, not both"),
        (["--output", "/dev/null/a.txt"], "/dev/null cannot be written to"),
        (["--infill", "no gap here"], "no [MASK] in it"),
        (["--infill", "a [MASK]", "--length", 3], "not both"),
        (["--output", "samples.csv"], "must end in .txt or .jsonl"),
        (["--posterior", "true"], "must be exact or released"),
        (["--checkpoint", "nowhere"], "checkpoint nowhere: no such folder"),
    ],
)
def test_bad_input_is_a_one_line_error_with_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, trained: Path, capsys: pytest.CaptureFixture, flags: list, message: str
) -> None:
    assert run_predict(monkeypatch, trained, *flags) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_the_released_posterior_leaves_no_mask(
    monkeypatch: pytest.MonkeyPatch, trained: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run_predict(monkeypatch, trained, "--num_samples", 3, "--posterior", "released") == 0
    assert all("[MASK]" not in text for text in lines(capsys))


def test_line_breaks_become_spaces_in_txt_and_are_kept_in_jsonl(tmp_path: Path, capsys) -> None:
    for name in ("s.txt", "s.jsonl"):
        predict.write(["a b\nc d", "e"], str(tmp_path / name))
    assert (tmp_path / "s.txt").read_text() == "a b c d\ne\n"
    assert [json.loads(line)["text"] for line in (tmp_path / "s.jsonl").open()] == ["a b\nc d", "e"]
    assert capsys.readouterr().out.splitlines() == ["a b c d", "e"] * 2


def test_a_closed_pipe_and_an_ascii_encoding_lose_no_sample(trained: Path, tmp_path: Path) -> None:
    """Run `... | head -1` in its own process, with a non-ASCII letter in the vocabulary."""
    model, output = tmp_path / "model", tmp_path / "s.txt"
    shutil.copytree(trained / "checkpoint", model)
    for name in ("tokenizer.json", "word_freq.json"):
        text = (model / name).read_text()
        assert '"the":' in text
        (model / name).write_text(text.replace('"the":', '"日":'))
    flags = ["--num_samples", 400, "--length", 80, "--num_steps", 1, "--threads", 1, "--output", output]
    command = [sys.executable, "predict.py", "--checkpoint", model, *flags]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "ascii"}
    with subprocess.Popen([*map(str, command)], env=environment, cwd=Path(predict.__file__).parent, **pipes) as program:
        first = program.stdout.readline()
        program.stdout.close()
        stderr = program.stderr.read()
    assert program.returncode == 141 and stderr.endswith(f"\n400 samples written to {output}\n")
    lines = output.read_text().splitlines()
    assert len(lines) == 400 and "日" in lines[0] and first == lines[0].replace("日", "?") + "\n"


def test_num_samples_defaults_to_20_and_to_1_with_show() -> None:
    assert predict.PredictArgs("c").num_samples == 20 and predict.PredictArgs("c", show=True).num_samples == 1


def test_a_film_has_five_texts_and_stands_alone(monkeypatch, trained: Path, tmp_path: Path, capsys) -> None:
    assert run_predict(monkeypatch, trained, "--film", tmp_path / "f.html", "--num_steps", 8) == 0
    printed = capsys.readouterr()
    assert not printed.out and f"film of 5 texts written to {tmp_path}/f.html" in printed.err
    assert "5 texts while they are denoised (word_freq)" in (tmp_path / "f.html").read_text()
    for flags, message in (
        (["--show"], "give --film alone"),
        (["--output", tmp_path / "s.txt"], "give --film alone"),
        (["--num_samples", 101], "a film of 101 texts"),
        (["--semi_ar", "true"], "semi_ar=true"),
    ):
        assert run_predict(monkeypatch, trained, "--film", tmp_path / "g.html", *flags) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "g.html").exists()
