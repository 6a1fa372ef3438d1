"""trials.py: networks whose output depends on padding, varies, or is not finite are refused."""

import pytest
import torch
from transformers import (
    ConvBertConfig,
    FNetConfig,
    FunnelConfig,
    NystromformerConfig,
    PerceiverConfig,
    PretrainedConfig,
    ReformerConfig,
    YosoConfig,
)

from models.dit import DitConfig, DitNetwork
from models.factory import make_denoiser
from models.trials import FAMILIES
from tests.models.test_bert import CONFIGS, SHAPE, network
from utils.errors import UserError

LONG = {**SHAPE, "max_position_embeddings": 130}
FUNNEL = {"vocab_size": 50, "d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 64, "block_sizes": [1, 1]}
PADDING_DEPENDENT = {
    "convbert": ConvBertConfig(**LONG),
    "nystromformer": NystromformerConfig(**LONG),
    "yoso": YosoConfig(**LONG),
    "fnet": FNetConfig(**LONG),
    "funnel": FunnelConfig(**FUNNEL),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("conditioning", ["none", "token"])
def test_every_listed_family_passes_the_trials(name: str, conditioning: str) -> None:
    make_denoiser(network(CONFIGS[name]), conditioning, 8)
    listed = {"xlm-roberta": "xlm-r", "data2vec-text": "data2vec", "deberta": "deberta-v2"}.get(name, name)
    assert listed in FAMILIES.lower().split(", ")


@pytest.mark.parametrize("name", PADDING_DEPENDENT)
def test_a_network_that_depends_on_its_padding_is_refused(name: str) -> None:
    stock: PretrainedConfig = PADDING_DEPENDENT[name]
    with pytest.raises(UserError, match="depends on the padding after it|has a layout unknown"):
        make_denoiser(network(stock), "none", 8)


def test_a_network_with_varying_output_is_refused() -> None:
    sizes = {"vocab_size": 50, "hidden_size": 32, "attn_layers": ["lsh", "local"], "num_attention_heads": 2}
    shape = {"axial_pos_shape": [8, 16], "axial_pos_embds_dim": [16, 16], "max_position_embeddings": 128}
    chunks = {"lsh_attn_chunk_length": 8, "local_attn_chunk_length": 8, "num_buckets": 4, "attention_head_size": 16}
    stock = network(ReformerConfig(**sizes, **shape, **chunks, is_decoder=False, feed_forward_size=64))
    with pytest.raises(UserError, match="on the same tokens varies|depends on the padding|cannot read a row"):
        make_denoiser(stock, "none", 8)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e38])
def test_a_network_with_output_that_is_not_finite_is_refused(value: float) -> None:
    dit = DitNetwork(DitConfig(vocab_size=50, model_length=16, hidden_dim=32, cond_dim=16, n_blocks=1, n_heads=2))
    for stock in (network(CONFIGS["bert"]), dit):
        with torch.no_grad():
            stock.get_output_embeddings().weight.fill_(value)
        with pytest.raises(UserError, match="its output on 5 tokens is not finite"):
            make_denoiser(stock, "none", 8)


def test_a_network_that_cannot_run_is_refused() -> None:
    config = PerceiverConfig(vocab_size=50, d_latents=32, d_model=32, num_latents=4)
    with pytest.raises(UserError, match="PerceiverForMaskedLM does not run here"):
        make_denoiser(network(config), "none", 8)
