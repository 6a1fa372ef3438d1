"""Train DiffusionBERT.

python main.py --train_data lm1b --output_dir out/lm1b
python main.py --train_data my_text.txt --tokenizer wordpiece --model_name_or_path modernbert-small \
    --from_scratch true --output_dir out/mine --max_steps 5000
python main.py --train_data conditional_data/qqp --output_dir out/qqp     # pairs: .jsonl with "src" and "trg"
torchrun --nproc_per_node 4 main.py ...
"""

import dataclasses
import math
import shutil
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from tqdm import tqdm

import batches
import checkpoint
import dataloader
import hub
import likelihood
import pairs
import runtime
from config import TrainArgs, parse
from corpus import holds_pairs, training_source
from diffusion_word_freq import WordFreqArgs
from masked_prediction import masked_lm_loss
from models import machine
from models.bert import build
from models.networks import BertArgs
from optim import AveragedWeights, OptimArgs, learning_rate, make_optimizers
from process import Batch, Loss, UserError
from tracking import Tracker
from vocabulary import load_tokenizer, vocabulary_size, wordpiece_of

KINDS = [TrainArgs, dataloader.DataArgs, pairs.PairArgs, BertArgs, WordFreqArgs, OptimArgs]
Settings = tuple[TrainArgs, dataloader.DataArgs, pairs.PairArgs, BertArgs, WordFreqArgs, OptimArgs]
OUTPUTS = ("checkpoint", "checkpoint-last", "log.jsonl", "curve.png", "fitlog")


def main() -> None:
    """Read the settings, build the run, train it, say what was written."""
    settings: Settings = parse(KINDS, __doc__)
    hub.quiet_libraries()
    args = settings[0]
    runtime.set_up_cpu(args.threads)
    device = runtime.pick_device(args.device)
    with runtime.process_group(device):
        refuse_another_run(args)
        runtime.require_writable("output_dir", Path(args.output_dir), folder=True)
        runtime.require_writable("cache_dir", Path(settings[1].cache_dir), folder=True)
        run, train_text, valid_text = prepare(settings, device)
        train(settings, run, train_text, valid_text, device)


def refuse_another_run(args: TrainArgs) -> None:
    """An output folder belongs to one run.

    Raises:
        UserError: if it holds one already and may not be overwritten.
    """
    present = [name for name in OUTPUTS if (Path(args.output_dir) / name).exists()]
    if present and not args.overwrite:
        raise UserError(
            f"output_dir={args.output_dir} holds another run ({', '.join(present)}); "
            "give another folder, or --overwrite true to replace it"
        )


def prepare(settings: Settings, device: torch.device) -> tuple[checkpoint.Run, dataloader.Text, dataloader.Text]:
    """Tokenizer, texts, network and process: everything that exists before the first step."""
    args, data, _, network, noise, _ = settings
    if (noise.posterior, noise.loss_weighting) == ("released", "uniform"):
        raise UserError("posterior=released trains on its own loss; use --hybrid_lambda for its cross-entropy term")
    if noise.posterior == "released" and args.fused_loss:
        raise UserError("fused_loss=true is for the exact process; the released loss needs every logit at once")
    with runtime.leader_first():
        tokenizer = prepare_tokenizer(data, network)
        train_text, valid_text, form = load_texts(settings, tokenizer)
    torch.manual_seed(args.seed)
    denoiser = build(network, tokenizer, noise.num_steps)
    if data.max_length > denoiser.max_length:
        raise UserError(
            f"max_length={data.max_length} is more than the {denoiser.max_length} positions of "
            f"{network.model_name_or_path}; lower it"
        )
    denoiser.pack_rows(data.max_length if data.packing else 0)
    if data.word_freq_file:
        counts = checkpoint.read_word_freq(Path(data.word_freq_file), tokenizer, denoiser.vocab_size)
        counts = train_text.with_ends(counts) if form else counts
    else:
        counts = train_text.counts(denoiser.vocab_size)
    process = checkpoint.build_process(noise, counts, tokenizer, denoiser.vocab_size, of_pairs=form is not None)
    process.fused_loss = args.fused_loss
    histogram = np.bincount(train_text.target_lengths).tolist()
    run = checkpoint.Run(denoiser, process, noise, tokenizer, counts, histogram, data.max_length, pairs=form)
    return run.to(device), train_text, valid_text


def load_texts(
    settings: Settings, tokenizer: transformers.PreTrainedTokenizerBase
) -> tuple[dataloader.Text, dataloader.Text, pairs.PairFormat | None]:
    """Training and validation data; of pairs also how they are written.

    Raises:
        UserError: if a setting of pairs is given for text.
    """
    data, pair_args = settings[1:3]
    if not holds_pairs(training_source(data.train_data)):
        if pair_args != pairs.PairArgs():
            raise UserError(f'{data.train_data} holds text; prompt and target_window are for pairs ("src" and "trg")')
        return *dataloader.load_splits(data, tokenizer), None
    return pairs.load_splits(data, pair_args, tokenizer)


def prepare_tokenizer(data: dataloader.DataArgs, network: BertArgs) -> transformers.PreTrainedTokenizerBase:
    """The named tokenizer, or a WordPiece learnt from the training text."""
    if data.tokenizer == "wordpiece":
        return wordpiece_of(training_source(data.train_data), data.vocab_size or 8192, data.cache_dir)
    tokenizer = load_tokenizer(data.tokenizer or network.model_name_or_path)
    if data.vocab_size not in (0, known := vocabulary_size(tokenizer)):
        raise UserError(f"vocab_size={data.vocab_size}, but the tokenizer has {known} tokens; leave it out")
    return tokenizer


def train(
    settings: Settings,
    run: checkpoint.Run,
    train_text: dataloader.Text,
    valid_text: dataloader.Text,
    device: torch.device,
) -> None:
    """The loop: learning rate, accumulate, clip, step, average, log, evaluate, save."""
    args, data, _, network, _, optim = settings
    model, rank, world_size = run.denoiser, runtime.rank(), runtime.world_size()
    precision = "fp16" if args.fp16 else runtime.pick_precision(args.precision, device)
    model.autocast = runtime.autocast(device, precision)
    machine.fit(model, network, device, precision)
    optimizers = make_optimizers(optim, model, model.network.get_output_embeddings())
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    average = AveragedWeights(model, optim.ema_decay)

    per_step = batches.mean_batch(train_text.widths, data) * args.accumulation_steps * world_size
    total_steps = args.max_steps or max(1, round(args.num_train_epochs * len(train_text) / per_step))
    warmup_steps = optim.warmup_steps or max(1, total_steps // 100)
    eval_steps = args.eval_steps or max(1, total_steps // 10)
    stream = batches.endless_batches(train_text, data, run.tokenizer, seed=args.seed, rank=rank, world_size=world_size)
    torch.manual_seed(args.seed + rank)  # the weights are made, and equal everywhere; dropout may differ
    noise_stream = torch.Generator().manual_seed(args.seed + rank)
    book = Bookkeeper(settings, run, valid_text, average, device)
    book.announce(train_text, precision, total_steps, per_step)

    for step in range(1, total_steps + 1):
        progress = book.progress(step, total_steps)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate(optim, step, progress, warmup_steps)

        model.train()
        micro_batches = [next(stream) for _ in range(args.accumulation_steps)]
        num_tokens = sum(batch.target_mask.sum() for _, batch in micro_batches).to(device)
        runtime.sum_over_ranks(num_tokens)
        for epoch, batch in micro_batches:
            loss = training_loss(run, batch.to(device), args, progress, noise_stream)
            scaler.scale(loss.total / num_tokens).backward()
            book.add(loss, batch, epoch)

        runtime.sum_over_ranks(*(p.grad for p in model.parameters() if p.grad is not None))
        if clip(model, optim, optimizers, scaler):
            for optimizer in optimizers:
                scaler.step(optimizer)
        for optimizer in optimizers:
            optimizer.zero_grad()
        scaler.update()
        average.update()

        last = step == total_steps or progress == 1
        if last or step in (1, 2, 5, 10, 20) or step % args.logging_steps == 0:
            book.log(step, optimizers[-1].param_groups[0]["lr"])
        if last or step % eval_steps == 0:
            book.evaluate_and_save(step)
        if last:
            break
    book.close(step)


def training_loss(
    run: checkpoint.Run, batch: Batch, args: TrainArgs, progress: float, generator: torch.Generator
) -> Loss:
    """The process's own loss, after a share `warm_start` of plain masked language modelling."""
    if progress >= args.warm_start:
        return run.process.loss(run.denoiser, batch, generator=generator)
    return masked_lm_loss(
        run.denoiser,
        batch,
        mask_id=run.tokenizer.mask_token_id,
        num_steps=run.process_args.num_steps,
        rates=args.rates,
        vocab_size=run.denoiser.vocab_size,
        fused=args.fused_loss,
        generator=generator,
    )


def clip(
    model: torch.nn.Module, optim: OptimArgs, optimizers: list[torch.optim.Optimizer], scaler: torch.amp.GradScaler
) -> bool:
    """By norm, as usual, and by value, as released; whichever is on.

    Returns:
        Whether the optimizers may step. In fp16 an overflow is part of the search for a scale: the step is left out, by
        all optimizers, for the norm is that of all gradients together.

    Raises:
        UserError: if a gradient is not finite in another precision.
    """
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), optim.max_grad_norm or math.inf)
    if optim.max_grad_value:
        torch.nn.utils.clip_grad_value_(model.parameters(), optim.max_grad_value)
    if not norm.isfinite() and not scaler.is_enabled():
        raise UserError("a gradient is not finite; lower --learning_rate, or use --precision fp32")
    return bool(norm.isfinite())


class Bookkeeper:
    """What surrounds the loop: the clock, the log, evaluation, checkpoints, and the words for the person waiting."""

    def __init__(
        self,
        settings: Settings,
        run: checkpoint.Run,
        valid_text: dataloader.Text,
        average: AveragedWeights,
        device: torch.device,
    ) -> None:
        """Opens the log; from here on the output folder holds a run."""
        args = settings[0]
        self.args, self.run, self.valid_text, self.average, self.device = args, run, valid_text, average, device
        self.batch_size = settings[1].slots // settings[1].max_length  # as many as fit, however long
        self.output, self.leads = Path(args.output_dir), runtime.rank() == 0
        if self.leads:
            for name in OUTPUTS:
                path = self.output / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        values = {name: value for part in settings for name, value in dataclasses.asdict(part).items()}
        self.tracker = Tracker(self.output, values, active=self.leads, use_fitlog=args.fitlog)
        self.eval_indices = likelihood.pick(valid_text, args.eval_sequences)
        self.started = self.logged_at = time.monotonic()
        self.aside = 0.0  # seconds spent on evaluation since the last line of the log
        self.nats, self.tokens, self.all_tokens, self.epoch, self.best = 0.0, 0, 0, 0, math.inf
        self.slots, self.filled = 0, 0
        layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        self.bar = tqdm(total=100, desc="training", bar_format=layout, disable=None if self.leads else True)

    def progress(self, step: int, total_steps: int) -> float:
        """The share of the training that is done before `step`: by steps, or by the clock if that is further on.

        The clock is the leading process's, so that all agree on the learning rate and on when to stop.
        """
        by_clock = 0.0
        if self.args.max_minutes:
            elapsed = torch.tensor(self.seconds() if self.leads else 0.0).to(self.device)
            runtime.sum_over_ranks(elapsed)
            by_clock = elapsed.item() / (60 * self.args.max_minutes)
        share = min(1.0, max((step - 1) / total_steps, by_clock))
        self.bar.set_postfix(step=step, refresh=False)
        self.bar.update(100 * share - self.bar.n)
        return share

    def seconds(self) -> float:
        """Since the loop began."""
        return time.monotonic() - self.started

    def add(self, loss: Loss, batch: Batch, epoch: int) -> None:
        """Count a micro-step; as in every report, a [PAD] of a target window is scored but is no token."""
        nats = loss.total.item()
        if not math.isfinite(nats):
            raise UserError("the training loss is not finite; lower --learning_rate, or use --precision fp32")
        self.nats, self.epoch = self.nats + nats, epoch
        self.slots += self.run.denoiser.num_slots(batch.attention_mask)
        self.filled += int((batch.input_ids != self.run.tokenizer.pad_token_id).sum())
        self.tokens += likelihood.num_tokens(batch, self.run.tokenizer.pad_token_id)

    def log(self, step: int, rate: float) -> None:
        """Training figures since the last line of the log."""
        now = time.monotonic()
        self.all_tokens += self.tokens
        values = {
            "bits_per_token": self.nats / self.tokens / math.log(2),
            "learning_rate": rate,
            "epoch": self.epoch,
            "tokens_per_second": self.tokens / (now - self.logged_at - self.aside),
        }
        self.tracker.train(step, values)
        self.say(
            f"step {step}: training loss {values['bits_per_token']:.3f} bits/token, "
            f"{values['tokens_per_second']:,.0f} tokens/s, epoch {self.epoch + 1}"
        )
        self.nats, self.tokens, self.logged_at, self.aside = 0.0, 0, now, 0.0

    def evaluate_and_save(self, step: int) -> None:
        """The bound on the validation sentences with the averaged weights; they are saved, twice if the best so far."""
        args, run, began = self.args, self.run, time.monotonic()
        run.denoiser.eval()
        with self.average.in_place():
            report = likelihood.score(
                run,
                self.valid_text,
                self.eval_indices,
                num_steps=max(1, run.process_args.num_steps // args.eval_step_size),
                batch_size=self.batch_size,
                seed=args.seed,
                device=self.device,
                rank=runtime.rank(),
                world_size=runtime.world_size(),
            ).report()
            if not math.isfinite(report["nats_per_sequence"]):
                raise UserError("the validation bound is not finite; lower --learning_rate, or use --precision fp32")
            is_best = report["bits_per_token"] < self.best
            self.best = min(self.best, report["bits_per_token"])
            self.tracker.valid(step, report, best=is_best)
            self.say(f"step {step}: validation bound{' (best)' if is_best else ''}: {likelihood.describe(report)}")
            run.facts = {"step": step, "training_minutes": round(self.seconds() / 60, 2), **report}
            if self.leads:
                checkpoint.save(self.output / "checkpoint-last", run)
                if is_best:
                    checkpoint.save(self.output / "checkpoint", run)
        self.aside += time.monotonic() - began

    def announce(self, train_text: dataloader.Text, precision: str, total_steps: int, per_step: float) -> None:
        """What is about to happen."""
        run = self.run
        parameters = sum(p.numel() for p in run.denoiser.parameters())
        released, what = run.process_args.posterior == "released", "pairs" if run.pairs else "sentences"
        self.say(
            ("warning: the released posterior's loss and figures are no bound\n" if released else "")
            + f"{len(train_text):,} training and {len(self.valid_text):,} validation {what}"
            + (f" ({train_text.cuts})" if train_text.cuts else "")
            + (f"; prompt {run.pairs.prompt!r}, target window {run.pairs.target_window}" if run.pairs else "")
            + f"; {parameters / 1e6:.1f} M parameters, {vocabulary_size(run.tokenizer):,} tokens in the vocabulary\n"
            + (f"{self.args.max_minutes:g} minutes, or " if self.args.max_minutes else "")
            + f"{total_steps:,} steps of {per_step:,.0f} {what} on {self.device} in {precision}, "
            f"{run.denoiser.network.config._attn_implementation} attention"
        )

    def close(self, step: int) -> None:
        """Finish the logs; say where everything is and what to type next."""
        self.bar.close()
        self.tracker.note({"steps": step, "minutes": self.seconds() / 60, "target_tokens": self.all_tokens})
        self.tracker.close()
        best = self.output / "checkpoint"
        self.say(
            f"\ntrained {step:,} steps in {self.seconds() / 60:.1f} minutes; "
            f"best validation bound {self.best:.3f} bits/token\n"
            f"  batches     {100 * self.filled / self.slots:.1f} % of their slots held tokens\n"
            f"  checkpoint  {best}  (the last one: {best}-last)\n"
            f"  log         {self.output / 'log.jsonl'}, {self.output / 'curve.png'}"
            + (f", {self.output / 'fitlog'}\n" if self.args.fitlog else "\n")
            + (
                f"next: python predict_downstream_condition.py --checkpoint {best} --data FILE --output OUT.jsonl\n"
                if self.run.pairs
                else f"next: python predict.py --checkpoint {best}\n"
            )
            + f"      python compute_elbo.py --checkpoint {best} --data FILE"
        )

    def say(self, text: str) -> None:
        """Print once, above any progress bar."""
        if self.leads:
            tqdm.write(text)


if __name__ == "__main__":
    runtime.run_script(main)
