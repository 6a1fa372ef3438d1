"""Any Hugging Face masked language model as a denoiser p_theta(x0 | xt).

The network is a stock transformers class, cut at its vocabulary head into `encode` and `decode`. Time conditioning is
added from outside, so that the network inside stays a plain `save_pretrained` folder.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    BertConfig,
    ModernBertConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from hub import first_line, look_for_hub, why_not_given
from process import UserError
from vocabulary import vocabulary_size

PRESETS: dict[str, tuple[type[PretrainedConfig], dict]] = {
    "bert-base": (BertConfig, {}),
    "bert-small": (
        BertConfig,
        {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024},
    ),
    # pre-norm with rotary positions: learns from scratch in minutes where post-norm BERT sits on the unigram plateau
    "modernbert-small": (
        ModernBertConfig,
        {
            "hidden_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 512,
            "max_position_embeddings": 512,
            "global_attn_every_n_layers": 1,
        },
    ),
}
"""Architectures that need no hub, for `--from_scratch true`."""

HEADS = (
    ("cls",),  # BERT, DeBERTa, MobileBERT
    ("lm_head",),  # RoBERTa, XLM-R, CamemBERT, MPNet
    ("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),  # DistilBERT
    ("head", "decoder"),  # ModernBERT
    ("predictions",),  # ALBERT
    ("generator_predictions", "generator_lm_head"),  # ELECTRA, ConvBERT
)
"""Modules that lead from the last hidden state to the logits, in order."""

TIME_CONDITIONINGS = ("none", "layerwise", "token")


@dataclass(frozen=True)
class BertArgs:
    """Which network denoises, and how it is told the time."""

    model_name_or_path: str = field(
        default="bert-base-uncased",
        metadata={"aliases": ["--model_type"], "help": f"hub name, folder, or preset: {', '.join(PRESETS)}"},
    )
    from_scratch: bool = field(default=False, metadata={"help": "random weights: take the configuration only"})
    config_overrides: str = field(
        default="", metadata={"help": "with from_scratch: hidden_size=256,num_hidden_layers=4,..."}
    )
    time_conditioning: str = field(
        default="none",
        metadata={
            "aliases": ["--timestep"],
            "choices": list(TIME_CONDITIONINGS),
            "help": "none: time-agnostic (TAD); layerwise: in each layer (LTE); token: after [CLS] (PTE)",
        },
    )
    attn_implementation: str = field(
        default="sdpa",
        metadata={"help": "sdpa, eager (faster for short sentences in bf16 on a CPU), flash_attention_2"},
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "trade compute for memory"})


class LayerwiseTime(nn.Module):
    """LTE: sinusoids of t through an MLP of its own in every layer, added to the attention's output (paper, 4.3)."""

    def __init__(self, hidden_size: int, num_layers: int, num_steps: int) -> None:
        """One MLP a layer; the last linear map starts at zero, so that a pretrained network starts undisturbed."""
        super().__init__()
        self.hidden_size, self.num_steps = hidden_size, num_steps
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden_size, 2 * hidden_size), nn.ReLU(), nn.Linear(2 * hidden_size, hidden_size))
            for _ in range(num_layers)
        )
        for mlp in self.mlps:
            nn.init.zeros_(mlp[2].weight)
            nn.init.zeros_(mlp[2].bias)
        self.t: Tensor | None = None

    def hook(self, layer: int) -> object:
        """A forward hook for the attention of that layer."""

        def add_time(module: nn.Module, inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
            embedding = self.mlps[layer](sinusoids(self.t, self.hidden_size, self.num_steps))[:, None]
            if isinstance(output, tuple):
                return (output[0] + embedding, *output[1:])
            return output + embedding

        return add_time


def sinusoids(t: Tensor, dim: int, max_period: int) -> Tensor:
    """Cos | sin of t at geometrically spaced frequencies, the slowest of period 2 pi * max_period; float32 [B, dim]."""
    frequency = torch.exp(-math.log(max_period) * torch.arange(dim // 2, device=t.device) / (dim // 2))
    angle = t[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class BertDenoiser(nn.Module):
    """A masked language model behind `process.Denoiser`."""

    def __init__(self, network: PreTrainedModel, time_conditioning: str = "none", num_steps: int = 2048) -> None:
        """Wrap a stock network.

        Raises:
            UserError: if its head is laid out in a way this file does not know.
        """
        super().__init__()
        if time_conditioning not in TIME_CONDITIONINGS:
            raise UserError(f"time_conditioning={time_conditioning!r} must be one of {', '.join(TIME_CONDITIONINGS)}")
        self.network = network
        self.autocast: AbstractContextManager = nullcontext()  # the precision of the network alone, never of the maths
        self.time_conditioning = time_conditioning
        self.time_conditioned = time_conditioning != "none"
        self.head = next((names for names in HEADS if all(hasattr(network, name) for name in names)), ())
        self._check_split()
        self.time: nn.Module | None = None
        hidden_size = network.config.hidden_size
        if time_conditioning == "layerwise":
            attentions = self._attentions()
            self.time = LayerwiseTime(hidden_size, len(attentions), num_steps)
            for layer, attention in enumerate(attentions):
                attention.register_forward_hook(self.time.hook(layer))
        elif time_conditioning == "token":
            self.time = nn.Embedding(num_steps + 1, network.get_input_embeddings().weight.shape[1])
            nn.init.normal_(self.time.weight, std=0.02)

    @property
    def body(self) -> PreTrainedModel:
        """The network without its vocabulary head."""
        return getattr(self.network, self.network.base_model_prefix)

    @property
    def vocab_size(self) -> int:
        """Rows of the output layer; may exceed the tokenizer's size."""
        return self.network.get_output_embeddings().weight.shape[0]

    @property
    def max_length(self) -> int:
        """Longest sentence in tokens, special tokens included."""
        longest = getattr(self.network.config, "max_position_embeddings", 10**6)
        return longest - self.first_position - (self.time_conditioning == "token")

    @property
    def first_position(self) -> int:
        """The first position's number: the padding's + 1 where that has one (RoBERTa's family), else 0."""
        table = getattr(getattr(self.body, "embeddings", None), "position_embeddings", None)
        padding = getattr(table, "padding_idx", None)
        return 0 if padding is None else padding + 1

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 [B, L], int64 [B], bool [B, L] -> hidden states [B, L, D]."""
        with self.autocast:
            if self.time_conditioning == "token":
                return self._encode_with_time_token(xt, t, attention_mask)
            if self.time_conditioning == "layerwise":
                self.time.t = t
            positions = {}
            if self.first_position:  # left to itself, this family gives every [PAD] one position, as if it were no text
                place = torch.arange(xt.shape[1], device=xt.device) + self.first_position
                positions = {"position_ids": place.expand_as(xt)}
            return self.body(input_ids=xt, attention_mask=attention_mask.long(), **positions).last_hidden_state

    def decode(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] -> logits [..., V]."""
        with self.autocast:
            for name in self.head:
                hidden = getattr(self.network, name)(hidden)
            return hidden

    def _encode_with_time_token(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        """PTE: a learned vector of t after [CLS]; a vector, not a word piece, so it collides with no token."""
        embedded = self.network.get_input_embeddings()(xt)
        embedded = torch.cat([embedded[:, :1], self.time(t)[:, None], embedded[:, 1:]], dim=1)
        mask = torch.cat([attention_mask[:, :1], attention_mask], dim=1)
        hidden = self.body(inputs_embeds=embedded, attention_mask=mask.long()).last_hidden_state
        return torch.cat([hidden[:, :1], hidden[:, 2:]], dim=1)

    def _attentions(self) -> list[nn.Module]:
        count = self.network.config.num_hidden_layers
        for stack in self.body.modules():
            if isinstance(stack, nn.ModuleList) and len(stack) == count:
                found = [getattr(layer, "attention", getattr(layer, "attn", None)) for layer in stack]
                if all(isinstance(attention, nn.Module) for attention in found):
                    return found
        raise UserError(
            f"time_conditioning=layerwise does not know the layers of {type(self.network).__name__}; "
            "use time_conditioning none or token"
        )

    @torch.no_grad()
    def _check_split(self) -> None:
        """decode(encode(x)) must be the network's own output: the one promise this class makes."""
        training = self.network.training
        self.network.eval()
        xt = torch.arange(3, device=self.network.device)[None]
        everywhere = torch.ones_like(xt, dtype=torch.bool)
        whole = self.network(input_ids=xt, attention_mask=everywhere.long()).logits
        hidden = self.body(input_ids=xt, attention_mask=everywhere.long()).last_hidden_state
        split = self.decode(hidden) if self.head else None
        self.network.train(training)
        if split is None or split.shape != whole.shape or not torch.allclose(split, whole, atol=1e-4, rtol=1e-4):
            raise UserError(
                f"{type(self.network).__name__} is laid out in a way models/bert.py does not know; "
                "BERT, RoBERTa, DistilBERT, ModernBERT, ALBERT and ELECTRA families work"
            )


def build(args: BertArgs, tokenizer: PreTrainedTokenizerBase, num_steps: int) -> BertDenoiser:
    """The denoiser that `args` describe, for that tokenizer and T = num_steps.

    Raises:
        UserError: if the network cannot be found, read or matched with the tokenizer.
    """
    if args.config_overrides and not args.from_scratch:
        raise UserError("config_overrides changes the architecture, so it needs --from_scratch true")
    network = _fresh_network(args, tokenizer) if args.from_scratch else load_network(args.model_name_or_path)
    denoiser = BertDenoiser(network, args.time_conditioning, num_steps)
    if denoiser.vocab_size < vocabulary_size(tokenizer):
        raise UserError(
            f"the network {args.model_name_or_path} knows {denoiser.vocab_size} tokens but the tokenizer has "
            f"{vocabulary_size(tokenizer)}; use the network's own tokenizer, or --from_scratch true"
        )
    try:
        network.set_attn_implementation(args.attn_implementation)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"attn_implementation={args.attn_implementation!r} cannot be used here: {first_line(error)}"
        ) from error
    if args.gradient_checkpointing:
        network.activation_checkpointing_enable()
    return denoiser


def load_network(name_or_path: str, *, whole: bool = False) -> PreTrainedModel:
    """A pretrained masked language model in float32, from a folder or the hub; safetensors only, never a pickle.

    Args:
        name_or_path: a folder made by save_pretrained, or a name on the hub.
        whole: refuse weights with a tensor missing, which transformers would fill with noise (a bare encoder has no
            head, and may start a training; a checkpoint may not lack anything).

    Raises:
        UserError: if it cannot be read.
    """
    if name_or_path in PRESETS and not Path(name_or_path).exists():
        raise UserError(f"{name_or_path} is an architecture without weights; add --from_scratch true")
    if not Path(name_or_path).exists():
        look_for_hub()
    try:
        network, report = AutoModelForMaskedLM.from_pretrained(
            name_or_path, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # a missing or damaged network raises anything, down to ZeroDivisionError
        raise UserError(_not_loaded("network", name_or_path, error)) from error
    if whole and (report["missing_keys"] or report["mismatched_keys"]):
        first = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))[0]
        raise UserError(f"cannot read the network in {name_or_path}: its weights lack {first}")
    return network


def _fresh_network(args: BertArgs, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    try:
        return AutoModelForMaskedLM.from_config(_configuration(args, tokenizer), dtype=torch.float32)
    except UserError:
        raise
    except Exception as error:  # sizes that do not fit each other fail deep inside, in many ways
        what = f"config_overrides={args.config_overrides!r}" if args.config_overrides else args.model_name_or_path
        raise UserError(f"{what}: no network can be made of it ({first_line(error)})") from error


def _configuration(args: BertArgs, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "cls_token_id": tokenizer.cls_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
    }
    overrides = _parse_overrides(args.config_overrides)
    if args.model_name_or_path in PRESETS:
        kind, settings = PRESETS[args.model_name_or_path]
        _refuse_unknown(kind(), overrides)
        return kind(**{**settings, "vocab_size": vocabulary_size(tokenizer), **special, **overrides})
    if not Path(args.model_name_or_path).exists():
        look_for_hub()
    try:
        config = AutoConfig.from_pretrained(args.model_name_or_path)
    except Exception as error:
        raise UserError(_not_loaded("network", args.model_name_or_path, error)) from error
    _refuse_unknown(config, overrides)
    config.update(
        {
            "vocab_size": max(vocabulary_size(tokenizer), config.vocab_size),
            "pad_token_id": special["pad_token_id"],
            **overrides,
        }
    )
    return config


def _refuse_unknown(config: PretrainedConfig, overrides: dict) -> None:
    for name in overrides:
        if name not in config.to_dict():
            raise UserError(f"config_overrides: {type(config).__name__} has no setting named {name!r}")


def _parse_overrides(text: str) -> dict[str, int | float | bool | str]:
    parsed: dict[str, int | float | bool | str] = {}
    for item in filter(None, text.split(",")):
        name, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"config_overrides: {item!r} is not name=value")
        for kind in (int, float):
            try:
                parsed[name] = kind(value)
                break
            except ValueError:
                parsed[name] = {"true": True, "false": False}.get(value.lower(), value)
    return parsed


def _not_loaded(what: str, name: str, error: Exception) -> str:
    if Path(name).exists():
        return f"cannot read the {what} in {name}: {first_line(error)}"
    return (
        f"cannot load the {what} {name!r}: no local folder, and the hub did not give it ({why_not_given(error)}). "
        f"Offline: give a folder made by save_pretrained, or --from_scratch true with one of {', '.join(PRESETS)}"
    )
