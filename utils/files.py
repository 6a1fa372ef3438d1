"""Atomic writing (a temporary file or folder, synced to disk, then renamed), locks, and checksums."""

import contextlib
import ctypes
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import IO, BinaryIO

from safetensors import SafetensorError

from utils.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

MANIFEST = "manifest.json"
LEFTOVER = re.compile(r"\.(.+)\.[a-z0-9_]{8}(\.old)?")  # names that tempfile and folder_written_whole give
RENAME_EXCHANGE = 2  # flag of renameat2(2): exchange two names atomically
AT_FDCWD = -100


def local_path(name: str) -> Path:
    """Return a path with ~ and ~user expanded; an unknown ~user stays."""
    return Path(os.path.expanduser(name))


def label_of(folder: PurePath) -> str:
    """Return the name of a folder for readers elsewhere; of a run's checkpoint, with the name of the run."""
    is_of_run = folder.name in ("checkpoint", "checkpoint-last") and folder.parent.name
    return f"{folder.parent.name}/{folder.name}" if is_of_run else folder.name


def require_writable(option: str, path: Path, *, folder: bool = False) -> None:
    """Check, before any work is done, that a path for results can be written.

    Args:
        option: the flag's name, for the message.
        path: a file or a folder.
        folder: whether the path is a folder.

    Raises:
        UserError: if something else has this path, or it cannot be written.
    """
    if path.is_symlink() and not path.exists():
        raise UserError(f"{option}={path}: a link without a target; remove it, or give another path")
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{option}={os.fsencode(path)!r}: not UTF-8; give another path") from error
    if path.exists() and path.is_dir() != folder:
        raise UserError(f"{option}={path}: a {'file' if folder else 'folder'}; give a {'folder' if folder else 'file'}")
    nearest = next(parent for parent in (path, *path.absolute().parents) if parent.exists() and parent.is_dir())
    blocked = next((parent for parent in path.absolute().parents if parent.exists() and not parent.is_dir()), None)
    if blocked or not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{option}={path}: {blocked or nearest} cannot be written to; give another path")


def rename(old: Path, new: Path) -> None:
    """Rename atomically; all files and folders written here get their names by this call."""
    os.replace(old, new)


def read_text(path: Path, at_most: int = 2**26) -> str:
    """Return a text file's content, at most `at_most` bytes.

    Raises:
        UserError: if it is larger, or is a pipe or a device.
        OSError, ValueError: if it cannot be read or is not UTF-8.
    """
    return read_bytes(path, at_most).decode("utf-8")


def read_bytes(path: Path, at_most: int = 2**26) -> bytes:
    """Return a file's content, at most `at_most` bytes.

    Raises:
        UserError: if it is larger, or is a pipe or a device.
        OSError: if it cannot be read.
    """
    with open_regular(path) as file:
        content = file.read(at_most + 1)  # st_size is no bound: it is 0 in /proc, and a file may grow
    if len(content) > at_most:
        size = max(len(content), path.stat().st_size)
        raise UserError(f"{path}: {size:,} bytes, more than {at_most:,} for a file of this kind; give the right file")
    return content


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading: a pipe would block, and a device such as /dev/zero has no end.

    Raises:
        UserError: if the path is a pipe, a device or a socket.
        OSError: if it cannot be opened, or is a folder.
    """
    if path.exists() and not path.is_dir() and not path.is_file():  # opening a pipe would block
        raise UserError(f"{path}: not a regular file but a pipe, device or socket; give a file")
    file = open(path, "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UserError(f"{path}: not a regular file but a pipe, device or socket; give a file")
    return file


@contextlib.contextmanager
def held_alone(path: Path, refusal: str, *, keep: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Hold an exclusive lock for the duration of a block; the system releases it if the process dies.

    Args:
        path: the lock's file; missing parent folders are made.
        refusal: message if another process holds the lock.
        keep: called at the end of the block; if it returns False, the lock's file is removed, and its folder too if
            that was made here and is empty, so that a refused command leaves nothing.

    Raises:
        UserError: `refusal`, if another process holds the lock. On file systems without locks nothing is checked.
    """
    if fcntl is None:
        yield
        return
    made = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        while True:  # until the locked file still has this path: its last owner may have removed it
            if path.exists():
                open_regular(path).close()  # a pipe would block
            file = held.enter_context(open(path, "a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(refusal) from error
            except OSError:
                break
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    break
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield
        finally:
            if not keep():
                path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    if made:
                        path.parent.rmdir()


@contextlib.contextmanager
def written_whole(path: Path, *, binary: bool = False) -> Iterator[IO]:
    """Open a temporary file beside `path`, renamed to it at the end of the block, or removed after an error.

    Args:
        path: the file to write.
        binary: open it for bytes instead of text.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb" if binary else "w", encoding=None if binary else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~umask())
        rename(Path(temporary), path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:  # as on a full disk
            error.filename = str(path)
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def folder_written_whole(path: Path, *, manifest: bool = False) -> Iterator[Path]:
    """Make a temporary folder beside `path`, renamed to it at the end of the block, or removed after an error.

    Args:
        path: the final path; an earlier folder is exchanged atomically where the file system can (Linux).
        manifest: whether to record the size and checksum of every file, for `manifest_error`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    in_use = _lock_folder(temporary)
    try:
        yield temporary
        for file in temporary.rglob("*"):  # safetensors ignores the umask and excludes other readers
            file.chmod((0o777 if file.is_dir() else 0o666) & ~umask())
        temporary.chmod(0o777 & ~umask())
        if manifest:
            (temporary / MANIFEST).write_text(json.dumps(checksums(temporary), indent=1), encoding="utf-8")
        make_durable(temporary)
        _replace(path, temporary)
        _sync(path.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if reason := _why_not_written(error, temporary):
            raise UserError(f"{path}: cannot be written ({reason}); make room, or give another path") from error
        raise
    finally:
        if in_use is not None:
            os.close(in_use)


def _replace(path: Path, temporary: Path) -> None:
    """Give a temporary folder its final path, and remove an earlier folder there."""
    if path.is_symlink():  # to another disk, for example: the link is removed, its target stays
        path.unlink()
    if path.exists() and exchange(temporary, path):
        shutil.rmtree(temporary)
    elif path.exists():
        previous = temporary.with_name(temporary.name + ".old")
        rename(path, previous)
        rename(temporary, path)
        shutil.rmtree(previous)
    else:
        rename(temporary, path)


def umask() -> int:
    """Return this process's file mode creation mask."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _lock_folder(folder: Path) -> int | None:
    """Lock a folder until the returned handle is closed or the process dies; None where this is not possible."""
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return handle
    except OSError:
        os.close(handle)
        return None


def clear_abandoned(folder: Path) -> None:
    """Remove temporary folders of killed processes from a folder that many processes may write to (a cache).

    `folder_written_whole` locks its temporary folder, so one that can be locked has lost its process.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if LEFTOVER.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            handle = _lock_folder(path)
            if handle is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(handle)


def _why_not_written(error: BaseException, temporary: Path) -> str:
    """Return the reason if an error concerns the folder being written; "" if it concerns a file being read."""
    if isinstance(error, SafetensorError):
        return str(error).splitlines()[0]
    named = getattr(error, "filename", None)
    concerns_it = isinstance(error, OSError) and (named is None or Path(str(named)).is_relative_to(temporary))
    return error.strerror or str(error) if concerns_it else ""


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names atomically; return False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    return renameat2 is not None and not renameat2(
        AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE
    )


def remove_folder(path: Path) -> None:
    """Rename a folder, then remove it, so that an interruption leaves no partial folder under its name."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        renamed = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.")) / "doomed"
        rename(path, renamed)
        shutil.rmtree(renamed.parent)


def clear_leftovers(folder: Path, names: str) -> None:
    """Restore or remove what interrupted writing left: a folder that was renamed away returns, the rest is removed.

    Args:
        folder: a folder that one process at a time writes to, by the functions above.
        names: regular expression of the names that process writes; other entries are left alone.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        leftover = LEFTOVER.fullmatch(path.name)
        if leftover and not re.fullmatch(names, leftover[1]):
            continue
        if leftover and leftover[2] and not (folder / leftover[1]).exists():
            rename(path, folder / leftover[1])
        elif leftover and path.is_dir():
            shutil.rmtree(path)
        elif leftover:
            path.unlink()


def checksums(folder: Path) -> dict[str, dict[str, int | str]]:
    """Return size and SHA-256 of every file in a folder, by name, without its manifest."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
    return {str(file.relative_to(folder)): {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in files}


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with open_regular(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def manifest_error(folder: Path) -> str:
    """Return the first difference between a folder and its manifest, or "" if they agree."""
    try:
        promised = json.loads(read_text(folder / MANIFEST))
        if not promised or any("/" in name or name.startswith(".") for name in promised):
            return f"{MANIFEST} is damaged: it lists no files of this folder"
        for name, facts in promised.items():
            if (folder / name).is_symlink():
                return f"{name} is a link instead of a file"
            size = (folder / name).stat().st_size
            if size != facts["bytes"]:
                return f"{name} has {size} bytes instead of {facts['bytes']}"
            if sha256(folder / name) != facts["sha256"]:
                return f"{name} has changed: its checksum differs"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:  # UserError is one
        return f"{MANIFEST} is damaged ({error})"
    return ""


def make_durable(folder: Path) -> None:
    """Sync a folder and its content to disk, since a rename must not reach the disk before the content."""
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
