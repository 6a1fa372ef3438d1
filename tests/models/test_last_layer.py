"""last_layer.py: hidden states at chosen positions, and their gradients, are those of a whole pass."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig

from models.bert import BertDenoiser
from models.last_layer import last_layer_hooks
from models.lora import add_lora
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
    stock = network(BertConfig(**SHAPE, hidden_dropout_prob=0, attention_probs_dropout_prob=0))
    denoiser = BertDenoiser(stock).train()
    expected = gradients(denoiser, denoiser.encode(X, T, MASK))
    denoiser.network.activation_checkpointing_enable()
    found = gradients(denoiser, denoiser.encode_at(X, T, MASK, POSITIONS))
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)
    assert not torch.equal(denoiser.eval().encode_at(X, T, MASK, POSITIONS), denoiser.encode(X, T, MASK))


def test_adapters_do_not_disturb_the_hooks() -> None:
    denoiser = BertDenoiser(network(CONFIGS["bert"]))
    add_lora(denoiser, 2, "auto")
    for name, parameter in denoiser.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    whole, some = denoiser.encode(X, T, MASK), denoiser.encode_at(X, T, MASK, POSITIONS)
    torch.testing.assert_close(some[POSITIONS], whole[POSITIONS])
    assert not torch.allclose(some, whole)


def test_a_copy_has_hooks_of_its_own() -> None:
    denoiser = BertDenoiser(network(CONFIGS["modernbert"]))
    copied = copy.deepcopy(denoiser)
    assert copied.last_layer is not denoiser.last_layer
    whole, some = denoiser.encode(X, T, MASK), denoiser.encode_at(X, T, MASK, POSITIONS)
    assert not torch.allclose(some, whole)
    with denoiser.last_layer.at(POSITIONS):
        assert torch.equal(copied.encode(X, T, MASK), whole)
    assert torch.equal(copied.encode_at(X, T, MASK, POSITIONS), some)


def test_an_error_within_a_pass_leaves_the_next_one_whole() -> None:
    denoiser = BertDenoiser(network(CONFIGS["bert"]))
    whole = denoiser.encode(X, T, MASK)
    with pytest.raises(RuntimeError, match="positions are"):
        denoiser.encode_at(X, T, MASK, POSITIONS[:, :4])
    assert torch.equal(denoiser.encode(X, T, MASK), whole)


def test_the_precision_is_that_of_a_whole_pass() -> None:
    denoiser = BertDenoiser(network(CONFIGS["bert"])).use_precision(torch.device("cpu"), "bf16")
    whole, some = denoiser.encode(X, T, MASK), denoiser.encode_at(X, T, MASK, POSITIONS)
    assert whole.dtype == some.dtype
    torch.testing.assert_close(some[POSITIONS], whole[POSITIONS], atol=0.05, rtol=0.05)


def test_a_layer_whose_modules_take_other_inputs_is_found_by_a_trial() -> None:
    class Scaled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, hidden: Tensor, residual: Tensor, scale: None = None) -> Tensor:
            return self.inner(hidden, residual)

    class Attention(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.output = inner, Scaled(inner.output)

        def forward(self, hidden: Tensor, mask: Tensor | None = None, *rest: object, **settings: object) -> tuple:
            return self.output(self.inner.self(hidden, attention_mask=mask)[0], hidden, None), None

    stock = network(BertConfig(**SHAPE))
    stock.bert.encoder.layer[-1].attention = Attention(stock.bert.encoder.layer[-1].attention)
    denoiser = BertDenoiser(stock)
    assert denoiser.last_layer is None and denoiser.encode_at(X, T, MASK, POSITIONS).shape == (2, 5, 32)


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
    assert last_layer_hooks([]) is None and last_layer_hooks([nn.Linear(2, 2)]) is None
