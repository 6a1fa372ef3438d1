"""Recorded losses of three released versions: our process on our network, with the parts replaced that differ.

Weights, noise and levels are those of the recording. In the order of their names there, the i-th tensor is
.3 sin(.7 n + i), where n counts its numbers. The first token of each text is given; the second text has one pad.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from data.batch import Batch
from diffusion.process import Vocabulary
from diffusion.process_options import ScoreArgs
from diffusion.score.noise_levels import NoiseDraw
from diffusion.score.process import ScoreDiffusion
from models.score_denoiser import ScoreDenoiser
from models.score_lm import Block, ScoreLmConfig, ScoreLmNetwork

V = 6  # without [MASK], which the released versions lack
IDS = torch.tensor([[0, 4, 5, 1], [0, 3, 1, 2]])
ATTENDED = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool()
BATCH = Batch(IDS, ATTENDED, ATTENDED & (torch.arange(4) > 0))
LEVELS = {
    "of texts": torch.tensor([[2.0], [5.0]]).expand(2, 4),
    "of positions": torch.tensor([[1.0, 2, 5, 10], [10, 5, 2, 1]]),
}


class LevelCondition(nn.Module):
    """Conditions on the level rather than its logarithm; the last version has no condition at given tokens."""

    def __init__(self, level: nn.Module, hides_given: bool) -> None:
        super().__init__()
        self.level, self.hides_given = level, hides_given

    def forward(self, log_level: Tensor) -> Tensor:
        film = self.level(log_level.expm1())
        return film * (log_level > 0)[..., None] if self.hides_given else film


def network(embedding_size: int, hidden_size: int, base: float = 10_000.0) -> ScoreLmNetwork:
    config = ScoreLmConfig(
        vocab_size=V + 1,
        embedding_size=embedding_size,
        hidden_size=hidden_size,
        num_hidden_layers=1,
        num_attention_heads=2,
        fourier_size=4,
        dropout=0.0,
        rotary_base=base,
    )
    return ScoreLmNetwork(config).eval()


def use_layer_norm(net: ScoreLmNetwork) -> None:
    """Replace RMSNorm by LayerNorm, as in the earlier versions."""
    for film in (net.body.layers[0].attention_film, net.body.layers[0].ffn_film):
        film.norm = nn.LayerNorm(net.config.hidden_size, elementwise_affine=False)


def tensors(*modules: nn.Module) -> list[Tensor]:
    """Return parameters in the order of their names, biases before weights."""
    return [parameter for net in modules for _, parameter in sorted(net.named_parameters())]


def attention(layer: Block) -> list[Tensor]:
    q, k, v = layer.qkv.weight.chunk(3)
    return [k, layer.out.weight, q, v]


def feed_forward(layer: Block) -> list[Tensor]:
    return [layer.gate.weight, layer.down.weight, layer.up.weight]


def level(net: ScoreLmNetwork) -> list[Tensor]:
    fourier, *rest = net.body.level
    return [fourier.frequency, *tensors(*rest)]


def last_version(monkeypatch: pytest.MonkeyPatch) -> tuple[ScoreLmNetwork, list[Tensor], bool]:
    """Commit 480dccc, with a missing width filled in."""
    net = network(4, 8, base=1000.0)
    net.body.norm, (layer,) = nn.RMSNorm(8, eps=1e-4), net.body.layers
    ends = [net.embedding.weight[:V], net.body.norm.weight, net.head.weight[:V]]
    layers = [*attention(layer), *tensors(layer.attention_film), *feed_forward(layer), *tensors(layer.ffn_film)]
    return net, [*ends, *layers, *tensors(net.body.project), *level(net)], True


def last_package(monkeypatch: pytest.MonkeyPatch) -> tuple[ScoreLmNetwork, list[Tensor], bool]:
    """Commit d6568a8."""
    net = network(128, 8)
    use_layer_norm(net)
    net.body.norm, (layer,) = nn.LayerNorm(8), net.body.layers
    ends = [net.embedding.weight[:V], *tensors(net.body.norm), net.head.weight[:V]]
    layers = [*attention(layer), *tensors(layer.attention_film), *feed_forward(layer), *tensors(layer.ffn_film)]
    return net, [*ends, *layers, *tensors(net.body.project), *level(net)], False


def flat_scripts(monkeypatch: pytest.MonkeyPatch) -> tuple[ScoreLmNetwork, list[Tensor], bool]:
    """Commit df9fe14: biases at both ends; rotary rates, filled like weights, in half of each head."""
    net = network(4, 16)
    use_layer_norm(net)
    net.body.project, net.head, net.body.norm = nn.Linear(4, 16), nn.Linear(16, V + 1), nn.Identity()
    (layer,), rates = net.body.layers, torch.zeros(4)
    monkeypatch.setattr(
        "models.score_lm.rotary",
        lambda place, *_: torch.stack([(place[..., None] * rates).cos(), (place[..., None] * rates).sin()], -1),
    )
    films = tensors(layer.attention_film, layer.ffn_film)
    layers = [rates[:2], *attention(layer), *films, *feed_forward(layer)]
    ends = [net.head.bias[:V], net.head.weight[:V], *tensors(net.body.project)]
    return net, [net.embedding.weight[:V], *layers, *ends, *level(net)], False


@torch.no_grad()
def filled(version: Callable, monkeypatch: pytest.MonkeyPatch) -> ScoreDenoiser:
    net, slots, hides_given = version(monkeypatch)
    for index, slot in enumerate(slots):
        numbers = 0.3 * torch.sin(0.7 * torch.arange(slot.numel(), dtype=torch.float64) + index)
        slot.copy_(numbers.view_as(slot))
    net.body.level = LevelCondition(net.body.level, hides_given)
    return ScoreDenoiser(net)


def process(loss_weighting: str = "uniform") -> ScoreDiffusion:
    args = ScoreArgs(
        sigma_max=10, rho=1, loss_weighting=loss_weighting, output_prior=False, self_conditioning=False, time_warp=False
    )
    return ScoreDiffusion(args, Vocabulary(V + 1, V))


def noise(embedding_size: int) -> Tensor:
    return torch.sin(1.3 * torch.arange(8.0 * embedding_size)).view(2, 4, embedding_size)


RECORDED = [
    (flat_scripts, "of texts", 2.300622, 2.707344),
    (flat_scripts, "of positions", 2.254066, 2.535959),
    (last_package, "of texts", 1.767728, 2.071906),
    (last_package, "of positions", 1.769414, 1.974487),
    (last_version, "of texts", 1.782058, 2.07737),
    (last_version, "of positions", 1.778395, 1.986234),
]


@pytest.mark.parametrize(("version", "levels", "plain", "weighted"), RECORDED)
def test_the_loss_is_the_recorded_one(
    version: Callable, levels: str, plain: float, weighted: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser, predicted = filled(version, monkeypatch), BATCH.target_mask
    drawn = NoiseDraw(LEVELS[levels] * predicted, predicted, torch.zeros(2, dtype=torch.float64), torch.ones(2).bool())
    monkeypatch.setattr(ScoreDiffusion, "draw", lambda *_: drawn)
    monkeypatch.setattr("diffusion.score.transitions.gaussian", lambda where, width, generator: noise(width))
    for weighting, expected in (("uniform", plain), ("edm", weighted)):
        loss = process(weighting).loss(denoiser, BATCH)
        assert loss.num_tokens == predicted.sum() == 5
        assert loss.total.item() / 5 == pytest.approx(expected, abs=3e-6)


@pytest.mark.parametrize(
    ("version", "logits"),
    [
        (flat_scripts, [-0.4621, -0.18119, 0.69393, 0.78846, -0.18125, -0.89303]),
        (last_package, [-0.08922, 0.01304, 0.10945, 0.15673, 0.13366, 0.05059]),
        (last_version, [-0.04083, -0.02446, 0.00289, 0.02894, 0.042, 0.03621]),
    ],
)
@torch.no_grad()
def test_logits_are_the_recorded_ones(version: Callable, logits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser, sigma = filled(version, monkeypatch), LEVELS["of texts"] * BATCH.target_mask
    x = denoiser.embed(IDS) + sigma[..., None] * noise(denoiser.embedding_size)
    hidden = process().encode(denoiser, x, sigma, BATCH)
    found = process().logits(denoiser, hidden, denoiser.table())[0, 1, :V]
    assert found.tolist() == pytest.approx(logits, abs=2e-5)
