"""film_gif.py: frames of masks and letters, wrapped lines, few frames of a long film."""

from io import BytesIO

import pytest
from PIL import Image, ImageFont

from tests.utils.test_film import FILM
from utils.errors import UserError
from utils.film import Change, FilmedText, Piece
from utils.film_gif import BLOCK, MARGIN, MOST_FRAMES, PAGE, SIZE, WIDTH, Layout, font_file, gif, hue_of


def frames_of(content: bytes) -> list[Image.Image]:
    picture, found = Image.open(BytesIO(content)), []
    for number in range(picture.n_frames):
        picture.seek(number)
        found.append(picture.convert("RGB").copy())
    return found


def near(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    """Count the pixels of about this colour; a GIF has a palette."""
    pixels = picture.get_flattened_data() if hasattr(picture, "get_flattened_data") else picture.getdata()
    return sum(all(abs(a - b) < 6 for a, b in zip(pixel, colour, strict=True)) for pixel in pixels)


def test_masks_are_blocks_that_become_letters() -> None:
    words = FilmedText(
        [Piece(w, False, 1.0, False) for w in ["one", "two"]], [[Change(0, "one", 1)], [Change(1, "two", 1)]]
    )
    first, second, last = frames_of(gif([words]))
    blocks = [near(frame, BLOCK) for frame in (first, second, last)]
    assert blocks[0] > 1.8 * blocks[1] > 0 and blocks[2] < 5
    assert near(last, hue_of(0)) > 0 and near(last, hue_of(1)) > 0 and near(first, PAGE) > near(first, BLOCK)


def test_lines_break_at_the_width_of_the_picture() -> None:
    long = FilmedText([Piece("interpretation", i % 7 == 3, 1.0, False) for i in range(40)], [])
    layout = Layout(long, ImageFont.truetype(str(font_file()), SIZE), 0)
    assert all(x >= MARGIN and x + width <= WIDTH - MARGIN for x, _, width in layout.boxes)
    assert len({y for _, y, _ in layout.boxes}) > 3


def test_a_long_film_has_few_frames_and_ends_with_the_finished_text() -> None:
    long = FilmedText([Piece("a", False, 1.0, False)] * 200, [[Change(i, "a", 0.5)] for i in range(200)])
    frames = frames_of(gif([long]))
    assert 10 < len(frames) <= MOST_FRAMES + 1 and near(frames[-1], BLOCK) < 5


def test_any_text_is_drawn() -> None:
    assert len(frames_of(gif([FILM, FilmedText([], [])], "title"))) == 4


def test_a_film_too_high_is_refused_and_an_empty_one_is_a_picture() -> None:
    high = FilmedText([Piece("interpretation", False, 1.0, False)] * 300, [])
    with pytest.raises(UserError, match="pixels high, 3,000 at most"):
        gif([high] * 10)
    assert len(frames_of(gif([FilmedText([], [])]))) == 1
