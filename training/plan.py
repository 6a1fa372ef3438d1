"""Plan of a training run: its first step, number of steps, batches per step, and the facts of every saved state."""

from dataclasses import dataclass

import torch

from data.batching import mean_batch
from data.tokenized_text import Text
from training.config import TrainConfig
from training.pace import Pace
from training.precision import Precision
from training.resume import Start, batches_per_process, require_steps_left
from utils import job


@dataclass(frozen=True)
class Plan:
    """Plan of a training run."""

    start: Start
    """State from which the run starts."""
    parts: int
    """Batches per step, over all processes."""
    sentences: float
    """Mean number of sentences per step."""
    pace: Pace
    precision: Precision
    facts: dict
    """Facts in every saved state's state.json besides its step."""

    @classmethod
    def of(cls, config: TrainConfig, start: Start, train_text: Text, precision: Precision, facts: dict) -> "Plan":
        """Make the plan from the settings.

        Args:
            config: settings of the run.
            start: state from which the run starts.
            train_text: training text.
            precision: precision of the network.
            facts: those of `setup.identities`, and whether the text holds pairs.

        Raises:
            UserError: if no steps are left, or the processes cannot share a step evenly.
        """
        parts = batches_per_process(config.run, start) * job.world_size()
        sentences = mean_batch(train_text.widths, config.data) * parts
        total = config.run.max_steps or max(1, round(config.run.num_train_epochs * len(train_text) / sentences))
        require_steps_left(config.run, start, total)
        facts = {"parts": parts, "torch": torch.__version__, **facts}
        return cls(start, parts, sentences, Pace.of(config.run, config.optim, total), precision, facts)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.pace.total_steps
