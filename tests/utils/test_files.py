"""files.py: writing is atomic, and damage is reported."""

import os
from collections.abc import Callable
from pathlib import Path, PurePath

import pytest

from utils import files
from utils.errors import UserError


def test_unwritable_outputs_are_refused_in_advance(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("x")
    files.require_writable("output", file)
    files.require_writable("output_dir", tmp_path / "new" / "er", folder=True)
    for path, folder, message in (
        (tmp_path, False, "a folder; give a file"),
        (file, True, "a file; give a folder"),
        (file / "b.txt", False, "a.txt cannot be written to; give another path"),
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


def test_content_is_synced_to_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut a name must not lead to missing content. The parent folder is synced last."""
    events = []

    def path_of(handle: int) -> str:
        return os.readlink(f"/proc/self/fd/{handle}").replace(str(tmp_path), "")

    monkeypatch.setattr(files.os, "fsync", lambda handle: events.append(path_of(handle)))
    for function in ("rename", "exchange"):
        real = getattr(files, function)
        monkeypatch.setattr(files, function, lambda *args, real=real: events.append("named") or real(*args))
    for _ in range(2):  # a new folder, then a replacement
        events.clear()
        with files.folder_written_whole(tmp_path / "run", manifest=True) as folder:
            (folder / "a").write_text("x")
            beside = f"/{folder.name}"
        before, after = events[: events.index("named")], events[events.index("named") + 1 :]
        assert {f"{beside}/a", f"{beside}/manifest.json", beside} <= set(before) and after == [""]
    events.clear()
    with files.written_whole(tmp_path / "b.txt") as file:
        file.write("x")
    assert len(events) == 2 and events[0].startswith("/.b.txt.") and events[1] == "named"


def test_a_link_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_text("x")
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with files.folder_written_whole(tmp_path / "run") as folder:
        (folder / "a").write_text("y")
    assert not (tmp_path / "run").is_symlink() and (tmp_path / "run" / "a").read_text() == "y"
    assert (tmp_path / "elsewhere" / "mine").read_text() == "x" and len(list(tmp_path.iterdir())) == 2
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    files.remove_folder(tmp_path / "link")
    assert not (tmp_path / "link").exists() and (tmp_path / "elsewhere" / "mine").exists()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match="a link without a target"):
        files.require_writable("output_dir", tmp_path / "nowhere", folder=True)


def test_a_lock_has_one_holder_at_a_time_and_is_released(tmp_path: Path) -> None:
    lock = tmp_path / "new" / "run.lock"
    for _ in range(2):
        with files.held_alone(lock, "not yours"):  # noqa: SIM117
            with pytest.raises(UserError, match="not yours"), files.held_alone(lock, "not yours"):
                pytest.fail("held by two")


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not UTF-8; give another path"):
        files.require_writable("output_dir", Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")), folder=True)


# ---- irregular files -------------------------------------------------------------------------------------------------


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.mark.parametrize("read", [files.read_bytes, files.read_text, files.open_regular])
def test_special_files_are_refused_without_reading(pipe: Path, tmp_path: Path, read: Callable) -> None:
    """A pipe would block, /dev/zero would fill the memory."""
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(UserError, match="not a regular file but a pipe, device or socket; give a file"):
            read(path)
    with pytest.raises(OSError):
        read(tmp_path)
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(OSError):
        read(tmp_path / "circle")


def test_a_file_above_its_size_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 11)
    assert files.read_bytes(tmp_path / "a", 11) == b"x" * 11
    with pytest.raises(UserError, match="11 bytes, more than 10 for a file of this kind"):
        files.read_bytes(tmp_path / "a", 10)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o007])
def test_written_files_and_folders_follow_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with files.written_whole(tmp_path / "file") as file:
            file.write("a")
        with files.folder_written_whole(tmp_path / "folder") as folder:
            (folder / "b").write_text("b")
            (folder / "inside").mkdir(0o700)
    finally:
        os.umask(before)
    modes = {p: p.stat().st_mode & 0o777 for p in tmp_path.rglob("*")}
    assert modes == {p: (0o777 if p.is_dir() else 0o666) & ~mask for p in modes}


def test_leftovers_of_killed_processes_are_removed_and_files_in_use_stay(tmp_path: Path) -> None:
    (tmp_path / ".left.abcd1234").mkdir()
    (tmp_path / ".left.abcd1234" / "tokens.bin").write_text("half")
    (tmp_path / ".notes").mkdir()
    with files.folder_written_whole(tmp_path / "whole") as folder:
        (folder / "tokens.bin").write_text("all")
        files.clear_abandoned(tmp_path)
        assert {p.name for p in tmp_path.iterdir()} == {folder.name, ".notes"}
    files.clear_abandoned(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"whole", ".notes"}
    files.clear_abandoned(tmp_path / "nowhere")


def test_a_lock_whose_file_was_removed_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder removes the lock's file after another process has opened it and before that process locks it."""
    lock, real, removed = tmp_path / "lock", files.fcntl.flock, []

    def late(file: object, how: int) -> None:
        if not removed:
            removed.append(lock.unlink())
        real(file, how)

    monkeypatch.setattr(files.fcntl, "flock", late)
    with files.held_alone(lock, "not yours"):
        assert removed and lock.exists()
        with pytest.raises(UserError, match="not yours"), files.held_alone(lock, "not yours"):
            pass


def test_a_pipe_in_place_of_a_lock_or_a_saved_file_does_not_block(pipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a regular file"), files.held_alone(pipe, "not yours"):
        pass
    with files.folder_written_whole(tmp_path / "state", manifest=True) as folder:
        (folder / "weights").write_bytes(b"")
    (tmp_path / "state" / "weights").unlink()
    os.mkfifo(tmp_path / "state" / "weights")
    assert "not a regular file" in files.manifest_error(tmp_path / "state")


@pytest.mark.parametrize(
    ("folder", "label"),
    [("/a/b c/bert", "bert"), ("/a/run/checkpoint", "run/checkpoint"), ("x/checkpoint-last", "x/checkpoint-last")],
)
def test_a_label_names_the_folder_and_not_where_it_is(folder: str, label: str) -> None:
    assert files.label_of(PurePath(folder)) == label
    assert files.label_of(PurePath("checkpoint")) == "checkpoint"
