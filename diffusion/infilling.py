"""Texts with gaps: the tokens to fill, and the pieces allowed in them, so that given words stay whole.

Every [MASK] stands for one token. In a run of masks the first begins a word and the others may continue it: "[MASK]
[MASK]" is two words or one word of two pieces, with or without the space. A piece is barred from a mask if it would be

- joined to the given word before it, across a space: a `##` piece, or one without the space mark (`Ġ`, `▁`).
  Punctuation such as a comma is allowed;
- a `##` piece with nothing to continue: at the beginning of the text, or after punctuation such as a bracket;
- joined to the given word after it, across a space: one without the mark of a word's end (`</w>`).

Directly after a letter ("un[MASK]") nothing is barred. The prediction at a restricted position is renormalized over
the allowed pieces at each reveal, as in top-k. So samples are not distributed as whole texts conditioned on the
restriction. The times of the reveals do not change.
"""

import functools
import json
import math
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from diffusion.process import Denoiser
from utils.errors import UserError, shown


class Restriction(NamedTuple):
    """Restrictions on the piece at one position; by default there are none."""

    join_before: bool = False
    """Bar pieces that join the given token before."""
    join_after: bool = False
    """Bar pieces that join the given token after."""
    go_on: bool = False
    """Bar pieces marked as the continuation of a word."""


class GappedText(NamedTuple):
    """Text of n tokens, some of them to be filled."""

    ids: list[int]
    """Token ids, the mask token in the gaps."""
    restrictions: list[Restriction]
    """Restriction of each token."""


def parse_infill(tokenizer: PreTrainedTokenizerBase, text: str) -> GappedText:
    """Tokenize a text in which [MASK] (or the tokenizer's own mask token) stands for a token to fill.

    The text is tokenized whole, as byte-level vocabularies encode a word differently after a space.

    Raises:
        UserError: if the text has no mask, or another special token.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"infill={shown(text)}: not UTF-8") from error
    written = text.replace("[MASK]", tokenizer.mask_token)
    found = tokenizer(written, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    ids = found["input_ids"]
    if tokenizer.mask_token_id not in ids:
        raise UserError(f"infill={shown(text)}: no [MASK] in it; every [MASK] stands for one token to fill")
    special = set(ids) & (set(tokenizer.all_special_ids) - {tokenizer.mask_token_id, tokenizer.unk_token_id})
    if special:
        names = ", ".join(tokenizer.convert_ids_to_tokens(sorted(special)))
        raise UserError(f"infill={shown(text)}: {names} cannot stand in a text; only [MASK] can")
    return GappedText(ids, [_restriction(tokenizer, written, ids, found["offset_mapping"], i) for i in range(len(ids))])


def _restriction(
    tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int], spans: list[tuple[int, int]], i: int
) -> Restriction:
    mask = tokenizer.mask_token_id
    if ids[i] != mask:
        return Restriction()
    begin, end = spans[i]
    own = text[begin:end]  # some mask tokens include the space before them
    begin, end = begin + len(own) - len(own.lstrip()), end - len(own) + len(own.rstrip())
    first, last = i == 0 or ids[i - 1] != mask, i + 1 == len(ids) or ids[i + 1] != mask
    before, after = text[:begin][-1:], text[end:][:1]
    return Restriction(
        join_before=first and i > 0 and before.isspace() and not _ends_in_space(tokenizer, ids[i - 1]),
        join_after=last and i + 1 < len(ids) and after.isspace(),
        go_on=first and not _in_word(before),
    )


def _in_word(character: str) -> bool:
    """Return True for a letter, a digit, a mark on one of them, or a part of an incomplete character."""
    return character == "\ufffd" or (bool(character) and unicodedata.category(character)[0] in "LMN")


def _ends_in_space(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    return _joiner(tokenizer)(["a", tokenizer.convert_ids_to_tokens(token)])[-1:].isspace()


def _joiner(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], str]:
    decoder = tokenizer.backend_tokenizer.decoder
    return " ".join if decoder is None else decoder.decode


@functools.lru_cache(maxsize=1)
def glued_pieces(tokenizer: PreTrainedTokenizerBase, size: int) -> dict[str, Tensor]:
    """Return the pieces that each field of `Restriction` bars, bool [size] each, from the text the tokenizer decodes.

    A piece joins a word if no space separates them and it contains a letter or a digit. In scripts without spaces
    between words no piece counts as joining.
    """
    found = {name: torch.zeros(size, dtype=torch.bool) for name in Restriction._fields}
    text, alone, two = _joiner(tokenizer), tokenizer.tokenize("a") or [""], tokenizer.tokenize("a a")
    prefix = _continuation_mark(tokenizer)
    left, right = alone[-1], two[len(alone)] if len(two) > len(alone) else ""
    head, both = text([left]), text([left, right])
    apart = both.removeprefix(head)
    for piece, token in tokenizer.get_vocab().items():
        found["go_on"][token] = bool(prefix) and piece.startswith(prefix) and piece != prefix
        if right and apart[:1].isspace():
            tail = text([left, piece]).removeprefix(head)
            found["join_before"][token] = not tail[:1].isspace() and any(map(_in_word, tail))
            whole = text([piece, right])
            own = whole.removesuffix(apart.strip())
            found["join_after"][token] = not whole.endswith(apart) and any(map(_in_word, own))
    return found


def _continuation_mark(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return WordPiece's ##, or an empty string."""
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"] or {}
    steps = decoder.get("decoders", [decoder])
    return next((step["prefix"] for step in steps if step.get("type") == "WordPiece"), "")


def restrict(
    denoiser: Denoiser, gaps: GappedText, tokenizer: PreTrainedTokenizerBase, support: Tensor, width: int
) -> Denoiser:
    """Return the denoiser with the barred pieces removed from its predictions, or unchanged if none are barred.

    Args:
        denoiser: the network.
        gaps: the text; every row of the result's input is [CLS], this text, and what follows.
        tokenizer: decodes the pieces.
        support: [V], -inf for tokens that occur in no text.
        width: slots of a row.

    Raises:
        UserError: if no piece is allowed in some gap.
    """
    kinds = sorted({Restriction(), *gaps.restrictions})
    pieces = glued_pieces(tokenizer, len(support))
    table = torch.zeros(len(kinds), len(support))
    for row, kind in zip(table, kinds, strict=True):
        for name in Restriction._fields:
            row[pieces[name] & getattr(kind, name)] = -math.inf
    if not table.isinf().any():
        return denoiser
    clean = support.index_fill(0, torch.tensor([tokenizer.mask_token_id], device=support.device), -math.inf)
    table = table.to(support.device)
    if (table + clean).amax(1).isinf().any():
        raise UserError(
            "infill: no piece of this vocabulary may stand beside the words that are given; add --infill_pieces true"
        )
    columns = [kinds.index(restriction) for restriction in gaps.restrictions]
    return RestrictedDenoiser(denoiser, torch.tensor([0, *columns]), width, table, clean)


class RestrictedDenoiser:
    """Denoiser whose predictions bar some tokens at some positions, equal in all rows.

    The kind of a position is one more component of its hidden state, so callers can select and decode hidden states as
    usual. Barred tokens get probability 0, and the allowed ones share their mass in proportion. The probability of
    [MASK], which means that a token stays masked, does not change.
    """

    def __init__(self, denoiser: Denoiser, columns: Tensor, width: int, table: Tensor, clean: Tensor) -> None:
        """Wrap a denoiser.

        Args:
            denoiser: the network.
            columns: int64 [n], the kind of each of the first n positions; later positions have kind 0.
            width: slots of a row.
            table: [K, V], -inf for the tokens that each kind bars, else 0.
            clean: [V], -inf for tokens that occur in no text, including [MASK], else 0.
        """
        # underscored names cannot shadow the denoiser's attributes, such as the table of process=score
        self._denoiser, self._table, self._clean = denoiser, table, clean
        self._columns = F.pad(columns, (0, width + 1 - len(columns))).to(table.device)

    def __getattr__(self, name: str) -> object:
        return getattr(self._denoiser, name)

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor, *previous: Tensor | None) -> Tensor:
        """Return hidden states [B, L, D + 1]; see `Denoiser`."""
        hidden = self._denoiser.encode(xt, t, attention_mask, *previous)
        return self._with_kinds(hidden, self._columns[: hidden.shape[1]])

    def extend(self, tokens: Tensor, cache: tuple[int, object] | None) -> tuple[Tensor, tuple[int, object]]:
        """Return hidden states [B, n, D + 1] and a cache; see `CausalDenoiser`. A state predicts the next position."""
        seen, inner = cache or (0, None)
        hidden, inner = self._denoiser.extend(tokens, inner)
        following = seen + hidden.shape[1] + 1
        return self._with_kinds(hidden, self._columns[seen + 1 : following]), (following - 1, inner)

    def _with_kinds(self, hidden: Tensor, kinds: Tensor) -> Tensor:
        marks = kinds.to(hidden.dtype)[None, :, None].expand(len(hidden), -1, 1)
        return torch.cat([hidden, marks], -1)

    def decode(self, hidden: Tensor) -> Tensor:
        """Map hidden states [..., D + 1] to logits [..., V], float32 or more, -inf for barred tokens."""
        logits = self._denoiser.decode(hidden[..., :-1])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        barred = self._table[hidden[..., -1].long()]
        drawable = logits + self._clean
        lost = drawable.logsumexp(-1, keepdim=True) - (drawable + barred).logsumexp(-1, keepdim=True)
        return torch.where(self._clean == 0, logits + barred + lost, logits)
