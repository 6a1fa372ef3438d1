"""The commands tune and blackbox: new tasks from few examples, by several methods and seeds, in one table.

python -m modular_prompts tune --prompts out/prompts/checkpoint --tasks my_task --output_dir out/my_task
python -m modular_prompts blackbox --prompts out/prompts/checkpoint --tasks my_task --output_dir out/searched

    results.jsonl    a line for each task, method and seed; the same command adds what is missing
    checkpoint/      the prompts with the new tasks, each by the first seed and the last method that uses the modules
"""

import hashlib
import itertools
import json
import shlex
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from models.lora import has_lora, require_peft
from modular_prompts import baselines, few_shot
from modular_prompts.arguments import BlackBoxArgs, FewShotArgs, MachineArgs, TaskArgs, TuneArgs
from modular_prompts.black_box import require_cma
from modular_prompts.few_shot import Method, Outcome, Problem
from modular_prompts.frozen import hint_of, number_format, open_prompts
from modular_prompts.options import Stages
from modular_prompts.readouts import Readout
from modular_prompts.results import Results, table, without_prompt
from modular_prompts.rows import few_shots, identity
from modular_prompts.saved import DESCRIPTION, Description, SavedPrompts, load_prompts, save_prompts
from modular_prompts.tasks import Row, Task, is_uneven, macro_f1
from modular_prompts.tuning import Examples
from utils import files, hub
from utils.errors import UserError
from utils.files import local_path
from utils.messages import speak

BY_GRADIENT: dict[str, Method] = {
    "none": baselines.no_prompt,
    "uniform": few_shot.uniform,
    "router": few_shot.router,
    "prompts": few_shot.prompts,
    "router-then-prompts": few_shot.router_then_prompts,
    "random-prompt": few_shot.random_prompt,
    "random-prompt-longer": few_shot.random_prompt_longer,
    "linear-probe": baselines.linear_probe,
    "full": baselines.full_tuning,
    "lora": baselines.lora,
}
BY_SCORES: dict[str, Method] = {
    "none": baselines.no_prompt,
    "uniform": few_shot.uniform,
    "router": few_shot.searched_router,
    "router-then-code": few_shot.searched_router_then_code,
}
Shots = dict[tuple[str, int], tuple[list[Row], list[Row]]]
"""Training and development rows by task and seed."""
USING_MODULES = ("uniform", "router", "prompts", "router-then-prompts", "router-then-code")
"""Methods whose prompt is kept; of several, the last."""


def _command(
    methods: dict[str, Method], args: FewShotArgs, tasks: TaskArgs, how: TuneArgs | BlackBoxArgs, machine: MachineArgs
) -> None:
    """Load prompts and network, and answer all tasks by all methods."""
    chosen = {name: methods[name] for name in how.chosen}
    hub.quiet_libraries()
    output = Path(args.output_dir)
    files.require_writable("output_dir", output, folder=True)
    loaded = tasks.load()
    if (output / "checkpoint").exists() and (output / "checkpoint").samefile(local_path(args.prompts)):
        raise UserError(f"output_dir={output}: it holds the prompts themselves, which would be replaced; give another")
    readout, saved = open_prompts(args.prompts, args.model_name_or_path, machine)
    require_possible(chosen, loaded, readout, saved)
    shots = drawn(args, loaded)
    settings = {key: value for part in (args, tasks, how, machine) for key, value in asdict(part).items()}
    settings |= {"prompts_sha256": checksums(args.prompts), "number_format": number_format(machine)}
    with Results.opened(output, settings) as results:
        comparison = Comparison(args, readout, saved, how.stages, results, shots)
        for task in loaded:  # refuses lines of another task before the first method
            results.has(task.card.name, identity(task), "", 0)
        for task in tqdm(loaded, desc="learning", unit="task", disable=None):
            comparison.answer(task, chosen)
        lines = [line for line in results.records if line["seed"] in args.each_seed]
        shown = lines, [task.card.name for task in loaded], list(chosen)
        for line in (table(*shown), *without_prompt(*shown)):
            speak(line)
        grown = comparison.grown
        alone = [name for name in shown[1] if name in grown.prompts and not grown.prompts[name].shape[1]]
        if alone:
            speak(f"saved without a prompt: {', '.join(alone)}")
    speak(f"results of {len(results.records)} runs in {results.path}")
    learned = Description.read(output / "checkpoint").cards if (output / "checkpoint" / DESCRIPTION).exists() else {}
    if name := next((task.card.name for task in loaded if task.card.name in learned), ""):
        prompts, name = shlex.quote(str(output / "checkpoint")), shlex.quote(name)
        network = hint_of(args.model_name_or_path)
        speak(
            f"next: python -m modular_prompts predict --prompts {prompts}{network} --task {name} --data MY_ROWS.jsonl"
        )


tune = partial(_command, BY_GRADIENT)
blackbox = partial(_command, BY_SCORES)


def require_possible(methods: dict[str, Method], tasks: list[Task], readout: Readout, saved: SavedPrompts) -> None:
    """Require what the methods need, before the first of them runs.

    Raises:
        UserError: naming the method.
    """
    for task in tasks:
        if "linear-probe" in methods and not task.has_options:
            raise UserError(f"methods=linear-probe: {task.card.name} has no options; leave that method out")
    if baselines.lora in methods.values():
        require_peft()
        if has_lora(readout.denoiser.network):
            raise UserError("methods=lora: the network has adapters already; leave that method out, or merge them")
    if "router-then-code" in methods and not saved.pool.shape.intrinsic_size:
        raise UserError("methods=router-then-code: the modules have no codes; pre-train with --intrinsic_size")
    if few_shot.searched_router in methods.values():
        require_cma()


def drawn(args: FewShotArgs, tasks: list[Task]) -> Shots:
    """Draw training and development rows of each task by each seed."""
    keys = itertools.product(tasks, args.each_seed)
    return {(task.card.name, seed): few_shots(task, args.shots, seed, args.develop_shots) for task, seed in keys}


def checksums(prompts: str) -> str:
    """Return a hash of the files of a folder of prompts."""
    found = files.checksums(local_path(prompts))
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


class Comparison:
    """Methods on tasks; results and prompts are written after each of them."""

    def __init__(
        self, args: FewShotArgs, readout: Readout, saved: SavedPrompts, stages: Stages, results: Results, shots: Shots
    ) -> None:
        """Start, or go on where an earlier process ended."""
        self.args, self.readout, self.saved, self.stages = args, readout, saved, stages
        self.results, self.shots = results, shots
        self.folder, self.grown = Path(args.output_dir) / "checkpoint", saved
        self.network = args.model_name_or_path or Description.read(local_path(args.prompts)).network
        if results.records and (self.folder / DESCRIPTION).exists():
            self.grown = load_prompts(self.folder, readout.denoiser, readout.tokenizer)

    def answer(self, task: Task, methods: dict[str, Method]) -> None:
        """Answer the test rows of a task by every method and seed that has no result yet."""
        name, own = task.card.name, identity(task)
        todo = {
            seed: [method for method in methods if not self.results.has(name, own, method, seed)]
            for seed in self.args.each_seed
        }
        if not any(todo.values()):
            return
        rows = task.test[: self.args.test_rows or None]
        test = self.readout.examples((task.card, rows))
        for seed, wanted in todo.items():
            parts = ((task.card, part) for part in (*self.shots[name, seed], rows))
            problem = Problem(self.readout, self.saved, *parts, self.stages, seed)
            for method in wanted:
                began = time.monotonic()
                outcome = methods[method](problem)
                seconds = round(time.monotonic() - began, 2)
                outcome = few_shot.unless_worse_than_none(problem, outcome)
                better = self._has_later(name, method, seed) or (
                    outcome.rejected is not None and self._has_learned(name, seed)
                )
                if seed == self.args.each_seed[0] and not better:
                    self._keep(task, outcome)  # before the line that says so
                line = {"task": name, "rows": own, "method": method, "seed": seed, **figures(task, test, outcome)}
                self.results.add({**line, "seconds": seconds})

    def _has_later(self, task: str, method: str, seed: int) -> bool:
        """Return whether the prompt of a later method is kept already, or this method uses no modules."""
        if method not in USING_MODULES:
            return True
        known = [line["method"] for line in self.results.records if (line["task"], line["seed"]) == (task, seed)]
        return bool(set(known) & set(USING_MODULES[USING_MODULES.index(method) + 1 :]))

    def _has_learned(self, task: str, seed: int) -> bool:
        """Return whether the prompt of an earlier method was learned and not dropped."""
        own = [line for line in self.results.records if (line["task"], line["seed"]) == (task, seed)]
        own = [line for line in own if line["method"] in USING_MODULES and line["trained"]]
        return any("score_of_rejected" not in line for line in own)

    def _keep(self, task: Task, outcome: Outcome) -> None:
        """Write the prompts with a new task."""
        name, mixed = task.card.name, few_shot.mixture(self.saved.pool, outcome.router)
        tuned = {} if mixed.equal(outcome.prompt) else {name: outcome.prompt[0]}
        self.grown = replace(
            self.grown,
            routers={**self.grown.routers, name: outcome.router},
            cards={**self.grown.cards, name: task.card},
            prompts={**{key: value for key, value in self.grown.prompts.items() if key != name}, **tuned},
        )
        save_prompts(self.folder, self.grown, self.readout.denoiser, self.readout.tokenizer, self.network)


def figures(task: Task, test: Examples, outcome: Outcome) -> dict:
    """Return a method's figures on the test rows."""
    costs = {"trained": outcome.trained, **({"calls": outcome.calls} if outcome.calls else {})}
    if outcome.rejected is not None:
        costs["score_of_rejected"] = figures(task, test, Outcome(0, outcome.rejected))["score"]
    test = outcome.test or test
    if not task.has_options:
        return {"metric": test.metric, "score": test.score(outcome.prompt), **costs}
    choices = test.choices(outcome.prompt) if outcome.choices is None else outcome.choices
    accuracy = float((choices == test.labels).double().mean())
    f1 = macro_f1(choices.tolist(), test.labels.tolist())
    uneven = is_uneven(task.card, test.labels.tolist())
    metric, score = ("macro F1", f1) if uneven else ("accuracy", accuracy)
    return {"metric": metric, "score": score, "accuracy": accuracy, "macro_f1": f1, **costs}
