"""Read-out by the target window of a frozen DiffusionBERT checkpoint: one model of pairs, many conditional tasks.

A row is the checkpoint's own, with the prompt after [CLS]. The source is the row's text, with the question before it
and the options after it; the target is the answer. Prompts are trained by the process's own loss. An answer is drawn
from the process, or where there are options it is the one with the least bound of -log p.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Generator, Tensor

from checkpoint.candidates import draw_windows
from checkpoint.model_parts import ModelParts
from checkpoint.requests import CandidateRequest
from data.batch import Batch
from data.pairs import Layout, target_text
from diffusion.draws import sentence_seed
from diffusion.masked.process import MaskedProcess
from diffusion.options import BoundArgs, SampleArgs
from models.denoiser import NetworkDenoiser
from modular_prompts.insertion import prompts_in
from modular_prompts.readouts import Part, Readout, answers, fitted, numbered, require_different
from modular_prompts.saved import load_prompts
from modular_prompts.tasks import Card, Row
from modular_prompts.tuning import Examples
from utils.errors import UserError

WINDOWS, EVALUATIONS = 128, 8
"""Steps of the bound by which options are compared, and forward passes for each option."""
ROWS_AT_ONCE = 32


class PromptedDenoiser:
    """Frozen denoiser whose rows have a prompt after their first token; a process sees the other positions only.

    So prompts are never noised, scored or sampled.
    """

    time_conditioned = False

    def __init__(self, denoiser: NetworkDenoiser, placeholders: Sequence[int], prompts: Tensor) -> None:
        """Add a prompt to a denoiser.

        Args:
            denoiser: the frozen denoiser.
            placeholders: P ids.
            prompts: [1 or B, layers, P, D].
        """
        self.inner, self.network, self.vocab_size = denoiser, denoiser.network, denoiser.vocab_size
        self.max_length, self.origin = denoiser.max_length - len(placeholders), denoiser.origin
        self.placeholders, self.prompts = torch.tensor(list(placeholders), dtype=torch.long), prompts

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        """Map int64 [B, L], [B], bool [B, L] to hidden states [B, L, D], those of the prompt left out."""
        number, rows = len(self.placeholders), len(xt)
        if len(self.prompts) not in (1, rows):
            raise ValueError(f"{len(self.prompts)} prompts for {rows} rows")
        own = self.placeholders.to(xt.device).expand(rows, -1)
        ids = torch.cat([xt[:, :1], own, xt[:, 1:]], 1)
        mask = torch.cat([attention_mask[:, :1], torch.ones_like(own, dtype=torch.bool), attention_mask[:, 1:]], 1)
        with prompts_in(self.inner.layers, self.prompts.to(xt.device)):
            hidden = self.inner.encode(ids, t, mask)
        return torch.cat([hidden[:, :1], hidden[:, 1 + number :]], 1)

    def decode(self, hidden: Tensor) -> Tensor:
        """Map hidden states [..., D] to logits [..., V]."""
        return self.inner.decode(hidden)


def with_prompt(model: ModelParts, placeholders: Sequence[int], prompts: Tensor) -> ModelParts:
    """Return a model whose network has a prompt; its rows are shorter where the network's positions end."""
    denoiser = PromptedDenoiser(model.denoiser, placeholders, prompts)
    return replace(model, denoiser=denoiser, max_length=min(model.max_length, denoiser.max_length))


def with_saved_prompt(model: ModelParts, folder: str, task: str) -> ModelParts:
    """Return a model with the prompt of a task.

    Args:
        model: a checkpoint of pairs.
        folder: prompts for its network.
        task: name of the task; "": the only one.

    Raises:
        UserError: if the prompts belong to another network or another read-out, or the task is not among them.
    """
    saved = load_prompts(folder, model.denoiser, model.tokenizer)
    if saved.readout != "window":
        raise UserError(f"prompts {folder}: their read-out is {saved.readout}; give prompts of a checkpoint of pairs")
    names = [task] if task else list(saved.routers)
    if len(names) != 1 or names[0] not in saved.routers:
        raise UserError(f"prompts_task={task!r}: must be one of {', '.join(list(saved.routers)[:20])}")
    if (kind := saved.cards[names[0]].kind) != "generation":
        raise UserError(f"prompts_task={names[0]}: a task of type {kind}; python -m modular_prompts predict answers it")
    prompt = saved.prompt(names[0])
    return with_prompt(model, saved.placeholders[: prompt.shape[-2]], prompt)


class TargetWindow(Readout):
    """Answers in the target window of a checkpoint of source-target pairs."""

    def __init__(self, model: ModelParts, prompt_length: int) -> None:
        """Freeze a checkpoint.

        Raises:
            UserError: if it is no model of pairs with a masked process, or the prompt leaves no room for a source.
        """
        if model.pairs is None or not isinstance(model.process, MaskedProcess):
            raise UserError("readout=window needs a checkpoint of source-target pairs with a masked process; give one")
        super().__init__(model.denoiser, model.tokenizer, prompt_length, model.denoiser.max_length)
        self.whole = model
        try:
            self._set_rows()
        except UserError as error:
            raise UserError(
                f"prompt_length={prompt_length}: it and the target window of {model.pairs.target_window} leave no room "
                f"for a source in the network's {model.denoiser.max_length} positions; shorten it"
            ) from error

    def _set_rows(self) -> None:
        """Set the model with room for a prompt, and the layout of its rows."""
        self.model = with_prompt(self.whole, self.placeholders, self.nothing)
        self.layout = Layout(self.whole.pairs, self.tokenizer, self.model.max_length)

    def plain(self) -> "TargetWindow":
        """See `Readout`; the rows are the checkpoint's own."""
        other = super().plain()
        other._set_rows()
        return other

    def prompted(self, prompts: Tensor) -> ModelParts:
        """Return the model with prompts."""
        return replace(self.model, denoiser=PromptedDenoiser(self.denoiser, self.placeholders, prompts))

    def examples(self, *parts: Part) -> Examples:
        """See `Readout`."""
        rows = [row for _, own in parts for row in own]
        sources = [source for card, own in parts for source in self.sources(card, own)]
        lead = self.layout.target_lead
        targets = [np.asarray(ids) for ids in self.tokens([lead + row.target for row in rows])]
        options = sorted({option for row in rows for option in row.options})
        cut = (
            [ids[: self.layout.window] for ids in self.tokens([lead + option for option in options])] if options else []
        )
        for card, own in parts:
            require_different(card, own if own[0].options else [], dict(zip(options, cut, strict=True)))
        ids_of, known = [np.asarray(ids) for ids in cut], numbered(parts, options)

        def scores(chosen: Tensor, prompts: Tensor) -> Tensor:
            own = known[chosen]
            first, second = own.ge(0).nonzero(as_tuple=True)
            each = [ids_of[i] for i in own[first, second].tolist()]
            numbers, prompt = chosen[first].tolist(), prompts if len(prompts) == 1 else prompts[first]
            bounds = self.bounds([sources[i] for i in numbers], each, prompt, numbers)
            return torch.full(own.shape, -torch.inf).index_put((first, second), -bounds.float())

        right, sizes = answers(parts)
        return WindowExamples(scores, right, sizes, window=self, sources=sources, targets=targets)

    def sources(self, card: Card, rows: Sequence[Row]) -> list[np.ndarray]:
        """Return the source tokens of rows; of a text that is too long the end is cut, the question and options stay.

        The source of generation is the text alone, as in `predict_downstream_condition.py`.

        Raises:
            UserError: if the question and the options leave no room for a text.
        """
        lead, sep = self.layout.source_lead, self.tokenizer.sep_token_id
        texts = self.tokens([lead + text for row in rows for text in row.texts])
        each = len(rows[0].texts)
        if card.kind == "generation":
            return [np.asarray(ids, dtype=np.int64) for ids in texts]
        (question,) = self.tokens([card.question])
        before = [*question, sep] if question else []
        found = []
        for i, row in enumerate(rows):
            listed = self.tokens([", ".join(row.options)])[0] if row.options else []
            after = [sep, *listed] if listed else []
            room = self.layout.longest_source - len(before) - len(after) - (each - 1)
            if room < each:
                raise UserError(
                    f"{card.name}: question and options leave no room for a text: a source has at most "
                    f"{self.layout.longest_source} tokens; shorten them, or use a checkpoint with longer rows"
                )
            body = [id_ for text in fitted(texts[i * each : (i + 1) * each], room) for id_ in (sep, *text)][1:]
            found.append(np.asarray([*before, *body, *after], dtype=np.int64))
        return found

    def batch(self, sources: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> Batch:
        """Return rows on the model's device."""
        return self.layout.batch(list(sources), list(targets)).to(self.model.device)

    def answers(
        self, sources: Sequence[np.ndarray], chosen: Sequence[int], prompt: Tensor, sampling: SampleArgs, seed: int = 0
    ) -> list[str]:
        """Draw answers to the `chosen` of `sources` from the process; the others do not change them."""
        found, model = {}, self.prompted(prompt)
        request = CandidateRequest(1, seed, ROWS_AT_ONCE)

        def finish(i: int, windows: list[Tensor]) -> None:
            found[i] = target_text(self.tokenizer, windows[0])

        order = sorted(chosen, key=lambda i: len(sources[i]))
        draw_windows(model, self.layout, list(sources), order, request, sampling, finish)
        return [found[i] for i in chosen]

    @torch.no_grad()
    def bounds(
        self, sources: Sequence[np.ndarray], targets: Sequence[np.ndarray], prompts: Tensor, rows: Sequence[int]
    ) -> Tensor:
        """Return bounds of -log p(target | source), float64 [n], nats; equal `rows` have equal noise."""
        process, found = self.model.process, []
        steps = min(process.num_steps, WINDOWS) if math.isfinite(process.num_steps) else WINDOWS
        for begin in range(0, len(sources), ROWS_AT_ONCE):
            part = slice(begin, begin + ROWS_AT_ONCE)
            streams = [Generator().manual_seed(sentence_seed(0, row)) for row in rows[part]]
            denoiser = self.prompted(prompts if len(prompts) == 1 else prompts[part]).denoiser
            args = BoundArgs("stratified", EVALUATIONS)
            bound = process.bound(denoiser, self.batch(sources[part], targets[part]), steps, args, generator=streams)
            found.append(bound.total.double().cpu())
        return torch.cat(found)


@dataclass(frozen=True, kw_only=True)
class WindowExamples(Examples):
    """Examples whose loss is the process's own, on the tokens of the target window."""

    window: TargetWindow
    sources: list[np.ndarray]
    targets: list[np.ndarray]

    metric = "1 - bound / log V"

    def loss(self, prompts: Tensor, rows: Tensor, generator: Generator | None = None) -> Tensor:
        """Return the loss per token; without a generator, with the same noise at every call."""
        generator = generator or Generator().manual_seed(0)
        batch = self.window.batch(*([side[i] for i in rows.tolist()] for side in (self.sources, self.targets)))
        model = self.window.prompted(prompts)
        found = model.process.loss(model.denoiser, batch, generator=generator)
        return (found.total / found.num_tokens).float().cpu()

    def score(self, prompts: Tensor) -> float:
        """Return the accuracy, or without options 1 - bound / log V per token: 0 for uniform tokens."""
        if (self.labels >= 0).all():
            return self.accuracy(prompts)
        number = range(len(self.sources))
        nats = self.window.bounds(self.sources, self.targets, prompts, number).mean().item()
        return 1 - nats / self.window.layout.window / math.log(self.window.denoiser.vocab_size)
