"""Train as masked language modelling at every mask rate does, to compare a recipe of main.py with.

python benchmarks/peer.py --like out/demo/checkpoint --train_data out/demo/corpus/train.txt --output_dir out/peer
python compute_elbo.py --checkpoint out/peer --data out/demo/corpus/valid.txt --num_steps 128 --estimator trajectory

transformers' Trainer trains the network of another checkpoint from random weights, with its vocabulary and its longest
sentence, in fp32; batches hold sentences of similar length. The loss is MDLM's at a linear schedule, with mask rates
uniform over (0.001, 1). This loss, AdamW, gradients clipped at 1, warm-up for a tenth of the training and cosine decay
are those of dLLM's example for BERT (github.com/ZHZisZZ/dllm: dllm/core/trainers/mdlm.py, dllm/utils/configs.py,
examples/bert/pt.py), which starts from pretrained weights. Rates follow the clock instead of the steps, so that a short
training ends at rate 0, too. Needs accelerate (requirements-optional.txt).
"""

import argparse
import copy
import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoModelForMaskedLM,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.utils import is_accelerate_available

from checkpoint.folder import load_checkpoint, save_checkpoint
from checkpoint.model_parts import ModelParts, build_process
from data.batch import collate
from data.sources import training_source
from data.tokenized_text import TokenizedText, tokenize
from diffusion.process_options import MdlmArgs
from models.bert import BertDenoiser
from models.factory import make_denoiser
from utils.command_line import run_script
from utils.device import set_up_cpu
from utils.errors import UserError, check_ranges
from utils.files import require_writable

LEAST_RATE = 1e-3
"""Smallest mask rate."""
WARMUP = 0.1
"""Share of the training in which the learning rate rises."""


def masked_loss(network: PreTrainedModel, batch: dict[str, Tensor], mask_id: int, rates: Tensor) -> Tensor:
    """Return an unbiased estimate of the bound per token at a linear schedule, in nats.

    Args:
        network: with logits [B, L, V].
        batch: `input_ids`, `attention_mask` and `target_mask`, each [B, L].
        mask_id: token [MASK].
        rates: mask rate t of each row, [B]; uniform over (0, 1) for the bound.
    """
    x0, targets = batch["input_ids"], batch["target_mask"]
    masked = (torch.rand(x0.shape, device=x0.device) < rates[:, None]) & targets
    logits = network(input_ids=x0.masked_fill(masked, mask_id), attention_mask=batch["attention_mask"]).logits
    nats = functional.cross_entropy(logits.transpose(1, 2), x0, reduction="none")
    return (nats * masked / rates[:, None]).sum() / targets.sum()


class Clock(TrainerCallback):
    """Share of the time that has passed; ends the training when it is over."""

    def __init__(self, minutes: float) -> None:
        self.begin, self.seconds = time.monotonic(), 60 * minutes

    @property
    def share(self) -> float:
        """Share of the time that has passed, 1 at the end."""
        return min(1.0, (time.monotonic() - self.begin) / self.seconds)

    def rate(self, _: int) -> float:
        """Return the factor of the learning rate: linear warm-up, then cosine decay."""
        decay = (1 + math.cos(math.pi * max(0.0, self.share - WARMUP) / (1 - WARMUP))) / 2
        return min(1.0, self.share / WARMUP) * decay

    def on_train_begin(self, *_: object, **__: object) -> None:
        """Start the clock anew."""
        self.begin = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Stop when the time is over."""
        control.should_training_stop |= self.share >= 1


class MaskedTrainer(Trainer):
    """Trainer with `masked_loss`."""

    mask_id: int

    def compute_loss(self, model: PreTrainedModel, inputs: dict[str, Tensor], *_: object, **__: object) -> Tensor:
        """Return the loss at mask rates uniform over (LEAST_RATE, 1)."""
        rates = LEAST_RATE + (1 - LEAST_RATE) * torch.rand(len(inputs["input_ids"]), device=inputs["input_ids"].device)
        return masked_loss(model, inputs, self.mask_id, rates)


def trainer_of(like: ModelParts, text: TokenizedText, options: argparse.Namespace) -> MaskedTrainer:
    """Build the trainer of a network with random weights."""
    config = copy.deepcopy(like.denoiser.network.config)
    config.initialized_from = "random"  # what `origin` tells readers of the checkpoint
    network = AutoModelForMaskedLM.from_config(config)
    clock = Clock(options.minutes)
    arguments = TrainingArguments(
        output_dir=str(options.output_dir),
        per_device_train_batch_size=options.batch_size,
        train_sampling_strategy="group_by_length",
        max_steps=10**6,
        save_strategy="no",
        logging_steps=20,
        disable_tqdm=True,  # a bar would count to max_steps; a line every 20 steps instead
        report_to=[],
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        seed=options.seed,
        max_grad_norm=1.0,
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, clock.rate)

    def collated(items: list[dict]) -> dict[str, Tensor]:
        batch = collate([item["input_ids"] for item in items], like.tokenizer)
        return {name: getattr(batch, name) for name in ("input_ids", "attention_mask", "target_mask")}

    sentences = [{"input_ids": text.sentence(i)} for i in range(len(text))]
    both = (optimizer, schedule)
    trainer = MaskedTrainer(network, arguments, collated, sentences, optimizers=both, callbacks=[clock])
    trainer.mask_id = like.tokenizer.mask_token_id
    return trainer


def train(options: argparse.Namespace) -> None:
    """Train, and save a checkpoint of MDLM."""
    like = load_like(options.like)
    text_format, longest = like.text_format, like.max_length - 2
    source = training_source(options.train_data)
    text = tokenize(source, like.tokenizer, longest, options.cache_dir, detokenizer=text_format.detokenizer)
    set_seed(options.seed)
    trainer = trainer_of(like, text, options)
    trainer.train()
    steps = trainer.state.global_step
    network = trainer.accelerator.unwrap_model(trainer.model).cpu().eval()
    model = as_mdlm(like, network, text, {"step": steps, "recipe": "benchmarks/peer.py", **facts_of(options)})
    save_checkpoint(options.output_dir / "checkpoint", model)
    print(f"{steps:,} steps; the checkpoint is in {options.output_dir}/checkpoint")


def load_like(name: str) -> ModelParts:
    """Load the checkpoint to imitate.

    Raises:
        UserError: if its network is no masked language model of transformers on single sentences.
    """
    like = load_checkpoint(name, torch.device("cpu"))
    plain = isinstance(like.denoiser, BertDenoiser) and not (like.causal or like.denoiser.time_conditioned)
    if not plain or like.pairs or like.text_format.row_format != "unpadded":
        wanted = "a BERT without time input, trained by main.py on single sentences (row_format=unpadded)"
        raise UserError(f"like={name}: another kind of model; give the checkpoint of {wanted}")
    return like


def as_mdlm(like: ModelParts, network: PreTrainedModel, text: TokenizedText, facts: dict) -> ModelParts:
    """Return another network as a model of MDLM with the vocabulary of `like`, trained on `text`."""
    args, size, tokenizer = MdlmArgs(), like.denoiser.vocab_size, like.tokenizer
    counts = text.counts(size)
    process = build_process(args, counts, tokenizer, size, text_format=like.text_format)
    denoiser = make_denoiser(network, "none", args.time_period, causal=False, over_embeddings=False)
    histogram = np.bincount(text.target_lengths).tolist()
    return ModelParts(
        denoiser, process, tokenizer, counts, histogram, like.max_length, facts, text_format=like.text_format
    )


def facts_of(options: argparse.Namespace) -> dict:
    """Return the settings of a training, for readers of its checkpoint."""
    names = ("minutes", "batch_size", "learning_rate", "weight_decay", "seed")
    return {name: getattr(options, name) for name in names}


def check(options: argparse.Namespace) -> None:
    """Check the settings before any work.

    Raises:
        UserError: with the remedy.
    """
    check_ranges(options, minutes=(1e-3, 1e5), batch_size=(1, 10**6), learning_rate=(0, 1), weight_decay=(0, 10))
    check_ranges(options, seed=(0, 2**32 - 1))
    require_writable("output_dir", options.output_dir, folder=True)
    if (options.output_dir / "checkpoint").exists():
        raise UserError(f"output_dir={options.output_dir} holds a checkpoint; give another folder")
    if not is_accelerate_available():
        raise UserError("transformers' Trainer needs accelerate; run pip install -r requirements-optional.txt")
    if torch.cuda.device_count() > 1:
        raise UserError(f"{torch.cuda.device_count()} GPUs: the peer trains on one; set CUDA_VISIBLE_DEVICES=0")


def main() -> None:
    """Read the flags and train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--like", required=True, help="checkpoint whose network, vocabulary and length are taken")
    parser.add_argument("--train_data", required=True, help="text: a file, a folder, or a data set on the hub")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the new checkpoint")
    parser.add_argument("--minutes", type=float, default=10, help="length of the training (10)")
    parser.add_argument("--batch_size", type=int, default=64, help="sentences a step (64)")
    parser.add_argument("--learning_rate", type=float, default=1e-4, help="highest learning rate (1e-4)")
    parser.add_argument("--weight_decay", type=float, default=0.0, help="decay of AdamW (0)")
    parser.add_argument("--seed", type=int, default=42, help="seed of weights, order and masks (42)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (2)")
    parser.add_argument("--cache_dir", default="out/cache", help="folder of cached tokenised text (out/cache)")
    options = parser.parse_args()
    check(options)
    set_up_cpu(options.threads)
    train(options)


if __name__ == "__main__":
    run_script(main)
