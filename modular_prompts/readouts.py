"""Read-outs: scores of the options of a row from a frozen network and a prompt.

A row is `[CLS] placeholders question [SEP] text [SEP]`, of a pair with a second text and [SEP], and for the verbaliser
with `answer: [MASK] .. [SEP]`. A text that is too long loses its end, so that the question always stays.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data.tokenizers import encode
from models.denoiser import NetworkDenoiser
from modular_prompts.insertion import prompts_in
from modular_prompts.tasks import Card, Row
from modular_prompts.tuning import Examples
from utils.errors import UserError, shown

ANSWER = {"zh": "答案："}
"""Word before the masks, by language; in others `answer:`."""
OPTIONS_AT_ONCE = 64
SCALE = 20.0
"""Factor of a cosine, so that a softmax over options can be sharp; sentence encoders are trained with it."""


class Readout(ABC):
    """Scores of options. The network is frozen, and its dropout is off."""

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
    def examples(self, card: Card, rows: Sequence[Row]) -> Examples:
        """Return rows of a task as examples for tuning.

        Raises:
            UserError: if a question leaves no room for the text, or an option has no token.
        """

    def written(self, card: Card, rows: Sequence[Row], tail: Sequence[int] = ()) -> list[Tensor]:
        """Return the ids of rows, each int64 [L] with L <= max_length; `tail` follows the texts.

        Raises:
            UserError: if the question leaves no room for a text.
        """
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        question, *texts = self.tokens([card.question, *(text for row in rows for text in row.texts)])
        head, each = [cls, *self.placeholders, *question, *([sep] if question else [])], len(rows[0].texts)
        room = self.max_length - len(head) - each - len(tail)
        if room < each:
            raise UserError(
                f"{card.name}: a prompt of {self.prompt_length} tokens and the question leave no room for a text in "
                f"max_length={self.max_length}; raise it, or shorten the prompt"
            )
        bodies = (fitted(texts[i : i + each], room) for i in range(0, len(texts), each))
        return [torch.tensor([*head, *(id_ for text in body for id_ in (*text, sep)), *tail]) for body in bodies]

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts, without special tokens."""
        return [list(ids) for ids in encode(self.tokenizer, list(texts))["input_ids"]]

    def option_tokens(self, card: Card, rows: Sequence[Row]) -> dict[str, list[int]]:
        """Return the ids of every option.

        Raises:
            UserError: if one has no token.
        """
        options = sorted({option for row in rows for option in row.options})
        found = dict(zip(options, self.tokens(options), strict=True))
        if empty := next((option for option, ids in found.items() if not ids), None):
            raise UserError(
                f"{card.name}: the tokenizer has no token for the option {shown(empty)}; write it otherwise"
            )
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


class Verbaliser(Readout):
    """Mean over an option's tokens of log p(token | the row with that many masks), by the masked-LM head."""

    def examples(self, card: Card, rows: Sequence[Row]) -> Examples:
        """See `Readout`."""
        tokens, word = self.option_tokens(card, rows), self.tokens([ANSWER.get(card.language, "answer:")])[0]
        mask, sep = self.tokenizer.mask_token_id, self.tokenizer.sep_token_id
        sizes = sorted({len(tokens[option]) for row in rows for option in row.options})
        written = {n: self.written(card, rows, [*word, *[mask] * n, sep]) for n in sizes}
        most = max(len(row.options) for row in rows)

        def scores(chosen: Tensor, prompts: Tensor) -> Tensor:
            found = torch.full((len(chosen), most), -torch.inf)
            for n in sizes:
                options = [(i, j, tokens[option]) for i, row in enumerate(chosen.tolist())
                           for j, option in enumerate(rows[row].options) if len(tokens[option]) == n]  # fmt: skip
                if not options:
                    continue
                first, second, ids = (list(column) for column in zip(*options, strict=True))
                used = sorted(set(first))
                own = prompts if len(prompts) == 1 else prompts[used]
                log_p = self._at_masks([written[n][chosen[i]] for i in used], own, n)  # [used, n, V]
                place = {i: number for number, i in enumerate(used)}
                where = torch.tensor([place[i] for i in first])[:, None]
                each = log_p[where, torch.arange(n), torch.tensor(ids)].mean(-1)
                found = found.index_put((torch.tensor(first), torch.tensor(second)), each.cpu())
            return found

        return Examples(scores, torch.tensor([row.label for row in rows]))

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

    def examples(self, card: Card, rows: Sequence[Row]) -> Examples:
        """See `Readout`."""
        tokens, most = self.option_tokens(card, rows), max(len(row.options) for row in rows)
        vectors = self._option_vectors(tokens)
        written = self.written(card, rows)
        empty = torch.zeros(next(iter(vectors.values())).shape)
        options = torch.stack(
            [torch.stack([*(vectors[o] for o in row.options), *[empty] * (most - len(row.options))]) for row in rows]
        )  # [rows, most, D]
        missing = torch.tensor([[j >= len(row.options) for j in range(most)] for row in rows])

        def scores(chosen: Tensor, prompts: Tensor) -> Tensor:
            hidden, attended = self.hidden([written[i] for i in chosen], prompts)
            attended[:, 1 : 1 + self.prompt_length] = False
            pooled = mean_of(hidden, attended).cpu()
            cosines = torch.nn.functional.cosine_similarity(pooled[:, None], options[chosen], dim=-1)
            return (SCALE * cosines).masked_fill(missing[chosen], -torch.inf)

        return Examples(scores, torch.tensor([row.label for row in rows]))

    @torch.no_grad()
    def _option_vectors(self, tokens: dict[str, list[int]]) -> dict[str, Tensor]:
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        vectors = {}
        nothing = torch.zeros(1, 1, 0, self.denoiser.network.config.hidden_size)
        options = sorted(tokens, key=lambda option: len(tokens[option]))
        for begin in range(0, len(options), OPTIONS_AT_ONCE):
            part = options[begin : begin + OPTIONS_AT_ONCE]
            rows = [torch.tensor([cls, *tokens[option][: self.max_length - 2], sep]) for option in part]
            vectors |= zip(part, mean_of(*self.hidden(rows, nothing)).cpu(), strict=True)
        return vectors


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
    """Return the ids at a prompt's positions: unused tokens of the vocabulary, or [MASK] where these are too few."""
    known = tokenizer.get_vocab()
    unused = [known[name] for name in (f"[unused{i}]" for i in range(2 * number)) if name in known]
    return unused[:number] if len(unused) >= number else [tokenizer.mask_token_id] * number
