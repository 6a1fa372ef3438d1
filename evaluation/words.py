"""Words of texts in any script, for ROUGE-L, and a test whether spaces separate the words of a text."""

import functools
import re
import sys
import unicodedata
from collections.abc import Sequence

UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f\ua980-\ua9ff\uaa60-\uaa7f"
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3035\u3038-\u30ff\u3100-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
"""Character ranges of scripts without spaces between words: Chinese, Japanese, Thai, Lao, Khmer, Burmese, ..."""
JOINERS = dict.fromkeys(map(ord, "\u00ad\u200c\u200d\u2060"))
"""Invisible characters within words: soft hyphen, joiner, non-joiner, word joiner."""
LETTER, UNSPACED_LETTER = re.compile(r"[^\W\d_]"), re.compile(rf"(?=[^\W\d_])[{UNSPACED}]")
ASCII_WORD = re.compile(r"[a-z0-9]+")
WORD_KINDS = ("unicode", "ascii")
SAMPLE = 200
"""Number of texts examined, evenly spaced over all texts."""
MIN_UNSPACED_SHARE = 0.1
"""Share of letters of unspaced scripts above which the number of spaces is examined."""
MIN_LETTERS_PER_SPACE = 5
"""Fewest letters per space in text without spaces between words; segmented Thai and Japanese have 2 to 4."""


def rouge_words(text: str, kind: str = "unicode") -> list[str]:
    """Return the lower-case words of letters and digits, in order.

    Args:
        text: any text; both kinds give the same words for ASCII text.
        kind: unicode: words of any script, with combining marks; each letter of an unspaced script is a word. ascii:
            words of a-z and 0-9 only, like rouge-score, which finds no words of other scripts.
    """
    text = text.lower()
    if kind == "ascii" or text.isascii():
        return ASCII_WORD.findall(text)
    return _word().findall(unicodedata.normalize("NFC", text).translate(JOINERS))


@functools.cache
def _word() -> re.Pattern:
    """Compile the pattern of a word: a letter of an unspaced script, or a run of other letters, with their marks."""
    marks = "".join(
        chr(code)
        for code in range(sys.maxunicode + 1)
        if code not in JOINERS and unicodedata.category(chr(code))[0] == "M"
    )
    spaced = rf"[^\W_{UNSPACED}]"
    return re.compile(rf"(?=[^\W_])[{UNSPACED}][{marks}]*|{spaced}(?:{spaced}|[{marks}])*")


def has_separated_words(texts: Sequence[str], gaps: float | None = None) -> bool:
    """Test whether spaces separate the words of texts.

    They do not if at least a tenth of the letters belong to unspaced scripts and there are few spaces between these.

    Args:
        texts: texts, of which SAMPLE are examined.
        gaps: original number of spaces between words, if decoding changed those of `texts`; then at most SAMPLE texts
            may be given.
    """
    sample = texts[:: -(-len(texts) // SAMPLE)] if len(texts) > SAMPLE else texts
    unspaced = [len(UNSPACED_LETTER.findall(text)) if not text.isascii() else 0 for text in sample]
    if not sum(unspaced) or sum(unspaced) < MIN_UNSPACED_SHARE * sum(len(LETTER.findall(text)) for text in sample):
        return True
    if gaps is None:
        gaps = sum(max(0, len(text.split()) - 1) for text, number in zip(sample, unspaced, strict=True) if number)
    return gaps * MIN_LETTERS_PER_SPACE > sum(unspaced)
