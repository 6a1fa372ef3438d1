"""Files that are whole or absent: written beside their place, made durable, renamed there; and checksums to tell."""

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
from pathlib import Path
from typing import IO, BinaryIO

from safetensors import SafetensorError

from utils.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

MANIFEST = "manifest.json"
LEFTOVER = re.compile(r"\.(.+)\.[a-z0-9_]{8}(\.old)?")  # as tempfile and folder_written_whole name them
RENAME_EXCHANGE = 2  # of renameat2(2): the two names change places at once
AT_FDCWD = -100


def local_path(name: str) -> Path:
    """A path as the shell would read it; a ~user that does not exist stays as it is."""
    return Path(os.path.expanduser(name))


def require_writable(option: str, path: Path, *, folder: bool = False) -> None:
    """Refuses a place for results before the work and not after it.

    Args:
        option: the flag's name, for the message.
        path: a file to write, or a folder to fill.
        folder: which of the two.

    Raises:
        UserError: if something else is in the way, or the place cannot be written.
    """
    if path.is_symlink() and not path.exists():
        raise UserError(f"{option}={path}: is a link to nowhere; remove it, or give another place")
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{option}={os.fsencode(path)!r}: not UTF-8; give another name") from error
    if path.exists() and path.is_dir() != folder:
        raise UserError(
            f"{option}={path}: is a {'file' if folder else 'folder'}; give a {'folder' if folder else 'file'}"
        )
    nearest = next(parent for parent in (path, *path.absolute().parents) if parent.exists() and parent.is_dir())
    blocked = next((parent for parent in path.absolute().parents if parent.exists() and not parent.is_dir()), None)
    if blocked or not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{option}={path}: {blocked or nearest} cannot be written to; give another place")


def rename(old: Path, new: Path) -> None:
    """Every file and folder made here gets its name by this call: before it there is nothing, after it all."""
    os.replace(old, new)


def read_text(path: Path, at_most: int = 2**26) -> str:
    """A text file that is not meant to be large.

    Raises:
        UserError: if it is.
        OSError, ValueError: if it cannot be read or is not UTF-8.
    """
    return read_bytes(path, at_most).decode("utf-8")


def read_bytes(path: Path, at_most: int = 2**26) -> bytes:
    """A file that is not meant to be large.

    Raises:
        UserError: if it is, or is a pipe or a device.
        OSError: if it cannot be read.
    """
    with open_regular(path) as file:
        content = file.read(at_most + 1)  # not its size: that of a file in /proc is 0, and a file may grow
    if len(content) > at_most:
        size = max(len(content), path.stat().st_size)
        raise UserError(f"{path}: {size:,} bytes, more than the {at_most:,} that such a file may have; look what it is")
    return content


def open_regular(path: Path) -> BinaryIO:
    """A file opened for reading, if it is one: a pipe would be waited for, and a device such as /dev/zero has no end.

    Raises:
        UserError: if it is a pipe, a device or a socket.
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
    """A lock for the duration of a block; the system takes it back from a process that dies, however it does.

    Args:
        path: of the lock's file; folders above it are made.
        refusal: what to say if another process has it.
        keep: asked at the end of the block whether the lock's file stays; if not, it goes, with its folder if that
            was made for it and is empty: a command that was refused leaves nothing.

    Raises:
        UserError: `refusal`, if another process has it. Where there are no locks (some network disks) nobody has.
    """
    if fcntl is None:
        yield
        return
    made = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        while True:  # a lock on a file that its last owner has removed since is a lock on nothing
            if path.exists():
                open_regular(path).close()  # a pipe would be waited for
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
def written_whole(path: Path) -> Iterator[IO[str]]:
    """A text file opened beside `path` and renamed onto it when the block ends well; otherwise nothing is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~umask())
        rename(Path(temporary), path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:  # a full disk does not say which file
            error.filename = str(path)
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def folder_written_whole(path: Path, *, manifest: bool = False) -> Iterator[Path]:
    """A folder filled beside `path` and renamed onto it when the block ends well; otherwise nothing is left.

    Args:
        path: its place; what stood there before is replaced in one moment where the file system can (Linux).
        manifest: whether to write down the size and checksum of every file, for `whats_wrong`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    in_use = _lock_folder(temporary)
    try:
        yield temporary
        for file in temporary.rglob("*"):  # safetensors lets nobody else read, whatever the umask
            file.chmod((0o777 if file.is_dir() else 0o666) & ~umask())
        temporary.chmod(0o777 & ~umask())
        if manifest:
            (temporary / MANIFEST).write_text(json.dumps(checksums(temporary), indent=1), encoding="utf-8")
        make_durable(temporary)
        if path.is_symlink():  # to another disk, say: the link goes, what it links to stays
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
        _sync(path.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if reason := _why_not_written(error, temporary):
            raise UserError(f"{path}: cannot be written ({reason}); make room, or give another place") from error
        raise
    finally:
        if in_use is not None:
            os.close(in_use)


def umask() -> int:
    """The permissions that this process takes from what it makes."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _lock_folder(folder: Path) -> int | None:
    """A lock on a folder itself, held until the handle is closed or the process dies; None where there are none."""
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
    """Remove what killed processes left half-written in a folder that many processes may be writing to (a cache).

    `folder_written_whole` holds a lock on what it writes, so a temporary folder that can be locked is nobody's.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if LEFTOVER.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            handle = _lock_folder(path)
            if handle is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(handle)


def _why_not_written(error: BaseException, temporary: Path) -> str:
    """If it is about the folder being written, and not about what is read meanwhile."""
    if isinstance(error, SafetensorError):
        return str(error).splitlines()[0]
    named = getattr(error, "filename", None)
    about_it = isinstance(error, OSError) and (named is None or Path(str(named)).is_relative_to(temporary))
    return error.strerror or str(error) if about_it else ""


def exchange(one: Path, other: Path) -> bool:
    """Two names change places in one moment; False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    return renameat2 is not None and not renameat2(
        AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE
    )


def remove_folder(path: Path) -> None:
    """Gone at once under its name, then file by file: an interruption leaves no half folder."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        doomed = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.")) / "doomed"
        rename(path, doomed)
        shutil.rmtree(doomed.parent)


def clear_leftovers(folder: Path, names: str) -> None:
    """What interrupted writing left in a folder: something that had just lost its name gets it back, the rest goes.

    Args:
        folder: that one process at a time writes to, by the functions above.
        names: of what it writes, as a regular expression; anything else in the folder is somebody else's.
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
    """Size and SHA-256 of every file in a folder but its manifest, by name."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
    return {str(file.relative_to(folder)): {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in files}


def sha256(file: Path) -> str:
    """Of a file's content, in hexadecimal."""
    with open_regular(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def whats_wrong(folder: Path) -> str:
    """Why a folder is not what its manifest says, or "" if it is."""
    try:
        promised = json.loads(read_text(folder / MANIFEST))
        if not promised or any("/" in name or name.startswith(".") for name in promised):
            return f"{MANIFEST} is damaged: it names no files of this folder"
        for name, facts in promised.items():
            if (folder / name).is_symlink():
                return f"{name} is a link, and was written as a file"
            size = (folder / name).stat().st_size
            if size != facts["bytes"]:
                return f"{name} has {size} bytes instead of {facts['bytes']}"
            if sha256(folder / name) != facts["sha256"]:
                return f"{name} is not what was written: its checksum differs"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:  # UserError is one
        return f"{MANIFEST} is damaged ({error})"
    return ""


def make_durable(folder: Path) -> None:
    """Everything in a folder is on the disk, not only on its way there: a rename must never overtake its content."""
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
