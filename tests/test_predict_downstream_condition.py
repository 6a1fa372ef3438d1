"""predict_downstream_condition.py: targets follow sources, depend on the seed only, and survive interruptions."""

import functools
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import compute_elbo
import predict
import predict_downstream_condition
from checkpoint.folder import load_checkpoint
from checkpoint.minimum_bayes_risk import bleu, mbr_select
from data.pairs import Layout
from diffusion.options import SampleArgs
from diffusion_word_freq import WordFreqDiffusion
from evaluation.predictions import Journal, read_predictions
from models.bert import BertDenoiser
from tests.conftest import NOUNS, PAIRS, call, write_jsonl
from utils.errors import UserError
from utils.files import held_alone

HOT = ["--temperature", 4]  # the toy task has one answer; a high temperature makes candidates differ
HELD_OUT = [pair for i, pair in enumerate(PAIRS) if i % 10 == 1]


@pytest.fixture
def predict_pairs(monkeypatch: pytest.MonkeyPatch, trained_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """Return a function that predicts sources; it returns exit code, records, standard output and error."""

    def run(*flags: object, records: list[dict] = HELD_OUT[:12], output: str = "p.jsonl") -> tuple:
        data = write_jsonl(tmp_path / "data.jsonl", records)
        base = ["--checkpoint", trained_pairs, "--data", data, "--output", tmp_path / output, "--threads", 1]
        code = call(predict_downstream_condition.main, monkeypatch, *base, "--num_steps", 8, *flags)
        captured = capsys.readouterr()
        predictions = read_predictions(tmp_path / output) if code == 0 else None
        return code, predictions, captured.out, captured.err

    return run


def interrupted_at(monkeypatch: pytest.MonkeyPatch, forward: int) -> list[int]:
    """Interrupt one forward pass as Ctrl-C would; return a list that collects the rows of each pass."""
    original, calls = BertDenoiser.encode, []

    def encode(self, xt: torch.Tensor, t: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        calls.append(len(xt))
        if len(calls) == forward:
            raise KeyboardInterrupt
        return original(self, xt, t, attention_mask)

    monkeypatch.setattr(BertDenoiser, "encode", encode)
    # their forward passes are not counted
    monkeypatch.setattr("models.factory.try_out", lambda *_: None)
    monkeypatch.setattr(BertDenoiser, "_skips_positions", lambda _: True)
    return calls


def test_targets_follow_their_sources(predict_pairs) -> None:
    code, predictions, out, _ = predict_pairs(
        "--mbr_size", 3, "--temperature", 0.5, "--num_steps", 32, records=HELD_OUT
    )
    assert code == 0 and [r["index"] for r in predictions] == list(range(len(HELD_OUT)))
    correct = [r["prediction"] == r["reference"] for r in predictions]
    assert sum(correct) / len(correct) > 0.8
    ends = [r["prediction"].endswith("always!") == r["source"].startswith("cat") for r in predictions]
    assert sum(ends) / len(ends) > 0.9  # targets of different lengths end at the right token
    assert all(r["prediction"] == r["candidates"][mbr_select(r["candidates"])] for r in predictions)
    _, shuffled, _, _ = predict_pairs("--mbr_size", 3, "--shuffle_sources", "true", "--num_steps", 32, records=HELD_OUT)
    assert [r["reference"] for r in shuffled] == [r["reference"] for r in predictions]
    assert all(a["source"] != b["source"] for a, b in zip(predictions, shuffled, strict=True))
    scores = [np.mean([bleu(r["prediction"], r["reference"]) for r in records]) for records in (predictions, shuffled)]
    assert scores[0] > 1.5 * scores[1]


def test_show_prints_source_candidates_choice_and_reference(predict_pairs) -> None:
    _, predictions, out, err = predict_pairs("--show", 2, "--mbr_size", 2)
    lines = [line for line in out.splitlines() if line]
    assert [line.split("  ")[0] for line in lines] == ["source", *["candidate"] * 2, "MBR choice", "reference"] * 2
    assert (
        predictions[1]["source"] in out and predictions[1]["prediction"] in out and predictions[2]["source"] not in out
    )
    assert "next: python compute_metric.py" in err


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_the_same_seed_gives_the_same_candidates_at_any_batch_size(predict_pairs, batch_size: int) -> None:
    expected = predict_pairs(*HOT, "--mbr_size", 3, "--seed", 4)[1]
    assert predict_pairs(*HOT, "--mbr_size", 3, "--seed", 4, "--batch_size", batch_size)[1] == expected
    fewer = predict_pairs(*HOT, "--mbr_size", 3, "--seed", 4, "--limit", 5)[1]
    assert fewer == expected[:5]
    assert predict_pairs(*HOT, "--mbr_size", 3, "--seed", 14)[1] != expected


def test_candidates_differ_and_each_depends_on_its_own_seed(predict_pairs) -> None:
    predictions = predict_pairs(*HOT, "--mbr_size", 4, "--seed", 2)[1]
    assert np.mean([len(set(r["candidates"])) > 1 for r in predictions]) > 0.9
    for j in range(4):
        alone = predict_pairs(*HOT, "--mbr_size", 1, "--seed", 2 + j)[1]
        assert [r["candidates"] for r in alone] == [[r["candidates"][j]] for r in predictions]
        assert all(r["prediction"] == r["candidates"][0] for r in alone)


def test_empty_and_overlong_sources_are_predicted(predict_pairs) -> None:
    records = [{"src": "", "trg": "the cat"}, {"src": " ".join(NOUNS * 9), "trg": "the dog"}, HELD_OUT[0]]
    code, predictions, _, err = predict_pairs("--batch_size", 2, "--mbr_size", 3, records=records)
    assert code == 0 and len(predictions) == 3 and "1 sources cut" in err
    assert predictions[0]["source"] == "" and predictions[1]["source"] == " ".join(NOUNS * 9)
    assert predictions[2]["candidates"] != predictions[0]["candidates"]


def continued(err: str) -> int:
    """Return the number of sources that a run reports as already done."""
    return int(err.split("continuing after ")[1].split()[0])


def test_an_interrupted_run_continues_where_it_stopped(predict_pairs, monkeypatch, tmp_path) -> None:
    expected = predict_pairs(*HOT, "--mbr_size", 2)[1]
    (tmp_path / "p.jsonl").unlink()
    calls = interrupted_at(monkeypatch, 14)
    assert predict_pairs(*HOT, "--mbr_size", 2, "--batch_size", 6)[0] == 130
    assert not (tmp_path / "p.jsonl").exists() and (tmp_path / "p.jsonl.part").exists()
    code, predictions, _, err = predict_pairs(*HOT, "--mbr_size", 2, "--batch_size", 6)
    assert code == 0 and predictions == expected and 0 < continued(err) < 12
    again = sum(calls[14:])
    assert not (tmp_path / "p.jsonl.part").exists()
    predict_pairs(*HOT, "--mbr_size", 2)
    whole = sum(calls) - sum(calls[:14]) - again
    assert 0 < again < whole  # finished sources are not drawn again; a complete run starts anew


@pytest.mark.parametrize(
    "flags", [["--seed", 5], ["--temperature", 3], ["--top_k", 7], ["--precision", "bf16"], ["--mbr_size", 3]]
)
def test_a_journal_of_other_settings_is_not_continued(predict_pairs, monkeypatch, tmp_path, flags: list) -> None:
    base = [*HOT, "--mbr_size", 2, "--batch_size", 6]
    expected = predict_pairs(*base, *flags)[1]
    (tmp_path / "p.jsonl").unlink()
    interrupted_at(monkeypatch, 14)
    assert predict_pairs(*base)[0] == 130
    code, predictions, _, err = predict_pairs(*base, *flags)
    assert code == 0 and predictions == expected and "with other settings" in err and "continuing" not in err


def test_a_refused_command_does_not_change_the_journal(predict_pairs, monkeypatch, tmp_path) -> None:
    interrupted_at(monkeypatch, 14)
    assert predict_pairs(*HOT, "--mbr_size", 2, "--batch_size", 6)[0] == 130
    before = (tmp_path / "p.jsonl.part").read_bytes()
    code, _, _, err = predict_pairs(*HOT, "--mbr_size", 2, "--num_steps", 1000)
    assert code == 2 and "must lie in" in err and (tmp_path / "p.jsonl.part").read_bytes() == before


def test_a_run_with_another_limit_continues_the_journal(predict_pairs, monkeypatch, tmp_path) -> None:
    interrupted_at(monkeypatch, 14)
    assert predict_pairs(*HOT, "--mbr_size", 2, "--batch_size", 6, "--limit", 5)[0] == 130
    assert 0 < continued(predict_pairs(*HOT, "--mbr_size", 2, "--limit", 9)[3]) <= 5


def test_a_repeated_source_has_different_candidates(predict_pairs) -> None:
    predictions = predict_pairs(*HOT, "--mbr_size", 2, records=[HELD_OUT[0]] * 6)[1]
    assert len({tuple(r["candidates"]) for r in predictions}) > 3


def test_a_training_split_is_predicted_only_if_given_as_a_file(predict_pairs, tmp_path) -> None:
    write_jsonl(tmp_path / "only" / "train.jsonl", HELD_OUT[:3])
    code, _, _, err = predict_pairs("--data", tmp_path / "only")
    assert code == 2 and "neither a test nor a validation split" in err
    code, predictions, _, err = predict_pairs("--data", tmp_path / "only" / "train.jsonl")
    assert code == 0 and len(predictions) == 3 and f"predicting {tmp_path / 'only' / 'train.jsonl'}" in err


def test_the_data_file_is_not_overwritten(predict_pairs, tmp_path) -> None:
    code, _, _, err = predict_pairs("--output", tmp_path / "data.jsonl")
    assert code == 2 and "is the data file itself" in err
    assert len((tmp_path / "data.jsonl").read_text().splitlines()) == 12


def test_steps_are_given_by_number_or_by_size(trained_pairs: Path) -> None:
    def steps(num_steps: int = 0, step_size: int = 0) -> int:
        args = predict_downstream_condition.DownstreamArgs("c", "d", "o.jsonl", step_size=step_size)
        return predict_downstream_condition.steps(args, SampleArgs(num_steps=num_steps), 64)

    assert (steps(), steps(5), steps(step_size=16), steps(step_size=10)) == (64, 5, 4, 7)
    for wrong in ((65, 0), (0, 65), (4, 4)):
        with pytest.raises(UserError, match="step"):
            steps(*wrong)


def test_diffuseq_files_are_written_beside_the_output(predict_pairs, tmp_path: Path) -> None:
    _, predictions, _, _ = predict_pairs("--mbr_size", 2, "--seed", 7, "--diffuseq_format", "true")
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == ["seed7_step8.json", "seed8_step8.json"]
    lines = [json.loads(line) for line in (tmp_path / "p" / "seed8_step8.json").read_text().splitlines()]
    assert [line["recover"] for line in lines] == [r["candidates"][1] for r in predictions]
    assert set(lines[0]) == {"recover", "reference", "source"}


def test_references_are_normalized_as_samples_are(predict_pairs) -> None:
    predictions = predict_pairs(records=[{"src": "Cat  SEE dog", "trg": "The dog is SEEN by the cat.  Always!"}])[1]
    assert (
        predictions[0]["source"] == "cat see dog"
        and predictions[0]["reference"] == "the dog is seen by the cat. always!"
    )


def test_the_derangement_moves_every_source() -> None:
    for n in (2, 3, 50):
        order = predict_downstream_condition.derangement(n, seed=1)
        assert sorted(order) == list(range(n)) and all(i != j for i, j in enumerate(order))


def test_the_ordered_sampler_and_its_likelihood_for_pairs(trained_pairs, monkeypatch, tmp_path, capsys) -> None:
    """The most probable tokens in order are the prediction, and the exact likelihood gives that text probability 1."""
    data = write_jsonl(tmp_path / "d.jsonl", HELD_OUT[:6])
    ordered = ["--checkpoint", trained_pairs, "--data", data, "--output", tmp_path / "o.jsonl", "--threads", 1]
    ordered += ["--sampler", "ordered", "--top_k", 1, "--mbr_size", 1]
    assert call(predict_downstream_condition.main, monkeypatch, *ordered) == 0
    found = read_predictions(tmp_path / "o.jsonl")
    assert sum(r["prediction"] == r["reference"] for r in found) >= 4
    own = write_jsonl(tmp_path / "own.jsonl", [{"src": r["source"], "trg": r["prediction"]} for r in found])
    capsys.readouterr()
    exact = [
        "--checkpoint",
        trained_pairs,
        "--data",
        own,
        "--estimator",
        "exact",
        "--top_k",
        1,
        "--json",
        "--threads",
        1,
    ]
    assert call(compute_elbo.main, monkeypatch, *exact, "--cache_dir", tmp_path / "cache") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["nats_per_sequence"] == 0 and report["excluded_sequences"] == 0
    assert call(predict_downstream_condition.main, monkeypatch, *ordered, "--step_size", 4) == 2
    assert "step_size=4: sampler=ordered has no time" in capsys.readouterr().err


def test_an_unfinished_run_from_before_the_ordered_sampler_goes_on(tmp_path) -> None:
    """Its journal has no entries for order and tokens_per_step."""
    args = predict_downstream_condition.DownstreamArgs(checkpoint="c", data="d.jsonl", output=str(tmp_path / "o.jsonl"))
    before = predict_downstream_condition.candidate_settings(args, SampleArgs())
    assert {"temperature", "top_k", "top_p", "sampler", "num_steps"} < before.keys()
    assert not {"order", "tokens_per_step"} & before.keys()
    ordered = SampleArgs(sampler="ordered", order="margin", tokens_per_step=2)
    assert predict_downstream_condition.candidate_settings(args, ordered)["order"] == "margin"


def test_infilling_and_seq2seq_share_the_sampler(trained_pairs, trained, monkeypatch, tmp_path, capsys) -> None:
    """Both pass `Process.sample` a batch whose target_mask marks the tokens to draw."""
    calls = []
    original = WordFreqDiffusion.sample

    def recorded_sample(self, denoiser, batch, args, **kwargs) -> torch.Tensor:
        drawn = original(self, denoiser, batch, args, **kwargs)
        calls.append((batch, drawn))
        return drawn

    monkeypatch.setattr(WordFreqDiffusion, "sample", recorded_sample)
    infill = ["--checkpoint", trained, "--infill", "the [MASK] sees a tree.", "--num_samples", 2, "--num_steps", 4]
    assert call(predict.main, monkeypatch, *infill, "--threads", 1) == 0
    data = write_jsonl(tmp_path / "d.jsonl", HELD_OUT[:2])
    pair = ["--checkpoint", trained_pairs, "--data", data, "--output", tmp_path / "o.jsonl", "--num_steps", 4]
    assert call(predict_downstream_condition.main, monkeypatch, *pair, "--mbr_size", 1, "--threads", 1) == 0
    assert len(calls) == 2
    for batch, drawn in calls:
        assert torch.equal(batch.input_ids[~batch.target_mask], drawn[~batch.target_mask])
        assert batch.target_mask.any(1).all() and not batch.target_mask.all(1).any()


def test_the_bound_counts_the_targets_given_their_sources(
    trained_pairs, trained, pairs_folder, corpus, monkeypatch, tmp_path, capsys
) -> None:
    def score(checkpoint_: Path, data: Path) -> tuple[int, str]:
        flags = [
            "--checkpoint",
            checkpoint_,
            "--data",
            data,
            "--cache_dir",
            tmp_path / "cache",
            "--json",
            "--threads",
            1,
        ]
        code = call(compute_elbo.main, monkeypatch, *flags)
        captured = capsys.readouterr()
        return code, captured.out if code == 0 else captured.err

    code, out = score(trained_pairs, pairs_folder)
    report = json.loads(out)
    run = load_checkpoint(str(trained_pairs), torch.device("cpu"))
    layout = Layout(run.pairs, run.tokenizer, run.max_length)
    targets = run.tokenizer([pair["trg"] for pair in HELD_OUT], add_special_tokens=False)["input_ids"]
    assert report["num_tokens"] == sum(min(len(target) + 1, layout.window) for target in targets)  # text and [SEP]
    assert report["num_sequences"] == len(HELD_OUT)
    assert report["num_words"] == sum(len(pair["trg"].split()) for pair in HELD_OUT)
    assert report["bits_per_token"] < 0.3 * report["unigram_bits_per_token"]
    assert score(trained_pairs, corpus) == (2, score(trained_pairs, corpus)[1])
    assert "trained on pairs" in score(trained_pairs, corpus)[1]
    assert "trained on text" in score(trained, pairs_folder)[1]


def test_a_checkpoint_stores_the_layout_of_its_pairs(trained_pairs: Path) -> None:
    run = load_checkpoint(str(trained_pairs), torch.device("cpu"))
    assert run.pairs.prompt == "plain" and run.max_length == 40
    assert run.token_counts[run.tokenizer.pad_token_id] > 0
    assert run.token_counts[run.tokenizer.convert_tokens_to_ids("see")] == 0
    description = json.loads((trained_pairs / "checkpoint" / "process.json").read_text())
    assert description["pairs"] == {"prompt": "plain", "target_window": run.pairs.target_window}


@pytest.mark.parametrize("wrong", [{"prompt": "none", "target_window": 5}, {"prompt": "plain", "target_window": 0}, 7])
def test_a_damaged_layout_of_pairs_is_refused(trained_pairs: Path, tmp_path: Path, wrong: object) -> None:
    import shutil

    shutil.copytree(trained_pairs / "checkpoint", tmp_path / "c")
    description = json.loads((tmp_path / "c" / "process.json").read_text())
    (tmp_path / "c" / "process.json").write_text(json.dumps({**description, "pairs": wrong}))
    with pytest.raises(UserError, match=r"process\.json"):
        load_checkpoint(str(tmp_path / "c"), torch.device("cpu"))


@pytest.mark.parametrize(
    ("flags", "fragments"),
    [
        (["--mbr_size", 0], ["mbr_size=0"]),
        (["--mbr_size", 5000], ["mbr_size=5000", "1000"]),
        (["--step_size", 4], ["--num_steps or --step_size"]),
        (["--num_steps", 999], ["999", "1..64"]),
        (["--num_steps", 999, "--sampler", "confidence"], ["999", "1..64"]),  # before the note on its law
        (["--output", "x.txt"], ["x.txt", ".jsonl"]),
        (["--limit", -1], ["limit=-1"]),
        (["--data", "missing.jsonl"], ["missing.jsonl"]),
    ],
)
def test_bad_settings_are_a_one_line_error(predict_pairs, flags: list, fragments: list, tmp_path: Path) -> None:
    code, _, _, err = predict_pairs(*flags)
    assert code == 2 and all(fragment in err for fragment in fragments) and len(err.strip().splitlines()) == 1
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("record", "fragments"),
    [({"src": "a"}, [":1", "trg"]), ({"text": "a b"}, ["no pairs"]), ({"src": "a", "trg": ""}, [":1", "empty"])],
)
def test_bad_data_are_refused_without_a_traceback(predict_pairs, record: dict, fragments: list) -> None:
    code, _, _, err = predict_pairs(records=[record, *HELD_OUT[:2]])
    assert code == 2 and all(fragment in err for fragment in fragments) and "Traceback" not in err


def test_each_script_refuses_checkpoints_of_the_other_kind(
    predict_pairs, trained, trained_pairs, monkeypatch, capsys
) -> None:
    code, _, _, err = predict_pairs("--checkpoint", trained)
    assert code == 2 and "without pairs" in err
    assert call(predict.main, monkeypatch, "--checkpoint", trained_pairs, "--threads", 1) == 2
    assert "predict_downstream_condition.py" in capsys.readouterr().err


def test_the_journal_is_beside_the_output(tmp_path: Path) -> None:
    assert Journal(tmp_path / "deep" / "er" / "p.jsonl", "r").path == tmp_path / "deep" / "er" / "p.jsonl.part"


def test_two_processes_cannot_write_the_same_output(predict_pairs, tmp_path: Path) -> None:
    part = tmp_path / "p.jsonl.part"
    with held_alone(part, "mine"):
        part.write_bytes(b"as it was")
        code, _, out, err = predict_pairs()
        assert code == 2 and err.count("\n") <= 2 and not out and part.read_bytes() == b"as it was"
        assert err.endswith(
            "p.jsonl: another process is writing predictions to it; wait for it, or give another output\n"
        )
    assert predict_pairs()[0] == 0 and not part.exists()
    os.mkfifo(part)
    code, _, _, err = predict_pairs()
    assert code == 2 and "p.jsonl.part: not a regular file" in err


def test_a_closed_stdout_loses_no_prediction(predict_pairs, monkeypatch, tmp_path: Path) -> None:
    class Closed:
        """Standard output with a closed reader."""

        write = flush = lambda self, *arguments: (_ for _ in ()).throw(BrokenPipeError)
        fileno = functools.partial(os.open, os.devnull, os.O_WRONLY)

    monkeypatch.setattr(sys, "stdout", Closed())
    code, _, _, err = predict_pairs("--diffuseq_format", "true")
    assert code == 141 and "12 sources with 3 candidates each written" in err
    assert len(read_predictions(tmp_path / "p.jsonl")) == 12 == len(read_predictions(tmp_path / "p"))
    assert not (tmp_path / "p.jsonl.part").exists()
