"""Presets of networks that need no hub, and loading from a folder or the hub."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
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
from models.options import NetworkArgs
from models.pretrained import Loading, make_network, read_config, read_network
from models.score_lm import ScoreLmConfig
from utils.errors import UserError
from utils.files import label_of
from utils.hub import CONFIG_FILES, NETWORK_FILES, download_error, fetch, first_line

SMALL_MODERNBERT = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": 512,
}
PRESETS: dict[str, tuple[type[PretrainedConfig], dict]] = {
    "bert-base": (BertConfig, {}),
    "bert-small": (
        BertConfig,
        {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024},
    ),
    # pre-norm with rotary positions: learns from scratch in minutes; post-norm BERT stays on the unigram plateau
    "modernbert-small": (ModernBertConfig, {**SMALL_MODERNBERT, "global_attn_every_n_layers": 1}),
    # every second layer attends to two tokens on either side (causal: to one before): text is local, and is learned
    # faster so
    "modernbert-local": (
        ModernBertConfig,
        {**SMALL_MODERNBERT, "global_attn_every_n_layers": 2, "local_attention": 4},
    ),
    # MDLM's networks under its names; `--process ar` takes the causal variant
    "ddit-tiny": (DitConfig, {"hidden_dim": 512, "n_blocks": 8, "n_heads": 8}),
    "ddit-small": (DitConfig, {}),
    "ddit-medium": (DitConfig, {"hidden_dim": 1024, "n_blocks": 24, "n_heads": 16}),
    # networks over embeddings, for `--process score`
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

DEFAULT_SCORE_NETWORK = "score-lm"
"""Preset that --process score trains by default."""

CAUSAL: dict[type[PretrainedConfig], tuple[type[PretrainedConfig], dict]] = {
    BertConfig: (BertConfig, {"is_decoder": True}),
    ModernBertConfig: (ModernBertDecoderConfig, {}),
    DitConfig: (DitConfig, {"causal": True}),
}
"""Causal variant of each architecture and the settings that select it, for process=ar."""


def load_network(
    name_or_path: str, args: NetworkArgs | None = None, *, whole: bool = False, causal: bool = False
) -> PreTrainedModel:
    """Load a pretrained language model in float32 from a folder or the hub; safetensors only, never a pickle.

    `config.initialized_from` records the source of the weights and is saved with the network.

    Args:
        name_or_path: a folder made by save_pretrained, a name on the hub or one in `PACKAGED`.
        args: settings that replace entries of its configuration.
        whole: refuse weights that lack any tensor, as a checkpoint's may not. Otherwise only the vocabulary head may be
            missing, since a bare encoder has none; transformers initializes it at random.
        causal: load a causal language model instead of a masked one.

    Raises:
        UserError: if it cannot be read, or the weights are not this network's.
    """
    if name_or_path in PRESETS and not Path(name_or_path).exists():
        raise UserError(f"{name_or_path} is an architecture without weights; add --from_scratch true")
    try:
        folder = name_or_path if Path(name_or_path).exists() else fetch(name_or_path, NETWORK_FILES)
        kind, settings = (AutoModelForCausalLM if causal else AutoModelForMaskedLM), {}
        config = read_config(folder)
        if causal and hasattr(config, "is_decoder"):
            settings = {"is_decoder": True}  # a causal network may be initialized from an encoder's weights
        settings |= args.replaced(config) if args else {}
        network, loading = read_network(kind, folder, **settings)
    except UserError:
        raise
    except Exception as error:  # a missing or damaged network may raise any type
        raise UserError(_not_loaded(name_or_path, error)) from error
    if whole and loading.missing:
        raise UserError(
            f"cannot read the network in {name_or_path}: its weights lack {loading.missing[0]}; give a complete folder"
        )
    network.config.initialized_from = _origin(network, loading, name_or_path)
    network.new_tensors = loading.missing
    return network


def _origin(network: PreTrainedModel, loading: Loading, name: str) -> str:
    """Describe which tensors of a network were loaded.

    Raises:
        UserError: if a tensor of the body is missing; transformers fills it with noise without an error.
    """
    prefix = network.base_model_prefix
    body = f"{prefix}." if prefix and hasattr(network, prefix) else ""
    lacking = [tensor for tensor in loading.missing if tensor.startswith(body)]
    if lacking:
        raise UserError(
            f"cannot read the network in {name}: its weights lack {len(lacking)} of the {loading.total} tensors of "
            f"{type(network).__name__}, e.g. {lacking[0]} (missing, renamed or of another shape); give a folder whose "
            "config.json and weights belong together, or --from_scratch true"
        )
    count = len(loading.missing)
    output, table = network.get_output_embeddings(), network.get_input_embeddings()
    tied = ", tied to the embeddings" if output is not None and output.weight is table.weight else ""
    new = f"; {count} of the head are new and random (e.g. {loading.missing[0]}){tied}" if count else ""
    unused = f"; {loading.unused} tensors of the file are unused" if loading.unused else ""
    shown = label_of(Path(name).resolve()) if Path(name).exists() else name  # a checkpoint may be published
    return f"{loading.total - count} of {loading.total} tensors from {shown}{new}{unused}"


def for_embeddings(args: NetworkArgs) -> NetworkArgs:
    """Replace the default network by a fresh network over embeddings, since no pretrained one exists."""
    if args.model_name_or_path != NetworkArgs.model_name_or_path:
        return args
    if args.lora_rank:
        raise UserError(f"lora_rank={args.lora_rank}: process=score has no pretrained network; give model_name_or_path")
    return replace(args, model_name_or_path=DEFAULT_SCORE_NETWORK, from_scratch=True)


def require_settings(network: PreTrainedModel, settings: dict[str, bool]) -> None:
    """Require that a network was made with the settings the process needs.

    Raises:
        UserError: naming the first setting that differs.
    """
    for name, value in settings.items():
        if getattr(network.config, name, None) != value:
            raise UserError(
                f"{name}={str(value).lower()}: the network was made with {name}={str(not value).lower()}; "
                "give the same value, or another network"
            )


@torch.no_grad()
def keep_rows(network: PreTrainedModel, rows: list[int], pad_token_id: int | None) -> None:
    """Reduce a network's vocabulary to some of its rows, in ascending order.

    Raises:
        UserError: if its positions are counted from the id of [PAD], which changes.
    """
    table, output = network.get_input_embeddings(), network.get_output_embeddings()
    shifted = any(name.endswith("position_embeddings") and m.padding_idx for name, m in _tables(network))
    if output is None or (shifted and network.config.pad_token_id != pad_token_id):
        raise UserError(f"trim_vocabulary=true does not support {type(network).__name__}; leave it out")
    owners = [module for module in network.modules() if output in module.children()]  # BERT's has a bias of its own
    vocabulary = {id(p): p for m in (table, output, *owners) for p in m.parameters(recurse=False)}
    reduced = {key: nn.Parameter(p[rows].clone()) for key, p in vocabulary.items() if len(p) == table.weight.shape[0]}
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) in reduced:
                setattr(module, name, reduced[id(parameter)])
    table.num_embeddings = output.out_features = network.config.vocab_size = len(rows)
    network.config.pad_token_id = table.padding_idx = pad_token_id


def _tables(network: PreTrainedModel) -> Iterator[tuple[str, nn.Embedding]]:
    return ((name, module) for name, module in network.named_modules() if isinstance(module, nn.Embedding))


def require_vocabulary(name: str, rows: int, needed: int) -> None:
    """Require that the network's vocabulary has at least as many rows as the tokenizer has tokens.

    Args:
        name: the network's name, for the message.
        rows: rows of its embedding table.
        needed: number of tokens of the tokenizer.

    Raises:
        UserError: with both numbers.
    """
    if rows < needed:
        raise UserError(
            f"the network {name} has {rows} tokens but the tokenizer has {needed}; use the "
            "network's own tokenizer, without added tokens, or --from_scratch true"
        )


def fresh_network(
    args: NetworkArgs,
    tokenizer: PreTrainedTokenizerBase,
    *,
    causal: bool = False,
    process_settings: dict[str, bool] | None = None,
) -> PreTrainedModel:
    """Create the network that `args` describe, with random weights.

    `process_settings` are configuration entries that the process sets, where the configuration has them.

    Raises:
        UserError: if the settings are invalid.
    """
    process_settings = process_settings or {}
    try:
        kind = AutoModelForCausalLM if causal else AutoModelForMaskedLM
        if taken := sorted(set(process_settings) & set(_parse_overrides(args.config_overrides))):
            raise UserError(f"config_overrides: {taken[0]} is a setting of the process; give --{taken[0]} instead")
        config = _configuration(args, tokenizer, causal=causal)
        config.update({name: value for name, value in process_settings.items() if hasattr(config, name)})
        config.update(args.replaced(config))
        network = make_network(kind, config)
        network.config.initialized_from = "random"
        network.new_tensors = [name for name, _ in network.named_parameters()]
        return network
    except UserError:
        raise
    except Exception as error:  # inconsistent sizes may raise any type
        setting = f"config_overrides={args.config_overrides!r}" if args.config_overrides else args.model_name_or_path
        raise UserError(f"{setting}: no network can be made of it ({first_line(error)}); change the sizes") from error


def _configuration(args: NetworkArgs, tokenizer: PreTrainedTokenizerBase, *, causal: bool) -> PretrainedConfig:
    """Return the configuration of a preset, folder or hub name, adapted to the tokenizer and the overrides."""
    overrides, size = _parse_overrides(args.config_overrides), vocabulary_size(tokenizer)
    if args.model_name_or_path in PRESETS:
        kind, settings = PRESETS[args.model_name_or_path]
        kind, causal_settings = CAUSAL[kind] if causal else (kind, {})
        _refuse_unknown(kind(), overrides)
        return kind(**{**settings, **causal_settings, "vocab_size": size, **_special_ids(tokenizer), **overrides})
    try:
        name = args.model_name_or_path
        config = read_config(name if Path(name).exists() else fetch(name, CONFIG_FILES))
    except UserError:
        raise
    except Exception as error:
        raise UserError(_not_loaded(args.model_name_or_path, error)) from error
    _refuse_unknown(config, overrides)
    decoder = {"is_decoder": True} if causal and hasattr(config, "is_decoder") else {}
    size = max(size, config.vocab_size)
    config.update({"vocab_size": size, "pad_token_id": tokenizer.pad_token_id, **decoder, **overrides})
    return config


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int | None]:
    return {
        "pad_token_id": tokenizer.pad_token_id,
        "cls_token_id": tokenizer.cls_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
    }


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


def _not_loaded(name: str, error: Exception) -> str:
    """Compose the error message for a network that could not be loaded."""
    if (Path(name) / "adapter" / "adapter_config.json").exists():
        return (
            f"cannot read the network in {name}: it holds LoRA adapters of another network; merge them first: "
            f"python -m checkpoint.merge {name} NEW_FOLDER"
        )
    if Path(name).exists():
        pickles = [path.name for path in Path(name).glob("*.bin")] if Path(name).is_dir() else []
        if pickles and not list(Path(name).glob("model*.safetensors")):
            return (
                f"cannot read the network in {name}: its weights are a pickle ({pickles[0]}), which can run code and "
                "is never opened; if you trust it, convert it: AutoModelForMaskedLM.from_pretrained(FOLDER)"
                ".save_pretrained(NEW_FOLDER)"
            )
        return f"cannot read the network in {name}: {first_line(error)}"
    return (
        f"cannot load the network {name!r}: no such local folder, and not available from the hub "
        f"({download_error(error)}). Offline: give a folder made by save_pretrained, or --from_scratch true with one "
        f"of {', '.join(PRESETS)}"
    )
