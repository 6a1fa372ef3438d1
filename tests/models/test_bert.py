"""bert.py: every architecture cut at its head gives the network's own output; time conditioning is additive."""

import copy

import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModelForMaskedLM,
    BertConfig,
    CamembertConfig,
    Data2VecTextConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PretrainedConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from models.bert import BertDenoiser
from utils.errors import UserError

SIZE = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SHAPE = {**SIZE, "max_position_embeddings": 40, "pad_token_id": 1}
SPECIAL = {"cls_token_id": 0, "sep_token_id": 2, "bos_token_id": 0, "eos_token_id": 2}
CONFIGS = {
    "bert": BertConfig(**SHAPE),
    "roberta": RobertaConfig(**SHAPE),
    "distilbert": DistilBertConfig(
        vocab_size=50, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=40, pad_token_id=1
    ),
    "modernbert": ModernBertConfig(**SHAPE, **SPECIAL),
    "albert": AlbertConfig(**SHAPE, embedding_size=16),
    "electra": ElectraConfig(**SHAPE, embedding_size=16),
    "xlm-roberta": XLMRobertaConfig(**SHAPE),
    "camembert": CamembertConfig(**SHAPE),
    "data2vec-text": Data2VecTextConfig(**SHAPE),
    "mpnet": MPNetConfig(**SHAPE),
    "deberta": DebertaV2Config(**SHAPE),
}
X = torch.tensor([[0, 5, 6, 7, 2], [0, 8, 2, 1, 1]])
MASK = X != 1
T = torch.tensor([3, 7])


def network(config: PretrainedConfig) -> torch.nn.Module:
    # a copy, as the network keeps and changes its configuration
    return AutoModelForMaskedLM.from_config(copy.deepcopy(config)).eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_decode_after_encode_is_the_network(name: str) -> None:
    stock = network(CONFIGS[name])
    denoiser = BertDenoiser(stock)
    ours = denoiser.decode(denoiser.encode(X, T, MASK))
    torch.testing.assert_close(ours[MASK], stock(input_ids=X, attention_mask=MASK.long()).logits[MASK])
    assert denoiser.vocab_size == 50 and not denoiser.time_conditioned
    some = denoiser.decode(denoiser.encode(X, T, MASK)[MASK])  # the head on chosen positions only
    torch.testing.assert_close(some, ours[MASK])


@pytest.mark.parametrize("name", ["roberta", "xlm-roberta", "camembert", "mpnet", "data2vec-text"])
def test_a_pad_that_is_content_keeps_its_position(name: str) -> None:
    """RoBERTa's family counts only tokens other than [PAD] as positions; a target window counts all tokens."""
    stock, everywhere = network(CONFIGS[name]), torch.ones_like(MASK)
    denoiser = BertDenoiser(stock)
    ours = denoiser.decode(denoiser.encode(X, T, everywhere))
    positions = (torch.arange(5) + 2).expand_as(X)
    expected = stock(input_ids=X, attention_mask=everywhere.long(), position_ids=positions).logits
    torch.testing.assert_close(ours, expected)
    assert not torch.allclose(ours, stock(input_ids=X, attention_mask=everywhere.long()).logits)


@pytest.mark.parametrize("conditioning", ["none", "layerwise", "token"])
@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "modernbert"])
def test_padding_does_not_change_the_output(name: str, conditioning: str) -> None:
    denoiser = BertDenoiser(network(CONFIGS[name]), conditioning, num_steps=8).eval()
    long = denoiser.encode(X, T, MASK)[1, :3]
    short = denoiser.encode(X[1:, :3], T[1:], MASK[1:, :3])[0]
    torch.testing.assert_close(long, short, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "modernbert", "albert"])
def test_a_time_token_changes_the_output_but_adds_no_position(name: str) -> None:
    denoiser = BertDenoiser(network(CONFIGS[name]), "token", num_steps=600).eval()
    early, late = (denoiser.encode(X, torch.full((2,), t), MASK) for t in (1, 600))  # 600 > the vocabulary's 50
    assert early.shape[:2] == X.shape and not torch.allclose(early[MASK], late[MASK])


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "modernbert"])
def test_a_time_token_equal_to_a_word_acts_like_that_word_after_cls(name: str) -> None:
    """The stock network on [CLS] w x1 x2 ... agrees at every position except that of w."""
    denoiser = BertDenoiser(network(CONFIGS[name]), "token", num_steps=8).eval()
    with torch.no_grad():
        denoiser.time.weight[5] = denoiser.network.get_input_embeddings().weight[17]
    with_word = torch.cat([X[:, :1], torch.full_like(X[:, :1], 17), X[:, 1:]], dim=1)
    attended = torch.cat([MASK[:, :1], MASK], dim=1)
    stock = denoiser.body(input_ids=with_word, attention_mask=attended.long()).last_hidden_state
    ours = denoiser.encode(X, torch.full((2,), 5), MASK)
    torch.testing.assert_close(ours[MASK], torch.cat([stock[:, :1], stock[:, 2:]], dim=1)[MASK])


@pytest.mark.parametrize(
    ("name", "conditioning", "longest"),
    [
        ("bert", "none", 40),
        ("roberta", "none", 38),
        ("bert", "token", 39),
        ("mpnet", "none", 38),
        ("distilbert", "none", 40),
    ],
)
def test_max_length_is_the_longest_sentence_that_works(name: str, conditioning: str, longest: int) -> None:
    denoiser = BertDenoiser(network(CONFIGS[name]), conditioning, num_steps=8).eval()
    assert denoiser.max_length == longest
    x = torch.full((1, longest), 5)
    denoiser.encode(x, T[:1], x == 5)
    with pytest.raises((IndexError, RuntimeError)):
        longer = torch.full((1, longest + 1), 5)
        denoiser.encode(longer, T[:1], longer == 5)


def test_an_unknown_layout_is_refused_by_name() -> None:
    stock = network(CONFIGS["bert"])
    del stock.cls
    with pytest.raises((UserError, AttributeError), match="BertForMaskedLM"):
        BertDenoiser(stock)
    with pytest.raises(UserError, match="layerwise does not support the layers of AlbertForMaskedLM"):
        BertDenoiser(network(AlbertConfig(**SHAPE, embedding_size=16, num_hidden_groups=1)), "layerwise")
