"""detokenizers.py: results of the released rules, by corpus."""

import pytest

from data.detokenizers import DETOKENIZERS, detokenize

RECORDED = {
    "wikitext": (
        "= = Robert 's = = The 1 @,@ 000 @-@ ton ships ' guns ( 5 @.@ 2 in ) fired , \" well \" ; 3 ° C . So !",
        "== Robert's == The 1,000-ton ships' guns (5.2 in) fired, \"well\"; 3°C. So !",
    ),
    "ptb": (
        "<unk> does n't pay $ N million or N N N shares to the banks ' clients \\/ it 's # N",
        "? doesn't pay $1 million or 1 1 1 shares to the banks' clients / it's # N",
    ),
    "lm1b": (
        '" It \'s ( not ) over , " he said : $ 5 at http : / / x.org . Why ? Now !',
        '"It\'s (not) over," he said: $5 at http://x.org . Why? Now!',
    ),
    "lambada": (" “ Yes , ” he said . ", '\n" Yes , " he said .'),
    "scientific_papers": (
        "the layers ' mass [ 3 ] , of a 's size ( @xmath0 ) . see fig . 2 ?",
        "the layers'mass [3], of a's size (@xmath0). see fig. 2?",
    ),
}
"""Results of MDLM's functions for these lines."""


@pytest.mark.parametrize("corpus", RECORDED)
def test_detokenized_lines_follow_the_released_rules(corpus: str) -> None:
    before, after = RECORDED[corpus]
    assert detokenize(before, corpus) == after


def test_none_is_the_identity_and_every_rule_accepts_an_empty_line() -> None:
    line = " a ' b ( c \\1 \\n ) \n"
    assert detokenize(line, "none") == line
    assert {name: detokenize("", name) for name in DETOKENIZERS} == dict.fromkeys(DETOKENIZERS, "") | {"lambada": "\n"}
