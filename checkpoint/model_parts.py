"""Parts of a model of text or pairs: network, process, tokenizer and text format; and the registry of processes."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from checkpoint.adapter import Base
from data.options import TextFormat
from data.pairs import PairFormat
from diffusion.autoregressive import Autoregressive
from diffusion.masked.d3pm import D3pmDiffusion
from diffusion.masked.mdlm import MdlmDiffusion
from diffusion.masked.sedd import SeddDiffusion
from diffusion.masked.word_freq_released import ReleasedConditionalDiffusion, ReleasedWordFreqDiffusion
from diffusion.process import Process, Vocabulary
from diffusion.process_options import (
    AutoregressiveArgs,
    D3pmArgs,
    MdlmArgs,
    ProcessArgs,
    ScoreArgs,
    SeddArgs,
    WordFreqArgs,
)
from diffusion.score.process import ScoreDiffusion
from diffusion_word_freq import WordFreqDiffusion
from models.apart import compute_apart
from models.denoiser import NetworkDenoiser
from utils.device import lacks_float64
from utils.errors import UserError


class ProcessKind(NamedTuple):
    """Classes and network requirements of a process."""

    settings: type[ProcessArgs]
    """Dataclass of its settings, saved with the checkpoint."""
    process: type[Process]
    causal: bool = False
    """True if its network has causal attention."""
    over_embeddings: bool = False
    """True if its network takes noisy embeddings instead of tokens."""


PROCESSES = {
    "word_freq": ProcessKind(WordFreqArgs, WordFreqDiffusion),
    "mdlm": ProcessKind(MdlmArgs, MdlmDiffusion),
    "d3pm": ProcessKind(D3pmArgs, D3pmDiffusion),
    "sedd": ProcessKind(SeddArgs, SeddDiffusion),
    "ar": ProcessKind(AutoregressiveArgs, Autoregressive, causal=True),
    "score": ProcessKind(ScoreArgs, ScoreDiffusion, over_embeddings=True),
}
"""Processes by the value of --process. A new process is registered here; see docs/extending.md."""


@dataclass(frozen=True)
class ModelParts:
    """A model before, during or after training."""

    denoiser: NetworkDenoiser
    process: Process
    tokenizer: PreTrainedTokenizerBase
    token_counts: Tensor
    """int64 [V], token counts of the training corpus."""
    length_histogram: list[int]
    """Entry n: number of training sentences with n target tokens, not counting the [SEP] of a pair's target."""
    max_length: int
    """Longest training sentence allowed, special tokens included."""
    facts: dict = field(default_factory=dict)
    """Step, validation metrics and similar records for readers; no computation uses them."""
    pairs: PairFormat | None = None
    """Format of pairs; None for a model of text."""
    text_format: TextFormat = field(default_factory=TextFormat)
    """Format in which a model of text reads and scores texts."""
    training_format: TextFormat | None = None
    """Format of the training text and of `length_histogram`; None: `text_format`."""

    adapter_base: Base | None = None
    """Pretrained network whose LoRA adapters a checkpoint holds; None: it holds the whole network."""

    @property
    def trained_format(self) -> TextFormat:
        """Format of the training text."""
        return self.training_format or self.text_format

    @property
    def causal(self) -> bool:
        """True if the network has causal attention."""
        return PROCESSES[self.process_name].causal

    @property
    def device(self) -> torch.device:
        """Device of the process and of its batches; the network's too, unless that has no float64."""
        return self.process.barred.device

    @property
    def process_name(self) -> str:
        """Name of the process, as in --process."""
        return process_name_of(self.process.args)

    def to(self, device: torch.device) -> "ModelParts":
        """Move network and process to a device; return self. Without float64 there, the process stays on the CPU.

        Raises:
            UserError: if the network itself computes in float64, as the score-based one does.
        """
        apart = lacks_float64(device)
        if apart and PROCESSES[self.process_name].over_embeddings:
            raise UserError(f"device={device} has no float64, which process={self.process_name} needs; use cpu or cuda")
        self.denoiser.to(device)
        self.process.to(torch.device("cpu") if apart else device)
        if apart:
            compute_apart(self.denoiser, device)
        return self


def process_name_of(args: ProcessArgs) -> str:
    """Return the name of the process to which settings belong."""
    return next(name for name, kind in PROCESSES.items() if type(args) is kind.settings)


def build_process(
    args: ProcessArgs,
    token_counts: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    *,
    of_pairs: bool = False,
    text_format: TextFormat | None = None,
    fused_loss: bool = False,
) -> Process:
    """Build the process that the settings describe.

    Args:
        args: the settings.
        token_counts: int64 [V].
        tokenizer: source of the special ids.
        vocab_size: rows of the network's output; ids absent from the tokenizer are excluded.
        of_pairs: treat [SEP] and [PAD] as content, as in the target window of a pair.
        text_format: format of texts; it may make the special tokens at their ends content.
        fused_loss: passed to `Process`.
    """
    text_format = text_format or TextFormat()
    predicts_end = isinstance(args, AutoregressiveArgs) and not of_pairs and text_format.single
    end_id = tokenizer.sep_token_id if predicts_end else None
    content = {tokenizer.sep_token_id, tokenizer.pad_token_id} if of_pairs else text_format.content(tokenizer)
    vocabulary = vocabulary_of(tokenizer, vocab_size, content | ({end_id} if predicts_end else set()))
    if isinstance(args, WordFreqArgs):
        released = ReleasedConditionalDiffusion if of_pairs else ReleasedWordFreqDiffusion
        kind = released if args.posterior == "released" else WordFreqDiffusion
        return kind(args, token_counts, vocabulary, fused_loss=fused_loss)
    if isinstance(args, AutoregressiveArgs):
        return Autoregressive(args, vocabulary, end_id=end_id, fused_loss=fused_loss)
    return PROCESSES[process_name_of(args)].process(args, vocabulary, fused_loss=fused_loss)


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, vocab_size: int, content: set[int]) -> Vocabulary:
    """Return the vocabulary of x0: special tokens outside `content` are excluded; [UNK] is scored but never sampled."""
    ends = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id}
    unknown = None if tokenizer.unk_token_id in ends else tokenizer.unk_token_id  # GPT-2 uses one token for all of them
    special = set(tokenizer.all_special_ids) - {unknown, tokenizer.mask_token_id} - content
    unused = set(range(vocab_size)) - set(tokenizer.get_vocab().values())
    return Vocabulary(
        vocab_size,
        tokenizer.mask_token_id,
        excluded_ids=tuple(sorted(special | unused)),
        unsampled_ids=() if unknown is None else (unknown,),
    )
