"""score_denoiser.py: embeddings on the sphere, noise levels by row or position, packed rows, refusals."""

import pytest
import torch
from torch import Tensor

from models.attention import fit_to_device, trial_hidden_states
from models.factory import make_denoiser
from models.options import NetworkArgs
from models.score_denoiser import ScoreDenoiser, as_score_denoiser
from tests.models.test_bert import CONFIGS
from tests.models.test_bert import network as bert
from tests.models.test_score_lm import network
from utils.errors import UserError

LENGTHS = torch.tensor([5, 5, 3, 7, 2, 2, 6, 5])
ATTENDED = torch.arange(7) < LENGTHS[:, None]
X = torch.randn(8, 7, 8, generator=torch.Generator().manual_seed(0))
SIGMA = 3 * torch.rand(8, 7, generator=torch.Generator().manual_seed(1))
PREVIOUS = torch.randn(8, 7, 8, generator=torch.Generator().manual_seed(2))


def denoiser(**changes: object) -> ScoreDenoiser:
    return ScoreDenoiser(network(**changes)).eval()


def encode(net: ScoreDenoiser, x: Tensor = X, sigma: Tensor = SIGMA, previous: Tensor | None = None) -> Tensor:
    return net.encode(x, sigma, ATTENDED, previous)[ATTENDED]


def test_the_table_holds_the_embeddings_of_tokens() -> None:
    net = denoiser()
    assert torch.equal(net.embed(torch.tensor([[3, 7]])), net.table()[[3, 7]][None])


def test_one_level_per_row_equals_that_level_at_every_position() -> None:
    net, level = denoiser(), torch.arange(1.0, 9.0)
    assert torch.equal(encode(net, sigma=level), encode(net, sigma=level[:, None].expand(8, 7)))


def test_the_network_alone_gives_the_logits_of_the_denoiser() -> None:
    net = denoiser()
    ids, everything = torch.arange(56).view(8, 7) % 20, torch.ones(8, 7, dtype=torch.bool)
    scaled = net.embed(ids) * (SIGMA[..., None] ** 2 + 1).rsqrt()
    assert torch.allclose(net.network(ids, SIGMA), net.decode(net.encode(scaled, SIGMA, everything)), atol=1e-5)


def test_tokens_are_encoded_as_their_embeddings() -> None:
    net = denoiser()
    ids = torch.arange(56).view(8, 7) % 20
    assert torch.equal(net.encode(ids, SIGMA, ATTENDED), net.encode(net.embed(ids), SIGMA, ATTENDED))


@pytest.mark.parametrize("conditioned", [False, True])
def test_packed_rows_agree_with_one_sentence_per_row(conditioned: bool) -> None:
    net = denoiser(self_conditioning=conditioned)
    previous = PREVIOUS if conditioned else None
    single = encode(net, previous=previous)
    net.pack_rows(10)
    assert torch.allclose(encode(net, previous=previous), single, atol=1e-5)
    assert net.num_slots(ATTENDED) == 40  # 5 5 | 3 7 | 2 2 6 | 5: four rows of 10
    net.pack_rows(0)
    assert net.num_slots(ATTENDED) == 56


def test_neighbours_of_equal_length_do_not_attend_to_each_other() -> None:
    """The released mask compared lengths, so two sentences of length 5 attended to each other."""
    net = denoiser()
    net.pack_rows(10)
    other = X.clone()
    other[1] += 1
    before, after = net.encode(X, SIGMA, ATTENDED), net.encode(other, SIGMA, ATTENDED)
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])


@pytest.mark.parametrize("lengths", [[2, 2], [1, 2, 1], [2, 1], [2, 2, 2, 2]])
def test_the_block_mask_is_block_diagonal(lengths: list[int]) -> None:
    from models.packing import PackedRows

    attended = torch.arange(2) < torch.tensor(lengths)[:, None]
    sentence = PackedRows(attended, sum(lengths)).sentence[0]
    blocks = torch.block_diag(*(torch.ones(n, n) for n in lengths)).bool()
    assert torch.equal(sentence[:, None] == sentence[None], blocks)


def test_the_previous_estimate_matters_only_with_self_conditioning() -> None:
    net = denoiser(self_conditioning=True)
    assert torch.equal(encode(net), encode(net, previous=torch.zeros_like(PREVIOUS)))
    assert not torch.equal(encode(net), encode(net, previous=PREVIOUS))
    assert not hasattr(denoiser().body, "project_previous")


def test_the_trial_states_are_finite_and_attention_cannot_be_chosen() -> None:
    assert trial_hidden_states(denoiser()).isfinite().all()
    net = denoiser()
    fit_to_device(net, NetworkArgs(), torch.device("cpu"), "bf16")
    assert net.network.config._attn_implementation == "sdpa"
    with pytest.raises(UserError, match="ScoreLmNetwork only supports torch's own attention .*leave the flag out"):
        fit_to_device(net, NetworkArgs(attn_implementation="eager"), torch.device("cpu"), "fp32")


def test_networks_over_tokens_and_over_embeddings_are_not_interchangeable() -> None:
    stock = bert(next(iter(CONFIGS.values())))
    with pytest.raises(UserError, match="process=score needs a network over embeddings; use --from_scratch true"):
        make_denoiser(stock, "none", 1, over_embeddings=True)
    with pytest.raises(UserError, match="takes embeddings and needs --process score"):
        make_denoiser(network(), "none", 1)
    with pytest.raises(UserError, match="time_conditioning=token: .* leave it out"):
        as_score_denoiser(network(), "token")
    assert isinstance(make_denoiser(network(), "layerwise", 1, over_embeddings=True), ScoreDenoiser)
