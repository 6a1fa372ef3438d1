"""files.py: what is written is whole or absent, and what is damaged says so."""

from pathlib import Path

import pytest

import files
from process import UserError


def test_places_that_cannot_take_results_are_refused_beforehand(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("x")
    files.require_writable("output", file)
    files.require_writable("output_dir", tmp_path / "new" / "er", folder=True)
    for path, folder, message in (
        (tmp_path, False, "is a folder; give a file"),
        (file, True, "is a file; give a folder"),
        (file / "b.txt", False, "a.txt cannot be written to; give another place"),
    ):
        with pytest.raises(UserError, match=message):
            files.require_writable("output", path, folder=folder)
    assert sorted(tmp_path.iterdir()) == [file]


def test_text_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.txt"
    with files.written_whole(file) as out:
        out.write("one")
        assert not file.exists()
    assert file.read_text() == "one"
    with pytest.raises(RuntimeError), files.written_whole(file) as out:
        out.write("two")
        raise RuntimeError
    assert file.read_text() == "one" and list(file.parent.iterdir()) == [file]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for content in ("one", "two"):
        with files.folder_written_whole(folder) as new:
            (new / "a").write_text(content)
        assert (folder / "a").read_text() == content
    with pytest.raises(RuntimeError), files.folder_written_whole(folder) as new:
        (new / "a").write_text("three")
        raise RuntimeError
    assert (folder / "a").read_text() == "two" and list(tmp_path.iterdir()) == [folder]
