"""judges.py: generative perplexity is what multiplying out token by token gives, under either kind of judge."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SENTENCES, TINY, call
from test_metrics_of_models import gpt2  # noqa: F401 (a fixture)
from transformers import AutoTokenizer, GPT2LMHeadModel

import checkpoint
import compute_metric
import main
from dataloader import collate
from judges import entropy, generative_perplexity, scored_tokens
from process import UserError
from vocabulary import encode

CPU = torch.device("cpu")


def test_ends_of_text_after_the_first_are_not_scored_but_text_after_it_is() -> None:
    """As recorded of MDLM's evaluation."""
    tokens = torch.tensor([9, 1, 2, 9, 3, 4, 9, 9, 5])
    assert scored_tokens(tokens, 9).tolist() == [True, True, False, True, True, False, False, True]
    assert scored_tokens(tokens, None).all()


def test_the_entropy_is_that_of_a_texts_own_frequencies() -> None:
    assert entropy([4, 4, 4]) == 0 and entropy([1, 2, 3, 4]) == pytest.approx(math.log(4))
    assert entropy([1, 1, 2, 3]) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4))


def test_a_stock_judge_is_asked_token_by_token(gpt2: str) -> None:  # noqa: F811
    """Texts of unlike length, one of them cut by an end of text: each token given those before it, one at a time."""
    model, tokenizer = GPT2LMHeadModel.from_pretrained(gpt2).eval(), AutoTokenizer.from_pretrained(gpt2)
    texts, end = [*SENTENCES[:20], "a dog [SEP] my bird [SEP]", "it"], tokenizer.eos_token_id
    nats, count = [], 0
    for text in texts:
        ids, total = [end, *tokenizer(text, add_special_tokens=False)["input_ids"]], 0.0
        for i in range(1, len(ids)):
            if ids[i] != end:  # the one that stands first is the first
                law = model(torch.tensor([ids[:i]])).logits[0, -1].log_softmax(-1)
                total, count = total - law[ids[i]].item(), count + 1
        nats.append(total)
    found = generative_perplexity(texts, gpt2, CPU)
    assert found["gen_tokens"] == count
    assert found["gen_ppl"] == pytest.approx(math.exp(sum(nats) / count), rel=1e-4)
    assert 0 < found["gen_ppl_se"] < found["gen_ppl"]


def test_a_checkpoint_of_ar_judges_as_it_is_scored(gpt2, tmp_path: Path, monkeypatch, capsys) -> None:  # noqa: F811
    (tmp_path / "corpus.txt").write_text("\n".join(SENTENCES) + "\n")
    t = TINY.index("--num_steps")
    words = [*TINY[:t], *TINY[t + 2 :], "--train_data", tmp_path / "corpus.txt", "--cache_dir", tmp_path / "cache"]
    for process in ("ar", "mdlm"):
        more = ["--process", process, "--output_dir", tmp_path / process, "--max_steps", 3, "--valid_fraction", 0.2]
        assert call(main.main, monkeypatch, *words, *more) == 0
    capsys.readouterr()
    run, nats, tokens = checkpoint.load(str(tmp_path / "ar"), CPU), 0.0, 0
    for ids in encode(run.tokenizer, SENTENCES)["input_ids"]:  # one by one, and without their ends
        batch = collate([np.array(ids)], run.tokenizer)
        with torch.no_grad():
            nats += run.process.cross_entropy(run.denoiser, batch)[batch.target_mask].sum().item()
        tokens += len(ids)
    words = ["--predictions", tmp_path / "corpus.txt", "--references", tmp_path / "corpus.txt", "--threads", 1]
    assert call(compute_metric.main, monkeypatch, *words, "--judge_model", tmp_path / "ar", "--json", "true") == 0
    judged = json.loads(capsys.readouterr().out)
    assert judged["gen_ppl"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert judged["gen_tokens"] == tokens and judged["token_entropy"] > 0
    assert call(compute_metric.main, monkeypatch, *words, "--judge_model", tmp_path / "mdlm") == 2
    assert "is of process=mdlm, which has a bound only; give one of ar" in capsys.readouterr().err


def test_what_cannot_be_judged_is_one_clear_line(gpt2: str, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(UserError, match="too short to be scored"):
        generative_perplexity(["", ""], gpt2, CPU)
    with pytest.raises(UserError, match="no such folder"):
        generative_perplexity(["a"], str(tmp_path / "none"), CPU)
