"""The causal baseline: every token given those before it. The likelihood is exact, and so is sampling, token by token.

It stands behind the same three verbs as the diffusion processes, on the same data: target tokens are scored given
everything to their left (of text [CLS], of a pair its source), what is no target is given. Of single texts (`end_id`)
the end is scored, too, though it is no target: a diffusion is told how long a text is to be, and this has to say it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from data.batch import Batch
from diffusion.chunked_logits import in_parts
from diffusion.draws import WHOLE, Generators, Share, filter_logits, sample_categorical, streams_of, uniform
from diffusion.options import EVERY_WINDOW, BoundArgs, ProcessArgs, SampleArgs
from diffusion.process import Bound, Denoiser, Loss, Process, StepCallback, Vocabulary
from utils.errors import UserError


@dataclass(frozen=True)
class AutoregressiveArgs(ProcessArgs):
    """There is nothing to set."""

    num_steps: ClassVar[int] = 1
    """Reported as the number of steps: the likelihood has none."""

    def check_time(self, time_conditioning: str) -> None:
        """See ProcessArgs."""
        if time_conditioning != "none":
            raise UserError(f"time_conditioning={time_conditioning}: process=ar has no time; leave it out")

    def check_training(self, *, time_conditioning: str, warm_start: float, packing: bool, fused_loss: bool) -> None:
        """See ProcessArgs."""
        self.check_time(time_conditioning)
        if warm_start:
            raise UserError("warm_start is for masked processes; leave it out with process=ar")
        if packing:
            raise UserError("packing=true is for masked processes; with process=ar use --max_tokens")


class CausalDenoiser(Denoiser, Protocol):
    """A network whose every position sees itself and what is to its left, and that can go on where it stopped."""

    def extend(self, tokens: Tensor, cache: object) -> tuple[Tensor, object]:
        """int64 [B, n], the cache of what came before (None: nothing) -> hidden states [B, n, D], the next cache."""
        ...


class Autoregressive(Process):
    """Left to right."""

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
            end_id: the token that ends a text, scored where it follows a target; None: what is written does not end.
        """
        super().__init__(vocabulary, fused_loss=fused_loss)
        self.args, self.num_steps, self.end_id = args, args.num_steps, end_id

    def scored(self, batch: Batch) -> Tensor:
        """Bool [B, L], targets and the ends of texts."""
        if self.end_id is None:
            return batch.target_mask
        ends = batch.input_ids.eq(self.end_id)
        follows = F.pad((batch.target_mask & ~ends)[:, :-1], (1, 0))  # once: [PAD]s may have its id
        return batch.target_mask | (follows & ends & batch.attention_mask)

    def cross_entropy(self, denoiser: Denoiser, batch: Batch) -> Tensor:
        """-log p(x_i given x_1 .. x_{i-1}) of what is scored, float64 [B, L], 0 elsewhere: their sum is -log p(x)."""
        scored, following = self.scored(batch)[:, 1:], batch.input_ids[:, 1:]
        hidden = denoiser.encode(batch.input_ids, torch.ones_like(batch.input_ids[:, 0]), batch.attention_mask)

        def terms(part: Tensor, rows: slice) -> tuple[Tensor]:
            logits = self.within_support(denoiser.decode(part))
            return (F.cross_entropy(logits, following[rows][scored[rows]], reduction="none").double(),)

        (nats,) = in_parts(terms, hidden[:, :-1][scored], scored.sum(1), self.vocab_size, again=self.fused_loss)
        zeros = torch.zeros(batch.input_ids.shape, dtype=torch.float64, device=nats.device)
        return zeros.masked_scatter(F.pad(scored, (1, 0)), nats)

    def loss(
        self, denoiser: Denoiser, batch: Batch, *, generator: Generator | None = None, share: Share = WHOLE
    ) -> Loss:
        """-log p of the targets; nothing is drawn."""
        total = self.cross_entropy(denoiser, batch).sum()
        return Loss(total, batch.target_mask.sum(), {"cross_entropy": total.detach()})

    def _bound(
        self, denoiser: Denoiser, batch: Batch, num_steps: float, args: BoundArgs, generator: Generators
    ) -> Bound:
        """-log p(x), in one forward and without error, whatever the number of steps."""
        if args.estimator != EVERY_WINDOW.estimator:
            raise UserError("the likelihood of process=ar is exact, in one forward; leave estimator and num_steps out")
        total = self.cross_entropy(denoiser, batch).sum(1)
        return Bound(torch.zeros_like(total), torch.zeros_like(total), total, torch.ones_like(total))

    def check_sampling(self, args: SampleArgs) -> None:
        """Refuses what has no meaning from left to right.

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
        """Draw from left to right: each target given what is to its left.

        A row that ends in a target may end before: after a drawn `end_id` its targets are all ends. In a row that ends
        in given tokens nothing but a gap is to be filled, and no end is drawn.
        """
        tokens = batch.input_ids.masked_fill(batch.target_mask, self.mask_id)
        for rows in torch.arange(len(tokens), device=tokens.device).split(rows_at_once or max(1, len(tokens))):
            streams, ended = streams_of(generator, rows), ends_in_given(batch.rows(rows))

            def draw(hidden: Tensor, where: Tensor, streams: Generators = streams, no_end: Tensor = ended) -> Tensor:
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


def ends_in_given(batch: Batch) -> Tensor:
    """Bool [B], whether the last token that may be attended to is no target."""
    place = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
    last = torch.where(batch.attention_mask, place, -1).amax(1)
    return ~batch.target_mask.gather(1, last[:, None])[:, 0]
