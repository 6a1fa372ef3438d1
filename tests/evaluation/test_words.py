"""words.py: words of any script, and detection of text without spaces between words."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.text_metrics import rouge_l
from evaluation.words import has_separated_words, rouge_words

SCRIPTS = {
    "Russian": ("Мой дядя самых честных правил.", 5, True),
    "Greek": ("Η γάτα κοιμάται", 3, True),
    "Arabic": ("القطة تنام هنا", 3, True),
    "Persian": ("می\u200cخواهم بروم", 2, True),
    "Hebrew": ("החתול ישן", 2, True),
    "Hindi": ("दुई बिल्लियाँ घर में हैं", 5, True),
    "Korean": ("고양이가 잔다", 2, True),
    "Vietnamese": ("Con mèo đang ngủ", 4, True),
    "Armenian": ("Կատուն քնած է", 3, True),
    "Amharic": ("ድመቷ ተኝታለች", 2, True),
    "Tamil": ("பூனை தூங்குகிறது", 2, True),
    "Chinese": ("我喜欢猫。", 4, False),
    "Japanese": ("猫がください、ー", 7, False),
    "Thai": ("แมวกินปลาที่บ้าน", 12, False),
    "Burmese": ("ကြောင်အိပ်နေတယ်", None, False),
    "Khmer": ("ឆ្មាកំពុងដេក", None, False),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_text_of_any_script_matches_itself(script: str) -> None:
    text, count, spaced = SCRIPTS[script]
    words = rouge_words(text)
    assert rouge_l(text, text) == 1 and (count is None or len(words) == count)
    assert rouge_l(text, text, "ascii") == (script == "Vietnamese")  # like rouge-score
    assert has_separated_words([text]) == spaced
    assert "".join(words).replace("\u200c", "") == re.sub(r"[\s.。、\u200c]", "", text.lower())  # no letter is lost


def test_vowel_signs_belong_to_their_letter() -> None:
    assert rouge_words("बिल्लियाँ, में") == ["बिल्लियाँ", "में"]
    assert rouge_words("กินที่") == ["กิ", "น", "ที่"]
    assert rouge_words("cafe\u0301 CAFÉ") == ["café", "café"]  # composed or not
    assert rouge_l("Ёлка, Ёж!", "ёж") == pytest.approx(2 / 3)


@settings(deadline=None)  # the machine may be busy
@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_words_are_those_of_rouge_score(text: str) -> None:
    assert rouge_words(text) == rouge_words(text, "ascii") == re.findall(r"[a-z0-9]+", text.lower())


@settings(deadline=None)
@given(st.text())
@pytest.mark.slow
def test_every_word_has_a_letter_or_a_digit(text: str) -> None:
    assert all(any(c.isalnum() for c in word) for word in rouge_words(text))
    assert rouge_l(text, text) in (0, 1)


@pytest.mark.parametrize(
    ("texts", "separated"),
    [
        ([], True),
        (["", "!!! 123"], True),
        (["the cat sees it"], True),
        (["我 喜欢 猫", "你 好"], True),  # segmented into words
        (["我 喜 欢 猫"], True),  # as decoded by BERT's tokenizers
        (["你好", "好"], False),
        (["これはPythonで書かれたプログラムです"], False),
        (["she said 你好 to them and went home"], True),
        (["the cat"] * 2000 + ["我喜欢猫"] * 20, True),
        (["我喜欢猫"] * 3000, False),
    ],
)
def test_texts_with_spaces_between_words_are_recognised(texts: list[str], separated: bool) -> None:
    assert has_separated_words(texts) == separated


def test_the_number_of_spaces_in_the_original_may_be_given() -> None:
    assert has_separated_words(["我 喜 欢 猫"], gaps=0) is False and has_separated_words(["我喜欢猫"], gaps=3) is True


def test_a_large_enough_share_of_unspaced_texts_decides() -> None:
    english, chinese = ["the cat sits on the mat and sleeps"] * 6, ["\u6211\u4eec\u4eca\u5929\u53bb\u5317\u4eac"] * 4
    assert has_separated_words(english) and not has_separated_words([*english, *chinese])
    assert has_separated_words([*english * 20, *chinese])  # a few unspaced texts
