"""Use of a trained model from Python: lists of strings in, lists of strings and figures out.

    from checkpoint import TextModel

    model = TextModel.load("out/demo/checkpoint")
    model.sample(5, temperature=0.5, seed=0)
    model.infill("the [MASK] of the house", 5)
    model.nll(["return the name of the file."])

The scripts use the same functions, so equal settings and seeds give equal results. Errors that a user can cause are
`utils.errors.UserError`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from checkpoint.candidates import draw_candidates
from checkpoint.film import film
from checkpoint.folder import load_checkpoint
from checkpoint.minimum_bayes_risk import mbr_select
from checkpoint.model_parts import ModelParts
from checkpoint.requests import CandidateRequest, SampleRequest, check_steps
from checkpoint.rounds import Rounds, Scoring, Tally, bound_steps, rounds_wanted
from checkpoint.sampling import blank, decode, sample_rows, stream_of
from data.records import HALF
from data.row_formats import rows_of_texts
from diffusion.options import BoundArgs, SampleArgs, TokenLaw, check_exact
from utils import hub
from utils.device import pick_device
from utils.errors import UserError, check_whole, shown
from utils.files import local_path
from utils.film_file import check_film, save_film
from utils.messages import note


@dataclass(frozen=True)
class TextLikelihoods:
    """Bounds of some texts, in their order."""

    nats: list[float]
    """Upper bound on -log p(text), without the probability of its length; exact for process=ar and for "exact"."""
    draws_error: list[float] | None
    """Standard error of each bound over the draws of xt; None after a single round, which does not show it."""
    tokens: list[int]
    """Scored tokens of each text."""
    words: list[int]
    """Whitespace words of each text."""


class TextModel:
    """A trained model of text or of pairs."""

    def __init__(self, parts: ModelParts) -> None:
        """Wrap a model; `load` reads one from a folder."""
        self.parts = parts

    @classmethod
    def load(
        cls, checkpoint: str | Path, *, device: str = "auto", precision: str = "fp32", posterior: str = ""
    ) -> "TextModel":
        """Load a checkpoint.

        Args:
            checkpoint: folder written by main.py, or USER/NAME on the hub.
            device: auto, cpu, cuda, cuda:N or mps.
            precision: precision of the network: fp32, bf16, fp16, or auto.
            posterior: exact or released; default: the checkpoint's.

        Raises:
            UserError: if there is no such checkpoint, or it is damaged.
        """
        hub.quiet_libraries()
        return cls(load_checkpoint(checkpoint, pick_device(device), precision=precision, posterior=posterior))

    @property
    def of_pairs(self) -> bool:
        """Whether the model was trained on pairs, and `generate` is for it rather than `sample`."""
        return self.parts.pairs is not None

    # ---- text --------------------------------------------------------------------------------------------------------

    def sample(
        self, number: int = 1, *, length: int = 0, seed: int = 0, batch_size: int = 64, **settings: float | str
    ) -> list[str]:
        """Return samples, those of predict.py with the same seed.

        Args:
            number: number of samples.
            length: tokens of each; 0: drawn from the lengths of the training text.
            seed: equal seeds give equal samples.
            batch_size: sentences per forward pass; does not change the samples.
            settings: fields of `diffusion.options.SampleArgs`, such as temperature, top_k, top_p, num_steps, sampler.

        Raises:
            UserError: if the model is one of pairs, or a setting is out of range.
        """
        check_whole(number=number, length=length, seed=seed, batch_size=batch_size)
        return self._written(SampleRequest(number, length, batch_size=batch_size, seed=seed), settings)

    def infill(
        self,
        text: str,
        number: int = 1,
        *,
        pieces: bool = False,
        seed: int = 0,
        batch_size: int = 64,
        **settings: float | str,
    ) -> list[str]:
        """Return a text with its gaps filled, those of predict.py --infill with the same seed.

        Args:
            text: each [MASK] in it stands for one token.
            number: number of fillings.
            pieces: whether word pieces may extend the given words beside a gap.
            seed, batch_size, settings: as for `sample`.

        Raises:
            UserError: also if the text has no [MASK], or is too long.
        """
        if not isinstance(text, str) or not text:
            raise UserError(f"text={shown(text)}: no [MASK] in it; every [MASK] stands for one token to fill")
        check_whole(number=number, seed=seed, batch_size=batch_size)
        return self._written(SampleRequest(number, 0, text, pieces, batch_size, seed), settings)

    def denoise(
        self, index: int = 0, *, infill: str = "", length: int = 0, seed: int = 0, **settings: float | str
    ) -> list[list[str]]:
        """Return the tokens of one sample before the first step and after each step, [CLS] and [SEP] too.

        Args:
            index: which sample of this seed, from 0.
            infill, length, seed, settings: as for `sample` and `infill`.

        Raises:
            UserError: as for `sample`.
        """
        self._require(of_pairs=False)
        check_whole(index=index, length=length, seed=seed)
        if index < 0:
            raise UserError(f"index={index} must be 0 or more")
        request = SampleRequest(1, length, infill, seed=seed)
        first, _ = blank(self.parts, request, stream_of(request, index))
        rows = [first]

        def keep(_: Tensor, xt: Tensor) -> None:
            rows.append(xt[0].cpu().clone())

        (last,) = sample_rows(self.parts, request, sampler_of(settings), keep, numbers=[index])
        rows += [] if torch.equal(rows[-1], last) else [last]
        return [self.parts.tokenizer.convert_ids_to_tokens(row.tolist()) for row in rows]

    def film(
        self,
        path: str | Path,
        number: int = 5,
        *,
        infill: str = "",
        length: int = 0,
        seed: int = 0,
        **settings: float | str,
    ) -> None:
        """Write a film of samples during denoising, that of predict.py --film with the same seed.

        Args:
            path: .html, a page that plays without a network, or .gif.
            number, infill, length, seed, settings: as for `sample` and `infill`.

        Raises:
            UserError: also if the path has another suffix, or cannot be written.
        """
        self._require(of_pairs=False)
        check_whole(number=number, length=length, seed=seed)
        path = local_path(path)
        check_film(path, number)
        films = film(self.parts, SampleRequest(number, length, infill, seed=seed), sampler_of(settings))
        save_film(path, films, self.parts.process_name)

    def nll(
        self,
        texts: Sequence[str],
        *,
        num_steps: float = 0,
        estimator: str = "auto",
        evaluations: int = 0,
        seed: int = 0,
        batch_size: int = 64,
        **law: float | str,
    ) -> TextLikelihoods:
        """Return an upper bound on -log p of each text, that of compute_elbo.py for a file of these texts.

        With estimator="exact" it is -log p of sampler="ordered" itself; infinite for what it never draws.

        Args:
            texts: texts that are not empty; one that is too long is cut, with a note.
            num_steps: reverse steps; inf: the continuous-time limit; 0: 128, T if less, inf in continuous time.
            estimator, evaluations: fields of `diffusion.options.BoundArgs`.
            seed: seed of the draws of xt.
            batch_size: texts per forward pass; changes the result by rounding only.
            law: for "exact": order, tokens_per_step, temperature, top_k, top_p.

        Raises:
            UserError: if the model is one of pairs or of blocks, a text has no token, or a setting is out of range.
        """
        self._require(of_pairs=False)
        check_whole(evaluations=evaluations, seed=seed, batch_size=batch_size)
        check_steps(num_steps)
        model = self.parts
        text = rows_of_texts(texts_of(texts), model.text_format, model.tokenizer, model.max_length, causal=model.causal)
        if text.cuts:
            note(text.cuts)
        steps = bound_steps(model.process.num_steps, num_steps)
        exact = checked(law, TokenLaw, "nll")
        args = BoundArgs(estimator, evaluations, **exact).settled(steps, model.process.limit_estimator)
        check_exact(args, num_steps)
        everything, tally = np.arange(len(text)), Tally(len(text), model.device)
        with torch.no_grad():
            rounds = Rounds(model, text, everything, Scoring(steps, args, batch_size, seed), lambda: True)
            rounds.run(tally, rounds_wanted(args, len(text)), progress=True)
        means = tally.means()
        if means.isnan().any() or (means.isinf().any() and not args.law):
            raise UserError("the bound is not finite; load the model in fp32, or another checkpoint")
        if not model.process.is_bound:
            note("the released posterior's figures are not bounds: they can lie below -log p(x0)")
        return TextLikelihoods(
            means.tolist(),
            None if tally.rounds < 2 else tally.errors().tolist(),
            text.target_lengths.tolist(),
            text.num_words.tolist(),
        )

    # ---- pairs -------------------------------------------------------------------------------------------------------

    def generate(
        self,
        sources: Sequence[str],
        *,
        candidates: int = 3,
        seed: int = 0,
        batch_size: int = 64,
        **settings: float | str,
    ) -> list[str]:
        """Return a target for each source: the minimum Bayes risk choice among candidates.

        The results are those of predict_downstream_condition.py --mbr_size CANDIDATES with the same seed.

        Args:
            sources: texts; one that is too long loses its first tokens, with a note.
            candidates: samples to choose from.
            seed, batch_size, settings: as for `sample`.

        Raises:
            UserError: if the model is one of text, or a setting is out of range.
        """
        found = self.candidates(sources, candidates, seed=seed, batch_size=batch_size, **settings)
        return [texts[mbr_select(texts)] for texts in found]

    def candidates(
        self, sources: Sequence[str], number: int = 3, *, seed: int = 0, batch_size: int = 64, **settings: float | str
    ) -> list[list[str]]:
        """Return several targets for each source, from which `generate` chooses; arguments are those of `generate`."""
        self._require(of_pairs=True)
        found: dict[int, list[str]] = {}
        check_whole(candidates=number, seed=seed, batch_size=batch_size)
        request = CandidateRequest(number, seed, batch_size)
        draw_candidates(self.parts, texts_of(sources), request, sampler_of(settings), found.__setitem__)
        return [found[i] for i in range(len(found))]

    # ------------------------------------------------------------------------------------------------------------------

    def _written(self, request: SampleRequest, settings: dict) -> list[str]:
        self._require(of_pairs=False)
        return [decode(self.parts, row) for row in sample_rows(self.parts, request, sampler_of(settings))]

    def _require(self, *, of_pairs: bool) -> None:
        if self.of_pairs != of_pairs:
            kind, remedy = ("pairs", "use generate") if self.of_pairs else ("text", "use sample, infill or nll")
            raise UserError(f"this model was trained on {kind}; {remedy}")


def sampler_of(settings: dict) -> SampleArgs:
    """Return the sampler's settings.

    Raises:
        UserError: if one is unknown or out of range.
    """
    return SampleArgs(**checked(settings, SampleArgs))


def checked(settings: dict, known: type[TokenLaw], owner: str = "the sampler") -> dict:
    """Return the settings of a sampler; `known` declares which there are, and `owner` takes them.

    Raises:
        UserError: if one is unknown or of another type.
    """
    defaults = asdict(known())
    for name, value in settings.items():
        if name not in defaults:
            raise UserError(f"{name}: no setting of {owner}; the settings are {', '.join(defaults)}")
        kind = {str: str, float: Real}.get(type(defaults[name]), Integral)
        kind = Real if name == "num_steps" else kind  # it may be infinite
        if not isinstance(value, kind) or isinstance(value, bool):
            words = {str: "string", Real: "number", Integral: "whole number"}
            raise UserError(f"{name}={shown(value)} must be a {words[kind]}")
    return settings


def texts_of(texts: Iterable[str]) -> list[str]:
    """Return a list of texts.

    Raises:
        UserError: for a single text, for what is no list, or for an entry that is no string with an encoding.
    """
    if isinstance(texts, str):
        raise UserError("a list of texts is needed, not a single one; put it in brackets")
    if not isinstance(texts, Iterable):
        raise UserError(f"a list of texts is needed, not {shown(texts)}")
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"text {i} is {shown(text)}, not a string")
        if HALF.search(text):
            raise UserError(f"text {i} has half a surrogate pair, which no encoding represents; correct it")
    return texts
