"""What surrounds the training loop: clock, log, evaluation, checkpoints, saved states, words for the person waiting."""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from checkpoint.folder import save_checkpoint, weights_of
from checkpoint.text_model import TextModel
from data.batching import Part
from data.splits import DataArgs
from data.tokenized_text import Text
from data.tokenizers import vocabulary_size
from evaluation.likelihood import OutOfTimeError, num_tokens, pick, score_text
from evaluation.likelihood_report import describe
from training.arguments import TrainArgs
from training.clock import Deadline
from training.optim import OptimArgs
from training.outcome import Figures, closing_words, uniform_bits
from training.output_folder import TOKENIZER, claim
from training.pace import Pace, WarmUp, evaluation_plan, evaluation_steps, is_adaptable
from training.parallel import whole_weights
from training.saved_state import Learner, folder_of, save_state
from training.tracking import Tracker
from utils import distributed, files
from utils.errors import UserError
from utils.figures import number
from utils.messages import speak

TIME_IS_SHORT = "the time limit is near"
EARLY = (1, 2, 5, 10, 20)
"""Steps after which the log says something, however rarely it does later."""


@dataclass(frozen=True)
class Agreement:
    """What all processes know before a step."""

    seconds: float
    """That the run has taken."""
    state_is_due: bool
    """By the clock."""
    why: str
    """To stop after this step, or ""."""
    counts: list[float]
    """`Bookkeeper.count` of the whole step."""


class Bookkeeper:
    """One for every process; the first one writes and speaks."""

    def __init__(
        self,
        args: TrainArgs,
        settings: dict,
        run: TextModel,
        valid_text: Text,
        learner: Learner,
        wrapped: torch.nn.Module,
        device: torch.device,
        data: DataArgs,
        figures: Figures,
        *,
        step: int,
        pace: Pace,
        per_step: float,
    ) -> None:
        """Opens the log of a run that stands after `step`; from here on the output folder is this run's."""
        self.args, self.run, self.valid_text, self.learner, self.wrapped = args, run, valid_text, learner, wrapped
        self.device, self.figures, self.pace, self.per_step = device, figures, pace, per_step
        self.batch_size = data.slots // data.max_length  # for scoring: as many as fit, however long
        self.output, self.leads = Path(args.output_dir), distributed.rank() == 0
        if self.leads:
            claim(self.output, settings, step, use_fitlog=args.fitlog)
            if not step:
                with files.folder_written_whole(self.output / TOKENIZER) as folder:
                    run.tokenizer.save_pretrained(folder)
        self.tracker = Tracker(self.output, settings, active=self.leads, use_fitlog=args.fitlog, began=figures.seconds)
        self.tracker.note({"resumed_after_step": step} if step else {"began_with": self.began_with})
        self.eval_steps = self._plan(pace.total_steps)[0]
        if not (pace.max_minutes and is_adaptable(args)):
            figures.eval_sequences = self._plan(pace.total_steps)[1]
        self.began = time.monotonic()
        self.earlier = self.agreed_seconds = figures.seconds  # that the run had taken before this process
        self.log_clock = self.state_clock = self.began
        self.deadline = Deadline(args.time_limit)
        self.logged_tokens = figures.tokens
        layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        self.bar = tqdm(total=100, desc="training", bar_format=layout, disable=None if self.leads else True)

    # ---- time --------------------------------------------------------------------------------------------------------

    def seconds(self) -> float:
        """Since the run began, over all the processes that worked on it one after another."""
        return self.earlier + time.monotonic() - self.began

    def progress(self, step: int, seconds: float) -> float:
        """The share of the training that is done before `step`, for the progress bar as well."""
        share = self.pace.progress(step, seconds)
        self.bar.set_postfix(step=step, refresh=False)
        self.bar.update(100 * share - self.bar.n)
        return share

    def rate(self, optim: OptimArgs, step: int, seconds: float) -> float:
        """The learning rate of a step."""
        warm_up = WarmUp(self.figures.warm_step, self.figures.warm_seconds)
        rate = self.pace.rate(optim, step, seconds, warm_up)
        self.figures.warm_step, self.figures.warm_seconds = warm_up.step, warm_up.seconds
        return rate

    # ---- a step ------------------------------------------------------------------------------------------------------

    def agree(self, parts: list[Part], notice: str) -> "Agreement":
        """What all processes must see alike before a step, in one exchange; the clock is the first one's."""
        due = time.monotonic() - self.state_clock > 60 * self.args.save_minutes
        of_leader = [self.seconds(), float(due)] if self.leads else [0.0, 0.0]
        mine = [*of_leader, float(self.deadline.is_near()), float(bool(notice)), *self.count(parts)]
        everything = torch.tensor(mine, dtype=torch.float64).to(self.device)
        distributed.sum_over_ranks(everything)
        seconds, due, time_is_up, noticed, *counts = everything.tolist()
        self.agreed_seconds = seconds
        why = "asked to stop" if noticed else "the time limit is near" if time_is_up else ""
        return Agreement(seconds, bool(due), why, counts)

    def count(self, parts: list[Part]) -> list[float]:
        """This process's share of a step: target tokens, tokens as reports count them, slots, and filled ones."""
        pad = self.run.tokenizer.pad_token_id
        each = [
            (
                int(part.batch.target_mask.sum()),
                num_tokens(part.batch, self.run),  # a [PAD] of a target window is scored but is no token
                self.run.denoiser.num_slots(part.batch.attention_mask),
                int((part.batch.input_ids != pad).sum()),
            )
            for part in parts
        ]
        return [float(sum(column)) for column in zip(*each, strict=True)]

    def add(self, nats: float, counts: list[float], parts: list[Part], bad: list[Part], *, stepped: bool) -> None:
        """Count a step of all processes.

        Args:
            nats: of its loss.
            counts: what `count` gave, over all processes.
            parts: this process's batches.
            bad: those of them whose loss was not finite.
            stepped: whether the weights moved; otherwise the step was left out.

        Raises:
            UserError: if too many steps in a row were left out.
        """
        figures = self.figures
        if stepped:
            figures.nats, figures.targets = figures.nats + nats, figures.targets + counts[1]
            figures.skipped_in_a_row = 0
        else:
            figures.skipped, figures.skipped_in_a_row = figures.skipped + 1, figures.skipped_in_a_row + 1
        figures.tokens += counts[1]
        figures.slots += counts[2]
        figures.filled += counts[3]
        if figures.skipped_in_a_row >= self.args.max_skipped_steps:
            everyones = distributed.from_everyone((not bad, (bad or parts)[0].places()))
            only_gradient, places = min(everyones, key=lambda entry: entry[0])  # a process whose loss it was, if any
            what = "gradient" if only_gradient else "loss"
            more = f" and {len(places) - 3} more" if len(places) > 3 else ""
            raise UserError(
                f"the training {what} was not finite in {figures.skipped_in_a_row} steps in a row, last on the batch "
                f"of {', '.join(places[:3])}{more}; lower --learning_rate, use --precision fp32, or look at those lines"
            )

    def log(self, step: int, rate: float, epoch: int) -> None:
        """Training figures since the last line of the log."""
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
        """The bound on the validation sentences with the averaged weights; they are saved, twice if the best so far.

        Args:
            step: after which.
            first: whether this process has done nothing else yet.

        Returns:
            Whether there was the time for it.

        Raises:
            UserError: if there was not, though it came first: there never will be.
        """
        began, run = time.monotonic(), self.run
        indices = self._sentences(step)
        run.denoiser.eval()
        with self.learner.average.in_place():
            try:
                report = self._evaluate(indices)
            except OutOfTimeError as error:
                if first:
                    raise UserError(
                        f"time_limit={self.args.time_limit} is too short for an evaluation of {len(indices)} "
                        "sentences; give more time, or fewer --eval_sequences with --resume true"
                    ) from error
                return False
            self.deadline.start_again()  # an evaluation may be given up, so it is no part of the longest step
            is_best = report["bits_per_token"] < self.figures.best
            self._remember(report, indices)
            self.tracker.valid(step, report, best=is_best)
            self.say(f"step {step}: validation bound{' (best)' if is_best else ''}: {describe(report)}")
            minutes = round(self.seconds() / 60, 2)
            run.facts = {"step": step, "training_minutes": minutes, "began_with": self.began_with, **report}
            if verdict := self.figures.verdict(step):
                run.facts["verdict"] = verdict
            weights = weights_of(run)
            for name in ("checkpoint-last", "checkpoint") if is_best else ("checkpoint-last",):
                if self.leads:
                    self._require_output()
                    save_checkpoint(self.output / name, run, weights)
        self.log_clock += time.monotonic() - began  # the log's speed is that of training
        return True

    def _plan(self, total_steps: float) -> tuple[int, int]:
        windows = evaluation_steps(self.run.process.num_steps, self.args.eval_step_size)
        return evaluation_plan(self.args, total_steps, self.per_step, windows, len(self.valid_text))

    def _sentences(self, step: int) -> np.ndarray:
        """Which validation sentences are scored: by the clock, the first evaluation knows how long the training is."""
        if self.figures.eval_sequences < 0:
            share = max(self.pace.progress(step + 1, self.agreed_seconds), 1e-9)
            self.figures.eval_sequences = self._plan(min(self.pace.total_steps, step / share))[1]
        return pick(self.valid_text, self.figures.eval_sequences)

    def _remember(self, report: dict, indices: np.ndarray) -> None:
        """What the verdict at the end is made of."""
        figures = self.figures
        figures.best, figures.last_bound = min(figures.best, report["bits_per_token"]), report["bits_per_token"]
        figures.unigram = report["unigram_bits_per_token"]
        scored = self.valid_text.target_lengths[indices].sum() / report["num_tokens"]  # of pairs, a [PAD] is no token
        figures.uniform = float(scored * uniform_bits(self.run.denoiser.vocab_size))

    def _evaluate(self, indices: np.ndarray) -> dict:
        with whole_weights(self.wrapped):
            report = score_text(
                self.run,
                self.valid_text,
                indices,
                num_steps=evaluation_steps(self.run.process.num_steps, self.args.eval_step_size),
                batch_size=self.batch_size,
                seed=self.args.seed,
                device=self.device,
                rank=distributed.rank(),
                world_size=distributed.world_size(),
                may_go_on=self.deadline.watch(),
            ).report()
        if not math.isfinite(report["nats_per_sequence"]):
            raise UserError("the validation bound is not finite; lower --learning_rate, or use --precision fp32")
        return report

    def state_is_due(self, step: int, agreed: "Agreement") -> bool:
        """Whether --save_every says so, or else the clock."""
        return step % self.args.save_every == 0 if self.args.save_every else agreed.state_is_due

    def save_state(self, step: int, position: object, facts: dict) -> None:
        """Everything that a later process needs to go on from here."""
        began = time.monotonic()
        self.figures.seconds = self.seconds()
        if self.leads:
            self._require_output()
        facts = {"step": step, "position": position, "figures": asdict(self.figures), **facts}
        save_state(self.output, self.learner, facts, keep_last=self.args.keep_last)
        self.state_clock = time.monotonic()
        self.log_clock += self.state_clock - began

    def _require_output(self) -> None:
        if (self.output / "run.json").exists():
            return
        raise UserError(
            f"output_dir={self.output}: the run's folder was removed or emptied while it was being filled; "
            "nothing more is written there"
        )

    # ---- words -------------------------------------------------------------------------------------------------------

    def announce(self, train_text: Text, precision: str, step: int) -> None:
        """What is about to happen."""
        run = self.run
        parameters = sum(p.numel() for p in run.denoiser.parameters())
        what = "pairs" if run.pairs else "sentences"
        self.say(
            ("warning: the released posterior's loss and figures are no bound\n" if not run.process.is_bound else "")
            + f"{train_text.size} training and {self.valid_text.size} validation {what}"
            + (f" ({train_text.cuts})" if train_text.cuts else "")
            + (f"; prompt {run.pairs.prompt!r}, target window {run.pairs.target_window}" if run.pairs else "")
            + f"; {parameters / 1e6:.1f} M parameters, {vocabulary_size(run.tokenizer):,} tokens in the vocabulary\n"
            + f"weights: {self.began_with}\n"
            + (f"{self.args.max_minutes:g} minutes, or " if self.args.max_minutes else "")
            + f"{self.pace.total_steps:,} steps of {self.per_step:,.0f} {what} on {self.device} in {precision}, "
            f"{run.denoiser.network.config._attn_implementation} attention"
            + (f", {distributed.world_size()} processes ({self.args.strategy})" if distributed.world_size() > 1 else "")
            + self._fewer_scored()
            + (f"\nresumed after step {step:,}" if step else "")
        )

    @property
    def began_with(self) -> str:
        """Where the network's weights came from, and which of them are new."""
        return getattr(self.run.denoiser.network.config, "initialized_from", "unknown")

    def _fewer_scored(self) -> str:
        asked = min(self.args.eval_sequences or len(self.valid_text), len(self.valid_text))
        scored = len(self._sentences(0)) if self.figures.eval_sequences >= 0 else asked
        if scored == asked:
            return ""
        return f"\n{scored} of {asked} sentences are scored, as the training is short (as given: with --eval_steps)"

    def pause(self, step: int, why: str) -> None:
        """A run that stops before its end; its state is saved."""
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
            + closing_words(self.output, verdict, of_pairs=self.run.pairs is not None, with_fitlog=self.args.fitlog)
        )

    def say(self, text: str) -> None:
        """Print once, above any progress bar."""
        if self.leads:
            speak(text)
