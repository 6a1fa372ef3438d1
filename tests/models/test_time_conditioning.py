"""time_conditioning.py: layerwise time is an MLP of sinusoids, zero at initialization, and reaches every layer."""

import pytest
import torch

from models.bert import BertDenoiser
from models.time_conditioning import sinusoids
from tests.models.test_bert import CONFIGS, MASK, SHAPE, T, X, network


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "modernbert", "electra"])
def test_layerwise_time_starts_at_zero_and_reaches_every_layer(name: str) -> None:
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


def test_sinusoids_are_the_released_ones() -> None:
    """Recorded from the released layerwise BERT: dimension 8, T = 2048."""
    at_1 = [0.5403023, 0.9889718, 0.9997559, 0.9999946, 0.8414710, 0.1481040, 0.0220953, 0.0032847]
    recorded = torch.tensor([[1.0] * 4 + [0.0] * 4, at_1])
    torch.testing.assert_close(sinusoids(torch.tensor([0, 1]), 8, 2048), recorded, atol=1e-6, rtol=1e-5)
