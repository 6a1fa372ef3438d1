"""model_metrics.py: figures of bert-score and mauve-text, recorded on small models and sets."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    BatchEncoding,
    BertConfig,
    BertModel,
    BertTokenizerFast,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

import compute_metric
from data.tokenizers import train_wordpiece
from evaluation.generative_perplexity import generative_perplexity
from evaluation.model_metrics import (
    BERTSCORE_LAYERS,
    area,
    bert_score,
    divergence_curve,
    greedy_f1,
    load_language_model,
    mauve,
    quantize,
)
from tests.conftest import SENTENCES, call
from utils.errors import UserError

CPU = torch.device("cpu")
HYPOTHESES = ["the cat sees the house.", "a dog likes it.", "my bird often talks to a fish.", "a tree"]
REFERENCES = [
    "the old man sees a house.",
    "a dog likes it.",
    "his sister never finds water.",
    "every small child follows the red ball.",
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Save a small BERT with reproducible weights."""
    folder = tmp_path_factory.mktemp("bert")
    words = sorted({word for sentence in SENTENCES for word in sentence.rstrip(".").split()})
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *words]
    tokenizer = BertTokenizerFast(vocab={entry: i for i, entry in enumerate(entries)}, model_max_length=64)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    model = BertModel(config)
    with torch.no_grad():
        for i, (name, parameter) in enumerate(sorted(model.named_parameters())):
            scale = 3.0 if "word_emb" in name else 0.2
            values = np.random.RandomState(i).normal(scale=scale, size=tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(values).float() + ("LayerNorm.weight" in name))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


# recorded with bert-score 0.3.13: score(HYPOTHESES, REFERENCES, model_type=folder, num_layers=layer)
@pytest.mark.parametrize(
    ("layer", "recorded"),
    [
        (1, [0.849396, 1.0, 0.617658, 0.50086]),
        (2, [0.869144, 1.0, 0.709989, 0.677524]),
        (3, [0.923796, 1.0, 0.869829, 0.813929]),
    ],
)
def test_bert_score_agrees_with_the_bert_score_package(bert: str, layer: int, recorded: list[float]) -> None:
    assert bert_score(HYPOTHESES, REFERENCES, bert, layer, CPU) == pytest.approx(recorded, abs=2e-6)


def test_the_default_layers_are_those_of_the_bert_score_package() -> None:
    """bert_score.utils.model2layers: bert-base-uncased, roberta-large, deberta-xlarge-mnli, ..."""
    assert BERTSCORE_LAYERS == {
        ("bert", 12): 9, ("bert", 24): 18, ("roberta", 12): 10, ("roberta", 24): 17, ("distilbert", 6): 5,
        ("deberta", 24): 18, ("deberta", 48): 40,
    }  # fmt: skip


def test_bert_score_of_equal_texts_is_one_and_of_empty_texts_zero(bert: str) -> None:
    assert bert_score(["a cat", "", "a cat"], ["a cat", "a", ""], bert, 1, CPU) == pytest.approx([1, 0, 0], abs=1e-6)
    assert bert_score(HYPOTHESES, REFERENCES, bert, 0, CPU) == bert_score(HYPOTHESES, REFERENCES, bert, 3, CPU)
    with pytest.raises(UserError, match="bertscore_layer=4 is more than the 3 layers"):
        bert_score(HYPOTHESES, REFERENCES, bert, 4, CPU)


# recorded with mauve-text 0.4.0: get_divergence_curve_for_multinomials and the area of compute_mauve
@pytest.mark.parametrize(
    ("p", "q", "recorded"),
    [
        ([0.5, 0.3, 0.2, 0], [0.25, 0.25, 0.25, 0.25], 0.6081135762448924),
        ([1, 0], [0, 1], 0.0040720962619612555),
        ([0.2, 0.8], [0.2, 0.8], 1.0),
        ([0.7, 0.2, 0.1], [0.1, 0.2, 0.7], 0.21906168496212094),
    ],
)
def test_the_area_under_the_divergence_curve_agrees_with_mauve_text(p: list, q: list, recorded: float) -> None:
    assert area(divergence_curve(np.array(p), np.array(q))) == pytest.approx(recorded, abs=1e-9)
    assert area(divergence_curve(np.array(q), np.array(p))) == pytest.approx(recorded, abs=1e-9)


@pytest.mark.parametrize("p", [[0.5, 0.5], [1, 0], [0.25] * 4])
def test_equal_histograms_have_area_one(p: list) -> None:
    assert area(divergence_curve(np.array(p), np.array(p))) == pytest.approx(1)


def normal(seed: int, shift: float) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1000, 8)) + shift * np.eye(8)[0]


# recorded with mauve-text 0.4.0: compute_mauve(p_features=normal(10 * shift + 1, shift), q_features=normal(99, 0)),
# mean over its seeds 25 to 29, which differ by up to 0.03, since it uses faiss for k-means
@pytest.mark.parametrize(("shift", "recorded"), [(0.5, 0.884), (1.0, 0.688), (2.0, 0.158)])
@pytest.mark.slow
def test_quantised_mauve_is_near_mauve_text(shift: float, recorded: float) -> None:
    ours = [
        area(divergence_curve(*quantize(normal(int(10 * shift) + 1, shift), normal(99, 0), seed))) for seed in range(3)
    ]
    assert np.mean(ours) == pytest.approx(recorded, abs=0.03)


def test_both_histograms_use_the_same_clusters() -> None:
    p, q = quantize(np.repeat(np.eye(4)[:2], 20, 0), np.repeat(np.eye(4)[2:], 20, 0), seed=0)
    assert p.sum() == pytest.approx(1) and q.sum() == pytest.approx(1) and (p * q).sum() == 0


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("gpt2")
    wordpiece: PreTrainedTokenizerBase = train_wordpiece(SENTENCES, 200)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=wordpiece.backend_tokenizer, eos_token="[SEP]")
    torch.manual_seed(1)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(wordpiece), n_positions=64, n_embd=16, n_layer=1, n_head=2)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_mauve_is_lower_for_different_text_than_for_similar_text(gpt2: str) -> None:
    same = mauve(SENTENCES[::2], SENTENCES[1::2], gpt2, 0, CPU)
    other = mauve(["it it it", "", "sees sees a a a"] * 40, SENTENCES[1::2], gpt2, 0, CPU)
    assert 0 < other < 0.5 < same <= 1


def test_the_script_reports_mauve_and_bertscore(bert, gpt2, monkeypatch, tmp_path, capsys) -> None:
    (tmp_path / "s.txt").write_text("\n".join(SENTENCES[::2]))
    (tmp_path / "r.txt").write_text("\n".join(SENTENCES[1::2]))
    flags = ["--predictions", tmp_path / "s.txt", "--references", tmp_path / "r.txt", "--threads", 1]
    assert call(compute_metric.main, monkeypatch, *flags, "--mauve_model", gpt2) == 0
    assert "mauve" in capsys.readouterr().out
    (tmp_path / "p.jsonl").write_text('{"src": "x", "trg": "a tree"}\n' * 120)
    flags[3] = tmp_path / "p.jsonl"
    assert call(compute_metric.main, monkeypatch, *flags, "--bertscore_model", bert) == 0
    assert "bertscore" in capsys.readouterr().out


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        bert_score(["a"], ["b"], str(tmp_path / "none"), 0, CPU)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read as a model"):
        bert_score(["a"], ["b"], str(tmp_path), 0, CPU)


# ---- weights and hidden states that are not finite -------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_with_a_weight_that_is_not_finite_is_refused(gpt2: str, tmp_path: Path, value: float) -> None:
    model, tokenizer = GPT2LMHeadModel.from_pretrained(gpt2), AutoTokenizer.from_pretrained(gpt2)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight[1, 2] = value
    model.save_pretrained(tmp_path / "damaged")
    tokenizer.save_pretrained(tmp_path / "damaged")
    folder, message = str(tmp_path / "damaged"), r"weights in (transformer.)?h.0.mlp.c_fc.weight are not finite"
    with pytest.raises(UserError, match=message):
        bert_score(HYPOTHESES, REFERENCES, folder, 1, CPU)
    with pytest.raises(UserError, match=message):
        mauve(HYPOTHESES, REFERENCES, folder, 0, CPU)
    with pytest.raises(UserError, match=message):
        generative_perplexity(HYPOTHESES, folder, CPU)


def test_a_model_with_hidden_states_that_are_not_finite_is_refused(gpt2: str, tmp_path: Path) -> None:
    model, tokenizer = GPT2LMHeadModel.from_pretrained(gpt2), AutoTokenizer.from_pretrained(gpt2)
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(3e38)
        model.transformer.ln_f.bias.fill_(3e38)
    model.save_pretrained(tmp_path / "large")
    tokenizer.save_pretrained(tmp_path / "large")
    with pytest.raises(UserError, match="MAUVE: the model's hidden states are not finite"):
        mauve(HYPOTHESES, REFERENCES, str(tmp_path / "large"), 0, CPU)
    with pytest.raises(UserError, match="its hidden states are not finite"):
        generative_perplexity(HYPOTHESES, str(tmp_path / "large"), CPU)


def test_zero_embeddings_score_zero() -> None:
    assert greedy_f1([5], torch.zeros(1, 4), [6], torch.zeros(1, 4), set()) == 0


def test_a_text_without_tokens_is_refused(gpt2: str, monkeypatch) -> None:
    class Silent:
        model_max_length = 99

        def __call__(self, texts: list[str], **_: object) -> BatchEncoding:
            nothing = torch.zeros(len(texts), 0, dtype=torch.long)
            return BatchEncoding({"input_ids": nothing, "attention_mask": nothing})

    loaded = load_language_model(gpt2, eval_device=CPU)[0]
    monkeypatch.setattr("evaluation.model_metrics.load_language_model", lambda *_, **__: (loaded, Silent()))
    with pytest.raises(UserError, match="has no token for sample 1"):
        mauve(["a"], ["b"], gpt2, 0, CPU)
