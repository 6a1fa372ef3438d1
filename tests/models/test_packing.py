"""packing.py: packed rows give the results of one sentence per row."""

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, ModernBertConfig

from data.batch import Batch
from diffusion.process import Vocabulary
from diffusion.process_options import WordFreqArgs
from diffusion_word_freq import WordFreqDiffusion
from models.bert import BertDenoiser
from models.packing import PackedRows, next_fit
from tests.models.test_bert import CONFIGS, SHAPE, SPECIAL, network
from utils.errors import UserError

LENGTHS = torch.tensor([5, 5, 3, 7, 2, 2, 6, 5])
X = torch.randint(5, 50, (8, 7), generator=torch.Generator().manual_seed(0))
ATTENDED = torch.arange(7) < LENGTHS[:, None]
T = torch.arange(1, 9)
SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "pad_token_id": 1}
NARROW = ModernBertConfig(vocab_size=50, local_attention=4, global_attn_every_n_layers=2, **SIZE, **SPECIAL)
NETWORKS = {name: config for name, config in CONFIGS.items() if name != "deberta"}
NETWORKS |= {"modernbert with narrow windows": NARROW}


def packed(denoiser: BertDenoiser, capacity: int = 10) -> BertDenoiser:
    denoiser.pack_rows(capacity)
    return denoiser


def test_sentences_are_packed_in_order() -> None:
    assert next_fit([5, 5, 3, 7, 2], 10) == ([0, 5, 10, 13, 20], 3)
    rows = PackedRows(torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]]).bool(), 4)
    assert rows.sentence.tolist() == [[1, 1, 1, 2], [3, 3, 0, 0]]
    assert rows.position.tolist() == [[0, 1, 2, 0], [0, 1, 0, 0]]
    assert rows.fill(torch.tensor([[7, 8, 9, 0], [6, 0, 0, 0], [4, 5, 0, 0]])).tolist() == [[7, 8, 9, 6], [4, 5, 0, 0]]
    assert PackedRows(torch.ones(2, 9).bool(), 4).sentence.shape == (2, 9)  # a batch wider than a row widens the rows


def test_rows_and_mask_of_the_score_based_lm_are_the_recorded_ones() -> None:
    ids = torch.tensor([[0, 5, 1, 2], [0, 6, 7, 1], [0, 9, 1, 2]])
    rows = PackedRows(ids != 2, 7)
    held = rows.sentence > 0
    assert rows.fill(ids).where(held, 2).tolist() == [[0, 5, 1, 0, 6, 7, 1], [0, 9, 1, 2, 2, 2, 2]]
    mask = (rows.sentence[:, :, None] == rows.sentence[:, None]) & held[:, None]
    blocks = [torch.ones(3, 3), torch.ones(4, 4)], [torch.ones(3, 3), torch.zeros(4, 4)]
    assert torch.equal(mask, torch.stack([torch.block_diag(*each).bool() for each in blocks]))


def test_restoring_undoes_filling() -> None:
    rows = PackedRows(ATTENDED, 10)
    restored = rows.restore(rows.fill(X)[..., None])[..., 0]
    assert torch.equal(restored, X.masked_fill(~ATTENDED, 0))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", NETWORKS)
def test_packed_rows_agree_with_one_sentence_per_row(name: str, attention: str) -> None:
    stock = network(NETWORKS[name])
    stock.set_attn_implementation(attention)
    denoiser = BertDenoiser(stock)
    for table in (p for n, p in stock.named_parameters() if "relative_attention_bias" in n):
        torch.nn.init.normal_(table)
    alone = torch.cat([denoiser.encode(X[b : b + 1, :n], T[:1], X[:1, :n] >= 0)[0] for b, n in enumerate(LENGTHS)])
    torch.testing.assert_close(packed(denoiser).encode(X, T, ATTENDED)[ATTENDED], alone, atol=1e-5, rtol=1e-5)


def test_a_neighbour_of_equal_length_is_not_attended_to() -> None:
    denoiser = packed(BertDenoiser(network(CONFIGS["bert"])))
    other = X.clone()
    other[1] = other[1].roll(1) + 1
    before, after = denoiser.encode(X, T, ATTENDED), denoiser.encode(other, T, ATTENDED)
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[1], after[1])


def test_every_sentence_keeps_its_own_time() -> None:
    denoiser = BertDenoiser(network(CONFIGS["bert"]), "layerwise", num_steps=8).eval()
    for mlp in denoiser.time.mlps:
        torch.nn.init.normal_(mlp[2].weight)
    single = denoiser.encode(X, T, ATTENDED)[ATTENDED]
    torch.testing.assert_close(packed(denoiser).encode(X, T, ATTENDED)[ATTENDED], single, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(denoiser.encode(X, T.flip(0), ATTENDED)[ATTENDED], single)


def terms_and_gradient(denoiser: BertDenoiser, rows: list[slice]) -> tuple[Tensor, Tensor]:
    """Return the KL of each sentence at its own x_t, and the gradient of their sum, computed in batches of `rows`."""
    process = WordFreqDiffusion(WordFreqArgs(num_steps=8), torch.arange(50), Vocabulary(50, 4, excluded_ids=(0, 1, 2)))
    masked = ATTENDED & (torch.rand(X.shape, generator=torch.Generator().manual_seed(1)) < 0.6)
    denoiser.zero_grad()
    found = []
    for part in rows:
        width = int(LENGTHS[part].max())
        x0, xt, on = (v[part, :width] for v in (X, X.masked_fill(masked, 4), ATTENDED))
        found.append(process.token_terms(denoiser, Batch(x0, on, on), xt, T[part] - 1, T[part])[0].sum(1))
        found[-1].sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in denoiser.parameters() if p.grad is not None])
    return torch.cat(found).detach(), gradient


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_packed_bucketed_and_single_sentences_have_equal_loss_and_gradient(name: str) -> None:
    denoiser = BertDenoiser(network(CONFIGS[name]))
    single = terms_and_gradient(denoiser, [slice(b, b + 1) for b in range(8)])
    bucketed = terms_and_gradient(denoiser, [slice(0, 8)])
    side_by_side = terms_and_gradient(packed(denoiser), [slice(0, 8)])
    assert (single[0] > 0).all()
    for other in (bucketed, side_by_side):
        for found, expected in zip(other, single, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_slots_are_those_that_the_network_computes() -> None:
    denoiser = BertDenoiser(network(CONFIGS["bert"]))
    assert denoiser.num_slots(ATTENDED) == 56
    assert packed(denoiser).num_slots(ATTENDED) == 4 * 10 and denoiser.row_capacity == 10  # 5 5 | 3 7 | 2 2 6 | 5


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_sentences_are_separated_in_low_precision(attention: str) -> None:
    stock = network(CONFIGS["bert"])
    stock.set_attn_implementation(attention)
    denoiser = BertDenoiser(stock)
    single = denoiser.encode(X, T, ATTENDED)[ATTENDED]
    denoiser.use_precision(torch.device("cpu"), "bf16")
    rounded = denoiser.encode(X, T, ATTENDED)[ATTENDED]
    found = packed(denoiser).encode(X, T, ATTENDED)[ATTENDED]
    assert (found - rounded).abs().max() <= 3 * (rounded - single).abs().max()
    assert isinstance(denoiser.autocast, torch.autocast)  # the check restores autocast


def test_a_network_of_few_positions_can_be_packed() -> None:
    assert packed(BertDenoiser(network(BertConfig(**{**SHAPE, "max_position_embeddings": 5}))), 5).row_capacity == 5


def test_a_network_that_cannot_separate_sentences_is_refused() -> None:
    denoiser = BertDenoiser(network(CONFIGS["deberta"]))
    with pytest.raises(UserError, match="does not separate the sentences of a row; leave packing out, or try .* sdpa$"):
        packed(denoiser)
    assert denoiser.row_capacity == 0


def test_a_time_token_is_refused() -> None:
    with pytest.raises(UserError, match="time_conditioning=token"):
        packed(BertDenoiser(network(CONFIGS["bert"]), "token", num_steps=8))
