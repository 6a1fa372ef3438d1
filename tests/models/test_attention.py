"""attention.py: the fast attention is used if it is correct; compiled networks give the same numbers."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import BertConfig

from models.attention import compile_network, fit_to_device, preferred_attention, trial_hidden_states, use_if_correct
from models.bert import BertDenoiser
from models.options import NetworkArgs
from tests.models.test_bert import CONFIGS, MASK, SHAPE, T, X, network
from utils.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "precision", "packing", "installed", "expected"),
    [
        (CPU, "bf16", False, True, "eager"),
        (CPU, "fp32", False, True, "sdpa"),
        (CUDA, "bf16", False, True, "flash_attention_2"),
        (CUDA, "fp16", False, True, "flash_attention_2"),
        (CUDA, "bf16", False, False, "sdpa"),
        (CUDA, "fp32", False, True, "sdpa"),
        (CUDA, "bf16", True, True, "sdpa"),
    ],
)
def test_the_preferred_attention_depends_on_device_precision_and_packing(
    device, precision, packing, installed, expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.attention.is_flash_attn_2_available", lambda: installed)
    assert preferred_attention(device, precision, packing=packing) == expected


def attention_of(denoiser: BertDenoiser) -> str:
    return denoiser.network.config._attn_implementation


@pytest.mark.parametrize(
    ("wanted", "precision", "chosen"), [("auto", "bf16", "eager"), ("auto", "fp32", "sdpa"), ("sdpa", "bf16", "sdpa")]
)
def test_attention_is_chosen_only_for_auto(wanted: str, precision: str, chosen: str) -> None:
    denoiser = BertDenoiser(network(CONFIGS["bert"]))
    fit_to_device(denoiser, NetworkArgs(attn_implementation=wanted), CPU, precision)
    assert attention_of(denoiser) == chosen


def test_the_choice_depends_on_packing_and_works_with_few_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    received = []
    monkeypatch.setattr(
        "models.attention.preferred_attention", lambda *_, packing: (received.append(packing), "eager")[1]
    )
    denoiser = BertDenoiser(network(BertConfig(**{**SHAPE, "max_position_embeddings": 5})))
    for capacity in (0, 5):
        denoiser.pack_rows(capacity)
        fit_to_device(denoiser, NetworkArgs(), CPU, "fp32")
    assert received == [False, True] and attention_of(denoiser) == "eager"


def test_an_attention_that_fails_or_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = BertDenoiser(network(CONFIGS["bert"])).train()
    use_if_correct(denoiser, "flash_attention_2")  # not installed here
    assert attention_of(denoiser) == "sdpa" and denoiser.training
    use_if_correct(denoiser, "eager")
    assert attention_of(denoiser) == "eager"
    real = trial_hidden_states
    wrong = lambda d: real(d) * (1.05 if attention_of(d) == "eager" else 1)  # noqa: E731
    monkeypatch.setattr("models.attention.trial_hidden_states", wrong)
    use_if_correct(denoiser, "eager")
    assert attention_of(denoiser) == "sdpa"


@pytest.mark.slow
def test_an_attention_without_gradients_is_refused() -> None:
    denoiser = BertDenoiser(network(CONFIGS["bert"]))
    with pytest.raises(UserError, match="attn_implementation='flex_attention' cannot be used here") as caught:
        fit_to_device(denoiser, NetworkArgs(attn_implementation="flex_attention"), CPU, "fp32")  # no gradient there
    assert "\n" not in str(caught.value) and all(p.grad is None for p in denoiser.parameters())


def outputs(denoiser: BertDenoiser, rows: int, width: int) -> list[torch.Tensor]:
    """Logits at some positions, and the gradients of their sum of squares."""
    x, mask = (v.repeat(rows, 1)[:, :width].contiguous() for v in (X, MASK))
    denoiser.zero_grad()
    logits = denoiser.decode(denoiser.encode(x, T.repeat(rows), mask)[mask])
    logits.square().sum().backward()
    return [logits.detach(), *(p.grad for p in denoiser.parameters() if p.grad is not None)]


@pytest.mark.parametrize("packing", [0, 12])
@pytest.mark.slow
def test_a_compiled_network_agrees_and_is_not_recompiled_for_every_shape(packing: int) -> None:
    torch._dynamo.reset()
    denoiser = BertDenoiser(network(BertConfig(**{**SHAPE, "num_hidden_layers": 1})), "layerwise", num_steps=8)
    denoiser.pack_rows(packing)
    shapes = [(2, 5), (3, 4), (4, 5), (6, 3), (5, 5)]
    names = list(denoiser.state_dict())
    plain = [outputs(denoiser, *shape) for shape in shapes]
    counter = CompileCounterWithBackend("aot_eager")
    compile_network(denoiser, CPU, counter)
    graphs = [counter.frame_count]
    for shape, expected in zip(shapes, plain, strict=True):
        for found, known in zip(outputs(denoiser, *shape), expected, strict=True):
            torch.testing.assert_close(found, known, atol=1e-4, rtol=1e-4)
        graphs.append(counter.frame_count)
    # with 2 sentences and 2 heads the compiler may assume equal sizes, and then compiles a second time
    assert graphs[0] < graphs[1] <= graphs[2] == graphs[-1] and list(denoiser.state_dict()) == names


@pytest.mark.slow
def test_a_failing_compiler_is_a_one_line_error() -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no compiler\nat all")

    with pytest.raises(UserError, match=r"compile=true does not work here \(.*\); leave it out") as caught:
        compile_network(BertDenoiser(network(CONFIGS["bert"])), CPU, broken)
    assert "\n" not in str(caught.value)
