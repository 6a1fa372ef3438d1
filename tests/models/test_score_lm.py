"""score_lm.py: recorded numbers of the parts; saving and loading."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM

from models.networks import PRESETS, fresh_network
from models.options import NetworkArgs
from models.score_lm import Body, Film, Fourier, RmsNorm, ScoreLmConfig, ScoreLmNetwork, rotary, rotate, to_sphere
from utils.errors import UserError

SMALL = {
    "vocab_size": 20,
    "embedding_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "fourier_size": 4,
    "film_size": 6,
    "dropout": 0.0,
    "max_position_embeddings": 32,
}


def network(seed: int = 0, **changes: object) -> ScoreLmNetwork:
    """Create a network without zero weights."""
    model = ScoreLmNetwork(ScoreLmConfig(**{**SMALL, **changes})).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
        model.body.level[0].frequency.normal_()
    return model


def test_rms_norm_is_the_recorded_one() -> None:
    found = RmsNorm()(torch.tensor([1.0, 2, 3, 4]))
    assert found.tolist() == pytest.approx([0.365146, 0.730292, 1.095438, 1.460584], abs=1e-6)


@pytest.mark.parametrize(
    ("film", "numbers"),
    [
        ([1.0, -1.0], [-0.096515, -0.115726, -0.127635, -0.132241]),
        ([0.0, 0.0], [0.04, 0.057303, 0.081909, 0.113818]),
    ],
)
def test_film_is_the_recorded_one(film: list[float], numbers: list[float]) -> None:
    layer = Film(4, 2)
    with torch.no_grad():
        layer.wf.weight.copy_(0.1 * torch.arange(16.0).reshape(8, 2))
        layer.wf.bias.copy_(0.01 * torch.arange(8.0))
    assert layer(torch.tensor([1.0, 2, 3, 4]), torch.tensor(film)).tolist() == pytest.approx(numbers, abs=1e-6)


def test_rotary_positions_are_the_recorded_ones() -> None:
    turn = rotary(torch.arange(3), 4, 1000.0)
    assert torch.atan2(turn[1, :, 1], turn[1, :, 0]).tolist() == pytest.approx([1, 0.031623], abs=1e-6)
    found = rotate(torch.ones(1, 1, 3, 4), turn[None, None])[0, 0]
    assert found[1].tolist() == pytest.approx([-0.301169, 1.381773, 0.967883, 1.031118], abs=1e-6)
    assert found[2].tolist() == pytest.approx([-1.325444, 0.493151, 0.934797, 1.061204], abs=1e-6)
    assert found[0].tolist() == [1, 1, 1, 1]


def test_fourier_features_are_the_recorded_ones() -> None:
    layer = Fourier(4)
    layer.frequency.copy_(torch.tensor([0.1, -0.3]))
    numbers = [2, 0.951057, 0.587786, 0.309017, -0.809017]
    assert layer(torch.tensor([2.0]))[0].tolist() == pytest.approx(numbers, abs=1e-6)


def test_embeddings_lie_on_the_recorded_sphere() -> None:
    table = to_sphere(torch.tensor([[3.0, 4.0], [0.0, -2.0]]))
    assert table.flatten().tolist() == pytest.approx([0.848528, 1.131371, 0, -1.414214], abs=1e-6)
    mean = torch.tensor([2.0, 0.0]).softmax(0) @ table
    assert mean.tolist() == pytest.approx([0.747381, 0.82793], abs=1e-6)


@pytest.mark.parametrize("width", [3, 64])
def test_embeddings_have_one_norm_and_gradients_along_the_sphere(width: int) -> None:
    raw = (0.001 * torch.randn(5, width)).requires_grad_()
    on_sphere = to_sphere(raw)
    assert torch.allclose(on_sphere.norm(dim=-1), torch.full((5,), math.sqrt(width)), atol=1e-5)
    assert torch.allclose(to_sphere(7 * raw), on_sphere, atol=1e-5)
    (on_sphere * torch.randn(5, width)).sum().backward()
    assert (raw.grad * raw).sum(-1).abs().max() < 1e-4 * raw.grad.norm() * raw.norm()


def test_the_initial_output_ignores_the_level_but_its_gradient_does_not() -> None:
    model = ScoreLmNetwork(ScoreLmConfig(**SMALL))
    x, positions = torch.randn(1, 4, 8), torch.arange(4)[None]
    one, other = (model.body(x, torch.full((1, 4), sigma), None, positions) for sigma in (1.0, 50.0))
    assert torch.equal(one, other)
    (one * torch.randn(one.shape)).sum().backward()
    grads = [layer.attention_film.wf.weight.grad for layer in model.body.layers]
    assert all(grad.abs().max() > 0 for grad in grads)


def test_each_position_is_conditioned_on_its_own_level() -> None:
    model = network()
    x, positions = torch.randn(1, 5, 8), torch.arange(5)[None]
    level = torch.full((1, 5), 2.0)
    other = level.clone()
    other[0, 3] = 9
    conditions = [model.body.level(torch.log1p(sigma)) for sigma in (level, other)]
    changed = (conditions[0] != conditions[1]).any(-1)[0]
    assert changed.tolist() == [False, False, False, True, False]
    assert not torch.equal(model.body(x, level, None, positions), model.body(x, other, None, positions))
    assert torch.allclose(
        model.body(x, level[:, :1], None, positions), model.body(x, level, None, positions), atol=1e-6
    )


def test_only_distances_between_positions_matter() -> None:
    model, x, level = network(), torch.randn(1, 6, 8), torch.full((1, 6), 3.0)
    near, far = (model.body(x, level, None, torch.arange(begin, begin + 6)[None]) for begin in (0, 17))
    assert torch.allclose(near, far, atol=1e-5)
    assert not torch.allclose(near, model.body(x, level, None, 2 * torch.arange(6)[None]), atol=1e-3)


def test_a_saved_and_loaded_network_is_the_same(tmp_path: Path) -> None:
    model = network(self_conditioning=True, time_warp=True)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, ScoreLmNetwork)
    for (name, one), (other_name, other) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == other_name and torch.equal(one, other)
    ids = torch.tensor([[3, 1, 4]])
    assert torch.equal(model(ids), loaded(ids))


def test_the_number_of_parameters_is_the_one_counted_by_hand() -> None:
    config = PRESETS["score-lm"][0](vocab_size=32_000)
    with torch.device("meta"):
        body = Body(config)
    layer = 4 * 1024**2 + 3 * 1024 * 4096 + 2 * (128 * 2048 + 2048)
    level = 129 * 128 + 128 + 128 * 128 + 128
    assert sum(parameter.numel() for parameter in body.parameters()) == 8 * layer + level + 256 * 1024


@pytest.mark.parametrize(
    "overrides",
    ["num_attention_heads=3", "fourier_size=3", "dropout=2", "embedding_size=0", "hidden_size=0", "rotary_base=0"],
)
def test_invalid_sizes_are_refused(overrides: str, tokenizer) -> None:
    args = NetworkArgs(model_name_or_path="score-lm-small", from_scratch=True, config_overrides=overrides)
    with pytest.raises(UserError, match="no network can be made of it"):
        fresh_network(args, tokenizer)
