"""WordPiece: deterministic training of vocabularies, and vocab.txt files.

The tokenizers library breaks ties by the ids of the characters inside words (##a), and assigns these ids in the order
of a hash table with a random seed per process, so that each run gives another vocabulary. Here words are counted first
and given to the trainer in order, with the characters as special tokens, so that all ids and ties are fixed.
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
"""Invisible characters, which are removed; joiners of letters (Persian, Hindi, Mongolian) and of emoji are kept."""
LONGEST_WORD = 300
"""Characters of a word; a longer one is cut. Thai, Lao and Khmer sentences have no spaces."""
COMMON_CHARACTERS = 1000
"""Smallest number of most frequent characters that are entries."""
COVERAGE = 0.9999
"""Share of the text that these characters cover, if the vocabulary has room for more."""
FOLD_AT = 2**20  # different strings between spaces in memory, before they are split into words
SHARE = 0.01  # of a vocab.txt's words; a smaller share of capitals or accents was added to an uncased vocabulary
AT_ONCE = 1000  # occurrences of a word in one string for the trainer


def train_wordpiece(
    sentences: Iterable[str], vocab_size: int, *, strip_accents: bool = False
) -> PreTrainedTokenizerBase:
    """Train a lower-casing WordPiece tokenizer of at most `vocab_size` entries.

    Args:
        sentences: the text; equal texts give equal vocabularies.
        vocab_size: 100 to 10,000,000, special tokens included.
        strip_accents: whether accents are removed, as by BERT's uncased tokenizers.

    Raises:
        UserError: if `vocab_size` is out of range.
    """
    if not 100 <= vocab_size <= 10_000_000:
        raise UserError(f"vocab_size={vocab_size} must lie in 100..10000000 to train a wordpiece vocabulary; try 8192")
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
    """Build a lower-casing tokenizer of these entries; text is normalised to NFC."""
    if strip_accents:
        return BertTokenizerFast(vocab=vocabulary)
    model = models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD)
    found = Tokenizer(model)
    lower = normalizers.BertNormalizer(clean_text=False, strip_accents=False, lowercase=True)
    found.normalizer = normalizers.Sequence([normalizers.Replace(Regex(UNSEEN), ""), lower, normalizers.NFC()])
    # a part never begins with a mark
    cut = pre_tokenizers.Split(Regex(rf".{{1,{LONGEST_WORD}}}(?!\p{{M}})"), "isolated")
    found.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), cut])
    found.decoder = decoders.WordPiece(prefix="##")
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    found.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=found,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def count_words(sentences: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Count every word after normalizer and pre-tokenizer, sorted by code points."""
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
    """Return the characters that get entries: the most frequent ones, each with one entry, and one for inside words.

    Args:
        words: words and their counts.
        room: largest number of entries.
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
            f"note: {len(rare):,} characters (e.g. {min(rare)!r}) are too rare for the vocabulary: {lost:,} of "
            f"{total:,} words become [UNK]; a larger --vocab_size keeps more",
            file=sys.stderr,
        )


# ---- vocab.txt -------------------------------------------------------------------------------------------------------


def load_vocab_txt(file: Path) -> PreTrainedTokenizerBase:
    """Load a WordPiece vocab.txt, one entry per line; its entries determine lower-casing and removal of accents.

    Raises:
        UserError: if a special token is missing.
    """
    entries = read_vocab_txt(file)
    lacking = [token for token in SPECIAL_TOKENS if token not in entries]
    if lacking:
        raise UserError(
            f"{file}: a WordPiece vocabulary must contain {', '.join(SPECIAL_TOKENS)}; missing: {', '.join(lacking)}"
        )
    cased, accented = is_cased(entries), has_accents(entries)
    _note_unreached(entries, file, cased=cased, accented=accented)
    if cased:
        return BertTokenizerFast(vocab=entries, do_lower_case=False, strip_accents=False)
    return BertTokenizerFast(vocab=entries, strip_accents=False if accented else None)


def read_vocab_txt(file: Path) -> dict[str, int]:
    """Read entries and their ids, line numbers from 0; the last line of a repeated entry counts.

    Raises:
        UserError: if the file is not UTF-8.
    """
    try:
        lines = [line.rstrip() for line in read_text(file, 2**28).removeprefix("\ufeff").split("\n")]
    except UnicodeDecodeError as error:
        raise UserError(f"tokenizer {file}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    entries = {line: i for i, line in enumerate(lines) if line}
    twice = sum(map(bool, lines)) - len(entries)
    if twice:
        print(f"note: {file}: {twice:,} repeated entries; the last line of each counts", file=sys.stderr)
    return entries


def is_cased(entries: Iterable[str]) -> bool:
    """Tell whether a vocabulary is cased: more than SHARE of its words has capitals (40 % in BERT's cased ones).

    A few capitalised words may have been added to an uncased one; read as cased, it would lack all others.
    """
    words = [entry for entry in entries if _is_word(entry)]
    return sum(map(_is_capitalised, words)) > SHARE * len(words)


def has_accents(entries: Iterable[str]) -> bool:
    """Tell whether a vocabulary keeps accents: more than SHARE of its words has accents or other combining marks."""
    words = [entry for entry in entries if _is_word(entry)]
    return sum(map(_has_marks, words)) > SHARE * len(words)


def _is_word(entry: str) -> bool:
    return not (entry.startswith("[") and entry.endswith("]")) and not entry.startswith("<")


def _is_capitalised(entry: str) -> bool:
    return entry != entry.lower()


def _has_marks(entry: str) -> bool:
    return not entry.isascii() and any(unicodedata.category(c) == "Mn" for c in unicodedata.normalize("NFD", entry))


def _note_unreached(entries: Iterable[str], file: Path, *, cased: bool, accented: bool) -> None:
    """Print a note on entries that no text gets, since it is lower-cased or loses its accents."""
    lost = [
        e for e in entries if _is_word(e) and not cased and (_is_capitalised(e) or (not accented and _has_marks(e)))
    ]
    if lost:
        print(
            f"note: {file} is read as uncased: {len(lost):,} of its entries (e.g. {lost[0]}) are never used; if it is "
            "cased, set do_lower_case=false in a tokenizer_config.json beside it",
            file=sys.stderr,
        )
