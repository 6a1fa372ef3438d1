"""lora.py: which maps get adapters, and merged weights that compute the same."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from models.factory import make_denoiser
from models.lora import add_lora, base_weights, has_lora, linear_maps, merged_weights, trained_share
from models.options import NetworkArgs
from utils.errors import UserError

pytest.importorskip("peft")
SHAPE = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0}
NETWORKS = {
    "bert": lambda: BertForMaskedLM(BertConfig(**SHAPE, intermediate_size=64)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SHAPE, intermediate_size=64)),
    "electra": lambda: ElectraForMaskedLM(ElectraConfig(**SHAPE, intermediate_size=64, embedding_size=32)),
    "modernbert": lambda: ModernBertForMaskedLM(
        ModernBertConfig(**SHAPE, intermediate_size=64, global_attn_every_n_layers=1)
    ),
    "distilbert": lambda: DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=60, dim=32, n_layers=2, n_heads=2, hidden_dim=64, pad_token_id=0)
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layout_gets_adapters_that_merge_into_the_same_function(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    denoiser = make_denoiser(network, "none", 64).eval()
    maps = linear_maps(denoiser)
    assert len(maps) >= 2 * 4 and not any("embed" in each or "head" in each or "cls" in each for each in maps)
    ids, everywhere = torch.arange(10, 18)[None], torch.ones(1, 8, dtype=torch.bool)
    arguments = (ids, torch.ones(1, dtype=torch.long), everywhere)
    first = denoiser.encode(*arguments)
    add_lora(denoiser, 4, "auto")
    assert has_lora(network) and torch.equal(denoiser.encode(*arguments), first)  # B is zero at first
    trainable = [key for key, p in denoiser.named_parameters() if p.requires_grad]
    assert len(trainable) == 2 * len(maps) and all(".lora_" in key for key in trainable)
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if "lora_B" in key:
                parameter.normal_()
    changed = denoiser.encode(*arguments)
    assert not torch.allclose(changed, first, atol=1e-3)
    base = base_weights(network)
    assert base.keys() == before.keys() and all(torch.equal(base[key], before[key]) for key in before)
    whole = NETWORKS[name]().eval()
    whole.load_state_dict(merged_weights(network))
    assert torch.allclose(make_denoiser(whole, "none", 64).eval().encode(*arguments), changed, atol=1e-4)
    assert "are trained" in trained_share(denoiser) and not trained_share(whole)


def test_named_maps_alone_get_adapters() -> None:
    denoiser = make_denoiser(NETWORKS["bert"](), "none", 64)
    add_lora(denoiser, 2, "query, layer.1.attention.self.value")
    found = {key.partition(".lora_")[0] for key, p in denoiser.network.named_parameters() if p.requires_grad}
    layer = "bert.encoder.layer.{}.attention.self.{}"
    assert found == {layer.format(0, "query"), layer.format(1, "query"), layer.format(1, "value")}


def test_what_cannot_be_adapted_is_refused() -> None:
    denoiser = make_denoiser(NETWORKS["bert"](), "none", 64)
    with pytest.raises(UserError, match="no linear map named 'querry'; there are .*query"):
        add_lora(denoiser, 2, "query,querry")
    denoiser.network.new_tensors = ("cls.predictions.bias",)
    with pytest.raises(UserError, match="its vocabulary head is new and random"):
        add_lora(denoiser, 2, "auto")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_rank": 4, "from_scratch": True}, "adapts a whole pretrained network; leave from_scratch out"),
        ({"lora_rank": 4, "first_layers": 2}, "leave first_layers out"),
        ({"merge_lora": True}, "lora_targets and merge_lora are for lora_rank above 0"),
        ({"lora_targets": "query"}, "are for lora_rank above 0"),
        ({"lora_rank": -1}, "lora_rank=-1 must lie in"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        NetworkArgs(**settings)
