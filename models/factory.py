"""From settings to a denoiser: a network is made or read, wrapped, and tried out."""

import torch
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from models.bert import BertDenoiser
from models.dit import DitDenoiser, DitNetwork
from models.networks import BertArgs, for_embeddings, fresh_network, load_network, require_settings, require_vocabulary
from models.score_denoiser import ScoreDenoiser, as_score_denoiser
from models.score_lm import ScoreLmNetwork
from models.trials import try_out
from utils.errors import UserError
from utils.hub import first_line


def make_denoiser(
    network: PreTrainedModel, time_conditioning: str, num_steps: int, *, causal: bool = False, continuous: bool = False
) -> BertDenoiser | DitDenoiser | ScoreDenoiser:
    """A network as a denoiser: of tokens, or `continuous`, of embeddings.

    Raises:
        UserError: if it is laid out in a way that is not known, cannot be told the time so, looks to the wrong side,
            reads the other kind, reads its padding, or makes no numbers.
    """
    longest = getattr(network.config, "max_position_embeddings", 1)
    if type(longest) is not int:
        raise UserError(f"max_position_embeddings={longest!r} of {type(network).__name__} must be a whole number")
    if continuous:
        return as_score_denoiser(network, time_conditioning)
    if isinstance(network, ScoreLmNetwork):
        raise UserError("ScoreLmNetwork reads embeddings, and is for --process score; give another network")
    if isinstance(network, DitNetwork):
        denoiser = DitDenoiser(network, time_conditioning)
    else:
        denoiser = BertDenoiser(network, time_conditioning, num_steps)
    try_out(denoiser, denoiser.max_length, denoiser.vocab_size, getattr(network.config, "pad_token_id", None))
    ahead = not network.config.causal if isinstance(network, DitNetwork) else looks_ahead(denoiser)
    if ahead == causal:
        wanted, is_it = ("its left only", "what is to come") if causal else ("both sides", "its left only")
        raise UserError(
            f"{type(network).__name__} sees {is_it}, and this process needs a network that sees {wanted}; use another, "
            "or --from_scratch true with a preset"
        )
    return denoiser


@torch.no_grad()
def looks_ahead(denoiser: BertDenoiser | DitDenoiser) -> bool:
    """Whether a token changes what the network makes of those before it."""
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
    args: BertArgs,
    tokenizer: PreTrainedTokenizerBase,
    num_steps: int,
    *,
    causal: bool = False,
    of_embeddings: dict | None = None,
) -> BertDenoiser | DitDenoiser | ScoreDenoiser:
    """The denoiser that `args` describe, for that tokenizer and T = num_steps.

    Args:
        args: which network; the default is `networks.OF_EMBEDDINGS` if one of embeddings is needed.
        tokenizer: whose tokens it must know.
        num_steps: T.
        causal: one that looks to its left.
        of_embeddings: what a network over embeddings is to have; None: one over tokens is needed.

    Raises:
        UserError: if the network cannot be found, read or matched with the tokenizer.
    """
    if of_embeddings is not None:
        args = for_embeddings(args)
    if args.config_overrides and not args.from_scratch:
        raise UserError("config_overrides changes the architecture, so it needs --from_scratch true")
    if args.from_scratch:
        network = fresh_network(args, tokenizer, causal=causal, **(of_embeddings or {}))
    else:
        network = load_network(args.model_name_or_path, causal=causal)
    time = "none" if args.time_conditioning == "auto" else args.time_conditioning
    denoiser = make_denoiser(network, time, num_steps, causal=causal, continuous=of_embeddings is not None)
    require_settings(network, of_embeddings or {})
    require_vocabulary(args.model_name_or_path, denoiser.vocab_size, tokenizer)
    try:  # auto is settled where the device is known, models/attention.py
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
    return denoiser
