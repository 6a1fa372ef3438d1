"""models/networks.py: settings keep their types, and no pickle is read. (What `build` makes of them: test_bert.py.)"""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, BertConfig

from models.networks import _parse_overrides, load_network
from process import UserError


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
