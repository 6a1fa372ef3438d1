"""Film of texts as an animated GIF, for pages that show pictures only."""

import colorsys
import textwrap
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from utils.errors import UserError
from utils.film import FilmedText

SIZE, LINE, MARGIN, WIDTH = 17, 30, 18, 860
"""Pixels: height of the letters, of a line, the margin, and the width of the picture."""
MOST_FRAMES = 60
"""Steps of a long film are left out evenly, as a reader of a page waits a few seconds only."""
MOST_HEIGHT = 3000
"""Pixels; each frame is held in memory."""
MILLISECONDS, AT_THE_END = 130, 2600
"""Duration of a frame, and of the last one."""
PAGE, BLOCK, INK = (251, 250, 247), (213, 215, 219), (35, 38, 43)
HUES = (215, 150, 85, 20)
"""Hues of tokens from the first revealed to the last, in degrees."""


def font_file() -> Path:
    """Return the font that matplotlib carries, so that the picture is equal on all machines."""
    from matplotlib import font_manager

    return Path(font_manager.findfont("DejaVu Sans"))


class Layout:
    """Places of the tokens of one text: lines of the page, wrapped at its width."""

    def __init__(self, film: FilmedText, font: ImageFont.FreeTypeFont, top: int) -> None:
        self.boxes: list[tuple[int, int, int]] = []
        """Left edge, top and width of each token."""
        x, y, space = MARGIN, top, round(font.getlength(" "))
        for i, piece in enumerate(film.pieces):
            x += space * (i > 0 and not piece.glued and x > MARGIN)
            width = max(2, round(font.getlength(piece.text)))
            if x + width > WIDTH - MARGIN and x > MARGIN:
                x, y = MARGIN, y + LINE
            self.boxes.append((x, y, width))
            x += width
        self.bottom = y + LINE


def hue_of(share: float) -> tuple[int, int, int]:
    """Return the colour of a token that was revealed after this share of the steps."""
    place = 3 * min(1.0, max(0.0, share))
    low = min(2, int(place))
    degrees = HUES[low] + (HUES[low + 1] - HUES[low]) * (place - low)
    return tuple(round(255 * part) for part in colorsys.hls_to_rgb(degrees / 360, 0.34, 0.65))


def gif(films: list[FilmedText], title: str = "") -> bytes:
    """Return the film as a GIF: masks are blocks, the colour of a token is the step that revealed it.

    Raises:
        UserError: if it would be higher than MOST_HEIGHT.
    """
    font = ImageFont.truetype(str(font_file()), SIZE)
    small = ImageFont.truetype(str(font_file()), SIZE - 5)
    layouts, top = [], MARGIN + LINE * bool(title)
    for film in films:
        layouts.append(Layout(film, font, top))
        top = layouts[-1].bottom + LINE // 3
    if top > MOST_HEIGHT:
        raise UserError(
            f"the film would be {top:,} pixels high, {MOST_HEIGHT:,} at most; film fewer or shorter texts, or as .html"
        )
    last = max((len(film.frames) for film in films), default=0)
    pictured = max(1, min(last, MOST_FRAMES))
    chosen = sorted({round(i * last / pictured) for i in range(pictured + 1)})
    pictures = []
    for frame in chosen:
        picture = Image.new("RGB", (WIDTH, top + MARGIN // 2), PAGE)
        draw = ImageDraw.Draw(picture)
        if title:
            draw.text((MARGIN, MARGIN), textwrap.shorten(title, 110), font=small, fill=INK)
        for film, layout in zip(films, layouts, strict=True):
            draw_text(draw, film, layout, min(frame, len(film.frames)), font)
        pictures.append(picture.quantize(64, dither=Image.Dither.NONE))
    held = [MILLISECONDS] * (len(pictures) - 1) + [AT_THE_END]
    stream = BytesIO()
    pictures[0].save(stream, "GIF", save_all=True, append_images=pictures[1:], duration=held, loop=0, optimize=True)
    return stream.getvalue()


def draw_text(
    draw: ImageDraw.ImageDraw, film: FilmedText, layout: Layout, frame: int, font: ImageFont.FreeTypeFont
) -> None:
    """Draw one text after `frame` steps."""
    for piece, (x, y, width), (text, when, _) in zip(film.pieces, layout.boxes, film.shown(frame), strict=True):
        if text is None:
            draw.rounded_rectangle((x, y + 2, x + width - 1, y + LINE - 8), 3, fill=BLOCK)
            continue
        colour = INK if piece.given else hue_of((when - 1) / max(1, len(film.frames) - 1))
        draw.text((x, y), text, font=font, fill=colour)
        if when == frame and not piece.given and frame < len(film.frames):
            draw.line((x, y + LINE - 7, x + width, y + LINE - 7), fill=colour, width=2)
