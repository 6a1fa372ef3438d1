"""Train DiffusionBERT.

python main.py --train_data lm1b --output_dir out/lm1b
python main.py --train_data my_text.txt --tokenizer wordpiece --model_name_or_path modernbert-small \
    --from_scratch true --output_dir out/mine --max_steps 5000
python main.py --train_data conditional_data/qqp --output_dir out/qqp     # pairs: .jsonl with "src" and "trg"
torchrun --nproc_per_node 4 main.py ...
"""

import contextlib
import hashlib
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor, nn

import batches
import checkpoint
import dataloader
import distributed
import files
import hub
import pairs
import parallel
import protocols
import resuming
import runtime
import streaming
import training_state
from bookkeeping import EARLY, TIME_IS_SHORT, Bookkeeper
from config import TrainArgs
from corpus import holds_pairs, training_source
from diffusion_word_freq import WordFreqDiffusion
from masked_prediction import masked_lm_loss
from models import machine
from models.bert import build
from models.networks import BertArgs
from optim import AveragedWeights, OptimArgs, make_optimizers
from outcome import Figures, summary
from output_folder import TOKENIZER, alone
from pacing import Pace
from process import Batch, Loss, Share, UserError
from settings import Settings, by_name, read
from spindle_report import spindle_report
from splits import say_what_was_read
from tracking import draw_curve, speak
from vocabulary import LEARNT, learn_tokenizer, load_tokenizer, vocabulary_size

OF_NO_NETWORK = {"_name_or_path", "initialized_from", "transformers_version", "dtype", "torch_dtype", "architectures"}
"""Entries of a configuration that say nothing of what it computes."""


def main() -> None:
    """Read the settings, find out where the run stands, build it, train it, say what was written."""
    settings = read(__doc__)
    hub.quiet_libraries()
    args = settings[0]
    runtime.set_up_cpu(args.threads)
    device = runtime.pick_device(args.device)
    with distributed.process_group(device):
        files.require_writable("output_dir", Path(args.output_dir), folder=True)
        files.require_writable("cache_dir", Path(settings[1].cache_dir), folder=True)
        with alone(args):  # from before the decision what to do with the folder: another process may be changing it
            start = distributed.leader_finds(lambda: resuming.find_start(args, by_name(settings), say))
            if start.finished and not start.moved:
                return say_done(args, start)
            if note := resuming.note_versions(start):
                say(note)
            run, train_text, valid_text = prepare(settings, device, start)
            before = partial(identities_before, train_text, valid_text)
            resuming.require_same_text(start, identities(run, train_text, valid_text), args, before)
            if start.finished:
                return say_done(args, start)
            say_what_was_read(settings[1], train_text.source, valid_text.source)
            if isinstance(run.process, WordFreqDiffusion) and run.process.exact and not settings[1].streaming:
                say(spindle_report(run.process, train_text, run.tokenizer))
            train(settings, run, train_text, valid_text, device, start)
    return None


def identities(run: checkpoint.Run, train_text: dataloader.Text, valid_text: dataloader.Text) -> dict[str, str]:
    """What must not change under a run, besides its settings."""
    counts = hashlib.blake2b(run.token_counts.numpy().tobytes(), digest_size=12).hexdigest()
    config = {
        k: v for k, v in run.denoiser.network.config.to_dict().items() if k not in OF_NO_NETWORK and "attn" not in k
    }
    network = hashlib.blake2b(json.dumps(config, sort_keys=True, default=str).encode(), digest_size=12).hexdigest()
    return {"data": train_text.identity, "valid_data": valid_text.identity, "word_freq": counts, "network": network}


def identities_before(train_text: dataloader.Text, valid_text: dataloader.Text) -> dict[str, str]:
    """What the same texts were called by runs begun before their content alone decided."""
    return {"data": train_text.identity_before(), "valid_data": valid_text.identity_before()}


def say_done(args: TrainArgs, start: resuming.Start) -> None:
    """Of a run that needs no more training: where everything is; its curve is drawn if that was not to be."""
    output = Path(args.output_dir)
    if distributed.rank() == 0 and not (output / "curve.png").exists():
        with contextlib.suppress(Exception):  # a picture is worth no run
            draw_curve(output / "log.jsonl", output / "curve.png")
    say(f"{output}: this run is done, {start.step:,} steps; for more of them: --resume true --max_steps N\n")
    verdict = Figures.of(start.facts["figures"]).verdict(start.step)
    say(summary(output, verdict, of_pairs=start.facts["of_pairs"], with_fitlog=args.fitlog))


def say(text: str) -> None:
    """Print once, however many processes there are."""
    if distributed.rank() == 0:
        speak(text)


def prepare(
    settings: Settings, device: torch.device, start: resuming.Start
) -> tuple[checkpoint.Run, dataloader.Text, dataloader.Text]:
    """Tokenizer, texts, network and process: everything that exists before the first step."""
    args, data, _, network, noise, _, form = settings
    noise.check(
        fused_loss=args.fused_loss,
        warm_start=args.warm_start,
        packing=data.packing,
        time_conditioning=network.time_conditioning,
    )
    form.check(packing=data.packing, streaming=data.streaming, word_freq_file=data.word_freq_file)
    precision = "fp16" if args.fp16 else runtime.pick_precision(args.precision, device)
    for what, given in (("fp16", precision == "fp16"), ("muon", settings[5].optimizer == "muon")):
        if given and args.strategy == "fsdp" and distributed.world_size() > 1:
            raise UserError(f"strategy=fsdp does not go with {what}; use strategy=ddp, or bf16 and adamw")
    if data.streaming and not args.max_steps:
        raise UserError("streaming=true reads a text of unknown length; give max_steps")
    training_source(data.train_data)  # a misspelt path is said before anything of the tokenizer is
    with distributed.leader_first():
        tokenizer = prepare_tokenizer(data, network, Path(args.output_dir) / TOKENIZER if start.path else None)
        train_text, valid_text, of_pairs = load_texts(settings, tokenizer)
    torch.manual_seed(args.seed)
    causal = checkpoint.PROCESSES[args.process].causal
    of_embeddings = getattr(noise, "network_settings", None)
    denoiser = build(network, tokenizer, noise.time_period, causal=causal, of_embeddings=of_embeddings)
    if data.max_length > denoiser.max_length:
        raise UserError(
            f"max_length={data.max_length} is more than the {denoiser.max_length} positions of "
            f"{network.model_name_or_path}; lower it"
        )
    denoiser.pack_rows(data.max_length if data.packing else 0)
    if data.word_freq_file:
        counts = checkpoint.read_word_freq(Path(data.word_freq_file), tokenizer, denoiser.vocab_size)
        counts = train_text.with_ends(counts) if of_pairs or form.whole_rows else counts
    else:
        with distributed.leader_first():
            counts = train_text.counts(denoiser.vocab_size)
    words = {"of_pairs": of_pairs is not None, "form": form}
    process = checkpoint.build_process(noise, counts, tokenizer, denoiser.vocab_size, **words)
    form.check_process(flat=getattr(process, "flat", True))
    process.fused_loss = args.fused_loss
    histogram = np.bincount(train_text.target_lengths).tolist()
    run = checkpoint.Run(denoiser, process, noise, tokenizer, counts, histogram, data.max_length, {}, of_pairs, form)
    return run.to(device), train_text, valid_text


def load_texts(
    settings: Settings, tokenizer: transformers.PreTrainedTokenizerBase
) -> tuple[dataloader.Text, dataloader.Text, pairs.PairFormat | None]:
    """Training and validation data; of pairs also how they are written.

    Raises:
        UserError: if a setting of pairs is given for text, or one of streams for pairs.
    """
    (args, data, pair_args), form = settings[:3], settings[-1]
    if holds_pairs(training_source(data.train_data), streaming=data.streaming):
        if data.streaming:
            raise UserError(f"{data.train_data} holds pairs; streaming is for text, leave it out")
        if form != protocols.TextForm():
            raise UserError(f"{data.train_data} holds pairs; protocol and detokenizer are for text, leave them out")
        return pairs.load_splits(data, pair_args, tokenizer)
    if pair_args != pairs.PairArgs():
        raise UserError(f'{data.train_data} holds text; prompt and target_window are for pairs ("src" and "trg")')
    if data.streaming:
        return *streaming.load_splits(data, tokenizer, args.eval_sequences), None
    causal = checkpoint.PROCESSES[args.process].causal
    return *protocols.load_splits(data, tokenizer, form, causal=causal), None


def prepare_tokenizer(
    data: dataloader.DataArgs, network: BertArgs, earlier: Path | None
) -> transformers.PreTrainedTokenizerBase:
    """The named tokenizer, or one learnt from the training text: by an `earlier` part of the run, if any."""
    learnt = data.tokenizer in LEARNT
    if learnt and data.streaming and training_source(data.train_data).hub_name:
        raise UserError(f"tokenizer={data.tokenizer} would download all of a hub's stream; give a tokenizer")
    if learnt and earlier:  # learnt again, it might break ties otherwise
        return load_tokenizer(str(earlier))
    if learnt:
        source = training_source(data.train_data)
        size = data.vocab_size or 8192
        return learn_tokenizer(data.tokenizer, source, size, data.cache_dir, strip_accents=data.strip_accents)
    tokenizer = load_tokenizer(data.tokenizer or network.model_name_or_path)
    if data.vocab_size not in (0, known := vocabulary_size(tokenizer)):
        raise UserError(f"vocab_size={data.vocab_size}, but the tokenizer has {known} tokens; leave it out")
    return tokenizer


class LossOfBatch(nn.Module):
    """A batch to its loss: what the processes of a job share (`parallel.py`)."""

    def __init__(self, run: checkpoint.Run, args: TrainArgs) -> None:
        """The network's parameters become this module's."""
        super().__init__()
        self.denoiser, self.run, self.args = run.denoiser, run, args

    def forward(self, batch: Batch, progress: float, generator: torch.Generator, share: Share) -> Tensor:
        """In nats, summed over the batch."""
        return training_loss(self.run, batch, self.args, progress, generator, share).total


def train(
    settings: Settings,
    run: checkpoint.Run,
    train_text: dataloader.Text,
    valid_text: dataloader.Text,
    device: torch.device,
    start: resuming.Start,
) -> None:
    """The loop: learning rate, accumulate, clip, step, average, log, evaluate, save."""
    args, data, _, network, _, optim, _ = settings
    model, rank, world_size = run.denoiser, distributed.rank(), distributed.world_size()
    precision = "fp16" if args.fp16 else runtime.pick_precision(args.precision, device)
    model.autocast = runtime.autocast(device, precision)
    machine.fit(model, network, device, precision)
    wrapped = parallel.wrap(LossOfBatch(run, args), model.layers, args.strategy, device)
    optimizers = make_optimizers(
        optim, model, [model.network.get_input_embeddings(), model.network.get_output_embeddings()]
    )
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    learner = training_state.Learner(model, AveragedWeights(model, optim.ema_decay), optimizers, scaler)
    if start.path:
        learner.restore(start.path, start.facts)

    each = resuming.batches_a_process(args, start)
    parts = each * world_size
    per_step = batches.mean_batch(train_text.widths, data) * parts
    total_steps = args.max_steps or max(1, round(args.num_train_epochs * len(train_text) / per_step))
    resuming.require_steps_left(args, start, total_steps)
    pace = Pace.of(args, optim, total_steps)
    shared = {"seed": args.seed, "parts": parts, "rank": rank, "world_size": world_size}
    stream = open_batches(train_text, data, run.tokenizer, start.facts.get("position"), shared)
    facts = {"parts": parts, "torch": torch.__version__, "of_pairs": run.pairs is not None}
    facts |= identities(run, train_text, valid_text)
    figures = Figures.of(start.facts.get("figures", {}))
    named = {**by_name(settings), **start.kept}

    with contextlib.closing(stream), runtime.Notice().awaited() as notice:
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
                with parallel.accumulating(wrapped, last=i == each - 1):
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


def open_batches(
    text: dataloader.Text,
    data: dataloader.DataArgs,
    tokenizer: transformers.PreTrainedTokenizerBase,
    position: list | dict | None,
    shared: dict,
) -> batches.BatchStream:
    """What the steps are taken from, where it stood; `shared` says which of their batches are this process's."""
    if data.streaming:
        return streaming.StreamedBatches(text, position=position, **shared)
    return batches.DealtBatches(text, data, tokenizer, position=tuple(position or (0, 0)), **shared)


def streams_of_step(seed: int, step: int, number: int) -> tuple[torch.Generator, int]:
    """Random numbers of one of a step's batches, and a seed that the whole step shares.

    They follow from where the batch stands and from nothing else, so that neither the number of processes nor an
    interruption changes them. Dropout's, which are torch's own on every device, are seeded on the way.
    """
    of_batch = np.random.SeedSequence([seed, step, number]).generate_state(2, np.uint64).tolist()
    of_step = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64).tolist()
    torch.manual_seed(of_batch[0])
    return torch.Generator().manual_seed(of_batch[1]), of_step[0]


def training_loss(
    run: checkpoint.Run, batch: Batch, args: TrainArgs, progress: float, generator: torch.Generator, share: Share
) -> Loss:
    """The process's own loss, after a share `warm_start` of plain masked language modelling."""
    if progress >= args.warm_start:
        return run.process.loss(run.denoiser, batch, generator=generator, share=share)
    return masked_lm_loss(
        run.process,
        run.denoiser,
        batch,
        rates=args.rates,
        fused=args.fused_loss,
        generator=generator,
        share=share,
    )


def clip(
    model: torch.nn.Module, optim: OptimArgs, optimizers: list[torch.optim.Optimizer], scaler: torch.amp.GradScaler
) -> bool:
    """By norm, as usual, and by value, as released; whichever is on.

    Returns:
        Whether every gradient is finite; otherwise no optimizer may step, for the norm is that of all gradients
        together. In fp16 an overflow is part of the search for a scale.
    """
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), optim.max_grad_norm or math.inf)
    if optim.max_grad_value:
        torch.nn.utils.clip_grad_value_(model.parameters(), optim.max_grad_value)
    return bool(parallel.full(norm).isfinite())


if __name__ == "__main__":
    runtime.run_script(main)
