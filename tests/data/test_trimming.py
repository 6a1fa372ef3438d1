"""trimming.py: a vocabulary cut down to a text reads that text as before, and any other text without new [UNK]."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast, RobertaConfig, RobertaForMaskedLM
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from checkpoint.folder import load_checkpoint
from data.corpus import training_source
from data.plain_text import encode
from data.tokenizers import load_tokenizer, vocabulary_size
from data.trimming import kept_ids, restricted, trim_tokenizer, used_ids
from models.networks import keep_rows, load_network
from tests.conftest import SENTENCES, errors_of
from tests.test_main import CPU, train
from utils.errors import UserError

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["the", "cat", "sees", "house", "##s", "##ing", "see", "dog", "ho", "##use", "walk", "##er", "!"]
ENTRIES = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS), *WORDS]


@pytest.fixture
def whole() -> PreTrainedTokenizerBase:
    """Return a tokenizer with more entries than the text below has."""
    return BertTokenizerFast(vocab={entry: i for i, entry in enumerate(ENTRIES)})


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("the cat sees\nthe house\n")
    return tmp_path / "text.txt"


def trimmed_to(whole: PreTrainedTokenizerBase, text: Path, tmp_path: Path) -> PreTrainedTokenizerBase:
    return trim_tokenizer(whole, training_source(str(text)), str(tmp_path / "cache"))


def test_the_pieces_of_the_text_special_tokens_and_characters_are_kept(
    whole: PreTrainedTokenizerBase, text: Path, tmp_path: Path
) -> None:
    trimmed = trimmed_to(whole, text, tmp_path)
    kept = {"the", "cat", "sees", "house", "!", *LETTERS, *(f"##{c}" for c in LETTERS)}
    assert set(trimmed.get_vocab()) == kept | {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    assert sorted(trimmed.get_vocab().values()) == list(range(vocabulary_size(trimmed)))
    rows = kept_ids(trimmed, whole)
    assert rows == sorted(rows) and [whole.convert_ids_to_tokens(row) for row in rows[:5]] == ENTRIES[:1] + ENTRIES[2:6]


def test_the_text_is_cut_as_before(whole: PreTrainedTokenizerBase, text: Path, tmp_path: Path) -> None:
    trimmed, lines = trimmed_to(whole, text, tmp_path), text.read_text().splitlines()
    rows = kept_ids(trimmed, whole)
    before, after = (encode(tokenizer, lines)["input_ids"] for tokenizer in (whole, trimmed))
    assert [[rows[i] for i in row] for row in after] == before


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="catsehougdwlkrn", min_size=1, max_size=9), min_size=1, max_size=6))
def test_other_words_are_cut_smaller_but_are_never_unknown(words: list[str]) -> None:
    whole = BertTokenizerFast(vocab={entry: i for i, entry in enumerate(ENTRIES)})
    trimmed = restricted(whole, {whole.get_vocab()[word] for word in ("the", "cat", "house")})
    (before,), (after,) = (encode(tokenizer, [" ".join(words)])["input_ids"] for tokenizer in (whole, trimmed))
    assert trimmed.unk_token_id not in after and len(after) >= len(before)
    assert trimmed.decode(after) == whole.decode(before)


def test_an_unknown_word_may_become_known_where_the_vocabulary_lacks_a_character(tmp_path: Path) -> None:
    """The unused piece `ab` blocked the word, since `##c` is missing; `a ##bc` does not. Other words stay the same."""
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "##a", "##b", "the", "ab", "##bc"]
    whole = BertTokenizerFast(vocab={entry: i for i, entry in enumerate(entries)})
    (tmp_path / "text.txt").write_text("the abc\na b abbc\n")
    trimmed = trimmed_to(whole, tmp_path / "text.txt", tmp_path)
    pieces = [trimmed.tokenize(line) for line in ("the abc", "a b abbc")]
    assert [whole.tokenize(line) for line in ("the abc", "a b abbc")] == [["the", "[UNK]"], ["a", "b", "ab", "##bc"]]
    assert pieces == [["the", "[UNK]"], ["a", "b", "ab", "##bc"]]  # `ab` occurs, and is kept
    (tmp_path / "text.txt").write_text("the abc\na ##bc bbc\n")
    trimmed = trim_tokenizer(whole, training_source(str(tmp_path / "text.txt")), str(tmp_path / "other"))
    assert trimmed.tokenize("the abc") == ["the", "a", "##bc"]


def test_special_tokens_keep_their_roles_also_after_saving(
    whole: PreTrainedTokenizerBase, text: Path, tmp_path: Path
) -> None:
    trimmed = load_tokenizer(str(Path(trimmed_to(whole, text, tmp_path).name_or_path)))
    for name in ("cls_token", "sep_token", "mask_token", "pad_token", "unk_token"):
        assert getattr(trimmed, name) == getattr(whole, name)
        assert trimmed.get_vocab()[getattr(trimmed, name)] == getattr(trimmed, f"{name}_id")
    assert trimmed.decode(trimmed("the cat")["input_ids"]) == "[CLS] the cat [SEP]"


def test_the_network_predicts_the_kept_rows_as_before(
    whole: PreTrainedTokenizerBase, text: Path, tmp_path: Path
) -> None:
    trimmed = trimmed_to(whole, text, tmp_path)
    rows = kept_ids(trimmed, whole)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    network = BertForMaskedLM(BertConfig(vocab_size=len(ENTRIES), **small)).eval()
    network.cls.predictions.bias.data.normal_()
    xt = torch.tensor([[3, 9, 5, 4]])
    before = network(xt).logits[..., rows]
    keep_rows(network, rows, trimmed.pad_token_id)
    assert torch.allclose(network(torch.tensor([[rows.index(i) for i in xt[0].tolist()]])).logits, before, atol=1e-6)
    assert network.config.vocab_size == len(rows)
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight


def test_a_trimmed_run_resumes_and_samples_with_its_own_vocabulary(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The tokenizer knows more than the text; the weights of a resumed run are those of an undisturbed one."""
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **small)).save_pretrained(tmp_path / "network")
    tokenizer.save_pretrained(tmp_path / "network")
    corpus.write_text("\n".join(SENTENCES[:80]) + "\n")  # of two subjects only
    flags = ["--from_scratch", "false", "--config_overrides", "", "--model_name_or_path", tmp_path / "network"]
    flags += ["--tokenizer", "", "--vocab_size", 0, "--trim_vocabulary", "true", "--max_length", 32, "--batch_size", 8]
    weights = []
    for name, lengths in (("whole", [4]), ("halves", [2, 4])):
        for steps in lengths:
            resume = ["--resume", "true"] if steps != lengths[0] else []
            given = [*flags, *resume, "--lr_schedule", "constant", "--warmup_steps", 1, "--eval_steps", 100]
            code, folder = train(monkeypatch, corpus, tmp_path, *given, "--max_steps", steps, name=name)
            assert code == 0
        weights.append((folder / "checkpoint-last" / "model.safetensors").read_bytes())
    model = load_checkpoint(str(folder), CPU)
    assert weights[0] == weights[1] and model.denoiser.vocab_size == len(model.tokenizer) < len(tokenizer)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tokenizer", "wordpiece"], "trim_vocabulary=true cannot be combined with tokenizer=wordpiece"),
        (["--tokenizer", "text8", "--vocab_size", 0], "trim_vocabulary=true needs a WordPiece tokenizer"),
    ],
)
def test_a_vocabulary_that_cannot_be_trimmed_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys, corpus: Path, tmp_path: Path, flags: list, message: str
) -> None:
    code, _ = train(monkeypatch, corpus, tmp_path, "--trim_vocabulary", "true", *flags)
    (line,) = errors_of(capsys.readouterr().err)
    assert code == 2 and message in line


def test_used_ids_are_those_of_both_sides_of_pairs(tokenizer: PreTrainedTokenizerBase, pairs_folder: Path) -> None:
    used = used_ids(tokenizer, training_source(str(pairs_folder)))
    sides = encode(tokenizer, ["cat see dog", "the dog is seen by the cat."])["input_ids"]
    assert {i for row in sides for i in row} <= used | {tokenizer.unk_token_id}
    with pytest.raises(UserError):
        trim_tokenizer(load_tokenizer("text8"), training_source(str(pairs_folder)), "unused")


def test_sentences_that_are_held_out_and_word_tokenised_spacing_have_no_part_in_it(tmp_path: Path) -> None:
    whole = BertTokenizerFast(vocab={entry: i for i, entry in enumerate([*ENTRIES, "don", "##n", "n"])})
    (tmp_path / "text.txt").write_text("the cat\nhouse\nwalk the do n't\n")
    source = training_source(str(tmp_path / "text.txt"))
    kept = used_ids(whole, source, lambda sentence: sentence != "house")
    assert whole.get_vocab()["house"] not in kept and whole.get_vocab()["cat"] in kept
    assert whole.get_vocab()["don"] not in kept and whole.get_vocab()["don"] in used_ids(whole, source, None, "ptb")


def test_a_network_whose_head_has_biases_of_its_own_keeps_them_apart(
    whole: PreTrainedTokenizerBase, text: Path, tmp_path: Path
) -> None:
    trimmed = trimmed_to(whole, text, tmp_path)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    network = BertForMaskedLM(BertConfig(vocab_size=len(ENTRIES), tie_word_embeddings=False, **small)).eval()
    network.get_output_embeddings().bias.data.normal_()
    rows, xt = kept_ids(trimmed, whole), torch.tensor([[3, 9, 5, 4]])
    before = network(xt).logits[..., rows]
    keep_rows(network, rows, trimmed.pad_token_id)
    network.save_pretrained(tmp_path / "network")
    again = load_network(str(tmp_path / "network"), whole=True).eval()
    for each in (network, again):
        assert torch.allclose(each(torch.tensor([[rows.index(i) for i in xt[0].tolist()]])).logits, before, atol=1e-5)


def test_positions_that_are_counted_from_the_id_of_pad_are_refused() -> None:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    network = RobertaForMaskedLM(RobertaConfig(vocab_size=20, pad_token_id=5, **small))
    with pytest.raises(UserError, match="does not support RobertaForMaskedLM"):
        keep_rows(network, [0, 1, 5, 7], 2)


def test_a_changed_tokenizer_is_one_line(whole: PreTrainedTokenizerBase, text: Path, tmp_path: Path) -> None:
    other = BertTokenizerFast(vocab={entry: i for i, entry in enumerate(ENTRIES) if entry != "cat"})
    with pytest.raises(UserError, match="the tokenizer has changed since the run began, it lacks 'cat'"):
        kept_ids(trimmed_to(whole, text, tmp_path), other)


def test_a_fresh_network_of_a_preset_has_the_trimmed_size(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer.save_pretrained(tmp_path / "tok")
    corpus.write_text("\n".join(SENTENCES[:80]) + "\n")
    flags = ["--tokenizer", tmp_path / "tok", "--vocab_size", 0, "--trim_vocabulary", "true"]
    code, folder = train(monkeypatch, corpus, tmp_path, *flags)
    model = load_checkpoint(str(folder), CPU)
    assert code == 0 and model.denoiser.vocab_size == len(model.tokenizer) < len(tokenizer)
