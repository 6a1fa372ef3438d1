"""film_file.py: the format follows the name; a path that cannot be written is refused before anything is sampled."""

from pathlib import Path

import pytest

from tests.utils.test_film import FILM
from utils.errors import UserError
from utils.film_file import check_film, save_film


def test_the_suffix_chooses_the_format(tmp_path: Path) -> None:
    save_film(tmp_path / "new" / "f.HTML", [FILM], "mdlm")
    save_film(tmp_path / "f.gif", [FILM], "mdlm")
    assert (tmp_path / "new" / "f.HTML").read_text().startswith("<!DOCTYPE html>")
    assert (tmp_path / "f.gif").read_bytes()[:6] == b"GIF89a"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.gif", "new"]  # no temporary file


def test_other_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.html").mkdir()
    for name, message in (("f.mp4", "must end in .html or .gif"), ("film", "must end"), ("folder.html", "a folder")):
        with pytest.raises(UserError, match=message):
            check_film(tmp_path / name, 5)
    with pytest.raises(UserError, match="a film of 101 texts: at most 100"):
        check_film(tmp_path / "f.html", 101)


def test_the_title_counts_the_texts(tmp_path: Path) -> None:
    for number, title in ((1, "1 text while it is denoised (mdlm)"), (2, "2 texts while they are denoised (mdlm)")):
        save_film(tmp_path / "f.html", [FILM] * number, "mdlm")
        assert f"<h1>{title}</h1>" in (tmp_path / "f.html").read_text()
