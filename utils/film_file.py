"""Films on disk: an HTML page or an animated GIF, by the name of the file."""

from pathlib import Path

from utils.errors import UserError
from utils.files import require_writable, written_whole
from utils.film import FilmedText, page

FORMATS = (".html", ".gif")


MOST_FILMED = 100
"""Texts of a film; a page of more is large, and nobody watches it."""


def check_film(path: Path, number: int) -> None:
    """Check, before anything is sampled, that a film of `number` texts can be written.

    Raises:
        UserError: if it has another suffix or too many texts, or the path cannot be written.
    """
    if number > MOST_FILMED:
        raise UserError(f"a film of {number} texts: at most {MOST_FILMED}")
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"film={path}: must end in {' or '.join(FORMATS)}")
    require_writable("film", path)


def save_film(path: Path, films: list[FilmedText], process_name: str) -> None:
    """Write a film in one piece.

    Raises:
        UserError: if a GIF would be too large.
    """
    what = "1 text while it is" if len(films) == 1 else f"{len(films)} texts while they are"
    title = f"{what} denoised ({process_name})"
    if path.suffix.lower() == ".gif":
        from utils.film_gif import gif  # Pillow is needed for this only

        content = gif(films, title)
    else:
        content = page(films, title).encode()
    with written_whole(path, binary=True) as file:
        file.write(content)
