"""A text model: the network, its process, its tokenizer and how its text is written, put together."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data.pairs import PairFormat
from data.row_formats import RowFormat
from diffusion.autoregressive import Autoregressive, AutoregressiveArgs
from diffusion.masked.d3pm import D3pmArgs, D3pmDiffusion
from diffusion.masked.mdlm import MdlmArgs, MdlmDiffusion
from diffusion.masked.sedd import SeddArgs, SeddDiffusion
from diffusion.masked.word_freq_released import ReleasedConditionalDiffusion, ReleasedWordFreqDiffusion
from diffusion.process import Process
from diffusion.score.process import ScoreDiffusion
from diffusion.score.transitions import ScoreArgs
from diffusion.text_process import TextProcess
from diffusion_word_freq import WordFreqArgs, WordFreqDiffusion
from models.bert import BertDenoiser
from models.dit import DitDenoiser
from models.score_denoiser import ScoreDenoiser


class Kind(NamedTuple):
    """What a name of a process stands for."""

    settings: type
    """A dataclass, saved with the checkpoint."""
    process: type[TextProcess]
    causal: bool = False
    """Whether its network sees only what is to the left."""
    continuous: bool = False
    """Whether its network reads noisy embeddings, not tokens."""


PROCESSES = {
    "word_freq": Kind(WordFreqArgs, WordFreqDiffusion),
    "mdlm": Kind(MdlmArgs, MdlmDiffusion),
    "d3pm": Kind(D3pmArgs, D3pmDiffusion),
    "sedd": Kind(SeddArgs, SeddDiffusion),
    "ar": Kind(AutoregressiveArgs, Autoregressive, causal=True),
    "score": Kind(ScoreArgs, ScoreDiffusion, continuous=True),
}


@dataclass
class TextModel:
    """Everything that belongs to one trained (or about to be trained) model."""

    denoiser: BertDenoiser | DitDenoiser | ScoreDenoiser
    process: Process
    process_args: object
    """Its settings."""
    tokenizer: PreTrainedTokenizerBase
    token_counts: Tensor
    """int64 [V], occurrences in the training corpus."""
    length_histogram: list[int]
    """Entry n: training sentences with n target tokens; of pairs, without the target's [SEP]."""
    max_length: int
    """Longest training sentence allowed, special tokens included."""
    facts: dict = field(default_factory=dict)
    """Step, validation metrics and the like; for people, not read back by any computation."""
    pairs: PairFormat | None = None
    """How pairs are written; None for a model of text."""
    form: RowFormat = field(default_factory=RowFormat)
    """How texts are read, of a model of text."""
    trained_on: str = ""
    """The protocol of its training text, of which `length_histogram` is; empty: that of `form`."""
    trained_detokenizer: str = ""
    """Likewise."""

    @property
    def causal(self) -> bool:
        """Whether its network sees only what is to the left."""
        return PROCESSES[self.process_name].causal

    @property
    def process_name(self) -> str:
        """As --process has it."""
        return name_of(self.process_args)

    def to(self, device: torch.device) -> "TextModel":
        """Move network and schedule; returns self."""
        self.denoiser.to(device)
        self.process.to(device)
        return self


def name_of(args: object) -> str:
    """Which process some settings are of."""
    return next(name for name, kind in PROCESSES.items() if type(args) is kind.settings)


def build_process(
    args: object,
    token_counts: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    *,
    of_pairs: bool = False,
    form: RowFormat | None = None,
) -> TextProcess:
    """The process that `args` name. Text holds no special tokens, so p_theta rules them out; [UNK] is scored only.

    Args:
        args: the settings.
        token_counts: int64 [V].
        tokenizer: gives the special ids.
        vocab_size: rows of the network's output; ids the tokenizer does not know are ruled out too.
        of_pairs: whether [SEP] and [PAD] are content, as they are in a target window.
        form: how texts are read, where ends may be content, too.
    """
    kind = PROCESSES[name_of(args)].process
    if getattr(args, "posterior", "") == "released":
        kind = ReleasedConditionalDiffusion if of_pairs else ReleasedWordFreqDiffusion
    ends = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id}
    unknown = None if tokenizer.unk_token_id in ends else tokenizer.unk_token_id  # GPT-2 has one token for all of them
    special = {i for i in tokenizer.all_special_ids if i != unknown} - {tokenizer.mask_token_id}
    special -= {tokenizer.sep_token_id, tokenizer.pad_token_id} if of_pairs else set()
    special -= form.content(tokenizer) if form else set()
    single = not of_pairs and (form or RowFormat()).protocol in ("unpadded", "padded")
    says_end = PROCESSES[name_of(args)].causal and single
    special -= {tokenizer.sep_token_id} if says_end else set()
    strangers = set(range(vocab_size)) - set(tokenizer.get_vocab().values())
    process = kind(
        args,
        token_counts,
        mask_id=tokenizer.mask_token_id,
        excluded_ids=tuple(sorted(special | strangers)),
        unsampled_ids=() if unknown is None else (unknown,),
    )
    if says_end:
        process.end_id = tokenizer.sep_token_id
    return process
