"""options.py: settings of data that contradict each other are refused; saved formats are read back."""

import pytest

from data.options import PLAIN, DataArgs, PairArgs, TextFormat, check_prompt
from utils.errors import UserError


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (DataArgs, {"train_data": "x", "valid_fraction": 1.0}, "valid_fraction=1.0 must lie strictly between 0 and 1"),
        (DataArgs, {"train_data": "x", "max_tokens": 10}, "max_tokens=10 is less than max_length=128"),
        (DataArgs, {"train_data": "x", "strip_accents": True}, "strip_accents=true needs --tokenizer wordpiece"),
        (DataArgs, {"train_data": "x", "batch_size": 0}, "batch_size=0 must lie in"),
        (PairArgs, {"prompt": "{src}{trg}"}, "prompt='{src}{trg}' must have {src} once, then a mark or a word"),
        (PairArgs, {"target_window": -1}, "target_window=-1 must lie in 0..100000"),
        (TextFormat, {"row_format": "ragged"}, "row_format='ragged'"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(kind: type, given: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        kind(**given)


def test_a_batch_is_measured_in_sentences_or_slots() -> None:
    assert DataArgs("x", batch_size=4, max_length=8).slots == 32 and not DataArgs("x").by_slots
    assert DataArgs("x", max_tokens=500).slots == 500 and DataArgs("x", max_tokens=500).by_slots
    assert DataArgs("x", packing=True).by_slots


def test_a_prompt_has_its_source_then_words_then_its_target() -> None:
    for prompt in (PLAIN, "{src} => {trg}", "Question: {src} Answer: {trg}"):
        check_prompt(prompt, "prompt")
    for prompt in ("{trg} {src}", "{src} {src} x {trg}", "{src} x {trg}.", ""):
        with pytest.raises(UserError, match="prompt="):
            check_prompt(prompt, "prompt")


def test_a_saved_format_is_read_back() -> None:
    form = TextFormat("wrapped", "lm1b")
    assert TextFormat.from_saved(form.as_saved()) == form and form.as_saved()["protocol"] == "wrapped"
    assert TextFormat.from_saved({}) == TextFormat()
    assert form.overridden("", "none") == TextFormat("wrapped", "none")
