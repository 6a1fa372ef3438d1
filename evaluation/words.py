"""Words of texts in any script: what ROUGE-L compares, and whether spaces set the words of a text apart at all."""

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
"""Ranges of scripts that are written without spaces between words: Chinese, Japanese, Thai, Lao, Khmer, Burmese, ..."""
JOINERS = dict.fromkeys(map(ord, "\u00ad\u200c\u200d\u2060"))
"""Characters without a shape that stand within words: soft hyphen, joiner and non-joiner, word joiner."""
LETTER, UNSPACED_LETTER = re.compile(r"[^\W\d_]"), re.compile(rf"(?=[^\W\d_])[{UNSPACED}]")
ASCII_WORD = re.compile(r"[a-z0-9]+")
WORD_KINDS = ("unicode", "ascii")
LOOKED_AT = 200
"""Texts that decide about a script, evenly spread over all."""
SIZEABLE = 0.1
"""Share of the letters."""
LETTERS_A_GAP = 5
"""Letters to a space, at least, where words are not set apart; Thai and Japanese cut into words have 2 to 4."""


def rouge_words(text: str, kind: str = "unicode") -> list[str]:
    """Lower-cased words of letters and digits, in order.

    Args:
        text: any; of ASCII alone, both kinds find the same.
        kind: unicode: of any script, with their combining marks; where a script has no spaces between words, each
            letter is a word. ascii: of a-z and 0-9 alone, as in rouge-score, which finds no word of other scripts.
    """
    text = text.lower()
    if kind == "ascii" or text.isascii():
        return ASCII_WORD.findall(text)
    return _word().findall(unicodedata.normalize("NFC", text).translate(JOINERS))


@functools.cache
def _word() -> re.Pattern:
    marks = "".join(
        chr(code)
        for code in range(sys.maxunicode + 1)
        if code not in JOINERS and unicodedata.category(chr(code))[0] == "M"
    )
    spaced = rf"[^\W_{UNSPACED}]"
    return re.compile(rf"(?=[^\W_])[{UNSPACED}][{marks}]*|{spaced}(?:{spaced}|[{marks}])*")


def are_set_apart(texts: Sequence[str], gaps: float | None = None) -> bool:
    """Whether spaces stand between the words of texts.

    Not if a sizeable share of their letters is of a script that is written without, and there are few spaces for them.

    Args:
        texts: a few hundred of them, at most, are looked at.
        gaps: spaces between words in what is looked at, where that is all and its spaces are not the original's.
    """
    seen = texts[:: -(-len(texts) // LOOKED_AT)] if len(texts) > LOOKED_AT else texts
    unspaced = [len(UNSPACED_LETTER.findall(text)) if not text.isascii() else 0 for text in seen]
    if not sum(unspaced) or sum(unspaced) < SIZEABLE * sum(len(LETTER.findall(text)) for text in seen):
        return True
    if gaps is None:
        gaps = sum(max(0, len(text.split()) - 1) for text, number in zip(seen, unspaced, strict=True) if number)
    return gaps * LETTERS_A_GAP > sum(unspaced)
