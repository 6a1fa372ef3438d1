"""film.py: the page holds the film as data, never as markup, and asks for nothing from a network."""

import json
import re

from utils.film import Change, FilmedText, Piece, page

HOSTILE = "</script><script>alert(1)</script><!-- &amp; \u2028"
FILM = FilmedText(
    [Piece("the", False, 2.0, True), Piece(HOSTILE, False, 9.0, False), Piece(".", True, 1.0, False)],
    [[Change(2, "?", 0.25)], [Change(1, HOSTILE, None), Change(2, None, None)], [Change(2, ".", 0.5)]],
)  # fmt: skip


def data_of(html: str) -> dict:
    (found,) = re.findall(r'<script type="application/json" id="film">(.*?)</script>', html, re.S)
    return json.loads(found)


def test_the_state_after_each_pass_follows_from_the_changes() -> None:
    assert FILM.shown(0) == [("the", 0, None), (None, 0, None), (None, 0, None)]
    assert FILM.shown(2) == [("the", 0, None), (HOSTILE, 2, None), (None, 2, None)]  # masked again
    assert FILM.shown(3)[2] == FILM.shown(99)[2] == (".", 3, 0.5)


def test_the_page_holds_pieces_and_changes() -> None:
    found = data_of(page([FILM, FILM], "two texts"))
    (first, second), words = found["texts"], found["words"]
    assert first == second and [piece[0] for piece in first["pieces"]] == ["the", HOSTILE, "."]
    frames = [[[p, None if w < 0 else words[w], q] for p, w, q in frame] for frame in first["frames"]]
    assert frames == [[[2, "?", 0.25]], [[1, HOSTILE, None], [2, None, None]], [[2, ".", 0.5]]]


def test_a_text_cannot_end_its_element_and_the_title_is_escaped() -> None:
    html = page([FILM], "a <b> & c")
    assert "alert(1)<" not in html and "<title>a &lt;b&gt; &amp; c</title>" in html
    assert html.count("<script") == html.count("</script>") == 2 and "<!--" not in html
    assert "innerHTML" not in html and "document.write" not in html  # texts reach the page by textContent


def test_the_page_is_self_contained() -> None:
    """No address but data:, and a policy that forbids any request."""
    html = page([FILM], "t")
    assert not re.findall(r"https?:|//[a-z]|@import|url\(|fetch|XMLHttp|WebSocket", html)
    assert "default-src 'none'" in html


def test_a_page_of_ten_long_texts_is_small() -> None:
    pieces = [Piece(f"word{i}", False, 8.25, False) for i in range(64)]
    film = FilmedText(pieces, [[Change(i, f"word{i}", 0.123456)] for i in range(64)])
    assert len(page([film] * 10, "t").encode()) < 200_000
