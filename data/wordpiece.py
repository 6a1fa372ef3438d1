"""WordPiece: vocabularies learnt from text, the same from the same text on every machine, and vocab.txt files.

The tokenizers library's own recipe breaks ties by the ids of the characters inside words (##a), which it gives out in
the order of a hash table that is seeded anew in every process: three runs, three vocabularies. Here words are counted
first and fed in order, and those entries are handed to the trainer by name, so that all ids and all ties are fixed.
"""

import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertTokenizerFast, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from utils.errors import UserError
from utils.files import read_text

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
UNSEEN = (
    r"[[\p{Cc}]&&[^\s]]|[\x{AD}\x{200B}\x{200E}\x{200F}\x{202A}-\x{202E}\x{2060}-\x{206F}\x{FEFF}"
    r"\x{FFF9}-\x{FFFB}\x{FFFD}]"
)
"""Characters that are never seen; those that join letters (Persian, Hindi, Mongolian) or make up an emoji are kept."""
LONGEST_WORD = 300
"""Characters; Thai, Lao and Khmer write whole sentences without a space. A longer one is cut, never unknown."""
COMMON_CHARACTERS = 1000
"""So many of the most frequent characters are entries,"""
COVERAGE = 0.9999
"""or as many as make up this share of the text, if that is more and the vocabulary has room."""
FOLD_AT = 2**20  # different words between spaces; a text without spaces must not be held twice
SHARE = 0.01  # of the words of a vocab.txt that say of what text it is; an uncased one may have had some added
AT_ONCE = 1000  # occurrences of a word in one string for the trainer


def train_wordpiece(
    sentences: Iterable[str], vocab_size: int, *, strip_accents: bool = False
) -> PreTrainedTokenizerBase:
    """Learn a lower-casing WordPiece tokenizer of at most `vocab_size` entries.

    Args:
        sentences: the text; the same text gives the same vocabulary.
        vocab_size: 100 to 10,000,000, special tokens included.
        strip_accents: whether marks are taken from letters, as BERT's uncased vocabularies have it.

    Raises:
        UserError: if `vocab_size` is out of range.
    """
    if not 100 <= vocab_size <= 10_000_000:
        raise UserError(f"vocab_size={vocab_size} must lie in 100..10000000 to learn a wordpiece vocabulary; try 8192")
    words = count_words(sentences, wordpiece(dict.fromkeys(SPECIAL_TOKENS, 0), strip_accents=strip_accents))
    alphabet = frequent_characters(words, vocab_size - len(SPECIAL_TOKENS))
    known = {word: number for word, number in words.items() if alphabet.issuperset(word)}
    _note_unknown(words, known, alphabet)
    inside = sorted({f"##{character}" for word in known for character in word[1:]})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=[*SPECIAL_TOKENS, *inside], show_progress=False
    )
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    learner.train_from_iterator(_repeated(known), trainer)
    return wordpiece(learner.get_vocab(), strip_accents=strip_accents)


def wordpiece(vocabulary: dict[str, int], *, strip_accents: bool) -> PreTrainedTokenizerBase:
    """A lower-casing tokenizer of these entries; its text is brought to Unicode's composed form (NFC)."""
    if strip_accents:
        return BertTokenizerFast(vocab=vocabulary)
    model = models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD)
    found = Tokenizer(model)
    lower = normalizers.BertNormalizer(clean_text=False, strip_accents=False, lowercase=True)
    found.normalizer = normalizers.Sequence([normalizers.Replace(Regex(UNSEEN), ""), lower, normalizers.NFC()])
    cut = pre_tokenizers.Split(Regex(rf".{{1,{LONGEST_WORD}}}(?!\p{{M}})"), "isolated")  # no mark begins a part
    found.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), cut])
    found.decoder = decoders.WordPiece(prefix="##")
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    found.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=ends
    )
    names = {f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS}
    return PreTrainedTokenizerFast(tokenizer_object=found, **names)


def count_words(sentences: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Occurrences of every word as the tokenizer's first steps have it, in the order of their code points."""
    first, second = tokenizer.backend_tokenizer.normalizer, tokenizer.backend_tokenizer.pre_tokenizer
    raw: Counter[str] = Counter()
    words: Counter[str] = Counter()

    def fold() -> None:
        for text, number in raw.items():
            for word, _ in second.pre_tokenize_str(first.normalize_str(text)):
                words[word] += number
        raw.clear()

    for sentence in sentences:
        raw.update(sentence.split())
        if len(raw) > FOLD_AT:
            fold()
    fold()
    return dict(sorted(words.items()))


def frequent_characters(words: dict[str, int], room: int) -> set[str]:
    """The characters that get entries, the most frequent first: one for where they begin words, one for inside.

    Args:
        words: and how often each occurs.
        room: entries that there may be.
    """
    counts: Counter[str] = Counter()
    inside: set[str] = set()
    for word, number in words.items():
        inside.update(word[1:])
        for character in word:
            counts[character] += number
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    entries = accumulate(1 + (character in inside) for character in ranked)
    fitting = sum(total <= room for total in entries)
    covered = accumulate(counts[character] for character in ranked)
    enough = 1 + sum(total < COVERAGE * counts.total() for total in covered)
    return set(ranked[: min(fitting, max(enough, COMMON_CHARACTERS))])


def _repeated(words: dict[str, int]) -> Iterator[str]:
    for word, number in words.items():
        whole, rest = divmod(number, AT_ONCE)
        for _ in range(whole):
            yield " ".join([word] * AT_ONCE)
        yield " ".join([word] * rest)


def _note_unknown(words: dict[str, int], known: dict[str, int], alphabet: set[str]) -> None:
    rare = {character for word in words.keys() - known.keys() for character in word} - alphabet
    if rare:
        lost, total = sum(words.values()) - sum(known.values()), sum(words.values())
        print(
            f"note: {len(rare):,} characters are too rare for the vocabulary (the likes of {min(rare)!r}): {lost:,} of "
            f"{total:,} words become [UNK]; a larger --vocab_size keeps more",
            file=sys.stderr,
        )


# ---- vocab.txt -------------------------------------------------------------------------------------------------------


def load_vocab_txt(file: Path) -> PreTrainedTokenizerBase:
    """Open a WordPiece vocab.txt, an entry a line; its own entries say whether text is lower-cased and loses marks.

    Raises:
        UserError: if a special token is missing.
    """
    entries = read_vocab_txt(file)
    lacking = [token for token in SPECIAL_TOKENS if token not in entries]
    if lacking:
        raise UserError(
            f"{file}: a WordPiece vocabulary must hold {', '.join(SPECIAL_TOKENS)}; missing: {', '.join(lacking)}"
        )
    cased, accented = is_cased(entries), has_accents(entries)
    _note_unreached(entries, file, cased=cased, accented=accented)
    if cased:
        return BertTokenizerFast(vocab=entries, do_lower_case=False, strip_accents=False)
    return BertTokenizerFast(vocab=entries, **({"strip_accents": False} if accented else {}))


def read_vocab_txt(file: Path) -> dict[str, int]:
    """Entries and their ids, which are line numbers from 0; of an entry that stands twice the last one counts.

    Raises:
        UserError: if the file is no UTF-8.
    """
    try:
        lines = [line.rstrip() for line in read_text(file, 2**28).removeprefix("\ufeff").split("\n")]
    except UnicodeDecodeError as error:
        raise UserError(f"tokenizer {file}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    entries = {line: i for i, line in enumerate(lines) if line}
    twice = sum(map(bool, lines)) - len(entries)
    if twice:
        print(f"note: {file}: {twice:,} entries stand twice; the last line of each counts", file=sys.stderr)
    return entries


def is_cased(entries: Iterable[str]) -> bool:
    """Whether a vocabulary is of cased text: a good share of its words has capital letters (BERT's cased ones: 40 %).

    A few that were added to an uncased one do not make it cased: every other capitalised word would become unknown.
    """
    words = [entry for entry in entries if _is_word(entry)]
    return sum(map(_is_capitalised, words)) > SHARE * len(words)


def has_accents(entries: Iterable[str]) -> bool:
    """Whether a vocabulary is of text with its marks: a good share of its words has some, or words of their scripts."""
    words = [entry for entry in entries if _is_word(entry)]
    return sum(map(_has_marks, words)) > SHARE * len(words)


def _is_word(entry: str) -> bool:
    return not (entry.startswith("[") and entry.endswith("]")) and not entry.startswith("<")


def _is_capitalised(entry: str) -> bool:
    return entry != entry.lower()


def _has_marks(entry: str) -> bool:
    return not entry.isascii() and any(unicodedata.category(c) == "Mn" for c in unicodedata.normalize("NFD", entry))


def _note_unreached(entries: Iterable[str], file: Path, *, cased: bool, accented: bool) -> None:
    """Entries that no text reaches, since it is lower-cased, or its marks are taken off."""
    lost = [
        e for e in entries if _is_word(e) and not cased and (_is_capitalised(e) or (not accented and _has_marks(e)))
    ]
    if lost:
        print(
            f"note: {file} is read as uncased: no text reaches {len(lost):,} of its entries (e.g. {lost[0]}); if it is "
            "cased, say so by do_lower_case=false in a tokenizer_config.json beside it",
            file=sys.stderr,
        )
