"""batches.py: every sentence once an epoch, however it is dealt, and slots are not wasted."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertTokenizerFast

from batches import ENOUGH, deal, endless_batches, length_buckets, mean_batch, packed_rows, sorted_batches
from corpus import training_source
from dataloader import DataArgs, TokenizedText, tokenize
from models.packing import next_fit

LM1B_LENGTHS = json.loads((Path(__file__).parent / "golden" / "lm1b_lengths.json").read_text())["histogram"]
WAYS = [{}, {"max_tokens": 640}, {"packing": True}, {"packing": True, "max_tokens": 320}]


def lm1b_widths(longest: int) -> np.ndarray:
    """Slots of LM1B's sentences cut at a length, [CLS] and [SEP] included."""
    return np.minimum(np.repeat(np.arange(len(LM1B_LENGTHS)), LM1B_LENGTHS), longest - 2) + 2


def dealt(widths: np.ndarray, seed: int = 0, **settings: object) -> list[np.ndarray]:
    return list(deal(widths, DataArgs("x", **settings), np.random.default_rng(seed)))


@pytest.fixture
def text(corpus: Path, tokenizer: BertTokenizerFast, tmp_path: Path) -> TokenizedText:
    return tokenize(training_source(str(corpus)), tokenizer, 32, str(tmp_path / "cache"))


@pytest.mark.parametrize("way", WAYS)
def test_every_sentence_is_in_exactly_one_batch_and_epochs_differ(way: dict) -> None:
    widths = np.random.default_rng(0).integers(1, 60, 3003)
    first, second = (dealt(widths, seed, batch_size=8, max_length=64, **way) for seed in (0, 1))
    for batches in (first, second):
        assert sorted(np.concatenate(batches).tolist()) == list(range(3003))
    assert {tuple(sorted(b)) for b in first} != {tuple(sorted(b)) for b in second}


def test_an_epoch_runs_through_all_lengths_in_no_order() -> None:
    widths = np.random.default_rng(0).integers(1, 60, 3003)
    for way in WAYS:
        means = [widths[batch].mean() for batch in dealt(widths, batch_size=8, max_length=64, **way)]
        assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.2


def test_a_budget_is_filled_whatever_the_batch_size() -> None:
    widths = lm1b_widths(64)
    for batch_size in (1, 64):
        settings = {"batch_size": batch_size, "max_length": 64, "max_tokens": 8192}
        assert np.mean([widths[batch].sum() for batch in dealt(widths, **settings)]) > 0.95 * 8192


def test_a_batch_holds_what_was_asked_for() -> None:
    widths = np.random.default_rng(0).integers(1, 60, 3003)
    settings = {"batch_size": 8, "max_length": 64}
    assert max(map(len, dealt(widths, **settings))) == 8
    slots = [len(batch) * widths[batch].max() for batch in dealt(widths, max_tokens=640, **settings)]
    assert max(slots) <= 640 < 2 * np.median(slots)
    for rows, way in ((8, {}), (5, {"max_tokens": 320})):
        packed = dealt(widths, packing=True, **way, **settings)
        assert [next_fit(widths[batch].tolist(), 64)[1] for batch in packed[:-1]] == [rows] * (len(packed) - 1)
        assert next_fit(widths[packed[-1]].tolist(), 64)[1] <= rows


@pytest.mark.parametrize("way", WAYS)
def test_a_mean_batch_is_what_an_epoch_deals(way: dict) -> None:
    widths = np.random.default_rng(0).integers(1, 60, 3003)
    settings = {"batch_size": 8, "max_length": 64, **way}
    assert mean_batch(widths, DataArgs("x", **settings)) == pytest.approx(
        3003 / len(dealt(widths, **settings)), rel=0.01
    )
    many = np.tile(widths, 2 * ENOUGH // 3003)  # of a large corpus, from a part of it
    assert mean_batch(many, DataArgs("x", **settings)) == pytest.approx(
        len(many) / len(dealt(many, **settings)), rel=0.01
    )


@pytest.mark.parametrize("batch_size", [16, 64, 128])
def test_at_least_95_percent_of_slots_hold_real_tokens_on_lm1b_lengths(batch_size: int) -> None:
    widths = lm1b_widths(128)
    slots = sum(len(batch) * widths[batch].max() for batch in dealt(widths, batch_size=batch_size))
    assert widths.sum() / slots >= 0.95


def test_a_budget_of_slots_is_used() -> None:
    widths = lm1b_widths(64)
    slots = np.array([len(b) * widths[b].max() for b in dealt(widths, max_length=64, max_tokens=2048)])
    assert slots.max() <= 2048 and np.median(slots) > 0.97 * 2048
    assert widths.sum() / slots.sum() >= 0.97


@pytest.mark.parametrize("rows", [8, 64])
def test_packed_rows_are_98_percent_full_on_lm1b_lengths(rows: int) -> None:
    widths = lm1b_widths(64)
    slots = sum(
        64 * next_fit(widths[batch].tolist(), 64)[1]
        for batch in dealt(widths, batch_size=rows, max_length=64, packing=True)
    )
    assert widths.sum() / slots >= 0.98


def test_packed_rows_overflow_nowhere_and_leave_no_row_that_another_could_take() -> None:
    for seed in range(20):
        widths = np.random.default_rng(seed).integers(1, 17, 40)
        rows = packed_rows(widths, 16)
        full = [int(widths[row].sum()) for row in rows]
        assert sorted(itertools.chain(*rows)) == list(range(40)) and max(full) <= 16
        assert sum(sorted(full)[:2]) > 16  # the emptiest two do not fit together
    assert packed_rows(np.array([9, 7, 6, 5, 3, 2]), 16) == [[0, 1], [2, 3, 4, 5]]


def test_buckets_cut_where_the_next_does_not_fit() -> None:
    assert [b.tolist() for b in length_buckets(np.array([3, 1, 2, 2]), 3)] == [[1, 2, 3], [0]]
    assert [b.tolist() for b in length_buckets(np.array([3, 1, 2, 2]), 3, 4)] == [[1, 2], [3], [0]]


@pytest.mark.parametrize("world_size", [1, 3])
def test_ranks_share_an_epoch_without_overlap(
    text: TokenizedText, tokenizer: BertTokenizerFast, world_size: int
) -> None:
    per_epoch = -(-len(text) // 7)
    seen = []
    for rank in range(world_size):
        stream = endless_batches(text, DataArgs("x", batch_size=7), tokenizer, seed=1, rank=rank, world_size=world_size)
        mine = list(itertools.islice(stream, per_epoch // world_size + 1))
        seen += [
            tuple(row[m].tolist())
            for epoch, b in mine
            if epoch == 0
            for row, m in zip(b.input_ids, b.target_mask, strict=True)
        ]
    assert len(seen) == len(set(seen)) == len(text)


def test_the_next_epoch_has_an_order_of_its_own_and_ranks_take_turns_across_epochs(
    text: TokenizedText, tokenizer: BertTokenizerFast
) -> None:
    args = DataArgs("x", batch_size=7)  # 35 batches an epoch, an odd number
    everything = list(itertools.islice(endless_batches(text, args, tokenizer, seed=1), 70))
    assert [epoch for epoch, _ in everything] == [0] * 35 + [1] * 35
    shared = [endless_batches(text, args, tokenizer, seed=1, rank=rank, world_size=2) for rank in (0, 1)]
    for i, (_, batch) in enumerate(everything):
        assert torch.equal(next(shared[i % 2])[1].input_ids, batch.input_ids)
    first, second = ([b.input_ids.tolist() for _, b in everything[part]] for part in (slice(35), slice(35, 70)))
    assert first != second


def test_the_order_depends_on_the_seed_alone(text: TokenizedText, tokenizer: BertTokenizerFast) -> None:
    def first(seed: int) -> torch.Tensor:
        return next(endless_batches(text, DataArgs("x", batch_size=16), tokenizer, seed=seed))[1].input_ids

    assert torch.equal(first(3), first(3))
    assert first(3).shape != first(4).shape or not torch.equal(first(3), first(4))


def test_sorted_batches_cover_the_chosen_sentences(text: TokenizedText, tokenizer: BertTokenizerFast) -> None:
    chosen = np.array([3, 1, 200, 77, 5])
    batches = list(sorted_batches(text, chosen, 2, tokenizer))
    assert sorted(np.concatenate([i for i, _ in batches]).tolist()) == sorted(chosen.tolist())
    widths = [batch.input_ids.shape[1] for _, batch in batches]
    assert widths == sorted(widths, reverse=True)
