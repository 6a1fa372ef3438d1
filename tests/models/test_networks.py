"""networks.py: settings keep their types, and no pickle is read (test_factory.py tests `build_denoiser`)."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, BertConfig

from models.networks import _parse_overrides, for_embeddings, fresh_network, load_network, require_settings
from models.options import NetworkArgs
from models.score_lm import ScoreLmConfig, ScoreLmNetwork
from utils.errors import UserError


def test_a_pickled_network_is_never_read(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    stock = AutoModelForMaskedLM.from_config(BertConfig(vocab_size=50, **sizes))
    stock.config.save_pretrained(tmp_path)
    torch.save(stock.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot read the network in"):
        load_network(str(tmp_path))


def test_overrides_keep_their_types() -> None:
    parsed = _parse_overrides("a=1,b=0.5,c=true,d=gelu")
    assert parsed == {"a": 1, "b": 0.5, "c": True, "d": "gelu"} and parsed["c"] is True


def test_a_network_over_embeddings_is_fresh_unless_one_is_named() -> None:
    default = for_embeddings(NetworkArgs(config_overrides="hidden_size=64"))
    assert (default.model_name_or_path, default.from_scratch) == ("score-lm", True)
    assert default.config_overrides == "hidden_size=64"
    named = NetworkArgs("out/score/checkpoint")
    assert for_embeddings(named) is named


@pytest.mark.parametrize("has", [True, False])
@pytest.mark.parametrize("name", ["self_conditioning", "time_warp"])
def test_a_network_created_with_other_settings_is_refused(name: str, has: bool) -> None:
    sizes = {"vocab_size": 9, "embedding_size": 4, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    network = ScoreLmNetwork(ScoreLmConfig(**sizes, **{name: has}))
    other = {"self_conditioning": False, "time_warp": False}
    require_settings(network, {**other, name: has})
    with pytest.raises(UserError, match=f"{name}={str(not has).lower()}: the network was made with {name}="):
        require_settings(network, {**other, name: not has})


def test_network_settings_of_the_process_cannot_be_overridden(tokenizer) -> None:
    args = NetworkArgs("score-lm-small", from_scratch=True, config_overrides="self_conditioning=false")
    with pytest.raises(UserError, match="self_conditioning is a setting of the process; give --self_conditioning"):
        fresh_network(args, tokenizer, process_settings={"self_conditioning": True, "time_warp": True})
