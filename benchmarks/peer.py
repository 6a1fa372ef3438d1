"""Train as masked language modelling at every mask rate does, to compare a recipe of main.py with.

python benchmarks/peer.py --like out/demo/checkpoint --train_data out/demo/corpus/train.txt --output_dir out/peer
python compute_elbo.py --checkpoint out/peer --data out/demo/corpus/valid.txt --num_steps 128 --estimator trajectory

transformers' Trainer trains the network of another checkpoint from random weights, with its vocabulary and its longest
sentence. The loss is MDLM's at a linear schedule, with mask rates uniform over (0.001, 1). This loss, AdamW, gradients
clipped at 1, warm-up for a tenth of the training and cosine decay are dLLM's for BERT (github.com/ZHZisZZ/dllm:
dllm/core/trainers/mdlm.py, dllm/utils/configs.py, examples/bert/pt.py). Rates follow the clock instead of the steps, so
that a short training ends at rate 0, too. Needs accelerate (requirements-optional.txt).
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
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

from checkpoint.folder import load_checkpoint, save_checkpoint
from checkpoint.model_parts import ModelParts, build_process
from data.batch import Batch
from data.sources import training_source
from data.tokenized_text import TokenizedText, tokenize
from diffusion.process_options import MdlmArgs
from models.factory import make_denoiser
from utils.command_line import run_script
from utils.device import set_up_cpu
from utils.errors import UserError

LEAST_RATE = 1e-3
WARMUP = 0.1


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


def trainer_of(like: ModelParts, text: TokenizedText, clock: Clock, options: argparse.Namespace) -> MaskedTrainer:
    """Build the trainer of a network with random weights."""
    network = AutoModelForMaskedLM.from_config(like.denoiser.network.config)
    arguments = TrainingArguments(
        output_dir=str(options.output_dir),
        per_device_train_batch_size=options.batch_size,
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

    def collate(rows: Sequence[int]) -> dict[str, Tensor]:
        batch: Batch = text.batch(np.asarray(rows), like.tokenizer)
        return {name: getattr(batch, name) for name in ("input_ids", "attention_mask", "target_mask")}

    trainer = MaskedTrainer(
        network, arguments, collate, range(len(text)), optimizers=(optimizer, schedule), callbacks=[clock]
    )
    trainer.mask_id = like.tokenizer.mask_token_id
    return trainer


def train(options: argparse.Namespace) -> None:
    """Train, and save a checkpoint of MDLM."""
    like = load_checkpoint(options.like, torch.device("cpu"))
    if like.pairs or like.text_format.row_format != "unpadded":
        raise UserError(f"{options.like}: holds no model of single sentences")
    source, longest = training_source(options.train_data), like.max_length - 2
    text = tokenize(source, like.tokenizer, longest, "out/cache", detokenizer=like.text_format.detokenizer)
    set_seed(options.seed)
    trainer = trainer_of(like, text, Clock(options.minutes), options)
    trainer.train()
    steps = trainer.state.global_step
    network = trainer.accelerator.unwrap_model(trainer.model).cpu().eval()
    model = as_mdlm(like, network, {"step": steps, "recipe": "benchmarks/peer.py", **facts_of(options)})
    save_checkpoint(options.output_dir / "checkpoint", model)
    print(f"{steps:,} steps; the checkpoint is in {options.output_dir}/checkpoint")


def as_mdlm(like: ModelParts, network: PreTrainedModel, facts: dict) -> ModelParts:
    """Return another network as a model of MDLM with the vocabulary of `like`."""
    args, size = MdlmArgs(), like.denoiser.vocab_size
    process = build_process(args, like.token_counts, like.tokenizer, size, text_format=like.text_format)
    denoiser = make_denoiser(network, "none", args.time_period, causal=False, over_embeddings=False)
    return replace(like, denoiser=denoiser, process=process, facts=facts)


def facts_of(options: argparse.Namespace) -> dict:
    """Return the settings of a training, for readers of its checkpoint."""
    names = ("minutes", "batch_size", "learning_rate", "weight_decay", "seed")
    return {name: getattr(options, name) for name in names}


def main() -> None:
    """Read the flags and train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--like", required=True, help="checkpoint whose network, vocabulary and length are taken")
    parser.add_argument("--train_data", required=True, help="text file, or folder")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--weight_decay", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if find_spec("accelerate") is None:
        raise UserError("transformers' Trainer needs accelerate; run pip install -r requirements-optional.txt")
    set_up_cpu(options.threads)
    train(options)


if __name__ == "__main__":
    run_script(main)
