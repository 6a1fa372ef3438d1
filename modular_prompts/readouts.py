"""Read-outs: scores of the options of a row from a frozen network and a prompt.

A row is `[CLS] placeholders question [SEP] text [SEP]`, of a pair with a second text and [SEP], and for the verbaliser
with `answer: [MASK] .. [SEP]`. A text that is too long loses its end, so that the question always stays.
"""

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data.tokenizers import encode
from models.denoiser import NetworkDenoiser
from modular_prompts.insertion import prompts_in
from modular_prompts.tasks import Card, Row
from modular_prompts.tuning import Examples, Scores
from utils.errors import UserError, shown

Part = tuple[Card, Sequence[Row]]
"""A task's card and some of its rows."""
ANSWER = {"zh": "答案："}
"""Word before the masks, by language; in others `answer:`."""
UNUSED = re.compile(r"\[unused\d+\]")
OPTIONS_AT_ONCE = 64
MOST_ALIKE = 0.1
"""Share of rows in which two options may have the same tokens; the answer is then the first of them."""
LEAST_FILLED = 0.6
"""Length of the shortest row of a forward pass, relative to the longest."""
SCALE = 20.0
"""Factor of a cosine, so that a softmax over options can be sharp; sentence encoders are trained with it."""


@dataclass(frozen=True)
class Pieces:
    """Tokens of a row, before it is cut to its length."""

    head: list[int]
    """[CLS], placeholders and the question with its [SEP]."""
    texts: list[list[int]]


class Readout(ABC):
    """Scores of options. The network is frozen, and its dropout is off."""

    head: nn.Module | None = None
    """Parameters of the read-out itself, which are trained with the modules; most read-outs have none."""

    def __init__(
        self, denoiser: NetworkDenoiser, tokenizer: PreTrainedTokenizerBase, prompt_length: int, max_length: int = 128
    ) -> None:
        """Freeze a network.

        Args:
            denoiser: the network.
            tokenizer: its tokenizer.
            prompt_length: P.
            max_length: tokens of a row, prompt included.

        Raises:
            UserError: if rows of this length do not fit the network.
        """
        self.denoiser, self.tokenizer = denoiser.eval().requires_grad_(False), tokenizer
        self.prompt_length, self.max_length = prompt_length, max_length
        if max_length > denoiser.max_length:
            raise UserError(f"max_length={max_length} must be at most {denoiser.max_length}, the network's positions")
        self.placeholders = placeholders(tokenizer, prompt_length)

    @abstractmethod
    def examples(self, *parts: Part) -> Examples:
        """Return rows of tasks as examples for tuning, those of the first task first.

        Raises:
            UserError: if a question leaves no room for the text, or an option has no token.
        """

    def pieces(self, parts: Sequence[Part], longest_tail: int = 0) -> list[Pieces]:
        """Return the tokens of rows; `longest_tail` is the most tokens that `written` will add.

        Raises:
            UserError: if a question leaves no room for a text.
        """
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        found = []
        for card, rows in parts:
            question, *texts = self.tokens([card.question, *(text for row in rows for text in row.texts)])
            head, each = [cls, *self.placeholders, *question, *([sep] if question else [])], len(rows[0].texts)
            if self.max_length - len(head) - longest_tail < 2 * each:
                raise UserError(
                    f"{card.name}: a prompt of {self.prompt_length} tokens, the question and the options or masks "
                    f"({len(head) + longest_tail} tokens in all) leave no room for a text in "
                    f"max_length={self.max_length}; raise it, or shorten them"
                )
            found += [Pieces(head, texts[i : i + each]) for i in range(0, len(texts), each)]
        return found

    def written(self, row: Pieces, tail: Sequence[int] = ()) -> Tensor:
        """Return the ids of a row with a tail, int64 [L], L <= max_length."""
        room = self.max_length - len(row.head) - len(row.texts) - len(tail)
        sep = self.tokenizer.sep_token_id
        return torch.tensor([*row.head, *(i for text in fitted(row.texts, room) for i in (*text, sep)), *tail])

    def lengths(self, rows: Sequence[Pieces]) -> Tensor:
        """Return the lengths of rows without a tail, int64 [rows]."""
        return torch.tensor([min(self.max_length, len(r.head) + sum(map(len, r.texts)) + len(r.texts)) for r in rows])

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts, without special tokens."""
        return [list(ids) for ids in encode(self.tokenizer, list(texts))["input_ids"]]

    def option_tokens(self, parts: Sequence[Part], *, in_text: bool = False) -> dict[str, list[int]]:
        """Return the ids of every option.

        Args:
            parts: tasks with their rows.
            in_text: the options follow a word, so that byte-level tokenizers begin them with a space.

        Raises:
            UserError: if a task has no options, or the tokens do not tell them apart.
        """
        for card, rows in parts:
            if not rows[0].options:
                raise UserError(
                    f"{card.name}: a task of type {card.kind} has no options, which this read-out needs; use "
                    "readout=spans for extraction, or a checkpoint of pairs"
                )
        options = sorted({option for _, rows in parts for row in rows for option in row.options})
        spaceless = {option for card, rows in parts if not card.spaced for row in rows for option in row.options}
        written = [f" {option}" if in_text and option not in spaceless else option for option in options]
        found = dict(zip(options, self.tokens(written), strict=True))
        for card, rows in parts:
            require_different(card, rows, found)
        return found

    def hidden(self, rows: Sequence[Tensor], prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Return hidden states [n, L, D] of rows of ids with prompts [1 or n, layers, P, D], and the attention mask."""
        ids = pad_sequence(list(rows), batch_first=True, padding_value=self.tokenizer.pad_token_id)
        lengths = torch.tensor([len(row) for row in rows])
        attended = torch.arange(ids.shape[1]) < lengths[:, None]
        device = self.denoiser.network.device
        ids, attended = ids.to(device), attended.to(device)
        with prompts_in(self.denoiser.layers, prompts.to(device)):
            return self.denoiser.encode(ids, torch.ones(len(ids), dtype=torch.long, device=device), attended), attended

    def pooled(self, rows: Sequence[Pieces], prompts: Tensor) -> Tensor:
        """Return the mean hidden states of rows, placeholders left out, float32 [n, D]."""
        hidden, attended = self.hidden([self.written(row) for row in rows], prompts)
        attended[:, 1 : 1 + self.prompt_length] = False
        return mean_of(hidden, attended).cpu()

    @torch.no_grad()
    def option_vectors(self, tokens: dict[str, list[int]]) -> Tensor:
        """Return the mean hidden state of every option, alone and without a prompt, [options, D]."""
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        each = list(tokens.values())
        vectors = torch.zeros(len(each), self.denoiser.network.config.hidden_size)
        order = sorted(range(len(each)), key=lambda i: len(each[i]))
        for begin in range(0, len(order), OPTIONS_AT_ONCE):
            part = order[begin : begin + OPTIONS_AT_ONCE]
            rows = [torch.tensor([cls, *each[i][: self.max_length - 2], sep]) for i in part]
            vectors[part] = mean_of(*self.hidden(rows, self.nothing)).cpu()
        return vectors

    @property
    def nothing(self) -> Tensor:
        """A prompt without tokens, [1, 1, 0, D]."""
        return torch.zeros(1, 1, 0, self.denoiser.network.config.hidden_size)

    def plain(self) -> "Readout":
        """Return this read-out of the same network without placeholders."""
        other = copy.copy(self)
        other.prompt_length, other.placeholders = 0, []
        return other

    def fitting(self, prompt: Tensor) -> "Readout":
        """Return the read-out for a prompt [1, layers, P, D]: without placeholders if it has no tokens."""
        return self if prompt.shape[-2] else self.plain()


class Verbaliser(Readout):
    """Mean over an option's tokens of log p(token | the row with that many masks), by the masked-LM head."""

    def examples(self, *parts: Part) -> Examples:
        """See `Readout`."""
        tokens = self.option_tokens(parts, in_text=True)
        words = [self.tokens([ANSWER.get(card.language[:2], "answer:")])[0] for card, _ in parts]
        tail = max(map(len, words)) + max(map(len, tokens.values())) + 1
        pieces, options = self.pieces(parts, tail), numbered(parts, tokens)
        before = [word for word, (_, rows) in zip(words, parts, strict=True) for _ in rows]
        ids_of, mask, sep = list(tokens.values()), self.tokenizer.mask_token_id, self.tokenizer.sep_token_id

        def scores(chosen: Tensor, prompts: Tensor) -> Tensor:
            own = options[chosen]
            by_size: dict[int, list[tuple[int, int]]] = {}
            for i, j in own.ge(0).nonzero().tolist():
                by_size.setdefault(len(ids_of[own[i, j]]), []).append((i, j))
            found = torch.full(own.shape, -torch.inf)
            for n, places in by_size.items():
                first, second = (torch.tensor(column) for column in zip(*places, strict=True))
                used, where = first.unique(return_inverse=True)
                rows = [self.written(pieces[i], [*before[i], *[mask] * n, sep]) for i in chosen[used].tolist()]
                log_p = self._at_masks(rows, prompts if len(prompts) == 1 else prompts[used], n)  # [used, n, V]
                ids = torch.tensor([ids_of[number] for number in own[first, second].tolist()])
                each = log_p[where[:, None], torch.arange(n), ids].mean(-1)
                found = found.index_put((first, second), each.cpu())
            return found

        return Examples(by_length(scores, self.lengths(pieces)), *answers(parts))

    def _at_masks(self, rows: Sequence[Tensor], prompts: Tensor, number: int) -> Tensor:
        """Return log p at the last `number` masks of each row, [n, number, V]; a [SEP] follows them."""
        hidden, _ = self.hidden(rows, prompts)
        end = torch.tensor([len(row) - 1 for row in rows], device=hidden.device)
        places = end[:, None] + torch.arange(-number, 0, device=hidden.device)
        masked = hidden[torch.arange(len(rows), device=hidden.device)[:, None], places]
        return self.denoiser.decode(masked).float().log_softmax(-1)


class Cosine(Readout):
    """Cosine of the mean hidden state of the row, placeholders left out, and that of the option alone, unprompted.

    For encoders without a trained masked-LM head.
    """

    def examples(self, *parts: Part) -> Examples:
        """See `Readout`."""
        tokens = self.option_tokens(parts)
        vectors, options, pieces = self.option_vectors(tokens), numbered(parts, tokens), self.pieces(parts)

        def scores(chosen: Tensor, prompts: Tensor) -> Tensor:
            own, pooled = options[chosen], self.pooled([pieces[i] for i in chosen.tolist()], prompts)
            cosines = torch.nn.functional.cosine_similarity(pooled[:, None], vectors[own], dim=-1)
            return (SCALE * cosines).masked_fill(own < 0, -torch.inf)

        return Examples(by_length(scores, self.lengths(pieces)), *answers(parts))


def by_length(scores: Scores, lengths: Tensor) -> Scores:
    """Return the same scores from several forward passes over rows of similar length, which need less padding.

    Args:
        scores: scores of any rows in one pass; those of a row depend on its own tokens only.
        lengths: tokens of each row, int64 [rows].
    """

    def grouped(rows: Tensor, prompts: Tensor) -> Tensor:
        order, found = lengths[rows].argsort(descending=True, stable=True), []
        while len(order):
            own = lengths[rows[order]]
            number = int((own > LEAST_FILLED * own[0]).sum())
            group, order = order[:number], order[number:]
            found.append((group, scores(rows[group], prompts if len(prompts) == 1 else prompts[group])))
        groups, parts = zip(*found, strict=True)
        return torch.cat(parts)[torch.cat(groups).argsort()]

    return grouped


def require_different(card: Card, rows: Sequence[Row], tokens: dict[str, list[int]]) -> None:
    """Require that the tokens of the options of a row differ, in nearly all rows where the options differ by row.

    Raises:
        UserError: naming options without a token, or with the same tokens.
    """
    alike, example = 0, ()
    for row in rows[:1] if card.labels else rows:
        each = [tuple(tokens[option]) for option in row.options]
        if () in each:
            empty = row.options[each.index(())]
            raise UserError(
                f"{card.name}: the tokenizer has no token for the option {shown(empty)}; write it otherwise"
            )
        if len(set(each)) < len(each):
            alike, example = alike + 1, row.options
    if alike > MOST_ALIKE * len(rows) or (alike and card.labels):
        raise UserError(
            f"{card.name}: options such as {shown(', '.join(example))} have the same tokens; use a network whose "
            "vocabulary has their words, or write them otherwise"
        )


def numbered(parts: Sequence[Part], options: Iterable[str]) -> Tensor:
    """Return the numbers of the options of each row, int64 [rows, most options]; -1 where a row has fewer."""
    number = {option: i for i, option in enumerate(options)}
    rows = [torch.tensor([number[o] for o in row.options], dtype=torch.long) for _, own in parts for row in own]
    return pad_sequence(rows, batch_first=True, padding_value=-1)


def answers(parts: Sequence[Part]) -> tuple[Tensor, tuple[int, ...]]:
    """Return the right options, int64 [rows], and the number of rows of each task."""
    return torch.tensor([row.label for _, rows in parts for row in rows]), tuple(len(rows) for _, rows in parts)


def mean_of(hidden: Tensor, attended: Tensor) -> Tensor:
    """Return the mean of hidden states [n, L, D] over the positions that bool [n, L] marks, float32 [n, D]."""
    kept = attended[..., None].float()
    return (hidden.float() * kept).sum(1) / kept.sum(1)


def fitted(texts: Sequence[list[int]], room: int) -> list[list[int]]:
    """Cut the longest texts at their ends until all have `room` tokens together."""
    lengths = [len(text) for text in texts]
    while sum(lengths) > room:
        longest = lengths.index(max(lengths))
        others = max((n for i, n in enumerate(lengths) if i != longest), default=0)
        lengths[longest] -= min(sum(lengths) - room, max(1, lengths[longest] - others))
    return [text[:n] for text, n in zip(texts, lengths, strict=True)]


def placeholders(tokenizer: PreTrainedTokenizerBase, number: int) -> list[int]:
    """Return the ids at a prompt's positions: unused tokens of the vocabulary, or [CLS] where these are too few.

    [CLS] disturbs a network least: [MASK], [PAD], [SEP] and [UNK] mean something where a target may stand.
    """
    known = tokenizer.get_vocab()
    unused = sorted((int(name[7:-1]), id_) for name, id_ in known.items() if UNUSED.fullmatch(name))
    return [id_ for _, id_ in unused[:number]] if len(unused) >= number else [tokenizer.cls_token_id] * number
