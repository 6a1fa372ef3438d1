"""Samples for the reader, drawn at each evaluation of a run: those of predict.py with the run's seed and precision.

They have their own random streams, so that a run trains the same with and without them.
"""

import json
import time
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn

from checkpoint.candidates import draw_windows
from checkpoint.model_parts import ModelParts
from checkpoint.requests import CandidateRequest, SampleRequest
from checkpoint.sampling import decode, sample_rows
from data.pairs import target_text
from data.tokenized_text import Text
from data.tokenizers import text_of
from diffusion.options import SampleArgs
from diffusion.process import StepCallback
from evaluation.likelihood import OutOfTimeError
from training.arguments import TrainArgs
from training.clock import Deadline
from training.parallel import whole_weights
from utils import distributed, job
from utils.messages import warn

MOST_SECONDS = 600
"""Longest time for the samples of an evaluation; other processes wait for them, and give up after half an hour."""
MOST_SHOWN = 160
"""Characters of a sample on the screen; the log has all of them."""


class SampleLog:
    """Samples of a run's model. Every process has one; only the first draws."""

    def __init__(
        self, args: TrainArgs, model: ModelParts, valid_text: Text, wrapped: nn.Module, deadline: Deadline
    ) -> None:
        """Keep what the samples need; `wrapped` is the training step's module, whose weights may be sharded."""
        self.args, self.model, self.valid_text, self.wrapped, self.deadline = args, model, valid_text, wrapped, deadline
        self.failed = False

    def draw(self) -> list[str]:
        """Return samples of the present weights; none if there is not enough time. A collective call.

        A failure costs one warning, and no samples are drawn from then on.
        """
        if not self.args.num_log_samples:
            return []
        texts: list[str] = []
        with whole_weights(self.wrapped):
            if job.rank() == 0 and not self.failed:
                texts = self._draw_in_time()
        texts = distributed.from_leader(texts)  # the others wait here, not within a step that they would measure
        self.deadline.reset()
        return texts

    def _draw_in_time(self) -> list[str]:
        fits, end = self.deadline.part_check(), time.monotonic() + MOST_SECONDS

        def check(finished: Tensor, xt: Tensor) -> None:
            if not fits() or time.monotonic() > end:
                raise OutOfTimeError

        number, steps, seed = self.args.num_log_samples, self.args.sample_steps, self.args.seed
        try:
            return draw_samples(self.model, self.valid_text, number, steps, seed, check)
        except OutOfTimeError:
            return []
        except Exception as error:  # what is only looked at must not stop the run
            self.failed = True
            warn(f"samples: {type(error).__name__}: {error}; the run goes on without them")
            return []


def draw_samples(
    model: ModelParts, valid_text: Text, number: int, num_steps: int, seed: int, on_step: StepCallback
) -> list[str]:
    """Return samples; of a model of pairs, "source -> target" for the first validation pairs.

    Args:
        model: the model, on its device.
        valid_text: validation text.
        number: number of samples.
        num_steps: reverse steps; 0: 128, or T if less.
        seed: equal seeds give the samples the same random streams at every evaluation.
        on_step: called after each forward pass; there is no progress bar.
    """
    sampling = SampleArgs(num_steps=num_steps)
    if model.pairs is None:
        rows = sample_rows(model, SampleRequest(number, seed=seed), sampling, on_step)
        return [decode(model, row) for row in rows]
    ids = [valid_text.sources.sentence(i) for i in range(min(number, len(valid_text)))]
    targets = [""] * len(ids)

    def finish(i: int, windows: list[Tensor]) -> None:
        targets[i] = target_text(model.tokenizer, windows[0])

    request = CandidateRequest(1, seed)
    draw_windows(model, valid_text.layout, ids, range(len(ids)), request, sampling, finish, on_step=on_step)
    return [f"{text_of(model.tokenizer, i.tolist())} -> {target}" for i, target in zip(ids, targets, strict=True)]


def shown_samples(texts: Iterable[str], indent: str) -> str:
    """Return samples as lines for the screen, each shortened to one line."""
    lines = []
    for number, text in enumerate(texts, 1):
        line = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
        lines.append(f"{indent}{number}: {line if len(line) <= MOST_SHOWN else line[: MOST_SHOWN - 4] + ' ...'}")
    return "\n".join(lines)


def samples_in_log(log: Path) -> tuple[int, list[str]]:
    """Return the step and the texts of the latest samples in a run's log; 0 and [] if there are none."""
    try:
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if '"kind": "samples"' in line[:40]]
        found = json.loads(lines[-1])
        return int(found["step"]), [str(text) for text in found["texts"]]
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return 0, []
