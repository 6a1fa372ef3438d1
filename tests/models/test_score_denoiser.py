"""score_denoiser.py: embeddings on the sphere, noise levels by row or position, packed rows, refusals."""

import pytest
import torch
from torch import Tensor

from models.attention import fit_to_device, trial_hidden_states
from models.factory import make_denoiser
from models.networks import NetworkArgs
from models.score_denoiser import ScoreDenoiser, as_score_denoiser
from tests.models.test_bert import CONFIGS
from tests.models.test_bert import network as bert
from tests.models.test_score_lm import network
from utils.errors import UserError

LENGTHS = torch.tensor([5, 5, 3, 7, 2, 2, 6, 5])
ATTENDED = torch.arange(7) < LENGTHS[:, None]
X = torch.randn(8, 7, 8, generator=torch.Generator().manual_seed(0))
SIGMA = 3 * torch.rand(8, 7, generator=torch.Generator().manual_seed(1))
BEFORE = torch.randn(8, 7, 8, generator=torch.Generator().manual_seed(2))


def denoiser(**more: object) -> ScoreDenoiser:
    return ScoreDenoiser(network(**more)).eval()


def encode(made: ScoreDenoiser, x: Tensor = X, sigma: Tensor = SIGMA, before: Tensor | None = None) -> Tensor:
    return made.encode(x, sigma, ATTENDED, before)[ATTENDED]


def test_the_table_holds_what_tokens_are_embedded_as() -> None:
    made = denoiser()
    assert torch.equal(made.embed(torch.tensor([[3, 7]])), made.table()[[3, 7]][None])


def test_a_level_for_the_row_is_that_level_at_every_position() -> None:
    made, level = denoiser(), torch.arange(1.0, 9.0)
    assert torch.equal(encode(made, sigma=level), encode(made, sigma=level[:, None].expand(8, 7)))


def test_the_network_by_itself_names_what_the_denoiser_names() -> None:
    made = denoiser()
    ids, everything = torch.arange(56).view(8, 7) % 20, torch.ones(8, 7, dtype=torch.bool)
    scaled = made.embed(ids) * (SIGMA[..., None] ** 2 + 1).rsqrt()
    assert torch.allclose(made.network(ids, SIGMA), made.decode(made.encode(scaled, SIGMA, everything)), atol=1e-5)


def test_tokens_are_read_as_their_embeddings() -> None:
    made = denoiser()
    ids = torch.arange(56).view(8, 7) % 20
    assert torch.equal(made.encode(ids, SIGMA, ATTENDED), made.encode(made.embed(ids), SIGMA, ATTENDED))


@pytest.mark.parametrize("conditioned", [False, True])
def test_packed_rows_give_what_one_sentence_a_row_gives(conditioned: bool) -> None:
    made = denoiser(self_conditioning=conditioned)
    before = BEFORE if conditioned else None
    single = encode(made, before=before)
    made.pack_rows(10)
    assert torch.allclose(encode(made, before=before), single, atol=1e-5)
    assert made.num_slots(ATTENDED) == 40  # 5 5 | 3 7 | 2 2 6 | 5: four rows of 10
    made.pack_rows(0)
    assert made.num_slots(ATTENDED) == 56


def test_neighbours_of_equal_length_do_not_see_each_other() -> None:
    """The released mask compared lengths, so two sentences of length 5 attended to each other."""
    made = denoiser()
    made.pack_rows(10)
    other = X.clone()
    other[1] += 1
    before, after = made.encode(X, SIGMA, ATTENDED), made.encode(other, SIGMA, ATTENDED)
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])


@pytest.mark.parametrize("lengths", [[2, 2], [1, 2, 1], [2, 1], [2, 2, 2, 2]])
def test_the_block_mask_is_block_diagonal(lengths: list[int]) -> None:
    from models.packing import PackedRows

    attended = torch.arange(2) < torch.tensor(lengths)[:, None]
    sentence = PackedRows(attended, sum(lengths)).sentence[0]
    blocks = torch.block_diag(*(torch.ones(n, n) for n in lengths)).bool()
    assert torch.equal(sentence[:, None] == sentence[None], blocks)


def test_an_estimate_before_matters_only_to_a_network_that_is_to_know_it() -> None:
    made = denoiser(self_conditioning=True)
    assert torch.equal(encode(made), encode(made, before=torch.zeros_like(BEFORE)))
    assert not torch.equal(encode(made), encode(made, before=BEFORE))
    assert not hasattr(denoiser().body, "project_previous")


def test_the_machine_may_try_it_and_there_is_no_choice_of_attention() -> None:
    assert trial_hidden_states(denoiser()).isfinite().all()
    made = denoiser()
    fit_to_device(made, NetworkArgs(), torch.device("cpu"), "bf16")
    assert made.network.config._attn_implementation == "sdpa"
    with pytest.raises(UserError, match="ScoreLmNetwork only supports torch's own attention .*leave the flag out"):
        fit_to_device(made, NetworkArgs(attn_implementation="eager"), torch.device("cpu"), "fp32")


def test_networks_over_tokens_and_over_embeddings_are_not_confused() -> None:
    stock = bert(next(iter(CONFIGS.values())))
    with pytest.raises(UserError, match="process=score needs a network over embeddings; use --from_scratch true"):
        make_denoiser(stock, "none", 1, over_embeddings=True)
    with pytest.raises(UserError, match="takes embeddings and needs --process score"):
        make_denoiser(network(), "none", 1)
    with pytest.raises(UserError, match="time_conditioning=token: .* leave it out"):
        as_score_denoiser(network(), "token")
    assert isinstance(make_denoiser(network(), "layerwise", 1, over_embeddings=True), ScoreDenoiser)
