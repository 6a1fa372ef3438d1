"""The command pretrain: modules and routers of many tasks, validated, saved and resumed like any training run.

python -m modular_prompts pretrain --model_name_or_path minilm --tasks fewshot --split pretrain --output_dir out/prompts

    checkpoint/    prompts of the best evaluation
    log.jsonl      losses, and the score of each task at each evaluation
    state/         saved states, from which the same command resumes
"""

import json
import math
import shlex
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Generator
from tqdm import tqdm

from modular_prompts.arguments import EVALUATIONS, FrozenArgs, MachineArgs, PoolArgs, PretrainArgs, RunArgs, TaskArgs
from modular_prompts.frozen import hint_of, open_frozen, readout_name
from modular_prompts.options import PoolShape
from modular_prompts.pool import PromptPool, Router
from modular_prompts.pretraining import Pretraining
from modular_prompts.readouts import Readout
from modular_prompts.rows import fresh_rows, identity, without_texts_of
from modular_prompts.saved import SavedPrompts, network_digest, save_prompts
from modular_prompts.span_head import SpanHead
from modular_prompts.spans import Spans
from modular_prompts.tasks import Card, Task, find_tasks, load_task, majority
from modular_prompts.tuning import Examples, prompt_of
from training.clock import Deadline, StopRequest
from training.optim import AveragedWeights
from training.output_folder import claim, exclusive_access
from training.resume import Start, find_start, note_versions, require_same_text, require_steps_left
from training.run_log import Log
from training.saved_state import Learner, folder_of, save_state
from utils import files, hub
from utils.errors import UserError
from utils.messages import say, speak

FIGURES = {"seconds": 0.0, "loss_sum": 0.0, "loss_steps": 0}
"""Figures of a run before its first step; loss_sum is over loss_steps steps since the last evaluation."""

Config = tuple[FrozenArgs, TaskArgs, PoolArgs, PretrainArgs, RunArgs, MachineArgs]


def pretrain(*config: *Config) -> None:
    """Find the state of the run, and train."""
    frozen, tasks, pool, training, run, machine = config
    hub.quiet_libraries()
    settings = {"world_size": 1, **{key: value for part in config for key, value in asdict(part).items()}}
    files.require_writable("output_dir", Path(run.output_dir), folder=True)
    with exclusive_access(run):
        start = find_start(run, settings, say)
        if start.finished:
            return speak(_done(config, start.step, start.facts["figures"]))
        require_steps_left(run, start, training.max_steps)
        if note := note_versions(start):
            say(note)
        readout = open_frozen(frozen.model_name_or_path, frozen.readout, frozen.max_length, pool.prompt_length, machine)
        world = World.of(readout, _load(tasks, run.unseen), run.valid_rows)
        shape = pool.shape(len(readout.denoiser.layers), readout.denoiser.network.config.hidden_size)
        found = {
            "data": world.identity,
            "valid_data": "",
            "word_freq": "",
            "network": network_digest(readout.denoiser, readout.tokenizer),
        }
        require_same_text(start, found, run)
        facts = {**found, "torch": torch.__version__, "of_pairs": False, "parts": 1, "position": [0, 0]}
        return Run(config, world, shape, start, settings, facts).train()


def _load(tasks: TaskArgs, unseen: str) -> list[Task]:
    """Read the tasks, without rows that occur in unseen tasks."""
    loaded = tasks.load()
    if unseen:
        own = {path.resolve() for path in find_tasks(tasks.tasks, tasks.split, tasks.language)}
        others = [load_task(folder) for folder in find_tasks(unseen) if folder.resolve() not in own]
        loaded, removed = without_texts_of(loaded, others)
        say(f"{removed:,} training rows left out, whose text occurs in an unseen task")
    return loaded


@dataclass(frozen=True)
class World:
    """Read-out and tasks, of whose training files a part is for validation."""

    readout: Readout
    cards: list[Card]
    train: Examples
    valid: list[Examples]
    alone: list[Examples]
    """The validation rows without placeholders."""
    majorities: list[float]
    """Share of the most frequent label in each task's validation rows; 0 where answers have no labels."""
    identity: str
    """Hash of all cards and rows."""

    @classmethod
    def of(cls, readout: Readout, tasks: list[Task], valid_rows: int) -> "World":
        """Divide the training rows of each task."""
        cards, parts, valid = [task.card for task in tasks], [], []
        for task in tasks:
            fresh = fresh_rows(task)
            held = min(valid_rows, len(fresh) // 5)
            if not held:
                raise UserError(
                    f"task {task.card.name}: {len(fresh)} training rows that differ and are not in the test file or in "
                    "an unseen task; at least 5 are needed"
                )
            rows = [fresh[i] for i in np.random.default_rng(0).permutation(len(fresh))]  # a file may be sorted
            parts.append((task.card, rows[held:]))
            valid.append((task.card, rows[:held]))
        return cls(
            readout,
            cards,
            readout.examples(*parts),
            [readout.examples(part) for part in valid],
            [readout.plain().examples(part) for part in valid],
            [majority(rows) if card.kind in ("classification", "pair") else 0.0 for card, rows in valid],
            "".join(map(identity, tasks)),
        )


class Run:
    """A pre-training run with its log, evaluations and saved states."""

    def __init__(
        self, config: Config, world: World, shape: PoolShape, start: Start, settings: dict, facts: dict
    ) -> None:
        """Make the modules, or restore them, and claim the output folder."""
        self.config, (self.frozen, _, _, self.args, self.run, _) = config, config
        self.world, self.facts, self.output = world, facts, Path(self.run.output_dir)
        generator = Generator().manual_seed(self.args.seed)
        self.pool = PromptPool(shape, generator)
        self.router = Router(len(world.cards), shape.num_modules, generator=generator)
        if isinstance(world.readout, Spans):
            world.readout.head = SpanHead(shape.hidden_size, generator)
        self.training = Pretraining(self.pool, self.router, world.train, self.args, world.readout.head)
        model = self.training.model
        average, scaler = AveragedWeights(model, 0.0), torch.amp.GradScaler(enabled=False)
        self.learner = Learner(model, average, [self.training.optimizer], scaler)
        self.step, self.figures = start.step, {**FIGURES, **start.facts.get("figures", {})}
        if start.path:
            self.learner.restore(start.path, start.facts)
        claim(self.output, settings, start.step)
        self.log = Log(self.output / "log.jsonl")
        self.deadline, self.saved_at = Deadline(self.run.time_limit), time.monotonic()
        self.began, self.seconds_before = time.monotonic(), self.figures["seconds"]

    def train(self) -> None:
        """Train until the last step, the time limit or a stop signal."""
        total, every = self.args.max_steps, self.run.eval_steps or max(1, self.args.max_steps // EVALUATIONS)
        rows, sizes = self.world.train.sizes, self.pool.shape
        speak(
            f"{len(rows)} tasks, {sum(rows):,} training rows; {sum(p.numel() for p in self.pool.parameters()):,} "
            f"numbers in {sizes.num_modules} modules of {sizes.length} tokens in {sizes.num_layers} layers, "
            f"{sizes.num_modules} in each router; read-out {readout_name(self.world.readout)}, {total:,} steps"
            + (f"\nresumed after step {self.step:,}" if self.step else "")
        )
        if not self.step:
            self._evaluate_without()
        bar = tqdm(total=total, initial=self.step, desc="pre-training", unit="step", disable=None)
        with StopRequest().listening() as stop, bar:
            while self.step < total:
                self.step += 1
                self._add(self.training.step(self.step))
                bar.update()
                if self.step % every == 0 or self.step == total:
                    self._evaluate()
                    self._save(finished=self.step == total)
                elif stop.signal_name or self.deadline.is_near():
                    self._save()
                    return speak(
                        f"stopped after step {self.step:,}, and saved {folder_of(self.output, self.step)}\n"
                        "next: run the same command again to resume from there"
                    )
                elif time.monotonic() - self.saved_at > 60 * self.run.save_minutes:
                    self._save()
        self.log.close()
        return speak(self._table() + "\n" + _done(self.config, self.step, self.figures))

    def _add(self, loss: float) -> None:
        """Add a step's loss to the figures.

        Raises:
            UserError: if it is not finite.
        """
        if not math.isfinite(loss):
            raise UserError(f"the loss of step {self.step} is not finite; lower --prompt_rate or --router_rate")
        self.figures["loss_sum"] += loss
        self.figures["loss_steps"] += 1

    def _evaluate_without(self) -> None:
        """Log the scores of the frozen network alone."""
        if self.world.readout.head:
            return  # it is random yet
        scores = [own.score(self.world.readout.nothing) for own in self.world.alone]
        self.figures |= {f"none {card.name}": score for card, score in zip(self.world.cards, scores, strict=True)}
        self._write({"kind": "none", "step": 0, **self._summary(scores)})
        speak(f"without prompts: mean score {sum(scores) / len(scores):.3f}")

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Validate every task with its own router; save the prompts if the mean is the best so far."""
        routers = zip(self.world.valid, self.router.logits, strict=True)
        scores = [own.score(prompt_of(self.pool, logits)) for own, logits in routers]
        mean, loss = sum(scores) / len(scores), self.figures["loss_sum"] / self.figures["loss_steps"]
        self.figures |= {"loss_sum": 0.0, "loss_steps": 0}
        is_best = mean > self.figures.get("best", -math.inf)
        if is_best:
            self.figures |= {"best": mean, "best_step": self.step}
            self.figures |= {f"own {card.name}": score for card, score in zip(self.world.cards, scores, strict=True)}
            self._save_prompts()
        self._write({"kind": "valid", "step": self.step, "loss": loss, **self._summary(scores)})
        speak(
            f"step {self.step:,}: training loss {loss:.3f}, mean validation score {mean:.3f}"
            f"{' (best)' if is_best else ''}, {self._seconds() / 60:.1f} minutes"
        )

    def _summary(self, scores: list[float]) -> dict:
        names = [card.name for card in self.world.cards]
        return {"mean": sum(scores) / len(scores), "tasks": dict(zip(names, scores, strict=True))}

    def _save_prompts(self) -> None:
        names = [card.name for card in self.world.cards]
        readout = self.world.readout
        saved = SavedPrompts(
            self.pool,
            {name: logits.detach() for name, logits in zip(names, self.router.logits, strict=True)},
            readout_name(readout),
            readout.placeholders,
            readout.max_length,
            dict(zip(names, self.world.cards, strict=True)),
            head=readout.head.weight if readout.head else None,
        )
        name = self.frozen.model_name_or_path
        save_prompts(self.output / "checkpoint", saved, readout.denoiser, readout.tokenizer, name)

    def _save(self, *, finished: bool = False) -> None:
        self.figures["seconds"] = self._seconds()
        facts = {"step": self.step, "figures": self.figures, "finished": finished, **self.facts}
        save_state(self.output, self.learner, facts, keep_last=self.run.keep_last)
        self.saved_at = time.monotonic()
        self.deadline.reset()

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.began

    def _write(self, record: dict) -> None:
        self.log.write(json.dumps(record) + "\n")

    def _table(self) -> str:
        """Return the scores of every task beside majority and the network without prompts."""
        names = [card.name for card in self.world.cards]
        width = max(4, *map(len, names))
        lines = [
            f"{'task':{width}}  majority  no prompt      prompt   (validation rows, step {self.figures['best_step']:,})"
        ]
        for name, share in zip(names, self.world.majorities, strict=True):
            most = f"{share:.3f}" if share else "-"
            none, own = self.figures.get(f"none {name}"), self.figures[f"own {name}"]
            lines.append(f"{name:{width}}  {most:>8}  {'-' if none is None else f'{none:.3f}':>9}  {own:10.3f}")
        return "\n".join(lines)


def _done(config: Config, step: int, figures: dict) -> str:
    prompts = shlex.quote(str(Path(config[4].output_dir) / "checkpoint"))
    network = hint_of(config[0].model_name_or_path)
    return (
        f"pre-trained {step:,} steps in {figures['seconds'] / 60:.1f} minutes; best mean validation score "
        f"{figures['best']:.3f} at step {figures['best_step']:,}; prompts in {prompts}\n"
        f"next: python -m modular_prompts tune --prompts {prompts}{network} --tasks MY_TASK --output_dir out/my_task"
    )
