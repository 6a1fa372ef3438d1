"""Undoing the spacing of corpora that were cut into words, so that a model of plain text can be scored on them.

The rules, and their order, are those by which MDLM and SEDD read these corpora for their zero-shot tables (Sahoo et al.
2024, arXiv 2406.07524); PTB's `N`, a number, becomes a 1 there. One of the released rules can match no real text (it
looks for "/' 5/") and is left out.
"""

import re
from collections.abc import Sequence

Rule = tuple[str, str]
"""A regular expression, and what stands in its place."""


def literal(*rules: Rule) -> list[Rule]:
    """Rules that look for the very characters."""
    return [(re.escape(sought), put.replace("\\", "\\\\")) for sought, put in rules]


def joined_to_the_left(marks: str) -> list[Rule]:
    """A mark between spaces loses the one before it."""
    return literal(*((f" {mark} ", f"{mark} ") for mark in marks))


WIKITEXT = [
    *literal(("s '", "s'"), (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", ".")),
    *joined_to_the_left(":;.!?,"),
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    *literal(("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" ° ", "°")),
    *literal((" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s")),
]
PTB = [
    *literal((" 's", "'s"), ("s ' ", "s' "), (" n't", "n't"), (" \n ", "\n"), ("\\/", "/")),
    *literal((" N ", " 1 ")) * 10,  # one N's space is the next one's, too
    *literal(("$ 1", "$1"), ("# 1", "#1"), ("<unk>", "?")),
]
LM1B = [
    *literal(("http : / / ", "http://"), ("https : / / ", "https://")),
    (r" '(\w+)", r"'\1"),
    (r" (\w+) \. ", r" \1. "),
    (r" (\w+) \.$", r" \1."),
    *joined_to_the_left("?"),
    (r" \?$", "?"),
    *joined_to_the_left("!"),
    (r" !$", "!"),
    *joined_to_the_left(",:;"),
    *literal((" / ", "/")),
    (r"\" ([^\"]+) \"", r'"\1"'),
    (r"' ([^']+) '", r"'\1'"),
    (r"\( ([^\(\)]+) \)", r"(\1)"),
    (r"\[ ([^\[\]]+) \]", r"[\1]"),
    *literal(("$ ", "$"), ("£ ", "£")),
]
LAMBADA = [*literal(("“", '"'), ("”", '"')), (r"\s+\Z", ""), (r"\A\s*", "\n")]

DETOKENIZERS: dict[str, Sequence[Rule]] = {
    "none": [],
    "lm1b": LM1B,
    "ptb": PTB,
    "wikitext": WIKITEXT,
    "lambada": LAMBADA,
    "scientific_papers": [*WIKITEXT, *LM1B],
}
"""By corpus; AG News needs none, PubMed and arXiv are scientific_papers."""
_COMPILED = {name: [(re.compile(sought), put) for sought, put in rules] for name, rules in DETOKENIZERS.items()}


def detokenize(text: str, corpus: str) -> str:
    """The text with its rules applied, one after the other.

    Args:
        text: a line, a paragraph or an article.
        corpus: one of DETOKENIZERS.
    """
    for pattern, put in _COMPILED[corpus]:
        text = pattern.sub(put, text)
    return text
