"""batching.py: every sentence once per epoch, in any kind of batch, with little padding."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from transformers import BertTokenizerFast

from data.batching import (
    ENOUGH,
    EpochBatches,
    Part,
    batch_indices,
    length_buckets,
    mean_batch,
    packed_rows,
    sorted_batches,
)
from data.corpus import training_source
from data.options import DataArgs
from data.tokenized_text import TokenizedText, tokenize
from models.packing import next_fit
from tests.conftest import SENTENCES

LM1B_LENGTHS = json.loads((Path(__file__).parents[1] / "golden" / "lm1b_lengths.json").read_text())["histogram"]
WAYS = [{}, {"max_tokens": 640}, {"packing": True}, {"packing": True, "max_tokens": 320}]


def simulated(name: str, seed: int, number: int = 64 * 128) -> np.ndarray:
    """Lengths simulated from the released code, cut at 64; unpacked they fill 64.5 % and 71.8 % of the slots."""
    rng = np.random.default_rng(seed)
    if name == "uniform 8 to 96":
        return np.minimum(rng.integers(8, 97, number), 64)
    return np.clip(np.exp(math.log(40) + 0.6 * rng.standard_normal(number)).round().astype(int), 3, 64)


def lm1b_widths(longest: int) -> np.ndarray:
    """Slots of LM1B's sentences cut at a length, [CLS] and [SEP] included."""
    return np.minimum(np.repeat(np.arange(len(LM1B_LENGTHS)), LM1B_LENGTHS), longest - 2) + 2


def batches_of(widths: np.ndarray, seed: int = 0, **settings: object) -> list[np.ndarray]:
    return list(batch_indices(widths, DataArgs("x", **settings), np.random.default_rng(seed)))


@pytest.fixture
def text(corpus: Path, tokenizer: BertTokenizerFast, tmp_path: Path) -> TokenizedText:
    return tokenize(training_source(str(corpus)), tokenizer, 32, str(tmp_path / "cache"))


@pytest.mark.parametrize("way", WAYS)
def test_every_sentence_is_in_exactly_one_batch_and_epochs_differ(way: dict) -> None:
    widths = np.random.default_rng(0).integers(1, 60, 3003)
    first, second = (batches_of(widths, seed, batch_size=8, max_length=64, **way) for seed in (0, 1))
    for batches in (first, second):
        assert sorted(np.concatenate(batches).tolist()) == list(range(3003))
    assert {tuple(sorted(b)) for b in first} != {tuple(sorted(b)) for b in second}


def test_the_order_of_batches_is_uncorrelated_with_length() -> None:
    widths = np.random.default_rng(0).integers(1, 60, 3003)
    for way in WAYS:
        means = [widths[batch].mean() for batch in batches_of(widths, batch_size=8, max_length=64, **way)]
        assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.2


def test_a_token_budget_is_filled_at_any_batch_size() -> None:
    widths = lm1b_widths(64)
    for batch_size in (1, 64):
        settings = {"batch_size": batch_size, "max_length": 64, "max_tokens": 8192}
        assert np.mean([widths[batch].sum() for batch in batches_of(widths, **settings)]) > 0.95 * 8192


def test_a_batch_has_the_requested_size() -> None:
    widths = np.random.default_rng(0).integers(1, 60, 3003)
    settings = {"batch_size": 8, "max_length": 64}
    assert max(map(len, batches_of(widths, **settings))) == 8
    slots = [len(batch) * widths[batch].max() for batch in batches_of(widths, max_tokens=640, **settings)]
    assert max(slots) <= 640 < 2 * np.median(slots)
    for rows, way in ((8, {}), (5, {"max_tokens": 320})):
        packed = batches_of(widths, packing=True, **way, **settings)
        assert [next_fit(widths[batch].tolist(), 64)[1] for batch in packed[:-1]] == [rows] * (len(packed) - 1)
        assert next_fit(widths[packed[-1]].tolist(), 64)[1] <= rows


@pytest.mark.parametrize("way", WAYS)
def test_the_mean_batch_size_is_that_of_an_epoch(way: dict) -> None:
    widths = np.random.default_rng(0).integers(1, 60, 3003)
    settings = {"batch_size": 8, "max_length": 64, **way}
    assert mean_batch(widths, DataArgs("x", **settings)) == pytest.approx(
        3003 / len(batches_of(widths, **settings)), rel=0.01
    )
    many = np.tile(widths, 2 * ENOUGH // 3003)  # estimated from a part of a large corpus
    assert mean_batch(many, DataArgs("x", **settings)) == pytest.approx(
        len(many) / len(batches_of(many, **settings)), rel=0.01
    )


@pytest.mark.parametrize("batch_size", [16, 64, 128])
def test_at_least_95_percent_of_slots_hold_real_tokens_on_lm1b_lengths(batch_size: int) -> None:
    widths = lm1b_widths(128)
    slots = sum(len(batch) * widths[batch].max() for batch in batches_of(widths, batch_size=batch_size))
    assert widths.sum() / slots >= 0.95


def test_a_budget_of_slots_is_filled() -> None:
    widths = lm1b_widths(64)
    slots = np.array([len(b) * widths[b].max() for b in batches_of(widths, max_length=64, max_tokens=2048)])
    assert slots.max() <= 2048 and np.median(slots) > 0.97 * 2048
    assert widths.sum() / slots.sum() >= 0.97


@pytest.mark.parametrize("rows", [8, 64])
def test_packed_rows_are_98_percent_full_on_lm1b_lengths(rows: int) -> None:
    widths = lm1b_widths(64)
    slots = sum(
        64 * next_fit(widths[batch].tolist(), 64)[1]
        for batch in batches_of(widths, batch_size=rows, max_length=64, packing=True)
    )
    assert widths.sum() / slots >= 0.98


def test_packed_rows_never_overflow_and_no_two_of_them_fit_into_one() -> None:
    for seed in range(20):
        widths = np.random.default_rng(seed).integers(1, 17, 40)
        rows = packed_rows(widths, 16)
        full = [int(widths[row].sum()) for row in rows]
        assert sorted(itertools.chain(*rows)) == list(range(40)) and max(full) <= 16
        assert sum(sorted(full)[:2]) > 16  # the emptiest two do not fit together
    assert packed_rows(np.array([9, 7, 6, 5, 3, 2]), 16) == [[0, 1], [2, 3, 4, 5]]


def test_a_bucket_ends_where_the_next_sentence_does_not_fit() -> None:
    assert [b.tolist() for b in length_buckets(np.array([3, 1, 2, 2]), 3)] == [[1, 2, 3], [0]]
    assert [b.tolist() for b in length_buckets(np.array([3, 1, 2, 2]), 3, 4)] == [[1, 2], [3], [0]]


def take_batches(text: TokenizedText, tokenizer: BertTokenizerFast, steps: int, **settings: object) -> list[Part]:
    """Batches of one process in a number of steps."""
    settings = {"batch_size": 7, "seed": 1, **settings}
    args = DataArgs("x", batch_size=settings.pop("batch_size"))
    stream = EpochBatches(text, args, tokenizer, **settings)
    return [part for _ in range(steps) for part in stream.take()]


def sentences(parts: list[Part]) -> list[tuple[int, ...]]:
    """Text of all batches."""
    rows = [(row, m) for part in parts for row, m in zip(part.batch.input_ids, part.batch.target_mask, strict=True)]
    return [tuple(row[m].tolist()) for row, m in rows]


def test_an_epoch_takes_every_sentence_once_for_any_number_of_ranks(
    text: TokenizedText, tokenizer: BertTokenizerFast
) -> None:
    """240 sentences make 35 batches of 7, or seven steps of five batches."""
    whole = take_batches(text, tokenizer, 7, parts=5)
    assert sorted(sentences(whole)) == sorted(set(sentences(whole))) and len(sentences(whole)) == len(text)
    assert [part.number for part in whole] == [0, 1, 2, 3, 4] * 7 and {part.epoch for part in whole} == {0}
    shared = [take_batches(text, tokenizer, 7, parts=5, rank=rank, world_size=5) for rank in range(5)]
    together = [part for step in zip(*shared, strict=True) for part in step]
    assert sentences(together) == sentences(whole) and [part.number for part in together] == [0, 1, 2, 3, 4] * 7


def test_the_next_epoch_has_its_own_order(text: TokenizedText, tokenizer: BertTokenizerFast) -> None:
    both = take_batches(text, tokenizer, 70)
    assert [part.epoch for part in both] == [0] * 35 + [1] * 35
    first, second = sentences(both[:35]), sentences(both[35:])
    assert first != second and sorted(first) == sorted(second)


@pytest.mark.parametrize("done", [0, 1, 11, 12, 23, 24])
def test_a_stream_resumes_at_a_saved_position(text: TokenizedText, tokenizer: BertTokenizerFast, done: int) -> None:
    """Steps of three batches, 35 batches per epoch, so that steps cross its end; the position is JSON."""
    args = DataArgs("x", batch_size=7)
    stream = EpochBatches(text, args, tokenizer, seed=1, parts=3)
    for _ in range(done):
        stream.take()
    position = json.loads(json.dumps(stream.position()))
    rest = take_batches(text, tokenizer, 20, parts=3, position=tuple(position))
    assert sentences(rest) == sentences([part for _ in range(20) for part in stream.take()])


def test_batches_report_the_lines_of_their_sentences(text: TokenizedText, tokenizer: BertTokenizerFast) -> None:
    for part in take_batches(text, tokenizer, 3):
        lines = [int(location.rpartition(":")[2]) for location in part.locations()]
        written = [tuple(tokenizer(SENTENCES[line - 1], add_special_tokens=False).input_ids) for line in lines]
        assert written == sentences([part]) and part.locations()[0].startswith(str(text.source.files[0]))


def test_the_order_depends_on_the_seed_alone(text: TokenizedText, tokenizer: BertTokenizerFast) -> None:
    first, again, other = (sentences(take_batches(text, tokenizer, 1, batch_size=16, seed=seed)) for seed in (3, 3, 4))
    assert first == again != other


def test_sorted_batches_cover_the_chosen_sentences(text: TokenizedText, tokenizer: BertTokenizerFast) -> None:
    chosen = np.array([3, 1, 200, 77, 5])
    batches = list(sorted_batches(text, chosen, 2, tokenizer))
    assert sorted(np.concatenate([i for i, _ in batches]).tolist()) == sorted(chosen.tolist())
    widths = [batch.input_ids.shape[1] for _, batch in batches]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize(
    ("widths", "rows"),
    [
        ([5, 3, 2, 4, 1], [[0], [3, 4], [1, 2]]),
        ([64, 30, 34, 10, 54, 20, 20, 24], [[0], [4, 3], [2, 1], [7, 5, 6]]),
        ([3, 3, 3, 6], [[3], [0, 1], [2]]),
        ([2, 2, 2, 2], [[0], [1], [2], [3]]),
    ],
)
def test_packed_rows_are_the_recorded_ones_of_first_fit_decreasing(widths: list[int], rows: list[list[int]]) -> None:
    assert packed_rows(np.array(widths), max(widths)) == rows


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("name", "unpacked"), [("lognormal of median 40", 0.645), ("uniform 8 to 96", 0.718)])
def test_packed_rows_of_simulated_lengths_are_98_percent_full(name: str, unpacked: float, seed: int) -> None:
    widths = simulated(name, seed)
    assert widths.sum() / (64 * len(widths)) == pytest.approx(unpacked, abs=0.006)
    slots = sum(
        64 * next_fit(widths[batch].tolist(), 64)[1]
        for batch in batches_of(widths, batch_size=128, max_length=64, packing=True)
    )
    assert widths.sum() / slots >= 0.98  # including the last, incomplete batch
