"""What came of a training, in words: whether it learnt anything, or diverged.

Nothing here ends a run, and its exit code is 0: everything was written as asked. The words stand at the end of what it
prints, in its log's last note, in the checkpoint's facts and card, and in the demos' summaries.
"""

import json
import math
import shlex
from dataclasses import dataclass, fields
from pathlib import Path

from training.fitlog_record import command
from utils.figures import number

LOST = 3.0
"""The loss at the end over that at the beginning, or of a uniform guess if that is more: diverged from here on."""
MANY_SKIPPED = 0.1
"""Share of steps without a finite loss or gradient."""
REMEDY = "lower --learning_rate, or lengthen --warmup_steps"


def verdict(
    *, best: float, last: float, unigram: float, uniform: float, first_loss: float, last_loss: float, skipped: float
) -> str:
    """What is wrong with a training that ended, or "" if nothing shows. Figures are in bits a token.

    Args:
        best: the lowest validation bound.
        last: the validation bound at the end.
        unigram: what word frequencies alone give on the same sentences; 0: unknown, and nothing is said.
        uniform: what guessing every token alike gives.
        first_loss: the training loss at the first step; 0: unknown.
        last_loss: the training loss in the log's last line; 0: unknown.
        skipped: share of the steps that were left out, since a loss or gradient was not finite.
    """
    if not unigram:
        return ""
    words = []
    guess = max(uniform, unigram)
    rose = not first_loss or last_loss > 1.2 * first_loss or best > LOST * max(guess, first_loss)
    if best > guess + 1 and rose:
        words.append(
            f"the training diverged: its best bound, {number(best, 3)} bits/token, is worse than guessing every token "
            f"alike ({number(guess, 3)}); {REMEDY}"
        )
    elif best >= unigram:
        words.append(
            f"the model has learnt nothing yet: its best bound, {number(best, 3)} bits/token, is not below that of "
            f"word frequencies alone ({number(unigram, 3)}); train longer, or change --learning_rate"
        )
    elif last >= unigram:
        words.append(
            f"the training diverged after its best bound ({number(best, 3)} bits/token): the last one is "
            f"{number(last, 3)}, and word frequencies alone give {number(unigram, 3)}; {REMEDY}"
        )
    if not words and first_loss and last_loss > LOST * max(first_loss, guess):
        words.append(
            f"the training diverged: its loss rose from {number(first_loss, 3)} to {number(last_loss, 3)} bits/token; "
            f"{REMEDY}"
        )
    if skipped > MANY_SKIPPED:
        words.append(f"{100 * skipped:.0f} % of the steps were left out, as no finite loss or gradient came of them")
    return "; ".join(words)


@dataclass
class Figures:
    """What the log is made of. All of it is saved with a state, so that a resumed run writes the same log."""

    nats: float = 0.0
    """Of the training loss since the last line of the log, over all processes; so are the next."""
    targets: float = 0.0
    """Tokens as reports count them, of the steps that were taken."""
    slots: float = 0.0
    filled: float = 0.0
    """Since the beginning, so are the next."""
    tokens: float = 0.0
    skipped: int = 0
    """Steps left out, since a loss or a gradient was not finite."""
    skipped_in_a_row: int = 0
    best: float = math.inf
    seconds: float = 0.0
    warm_step: int = 0
    """`pacing.WarmUp`, and so is the next."""
    warm_seconds: float = 0.0
    eval_sequences: int = -1
    """Validation sentences that are scored, 0: all; -1: that is decided at the first evaluation."""
    first_loss: float = 0.0
    """Bits a token at the first step, 0: unknown; so are the next."""
    last_loss: float = 0.0
    last_bound: float = 0.0
    unigram: float = 0.0
    uniform: float = 0.0
    """Of guessing every token alike."""

    @classmethod
    def of(cls, saved: dict) -> "Figures":
        """Those of a saved state; what it lacks, or has besides, changes nothing that is learnt."""
        return cls(**{field.name: saved[field.name] for field in fields(cls) if field.name in saved})

    def verdict(self, steps: int) -> str:
        """What is wrong with a run that ended after so many steps, or ""."""
        return verdict(
            best=self.best,
            last=self.last_bound,
            unigram=self.unigram,
            uniform=self.uniform,
            first_loss=self.first_loss,
            last_loss=self.last_loss,
            skipped=self.skipped / max(1, steps),
        )


def said_of(log: Path) -> str:
    """The verdict in the last note of a run's log.jsonl, or ""."""
    try:
        *_, last = log.read_text(encoding="utf-8").splitlines()
        return str(json.loads(last).get("verdict", ""))
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""


def uniform_bits(vocab_size: int) -> float:
    """Bits a token of guessing every token alike."""
    return math.log2(max(2, vocab_size))


def closing_words(output: Path, verdict: str, *, of_pairs: bool, with_fitlog: bool) -> str:
    """What is wrong with a finished run, if anything; where its things are, and what to type next."""
    best, page = shlex.quote(str(output / "checkpoint")), command(output) if with_fitlog else ""
    return (
        (f"  WARNING     {verdict}\n" if verdict else "")
        + f"  checkpoint  {best}  (the last one: {output / 'checkpoint-last'})\n"
        f"  log         {output / 'log.jsonl'}, {output / 'curve.png'}\n"
        + (f"  curves      {page}  # this run's, beside its neighbours'\n" if page else "")
        + (
            f"next: python predict_downstream_condition.py --checkpoint {best} --data FILE --output OUT.jsonl\n"
            if of_pairs
            else f"next: python predict.py --checkpoint {best}\n"
        )
        + f"      python compute_elbo.py --checkpoint {best} --data FILE"
    )
