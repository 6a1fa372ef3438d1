"""wordpiece.py: equal vocabularies from equal text in every process; no script loses its letters."""

import hashlib
import itertools
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from transformers import BertTokenizerFast

from data.corpus import training_source
from data.options import DataArgs
from data.sentencepiece import evenly_spaced, load_sentencepiece, train_sentencepiece
from data.tokenizers import encode, learn_tokenizer, load_tokenizer
from data.wordpiece import LONGEST_WORD, SPECIAL_TOKENS, frequent_characters, load_vocab_txt, train_wordpiece
from tests.conftest import ROOT, SENTENCES
from training.resume import differences
from utils.errors import UserError

SCRIPTS = {
    "English": "The naïve café isn't far, said 12 people.",
    "German": "Über größere Flüsse führen schöne Brücken.",
    "Russian": "Ёж и йод: мой новый чай ещё горячий.",
    "Greek": "Η γρήγορη αλεπού πηδάει πάνω από τον σκύλο.",
    "Hindi": "दुई हजार में क्ष और ज्ञ का क्\u200dष, की ज़िंदगी।",
    "Thai": "ผู้ใหญ่บ้านไปที่ร้านอาหารเมื่อวานนี้และน้ำร้อน",
    "Vietnamese": "Tiếng Việt có những dấu thanh ở trên chữ.",
    "Japanese": "これをください。ガラスの靴がパーティーで見つかった。",
    "Korean": "한국어 문장은 띄어쓰기가 있습니다.",
    "Arabic": "السَّلامُ عَلَيْكُم يا أصدقاء",
    "Persian": "می\u200cخواهم کتاب\u200cها را بخوانم.",
    "Hebrew": "שָׁלוֹם לְכֻלָּם חברים",
    "Chinese": "我们喜欢读书，也喜欢写字。",
    "Khmer": "ខ្ញុំចូលចិត្តអានសៀវភៅ",
    "Turkish": "çığlık atan şaşkın öğretmen",
    "emoji": "ok 👨\u200d👩\u200d👧 ❤️ 🏴\U000e0067\U000e0062\U000e007f",
}
TIES = [" ".join("".join(p) for p in itertools.permutations("abcdé"))] * 3
PROGRAM = """
import itertools, sys
from data.wordpiece import train_wordpiece
from data import sentencepiece
from data.sentencepiece import train_sentencepiece
ties = [" ".join("".join(p) for p in itertools.permutations("abcdé"))] * 3
learnt = [train_wordpiece(ties, 100), train_wordpiece(ties, 100, strip_accents=True)]
sys.stdout.buffer.write("".join(t.backend_tokenizer.to_str() for t in learnt).encode())
sys.stdout.buffer.write(train_sentencepiece(ties, 60))
sentencepiece.MOST_SENTENCES = 40
sys.stdout.buffer.write(train_sentencepiece([word for line in ties for word in line.split()], 20))
"""


def squeezed(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_keeps_its_letters(script: str) -> None:
    text = SCRIPTS[script]
    wordpiece = train_wordpiece(list(SCRIPTS.values()), 1000)
    expected = unicodedata.normalize("NFC", text.lower())
    for written in (text, unicodedata.normalize("NFD", text)):
        (ids,) = encode(wordpiece, [written])["input_ids"]
        assert squeezed(wordpiece.decode(ids)) == squeezed(expected)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_keeps_its_letters_in_sentencepiece(script: str, tmp_path: Path, pieces: Path) -> None:
    tokenizer, text = load_sentencepiece(pieces), SCRIPTS[script]
    (ids,) = encode(tokenizer, [text])["input_ids"]
    kept = unicodedata.normalize("NFKC", text)  # in SentencePiece's table a non-joiner is a space
    assert squeezed(tokenizer.decode(ids)) == squeezed(kept.replace("\u200c", " "))


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pieces") / "x.model"
    file.write_bytes(train_sentencepiece(list(SCRIPTS.values()) * 3, 400))
    return file


def test_strip_accents_removes_accents_and_is_saved(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("\n".join([*SCRIPTS.values()] * 2))
    tokenizers = {}
    for strip in (False, True):
        args = DataArgs(str(source), tokenizer="wordpiece", strip_accents=strip)
        tokenizers[strip] = learn_tokenizer(
            "wordpiece", training_source(str(source)), 900, str(tmp_path / "cache"), strip_accents=args.strip_accents
        )
        tokenizers[strip].save_pretrained(tmp_path / str(strip))
        loaded = load_tokenizer(str(tmp_path / str(strip)))
        assert loaded.backend_tokenizer.to_str() == tokenizers[strip].backend_tokenizer.to_str()
        assert (
            encode(loaded, [*SCRIPTS.values()])["input_ids"]
            == encode(tokenizers[strip], [*SCRIPTS.values()])["input_ids"]
        )
    ids = {strip: encode(tokenizer, ["größere"])["input_ids"][0] for strip, tokenizer in tokenizers.items()}
    assert tokenizers[False].decode(ids[False]) == "größere" and tokenizers[True].decode(ids[True]) == "große" + "re"
    with pytest.raises(UserError, match="strip_accents=true needs --tokenizer wordpiece"):
        DataArgs(str(source), tokenizer="sentencepiece", strip_accents=True)


def test_a_run_without_the_flag_resumes_under_its_default() -> None:
    saved = {"tokenizer": "wordpiece", "world_size": 1}
    assert differences(saved, {**saved, "strip_accents": False}, set()) == []
    assert differences(saved, {**saved, "strip_accents": True}, set()) == ["strip_accents"]


def test_long_words_without_spaces_are_split_into_pieces() -> None:
    tokenizer = train_wordpiece([*SCRIPTS.values(), SCRIPTS["Thai"] * 2], 900)
    text = squeezed(SCRIPTS["Thai"]) * 40
    assert len(text) > 5 * LONGEST_WORD
    (ids,) = encode(tokenizer, [text])["input_ids"]
    assert squeezed(tokenizer.decode(ids)) == text and tokenizer.unk_token_id not in ids


def test_control_characters_are_dropped() -> None:
    tokenizer = train_wordpiece(["a cat sat"] * 3, 100)
    assert tokenizer.decode(encode(tokenizer, ["a\u00ad \x00c\ufeffat\tsat\u200e"])["input_ids"][0]) == "a cat sat"


def test_frequent_characters_are_kept_and_rare_ones_are_reported(capsys) -> None:
    many = [chr(0x4E00 + i) for i in range(3000)]
    text = ["".join(many[: 3000 - 200 * k]) for k in range(12)]
    tokenizer = train_wordpiece(text, 4000)
    assert set(many) - tokenizer.get_vocab().keys() == set(many[-2:])  # a ten-thousandth of the text
    assert "are too rare for the vocabulary" in capsys.readouterr().err
    tokenizer = train_wordpiece(text, 500)
    assert len(tokenizer) == 500 and set(many[:495]) <= tokenizer.get_vocab().keys()  # the entries in most lines
    stderr = capsys.readouterr().err
    assert "note: 2,505 characters (e.g. " in stderr and "are too rare" in stderr and "words become [UNK]" in stderr
    assert frequent_characters({"ab": 2, "b": 1}, 10) == {"a", "b"} and frequent_characters({"ab": 2, "b": 1}, 2) == {
        "b"
    }


# ---- determinism -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_text_gives_the_same_vocabulary_in_every_process(monkeypatch) -> None:
    environment = {"PYTHONHASHSEED": "1", "RAYON_NUM_THREADS": "3", "TOKENIZERS_PARALLELISM": "true"}
    assert evenly_spaced(map(str, range(11)), 4) == ["0", "4", "8"]
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
    )
    kept, stripped = train_wordpiece(TIES, 100), train_wordpiece(TIES, 100, strip_accents=True)
    texts = "".join(tokenizer.backend_tokenizer.to_str() for tokenizer in (kept, stripped))
    for lines in ([f"{TIES[0]} {TIES[0]}", TIES[0]], [" ".join(reversed(TIES[0].split()))] * 3) * 3:
        assert train_wordpiece(lines, 100).get_vocab() == kept.get_vocab()  # independent of the order of words
    models = train_sentencepiece(TIES, 60)
    monkeypatch.setattr("data.sentencepiece.MOST_SENTENCES", 40)  # larger texts are sampled
    models += train_sentencepiece([word for line in TIES for word in line.split()], 20)
    assert child.communicate(timeout=100)[0] == texts.encode() + models


def test_the_vocabulary_of_a_text_is_the_recorded_one() -> None:
    """A change of the library or of the training changes every bound: then update RECIPE and the README's figures."""
    entries = sorted(train_wordpiece(SENTENCES, 300).get_vocab().items(), key=lambda entry: entry[1])
    assert [entry for entry, _ in entries[:5]] == SPECIAL_TOKENS and [i for _, i in entries] == list(range(138))
    assert hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:16] == "ee8c006d776d4066"


# ---- vocab.txt -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "text", "written"),
    [
        (["the", "cat", "café", "cafe"], "The CAT café", "the cat café"),
        (["the", "cat", "cafe"], "The CAT café", "the cat cafe"),
        (["the", "The", "cat", "café"], "The cat café", "The cat café"),
        (["the", "##S", "cat"], "theS cat", "theS cat"),
        (["the", "[Unused]", "cat"], "The CAT", "the cat"),
    ],
)
def test_the_entries_of_a_vocabulary_decide_whether_it_is_cased(
    entries, text: str, written: str, tmp_path: Path
) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *entries]) + "\n")
    for name in (tmp_path, tmp_path / "vocab.txt"):
        tokenizer = load_tokenizer(str(name))
        assert tokenizer.decode(encode(tokenizer, [text])["input_ids"][0]) == written
    tokenizer.save_pretrained(tmp_path / "saved")
    assert encode(load_tokenizer(str(tmp_path / "saved")), [text]) == encode(tokenizer, [text])


def test_an_uncased_vocabulary_is_read_as_by_transformers(tmp_path: Path) -> None:
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join([*SPECIAL_TOKENS, "the", "##s", "か", "한"]) + "\n")
    assert (
        load_tokenizer(str(file)).backend_tokenizer.to_str() == BertTokenizerFast(str(file)).backend_tokenizer.to_str()
    )


@pytest.mark.parametrize(
    "ends", [("\ufeff", "\n", ""), ("", "\r\n", "\r\n"), ("", "\n", "\n\n\n"), ("\ufeff", "\r\n", "")]
)
def test_ids_are_line_numbers_for_every_line_ending(ends: tuple[str, str, str], tmp_path: Path, capsys) -> None:
    begin, between, end = ends
    content = begin + between.join([*SPECIAL_TOKENS, "the", "the", "cat\u2028", "\u2009"]) + end
    (tmp_path / "vocab.txt").write_bytes(content.encode())
    tokenizer = load_tokenizer(str(tmp_path / "vocab.txt"))
    assert tokenizer.get_vocab() == {**{token: i for i, token in enumerate(SPECIAL_TOKENS)}, "the": 6, "cat": 7}
    assert "vocab.txt: 1 repeated entries; the last line of each counts" in capsys.readouterr().err
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xff")
    with pytest.raises(UserError, match="vocab.txt: not UTF-8 text"):
        load_tokenizer(str(tmp_path / "vocab.txt"))


@pytest.mark.parametrize("added", ["COVID", "Brexit", "iPhone", "<MASK>", "na\u00efve"])
def test_one_added_entry_does_not_make_a_vocabulary_cased(tmp_path: Path, capsys, added: str) -> None:
    """Read as cased, it would lack every other capitalised word."""
    entries = [*SPECIAL_TOKENS, *[chr(c) for c in range(97, 123)], *[f"##{chr(c)}" for c in range(97, 123)]]
    entries += [f"{a}{b}" for a in "abcdefghij" for b in "klmnopqrst"]
    for name, extra in (("plain", []), ("more", [added])):
        (tmp_path / f"{name}.txt").write_text("\n".join([*entries, *extra]) + "\n")
    plain, extended = (load_vocab_txt(tmp_path / f"{name}.txt") for name in ("plain", "more"))
    assert plain.tokenize("The Cat sat, caf\u00e9") == extended.tokenize("The Cat sat, caf\u00e9")
    stderr = capsys.readouterr().err
    assert ("is read as uncased: 1 of its entries" in stderr) == (added != "<MASK>")
