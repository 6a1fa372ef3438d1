"""Autoregressive baseline: every token is predicted from those before it. Likelihood and sampling are exact.

It has the same methods as the diffusion processes and uses the same data. Target tokens are scored given all tokens to
their left: [CLS] in a text, the source in a pair. All other tokens are given. In single texts (`end_id`) the end of the
text is scored, too: a diffusion process receives the length of a text, and this model has to predict it.
"""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from data.batch import Batch
from diffusion.chunked_logits import in_chunks
from diffusion.draws import WHOLE, Generators, Share, filter_logits, sample_categorical, streams_of, uniform
from diffusion.options import EVERY_WINDOW, BoundArgs, SampleArgs
from diffusion.process import Bound, Denoiser, Loss, Process, StepCallback, Vocabulary
from diffusion.process_options import AutoregressiveArgs
from utils.errors import UserError


class CausalDenoiser(Denoiser, Protocol):
    """Causal network whose forward pass can be continued from a cache."""

    def extend(self, tokens: Tensor, cache: object) -> tuple[Tensor, object]:
        """Map tokens int64 [B, n] and a cache (None at first) to hidden states [B, n, D] and the next cache."""
        ...


class Autoregressive(Process):
    """Process that predicts tokens from left to right."""

    def __init__(
        self,
        args: AutoregressiveArgs,
        vocabulary: Vocabulary,
        *,
        end_id: int | None = None,
        fused_loss: bool = False,
    ) -> None:
        """Make the tables.

        Args:
            args: the settings.
            vocabulary, fused_loss: see `Process`.
            end_id: token that ends a text, scored where it follows a target; None: texts have no end token.
        """
        super().__init__(vocabulary, fused_loss=fused_loss)
        self.args, self.num_steps, self.end_id = args, args.num_steps, end_id

    def scored(self, batch: Batch) -> Tensor:
        """Return the scored tokens, bool [B, L]: targets and ends of texts."""
        if self.end_id is None:
            return batch.target_mask
        ends = batch.input_ids.eq(self.end_id)
        follows = F.pad((batch.target_mask & ~ends)[:, :-1], (1, 0))  # only the first: [PAD] may have the same id
        return batch.target_mask | (follows & ends & batch.attention_mask)

    def predicted_counts(self, token_counts: Tensor, num_texts: int) -> Tensor:
        """See Process; the ends of the texts are predicted, too."""
        counts = token_counts.clone()
        if self.end_id is not None:
            counts[self.end_id] += num_texts
        return counts

    def cross_entropy(self, denoiser: Denoiser, batch: Batch) -> Tensor:
        """Return -log p(x_i | x_1 .. x_{i-1}) of scored tokens, float64 [B, L], 0 elsewhere; the sum is -log p(x)."""
        scored, following = self.scored(batch)[:, 1:], batch.input_ids[:, 1:]
        hidden = denoiser.encode(batch.input_ids, torch.ones_like(batch.input_ids[:, 0]), batch.attention_mask)

        def terms(part: Tensor, rows: slice) -> tuple[Tensor]:
            logits = self.within_support(denoiser.decode(part))
            return (F.cross_entropy(logits, following[rows][scored[rows]], reduction="none").double(),)

        (nats,) = in_chunks(terms, hidden[:, :-1][scored], scored.sum(1), self.vocab_size, recompute=self.fused_loss)
        zeros = torch.zeros(batch.input_ids.shape, dtype=torch.float64, device=nats.device)
        return zeros.masked_scatter(F.pad(scored, (1, 0)), nats)

    def loss(
        self, denoiser: Denoiser, batch: Batch, *, generator: Generator | None = None, share: Share = WHOLE
    ) -> Loss:
        """Return -log p of the targets; the generator is not used."""
        total = self.cross_entropy(denoiser, batch).sum()
        return Loss(total, batch.target_mask.sum(), {"cross_entropy": total.detach()})

    def _bound(
        self, denoiser: Denoiser, batch: Batch, num_steps: float, args: BoundArgs, generator: Generators
    ) -> Bound:
        """Return the exact -log p(x), in one forward pass, for any number of steps."""
        if args.estimator != EVERY_WINDOW.estimator:
            raise UserError("the likelihood of process=ar is exact, in one forward; leave estimator and num_steps out")
        total = self.cross_entropy(denoiser, batch).sum(1)
        return Bound(torch.zeros_like(total), torch.zeros_like(total), total, torch.ones_like(total))

    def check_sampling(self, args: SampleArgs) -> None:
        """Refuse settings that do not apply from left to right.

        Raises:
            UserError: for a sampler, or a number of steps.
        """
        args.require_tokens("process=ar")
        if args.sampler != "auto":
            raise UserError(f"sampler={args.sampler} is for masked processes; leave it out with process=ar")
        if args.num_steps not in (0, 1):
            raise UserError(f"num_steps={args.num_steps:g}: process=ar draws token by token; leave it out")

    def _sample(
        self,
        denoiser: CausalDenoiser,
        batch: Batch,
        args: SampleArgs,
        rows_at_once: int,
        generator: Generators,
        on_step: StepCallback | None,
    ) -> Tensor:
        """Draw each target from left to right, given the tokens to its left.

        After a drawn `end_id` all further targets of the row are `end_id`, if the row ends in a target. A row that ends
        in given tokens has a gap to fill, so no end is drawn in it.
        """
        tokens = batch.input_ids.masked_fill(batch.target_mask, self.mask_id)
        for rows in torch.arange(len(tokens), device=tokens.device).split(rows_at_once or max(1, len(tokens))):
            streams, gapped = streams_of(generator, rows), ends_with_given(batch.rows(rows))

            def draw(hidden: Tensor, where: Tensor, streams: Generators = streams, no_end: Tensor = gapped) -> Tensor:
                logits = denoiser.decode(hidden[where]).float() + self.sampling_support
                if self.end_id is not None:
                    logits[no_end[where], self.end_id] = -torch.inf
                weights = filter_logits(logits, args).softmax(-1)
                return sample_categorical(weights, uniform(where[:, None], streams)[where, 0])

            self._write(denoiser, batch, tokens, rows, draw, on_step)
        return tokens

    def _write(
        self,
        denoiser: CausalDenoiser,
        batch: Batch,
        tokens: Tensor,
        rows: Tensor,
        draw: Callable[[Tensor, Tensor], Tensor],
        on_step: StepCallback | None,
    ) -> None:
        targets = batch.target_mask[rows]
        columns = targets.any(0).nonzero()[:, 0].tolist()
        last = torch.where(targets, torch.arange(targets.shape[1], device=rows.device), -1).amax(1)
        seen, cache, ended = 0, None, torch.zeros_like(targets[:, 0])
        for column in range(columns[0], columns[-1] + 1) if columns else ():
            hidden, cache = denoiser.extend(tokens[rows, seen:column], cache)
            seen, where = column, targets[:, column] & ~ended
            if where.any():
                tokens[rows[where], column] = draw(hidden[:, -1], where)
            ends = where & tokens[rows, column].eq(-1 if self.end_id is None else self.end_id)
            later = ends[:, None] & targets & (torch.arange(targets.shape[1], device=rows.device) > column)
            tokens[rows] = tokens[rows].masked_fill(later, self.end_id or 0)
            if on_step is not None:
                on_step(rows[ends | (~ended & (last == column))], tokens)
            ended |= ends
            if (ended | (last <= column)).all():
                break


def ends_with_given(batch: Batch) -> Tensor:
    """Return bool [B], True where the last attended token is given."""
    position = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
    last = torch.where(batch.attention_mask, position, -1).amax(1)
    return ~batch.target_mask.gather(1, last[:, None])[:, 0]
