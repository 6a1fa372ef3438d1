"""Train DiffusionBERT.

python main.py --train_data lm1b --output_dir out/lm1b
python main.py --train_data my_text.txt --tokenizer wordpiece --model_name_or_path modernbert-small \
    --from_scratch true --output_dir out/mine --max_steps 5000
python main.py --train_data conditional_data/qqp --output_dir out/qqp     # pairs: .jsonl with "src" and "trg"
torchrun --nproc_per_node 4 main.py ...
"""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from training.clock import StopRequest
from training.config import TrainConfig
from utils import files, hub, job
from utils.command_line import run_script
from utils.messages import say

if TYPE_CHECKING:
    import torch

    from checkpoint.model_parts import ModelParts
    from data.tokenized_text import Text
    from training.plan import Plan
    from training.resume import Start


def main() -> None:
    """Read the settings, find the state of the run, build the model and train it."""
    config = TrainConfig.parse(__doc__)
    hub.quiet_libraries()
    # imported here, since --help and refused settings need no torch
    from data.splits import say_what_was_read
    from diffusion_word_freq import WordFreqDiffusion
    from evaluation.spindle_report import spindle_report
    from training import resume
    from training.output_folder import exclusive_access
    from training.plan import Plan
    from training.precision import choose_precision
    from training.setup import identities, legacy_identities, prepare
    from utils import distributed
    from utils.device import pick_device, set_up_cpu

    set_up_cpu(config.run.threads)
    device = pick_device(config.run.device)
    with distributed.process_group(device):
        files.require_writable("output_dir", Path(config.run.output_dir), folder=True)
        files.require_writable("cache_dir", Path(config.data.cache_dir), folder=True)
        with exclusive_access(config.run):  # before reading the folder, which another process may be changing
            start = distributed.call_on_leader(lambda: resume.find_start(config.run, config.by_name(), say))
            if start.finished and not start.moved:
                return report_finished(config, start)
            if note := resume.note_versions(start):
                say(note)
            model, train_text, valid_text = prepare(config, device, start)
            found = identities(model, train_text, valid_text)
            resume.require_same_text(start, found, config.run, partial(legacy_identities, train_text, valid_text))
            if start.finished:
                return report_finished(config, start)
            say_what_was_read(config.data, train_text.source, valid_text.source)
            if isinstance(model.process, WordFreqDiffusion) and model.process.is_bound and not config.data.streaming:
                say(spindle_report(model.process.schedule, train_text, model.tokenizer))
            precision = choose_precision(config, model, device, start.facts if start.path else {})
            facts = {"of_pairs": model.pairs is not None, "precision": precision.record(device), **found}
            plan = Plan.of(config, start, train_text, precision, facts)
            train(config, model, train_text, valid_text, device, plan)
    return None


def train(
    config: TrainConfig, model: ModelParts, train_text: Text, valid_text: Text, device: torch.device, plan: Plan
) -> None:
    """Train until the last step, the time limit or a stop signal; log, evaluate and save on the way."""
    from training.bookkeeper import Bookkeeper
    from training.setup import open_batches
    from training.step import TrainStep

    trainer = TrainStep(model, config, device, plan.parts, plan.precision.name)
    if plan.start.path:
        trainer.learner.restore(plan.start.path, plan.start.facts)
    stream = open_batches(config, plan, train_text, model.tokenizer)
    with contextlib.closing(stream), StopRequest().listening() as stop:
        book = Bookkeeper(config, model, valid_text, trainer, plan)
        book.announce(train_text)
        if book.finish_evaluation(stream.position):
            return
        for step in range(plan.start.step + 1, plan.total_steps + 1):
            # Take batches.
            batches = stream.take()
            agreed = book.agree(batches, stop.signal_name)

            # Accumulate gradients, update weights, update the average.
            progress, rate = book.progress(step, agreed.seconds), book.rate(step, agreed.seconds)
            result = trainer(step, batches, progress, rate, num_tokens=agreed.counts[0])
            book.add(result, agreed.counts, batches)

            # Log, evaluate and save.
            if book.after(step, rate, agreed, batches[-1].epoch, stream.position):
                return


def report_finished(config: TrainConfig, start: Start) -> None:
    """Print the output of a finished run, and draw its curve if curve.png is missing."""
    from training.curve import draw_curve
    from training.outcome import Figures, closing_message

    output = Path(config.run.output_dir)
    if job.rank() == 0 and not (output / "curve.png").exists():
        with contextlib.suppress(Exception):  # a failed plot must not fail the run
            draw_curve(output / "log.jsonl", output / "curve.png")
    say(f"{output}: this run is done, {start.step:,} steps; for more of them: --resume true --max_steps N\n")
    if config.network.merge_lora and (output / "checkpoint" / "adapter").is_dir():
        say(f"its adapters are not merged: python -m checkpoint.merge {output / 'checkpoint'} NEW_FOLDER\n")
    figures = Figures.of(start.facts["figures"])
    verdict, note = figures.verdict(start.step), figures.risen_bound(start.step)
    say(closing_message(output, verdict, note, of_pairs=start.facts["of_pairs"], trackers=config.run.trackers))


if __name__ == "__main__":
    run_script(main)
