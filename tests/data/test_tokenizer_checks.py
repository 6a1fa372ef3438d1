"""tokenizer_checks.py: a tokenizer that would use up the memory, or fail on text, is refused in one line."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sentencepiece import sentencepiece_model_pb2 as proto
from tokenizers import Regex, pre_tokenizers
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

import word_freq
from data.sentencepiece import load_sentencepiece, train_sentencepiece
from data.tokenizer_checks import check_steps, longest_replacement
from data.tokenizers import encode, load_tokenizer, text_of
from tests.conftest import SENTENCES, call
from utils.errors import UserError

DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
EVERY_LETTER = {"type": "Replace", "pattern": {"Regex": "."}, "content": "aa"}
EMPTY_MATCHES = {"type": "Replace", "pattern": {"Regex": "x*"}, "content": "aa"}
EXPLODING = {"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated", "invert": False}
LARGE = {"type": "Split", "pattern": {"Regex": "((a{1000}){1000}){1000}"}, "behavior": "Isolated", "invert": False}
TEXT_THRICE = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 3,
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {},
}


def sequence(kind: str, *steps: dict) -> dict:
    return {"type": "Sequence", kind: list(steps)}


def nested(depth: int) -> dict:
    step = {"type": "Lowercase"}
    for _ in range(depth):
        step = {"type": "Sequence", "normalizers": [step]}
    return step


PARTS: dict[str, tuple[str, object, str]] = {
    "doubling normalizers": ("normalizer", sequence("normalizers", *[DOUBLE] * 40), "characters of one"),
    "doubling decoders": ("decoder", sequence("decoders", *[DOUBLE] * 40), "characters of one"),
    "every letter": ("normalizer", sequence("normalizers", *[EVERY_LETTER] * 12), "characters of one"),
    "between letters": ("normalizer", sequence("normalizers", *[EMPTY_MATCHES] * 9), "characters of one"),
    "a long content": ("normalizer", {**DOUBLE, "content": "a" * 10**6}, "inserts 1,000,000 characters"),
    "prepended": ("normalizer", sequence("normalizers", *[{"type": "Prepend", "prepend": "a" * 99}] * 9), "of one"),
    "many steps": ("normalizer", sequence("normalizers", *[{"type": "NFC"}] * 1000), "1,000 steps|1,001 steps"),
    "steps in steps": ("normalizer", nested(200), "nested steps|steps, more than"),
    "a text thrice": ("post_processor", TEXT_THRICE, "characters of one"),
    "a regex that explodes": ("pre_tokenizer", EXPLODING, "damaged, it fails"),
    "a regex too large": ("pre_tokenizer", LARGE, "regular expression of"),
    "a damaged charsmap": ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAEAAHRlc3Q="}, "."),
    "a charsmap of noise": ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "CAAAAP////8AAAAAYQA="}, "."),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "tokenizer"
    tokenizer.save_pretrained(folder)
    return folder


def changed(saved: Path, folder: Path, file: str, change: Callable[[dict], object]) -> Path:
    folder.mkdir()
    for path in saved.iterdir():
        content = json.loads(path.read_text())
        if path.name == file:
            change(content)
        (folder / path.name).write_text(json.dumps(content))
    return folder


def refusal(folder: Path, capfd: pytest.CaptureFixture) -> str:
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        tokenizer = load_tokenizer(str(folder))
        encode(tokenizer, [*SENTENCES, "aaaa", "the a" * 100, "ﬁ ü"])
        text_of(tokenizer, list(range(100)))
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000 and str(folder) in message and time.monotonic() - began < 5
    assert "panicked" not in capfd.readouterr().err
    return message


@pytest.mark.parametrize("case", PARTS)
def test_steps_out_of_bounds_are_refused(case: str, saved: Path, tmp_path: Path, capfd) -> None:
    part, content, message = PARTS[case]
    folder = changed(saved, tmp_path / "x", "tokenizer.json", lambda whole: whole.update({part: content}))
    with pytest.raises(UserError, match=message):
        raise UserError(refusal(folder, capfd))


def set_model(**changes: object) -> Callable[[dict], None]:
    return lambda whole: whole["model"].update(changes)


CHANGES: dict[str, tuple[str, Callable[[dict], object], str]] = {
    "a long entry": ("tokenizer.json", lambda w: w["model"]["vocab"].update({"a" * 5000: 9999}), "5,000 characters"),
    "a long added token": ("tokenizer.json", lambda w: w["added_tokens"][0].update(content="a" * 5000), "5,000 char"),
    "a large id": ("tokenizer.json", lambda w: w["model"]["vocab"].update(zzz=4_000_000_000), "ids must lie below"),
    "long words": ("tokenizer.json", set_model(max_input_chars_per_word=10**9), "must lie in 0..1000"),
    "a vocabulary of another type": ("tokenizer.json", set_model(vocab=3), "."),
    "half a pair": ("tokenizer_config.json", lambda w: w.update(mask_token="\ud800"), "half a surrogate pair"),
    "half a pair in the model": ("tokenizer.json", lambda w: w["model"]["vocab"].update({"\udc00": 9}), "half a surr"),
    "no unknown": ("tokenizer.json", set_model(unk_token="[NONE]"), "."),
    "a mask of another type": ("tokenizer_config.json", lambda w: w.update(mask_token=5), "."),
    "a mask that is none": ("tokenizer_config.json", lambda w: w.update(mask_token=None), "no mask token"),
    "a mask that is unknown": ("tokenizer_config.json", lambda w: w.update(mask_token="[SEP]"), "also its pad, cls"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_files_out_of_bounds_are_refused(case: str, saved: Path, tmp_path: Path, capfd) -> None:
    file, change, message = CHANGES[case]
    folder = changed(saved, tmp_path / "x", file, change)
    with pytest.raises(UserError, match=message):
        raise UserError(refusal(folder, capfd))


@pytest.mark.parametrize("longest", ["512", float("nan"), -1, 0, None, [], True, 1e400])
def test_an_invalid_maximum_length_is_ignored(longest: object, saved: Path, tmp_path: Path) -> None:
    folder = changed(saved, tmp_path / "x", "tokenizer_config.json", lambda w: w.update(model_max_length=longest))
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.model_max_length > 512 and encode(tokenizer, ["the cat"])["input_ids"]


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000, '{"model": {"vocab": {"a": 1'])
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_invalid_json_is_refused(file: str, content: str, saved: Path, tmp_path: Path, capfd) -> None:
    folder = changed(saved, tmp_path / "x", "", dict)
    (folder / file).write_text(content)
    assert file in refusal(folder, capfd)


def test_a_script_refuses_a_damaged_tokenizer_in_one_line(
    monkeypatch, capfd, saved: Path, corpus: Path, trained: Path, tmp_path: Path
) -> None:
    for case in ("doubling normalizers", "a damaged charsmap"):
        part, content, _ = PARTS[case]
        folder = changed(saved, tmp_path / case, "tokenizer.json", lambda w, p=part, c=content: w.update({p: c}))
        flags = ["--train_data", corpus, "--tokenizer", folder, "--output", tmp_path / "f.json", "--workers", 1]
        assert call(word_freq.main, monkeypatch, *flags) == 2
        stderr = capfd.readouterr().err
        assert stderr.startswith("script.py: error: ") and stderr.count("\n") == 1


def test_a_panic_while_encoding_is_an_input_error(saved: Path, monkeypatch) -> None:
    class PanicException(BaseException):
        """Fake of the library's exception, which cannot be constructed."""

    def panic(*_: object, **__: object) -> None:
        raise PanicException("called `Result::unwrap()` on an `Err` value\nmore")

    tokenizer = load_tokenizer(str(saved))
    monkeypatch.setattr(type(tokenizer), "__call__", panic)
    monkeypatch.setattr(type(tokenizer), "decode", panic)
    for fails in (lambda: encode(tokenizer, ["a"]), lambda: text_of(tokenizer, [5])):
        with pytest.raises(UserError, match="damaged, it fails .*unwrap"):
            fails()
    monkeypatch.undo()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+b"), "isolated")
    with pytest.raises(UserError, match="damaged, it fails .*retry-limit"):
        encode(tokenizer, ["a" * 300])


def test_pieces_out_of_bounds_are_refused(tmp_path: Path) -> None:
    model = proto.ModelProto()
    model.ParseFromString(train_sentencepiece(SENTENCES, 60))
    file, table = tmp_path / "x.model", model.normalizer_spec.precompiled_charsmap
    assert longest_replacement(table) == 18 and longest_replacement(b"") == longest_replacement(b"ab") == 1
    model.normalizer_spec.precompiled_charsmap = table + b"a" * 1000 + b"\0"
    file.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="x.model: it replaces one character by up to 1,000"):
        load_sentencepiece(file)
    model.normalizer_spec.precompiled_charsmap = table
    model.pieces.add(piece="a" * 1_000_000, score=-9.0, type=1)
    file.write_bytes(model.SerializeToString())
    began = time.monotonic()
    with pytest.raises(UserError, match="an entry of 1,000,000 characters, more than 1000"):
        load_tokenizer(str(file))
    assert time.monotonic() - began < 5


def test_lower_casing_with_a_cased_vocabulary_is_reported(tmp_path: Path, capfd) -> None:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (tmp_path / "vocab.txt").write_text("\n".join([*special, "The", "the", "Cat", "cat"]))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    load_tokenizer(str(tmp_path))
    assert "lower-cases text, but 2 of its 9 entries have capital letters" in capfd.readouterr().err
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": false}')
    load_tokenizer(str(tmp_path))
    assert not capfd.readouterr().err


def test_ordinary_steps_are_within_bounds() -> None:
    llama = sequence("normalizers", {"type": "Prepend", "prepend": "▁"}, {**DOUBLE, "content": "▁"})
    split = {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}|\x{5f}(?=\x{4e00})"}, "behavior": "Isolated"}
    check_steps({"normalizer": llama, "pre_tokenizer": split, "decoder": None, "model": {"vocab": [["a", 0]]}}, "x")


def test_a_model_that_transformers_would_convert_is_checked(saved: Path) -> None:
    model = proto.ModelProto()
    model.pieces.add(piece="x" * 300_000, score=0.0)
    (saved / "tokenizer.json").unlink()
    (saved / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="tokenizer.model: an entry of 300,000 characters"):
        load_tokenizer(str(saved))


def test_too_many_added_tokens_are_refused() -> None:
    added = [{"id": i, "content": f"<{i}>"} for i in range(60_000)]
    with pytest.raises(UserError, match="60,000 added_tokens, more than 50,000"):
        check_steps({"added_tokens": added}, "tokenizer x")
