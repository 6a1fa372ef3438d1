"""film.py: a film is the sample, token by token, with the network's probabilities."""

from pathlib import Path

import pytest
import torch

from checkpoint.film import WatchedDenoiser, film
from checkpoint.folder import load_checkpoint
from checkpoint.model_parts import ModelParts
from checkpoint.requests import SampleRequest
from checkpoint.sampling import decode, sample_rows
from data.word_counts import information
from diffusion.options import SampleArgs
from tests.diffusion import test_family

CPU = torch.device("cpu")
FEW = SampleArgs(num_steps=16, temperature=0.7)


@pytest.fixture(scope="module")
def model(trained: Path) -> ModelParts:
    return load_checkpoint(trained, CPU)


def texts_of(films: list) -> list[str]:
    return ["".join(" " * (i > 0 and not p.glued) + p.text for i, p in enumerate(each.pieces)) for each in films]


@pytest.mark.parametrize("sampler", ["auto", "confidence"])
def test_a_film_ends_in_the_sample_of_the_same_seed(model: ModelParts, sampler: str) -> None:
    request, sampling = SampleRequest(4, seed=2), SampleArgs(num_steps=16, temperature=0.7, sampler=sampler)
    films = film(model, request, sampling)
    assert texts_of(films) == [decode(model, row) for row in sample_rows(model, request, sampling)]
    for each in films:
        assert all(text is None for text, *_ in each.shown(0))
        assert [text for text, *_ in each.shown(len(each.frames))] == [piece.text for piece in each.pieces]
        changed = [change.position for frame in each.frames for change in frame]
        assert sorted(changed) == list(range(len(each.pieces)))  # each token once


def test_the_probability_is_that_of_the_network_before_the_token_was_revealed(model: ModelParts) -> None:
    (filmed,) = film(model, SampleRequest(seed=5), FEW)
    vocabulary, mask = model.tokenizer.get_vocab(), model.tokenizer.mask_token_id
    ids = [
        vocabulary[piece.text] if piece.text in vocabulary else vocabulary["##" + piece.text] for piece in filmed.pieces
    ]
    row = torch.tensor([model.tokenizer.cls_token_id, *[mask] * len(ids), model.tokenizer.sep_token_id])
    for frame in filmed.frames:
        with torch.no_grad():
            hidden = model.denoiser.encode(row[None], torch.ones(1).long(), torch.ones_like(row[None]).bool())
            chances = (model.denoiser.decode(hidden)[0] + model.process.sampling_support).softmax(-1)
        for change in frame:
            assert change.probability == pytest.approx(
                chances[change.position + 1, ids[change.position]].item(), rel=1e-4
            )
        for change in frame:
            row[change.position + 1] = ids[change.position]
    nats = information(model.token_counts)
    assert [piece.information for piece in filmed.pieces] == [nats[i].item() for i in ids]


def test_given_tokens_are_visible_from_the_start(model: ModelParts) -> None:
    films = film(model, SampleRequest(3, infill="the [MASK] sees [MASK]", seed=1), FEW)
    for each in films:
        assert [piece.given for piece in each.pieces] == [True, False, True, False]
        assert [text for text, *_ in each.shown(0)] == ["the", None, "sees", None]


@pytest.mark.slow
@pytest.mark.parametrize("process", ["ar", "d3pm", "mdlm", "score"])
def test_other_processes_are_filmed(monkeypatch, corpus: Path, tmp_path: Path, process: str) -> None:
    """With probabilities, but for the score-based process; remdm masks tokens again."""
    code, folder = test_family.train(monkeypatch, process, corpus, tmp_path, "--max_steps", 30)
    model, request = load_checkpoint(folder, CPU), SampleRequest(2, seed=1)
    assert code == 0
    for sampler in ("auto", "cached", "remdm") if process == "mdlm" else ("auto",):
        sampling = SampleArgs(num_steps=16 if process == "mdlm" else 0, sampler=sampler)
        films = film(model, request, sampling)
        assert texts_of(films) == [decode(model, row) for row in sample_rows(model, request, sampling)]
        changes = [change for each in films for frame in each.frames for change in frame]
        assert any(change.text is None for change in changes) == (sampler == "remdm")
        known = {change.probability is not None for change in changes if change.text is not None}
        assert known == {process != "score"}


@pytest.mark.slow
def test_a_gap_filled_from_left_to_right_is_filmed(monkeypatch, corpus: Path, tmp_path: Path) -> None:
    _, folder = test_family.train(monkeypatch, "ar", corpus, tmp_path, "--max_steps", 5)
    model, request = load_checkpoint(folder, CPU), SampleRequest(infill="the [MASK] [MASK] sees", seed=1)
    (filmed,) = film(model, request, SampleArgs())
    assert [text for text, *_ in filmed.shown(0)] == ["the", None, None, "sees"]
    assert all(change.probability is not None for frame in filmed.frames for change in frame)


def test_a_position_without_a_hidden_state_has_no_probability(model: ModelParts) -> None:
    assert WatchedDenoiser(model.denoiser).probability(0, 5, model.process.sampling_support) is None
