"""metric_report.py: every metric against hand computation, the baselines, refused input."""

import json
from pathlib import Path

import numpy as np
import pytest
from nltk.translate.bleu_score import corpus_bleu

import compute_metric
from checkpoint import minimum_bayes_risk
from checkpoint.minimum_bayes_risk import bleu
from data.tokenizers import train_wordpiece
from evaluation import text_metrics
from evaluation.predictions import write_diffuseq
from tests.conftest import SENTENCES, call, write_jsonl

FRIENDS = ["how can i make friends ?", "how do i make friends ?", "what is the best way to make friends ?"]
RECORDS = [
    {"source": "making friends", "reference": "how to make friends ?", "candidates": FRIENDS, "prediction": FRIENDS[0]},
    {"source": "a cat", "reference": "the cat", "candidates": ["a cat", "the cat", "the cat"], "prediction": "the cat"},
    {"source": "", "reference": "x y", "candidates": ["", "x", ""], "prediction": ""},
]


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture):
    """Return a function that runs the script on predictions; it returns exit code, report and standard error."""

    def run(*flags: object, records: list | Path = RECORDS) -> tuple[int, dict, str]:
        path = write_jsonl(tmp_path / "p.jsonl", records) if isinstance(records, list) else records
        code = call(compute_metric.main, monkeypatch, "--predictions", path, "--json", "--threads", 1, *flags)
        captured = capsys.readouterr()
        return code, json.loads(captured.out) if code == 0 else {}, captured.err

    return run


def mean(values: list) -> object:
    return pytest.approx(float(np.mean(values)))


def test_seq2seq_metrics_match_hand_computation(measure) -> None:
    code, report, _ = measure()
    chosen = [FRIENDS[0], "the cat", ""]
    references = [record["reference"] for record in RECORDS]
    assert code == 0 and report["num_sources"] == 3 and report["mbr_size"] == report["diversity_samples"] == 3
    assert report["bleu"] == mean([bleu(c, r) for c, r in zip(chosen, references, strict=True)])
    assert report["bleu"] != mean([bleu(r, c) for c, r in zip(chosen, references, strict=True)])
    assert report["bleu_single"] == mean([0.25119835939, bleu("a cat", "the cat"), 0])
    assert report["rouge_l"] == mean([2 / 3, 1, 0]) and report["dist_1"] == mean([1, 1, 0])
    assert report["length"] == mean([6, 2, 0]) and report["exact_match"] == mean([0, 1, 0])
    self_bleus = [text_metrics.pairwise_self_bleu(record["candidates"]) for record in RECORDS]
    assert report["self_bleu"] == mean(self_bleus) and self_bleus[0] == pytest.approx(0.273619, abs=1e-6)
    assert report["div_4"] == mean([text_metrics.diverse_4(record["candidates"]) for record in RECORDS])
    assert report["bleu_copy"] == mean([bleu(r["source"], r["reference"]) for r in RECORDS])
    assert report["exact_match_se"] == pytest.approx(np.std([0, 1, 0], ddof=1) / np.sqrt(3))
    assert {"rouge_l_copy", "dist_1_copy", "bleu_se"} <= set(report) and "bleu_random" not in report


def test_a_smaller_mbr_size_chooses_among_the_first_candidates(measure) -> None:
    one, two = (measure("--mbr_size", n)[1] for n in (1, 2))
    assert one["bleu"] == one["bleu_single"] and two["mbr_size"] == 2
    assert one["self_bleu"] == two["self_bleu"] == measure()[1]["self_bleu"]  # diversity always uses the same samples
    assert measure("--diversity_samples", 2)[1]["self_bleu"] != one["self_bleu"]
    assert "self_bleu" not in measure("--diversity_samples", 1)[1]


def test_released_metrics_swap_candidate_and_reference(measure) -> None:
    report = measure("--released", "true", records=[RECORDS[0] | {"candidates": [FRIENDS[0]]}])[1]
    assert report["bleu"] == pytest.approx(0.263504, abs=1e-6) and report["rouge_l"] == pytest.approx(2 / 3)


def test_released_selection_uses_the_released_mbr_rule(measure) -> None:
    samples = ["e c d", "a e", "b"]
    released = minimum_bayes_risk.mbr_select(samples, released=True)
    assert minimum_bayes_risk.mbr_select(samples) != released
    record = {"source": "s", "reference": samples[released], "prediction": "", "candidates": samples}
    assert measure(records=[record])[1]["exact_match"] == 0
    assert measure("--released", "true", records=[record])[1]["exact_match"] == 1


def test_diffuseq_files_give_the_same_report(measure, tmp_path: Path) -> None:
    write_diffuseq(tmp_path / "files", RECORDS, seed=3, num_steps=20)
    ours, theirs = measure()[1], measure(records=tmp_path / "files")[1]
    assert ours == theirs


def test_baselines_are_random_and_nearest_training_targets(measure, tmp_path: Path) -> None:
    train = [
        {"src": "making new friends", "trg": "How to make friends?"},
        {"src": "a dog", "trg": "The cat"},
        {"src": "zebra", "trg": "zzz"},
    ]
    tokenizer = train_wordpiece([text for pair in train for text in pair.values()] * 3, 200)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    data = write_jsonl(tmp_path / "train" / "train.jsonl", train).parent
    code, report, error = measure("--train_data", data, "--tokenizer", tmp_path / "tokenizer")
    normalized = [tokenizer.decode(tokenizer(pair["trg"], add_special_tokens=False)["input_ids"]) for pair in train]
    assert normalized[0] == "how to make friends?"
    nearest = [
        bleu(normalized[0], RECORDS[0]["reference"]),
        bleu(normalized[1], RECORDS[1]["reference"]),
        bleu(normalized[0], "x y"),
    ]
    assert report["bleu_nearest"] == mean(nearest)
    possible = [{round(bleu(text, r["reference"]), 9) for text in normalized} for r in RECORDS]
    drawn = [measure("--train_data", data, "--tokenizer", tmp_path / "tokenizer", "--seed", s)[1] for s in range(4)]
    assert len({r["bleu_random"] for r in drawn}) > 1
    sums = {round(a + b + c, 6) for a in possible[0] for b in possible[1] for c in possible[2]}
    assert all(round(3 * r["bleu_random"], 6) in sums for r in drawn)


def test_plain_text_predictions_are_compared_with_pairs(measure, tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text("The cat\n\na b\n")
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [{"src": "s", "trg": t} for t in ("The cat", "a dog", "a b")])
    _, report, stderr = measure("--references", pairs, records=tmp_path / "out.txt")
    assert "references are not normalized" in stderr
    assert report["exact_match"] == mean([1, 0, 1]) and "self_bleu" not in report


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.json"])
def test_pairs_of_other_column_names_give_the_same_report(measure, tmp_path: Path, name: str) -> None:
    """As references of samples, and as training data of predictions."""
    pairs = [{"src": s, "trg": t} for s, t in (("s, t", "The cat"), ("a dog", "a dog"), ("b", "a b"))]
    usual, named = write_jsonl(tmp_path / "pairs.jsonl", pairs), tmp_path / name
    if name == "pairs.csv":
        named.write_text("answer,question\n" + "".join(f'{p["trg"]},"{p["src"]}"\n' for p in pairs))
    else:
        named.write_text(json.dumps([{"question": p["src"], "answer": p["trg"]} for p in pairs]))
    train_wordpiece(["s t the cat a dog b"] * 3, 100).save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "out.txt").write_text("The cat\n\na b\n")
    names = ["--source_column", "question", "--target_column", "answer"]
    for flag, records in (("--references", tmp_path / "out.txt"), ("--train_data", RECORDS)):
        flags = ["--tokenizer", tmp_path / "tokenizer", flag]
        first, second = measure(*flags, usual, records=records), measure(*flags, named, *names, records=records)
        assert first[0] == second[0] == 0 and first[1] == second[1]


# ---- unconditional ---------------------------------------------------------------------------------------------------


def test_references_of_another_column_name_give_the_same_report(measure, tmp_path: Path) -> None:
    (tmp_path / "samples.txt").write_text("a cat sees the dog\nthe dog\n")
    (tmp_path / "usual.txt").write_text("the cat sees a dog\nthe dog\n")
    (tmp_path / "reviews.csv").write_text("id,review\n1,the cat sees a dog\n2,the dog\n")
    usual, named = tmp_path / "usual.txt", tmp_path / "reviews.csv"
    first = measure("--references", usual, "--train_data", usual, records=tmp_path / "samples.txt")
    flags = ["--references", named, "--train_data", named, "--text_column", "review"]
    second = measure(*flags, records=tmp_path / "samples.txt")
    assert first[0] == second[0] == 0 and first[1] == second[1] and first[1]["copied"] == 0.5


def test_unconditional_metrics_match_direct_computation(measure, tmp_path: Path) -> None:
    samples = ["the cat sees the house.", "a dog likes it.", "it it it it", ""]
    (tmp_path / "s.txt").write_text("\n".join(samples) + "\n")
    (tmp_path / "r.txt").write_text("\n".join(s.capitalize() for s in SENTENCES[:50]))
    (tmp_path / "t.txt").write_text("\n".join(["A dog likes it.", *SENTENCES[60:70]]))
    tokenizer = train_wordpiece(SENTENCES, 300)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    flags = [
        "--references",
        tmp_path / "r.txt",
        "--train_data",
        tmp_path / "t.txt",
        "--tokenizer",
        tmp_path / "tokenizer",
    ]
    code, report, stderr = measure(*flags, records=tmp_path / "s.txt")
    assert "taken as they are" not in stderr
    words, references = [s.split() for s in samples], [s.lower().split() for s in SENTENCES[:50]]
    assert code == 0 and report["num_samples"] == 4 and report["num_references"] == 50
    assert report["bleu_4"] == mean([corpus_bleu([references], [w]) for w in words])
    assert report["corpus_bleu_4"] == pytest.approx(corpus_bleu([references] * 4, words), abs=1e-9)
    assert report["self_bleu_4"] == mean(text_metrics.self_bleu(words))
    assert report["copied"] == 0.25 and report["repetition"] == mean([0, 0, 2 / 3, 0])
    assert report["distinct_1"] == text_metrics.distinct(words, 1) and report["distinct_4"] == text_metrics.distinct(
        words, 4
    )
    assert report["unigram_entropy"] == pytest.approx(text_metrics.unigram_entropy(words))
    raw = measure(*flags, "--released", "true", records=tmp_path / "s.txt")[1]
    assert raw["copied"] == 0 and raw["bleu_4"] < report["bleu_4"]  # lower-cased samples against cased references


def test_one_source_has_no_standard_error(measure) -> None:
    report = measure(records=RECORDS[:1])[1]
    assert report["bleu_se"] is None


def test_one_sample_has_no_self_bleu(measure, monkeypatch, tmp_path: Path, corpus: Path, capsys) -> None:
    (tmp_path / "s.txt").write_text("the cat sees a tree.\n")
    report = measure("--references", corpus, records=tmp_path / "s.txt")[1]
    assert report["self_bleu_4"] is report["self_bleu_4_se"] is None and report["notes"] == []
    flags = ["--predictions", tmp_path / "s.txt", "--references", corpus, "--threads", 1]
    assert call(compute_metric.main, monkeypatch, *flags) == 0
    lines = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines())
    assert lines["self_bleu_4"] == "n/a" and "notes" not in lines


# ---- other writing systems -------------------------------------------------------------------------------------------


def exact_prediction(text: str) -> list[dict]:
    return [{"source": "s", "reference": text, "candidates": [text, text], "prediction": text}]


@pytest.mark.parametrize("text", ["Мой дядя самых честных правил", "我喜欢这只猫", "पेड़ पर बिल्ली है"])
def test_equal_texts_have_a_rouge_of_one_in_any_writing_system(measure, text: str) -> None:
    _, report, _ = measure(records=exact_prediction(text))
    assert report["rouge_l"] == report["exact_match"] == 1 and report["rouge_tokens"] == "unicode"
    _, report, _ = measure("--rouge_tokens", "ascii", records=exact_prediction(text))
    assert report["rouge_l"] == 0 and report["rouge_tokens"] == "ascii"


def test_text_without_spaces_between_words_is_reported(measure, tmp_path: Path) -> None:
    for text, noted in (
        ("我喜欢这只猫", True),
        ("我 喜欢 这 只 猫", False),
        ("แมวกินปลาที่บ้าน", True),
        ("the cat", False),
    ):
        _, report, stderr = measure(records=exact_prediction(text))
        assert len(report["notes"]) == ("without spaces between words" in stderr) == noted
        (tmp_path / "s.txt").write_text(f"{text}\n{text}\n")
        _, report, stderr = measure("--references", tmp_path / "s.txt", records=tmp_path / "s.txt")
        assert len(report["notes"]) == ("without spaces between words" in stderr) == noted


def test_a_byte_order_mark_changes_no_metric(measure, tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "s.txt").write_text("the cat sees a tree.\na dog likes it.\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text((tmp_path / "s.txt").read_text(), encoding="utf-8-sig")
    (tmp_path / "c.txt").write_text(corpus.read_text(), encoding="utf-8-sig")
    plain, marked = (
        measure("--references", r, records=s)[1]
        for r, s in ((corpus, tmp_path / "s.txt"), (tmp_path / "c.txt", tmp_path / "b.txt"))
    )
    assert plain == marked and plain["bleu_4"] > 0


# ---- refused input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mbr_size", 4], "mbr_size=4 must be at most 3"),
        (["--mbr_size", -1], "mbr_size=-1"),
        (["--predictions", "missing.jsonl"], "missing.jsonl: no such file"),
        (["--train_data", "."], "--tokenizer"),
        (["--text_column", "review"], "review names a column of --references or --train_data"),
        (["--train_data", ".", "--text_column", "review"], "text_column=review has no effect here"),
        (["--references", "missing.jsonl"], "references=missing.jsonl has no effect here"),
        (["--mauve_model", "missing"], "mauve_model=missing has no effect here"),
        (["--tokenizer", "./missing"], "missing"),
        (["--bertscore_model", "missing"], "missing: no such folder"),
    ],
)
def test_bad_settings_are_a_one_line_error(measure, flags: list, message: str) -> None:
    code, _, error = measure(*flags)
    assert code == 2 and message in error and len(error.strip().splitlines()) == 1


LONG = "word " * 110_000


@pytest.mark.parametrize(
    ("records", "flags", "message"),
    [
        (
            [RECORDS[0] | {"candidates": ["a"] * 3000}],
            [],
            "3,000 candidates per source, and all pairs are compared; give",
        ),
        ([RECORDS[0], RECORDS[1] | {"reference": LONG}], [], "text 2 has 550,000 characters, more than 500,000; split"),
        ([RECORDS[0] | {"source": LONG}], [], "text 1 has 550,000 characters"),
        ([RECORDS[0] | {"candidates": ["a b " * 1000] * 900}], [], "900 candidates of text 1 are too long to compare"),
        (RECORDS, ["--diversity_samples", 1001], "diversity_samples=1001 must lie in 0..1000"),
        (RECORDS, ["--rouge_tokens", "latin"], "rouge_tokens"),
    ],
)
def test_inputs_of_excessive_cost_are_refused(measure, records: list, flags: list, message: str) -> None:
    code, _, error = measure(*flags, records=records)
    assert code == 2 and message in error and len(error.strip().splitlines()) == 1


def test_mbr_size_limits_an_excessive_number_of_candidates(measure) -> None:
    record = RECORDS[0] | {"candidates": [*FRIENDS, *["a"] * 3000]}
    assert measure("--mbr_size", 3, records=[record])[1]["bleu"] == measure(records=RECORDS[:1])[1]["bleu"]


def test_a_non_finite_metric_is_an_error(measure, monkeypatch) -> None:
    monkeypatch.setattr(minimum_bayes_risk, "bleu", lambda *pair: float("nan"))
    monkeypatch.setattr(minimum_bayes_risk, "mbr_select", lambda texts, released: 0)
    code, _, error = measure()
    assert code == 2 and "error: bleu is nan, not a finite number" in error and error.count("\n") == 1


def test_bad_predictions_are_refused(measure, tmp_path: Path, corpus: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    code, _, error = measure(records=empty)
    assert code == 2 and "empty.jsonl: no predictions" in error
    (tmp_path / "s.txt").write_text("a\nb\n")
    code, _, error = measure(records=tmp_path / "s.txt")
    assert code == 2 and "--references" in error
    pairs = write_jsonl(tmp_path / "three.jsonl", [{"src": "s", "trg": "t"}] * 3)
    code, _, error = measure("--references", pairs, records=tmp_path / "s.txt")
    assert code == 2 and "2 predictions, but" in error and "3 references" in error
