"""bert.py: every architecture cut at its head gives the network's own output; time conditioning is additive."""

from pathlib import Path

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
from models.factory import build_denoiser
from models.networks import BertArgs
from models.time_conditioning import sinusoids
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
    return AutoModelForMaskedLM.from_config(config).eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_decode_of_encode_is_the_network(name: str) -> None:
    stock = network(CONFIGS[name])
    denoiser = BertDenoiser(stock)
    ours = denoiser.decode(denoiser.encode(X, T, MASK))
    torch.testing.assert_close(ours[MASK], stock(input_ids=X, attention_mask=MASK.long()).logits[MASK])
    assert denoiser.vocab_size == 50 and not denoiser.time_conditioned
    some = denoiser.decode(denoiser.encode(X, T, MASK)[MASK])  # the head on chosen positions only
    torch.testing.assert_close(some, ours[MASK])


@pytest.mark.parametrize("name", ["roberta", "xlm-roberta", "camembert", "mpnet", "data2vec-text"])
def test_a_pad_that_is_content_keeps_its_place(name: str) -> None:
    """RoBERTa's family numbers positions by counting tokens that are not [PAD]; a target window counts them all."""
    stock, everywhere = network(CONFIGS[name]), torch.ones_like(MASK)
    denoiser = BertDenoiser(stock)
    ours = denoiser.decode(denoiser.encode(X, T, everywhere))
    places = (torch.arange(5) + 2).expand_as(X)
    torch.testing.assert_close(ours, stock(input_ids=X, attention_mask=everywhere.long(), position_ids=places).logits)
    assert not torch.allclose(ours, stock(input_ids=X, attention_mask=everywhere.long()).logits)


@pytest.mark.parametrize("conditioning", ["none", "layerwise", "token"])
@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "modernbert"])
def test_padding_changes_nothing(name: str, conditioning: str) -> None:
    denoiser = BertDenoiser(network(CONFIGS[name]), conditioning, num_steps=8).eval()
    long = denoiser.encode(X, T, MASK)[1, :3]
    short = denoiser.encode(X[1:, :3], T[1:], MASK[1:, :3])[0]
    torch.testing.assert_close(long, short, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "modernbert", "electra"])
def test_layerwise_time_starts_silent_then_reaches_every_layer(name: str) -> None:
    stock = network(CONFIGS[name])
    before = stock(input_ids=X, attention_mask=MASK.long()).logits
    denoiser = BertDenoiser(stock, "layerwise", num_steps=8).eval()
    assert denoiser.time_conditioned
    torch.testing.assert_close(denoiser.decode(denoiser.encode(X, T, MASK))[MASK], before[MASK])
    for mlp in denoiser.time.mlps:
        torch.nn.init.normal_(mlp[2].weight)
    early, late = (denoiser.encode(X, torch.full((2,), t), MASK) for t in (1, 8))
    assert not torch.allclose(early, late)
    late.square().sum().backward()
    assert len(denoiser.time.mlps) == 2
    assert all(mlp[0].weight.grad.abs().sum() > 0 for mlp in denoiser.time.mlps)


def test_layerwise_time_is_an_mlp_of_the_sinusoids_over_T() -> None:
    denoiser = BertDenoiser(network(CONFIGS["bert"]), "layerwise", num_steps=600)
    torch.nn.init.normal_(denoiser.time.mlps[1][2].weight)
    denoiser.time.t = torch.tensor([3, 500])
    attention = torch.zeros(2, 4, SHAPE["hidden_size"])
    added = denoiser.time.hook(1)(None, (), attention)
    expected = denoiser.time.mlps[1](sinusoids(denoiser.time.t, SHAPE["hidden_size"], 600))
    torch.testing.assert_close(added, expected[:, None].expand_as(attention))


def test_gradient_checkpointing_is_switched_on() -> None:
    for wanted in (False, True):
        args = BertArgs("bert-small", from_scratch=True, gradient_checkpointing=wanted)
        assert build_denoiser(args, Tokenizer(), 8).network.is_activation_checkpointing == wanted


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "modernbert", "albert"])
def test_time_token_is_seen_but_takes_no_place_in_the_output(name: str) -> None:
    denoiser = BertDenoiser(network(CONFIGS[name]), "token", num_steps=600).eval()
    early, late = (denoiser.encode(X, torch.full((2,), t), MASK) for t in (1, 600))  # 600 > the vocabulary's 50
    assert early.shape[:2] == X.shape and not torch.allclose(early[MASK], late[MASK])


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "modernbert"])
def test_a_time_token_that_looks_like_a_word_acts_like_that_word_after_cls(name: str) -> None:
    """The stock network, given [CLS] w x1 x2 ..., agrees at every position but that of w."""
    denoiser = BertDenoiser(network(CONFIGS[name]), "token", num_steps=8).eval()
    with torch.no_grad():
        denoiser.time.weight[5] = denoiser.network.get_input_embeddings().weight[17]
    with_word = torch.cat([X[:, :1], torch.full_like(X[:, :1], 17), X[:, 1:]], dim=1)
    attended = torch.cat([MASK[:, :1], MASK], dim=1)
    stock = denoiser.body(input_ids=with_word, attention_mask=attended.long()).last_hidden_state
    ours = denoiser.encode(X, torch.full((2,), 5), MASK)
    torch.testing.assert_close(ours[MASK], torch.cat([stock[:, :1], stock[:, 2:]], dim=1)[MASK])


def test_sinusoids_are_the_released_ones() -> None:
    """Recorded from the released layerwise BERT: dimension 8, T = 2048."""
    at_1 = [0.5403023, 0.9889718, 0.9997559, 0.9999946, 0.8414710, 0.1481040, 0.0220953, 0.0032847]
    recorded = torch.tensor([[1.0] * 4 + [0.0] * 4, at_1])
    torch.testing.assert_close(sinusoids(torch.tensor([0, 1]), 8, 2048), recorded, atol=1e-6, rtol=1e-5)


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
    with pytest.raises(UserError, match="layerwise does not know the layers of AlbertForMaskedLM"):
        BertDenoiser(network(AlbertConfig(**SHAPE, embedding_size=16, num_hidden_groups=1)), "layerwise")


class Tokenizer:
    """Only what `build` asks of a tokenizer."""

    pad_token_id, cls_token_id, sep_token_id = 1, 0, 2

    def get_vocab(self) -> dict[str, int]:
        return {str(i): i for i in range(60)}


@pytest.mark.parametrize("preset", ["bert-small", "modernbert-small"])
def test_presets_build_from_scratch_at_the_tokenizers_size(preset: str) -> None:
    args = BertArgs(
        preset, from_scratch=True, config_overrides="hidden_size=32,num_hidden_layers=1,num_attention_heads=2"
    )
    denoiser = build_denoiser(args, Tokenizer(), 8)
    assert denoiser.vocab_size == 60
    assert denoiser.network.config.hidden_size == 32 and denoiser.network.config.pad_token_id == 1


def test_pretrained_folder_loads_in_float32_and_from_scratch_takes_only_its_shape(tmp_path: Path) -> None:
    stock = network(BertConfig(**{**SHAPE, "vocab_size": 60}))
    stock.bfloat16().save_pretrained(tmp_path)
    loaded = build_denoiser(BertArgs(str(tmp_path)), Tokenizer(), 8)
    assert next(loaded.parameters()).dtype == torch.float32
    for name, tensor in stock.state_dict().items():
        torch.testing.assert_close(loaded.network.state_dict()[name], tensor.float())
    fresh = build_denoiser(BertArgs(str(tmp_path), from_scratch=True), Tokenizer(), 8)
    word = "bert.embeddings.word_embeddings.weight"
    assert fresh.network.state_dict()[word].shape == stock.state_dict()[word].shape
    assert not torch.allclose(fresh.network.state_dict()[word], stock.state_dict()[word].float())


def test_bad_networks_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    network(BertConfig(**SHAPE)).save_pretrained(tmp_path / "small")
    (tmp_path / "empty").mkdir()
    cases = [
        (BertArgs("bert-small"), "add --from_scratch true"),
        (BertArgs("no/such-model"), "Offline: give a folder"),
        (BertArgs("no/such-model", from_scratch=True), "Offline: give a folder"),
        (BertArgs(str(tmp_path / "empty")), "cannot read the network in"),
        (BertArgs(str(tmp_path / "small")), "knows 50 tokens but the tokenizer has 60"),
        (BertArgs("bert-small", config_overrides="hidden_size=8"), "needs --from_scratch"),
        (BertArgs("bert-small", from_scratch=True, config_overrides="hiden_size=8"), "no setting named 'hiden_size'"),
        (BertArgs("bert-small", from_scratch=True, config_overrides="hidden_size"), "is not name=value"),
        (BertArgs("bert-small", from_scratch=True, config_overrides="to_dict=3"), "no setting named 'to_dict'"),
        (BertArgs("bert-small", from_scratch=True, config_overrides="num_attention_heads=3"), "no network can be made"),
        (BertArgs("bert-small", from_scratch=True, config_overrides="hidden_size=abc"), "no network can be made"),
    ]
    for args, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            build_denoiser(args, Tokenizer(), 8)
        assert "\n" not in str(caught.value)
