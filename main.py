"""Train DiffusionBERT.

python main.py --train_data lm1b --output_dir out/lm1b
python main.py --train_data my_text.txt --tokenizer wordpiece --model_name_or_path modernbert-small \
    --from_scratch true --output_dir out/mine --max_steps 5000
python main.py --train_data conditional_data/qqp --output_dir out/qqp     # pairs: .jsonl with "src" and "trg"
torchrun --nproc_per_node 4 main.py ...
"""

import contextlib
import math
from functools import partial
from pathlib import Path

import torch

from checkpoint.text_model import TextModel
from data import batching
from data.splits import say_what_was_read
from data.tokenized_text import Text
from diffusion.draws import Share
from diffusion_word_freq import WordFreqDiffusion
from evaluation.spindle_report import spindle_report
from models.attention import fit_to_device
from training import resume
from training.arguments import TrainArgs
from training.bookkeeper import EARLY, TIME_IS_SHORT, Bookkeeper
from training.clock import Notice
from training.config import Settings, by_name, read
from training.optim import AveragedWeights, make_optimizers
from training.outcome import Figures, closing_words
from training.output_folder import alone
from training.pace import Pace
from training.parallel import accumulating, parallelize
from training.saved_state import Learner
from training.setup import identities, identities_before, open_batches, prepare
from training.step import LossOfBatch, clip, streams_of_step
from training.tracking import draw_curve
from utils import distributed, files, hub
from utils.command_line import run_script
from utils.device import autocast, pick_device, pick_precision, set_up_cpu
from utils.messages import say


def main() -> None:
    """Read the settings, find out where the run stands, build it, train it, say what was written."""
    settings = read(__doc__)
    hub.quiet_libraries()
    args = settings[0]
    set_up_cpu(args.threads)
    device = pick_device(args.device)
    with distributed.process_group(device):
        files.require_writable("output_dir", Path(args.output_dir), folder=True)
        files.require_writable("cache_dir", Path(settings[1].cache_dir), folder=True)
        with alone(args):  # from before the decision what to do with the folder: another process may be changing it
            start = distributed.leader_finds(lambda: resume.find_start(args, by_name(settings), say))
            if start.finished and not start.moved:
                return say_done(args, start)
            if note := resume.note_versions(start):
                say(note)
            run, train_text, valid_text = prepare(settings, device, start)
            before = partial(identities_before, train_text, valid_text)
            resume.require_same_text(start, identities(run, train_text, valid_text), args, before)
            if start.finished:
                return say_done(args, start)
            say_what_was_read(settings[1], train_text.source, valid_text.source)
            if isinstance(run.process, WordFreqDiffusion) and run.process.exact and not settings[1].streaming:
                say(spindle_report(run.process, train_text, run.tokenizer))
            train(settings, run, train_text, valid_text, device, start)
    return None


def say_done(args: TrainArgs, start: resume.Start) -> None:
    """Of a run that needs no more training: where everything is; its curve is drawn if that was not to be."""
    output = Path(args.output_dir)
    if distributed.rank() == 0 and not (output / "curve.png").exists():
        with contextlib.suppress(Exception):  # a picture is worth no run
            draw_curve(output / "log.jsonl", output / "curve.png")
    say(f"{output}: this run is done, {start.step:,} steps; for more of them: --resume true --max_steps N\n")
    verdict = Figures.of(start.facts["figures"]).verdict(start.step)
    say(closing_words(output, verdict, of_pairs=start.facts["of_pairs"], with_fitlog=args.fitlog))


def train(
    settings: Settings,
    run: TextModel,
    train_text: Text,
    valid_text: Text,
    device: torch.device,
    start: resume.Start,
) -> None:
    """The loop: learning rate, accumulate, clip, step, average, log, evaluate, save."""
    args, data, _, network, _, optim, _ = settings
    model, rank, world_size = run.denoiser, distributed.rank(), distributed.world_size()
    precision = "fp16" if args.fp16 else pick_precision(args.precision, device)
    model.autocast = autocast(device, precision)
    fit_to_device(model, network, device, precision)
    wrapped = parallelize(LossOfBatch(run, args), model.layers, args.strategy, device)
    optimizers = make_optimizers(
        optim, model, [model.network.get_input_embeddings(), model.network.get_output_embeddings()]
    )
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    learner = Learner(model, AveragedWeights(model, optim.ema_decay), optimizers, scaler)
    if start.path:
        learner.restore(start.path, start.facts)

    each = resume.batches_a_process(args, start)
    parts = each * world_size
    per_step = batching.mean_batch(train_text.widths, data) * parts
    total_steps = args.max_steps or max(1, round(args.num_train_epochs * len(train_text) / per_step))
    resume.require_steps_left(args, start, total_steps)
    pace = Pace.of(args, optim, total_steps)
    shared = {"seed": args.seed, "parts": parts, "rank": rank, "world_size": world_size}
    stream = open_batches(train_text, data, run.tokenizer, start.facts.get("position"), shared)
    facts = {"parts": parts, "torch": torch.__version__, "of_pairs": run.pairs is not None}
    facts |= identities(run, train_text, valid_text)
    figures = Figures.of(start.facts.get("figures", {}))
    named = {**by_name(settings), **start.kept}

    with contextlib.closing(stream), Notice().awaited() as notice:
        length = {"step": start.step, "pace": pace, "per_step": per_step}
        book = Bookkeeper(args, named, run, valid_text, learner, wrapped, device, data, figures, **length)
        book.announce(train_text, precision, start.step)
        if start.facts.get("evaluation_due"):
            book.evaluate_and_save(start.step, first=True)
            if start.step >= total_steps:
                book.save_state(start.step, stream.position(), {**facts, "finished": True})
                return book.close(start.step)
        for step in range(start.step + 1, total_steps + 1):
            taken = stream.take()
            agreed = book.agree(taken, notice.given)
            progress, rate = book.progress(step, agreed.seconds), book.rate(optim, step, agreed.seconds)
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = rate

            model.train()
            losses = torch.zeros(each, dtype=torch.float64, device=device)
            for i, part in enumerate(taken):
                generator, shared = streams_of_step(args.seed, step, part.number)
                share = Share(part.number, parts, shared)
                with accumulating(wrapped, last=i == each - 1):
                    loss = wrapped(part.batch.to(device), progress, generator, share)
                    scaler.scale(loss * (world_size / agreed.counts[0])).backward()
                losses[i] = loss.detach()

            nats = losses.sum()
            distributed.sum_over_ranks(nats)
            stepped = clip(model, optim, optimizers, scaler) and math.isfinite(nats)
            for optimizer in optimizers if stepped else ():
                scaler.step(optimizer)
            for optimizer in optimizers:
                optimizer.zero_grad()
            scaler.update()
            if stepped:
                learner.average.update()
            bad = [part for part, finite in zip(taken, losses.isfinite().tolist(), strict=True) if not finite]
            book.add(nats.item(), agreed.counts, taken, bad, stepped=stepped)

            last = step == total_steps or progress == 1
            if last or step in EARLY or step % args.logging_steps == 0:
                book.log(step, rate, taken[-1].epoch)
            evaluated = not (last or step % book.eval_steps == 0) or book.evaluate_and_save(step)
            if last or agreed.why or step % book.eval_steps == 0 or book.state_is_due(step, agreed):
                due = {"evaluation_due": not evaluated, "finished": last and evaluated}
                book.save_state(step, stream.position(), {**facts, **due})
            if last and evaluated:
                return book.close(step)
            if agreed.why or not evaluated:
                return book.pause(step, agreed.why or TIME_IS_SHORT)
    return None


if __name__ == "__main__":
    run_script(main)
