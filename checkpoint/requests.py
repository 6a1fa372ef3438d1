"""What is asked of a model: samples, candidates, or a bound at some number of steps."""

import math
from dataclasses import dataclass
from numbers import Real

from utils.errors import UserError, check_ranges, shown

MOST_SAMPLES = 1_000_000  # each has its own random generator of 5 kB


@dataclass(frozen=True)
class SampleRequest:
    """Number and lengths of samples, or a text to fill, and the seed."""

    num_samples: int = 1
    length: int = 0
    """Tokens of each sample; 0: drawn from the training lengths."""
    infill: str = ""
    """Text with [MASK]s to fill; empty: whole texts."""
    infill_pieces: bool = False
    """Whether word pieces may extend the given words beside a gap."""
    batch_size: int = 64
    """Sentences per forward pass; does not change the samples."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, num_samples=(1, MOST_SAMPLES), batch_size=(1, 10**7), length=(0, 10**6), seed=(0, 2**63 - 1))
        if self.length and self.infill:
            raise UserError("give length or infill, not both: the infilled text has its own length")
        if self.infill_pieces and not self.infill:
            raise UserError("infill_pieces is for infill; leave it out")


@dataclass(frozen=True)
class CandidateRequest:
    """Number of candidates of each source, and the seed."""

    mbr_size: int = 3
    """Candidates per source."""
    seed: int = 0
    """Candidate j equals that of seed + j alone."""
    batch_size: int = 64
    """Candidates per batch; does not change them."""

    def __post_init__(self) -> None:
        # the cost of minimum Bayes risk is quadratic in mbr_size
        check_ranges(self, mbr_size=(1, 1000), batch_size=(1, 10**7), seed=(0, 2**63 - 1))


def check_steps(num_steps: float) -> None:
    """Check a number of reverse steps.

    Raises:
        UserError: if it is neither a whole number up to a million nor infinite.
    """
    is_number = isinstance(num_steps, Real) and not isinstance(num_steps, bool)
    if not is_number or (not (0 <= num_steps <= 10**6 and num_steps % 1 == 0) and num_steps != math.inf):
        given = f"{num_steps:g}" if is_number else shown(num_steps)
        raise UserError(f"num_steps={given} must be a whole number in 0..1000000, or inf")
