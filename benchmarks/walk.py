"""Count the moves between files that a reader of one call makes: into a function of another file, and back again.

python benchmarks/walk.py

One loss of DiffusionBERT (spindle, forward and backward) and one trajectory of its bound, on two toy sentences. A call
from one file of the project into another is two moves, there and back; what libraries do in between does not count.
"""

import collections
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from data.batch import Batch  # noqa: E402
from diffusion.options import BoundArgs  # noqa: E402
from diffusion.process import Vocabulary  # noqa: E402
from diffusion.process_options import WordFreqArgs  # noqa: E402
from diffusion_word_freq import WordFreqDiffusion  # noqa: E402

SIZE = 12


class Toy(nn.Module):
    """A network without layers."""

    time_conditioned = False

    def __init__(self) -> None:
        """Make a table and a head."""
        super().__init__()
        self.table, self.head = nn.Embedding(SIZE, 8), nn.Linear(8, SIZE)

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        """See Denoiser."""
        return self.table(xt)

    def decode(self, hidden: Tensor) -> Tensor:
        """See Denoiser."""
        return self.head(hidden)


@functools.cache
def project_file(path: str) -> str:
    """Return the path of a source file within the project; "" for this file, a library or generated code."""
    file = Path(path)
    outside = not file.is_relative_to(ROOT) or ".venv" in file.parts or file == Path(__file__)
    return "" if outside else str(file.relative_to(ROOT))


def nearest_project_file(frame: FrameType | None) -> str:
    """Return the project file of the innermost caller that is in one; "" if none is."""
    while frame is not None:
        if file := project_file(frame.f_code.co_filename):
            return file
        frame = frame.f_back
    return ""


def calls_between_files(work: Callable[[], object]) -> collections.Counter[tuple[str, str]]:
    """Run `work`; return how often a function of one file called one of another, by (caller, callee)."""
    calls: collections.Counter[tuple[str, str]] = collections.Counter()

    def count(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and (callee := project_file(frame.f_code.co_filename)):
            caller = nearest_project_file(frame.f_back)
            calls[caller, callee] += caller != callee

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return +calls


def walks() -> dict[str, collections.Counter[tuple[str, str]]]:
    """Return the calls between files of a loss and of a trajectory bound."""
    torch.manual_seed(0)
    process = WordFreqDiffusion(WordFreqArgs(num_steps=16), torch.arange(SIZE) + 1, Vocabulary(SIZE, mask_id=0))
    ids = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 11, 2]])
    everything = torch.ones_like(ids, dtype=torch.bool)
    batch, denoiser = Batch(ids, everything, everything), Toy()

    def loss() -> None:
        process.loss(denoiser, batch, generator=torch.Generator().manual_seed(0)).total.backward()

    @torch.no_grad()
    def bound() -> None:
        process.bound(denoiser, batch, 16, BoundArgs("trajectory"), generator=torch.Generator().manual_seed(0))

    return {"one spindle loss": calls_between_files(loss), "one trajectory bound": calls_between_files(bound)}


def main() -> None:
    """Print the moves, and between which files the most."""
    for name, calls in walks().items():
        files = {file for pair in calls for file in pair if file}
        print(f"{name}: {2 * calls.total()} moves between {len(files)} files")
        for (caller, callee), number in calls.most_common():
            print(f"  {number:4}  {caller or 'outside'} -> {callee}")


if __name__ == "__main__":
    main()
