"""Texts with gaps: which tokens are to be filled, and with which pieces, so that the words that are given stay whole.

A [MASK] stands for one token. Of several in a row the first begins a word and the others may go on with it: "[MASK]
[MASK]" is two words or one of two pieces, with and without a space between. So a piece is barred where it would be

- glued to the given word before it: a `##` piece, or one without the mark of a space (`Ġ`, `▁`), where the mask has a
  space before it; marks such as a comma may stand there;
- a `##` piece at the beginning of the text or after a mark such as a bracket, since there is nothing it could go on
  with;
- glued to the given word after it: one without the mark of a word's end (`</w>`), where the mask has a space after it.

Directly after a letter ("un[MASK]") nothing is barred. What is drawn follows p_theta with the prediction at such a
position restricted to the other pieces, in proportion: the restriction acts at each reveal, as top-k does, so this is
not the law of whole texts given that no piece is glued. When a token is revealed is not changed by it.
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


class Place(NamedTuple):
    """What the piece at a position may not do; nothing is forbidden by default."""

    join_before: bool = False
    """Be glued to what is given before it."""
    join_after: bool = False
    """Be glued to what is given after it."""
    go_on: bool = False
    """Be marked as the continuation of a word."""


class Gaps(NamedTuple):
    """A text of n tokens with some to fill."""

    ids: list[int]
    """The mask token where one is to be filled."""
    places: list[Place]
    """One a token."""


def parse(tokenizer: PreTrainedTokenizerBase, text: str) -> Gaps:
    """Tokens of a text in which [MASK] (or the tokenizer's own mask token) stands for one to fill.

    The text is tokenised whole: in byte-level vocabularies a word is another token with a space before it.

    Raises:
        UserError: if there is nothing to fill, or another special token in it.
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
    return Gaps(ids, [_place(tokenizer, written, ids, found["offset_mapping"], i) for i in range(len(ids))])


def _place(
    tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int], spans: list[tuple[int, int]], i: int
) -> Place:
    mask = tokenizer.mask_token_id
    if ids[i] != mask:
        return Place()
    begin, end = spans[i]
    own = text[begin:end]  # some mask tokens take the space before them with them
    begin, end = begin + len(own) - len(own.lstrip()), end - len(own) + len(own.rstrip())
    first, last = i == 0 or ids[i - 1] != mask, i + 1 == len(ids) or ids[i + 1] != mask
    before, after = text[:begin][-1:], text[end:][:1]
    return Place(
        join_before=first and i > 0 and before.isspace() and not _ends_in_space(tokenizer, ids[i - 1]),
        join_after=last and i + 1 < len(ids) and after.isspace(),
        go_on=first and not _in_word(before),
    )


def _in_word(character: str) -> bool:
    """Whether it is a letter, a digit, a mark on one of them, or a part of a character that is not whole."""
    return character == "\ufffd" or (bool(character) and unicodedata.category(character)[0] in "LMN")


def _ends_in_space(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    return _joiner(tokenizer)(["a", tokenizer.convert_ids_to_tokens(token)])[-1:].isspace()


def _joiner(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], str]:
    decoder = tokenizer.backend_tokenizer.decoder
    return " ".join if decoder is None else decoder.decode


@functools.lru_cache(maxsize=1)
def joining(tokenizer: PreTrainedTokenizerBase, size: int) -> dict[str, Tensor]:
    """Which pieces do what a `Place` may forbid, bool [size] each: told by what the tokenizer makes of them as text.

    A piece joins a word if no space comes between and there is a letter or a digit in it. Where whole words are joined
    without a space no piece is said to.
    """
    found = {name: torch.zeros(size, dtype=torch.bool) for name in Place._fields}
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
    """WordPiece's ##, or nothing."""
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"] or {}
    steps = decoder.get("decoders", [decoder])
    return next((step["prefix"] for step in steps if step.get("type") == "WordPiece"), "")


def restrict(
    denoiser: Denoiser, gaps: Gaps, tokenizer: PreTrainedTokenizerBase, support: Tensor, width: int
) -> Denoiser:
    """The denoiser, with what each place forbids left out of its predictions; itself if nothing is forbidden.

    Args:
        denoiser: the network.
        gaps: the text; all rows that the result sees are [CLS], this text, and what comes after.
        tokenizer: says which piece does what.
        support: [V], -inf for tokens that no text holds.
        width: slots of a row.

    Raises:
        UserError: if nothing is left that could stand in a gap.
    """
    kinds = sorted({Place(), *gaps.places})
    pieces = joining(tokenizer, len(support))
    table = torch.zeros(len(kinds), len(support))
    for row, kind in zip(table, kinds, strict=True):
        for name in Place._fields:
            row[pieces[name] & getattr(kind, name)] = -math.inf
    if not table.isinf().any():
        return denoiser
    clean = support.index_fill(0, torch.tensor([tokenizer.mask_token_id], device=support.device), -math.inf)
    table = table.to(support.device)
    if (table + clean).amax(1).isinf().any():
        raise UserError(
            "infill: no piece of this vocabulary may stand beside the words that are given; add --infill_pieces true"
        )
    columns = [kinds.index(place) for place in gaps.places]
    return Restricted(denoiser, torch.tensor([0, *columns]), width, table, clean)


class Restricted:
    """A denoiser whose predictions leave some tokens out at some positions; the same positions in every row.

    The kind of a position goes with its hidden state as one number more, so that whoever picks hidden states and has
    them decoded need not know of it. What is barred gets probability 0, and its mass goes to what is not, in
    proportion; [MASK], which says that a token is to stay masked, keeps its own.
    """

    def __init__(self, denoiser: Denoiser, columns: Tensor, width: int, table: Tensor, clean: Tensor) -> None:
        """Wrap a denoiser.

        Args:
            denoiser: the network.
            columns: int64 [n], the kind of each of the first positions; 0 after them.
            width: slots of a row.
            table: [K, V], -inf for what each kind bars, else 0.
            clean: [V], -inf for what is no text, [MASK] among it, else 0.
        """
        # names that no denoiser has: whatever else is asked for is the network's own (process=score asks for a table)
        self._denoiser, self._table, self._clean = denoiser, table, clean
        self._columns = F.pad(columns, (0, width + 1 - len(columns))).to(table.device)

    def __getattr__(self, name: str) -> object:
        return getattr(self._denoiser, name)

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor, *previous: Tensor | None) -> Tensor:
        """Hidden states [B, L, D + 1]; see Denoiser."""
        hidden = self._denoiser.encode(xt, t, attention_mask, *previous)
        return self._with_kinds(hidden, self._columns[: hidden.shape[1]])

    def extend(self, tokens: Tensor, cache: tuple[int, object] | None) -> tuple[Tensor, tuple[int, object]]:
        """Hidden states [B, n, D + 1] and a cache; see CausalDenoiser. A state predicts the position after its own."""
        seen, inner = cache or (0, None)
        hidden, inner = self._denoiser.extend(tokens, inner)
        following = seen + hidden.shape[1] + 1
        return self._with_kinds(hidden, self._columns[seen + 1 : following]), (following - 1, inner)

    def _with_kinds(self, hidden: Tensor, kinds: Tensor) -> Tensor:
        marks = kinds.to(hidden.dtype)[None, :, None].expand(len(hidden), -1, 1)
        return torch.cat([hidden, marks], -1)

    def decode(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D + 1] -> logits [..., V], float32 at least, -inf at what is barred."""
        logits = self._denoiser.decode(hidden[..., :-1])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        barred = self._table[hidden[..., -1].long()]
        drawable = logits + self._clean
        lost = drawable.logsumexp(-1, keepdim=True) - (drawable + barred).logsumexp(-1, keepdim=True)
        return torch.where(self._clean == 0, logits + barred + lost, logits)
