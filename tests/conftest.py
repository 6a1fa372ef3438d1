"""Shared toys: vocabularies small enough to enumerate, denoisers whose every output is known."""

import itertools
import os
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test may wait for a network

import pytest  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from process import Batch  # noqa: E402

torch.set_num_threads(1)


class TableDenoiser:
    """p(x0 | xt) fixed by a table: any function of the state, wrong on purpose, so that no identity holds by luck."""

    time_conditioned = False

    def __init__(self, vocab_size: int, *, seed: int = 0, scale: float = 1.5) -> None:
        self.vocab_size, self.seed, self.scale = vocab_size, seed, scale

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits themselves are the hidden state: a deterministic scramble of every position's view of the sentence."""
        position = torch.arange(1, xt.shape[1] + 1, dtype=torch.float64)
        view = ((xt + 1) * attention_mask * position).sum(1, keepdim=True) + position * 0.37 + self.seed
        token = torch.arange(self.vocab_size, dtype=torch.float64)
        return self.scale * torch.sin(view[..., None] * (1.3 + token) + token)

    def decode(self, hidden: Tensor) -> Tensor:
        """The identity."""
        return hidden


class OracleDenoiser:
    """Knows the sentence: all mass on x0 (up to exp(-gap))."""

    time_conditioned = False

    def __init__(self, x0: Tensor, vocab_size: int, gap: float = 1e4) -> None:
        self.logits = gap * torch.nn.functional.one_hot(x0, vocab_size).double()

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        """Ignores what it is shown."""
        return self.logits

    def decode(self, hidden: Tensor) -> Tensor:
        """The identity."""
        return hidden


def text_batch(input_ids: Tensor) -> Batch:
    """A batch whose every token is a target."""
    everything = torch.ones_like(input_ids, dtype=torch.bool)
    return Batch(input_ids, everything, everything)


def all_sentences(tokens: list[int], length: int) -> Tensor:
    """Every sentence of that length over those tokens, int64 [len(tokens) ** length, length]."""
    return torch.tensor(list(itertools.product(tokens, repeat=length)))


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    """Every test starts from the same global seed."""
    torch.manual_seed(0)
    yield
