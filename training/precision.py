"""Choice of the network's precision on this machine, by measurement.

A processor with bf16 instructions is not always faster with them: without matrix units (AMX), bf16 takes between 0.3
and 1.3 of the time of fp32, depending on the processor and the sizes of the network.
"""

import time
from dataclasses import replace
from typing import NamedTuple

import torch

from checkpoint.model_parts import ModelParts
from data.batch import Batch
from diffusion.draws import WHOLE
from models.attention import fit_to_device
from training.config import TrainConfig
from training.step import training_loss
from utils import distributed
from utils.device import pick_precision

SMALLEST = 1_000_000
"""Parameters below which nothing is measured, since the difference is lost in the noise."""
TRIAL_TOKENS = 512
"""Tokens of a trial step."""
ROUNDS, SECONDS = 4, 2.0
"""Number of trial steps in each precision (the first is not counted), and the time after which no more begin."""


class Precision(NamedTuple):
    """Precision of a run's network."""

    name: str
    """fp32, bf16 or fp16."""
    reason: str = ""
    """Reason for the choice, if it was measured."""

    def record(self, device: torch.device) -> str:
        """Return the entry of saved states by which a run keeps its precision."""
        return f"{self.name} on {device.type}"


def choose_precision(config: TrainConfig, model: ModelParts, device: torch.device, earlier: dict) -> Precision:
    """Return the precision of a run; `auto` on a CPU takes the faster one, measured on rank 0.

    Args:
        config: settings of the run.
        model: model to train, on its device.
        device: its device.
        earlier: facts of the saved state from which the run resumes; on the same kind of device it keeps its precision.
    """
    if config.run.precision != "auto" or config.run.fp16:
        return Precision(config.precision(device))
    for kept in (Precision(name, "as before") for name in ("fp32", "bf16", "fp16")):
        if earlier.get("precision") == kept.record(device):
            return kept
    rule = pick_precision("auto", device)
    size = sum(p.numel() for p in model.denoiser.parameters())
    if device.type != "cpu" or rule == "fp32" or earlier or size < SMALLEST:
        return Precision(rule)
    return distributed.call_on_leader(lambda: measured(config, model, device))


def measured(config: TrainConfig, model: ModelParts, device: torch.device) -> Precision:
    """Time a small training step in fp32 and in bf16, in turn; return the faster precision."""
    seconds = {"fp32": [], "bf16": []}
    began = time.monotonic()
    with torch.random.fork_rng(devices=[]):
        batch = trial_batch(config, model).to(device)
    for _ in range(ROUNDS):
        for name, found in seconds.items():
            if min(map(len, seconds.values())) < 2 or time.monotonic() < began + SECONDS:
                found.append(_trial(config, model, batch, device, name))
    fp32, bf16 = (min(found[1:]) for found in seconds.values())
    name, ratio = ("bf16", fp32 / bf16) if bf16 < fp32 else ("fp32", bf16 / fp32)
    return Precision(name, f"{ratio:.1f} times as fast as {'fp32' if name == 'bf16' else 'bf16'} in a trial step")


def trial_batch(config: TrainConfig, model: ModelParts) -> Batch:
    """Return random tokens in rows of the usual length; the second half of a pair is its target."""
    width = min(config.data.max_length, 64)
    special = set(model.tokenizer.all_special_ids)
    words = torch.tensor([i for i in model.tokenizer.get_vocab().values() if i not in special])
    ids = words[torch.randint(len(words), (max(2, TRIAL_TOKENS // width), width))]
    target = torch.ones_like(ids, dtype=torch.bool)
    target[:, : width // 2 if model.pairs else 1] = False
    return Batch(ids, torch.ones_like(target), target)


def _trial(config: TrainConfig, model: ModelParts, batch: Batch, device: torch.device, precision: str) -> float:
    """Return the seconds of one step; gradients and the state of torch's generator are left as they were."""
    model.denoiser.use_precision(device, precision)
    fit_to_device(model.denoiser, replace(config.network, compile=False), device, precision)
    model.denoiser.train()
    with torch.random.fork_rng(devices=[]):
        began = time.monotonic()
        loss = training_loss(model, batch, config.run, 1.0, torch.Generator().manual_seed(0), WHOLE).total
        loss.backward()
        seconds = time.monotonic() - began
    for parameter in model.denoiser.parameters():
        parameter.grad = None
    return seconds
