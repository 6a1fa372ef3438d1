"""Which network: the settings that name it, architectures that need no hub, weights from a folder or the hub."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    ModernBertConfig,
    ModernBertDecoderConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data.tokenizers import vocabulary_size
from models.dit import DitConfig
from models.pretrained import Loading, make_network, read_config, read_network
from models.score_lm import ScoreLmConfig
from utils.errors import UserError
from utils.hub import OF_A_CONFIG, OF_A_NETWORK, fetch, first_line, why_not_given

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
    # MDLM's own, by its names; for `--process ar` its causal variant
    "ddit-tiny": (DitConfig, {"hidden_dim": 512, "n_blocks": 8, "n_heads": 8}),
    "ddit-small": (DitConfig, {}),
    "ddit-medium": (DitConfig, {"hidden_dim": 1024, "n_blocks": 24, "n_heads": 16}),
    # over embeddings, for `--process score`
    "score-lm": (ScoreLmConfig, {}),
    "score-lm-small": (
        ScoreLmConfig,
        {
            "embedding_size": 64,
            "hidden_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 512,
            "dropout": 0.0,
        },
    ),
}
"""Architectures that need no hub, for `--from_scratch true`."""

OF_EMBEDDINGS = "score-lm"
"""What --process score trains unless told otherwise."""

CAUSAL: dict[type[PretrainedConfig], tuple[type[PretrainedConfig], dict]] = {
    BertConfig: (BertConfig, {"is_decoder": True}),
    ModernBertConfig: (ModernBertDecoderConfig, {}),
    DitConfig: (DitConfig, {"causal": True}),
}
"""The same layers seeing only what is to their left, for process=ar."""

TIME_CONDITIONINGS = ("none", "layerwise", "token")


@dataclass(frozen=True)
class BertArgs:
    """Which network denoises, and how it is told the time."""

    model_name_or_path: str = field(
        default="bert-base-uncased",
        metadata={
            "aliases": ["--model_type"],
            "help": f"hub name, folder, or preset: {', '.join(PRESETS)}; process=score: score-lm",
        },
    )
    from_scratch: bool = field(default=False, metadata={"help": "random weights: take the configuration only"})
    config_overrides: str = field(
        default="", metadata={"help": "with from_scratch: hidden_size=256,num_hidden_layers=4,..."}
    )
    time_conditioning: str = field(
        default="auto",
        metadata={
            "aliases": ["--timestep"],
            "choices": ["auto", *TIME_CONDITIONINGS],
            "help": "none: time-agnostic (TAD); layerwise: in each layer (LTE); token: after [CLS] (PTE); auto: what "
            "the process needs, layerwise for sedd, else none",
        },
    )
    attn_implementation: str = field(
        default="auto",
        metadata={"help": "sdpa, eager, flash_attention_2; auto: what is fastest here and agrees with sdpa"},
    )
    compile: bool = field(
        default=False, metadata={"help": "torch.compile; for CUDA (on a CPU it takes a minute and gains nothing)"}
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "trade compute for memory"})


def load_network(name_or_path: str, *, whole: bool = False, causal: bool = False) -> PreTrainedModel:
    """A pretrained language model in float32, from a folder or the hub; safetensors only, never a pickle.

    Where its weights came from stands in `config.initialized_from`, which is saved with it.

    Args:
        name_or_path: a folder made by save_pretrained, or a name on the hub.
        whole: refuse weights with a tensor missing, which transformers would fill with noise. A training may start
            without a vocabulary head (a bare encoder has none), but not without a tensor of the encoder; a checkpoint
            may not lack anything.
        causal: one that sees what is to the left, instead of a masked one.

    Raises:
        UserError: if it cannot be read, or what is read is not this network's.
    """
    if name_or_path in PRESETS and not Path(name_or_path).exists():
        raise UserError(f"{name_or_path} is an architecture without weights; add --from_scratch true")
    try:
        folder = name_or_path if Path(name_or_path).exists() else fetch(name_or_path, OF_A_NETWORK)
        kind, settings = (AutoModelForCausalLM if causal else AutoModelForMaskedLM), {}
        if causal and hasattr(read_config(folder), "is_decoder"):
            settings = {"is_decoder": True}  # an encoder's weights may begin the training of a causal network
        network, loading = read_network(kind, folder, **settings)
    except UserError:
        raise
    except Exception as error:  # a missing or damaged network raises anything, down to ZeroDivisionError
        raise UserError(_not_loaded("network", name_or_path, error)) from error
    if whole and loading.missing:
        raise UserError(f"cannot read the network in {name_or_path}: its weights lack {loading.missing[0]}")
    network.config.initialized_from = _origin(network, loading, name_or_path)
    return network


def _origin(network: PreTrainedModel, loading: Loading, name: str) -> str:
    """What of a network was loaded, in words.

    Raises:
        UserError: if a tensor of its body was not: its place would be taken by noise, and nothing would say so.
    """
    prefix = network.base_model_prefix
    body = f"{prefix}." if prefix and hasattr(network, prefix) else ""
    lacking = [tensor for tensor in loading.missing if tensor.startswith(body)]
    if lacking:
        raise UserError(
            f"cannot read the network in {name}: its weights lack {len(lacking)} of the {loading.total} tensors of "
            f"{type(network).__name__}, e.g. {lacking[0]} (missing, renamed or of another shape); give a folder whose "
            "config.json and weights are of one network, or --from_scratch true"
        )
    count = len(loading.missing)
    new = f"; {count} of the head are new and random (e.g. {loading.missing[0]})" if count else ""
    unused = f"; {loading.unused} tensors of the file have no place in it" if loading.unused else ""
    return f"{loading.total - count} of {loading.total} tensors from {name}{new}{unused}"


def for_embeddings(args: BertArgs) -> BertArgs:
    """The same, but for the default: there is no pretrained network over embeddings, so a fresh one is made."""
    if args.model_name_or_path != BertArgs.model_name_or_path:
        return args
    return replace(args, model_name_or_path=OF_EMBEDDINGS, from_scratch=True)


def require_settings(network: PreTrainedModel, settings: dict[str, bool]) -> None:
    """Refuses a network that was made with other settings than the process asks for.

    Raises:
        UserError: naming the first.
    """
    for name, value in settings.items():
        if getattr(network.config, name, None) != value:
            raise UserError(
                f"{name}={str(value).lower()}: the network was made with {name}={str(not value).lower()}; "
                "give the same, or another network"
            )


def require_vocabulary(name: str, rows: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer with ids beyond the network's table of tokens.

    Args:
        name: of the network, for the message.
        rows: of its table.
        tokenizer: whose largest id must be below.

    Raises:
        UserError: with both numbers.
    """
    if rows < vocabulary_size(tokenizer):
        raise UserError(
            f"the network {name} knows {rows} tokens but the tokenizer has {vocabulary_size(tokenizer)}; use the "
            "network's own tokenizer, without added tokens, or --from_scratch true"
        )


def fresh_network(
    args: BertArgs, tokenizer: PreTrainedTokenizerBase, *, causal: bool = False, **more: object
) -> PreTrainedModel:
    """Random weights for the configuration that `args` describe, with `more` settings if it has them.

    Raises:
        UserError: if no such network can be made.
    """
    try:
        kind = AutoModelForCausalLM if causal else AutoModelForMaskedLM
        if taken := sorted(set(more) & set(_parse_overrides(args.config_overrides))):
            raise UserError(f"config_overrides: {taken[0]} is a setting of the process; give --{taken[0]} instead")
        config = _configuration(args, tokenizer, causal=causal)
        config.update({name: value for name, value in more.items() if hasattr(config, name)})
        network = make_network(kind, config)
        network.config.initialized_from = "random"
        return network
    except UserError:
        raise
    except Exception as error:  # sizes that do not fit each other fail deep inside, in many ways
        what = f"config_overrides={args.config_overrides!r}" if args.config_overrides else args.model_name_or_path
        raise UserError(f"{what}: no network can be made of it ({first_line(error)})") from error


def _configuration(args: BertArgs, tokenizer: PreTrainedTokenizerBase, *, causal: bool) -> PretrainedConfig:
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
        kind, more = CAUSAL[kind] if causal else (kind, {})
        settings = {**settings, **more}
        _refuse_unknown(kind(), overrides)
        return kind(**{**settings, "vocab_size": vocabulary_size(tokenizer), **special, **overrides})
    try:
        name = args.model_name_or_path
        config = read_config(name if Path(name).exists() else fetch(name, OF_A_CONFIG))
    except UserError:
        raise
    except Exception as error:
        raise UserError(_not_loaded("network", args.model_name_or_path, error)) from error
    _refuse_unknown(config, overrides)
    config.update(
        {
            "vocab_size": max(vocabulary_size(tokenizer), config.vocab_size),
            "pad_token_id": special["pad_token_id"],
            **({"is_decoder": True} if causal and hasattr(config, "is_decoder") else {}),
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
        pickles = [path.name for path in Path(name).glob("*.bin")] if Path(name).is_dir() else []
        if pickles and not list(Path(name).glob("model*.safetensors")):
            return (
                f"cannot read the {what} in {name}: its weights are a pickle ({pickles[0]}), which can run code and is "
                "never opened; where you trust it, convert it: AutoModelForMaskedLM.from_pretrained(FOLDER)"
                ".save_pretrained(NEW_FOLDER)"
            )
        return f"cannot read the {what} in {name}: {first_line(error)}"
    return (
        f"cannot load the {what} {name!r}: no local folder, and the hub did not give it ({why_not_given(error)}). "
        f"Offline: give a folder made by save_pretrained, or --from_scratch true with one of {', '.join(PRESETS)}"
    )
