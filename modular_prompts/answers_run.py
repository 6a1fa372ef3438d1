"""The commands evaluate and predict: what a folder of prompts answers.

python -m modular_prompts evaluate --prompts out/my_task/checkpoint --tasks my_task
python -m modular_prompts predict --prompts out/my_task/checkpoint --task my_task --data rows.jsonl
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion.options import SampleArgs
from modular_prompts.arguments import EvaluateArgs, MachineArgs, PredictArgs, TaskArgs
from modular_prompts.few_shot import Outcome
from modular_prompts.few_shot_run import figures
from modular_prompts.frozen import open_prompts
from modular_prompts.readouts import Readout
from modular_prompts.saved import SavedPrompts
from modular_prompts.span_head import answer_f1
from modular_prompts.spans import Spans
from modular_prompts.target_window import TargetWindow
from modular_prompts.tasks import Card, Row, Task, majority, read_inputs
from utils import files, hub
from utils.errors import UserError, shown
from utils.messages import speak

SAMPLING = SampleArgs(top_k=1)
"""Sampler of the answers that evaluate compares: the likeliest token at each position."""


def evaluate(args: EvaluateArgs, tasks: TaskArgs, machine: MachineArgs) -> None:
    """Score the test rows of tasks that have a prompt."""
    hub.quiet_libraries()
    loaded = tasks.load()
    readout, saved = open_prompts(args.prompts, args.model_name_or_path, machine)
    for task in loaded:
        require_task(saved, task.card.name, args.prompts, task.card)
    width = max(4, *(len(task.card.name) for task in loaded))
    speak(f"{'task':{width}}    rows  majority  no prompt   prompt  metric")
    for task in loaded:
        rows = task.test[: args.test_rows or None]
        most = f"{majority(rows):.3f}" if task.card.labels else "-"
        none, own = scores_of(task, rows, readout, saved)
        accuracy = f" (accuracy {own['accuracy']:.3f})" if own["metric"] == "macro F1" else ""
        figures_of_both = f"{none['score']:9.3f}  {own['score']:7.3f}  {own['metric']}{accuracy}"
        speak(f"{task.card.name:{width}}  {len(rows):6,}  {most:>8}  {figures_of_both}")


def scores_of(task: Task, rows: list[Row], readout: Readout, saved: SavedPrompts) -> tuple[dict, dict]:
    """Return the figures of the network alone and with the task's prompt; of extraction, F1 of the answers."""
    prompt = saved.prompt(task.card.name)
    plain, readout = readout.plain(), readout.fitting(prompt)
    if task.card.kind == "extraction" and isinstance(readout, TargetWindow):
        pairs = ((plain, plain.nothing), (readout, prompt))
        sources = readout.sources(task.card, rows)
        return tuple(f1_of(reader.answers(sources, range(len(rows)), own, SAMPLING), rows) for reader, own in pairs)
    alone = figures(task, plain.examples((task.card, rows)), Outcome(0, plain.nothing))
    return alone, figures(task, readout.examples((task.card, rows)), Outcome(0, prompt))


def f1_of(found: list[str], rows: list[Row]) -> dict:
    """Return the mean F1 of answers."""
    scores = [answer_f1(text, row.answer) for text, row in zip(found, rows, strict=True)]
    return {"metric": "F1", "score": sum(scores) / len(scores)}


def require_task(saved: SavedPrompts, name: str, folder: str, card: Card | None = None) -> None:
    """Require that prompts have a task, and if a card is given, with this card.

    Raises:
        UserError: naming some tasks that they have, or what differs.
    """
    if name not in saved.routers:
        known = ", ".join(list(saved.routers)[:20])
        raise UserError(f"prompts {folder}: no task {shown(name)}; they have {known}; tune learns a new one")
    if card and card != saved.cards[name]:
        own, other = saved.cards[name].entries(), card.entries()
        key = next(key for key in {**own, **other} if own.get(key) != other.get(key))
        raise UserError(
            f"prompts {folder}: their task {name} has {key}={shown(own.get(key))}, and the card in --tasks has "
            f"{shown(other.get(key))}; give the task it was learned from, or learn this one"
        )


def predict(args: PredictArgs, sampling: SampleArgs, machine: MachineArgs) -> None:
    """Answer rows, and write them with their answers."""
    hub.quiet_libraries()
    if args.output:
        files.require_writable("output", Path(args.output))
        if Path(args.output).exists() and Path(args.output).samefile(files.local_path(args.data)):
            raise UserError(f"output={args.output} is the data file itself; give another --output")
    readout, saved = open_prompts(args.prompts, args.model_name_or_path, machine)
    require_task(saved, args.task, args.prompts)
    card = saved.cards[args.task]
    rows, entries = zip(*read_inputs(files.local_path(args.data), card), strict=True)
    prompt = saved.prompt(args.task)
    found = predictions(card, list(rows), readout.fitting(prompt), prompt, args, sampling)
    records = ({**own, **answer} for own, answer in zip(entries, found, strict=True))
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    if not args.output:
        for line in lines:
            print(line, end="", flush=True)
        return
    with files.written_whole(Path(args.output)) as file:
        file.writelines(lines)
    speak(f"{len(rows):,} answers in {args.output}")


@torch.no_grad()
def predictions(
    card: Card, rows: list[Row], readout: Readout, prompt: Tensor, args: PredictArgs, sampling: SampleArgs
) -> Iterator[dict]:
    """Yield the answer of each row, which depends on no other; with options, also the softmax of their scores."""
    answered = _answering(card, rows, readout, prompt, args, sampling)
    with tqdm(total=len(rows), desc="answering", unit="row", disable=None) as bar:
        for part in torch.arange(len(rows)).split(args.batch_size):
            yield from answered(part)
            bar.update(len(part))


def _answering(
    card: Card, rows: list[Row], readout: Readout, prompt: Tensor, args: PredictArgs, sampling: SampleArgs
) -> Callable[[Tensor], Iterator[dict]]:
    """Return a function that answers some of the rows, by their numbers."""
    if rows[0].options:
        examples = readout.examples((card, rows))

        def choices(part: Tensor) -> Iterator[dict]:
            for i, scores in zip(part.tolist(), examples.scores(part, prompt).softmax(-1).tolist(), strict=True):
                own = scores[: len(rows[i].options)]
                yield {"prediction": rows[i].options[own.index(max(own))], "scores": [round(x, 4) for x in own]}

        return choices
    if isinstance(readout, Spans):
        written = readout.rows(card, rows)
        return lambda part: (
            {"prediction": text}
            for text in readout.answers([rows[i] for i in part], [written[i] for i in part], prompt)
        )
    sources = readout.sources(card, rows)
    return lambda part: (
        {"prediction": text} for text in readout.answers(sources, part.tolist(), prompt, sampling, args.seed)
    )
