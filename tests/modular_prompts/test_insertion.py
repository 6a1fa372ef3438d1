"""insertion.py: prompts are added at positions 1..P of the chosen layers, and the network stays as it was."""

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

from models.denoiser import NetworkDenoiser
from models.factory import make_denoiser
from modular_prompts.insertion import added, prompts_in
from modular_prompts.pool import normalised, relaxed_gates
from tests.modular_prompts.test_pool import golden, pool_of, weights_of

SHAPE = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0}
NETWORKS = {
    "bert": lambda: BertForMaskedLM(BertConfig(**SHAPE, intermediate_size=64)),
    "modernbert": lambda: ModernBertForMaskedLM(
        ModernBertConfig(**SHAPE, intermediate_size=64, global_attn_every_n_layers=1)
    ),
}


class StubLayer(nn.Module):
    """Layer of the recorded runs: 0.5 h + 0.1 (i + 1) mean over positions of h."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.seen = number, None

    def forward(self, hidden: Tensor) -> Tensor:
        self.seen = hidden
        return 0.5 * hidden + 0.1 * (self.number + 1) * hidden.mean(1, keepdim=True)


@pytest.mark.parametrize("case", golden("added_hidden_shallow")["cases"])
def test_a_shallow_prompt_is_added_as_recorded(case: dict) -> None:
    recorded = golden("added_hidden_shallow")
    pool, layer = pool_of(recorded["z"], recorded["A"], 2), StubLayer(0)
    with prompts_in([layer], pool(weights_of(case)[1][None, None])):
        layer(torch.tensor(recorded["hidden_in"]))
    assert torch.allclose(layer.seen, torch.tensor(case["hidden_out"]), atol=1e-6)


@pytest.mark.parametrize("case", golden("added_hidden_deep")["cases"])
def test_deep_prompts_are_added_as_recorded(case: dict) -> None:
    recorded = golden("added_hidden_deep")
    pool = pool_of(recorded["z"], recorded["A"], 2)
    layers = [StubLayer(i) for i in range(2)]
    hidden = torch.tensor(recorded["hidden_in"])
    with prompts_in(layers, pool(weights_of(case)[1][None])):
        for layer in layers:
            hidden = layer(hidden)
    assert torch.allclose(hidden, torch.tensor(case["hidden_out"]), atol=1e-5)


@pytest.mark.parametrize("case", golden("router_gradient")["cases"])
def test_the_gradients_are_the_recorded_ones(case: dict) -> None:
    recorded = golden("router_gradient")
    pool = pool_of(recorded["z"], recorded["A"], 2)
    logits = torch.tensor([case["logits"], [0.0, 0.0, 0.0]], requires_grad=True)
    weights = normalised(relaxed_gates(logits[0], torch.tensor(case["uniform"]), case["temperature"]))
    hidden = added(torch.tensor(recorded["hidden_in"]), pool(weights[None, None])[:, 0])
    (torch.tensor(recorded["C"]) * hidden).sum().backward()
    for found, expected in (
        (logits.grad, case["d_router"]),
        (pool.codes.grad[0], case["d_z"]),
        (pool.projection.grad[0], case["d_A"]),
    ):
        assert torch.allclose(found, torch.tensor(expected), atol=1e-5)


def watched(denoiser: NetworkDenoiser, arguments: tuple) -> tuple[Tensor, list[Tensor]]:
    """Return the hidden states of a pass, and the input of each layer after earlier hooks have changed it."""
    inputs: list[Tensor] = []

    def keep(layer: nn.Module, given: tuple, named: dict) -> None:
        inputs.append((given or (named["hidden_states"],))[0])

    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in denoiser.layers]
    try:
        return denoiser.encode(*arguments), inputs
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("number", [1, 2])
def test_the_layers_of_a_network_get_their_prompts_and_nothing_else(name: str, number: int) -> None:
    torch.manual_seed(0)
    denoiser = make_denoiser(NETWORKS[name](), "none", 64).eval()
    ids, everywhere, time = torch.arange(10, 22).view(2, 6), torch.ones(2, 6, dtype=torch.bool), torch.ones(2).long()
    prompts = torch.randn(2, number, 3, 32)
    arguments = (ids, time, everywhere)
    plain, before = watched(denoiser, arguments)
    with prompts_in(denoiser.layers, prompts):
        prompted, inputs = watched(denoiser, arguments)
    assert torch.allclose(inputs[0][:, 1:4] - before[0][:, 1:4], prompts[:, 0], atol=1e-5)
    assert torch.equal(inputs[0][:, [0, 4, 5]], before[0][:, [0, 4, 5]])
    assert not torch.allclose(prompted, plain, atol=1e-2)
    assert torch.equal(denoiser.encode(*arguments), plain)  # bit for bit, as before
    with prompts_in(denoiser.layers, torch.zeros_like(prompts)):
        assert torch.equal(denoiser.encode(*arguments), plain)


def test_prompts_without_room_or_layer_are_refused() -> None:
    layer = StubLayer(0)
    for layers in ([layer], [layer, layer]):
        with pytest.raises(ValueError, match="prompts for 2 layers need as many layers, each its own"):
            prompts_in(layers, torch.zeros(1, 2, 3, 4)).__enter__()
    with prompts_in([layer], torch.zeros(1, 1, 3, 4)), pytest.raises(ValueError, match="needs rows of at least 4"):
        layer(torch.zeros(1, 3, 4))
    assert not layer._forward_pre_hooks
