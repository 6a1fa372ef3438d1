"""Verdict on a finished training run that learned nothing, diverged or skipped many steps; note on a risen bound.

Neither ends a run or changes its exit code. Both are printed at the end and stand in the last note of the log. The
verdict also stands in the checkpoint's facts and model card and in the demos' summaries. The note does not, since
`checkpoint` is that of the lowest bound.
"""

import json
import math
import shlex
from dataclasses import dataclass, fields
from pathlib import Path

from training.log_samples import samples_in_log, shown_samples
from training.records import view_commands
from utils.figures import number

DIVERGENCE_RATIO = 3.0
"""Ratio of the last loss, or of the best bound, to the larger of the first loss and that of a uniform guess, above
which a run has diverged."""
MAX_SKIPPED_SHARE = 0.1
"""Share of steps without a finite loss or gradient above which the verdict mentions them."""
MAX_RISE = 0.02
"""Rise of the validation bound after its minimum, as a share of it, up to which it is not noted. Both evaluations have
the same sentences and draws, so their difference has little noise."""
MIN_RISE_BITS = 0.05
"""Rise in bits/token up to which it is not noted."""
REMEDY = "lower --learning_rate, or lengthen --warmup_steps"


def verdict(
    *, best: float, last: float, unigram: float, uniform: float, first_loss: float, last_loss: float, skipped: float
) -> str:
    """Return the faults of a finished training run, or "" if there are none. Figures are in bits/token.

    Args:
        best: lowest validation bound.
        last: validation bound at the end.
        unigram: cross-entropy of the unigram model on the same sentences; 0: unknown, and the verdict is "".
        uniform: cross-entropy of the uniform distribution.
        first_loss: training loss at the first step; 0: unknown.
        last_loss: training loss in the log's last line; 0: unknown.
        skipped: share of the steps skipped because loss or gradient was not finite.
    """
    if not unigram:
        return ""
    faults = []
    guess = max(uniform, unigram)
    rose = not first_loss or last_loss > 1.2 * first_loss or best > DIVERGENCE_RATIO * max(guess, first_loss)
    if best > guess + 1 and rose:
        faults.append(
            f"the training diverged: its best bound, {number(best, 3)} bits/token, is worse than a uniform guess "
            f"({number(guess, 3)}); {REMEDY}"
        )
    elif best >= unigram:
        faults.append(
            f"the model has learned nothing yet: its best bound, {number(best, 3)} bits/token, is not below that of "
            f"the unigram model ({number(unigram, 3)}); train longer, or change --learning_rate"
        )
    elif last >= unigram:
        faults.append(
            f"the training diverged after its best bound ({number(best, 3)} bits/token): the last one is "
            f"{number(last, 3)}, that of the unigram model {number(unigram, 3)}; {REMEDY}"
        )
    if not faults and first_loss and last_loss > DIVERGENCE_RATIO * max(first_loss, guess):
        faults.append(
            f"the training diverged: its loss rose from {number(first_loss, 3)} to {number(last_loss, 3)} bits/token; "
            f"{REMEDY}"
        )
    if skipped > MAX_SKIPPED_SHARE:
        faults.append(f"{100 * skipped:.0f} % of the steps were skipped: loss or gradient was not finite")
    return "; ".join(faults)


def risen_bound(*, best: float, last: float) -> str:
    """Return a note on a validation bound (bits/token) that rose after its minimum, or "" if it did not."""
    if not last - best > max(MIN_RISE_BITS, MAX_RISE * best):
        return ""
    return (
        f"on held-out text the bound rose from {number(best, 3)} to {number(last, 3)} bits/token; if the training loss "
        "fell meanwhile, the network overfits: train on more text, for fewer steps, or with a higher --dropout"
    )


@dataclass
class Figures:
    """Figures behind the log. They are part of every saved state, so that a resumed run writes the same log."""

    nats: float = 0.0
    """Training loss since the last line of the log, summed over all processes, as are `targets` to `filled`."""
    targets: float = 0.0
    """Scored tokens of the steps taken."""
    slots: float = 0.0
    filled: float = 0.0
    tokens: float = 0.0
    """Tokens since the beginning of the run, as are all figures below."""
    skipped: int = 0
    """Steps skipped because loss or gradient was not finite."""
    skipped_in_a_row: int = 0
    best: float = math.inf
    seconds: float = 0.0
    warm_step: int = 0
    """Step of `pace.WarmUp`; `warm_seconds` is its time."""
    warm_seconds: float = 0.0
    furthest: float = 0.0
    """Largest share of the training done, as `Bookkeeper.progress` returns it."""
    evaluated_at: float = 0.0
    """Training time after the latest evaluation, in seconds; -1: not known yet."""
    eval_sequences: int = -1
    """Validation sentences per evaluation; 0: all; -1: decided at the first evaluation."""
    first_loss: float = 0.0
    """Bits/token at the first step; 0: unknown. The figures below have the same unit."""
    last_loss: float = 0.0
    last_bound: float = 0.0
    best_of: float = -1.0
    """Checksum of what `best` was computed from; -1: unknown. A resumed run may score other sentences."""
    last_of: float = -1.0
    """The same of `last_bound`."""
    unigram: float = 0.0
    uniform: float = 0.0
    """Cross-entropy of the uniform distribution."""

    @classmethod
    def of(cls, saved: dict) -> "Figures":
        """Return the figures of a saved state; missing ones have their defaults, unknown ones are ignored."""
        return cls(**{field.name: saved[field.name] for field in fields(cls) if field.name in saved})

    def verdict(self, steps: int) -> str:
        """Return the verdict on a run that ended after `steps` steps, or ""."""
        return verdict(
            best=self.best,
            last=self.last_bound,
            unigram=self.unigram,
            uniform=self.uniform,
            first_loss=self.first_loss,
            last_loss=self.last_loss,
            skipped=self.skipped / max(1, steps),
        )

    def risen_bound(self, steps: int) -> str:
        """Return the note on a run that ended after `steps` steps, or "" if there is none, or a verdict."""
        comparable = self.unigram and self.best_of == self.last_of
        return risen_bound(best=self.best, last=self.last_bound) if comparable and not self.verdict(steps) else ""


def verdict_in_log(log: Path) -> str:
    """Return the verdict in the last note of a run's log.jsonl, or ""."""
    try:
        *_, last = log.read_text(encoding="utf-8").splitlines()
        return str(json.loads(last).get("verdict", ""))
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""


def uniform_bits(vocab_size: int) -> float:
    """Return the cross-entropy of the uniform distribution over the vocabulary, in bits/token."""
    return math.log2(max(2, vocab_size))


def closing_message(output: Path, verdict: str, note: str, *, of_pairs: bool, trackers: tuple[str, ...]) -> str:
    """Return the last message of a run: its verdict or note, samples and files, and the commands to use next."""
    best, (step, texts) = shlex.quote(str(output / "checkpoint")), samples_in_log(output / "log.jsonl")
    curves = "".join(f"  curves      {command}\n" for command in view_commands(trackers, output))
    return (
        (f"  WARNING     {verdict}\n" if verdict else "")
        + (f"  note        {note}\n" if note else "")
        + (f"  samples     after step {step:,}\n{shown_samples(texts, ' ' * 14)}\n" if texts else "")
        + f"  checkpoint  {best}  (the last one: {output / 'checkpoint-last'})\n"
        f"  log         {output / 'log.jsonl'}\n"
        f"  curve       {output / 'curve.png'}\n"
        + curves
        + (
            f"next: python predict_downstream_condition.py --checkpoint {best} --data FILE --output OUT.jsonl\n"
            if of_pairs
            else f"next: python predict.py --checkpoint {best}\n"
        )
        + f"      python compute_elbo.py --checkpoint {best} --data FILE"
    )
