"""The machine: ranks, device, threads, precision, files that are never half-written, errors in one line."""

import contextlib
import ctypes
import datetime
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import torch
import torch.distributed as dist
from torch import Tensor

from process import UserError

MALLOC_OPTIONS = {-4: 0, -1: 2**31 - 1, -2: 2**28}
"""Of malloc.h: M_MMAP_MAX, no mapping per tensor; M_TRIM_THRESHOLD, M_TOP_PAD: a heap that grows in leaps and stays."""


def rank() -> int:
    """This process's number under torchrun, else 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes train together: torchrun's WORLD_SIZE, else 1."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins torchrun's processes for the duration of a block; does nothing for a single process."""
    if world_size() == 1:
        yield
        return
    patience = datetime.timedelta(hours=12)  # the others wait while the first tokenises a corpus of any size
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=patience, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=patience)
    try:
        yield
    finally:
        dist.destroy_process_group()


def sum_over_ranks(*tensors: Tensor) -> None:
    """Adds each tensor over all processes, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


@contextlib.contextmanager
def leader_first() -> Iterator[None]:
    """The first process runs the block alone, then the others: what it leaves on disk they find ready."""
    if world_size() > 1 and rank() > 0:
        dist.barrier()
    try:
        yield
    finally:  # whatever stopped the first will stop the others, with the same words
        if world_size() > 1 and rank() == 0:
            dist.barrier()


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; auto: this rank's GPU if there is one, else the CPU.

    Raises:
        UserError: if that device does not exist here.
    """
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # .item(), since nothing can be read from device "meta"
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device={name!r} cannot be used here ({reason}); use cpu, cuda, cuda:N or auto") from error
    return device


def set_up_cpu(threads: int) -> None:
    """CPU threads for torch (0 leaves torch's choice), and freed memory kept for the next step.

    Raises:
        UserError: if `threads` is out of range.
    """
    if not 0 <= threads <= 4096:
        raise UserError(f"threads={threads} must lie in 0..4096; 0: torch decides")
    if threads:
        torch.set_num_threads(threads)
    # glibc hands every large tensor back to the system, which then zeroes the same pages again for the next one: a
    # third of a training step over a vocabulary of 30,522. Other C libraries lack mallopt and go on as they are.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        for option, value in MALLOC_OPTIONS.items():
            mallopt(option, value)


def pick_precision(name: str, device: torch.device) -> str:
    """fp32, bf16 or fp16; auto takes bf16 where the hardware multiplies it natively, else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    # torch has no public question for this one; where it cannot be asked, float32 is always right
    return getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which the network runs; weights and losses stay in float32."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


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
    if path.exists() and path.is_dir() != folder:
        raise UserError(
            f"{option}={path}: is a {'file' if folder else 'folder'}; give a {'folder' if folder else 'file'}"
        )
    nearest = next(parent for parent in (path, *path.absolute().parents) if parent.exists() and parent.is_dir())
    blocked = next((parent for parent in path.absolute().parents if parent.exists() and not parent.is_dir()), None)
    if blocked or not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{option}={path}: {blocked or nearest} cannot be written to; give another place")


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[IO[str]]:
    """A text file opened beside `path` and renamed onto it when the block ends well; otherwise nothing is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yield file
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@contextlib.contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """A folder filled beside `path` and renamed onto it when the block ends well; otherwise nothing is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            previous = temporary.with_name(temporary.name + ".old")
            path.rename(previous)
            temporary.rename(path)
            shutil.rmtree(previous)
        else:
            temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def run_script(main: Callable[[], None]) -> None:
    """Calls `main`; what the user got wrong ends in one line on stderr and exit code 2, never a traceback."""
    try:
        main()
    except UserError as error:
        _refuse(str(error))
    except BrokenPipeError:  # the reader of our output has seen enough: `predict.py ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.filename is None:
            raise
        _refuse(f"{error.filename}: {error.strerror}; give another path, or make room")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _refuse(message: str) -> None:
    print(f"{Path(sys.argv[0]).name}: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
