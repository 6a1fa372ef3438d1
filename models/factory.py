"""Build a denoiser from settings: create or load a network, wrap it, and check it."""

import torch
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data.tokenizers import vocabulary_size
from models.bert import BertDenoiser
from models.denoiser import NetworkDenoiser
from models.dit import DitDenoiser, DitNetwork
from models.lora import add_lora
from models.networks import for_embeddings, fresh_network, keep_rows, load_network, require_settings, require_vocabulary
from models.options import NetworkArgs
from models.score_denoiser import as_score_denoiser
from models.score_lm import ScoreLmNetwork
from models.trials import try_out
from utils.errors import UserError
from utils.hub import first_line


def make_denoiser(
    network: PreTrainedModel,
    time_conditioning: str,
    num_steps: int,
    *,
    causal: bool = False,
    over_embeddings: bool = False,
) -> NetworkDenoiser:
    """Wrap a network as a denoiser over tokens, or with `over_embeddings`, over noisy embeddings.

    Raises:
        UserError: if its layout is unknown, it does not support the time conditioning, its attention is causal where
            it must be bidirectional (or the reverse), its input is of the other kind, its output depends on padding,
            or its output is not finite.
    """
    longest = getattr(network.config, "max_position_embeddings", 1)
    if type(longest) is not int:
        raise UserError(f"max_position_embeddings={longest!r} of {type(network).__name__} must be a whole number")
    if over_embeddings:
        return as_score_denoiser(network, time_conditioning)
    if isinstance(network, ScoreLmNetwork):
        raise UserError("ScoreLmNetwork takes embeddings and needs --process score; give another network")
    if isinstance(network, DitNetwork):
        denoiser = DitDenoiser(network, time_conditioning)
    else:
        denoiser = BertDenoiser(network, time_conditioning, num_steps)
    try_out(denoiser, denoiser.max_length, denoiser.vocab_size, getattr(network.config, "pad_token_id", None))
    ahead = not network.config.causal if isinstance(network, DitNetwork) else looks_ahead(denoiser)
    if ahead == causal:
        wanted, found = ("causal", "bidirectional") if causal else ("bidirectional", "causal")
        raise UserError(
            f"{type(network).__name__} has {found} attention and this process needs {wanted} attention; use another "
            "network, or --from_scratch true with a preset"
        )
    return denoiser


@torch.no_grad()
def looks_ahead(denoiser: NetworkDenoiser) -> bool:
    """Test whether a token changes the hidden states of the tokens before it."""
    training, device = denoiser.training, denoiser.network.device
    denoiser.eval()
    xt = torch.arange(4, device=device)[None] % denoiser.vocab_size
    other = xt.clone()
    other[0, -1] = (xt[0, -1] + 1) % denoiser.vocab_size
    t, everywhere = torch.ones(1, dtype=torch.long, device=device), torch.ones_like(xt, dtype=torch.bool)
    hidden = [denoiser.encode(tokens, t, everywhere)[:, :-1] for tokens in (xt, other)]
    denoiser.train(training)
    return not torch.allclose(*hidden, atol=1e-6, rtol=1e-5)


def build_denoiser(
    args: NetworkArgs,
    tokenizer: PreTrainedTokenizerBase,
    num_steps: int,
    *,
    causal: bool = False,
    embedding_settings: dict[str, bool] | None = None,
    rows: list[int] | None = None,
) -> NetworkDenoiser:
    """Build the denoiser that `args` describe.

    Args:
        args: the network's settings; over embeddings the default is `networks.DEFAULT_SCORE_NETWORK`.
        tokenizer: its size must not exceed the network's vocabulary.
        num_steps: T.
        causal: build a causal network instead of a bidirectional one.
        embedding_settings: required settings of a network over embeddings; None: build a network over tokens.
        rows: ascending rows of the network's vocabulary to keep; None: all.

    Raises:
        UserError: if the network cannot be found or read, or does not fit the tokenizer.
    """
    if embedding_settings is not None:
        args = for_embeddings(args)
    if args.config_overrides and not args.from_scratch:
        raise UserError("config_overrides changes the architecture, so it needs --from_scratch true")
    if args.from_scratch:
        network = fresh_network(args, tokenizer, causal=causal, process_settings=embedding_settings)
    else:
        network = load_network(args.model_name_or_path, args, causal=causal)
    if rows is not None and network.config.vocab_size != len(rows):  # a fresh network of a preset has this size
        require_vocabulary(args.model_name_or_path, network.config.vocab_size, max(rows) + 1)
        keep_rows(network, rows, tokenizer.pad_token_id)
    time = "none" if args.time_conditioning == "auto" else args.time_conditioning
    denoiser = make_denoiser(network, time, num_steps, causal=causal, over_embeddings=embedding_settings is not None)
    require_settings(network, embedding_settings or {})
    require_vocabulary(args.model_name_or_path, denoiser.vocab_size, vocabulary_size(tokenizer))
    apply_settings(network, args)
    if args.lora_rank:
        add_lora(denoiser, args.lora_rank, args.lora_targets)
    return denoiser


def apply_settings(network: PreTrainedModel, args: NetworkArgs) -> None:
    """Apply `attn_implementation` and `gradient_checkpointing`.

    Raises:
        UserError: if a setting does not work with this network.
    """
    try:  # "auto" is resolved in attention.py, where the device is known
        network.set_attn_implementation("sdpa" if args.attn_implementation == "auto" else args.attn_implementation)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"attn_implementation={args.attn_implementation!r} cannot be used here: {first_line(error)}"
        ) from error
    if args.gradient_checkpointing:
        try:
            network.activation_checkpointing_enable()
        except ValueError as error:
            raise UserError(f"gradient_checkpointing=true cannot be used here: {first_line(error)}") from error
