"""What surrounds the training loop: the clock, the log, evaluations, saved states, and lines for the person waiting."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from checkpoint.text_model import TextModel
from data.batching import Part
from data.tokenized_text import Text
from data.tokenizers import vocabulary_size
from evaluation.likelihood import num_tokens
from evaluation.likelihood_report import describe
from training.config import TrainConfig
from training.outcome import Figures, closing_message
from training.output_folder import TOKENIZER, claim
from training.pace import WarmUp
from training.plan import Plan
from training.saved_state import folder_of, save_state
from training.step import Outcome, TrainStep
from training.tracking import Tracker
from training.validation import Validation, require_output, write_checkpoints
from utils import distributed, files
from utils.errors import UserError
from utils.figures import number
from utils.messages import speak

TIME_IS_SHORT = "the time limit is near"
EARLY = (1, 2, 5, 10, 20)
"""Steps after which a line is logged, however rarely it is done later."""


@dataclass(frozen=True)
class Agreement:
    """What all processes know before a step."""

    seconds: float
    """Since the run began."""
    state_is_due: bool
    """By the clock."""
    why: str
    """Why to stop after this step, or ""."""
    counts: list[float]
    """`Bookkeeper.count` of the whole step."""


class Bookkeeper:
    """Keeps the books of a run. Every process has one; the first one writes and speaks."""

    def __init__(self, config: TrainConfig, model: TextModel, valid_text: Text, trainer: TrainStep, plan: Plan) -> None:
        """Open the log of a run that stands at `plan.start`; from here on the output folder is this run's."""
        self.config, self.args, self.model, self.trainer, self.plan = config, config.run, model, trainer, plan
        self.output, self.leads = Path(self.args.output_dir), distributed.rank() == 0
        self.figures = Figures.of(plan.start.facts.get("figures", {}))
        settings, step = {**config.by_name(), **plan.start.kept}, plan.start.step
        if self.leads:
            claim(self.output, settings, step, use_fitlog=self.args.fitlog)
            if not step:
                with files.folder_written_whole(self.output / TOKENIZER) as folder:
                    model.tokenizer.save_pretrained(folder)
        self.tracker = Tracker(
            self.output, settings, active=self.leads, use_fitlog=self.args.fitlog, began=self.figures.seconds
        )
        self.tracker.note({"resumed_after_step": step} if step else {"began_with": model.denoiser.origin})
        self.validation = Validation(config, model, valid_text, trainer, plan, self.figures)
        self.deadline = self.validation.deadline
        self.began = time.monotonic()
        self.earlier = self.agreed_seconds = self.figures.seconds  # that the run had taken before this process
        self.log_clock = self.state_clock = self.began
        self.logged_tokens = self.figures.tokens
        layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        self.bar = tqdm(total=100, desc="training", bar_format=layout, disable=None if self.leads else True)

    # ---- time --------------------------------------------------------------------------------------------------------

    def seconds(self) -> float:
        """Return the time since the run began, over all the processes that worked on it one after another."""
        return self.earlier + time.monotonic() - self.began

    def progress(self, step: int, seconds: float) -> float:
        """Return the share of the training that is done before `step`, for the progress bar as well."""
        share = self.plan.pace.progress(step, seconds)
        self.bar.set_postfix(step=step, refresh=False)
        self.bar.update(100 * share - self.bar.n)
        return share

    def rate(self, step: int, seconds: float) -> float:
        """Return the learning rate of a step."""
        warm_up = WarmUp(self.figures.warm_step, self.figures.warm_seconds)
        rate = self.plan.pace.rate(self.config.optim, step, seconds, warm_up)
        self.figures.warm_step, self.figures.warm_seconds = warm_up.step, warm_up.seconds
        return rate

    def agree(self, parts: list[Part], notice: str) -> Agreement:
        """Settle what all processes must see alike before a step, in one exchange; the clock is the first one's."""
        due = time.monotonic() - self.state_clock > 60 * self.args.save_minutes
        of_leader = [self.seconds(), float(due)] if self.leads else [0.0, 0.0]
        mine = [*of_leader, float(self.deadline.is_near()), float(bool(notice)), *self.count(parts)]
        everything = torch.tensor(mine, dtype=torch.float64).to(self.trainer.device)
        distributed.sum_over_ranks(everything)
        seconds, due, time_is_up, noticed, *counts = everything.tolist()
        self.agreed_seconds = seconds
        why = "asked to stop" if noticed else TIME_IS_SHORT if time_is_up else ""
        return Agreement(seconds, bool(due), why, counts)

    # ---- a step ------------------------------------------------------------------------------------------------------

    def count(self, parts: list[Part]) -> list[float]:
        """This process's share of a step: target tokens, tokens as reports count them, slots, and filled ones."""
        pad = self.model.tokenizer.pad_token_id
        each = [
            (
                int(part.batch.target_mask.sum()),
                num_tokens(part.batch, self.model),  # a [PAD] of a target window is scored but is no token
                self.model.denoiser.num_slots(part.batch.attention_mask),
                int((part.batch.input_ids != pad).sum()),
            )
            for part in parts
        ]
        return [float(sum(column)) for column in zip(*each, strict=True)]

    def add(self, outcome: Outcome, counts: list[float], parts: list[Part]) -> None:
        """Count a step.

        Args:
            outcome: of the step.
            counts: what `count` gave, over all processes.
            parts: this process's batches.

        Raises:
            UserError: if too many steps in a row were skipped.
        """
        figures = self.figures
        if outcome.stepped:
            figures.nats, figures.targets = figures.nats + outcome.nats, figures.targets + counts[1]
            figures.skipped_in_a_row = 0
        else:
            figures.skipped, figures.skipped_in_a_row = figures.skipped + 1, figures.skipped_in_a_row + 1
        figures.tokens += counts[1]
        figures.slots += counts[2]
        figures.filled += counts[3]
        if figures.skipped_in_a_row >= self.args.max_skipped_steps:
            self._give_up(outcome.bad, parts)

    def _give_up(self, bad: list[Part], parts: list[Part]) -> None:
        everyones = distributed.from_everyone((not bad, (bad or parts)[0].locations()))
        only_gradient, places = min(everyones, key=lambda entry: entry[0])  # a process whose loss it was, if any
        what = "gradient" if only_gradient else "loss"
        more = f" and {len(places) - 3} more" if len(places) > 3 else ""
        raise UserError(
            f"the training {what} was not finite in {self.figures.skipped_in_a_row} steps in a row, last on the batch "
            f"of {', '.join(places[:3])}{more}; lower --learning_rate, use --precision fp32, or look at those lines"
        )

    def after(self, step: int, rate: float, agreed: Agreement, epoch: int, position: Callable[[], object]) -> bool:
        """Log, evaluate and save what is due after a step; return whether the run ends here.

        Args:
            step: its number.
            rate: its learning rate.
            agreed: what the processes agreed on before it.
            epoch: of its last batch.
            position: gives that of the data; every process asks for it with a saved state.
        """
        interval = self.validation.interval
        last = step == self.plan.total_steps or self.plan.pace.progress(step, agreed.seconds) == 1
        if last or step in EARLY or step % self.args.logging_steps == 0:
            self.log(step, rate, epoch)
        evaluated = not (last or step % interval == 0) or self.evaluate_and_save(step)
        if last or agreed.why or step % interval == 0 or self.state_is_due(step, agreed):
            self.save_state(step, position(), evaluation_due=not evaluated, finished=last and evaluated)
        if last and evaluated:
            self.close(step)
        elif agreed.why or not evaluated:
            self.pause(step, agreed.why or TIME_IS_SHORT)
        return last or bool(agreed.why) or not evaluated

    def log(self, step: int, rate: float, epoch: int) -> None:
        """Log training figures since the last line."""
        now, figures = time.monotonic(), self.figures
        tokens = figures.tokens - self.logged_tokens
        values = {
            "bits_per_token": figures.nats / figures.targets / math.log(2) if figures.targets else None,
            "learning_rate": rate,
            "epoch": epoch,
            "tokens_per_second": tokens / max(now - self.log_clock, 1e-9),
            **({"skipped_steps": figures.skipped} if figures.skipped else {}),
        }
        self.tracker.train(step, values)
        if figures.targets:
            figures.last_loss = values["bits_per_token"]
            figures.first_loss = figures.first_loss or figures.last_loss
        loss = f"{number(values['bits_per_token'], 3)} bits/token" if figures.targets else "none"
        self.say(
            f"step {step}: training loss {loss}, {values['tokens_per_second']:,.0f} tokens/s, epoch {epoch + 1}"
            + (f"; {figures.skipped} steps skipped so far" if figures.skipped else "")
        )
        figures.nats = figures.targets = 0.0
        self.log_clock, self.logged_tokens = now, figures.tokens

    # ---- evaluation and saving ---------------------------------------------------------------------------------------

    def evaluate_and_save(self, step: int, *, first: bool = False) -> bool:
        """Evaluate the averaged weights and save them, twice if they are the best so far; False if time was short."""
        began = time.monotonic()
        self.model.denoiser.eval()
        with self.trainer.learner.average.swapped_in():
            found = self.validation.run(step, self.agreed_seconds, first=first)
            if found is None:
                return False
            report, is_best = found
            self.tracker.valid(step, report, best=is_best)
            self.say(f"step {step}: validation bound{' (best)' if is_best else ''}: {describe(report)}")
            minutes, verdict = round(self.seconds() / 60, 2), self.figures.verdict(step)
            facts = {"step": step, "training_minutes": minutes, "began_with": self.model.denoiser.origin, **report}
            facts |= {"verdict": verdict} if verdict else {}
            write_checkpoints(self.output, self.model, facts, is_best=is_best)
        self.log_clock += time.monotonic() - began  # the log's speed is that of training
        return True

    def finish_evaluation(self, position: Callable[[], object]) -> bool:
        """Make up for an evaluation that the process before had no time for; return whether the run ends with it."""
        step = self.plan.start.step
        if not self.plan.start.facts.get("evaluation_due"):
            return False
        self.evaluate_and_save(step, first=True)
        if step < self.plan.total_steps:
            return False
        self.save_state(step, position(), finished=True)
        self.close(step)
        return True

    def state_is_due(self, step: int, agreed: Agreement) -> bool:
        """Return whether --save_every says so, or else the clock."""
        return step % self.args.save_every == 0 if self.args.save_every else agreed.state_is_due

    def save_state(self, step: int, position: object, **facts: bool) -> None:
        """Save everything that a later process needs to go on from here."""
        began = time.monotonic()
        self.figures.seconds = self.seconds()
        if self.leads:
            require_output(self.output)
        everything = {"step": step, "position": position, "figures": asdict(self.figures), **self.plan.facts, **facts}
        save_state(self.output, self.trainer.learner, everything, keep_last=self.args.keep_last)
        self.state_clock = time.monotonic()
        self.log_clock += self.state_clock - began

    # ---- words -------------------------------------------------------------------------------------------------------

    def announce(self, train_text: Text) -> None:
        """Say what is about to happen."""
        model, plan, valid = self.model, self.plan, self.validation
        parameters = sum(p.numel() for p in model.denoiser.parameters())
        what, processes = "pairs" if model.pairs else "sentences", distributed.world_size()
        self.say(
            ("warning: the released posterior's loss and figures are no bound\n" if not model.process.is_bound else "")
            + f"{train_text.size} training and {valid.text.size} validation {what}"
            + (f" ({train_text.cuts})" if train_text.cuts else "")
            + (f"; prompt {model.pairs.prompt!r}, target window {model.pairs.target_window}" if model.pairs else "")
            + f"; {parameters / 1e6:.1f} M parameters, {vocabulary_size(model.tokenizer):,} tokens in the vocabulary\n"
            + f"weights: {model.denoiser.origin}\n"
            + (f"{self.args.max_minutes:g} minutes, or " if self.args.max_minutes else "")
            + f"{plan.total_steps:,} steps of {plan.sentences:,.0f} {what} on {self.trainer.device} in "
            f"{self.trainer.precision}, {model.denoiser.network.config._attn_implementation} attention"
            + (f", {processes} processes ({self.args.strategy})" if processes > 1 else "")
            + valid.fewer_scored(self.agreed_seconds)
            + (f"\nresumed after step {plan.start.step:,}" if plan.start.step else "")
        )

    def pause(self, step: int, why: str) -> None:
        """End a process whose run is not done; its state is saved."""
        self.bar.close()
        self.tracker.note({"paused_after_step": step, "why": why})
        self.tracker.close(draw=False)
        self.say(
            f"\n{why}: stopped after step {step:,}, and saved {folder_of(self.output, step)}\n"
            "next: the same command again goes on from there"
        )

    def close(self, step: int) -> None:
        """Finish the logs; say where everything is and what to type next."""
        self.bar.close()
        verdict = self.figures.verdict(step)
        minutes, more = self.seconds() / 60, {"verdict": verdict} if verdict else {}
        self.tracker.note({"steps": step, "minutes": minutes, "target_tokens": int(self.figures.tokens), **more})
        self.tracker.close()
        skipped, share = self.figures.skipped, 100 * self.figures.filled / max(1.0, self.figures.slots)
        self.say(
            f"\ntrained {step:,} steps in {self.seconds() / 60:.1f} minutes; "
            f"best validation bound {number(self.figures.best, 3)} bits/token\n"
            + (f"  skipped     {skipped:,} steps whose loss or gradient was not finite\n" if skipped else "")
            + f"  batches     {share:.1f} % of their slots held tokens\n"
            + closing_message(self.output, verdict, of_pairs=self.model.pairs is not None, with_fitlog=self.args.fitlog)
        )

    def say(self, text: str) -> None:
        """Print once, above any progress bar."""
        if self.leads:
            speak(text)
