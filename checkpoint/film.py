"""Films of samples: every token's moment and its probability at that moment."""

import torch
from torch import Tensor

from checkpoint.model_parts import ModelParts
from checkpoint.requests import SampleRequest
from checkpoint.sampling import blank, decode, sample_rows, stream_of
from data.tokenizers import text_of
from data.word_counts import information
from diffusion.options import SampleArgs
from diffusion.process import Denoiser
from utils.film import Change, FilmedText, Piece


class WatchedDenoiser:
    """Denoiser that keeps the hidden states of its last forward pass, of one row."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser
        self.hidden: Tensor | None = None
        """[n, D], hidden states of the positions `first` and after; None if their logits are not those of a token."""
        self.first = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._denoiser, name)

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor, *previous: Tensor | None) -> Tensor:
        """See `Denoiser`."""
        hidden = self._denoiser.encode(xt, t, attention_mask, *previous)
        self.hidden, self.first = None if xt.is_floating_point() else hidden[0], 0
        return hidden

    def extend(self, tokens: Tensor, cache: object) -> tuple[Tensor, object]:
        """See `CausalDenoiser`. A hidden state predicts the next position."""
        hidden, following = self._denoiser.extend(tokens, cache)
        self.first = tokens.shape[1] + (self.first if cache is not None else 0)
        self.hidden = hidden[0, -1:]
        return hidden, following

    def probability(self, position: int, token: int, support: Tensor) -> float | None:
        """Return the probability of a token at a position in the last forward pass, None if it is not known.

        Args:
            position, token: the token.
            support: [V], added to the logits: -inf for tokens that are never drawn.
        """
        if self.hidden is None or not 0 <= position - self.first < len(self.hidden):
            return None
        logits = self._denoiser.decode(self.hidden[position - self.first]).float() + support
        return logits.softmax(-1)[token].item()


def film(model: ModelParts, request: SampleRequest, sampling: SampleArgs) -> list[FilmedText]:
    """Film samples, one after the other; they are those of `sample_rows` with the same request.

    The probability of a token is the network's own, before temperature, top-k and top-p, and before pieces that join
    given words are barred. A score-based model changes its likeliest tokens at every step, and none has a probability.
    """
    return [_film_one(model, request, sampling, number) for number in range(request.num_samples)]


def _film_one(model: ModelParts, request: SampleRequest, sampling: SampleArgs, number: int) -> FilmedText:
    watched = WatchedDenoiser(model.denoiser)
    start, targets = blank(model, request, stream_of(request, number))
    before, frames = start.clone(), []

    @torch.no_grad()
    def keep(_: Tensor, xt: Tensor) -> None:
        frames.append(_changes(model, watched, before, xt[0].cpu()))
        before.copy_(xt[0].cpu())

    counted = ModelParts(**{**vars(model), "denoiser": watched})
    (last,) = sample_rows(counted, request, sampling, keep, numbers=[number])
    if not torch.equal(before, last):
        frames.append(_changes(model, None, before, last))
    return _readable(model, last, targets, frames)


def _changes(model: ModelParts, watched: WatchedDenoiser | None, before: Tensor, after: Tensor) -> list[Change]:
    """Return the changes of one forward pass."""
    found, support = [], model.process.sampling_support
    for position in (before != after).nonzero()[:, 0].tolist():
        token = after[position].item()
        if token == model.tokenizer.mask_token_id:
            found.append(Change(position, None, None))
        else:
            known = watched.probability(position, token, support) if watched else None
            found.append(Change(position, _piece(model, token), known))
    return found


def _piece(model: ModelParts, token: int) -> str:
    """Return a token's text by itself."""
    return text_of(model.tokenizer, [token]).strip().removeprefix("##")


def _readable(model: ModelParts, row: Tensor, targets: Tensor, frames: list[list[Change]]) -> FilmedText:
    """Return the film without the special tokens of the finished row, whose text `decode` returns."""
    end, whole = row.new_tensor([model.tokenizer.sep_token_id]), decode(model, row)
    cuts = [min(len(decode(model, torch.cat([row[:i], end]))), len(whole)) for i in range(len(row) + 1)]
    nats = information(model.token_counts)
    pieces, place = [], {}
    for i, token in enumerate(row.tolist()):
        text = whole[cuts[i] : cuts[i + 1]]
        if text.strip():
            place[i] = len(pieces)
            glued = bool(pieces) and not text[:1].isspace()
            pieces.append(Piece(text.strip(), glued, nats[token].item(), not bool(targets[i])))
    kept = [
        [Change(place[c.position], c.text, c.probability) for c in frame if c.position in place] for frame in frames
    ]
    final = {c.position: c for frame in kept for c in frame}
    for frame in kept:  # the finished text has its own spelling, such as a joined mark
        frame[:] = [
            Change(c.position, pieces[c.position].text, c.probability) if final[c.position] is c else c for c in frame
        ]
    return FilmedText(pieces, kept)
