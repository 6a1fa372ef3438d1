"""generative_perplexity.py: agreement with token-by-token scoring, for both kinds of language model."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, GPT2LMHeadModel

import compute_metric
import main
from checkpoint.folder import load_checkpoint
from data.batch import collate
from data.tokenizers import encode, train_wordpiece
from evaluation.generative_perplexity import (
    LanguageModel,
    generative_perplexity,
    nats_of_text,
    ratio_standard_error,
    scored_tokens,
    sliding_windows,
    token_entropy,
)
from tests.conftest import SENTENCES, TINY, call
from tests.evaluation.test_model_metrics import gpt2  # noqa: F401 (a fixture)
from utils.errors import UserError

CPU = torch.device("cpu")


def test_ends_of_text_after_the_first_are_not_scored_but_later_text_is() -> None:
    """Recorded from MDLM's evaluation."""
    tokens = torch.tensor([9, 1, 2, 9, 3, 4, 9, 9, 5])
    assert scored_tokens(tokens, 9).tolist() == [True, True, False, True, True, False, False, True]
    assert scored_tokens(tokens, None).all()


def test_the_entropy_is_that_of_the_token_frequencies_of_a_text() -> None:
    assert token_entropy([4, 4, 4]) == 0 and token_entropy([1, 2, 3, 4]) == pytest.approx(math.log(4))
    assert token_entropy([1, 1, 2, 3]) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4))


def test_a_stock_language_model_agrees_with_scoring_token_by_token(gpt2: str) -> None:  # noqa: F811
    """Texts of different lengths, one with an inner end of text; each token is scored given those before it."""
    model, tokenizer = GPT2LMHeadModel.from_pretrained(gpt2).eval(), AutoTokenizer.from_pretrained(gpt2)
    texts, end = [*SENTENCES[:20], "a dog [SEP] my bird [SEP]", "it"], tokenizer.eos_token_id
    nats, count = [], 0
    for text in texts:
        ids, total = [end, *tokenizer(text, add_special_tokens=False)["input_ids"]], 0.0
        for i in range(1, len(ids)):
            if ids[i] != end:  # the first end of text is the one before the text
                law = model(torch.tensor([ids[:i]])).logits[0, -1].log_softmax(-1)
                total, count = total - law[ids[i]].item(), count + 1
        nats.append(total)
    report = generative_perplexity(texts, gpt2, CPU)
    assert report["gen_tokens"] == count
    assert report["gen_ppl"] == pytest.approx(math.exp(sum(nats) / count), rel=1e-4)
    assert 0 < report["gen_ppl_se"] < report["gen_ppl"]


def test_a_long_text_is_read_in_windows_that_score_each_token_once() -> None:
    for length, most in ((5, 9), (9, 9), (10, 9), (40, 9), (41, 8), (0, 4)):
        fresh = [range(max(new, begin), end) for begin, end, new in sliding_windows(length, most)]
        assert [i for each in fresh for i in each] == list(range(length))
        assert all(end - begin <= most for begin, end, _ in sliding_windows(length, most))
        assert all(new - begin == most // 2 for begin, _, new in list(sliding_windows(length, most))[1:])
    rows = []

    def nats(row: torch.Tensor) -> torch.Tensor:
        rows.append(row.tolist())
        return row[1:].double() + 100 * len(row)

    for begin, first in (((99,), 0), ((), 1)):  # the nats of a token are its id plus 100 times the length of its row
        rows.clear()
        language_model = LanguageModel(lambda texts: [], begin, None, 5, nats)
        total, count = nats_of_text(language_model, list(range(10)), CPU)
        assert count == 10 - first and max(map(len, rows)) == 5
        expected = sum(100 * len(row) * new for row, new in zip(rows, [len(rows[0]) - 1, *[2] * 9], strict=False))
        rest = 10 - first - (len(rows[0]) - 1)
        assert expected and sum(range(first, 10)) < total <= sum(range(first, 10)) + 500 * count and rest > 0


def test_the_standard_error_is_that_of_the_ratio_over_many_repeats() -> None:
    rng = np.random.default_rng(0)

    def texts() -> tuple[np.ndarray, np.ndarray]:
        tokens = rng.integers(5, 60, 300).astype(float)
        return tokens * rng.normal(4, 1, 300) + rng.normal(0, 5, 300), tokens

    ratios = [nats.sum() / tokens.sum() for nats, tokens in (texts() for _ in range(2000))]
    estimated = np.mean([ratio_standard_error(*texts()) for _ in range(50)])
    assert estimated == pytest.approx(np.std(ratios), rel=0.08)


def test_a_bidirectional_model_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    tokenizer = train_wordpiece(SENTENCES, 200)
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="attends to later tokens; give a causal language model"):
        generative_perplexity(SENTENCES[:3], str(folder), CPU)


def test_without_a_beginning_of_text_the_first_token_is_given(gpt2: str, tmp_path: Path) -> None:  # noqa: F811
    model, tokenizer = GPT2LMHeadModel.from_pretrained(gpt2), train_wordpiece(SENTENCES, 200)
    model.save_pretrained(tmp_path / "bare")
    tokenizer.save_pretrained(tmp_path / "bare")  # a BERT tokenizer has no beginning-of-text and end-of-text tokens
    texts = [*[""] * 20, "the cat sees it"]
    ids = torch.tensor(encode(tokenizer, texts[-1:])["input_ids"])
    with torch.no_grad():
        law = model.eval()(ids).logits[0, :-1].log_softmax(-1)
    expected = math.exp(-law.gather(1, ids[0, 1:, None]).mean().item())
    report = generative_perplexity(texts, str(tmp_path / "bare"), CPU)
    assert report["gen_ppl"] == pytest.approx(expected, rel=1e-4) and report["gen_tokens"] == ids.shape[1] - 1
    assert generative_perplexity(texts[-1:], str(tmp_path / "bare"), CPU)["gen_ppl_se"] is None


def test_a_checkpoint_of_pairs_is_refused(pairs_folder: Path, tmp_path: Path, monkeypatch) -> None:
    t = TINY.index("--num_steps")
    flags = [*TINY[:t], *TINY[t + 2 :], "--process", "ar", "--train_data", pairs_folder, "--max_length", 40]
    flags += ["--cache_dir", tmp_path / "cache", "--output_dir", tmp_path / "run", "--max_steps", 1]
    assert call(main.main, monkeypatch, *flags) == 0
    with pytest.raises(UserError, match="is a checkpoint of pairs; give one of text and process=ar"):
        generative_perplexity(["a"], str(tmp_path / "run"), CPU)


@pytest.mark.slow
def test_an_ar_checkpoint_as_judge_agrees_with_its_own_likelihood(gpt2, tmp_path: Path, monkeypatch, capsys) -> None:  # noqa: F811
    (tmp_path / "corpus.txt").write_text("\n".join(SENTENCES) + "\n")
    t = TINY.index("--num_steps")
    flags = [*TINY[:t], *TINY[t + 2 :], "--train_data", tmp_path / "corpus.txt", "--cache_dir", tmp_path / "cache"]
    for process in ("ar", "mdlm"):
        run_flags = [
            "--process",
            process,
            "--output_dir",
            tmp_path / process,
            "--max_steps",
            3,
            "--valid_fraction",
            0.2,
        ]
        assert call(main.main, monkeypatch, *flags, *run_flags) == 0
    capsys.readouterr()
    run, nats, tokens = load_checkpoint(str(tmp_path / "ar"), CPU), 0.0, 0
    for ids in encode(run.tokenizer, SENTENCES)["input_ids"]:  # one by one, without special tokens at the end
        batch = collate([np.array(ids)], run.tokenizer)
        with torch.no_grad():
            nats += run.process.cross_entropy(run.denoiser, batch)[batch.target_mask].sum().item()
        tokens += len(ids)
    flags = ["--predictions", tmp_path / "corpus.txt", "--references", tmp_path / "corpus.txt", "--threads", 1]
    assert call(compute_metric.main, monkeypatch, *flags, "--judge_model", tmp_path / "ar", "--json", "true") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["gen_ppl"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert report["gen_tokens"] == tokens and report["token_entropy"] > 0
    assert call(compute_metric.main, monkeypatch, *flags, "--judge_model", tmp_path / "mdlm") == 2
    assert "process=mdlm, which only gives a bound; give one of text and process=ar" in capsys.readouterr().err


def test_texts_that_cannot_be_scored_are_refused(gpt2: str, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(UserError, match="too short to be scored"):
        generative_perplexity(["", ""], gpt2, CPU)
    with pytest.raises(UserError, match="no such folder"):
        generative_perplexity(["a"], str(tmp_path / "none"), CPU)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_language_model_without_finite_output_is_refused(monkeypatch, value: float) -> None:
    language_model = LanguageModel(
        lambda texts: [[1, 2, 3]] * len(texts), (9,), None, 50, lambda row: torch.full((len(row) - 1,), value)
    )
    monkeypatch.setattr("evaluation.generative_perplexity._load_transformers", lambda *_: language_model)
    with pytest.raises(UserError, match=f"judge_model=j gives text 1 {value} nats"):
        generative_perplexity(["a", "b"], "j", CPU)


def test_an_overflowing_perplexity_is_left_out(monkeypatch) -> None:
    language_model = LanguageModel(
        lambda texts: [[1, 2, 3]] * len(texts), (9,), None, 50, lambda row: torch.full((len(row) - 1,), 800.0)
    )
    monkeypatch.setattr("evaluation.generative_perplexity._load_transformers", lambda *_: language_model)
    report = generative_perplexity(["a", "b"], "j", CPU)
    assert report["gen_ppl"] is report["gen_ppl_se"] is None and report["gen_tokens"] == 6
