"""last_layer.py: hidden states at chosen positions, and their gradients, are those of a whole pass."""

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig

from models.bert import BertDenoiser
from models.last_layer import last_layer
from tests.models.test_bert import CONFIGS, MASK, SHAPE, T, X, network

POSITIONS = torch.tensor([[False, True, False, True, False], [True, False, False, False, False]])


def gradients(denoiser: BertDenoiser, hidden: Tensor) -> dict[str, Tensor]:
    denoiser.zero_grad()
    hidden[POSITIONS].square().sum().backward()
    return {name: p.grad.clone() for name, p in denoiser.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("name", "capacity"),
    [(name, capacity) for name in CONFIGS for capacity in (0, 12) if (name, capacity) != ("deberta", 12)],
)  # the rows of DeBERTa cannot be packed
def test_hidden_states_and_gradients_at_some_positions_are_those_of_a_whole_pass(name: str, capacity: int) -> None:
    denoiser = BertDenoiser(network(CONFIGS[name]))
    denoiser.pack_rows(capacity)
    whole, some = denoiser.encode(X, T, MASK), denoiser.encode_at(X, T, MASK, POSITIONS)
    assert whole.shape == some.shape
    torch.testing.assert_close(some[POSITIONS], whole[POSITIONS])
    assert torch.allclose(some, whole, atol=1e-5) == (denoiser.last_layer is None)
    expected, found = gradients(denoiser, whole), gradients(denoiser, some)
    assert found.keys() == expected.keys()
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, atol=1e-4, rtol=1e-4, msg=parameter)


def test_most_families_skip_positions() -> None:
    """ALBERT applies one layer several times; MPNet's attention includes its output layer."""
    skip = {name for name in CONFIGS if BertDenoiser(network(CONFIGS[name])).last_layer}
    assert skip == CONFIGS.keys() - {"albert", "mpnet"}


def test_the_feed_forward_part_of_the_last_layer_runs_at_the_chosen_positions_only() -> None:
    denoiser, rows = BertDenoiser(network(CONFIGS["bert"])), []
    for layer in denoiser.layers:
        layer.intermediate.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[:-1].numel()))
    denoiser.encode_at(X, T, MASK, POSITIONS)
    assert rows == [10, 3]
    denoiser.encode(X, T, MASK)
    assert rows == [10, 3, 10, 10]


def test_no_position_is_allowed() -> None:
    denoiser = BertDenoiser(network(CONFIGS["bert"]))
    hidden = denoiser.encode_at(X, T, MASK, torch.zeros_like(MASK))
    hidden[torch.zeros_like(MASK)].sum().backward()  # a process without a masked token takes part in the reduction
    assert all(p.grad is not None for p in denoiser.layers[-1].parameters())


@pytest.mark.parametrize("time_conditioning", ["layerwise", "token"])
def test_a_network_with_time_input_computes_all_positions(time_conditioning: str) -> None:
    denoiser = BertDenoiser(network(CONFIGS["bert"]), time_conditioning, num_steps=8)
    assert torch.equal(denoiser.encode_at(X, T, MASK, POSITIONS), denoiser.encode(X, T, MASK))


def test_a_network_that_recomputes_its_layers_computes_all_positions() -> None:
    denoiser = BertDenoiser(network(CONFIGS["bert"]))
    denoiser.network.activation_checkpointing_enable()
    denoiser.train()
    assert gradients(denoiser, denoiser.encode_at(X, T, MASK, POSITIONS)).keys()


def test_a_layer_that_mixes_positions_after_its_attention_is_found_by_a_trial() -> None:
    class Mixed(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, hidden: Tensor) -> Tensor:
            return self.inner(hidden + hidden.mean(-2, keepdim=True))  # of a sentence, or of the chosen positions

    stock = network(BertConfig(**SHAPE))
    stock.bert.encoder.layer[-1].intermediate = Mixed(stock.bert.encoder.layer[-1].intermediate)
    denoiser = BertDenoiser(stock)
    assert denoiser.last_layer is None
    assert torch.equal(denoiser.encode_at(X, T, MASK, POSITIONS), denoiser.encode(X, T, MASK))


def test_an_unknown_layout_has_no_hooks() -> None:
    assert last_layer([]) is None and last_layer([nn.Linear(2, 2)]) is None
