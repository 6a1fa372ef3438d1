"""Time, log, evaluations, saved states and printed lines of a training run."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from checkpoint.model_parts import ModelParts
from data.batching import Part
from data.tokenized_text import Text
from data.tokenizers import vocabulary_size
from evaluation.likelihood import num_tokens
from evaluation.likelihood_report import format_report
from models.lora import trained_share
from training.config import TrainConfig
from training.log_samples import SampleLog, shown_samples
from training.outcome import Figures, closing_message
from training.output_folder import TOKENIZER, claim, require_outside
from training.pace import WarmUp
from training.plan import Plan
from training.saved_state import folder_of, save_state
from training.step import StepResult, TrainStep
from training.tracking import Tracker
from training.validation import Validation, require_output, write_checkpoints
from utils import distributed, files, job
from utils.errors import UserError
from utils.figures import duration, number
from utils.messages import speak

TIME_IS_SHORT = "the time limit is near"
PRINT_SECONDS = 10.0
"""Least time between two printed lines of the training loss; all of them are in the log."""
EARLY = (1, 2, 5, 10, 20)
"""Steps after which a line is always logged, whatever --logging_steps is."""


@dataclass(frozen=True)
class Agreement:
    """Values that all processes share before a step."""

    seconds: float
    """Seconds since the run began."""
    state_is_due: bool
    """Whether --save_minutes have passed since the last saved state."""
    stop_reason: str
    """Reason to stop after this step, or ""."""
    counts: list[float]
    """Sum of `Bookkeeper.count` over all processes."""


class Bookkeeper:
    """Log, evaluate and save a training run. Every process has one; only the first writes and prints."""

    def __init__(
        self, config: TrainConfig, model: ModelParts, valid_text: Text, trainer: TrainStep, plan: Plan
    ) -> None:
        """Claim the output folder and open the log of a run that starts or resumes at `plan.start`."""
        self.config, self.args, self.model, self.trainer, self.plan = config, config.run, model, trainer, plan
        self.output, self.is_leader = Path(self.args.output_dir), job.rank() == 0
        self.figures = Figures.of(plan.start.facts.get("figures", {}))
        settings, step = {**config.by_name(), **plan.start.kept}, plan.start.step
        if config.network.lora_rank:
            require_outside(self.output, config.network.model_name_or_path)
        if self.is_leader:
            claim(self.output, settings, step)
            if not step:
                with files.folder_written_whole(self.output / TOKENIZER) as folder:
                    model.tokenizer.save_pretrained(folder)
        began, trackers = self.figures.seconds, self.args.trackers
        self.tracker = Tracker(self.output, settings, active=self.is_leader, trackers=trackers, began=began)
        self.tracker.note({"resumed_after_step": step} if step else {"began_with": model.denoiser.origin})
        self.validation = Validation(config, model, valid_text, trainer, plan, self.figures)
        self.deadline = self.validation.deadline
        self.samples = SampleLog(config.run, model, valid_text, trainer.wrapped, self.deadline)
        self.began = time.monotonic()
        self.seconds_before = self.agreed_seconds = self.figures.seconds  # spent by earlier processes of this run
        self.log_clock = self.state_clock = self.print_clock = self.began
        self.logged_tokens = self.figures.tokens
        layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        self.bar = tqdm(total=100, desc="training", bar_format=layout, disable=None if self.is_leader else True)

    # ---- time --------------------------------------------------------------------------------------------------------

    def seconds(self) -> float:
        """Return the training time in seconds, summed over the successive processes of the run."""
        return self.seconds_before + time.monotonic() - self.began

    def progress(self, step: int, seconds: float) -> float:
        """Return the largest share of the training done so far, and update the progress bar.

        A prolonged run does not enter a phase again that it has left, so the share never falls.
        """
        share = self.plan.pace.progress(step, seconds)
        self.bar.set_postfix(step=step, refresh=False)
        self.bar.update(100 * share - self.bar.n)
        self.figures.furthest = max(self.figures.furthest, share)
        return self.figures.furthest

    def rate(self, step: int, seconds: float) -> float:
        """Return the learning rate of a step."""
        warm_up = WarmUp(self.figures.warm_step, self.figures.warm_seconds)
        rate = self.plan.pace.rate(self.config.optim, step, seconds, warm_up)
        self.figures.warm_step, self.figures.warm_seconds = warm_up.step, warm_up.seconds
        return rate

    def agree(self, parts: list[Part], stop_signal: str) -> Agreement:
        """Exchange, in one all-reduce, what all processes must share before a step; the first one's clock counts."""
        due = time.monotonic() - self.state_clock > 60 * self.args.save_minutes
        leader_values = [self.seconds(), float(due)] if self.is_leader else [0.0, 0.0]
        own = [*leader_values, float(self.deadline.is_near()), float(bool(stop_signal)), *self.count(parts)]
        total = torch.tensor(own, dtype=torch.float64).to(self.model.device)
        distributed.sum_over_ranks(total)
        seconds, due, time_is_up, signalled, *counts = total.tolist()
        self.agreed_seconds = seconds
        stop_reason = "asked to stop" if signalled else TIME_IS_SHORT if time_is_up else ""
        return Agreement(seconds, bool(due), stop_reason, counts)

    # ---- a step ------------------------------------------------------------------------------------------------------

    def count(self, parts: list[Part]) -> list[float]:
        """Return this process's counts of a step: target tokens, reported tokens, slots, slots that hold tokens."""
        pad = self.model.tokenizer.pad_token_id
        each = [
            (
                int(part.batch.target_mask.sum()),
                num_tokens(part.batch, self.model),  # excludes the scored [PAD] of a target window
                self.model.denoiser.num_slots(part.batch.attention_mask),
                int((part.batch.input_ids != pad).sum()),
            )
            for part in parts
        ]
        return [float(sum(column)) for column in zip(*each, strict=True)]

    def add(self, result: StepResult, counts: list[float], parts: list[Part]) -> None:
        """Add a step to the figures.

        Args:
            result: result of the step.
            counts: `Agreement.counts` of the step.
            parts: batches of this process.

        Raises:
            UserError: if --max_skipped_steps steps in a row were skipped.
        """
        figures = self.figures
        if result.stepped:
            figures.nats, figures.targets = figures.nats + result.nats, figures.targets + counts[1]
            figures.skipped_in_a_row = 0
        else:
            figures.skipped, figures.skipped_in_a_row = figures.skipped + 1, figures.skipped_in_a_row + 1
        figures.tokens += counts[1]
        figures.slots += counts[2]
        figures.filled += counts[3]
        if figures.skipped_in_a_row >= self.args.max_skipped_steps:
            self._give_up(result.nonfinite, parts)

    def _give_up(self, nonfinite: list[Part], parts: list[Part]) -> None:
        reports = distributed.from_everyone((not nonfinite, (nonfinite or parts)[0].locations()))
        only_gradient, locations = min(reports, key=lambda report: report[0])  # prefer a process with a bad loss
        what = "gradient" if only_gradient else "loss"
        more = f" and {len(locations) - 3} more" if len(locations) > 3 else ""
        raise UserError(
            f"the training {what} was not finite in {self.figures.skipped_in_a_row} steps in a row, last on the batch "
            f"of {', '.join(locations[:3])}{more}; lower --learning_rate, use --precision fp32, or check those lines"
        )

    def after(self, step: int, rate: float, agreed: Agreement, epoch: int, position: Callable[[], object]) -> bool:
        """Log, evaluate and save as due after a step; return whether to stop.

        Args:
            step: number of the step.
            rate: learning rate of the step.
            agreed: result of `agree` before the step.
            epoch: epoch of the step's last batch.
            position: function that returns the position in the data; a collective call.
        """
        last = step == self.plan.total_steps or self.plan.pace.progress(step, agreed.seconds) == 1
        due = self.validation.is_due(step, agreed.seconds)
        if last or step in EARLY or step % self.args.logging_steps == 0:
            self.log(step, rate, epoch, aloud=last or step in EARLY)
        evaluated = not (last or due) or self.evaluate_and_save(step, last=last)
        if last or agreed.stop_reason or due or self.state_is_due(step, agreed):  # never checkpoints without a state
            self.save_state(step, position(), evaluation_due=not evaluated, finished=last and evaluated)
        if last and evaluated:
            self.close(step)
        elif agreed.stop_reason or not evaluated:
            self.pause(step, agreed.stop_reason or TIME_IS_SHORT)
        return last or bool(agreed.stop_reason) or not evaluated

    def log(self, step: int, rate: float, epoch: int, *, aloud: bool) -> None:
        """Log the training figures since the last logged step.

        Args:
            step: number of the step.
            rate: its learning rate.
            epoch: epoch of its last batch.
            aloud: print a line in any case; otherwise only if the last one is `PRINT_SECONDS` old.
        """
        now, figures = time.monotonic(), self.figures
        tokens = figures.tokens - self.logged_tokens
        values = {
            "bits_per_token": figures.nats / figures.targets / math.log(2) if figures.targets else None,
            "learning_rate": rate,
            "epoch": epoch,
            "tokens_per_second": tokens / max(now - self.log_clock, 1e-9),
            **({"skipped_steps": figures.skipped} if figures.skipped else {}),
        }
        self.tracker.train(step, values, warm_start=figures.furthest < self.args.warm_start)
        if figures.targets:
            figures.last_loss = values["bits_per_token"]
            figures.first_loss = figures.first_loss or figures.last_loss
        loss = f"{number(values['bits_per_token'], 3)} bits/token" if figures.targets else "none"
        if aloud or now - self.print_clock > PRINT_SECONDS:
            self.print_clock = now
            self.say(
                f"step {step}: training loss {loss}, {values['tokens_per_second']:,.0f} tokens/s, epoch {epoch + 1}"
                + self._time_left(step)
                + (f"; {figures.skipped} steps skipped so far" if figures.skipped else "")
            )
        figures.nats = figures.targets = 0.0
        self.log_clock, self.logged_tokens = now, figures.tokens

    def _time_left(self, step: int) -> str:
        """Return ", ... left" for a printed line; "" after the last step and where a progress bar shows it."""
        left = self.plan.pace.seconds_left(step, self.seconds(), self.plan.start.step, self.seconds_before)
        return f", {duration(left)} left" if left and self.bar.disable else ""

    # ---- evaluation and saving ---------------------------------------------------------------------------------------

    def evaluate_and_save(self, step: int, *, first: bool = False, last: bool = False) -> bool:
        """Evaluate and save the averaged weights; return False if the time limit left no time.

        Args:
            step: number of steps done.
            first: whether this is the first work of the process.
            last: whether the run ends here, so that its closing message has the samples.
        """
        began = time.monotonic()
        self.model.denoiser.eval()
        with self.trainer.learner.average.swapped_in():
            found = self.validation.run(step, self.agreed_seconds, first=first)
            if found is None:
                return False
            report, is_best = found
            self.tracker.valid(step, report, best=is_best)
            self.say(f"step {step}: validation bound{' (best)' if is_best else ''}: {format_report(report)}")
            minutes, verdict = round(self.seconds() / 60, 2), self.figures.verdict(step)
            facts = {"step": step, "training_minutes": minutes, "began_with": self.model.denoiser.origin, **report}
            facts |= {"verdict": verdict} if verdict else {}
            write_checkpoints(self.output, self.model, facts, is_best=is_best)
            texts = self.samples.draw()
        if texts:
            self.tracker.samples(step, texts)
        if texts and not last:
            self.say(shown_samples(texts, "  sample "))
        self.log_clock += time.monotonic() - began  # the logged speed excludes evaluation
        return True

    def finish_evaluation(self, position: Callable[[], object]) -> bool:
        """Run the evaluation that the previous process had no time for; return whether the run is done."""
        step = self.plan.start.step
        if not self.plan.start.facts.get("evaluation_due"):
            return False
        self.evaluate_and_save(step, first=True, last=step == self.plan.total_steps)
        if step < self.plan.total_steps:
            return False
        self.save_state(step, position(), finished=True)
        self.close(step)
        return True

    def state_is_due(self, step: int, agreed: Agreement) -> bool:
        """Return whether a state is due by --save_every, or else by --save_minutes."""
        return step % self.args.save_every == 0 if self.args.save_every else agreed.state_is_due

    def save_state(self, step: int, position: object, **facts: bool) -> None:
        """Save the training state, from which a later process can resume."""
        began = time.monotonic()
        self.figures.seconds = self.seconds()
        if self.is_leader:
            require_output(self.output)
        state_facts = {"step": step, "position": position, "figures": asdict(self.figures), **self.plan.facts, **facts}
        save_state(self.output, self.trainer.learner, state_facts, keep_last=self.args.keep_last)
        self.state_clock = time.monotonic()
        self.log_clock += self.state_clock - began

    # ---- messages ----------------------------------------------------------------------------------------------------

    def announce(self, train_text: Text) -> None:
        """Print data, model and settings of the run before its first step."""
        model, plan, valid = self.model, self.plan, self.validation
        parameters = sum(p.numel() for p in model.denoiser.parameters())
        unit, processes = "pairs" if model.pairs else "sentences", job.world_size()
        self.say(
            (
                "warning: the loss and figures of the released posterior are not bounds\n"
                if not model.process.is_bound
                else ""
            )
            + f"{train_text.size} training and {valid.text.size} validation {unit}"
            + (f" ({train_text.cuts})" if train_text.cuts else "")
            + (f"; prompt {model.pairs.prompt!r}, target window {model.pairs.target_window}" if model.pairs else "")
            + f"; {parameters / 1e6:.1f} M parameters{trained_share(model.denoiser)}, "
            + f"{vocabulary_size(model.tokenizer):,} tokens in the vocabulary\n"
            + f"weights: {model.denoiser.origin}\n"
            + (f"at most {self.args.max_minutes:g} minutes or " if self.args.max_minutes else "")
            + f"{plan.total_steps:,} steps of {plan.sentences:,.0f} {unit} on {self.trainer.device} in "
            + self.trainer.precision
            + (f" ({plan.precision.reason})" if plan.precision.reason else "")
            + f", {model.denoiser.network.config._attn_implementation} attention"
            + (f", {processes} processes ({self.args.strategy})" if processes > 1 else "")
            + valid.fewer_scored(self.agreed_seconds)
            + (f"\nresumed after step {plan.start.step:,}" if plan.start.step else "")
        )

    def pause(self, step: int, reason: str) -> None:
        """Close the logs of an unfinished run whose state is saved, and print how to resume."""
        self.bar.close()
        self.tracker.note({"paused_after_step": step, "why": reason})
        self.tracker.close(draw=False)
        self.say(
            f"\n{reason}: stopped after step {step:,}, and saved {folder_of(self.output, step)}\n"
            "next: run the same command again to resume from there"
        )

    def close(self, step: int) -> None:
        """Close the logs of a finished run; print its results and the next command."""
        self.bar.close()
        verdict, note = self.figures.verdict(step), self.figures.risen_bound(step)
        judged = {name: text for name, text in (("verdict", verdict), ("risen_bound", note)) if text}
        minutes, of_pairs = self.seconds() / 60, self.model.pairs is not None
        self.tracker.note({"steps": step, "minutes": minutes, "target_tokens": int(self.figures.tokens), **judged})
        self.tracker.close()
        skipped, share = self.figures.skipped, 100 * self.figures.filled / max(1.0, self.figures.slots)
        self.say(
            f"\ntrained {step:,} steps in {self.seconds() / 60:.1f} minutes; "
            f"best validation bound {number(self.figures.best, 3)} bits/token\n"
            + (f"  skipped     {skipped:,} steps whose loss or gradient was not finite\n" if skipped else "")
            + f"  batches     {share:.1f} % of their slots held tokens\n"
            + closing_message(self.output, verdict, note, of_pairs=of_pairs, trackers=self.args.trackers)
        )

    def say(self, text: str) -> None:
        """Print on the first process only, above any progress bar."""
        if self.is_leader:
            speak(text)
