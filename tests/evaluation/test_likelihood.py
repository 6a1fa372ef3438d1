"""likelihood.py: sums over sentences, divided once; batch size and number of processes do not change the sums."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from checkpoint.folder import load_checkpoint
from checkpoint.model_parts import ModelParts
from checkpoint.rounds import Scoring
from data.corpus import training_source
from data.options import TextFormat
from data.tokenized_text import TokenizedText, tokenize
from data.tokenizers import train_wordpiece
from diffusion.options import BoundArgs
from evaluation.likelihood import (
    Profile,
    are_words_separated,
    length_nats,
    pick,
    score_text,
)
from evaluation.likelihood_report import Likelihood, format_report
from tests.conftest import SENTENCES

CPU = torch.device("cpu")


@pytest.fixture
def run(trained: Path) -> ModelParts:
    return load_checkpoint(str(trained), CPU)


@pytest.fixture
def text(run: ModelParts, corpus: Path, tmp_path: Path) -> TokenizedText:
    return tokenize(training_source(str(corpus)), run.tokenizer, run.max_length - 2, str(tmp_path / "cache"))


def score(run: ModelParts, text: TokenizedText, number: int = 40, **changes: object) -> Likelihood:
    settings = {"num_steps": 8, "batch_size": 16, "seed": 3, **changes}
    settings["bound"] = settings.pop("bound_args", BoundArgs())
    return score_text(run, text, np.arange(number), Scoring(**settings), progress=False)


def test_every_figure_follows_from_the_sums(run: ModelParts, text: TokenizedText) -> None:
    report = score(run, text).report()
    words = sum(len(s.split()) for s in SENTENCES[:40])
    tokens = int(text.lengths[:40].sum())
    total = report["nats_per_sequence"] * 40
    assert (report["num_sequences"], report["num_words"], report["num_tokens"]) == (40, words, tokens)
    assert report["bits_per_token"] == pytest.approx(total / tokens / math.log(2))
    assert report["ppl_token"] == pytest.approx(math.exp(total / tokens))
    assert report["ppl_word"] == pytest.approx(math.exp(total / words))
    assert report["num_steps"] == report["network_evaluations"] == 8
    assert report["prior_nats"] == 0 < report["reconstruction_nats"] < report["nats_per_sequence"]


def test_the_standard_error_is_that_of_the_mean(run: ModelParts, text: TokenizedText) -> None:
    together = score(run, text, 16, batch_size=1)
    each = [
        score_text(run, text, np.array([i]), Scoring(8, batch_size=1, seed=3), progress=False).nats for i in range(16)
    ]
    assert together.report()["nats_per_sequence"] == pytest.approx(np.mean(each), rel=1e-5)
    assert together.sentence_nats == pytest.approx(each, rel=1e-5)
    assert together.report()["standard_error_nats"] == pytest.approx(np.std(each, ddof=1) / 4, rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_batch_size_does_not_change_the_sum(run: ModelParts, text: TokenizedText, batch_size: int) -> None:
    assert score(run, text, batch_size=batch_size).nats == pytest.approx(score(run, text).nats, rel=1e-5)


def test_the_sums_of_ranks_add_up_to_those_of_one_process(run: ModelParts, text: TokenizedText, monkeypatch) -> None:
    def share(rank: int) -> Likelihood:
        with monkeypatch.context() as patch:
            patch.setattr("evaluation.likelihood.rank", lambda: rank)
            patch.setattr("evaluation.likelihood.world_size", lambda: 3)
            return score(run, text)

    shares = [share(rank) for rank in range(3)]
    assert score(run, text).report()["draws_error_nats"] is None  # one round of every window, as published
    assert sum(s.nats for s in shares) == pytest.approx(score(run, text).nats, rel=1e-5)
    assert sum(s.num_words for s in shares) == score(run, text).num_words
    together = np.sum([s.sentence_nats for s in shares], axis=0)
    assert together == pytest.approx(np.array(score(run, text).sentence_nats), rel=1e-4)


def test_more_steps_lower_the_bound_and_seeds_agree_within_their_error(run: ModelParts, text: TokenizedText) -> None:
    coarse, fine = (score(run, text, num_steps=n).report() for n in (1, 64))
    assert fine["nats_per_sequence"] < coarse["nats_per_sequence"]
    first, second = (score(run, text, seed=s).report() for s in (1, 2))
    error = math.hypot(first["standard_error_nats"], second["standard_error_nats"])
    assert first["nats_per_sequence"] != second["nats_per_sequence"]
    assert abs(first["nats_per_sequence"] - second["nats_per_sequence"]) < 4 * error


def test_unigram_bits_are_the_cross_entropy_under_training_frequencies(run: ModelParts, text: TokenizedText) -> None:
    p = (run.token_counts.double() + 1) / (run.token_counts.sum() + len(run.token_counts))
    tokens = torch.from_numpy(np.asarray(text.tokens[: text.offsets[40]], dtype=np.int64))
    expected = -(p[tokens].log2()).mean()
    assert score(run, text).report()["unigram_bits_per_token"] == pytest.approx(expected.item())


ESTIMATORS = {
    "windows": BoundArgs(target_se=0.9),
    "stratified": BoundArgs(estimator="stratified", evaluations=2),
    "trajectory": BoundArgs(estimator="trajectory", evaluations=1),
}


FEW = {"number": 20, "num_steps": 4, "batch_size": 64}
"""Settings of a bound whose error two rounds determine."""


@pytest.fixture(scope="module")
def published_bounds(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Return the bound (nats/sequence) by one round of every window, for 40 seeds."""
    folder, run = tmp_path_factory.mktemp("published"), load_checkpoint(str(trained), CPU)
    (folder / "corpus.txt").write_text("\n".join(SENTENCES) + "\n")
    source = training_source(str(folder / "corpus.txt"))
    text = tokenize(source, run.tokenizer, run.max_length - 2, str(folder / "cache"))
    return [score(run, text, seed=seed, **FEW).report()["nats_per_sequence"] for seed in range(40)]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_error_of_the_draws_is_the_spread_over_repeats(
    run: ModelParts, text: TokenizedText, published_bounds: list[float], name: str
) -> None:
    repeats = [score(run, text, seed=seed, bound_args=ESTIMATORS[name], **FEW).report() for seed in range(120)]
    spread = np.std([r["nats_per_sequence"] for r in repeats], ddof=1)
    reported = math.sqrt(np.mean([r["draws_error_nats"] ** 2 for r in repeats]))
    assert reported == pytest.approx(spread, rel=0.15)
    error = math.hypot(spread / math.sqrt(120), np.std(published_bounds, ddof=1) / math.sqrt(40))
    assert abs(np.mean([r["nats_per_sequence"] for r in repeats]) - np.mean(published_bounds)) < 4 * error
    evaluations = repeats[0]["network_evaluations"]
    assert repeats[0]["estimator"] == name and (
        4 < evaluations <= 8 if name == "trajectory" else evaluations == 2 * (4, 2)[name == "stratified"]
    )


def test_scoring_continues_until_the_target_error_is_reached(run: ModelParts, text: TokenizedText) -> None:
    coarse, fine = (
        score(run, text, bound_args=BoundArgs(estimator="stratified", evaluations=2, target_se=target)).report()
        for target in (0.5, 0.02)
    )
    assert coarse["network_evaluations"] == 4 < fine["network_evaluations"]
    assert fine["draws_error_nats"] <= 0.02 * fine["nats_per_sequence"]
    assert "by stratified" in format_report(fine) and "of the draws alone" in format_report(fine)


def test_a_target_error_is_not_met_after_a_few_rounds_of_one_sentence(run: ModelParts, text: TokenizedText) -> None:
    """A single sentence needs 21 rounds before the error of the draws is used."""
    args = BoundArgs(estimator="stratified", evaluations=1, target_se=0.9)
    report = score_text(run, text, np.array([3]), Scoring(4, args, batch_size=1), progress=False).report()
    assert report["network_evaluations"] >= 21


def test_pick_makes_the_same_choice_every_time(text: TokenizedText) -> None:
    assert pick(text, 0).tolist() == list(range(240)) == pick(text, 999).tolist()
    assert pick(text, 10).tolist() == pick(text, 10).tolist() != list(range(10))
    assert len(set(pick(text, 10).tolist())) == 10


def test_text_without_spaces_has_no_perplexity_per_word(run, text, tmp_path: Path, monkeypatch) -> None:
    lines = ["我喜欢这只猫", "你好吗", "猫在家里睡觉"]
    for separator, separated in (("", False), (" ", True)):
        (tmp_path / f"{separated}.txt").write_text("\n".join(separator.join(line) for line in lines))
        vocabulary = train_wordpiece(lines * 3, 200)
        chinese = tokenize(training_source(str(tmp_path / f"{separated}.txt")), vocabulary, 60, str(tmp_path / "cache"))
        assert are_words_separated(SimpleNamespace(tokenizer=vocabulary), chinese, np.arange(3)) == separated
    assert are_words_separated(run, text, np.arange(5))
    monkeypatch.setattr("evaluation.likelihood.are_words_separated", lambda *_: False)
    report = score(run, text, 4).report()
    assert report["ppl_word"] is None and report["ppl_token"] > 1
    assert " per token, none per word (no spaces between words)\n" in format_report(report)


def test_the_nats_of_given_lengths_are_reported_separately(run: ModelParts, text: TokenizedText) -> None:
    """Lengths are scored under the training lengths, which predict.py draws from, with add-one smoothing."""
    counts = [*run.length_histogram, *[0] * (run.max_length - 1 - len(run.length_histogram))][1:]
    chances = [(count + 1) / (sum(counts) + len(counts)) for count in counts]
    assert sum(chances) == pytest.approx(1) and len(chances) == run.max_length - 2
    expected = [-math.log(chances[length - 1]) for length in text.lengths[:40]]
    report = score(run, text).report()
    assert report["length_nats"] == pytest.approx(sum(expected) / 40)
    assert "given their lengths" in format_report(report)
    shifted = replace(run, training_format=TextFormat("padded"), length_histogram=[0, 0, *run.length_histogram])
    assert length_nats(shifted, text.lengths[:40]) == pytest.approx(sum(expected))
    padded = replace(run, text_format=TextFormat("padded"), training_format=TextFormat())
    assert length_nats(padded, text.lengths[:40] + 2) == pytest.approx(sum(expected))
    running, wrapped = TextFormat("running"), TextFormat("wrapped")
    for changes in ({"training_format": wrapped}, {"text_format": running}, {"length_histogram": [0, 0, 1]}):
        assert length_nats(replace(run, **changes), text.lengths[:40]) is None
    without = Likelihood(110.0 * 50, 110.0**2 * 50, 0, 0, 0, 50, 30 * 50, 26 * 50, 128).report()
    assert without["length_nats"] is None and "lengths" not in format_report(without)


def test_a_process_without_sentences_takes_part_in_the_profile() -> None:
    """With two processes and one sentence, both must take part in every sum, or they wait for each other forever."""
    process = SimpleNamespace(profile_names=lambda denoiser: ["a", "b"])
    profile = Profile(SimpleNamespace(denoiser=None, process=process, tokenizer=None), torch.device("cpu"))
    assert profile.fill(SimpleNamespace(lengths=np.zeros(3)), np.zeros(0, int), 4, 0, lambda: True)
    assert profile.totals() == {"a": 0.0, "b": 0.0}
