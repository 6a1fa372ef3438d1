"""splits.py: every text of two sentences or more has a held-out part; the share of a large text is stable."""

from pathlib import Path

import pytest

from data.corpus import held_out, read_sentences, smallest_part
from data.options import DataArgs
from data.splits import split_sources
from tests.conftest import PAIRS, SENTENCES, write_jsonl
from utils.errors import UserError


def parts(file: Path, fraction: float) -> tuple[list[str], list[str]]:
    splits = split_sources(DataArgs(str(file), valid_fraction=fraction))
    return tuple(list(read_sentences(source, keep=keep)) for source, _, keep in splits)


@pytest.mark.parametrize(("number", "fraction", "held"), [(2, 0.02, 1), (40, 0.02, 1), (240, 0.001, 1), (5, 0.999, 4)])
def test_at_least_one_of_a_few_sentences_is_held_out(tmp_path: Path, number: int, fraction: float, held: int) -> None:
    file, few = tmp_path / "a.txt", [s for s in SENTENCES if held_out(fraction)(s) == (fraction > 0.5)][:number]
    file.write_text("\n".join(few))
    train, valid = parts(file, fraction)
    assert len(valid) == held and sorted(train + valid) == sorted(few)
    file.write_text("\n".join(few[::-1]))
    assert [sorted(part) for part in parts(file, fraction)] == [sorted(train), sorted(valid)]


def test_a_large_text_is_split_by_the_held_out_rule(tmp_path: Path) -> None:
    file, aside = tmp_path / "a.txt", held_out(0.1)
    file.write_text("\n".join(SENTENCES))
    assert parts(file, 0.1) == ([s for s in SENTENCES if not aside(s)], [s for s in SENTENCES if aside(s)])
    assert split_sources(DataArgs(str(file), valid_fraction=0.1))[1][1] == "held-out 0.1"


def test_pairs_are_split_by_their_source(tmp_path: Path) -> None:
    few = [pair for pair in PAIRS if not held_out(0.02)(pair["src"])][:9]
    file = write_jsonl(tmp_path / "a.jsonl", few)
    (_, _, kept), (_, _, aside) = split_sources(DataArgs(str(file)))
    assert sum(aside(pair["src"]) for pair in few) == 1 == 9 - sum(kept(pair["src"]) for pair in few)


def test_a_text_of_equal_sentences_cannot_be_split(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the same\n" * 9)
    with pytest.raises(UserError, match="all texts are equal, so none can be held out; give more text, or --valid"):
        split_sources(DataArgs(str(tmp_path / "a.txt")))
    assert smallest_part([], 0.5) is None
