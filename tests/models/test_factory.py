"""factory.py: settings become a denoiser, or are refused in one line."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
)

from models.factory import build_denoiser, looks_ahead, make_denoiser
from models.networks import fresh_network
from models.options import NetworkArgs
from tests.diffusion.test_autoregressive import NETWORKS
from tests.models.test_bert import SHAPE, network
from utils.errors import UserError


def test_gradient_checkpointing_follows_its_setting() -> None:
    for wanted in (False, True):
        args = NetworkArgs("bert-small", from_scratch=True, gradient_checkpointing=wanted)
        assert build_denoiser(args, Tokenizer(), 8).network.is_activation_checkpointing == wanted


class Tokenizer:
    """The attributes of a tokenizer that `build_denoiser` uses."""

    pad_token_id, cls_token_id, sep_token_id = 1, 0, 2

    def get_vocab(self) -> dict[str, int]:
        return {str(i): i for i in range(60)}


@pytest.mark.parametrize("preset", ["bert-small", "modernbert-small"])
def test_presets_are_built_from_scratch_at_the_size_of_the_tokenizer(preset: str) -> None:
    args = NetworkArgs(
        preset, from_scratch=True, config_overrides="hidden_size=32,num_hidden_layers=1,num_attention_heads=2"
    )
    denoiser = build_denoiser(args, Tokenizer(), 8)
    assert denoiser.vocab_size == 60
    assert denoiser.network.config.hidden_size == 32 and denoiser.network.config.pad_token_id == 1


def test_a_pretrained_folder_gives_float32_weights_or_only_its_shape(tmp_path: Path) -> None:
    stock = network(BertConfig(**{**SHAPE, "vocab_size": 60}))
    stock.bfloat16().save_pretrained(tmp_path)
    loaded = build_denoiser(NetworkArgs(str(tmp_path)), Tokenizer(), 8)
    assert next(loaded.parameters()).dtype == torch.float32
    for name, tensor in stock.state_dict().items():
        torch.testing.assert_close(loaded.network.state_dict()[name], tensor.float())
    fresh = build_denoiser(NetworkArgs(str(tmp_path), from_scratch=True), Tokenizer(), 8)
    word = "bert.embeddings.word_embeddings.weight"
    assert fresh.network.state_dict()[word].shape == stock.state_dict()[word].shape
    assert not torch.allclose(fresh.network.state_dict()[word], stock.state_dict()[word].float())


def test_invalid_networks_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    network(BertConfig(**SHAPE)).save_pretrained(tmp_path / "small")
    (tmp_path / "empty").mkdir()
    cases = [
        (NetworkArgs("bert-small"), "add --from_scratch true"),
        (NetworkArgs("no/such-model"), "Offline: give a folder"),
        (NetworkArgs("no/such-model", from_scratch=True), "Offline: give a folder"),
        (NetworkArgs(str(tmp_path / "empty")), "cannot read the network in"),
        (NetworkArgs(str(tmp_path / "small")), "has 50 tokens but the tokenizer has 60"),
        (NetworkArgs("bert-small", config_overrides="hidden_size=8"), "needs --from_scratch"),
        (
            NetworkArgs("bert-small", from_scratch=True, config_overrides="hiden_size=8"),
            "no setting named 'hiden_size'",
        ),
        (NetworkArgs("bert-small", from_scratch=True, config_overrides="hidden_size"), "is not name=value"),
        (NetworkArgs("bert-small", from_scratch=True, config_overrides="to_dict=3"), "no setting named 'to_dict'"),
        (
            NetworkArgs("bert-small", from_scratch=True, config_overrides="num_attention_heads=3"),
            "no network can be made",
        ),
        (NetworkArgs("bert-small", from_scratch=True, config_overrides="hidden_size=abc"), "no network can be made"),
    ]
    for args, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            build_denoiser(args, Tokenizer(), 8)
        assert "\n" not in str(caught.value)


def test_a_bidirectional_network_is_made_causal_or_refused(tokenizer, tmp_path) -> None:
    """A causal process may start from the weights of an encoder, but without its bidirectional attention."""
    encoder = fresh_network(NetworkArgs(model_name_or_path="bert-small", from_scratch=True), tokenizer)
    encoder.save_pretrained(tmp_path / "bert")
    denoiser = build_denoiser(NetworkArgs(model_name_or_path=str(tmp_path / "bert")), tokenizer, 1, causal=True)
    assert not looks_ahead(denoiser) and looks_ahead(build_denoiser(NetworkArgs(str(tmp_path / "bert")), tokenizer, 1))
    denoiser.network.save_pretrained(tmp_path / "causal")
    assert not looks_ahead(build_denoiser(NetworkArgs(str(tmp_path / "causal")), tokenizer, 1, causal=True))
    with pytest.raises(UserError, match="has bidirectional attention and this process needs causal attention"):
        make_denoiser(encoder, "none", 1, causal=True)
    with pytest.raises(UserError, match="has causal attention and this process needs bidirectional attention"):
        make_denoiser(AutoModelForCausalLM.from_config(NETWORKS["gpt2"]), "none", 1)
