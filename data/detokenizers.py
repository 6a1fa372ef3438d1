"""Detokenizers of word-tokenised corpora, so that a model of plain text can be scored on them.

Rules and order are those of MDLM and SEDD for their zero-shot tables (Sahoo et al. 2024, arXiv 2406.07524). PTB's `N`,
a number, becomes 1, as there. One released rule (for "/' 5/") matches no real text and is left out.
"""

import re
from collections.abc import Sequence

Rule = tuple[str, str]
"""Regular expression and replacement."""


def literal(*rules: Rule) -> list[Rule]:
    """Return rules that match literal text."""
    return [(re.escape(sought), put.replace("\\", "\\\\")) for sought, put in rules]


def joined_to_the_left(marks: str) -> list[Rule]:
    """Return rules that remove the space before each mark between spaces."""
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
    *literal((" N ", " 1 ")) * 10,  # repeated, since adjacent N's share a space
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
"""Rules by corpus; AG News needs none, PubMed and arXiv use scientific_papers."""
_COMPILED = {name: [(re.compile(sought), put) for sought, put in rules] for name, rules in DETOKENIZERS.items()}


def detokenize(text: str, corpus: str) -> str:
    """Apply a corpus's rules to a text, in order.

    Args:
        text: a line, a paragraph or an article.
        corpus: one of DETOKENIZERS.
    """
    for pattern, put in _COMPILED[corpus]:
        text = pattern.sub(put, text)
    return text
