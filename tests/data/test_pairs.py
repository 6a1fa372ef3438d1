"""pairs.py: the source is given, the window is noised, and token counts are those of the windows."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import RobertaTokenizerFast
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from checkpoint.model_parts import build_process
from data.corpus import training_source
from data.options import DataArgs, PairArgs
from data.pairs import Layout, PairFormat, load_pairs, source_ids, target_text, tokenize_pairs, window_of
from data.tokenizers import encode, train_wordpiece
from diffusion.masked.word_freq_released import ReleasedConditionalDiffusion, ReleasedWordFreqDiffusion
from diffusion.options import SampleArgs
from diffusion.process_options import WordFreqArgs
from tests.conftest import NOUNS, PAIRS, TableDenoiser, write_jsonl

PROMPT = '"{src}" is equal to "{trg}'
TEXTS = [text for pair in PAIRS for text in pair.values()]


@pytest.fixture(scope="module")
def wordpiece() -> PreTrainedTokenizerBase:
    return train_wordpiece([*TEXTS, '" is equal to "'] * 2, 300)


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerBase:
    """RoBERTa's ids: <s> 0, <pad> 1, </s> 2; a space belongs to the word after it."""
    trainer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer.train_from_iterator([*TEXTS, " Answer: Question: cat"], special_tokens=special)
    model = json.loads(trainer.to_str())["model"]
    return RobertaTokenizerFast(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> np.ndarray:
    return np.asarray(encode(tokenizer, [text])["input_ids"][0], dtype=np.int64)


# ---- rows ------------------------------------------------------------------------------------------------------------


def test_a_plain_row_holds_the_source_and_the_window(wordpiece) -> None:
    batch = Layout(PairFormat("plain", 6), wordpiece, 40).batch(
        [ids(wordpiece, "cat see")], [ids(wordpiece, "the dog.")]
    )
    shown = wordpiece.convert_ids_to_tokens(batch.input_ids[0].tolist())
    assert shown == ["[CLS]", "cat", "see", "[SEP]", "the", "dog", ".", "[SEP]", "[PAD]", "[PAD]"]
    assert batch.target_mask.int().tolist() == [[0] * 4 + [1] * 6]
    assert batch.attention_mask.all()


def test_a_prompted_row_holds_the_prompt_around_the_source(wordpiece) -> None:
    batch = Layout(PairFormat(PROMPT, 5), wordpiece, 40).batch([ids(wordpiece, "cat see")], [ids(wordpiece, "the dog")])
    shown = wordpiece.convert_ids_to_tokens(batch.input_ids[0].tolist())
    assert shown == ["[CLS]", '"', "cat", "see", '"', "is", "equal", "to", '"', "the", "dog", "[SEP]", "[PAD]", "[PAD]"]
    assert batch.target_mask.sum() == 5 and batch.target_mask[0, -5:].all()


def test_every_row_has_a_full_window_in_any_batch(wordpiece) -> None:
    sources = [ids(wordpiece, text) for text in ("cat", "cat see dog", "")]
    batch = Layout(PairFormat("plain", 4), wordpiece, 40).batch(
        sources, [ids(wordpiece, "the"), ids(wordpiece, "dog by"), ids(wordpiece, "")]
    )
    assert batch.target_mask.sum(1).tolist() == [4, 4, 4]
    assert batch.attention_mask.sum(1).tolist() == [3 + 4, 5 + 4, 2 + 4]
    assert (batch.attention_mask | ~batch.target_mask).all()
    assert (batch.input_ids[~batch.attention_mask] == wordpiece.pad_token_id).all()


def test_a_byte_level_row_has_the_special_ids_and_spaces_of_its_tokenizer(byte_level) -> None:
    layout = Layout(PairFormat(" Answer: {src} Question: {trg}", 6), byte_level, 60)
    source, target = ids(byte_level, layout.source_lead + "cat see"), ids(byte_level, layout.target_lead + "the dog.")
    row = layout.batch([source], [target]).input_ids[0].tolist()
    assert row[0] == 0 and row[-6:][target.size] == 2 and set(row[-6:][target.size + 1 :]) <= {1}
    assert byte_level.decode(row[1:-6]) == " Answer: cat see Question:"
    assert byte_level.decode(row[-6:], skip_special_tokens=True) == " the dog."
    assert target_text(byte_level, torch.tensor(row[-6:])) == "the dog."


def test_training_and_prediction_give_a_source_the_same_ids(byte_level, tmp_path) -> None:
    """A space before {trg} in the prompt belongs to the target: in a byte-level vocabulary it changes the token."""
    write_jsonl(tmp_path / "data" / "train.jsonl", [PAIRS[0], {"src": "", "trg": "the cat"}])
    layout = Layout(PairFormat(" Answer: {src} Question: {trg}", 20), byte_level, 60)
    source = training_source(str(tmp_path / "data"))
    text = tokenize_pairs(source, "", None, layout, byte_level, str(tmp_path / "cache"))
    prediction_ids = source_ids(layout, byte_level, [PAIRS[0]["src"], ""])
    assert (
        text.sources.sentence(0).tolist()
        == prediction_ids[0].tolist()
        == ids(byte_level, " " + PAIRS[0]["src"]).tolist()
    )
    assert prediction_ids[0].tolist() != ids(byte_level, PAIRS[0]["src"]).tolist()
    assert text.targets.sentence(0).tolist() == ids(byte_level, " " + PAIRS[0]["trg"]).tolist()
    assert len(text.sources.sentence(1)) == len(prediction_ids[1]) == 0
    part = source, "train", None
    longest = max(len(ids(byte_level, " " + trg)) for trg in (PAIRS[0]["trg"], "the cat"))
    assert window_of(part, " Answer: {src} Question: {trg}", byte_level, str(tmp_path / "cache")) == longest + 1
    longer = next(
        word for word in " ".join(TEXTS).split() if len(ids(byte_level, " " + word)) != len(ids(byte_level, word))
    )
    write_jsonl(tmp_path / "other" / "train.jsonl", [{"src": "x", "trg": longer}])
    part = training_source(str(tmp_path / "other")), "train", None
    window = window_of(part, "{src} - {trg}", byte_level, str(tmp_path / "cache"))
    assert window == len(ids(byte_level, " " + longer)) + 1


def test_a_long_source_loses_only_its_first_tokens(wordpiece) -> None:
    layout = Layout(PairFormat(PROMPT, 5), wordpiece, 16)
    text = ids(wordpiece, " ".join(NOUNS))
    batch = layout.batch([text], [ids(wordpiece, "the dog")])
    shown = wordpiece.convert_ids_to_tokens(batch.input_ids[0].tolist())
    kept = NOUNS[-layout.longest_source :]
    assert shown == ["[CLS]", '"', *kept, *['"', "is", "equal", "to", '"', "the", "dog", "[SEP]", "[PAD]", "[PAD]"]]
    assert len(shown) == 16


def test_a_target_beyond_the_window_is_cut_and_has_no_end_token(wordpiece) -> None:
    batch = Layout(PairFormat("plain", 3), wordpiece, 40).batch(
        [ids(wordpiece, "cat")], [ids(wordpiece, " ".join(NOUNS))]
    )
    assert wordpiece.convert_ids_to_tokens(batch.input_ids[0, -3:].tolist()) == NOUNS[:3]


@pytest.mark.parametrize(
    ("window", "text"),
    [
        ("the dog [SEP] [PAD] [PAD]", "the dog"),
        ("the dog [SEP] cat [SEP]", "the dog"),
        ("the [PAD] dog [SEP] [PAD]", "the dog"),
        ("the dog cat", "the dog cat"),
        ("[SEP] [PAD] [PAD]", ""),
        ("[PAD] [PAD]", ""),
    ],
)
def test_the_text_of_a_target_ends_at_its_first_sep(wordpiece, window: str, text: str) -> None:
    assert target_text(wordpiece, torch.tensor(wordpiece.convert_tokens_to_ids(window.split()))) == text


# ---- conditioning: 200 random batches --------------------------------------------------------------------------------


def random_batch(wordpiece, rng: np.random.Generator, layout: Layout):
    tokens = np.asarray(ids(wordpiece, " ".join([*NOUNS, "the", "by", "."])))
    count = rng.integers(1, 5)
    sides = [
        [rng.choice(tokens, rng.integers(0, longest)) for _ in range(count)] for longest in (12, layout.window + 2)
    ]
    return layout.batch(*sides)


@pytest.mark.parametrize("spindle", ["paper", "none"])
def test_the_source_never_changes_and_the_whole_window_is_drawn(wordpiece, spindle: str) -> None:
    rng, size = np.random.default_rng(0), len(wordpiece)
    layout = Layout(PairFormat("plain", 6), wordpiece, 18)
    counts = torch.arange(size)
    process = build_process(WordFreqArgs(num_steps=8, spindle=spindle), counts, wordpiece, size, of_pairs=True)
    denoiser = TableDenoiser(size)
    noised = 0
    for _trial in range(100):
        batch = random_batch(wordpiece, rng, layout)
        given = batch.input_ids[~batch.target_mask]
        t = torch.randint(1, 9, (len(batch.input_ids),))
        xt = process.corrupt(batch.input_ids, t, batch.target_mask)
        noised += int(xt.eq(wordpiece.mask_token_id).sum())
        assert torch.equal(xt[~batch.target_mask], given)
        revealed: list[torch.Tensor] = []

        def on_step(finished: torch.Tensor, xt: torch.Tensor, seen=revealed) -> None:
            seen.append(xt.clone())

        drawn = process.sample(denoiser, batch, SampleArgs(num_steps=4), on_step=on_step)
        for earlier, later in zip(revealed, revealed[1:], strict=False):  # revealed tokens stay
            kept = earlier.ne(wordpiece.mask_token_id)
            assert torch.equal(earlier[kept], later[kept])
        assert torch.equal(drawn[~batch.target_mask], given) and not drawn.eq(wordpiece.mask_token_id).any()
        forbidden = torch.tensor([wordpiece.cls_token_id, wordpiece.mask_token_id, wordpiece.unk_token_id])
        assert not torch.isin(drawn[batch.target_mask], forbidden).any()
    assert noised > 500


def test_a_target_window_may_hold_sep_and_pad_but_a_text_may_not(wordpiece) -> None:
    ends = [wordpiece.sep_token_id, wordpiece.pad_token_id]
    for of_pairs in (True, False):
        process = build_process(
            WordFreqArgs(num_steps=8), torch.ones(len(wordpiece)), wordpiece, len(wordpiece), of_pairs=of_pairs
        )
        assert bool(process.support[ends].isfinite().all()) == of_pairs
        assert not process.support[[wordpiece.mask_token_id, wordpiece.cls_token_id]].isfinite().any()


def test_pairs_have_a_released_process_of_their_own(wordpiece) -> None:
    args = WordFreqArgs(num_steps=8, spindle="released", posterior="released")
    for of_pairs, kind in ((True, ReleasedConditionalDiffusion), (False, ReleasedWordFreqDiffusion)):
        assert (
            type(build_process(args, torch.ones(len(wordpiece)), wordpiece, len(wordpiece), of_pairs=of_pairs)) is kind
        )


@pytest.mark.parametrize("spindle", ["paper", "none"])
@pytest.mark.slow
def test_padding_and_other_rows_do_not_change_bound_or_samples(wordpiece, spindle: str) -> None:
    """A row alone and beside a longer row has equal bounds and, for one random stream, equal samples."""
    size, layout = len(wordpiece), Layout(PairFormat("plain", 6), wordpiece, 40)
    process = build_process(
        WordFreqArgs(num_steps=8, spindle=spindle), torch.arange(size), wordpiece, size, of_pairs=True
    )
    denoiser, rng = TableDenoiser(size), np.random.default_rng(1)
    for trial in range(100):
        tokens = ids(wordpiece, " ".join(NOUNS))
        source, target = (rng.choice(tokens, rng.integers(0, n)) for n in (5, 7))
        alone = layout.batch([source], [target])
        beside = layout.batch([source, rng.choice(tokens, 9)], [target, target])
        width, both = alone.input_ids.shape[1], []
        for batch in (alone, beside):
            streams = [torch.Generator().manual_seed(trial + 1000 * row) for row in range(len(batch.input_ids))]
            bound = process.bound(denoiser, batch, 4, generator=streams).total[0]
            both.append((bound, process.sample(denoiser, batch, SampleArgs(num_steps=4), generator=streams)[0, :width]))
        torch.testing.assert_close(both[0][0], both[1][0])
        assert torch.equal(both[0][1], both[1][1])


def test_source_tokens_do_not_change_the_spindle(wordpiece) -> None:
    """alpha_bar, counts and bound concern the target window alone."""
    size, layout = len(wordpiece), Layout(PairFormat("plain", 6), wordpiece, 40)
    process = build_process(WordFreqArgs(num_steps=8), torch.arange(size), wordpiece, size, of_pairs=True)
    target = ids(wordpiece, "the dog is")
    short, long = (layout.batch([ids(wordpiece, text)], [target]) for text in ("cat", "bird man child"))
    t = torch.tensor([3])
    a, b = (process.alpha_bar(t, batch.input_ids, batch.target_mask)[batch.target_mask] for batch in (short, long))
    torch.testing.assert_close(a, b)
    assert a.unique().numel() > 1  # spindle noise depends on the token


# ---- tokenised pairs -------------------------------------------------------------------------------------------------


def load(folder: Path, wordpiece, tmp_path: Path, **settings):
    chosen = {"prompt": "plain", "target_window": 0, **settings}
    data = DataArgs(str(folder), batch_size=4, max_length=chosen.pop("max_length", 40), cache_dir=str(tmp_path))
    return load_pairs(data, PairArgs(**chosen), wordpiece)


def test_token_counts_are_those_of_the_windows(pairs_folder, wordpiece, tmp_path) -> None:
    train, _, form = load(pairs_folder, wordpiece, tmp_path)
    batch = train.batch(np.arange(len(train)), wordpiece)
    counted = torch.bincount(batch.input_ids[batch.target_mask], minlength=len(wordpiece))
    assert torch.equal(train.counts(len(wordpiece)), counted)
    assert counted[wordpiece.convert_tokens_to_ids("see")] == 0 < counted[wordpiece.convert_tokens_to_ids("seen")]
    assert counted[wordpiece.sep_token_id] == len(train) and counted[wordpiece.pad_token_id] > 0
    assert train.lengths.tolist() == batch.attention_mask.sum(1).tolist()


def test_word_counts_of_another_text_gain_the_special_tokens_of_the_windows(pairs_folder, wordpiece, tmp_path) -> None:
    train, _, _ = load(pairs_folder, wordpiece, tmp_path)
    own = train.counts(len(wordpiece))
    assert torch.equal(train.with_special_counts(own), own)
    ends = [wordpiece.sep_token_id, wordpiece.pad_token_id]
    without_ends = own.index_fill(0, torch.tensor(ends), 0)
    assert torch.equal(train.with_special_counts(3 * without_ends), 3 * own)


def test_the_default_window_holds_99_percent_of_the_targets(tmp_path, wordpiece) -> None:
    records = [{"src": "cat", "trg": " ".join(["dog"] * n)} for n in range(1, 301)]
    folder = write_jsonl(tmp_path / "data" / "train.jsonl", records).parent
    write_jsonl(folder / "valid.jsonl", records[:3])
    train, _, form = load(folder, wordpiece, tmp_path / "cache", max_length=400)
    uncut = sum(n + 1 <= form.target_window for n in range(1, 301))
    assert uncut >= 0.99 * 300 and sum(n + 1 <= form.target_window - 1 for n in range(1, 301)) < 0.99 * 300
    assert train.targets.num_truncated == sum(n > form.target_window for n in range(1, 301))
    assert f"{train.targets.num_truncated} targets cut to {form.target_window}" in train.cuts


def test_cut_sources_are_counted(pairs_folder, wordpiece, tmp_path) -> None:
    train, _, form = load(pairs_folder, wordpiece, tmp_path, max_length=2 + 2 + 12, target_window=12)
    assert train.cuts == f"{len(train)} sources cut to their last 2 tokens"
    assert load(pairs_folder, wordpiece, tmp_path)[0].cuts == ""


def test_training_and_held_out_pairs_share_no_source(tmp_path, wordpiece) -> None:
    records = [{"src": f"{a} see", "trg": f"the {b}"} for a in NOUNS for b in NOUNS]
    folder = write_jsonl(tmp_path / "data" / "train.jsonl", records).parent
    data = DataArgs(str(folder), batch_size=4, valid_fraction=0.3, cache_dir=str(tmp_path / "cache"))
    train, valid, _ = load_pairs(data, PairArgs(), wordpiece)
    sides = [{tuple(text.sources.sentence(i)) for i in range(len(text))} for text in (train, valid)]
    assert not sides[0] & sides[1] and len(train) + len(valid) == 100 and len(valid) > 0


def test_an_empty_source_keeps_its_position(tmp_path, wordpiece) -> None:
    records = [{"src": text, "trg": f"the {text or 'man'}"} for text in ("cat", "", "dog", "", "bird", "fish", "tree")]
    write_jsonl(tmp_path / "data" / "train.jsonl", records)
    source = training_source(str(tmp_path / "data"))
    layout = Layout(PairFormat("plain", 5), wordpiece, 20)
    text = tokenize_pairs(source, "", None, layout, wordpiece, str(tmp_path / "cache"))
    shown = [wordpiece.decode(text.targets.sentence(i)) for i in range(len(text))]
    assert shown == [record["trg"] for record in records]
    assert [len(text.sources.sentence(i)) for i in range(len(text))] == [1, 0, 1, 0, 1, 1, 1]
