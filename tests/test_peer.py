"""benchmarks/peer.py: its loss estimates the bound of MDLM, and its checkpoint is scored like any other."""

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import compute_elbo
from tests.conftest import TableDenoiser, call

pytest.importorskip("accelerate")
from benchmarks import peer  # noqa: E402

VOCAB, MASK = 4, 3


class TableNetwork:
    """A network of transformers' interface with fixed logits for every state."""

    def __init__(self) -> None:
        self.denoiser = TableDenoiser(VOCAB)

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.denoiser.encode(input_ids, input_ids[:, 0], attention_mask))


def enumerated_bound(x0: list[int]) -> float:
    """Return the bound per token at a linear schedule: a set of m of L masked tokens has weight 1 / (m C(L, m))."""
    length, total = len(x0), 0.0
    for masked in itertools.product([False, True], repeat=length):
        if count := sum(masked):
            xt = torch.tensor([[MASK if hidden else token for hidden, token in zip(masked, x0, strict=True)]])
            logits = TableNetwork()(xt, torch.ones_like(xt)).logits
            nats = -logits.log_softmax(-1)[0, range(length), x0]
            total += float(nats[torch.tensor(masked)].sum()) / (count * math.comb(length, count))
    return total / length


def test_the_loss_estimates_the_bound_of_mdlm() -> None:
    x0, rows = [0, 2, 1], 400_000
    ids = torch.tensor(x0).expand(rows, -1)
    whole = torch.ones_like(ids, dtype=torch.bool)
    batch = {"input_ids": ids, "attention_mask": whole, "target_mask": whole}
    rates = (torch.arange(rows) + 0.5) / rows  # stratified
    assert float(peer.masked_loss(TableNetwork(), batch, MASK, rates)) == pytest.approx(enumerated_bound(x0), rel=0.01)


def test_only_targets_are_masked_and_counted() -> None:
    ids, targets = torch.tensor([[0, 2, 1, 0]]), torch.tensor([[False, True, True, False]])
    seen = []

    class Watched(TableNetwork):
        def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
            seen.append(input_ids.tolist())
            return super().__call__(input_ids, attention_mask)

    batch = {"input_ids": ids, "attention_mask": torch.ones_like(targets), "target_mask": targets}
    loss = peer.masked_loss(Watched(), batch, MASK, torch.ones(1))
    logits = TableNetwork()(torch.tensor(seen[0]), batch["attention_mask"]).logits
    assert seen == [[[0, MASK, MASK, 0]]]
    assert float(loss) == pytest.approx(float(-logits.log_softmax(-1)[0, [1, 2], [2, 1]].mean()))


@pytest.mark.parametrize(("share", "factor"), [(0, 0), (0.05, 0.5), (0.1, 1), (0.55, 0.5), (1, 0), (2, 0)])
def test_the_learning_rate_follows_the_clock(monkeypatch, share: float, factor: float) -> None:
    clock = peer.Clock(minutes=2)
    monkeypatch.setattr(peer.time, "monotonic", lambda: clock.begin + 120 * share)
    assert clock.rate(0) == pytest.approx(factor, abs=1e-9)


def test_a_training_ends_by_the_clock_and_its_checkpoint_is_scored(
    trained: Path, tmp_path, monkeypatch, capsys
) -> None:
    corpus, out = trained.parent / "corpus.txt", tmp_path / "peer"
    flags = ["--like", trained, "--train_data", corpus, "--output_dir", out, "--batch_size", 32]
    monkeypatch.chdir(tmp_path)
    assert call(peer.main, monkeypatch, *flags, "--minutes", 0.2, "--learning_rate", 3e-3, "--threads", 1) == 0
    capsys.readouterr()
    score = ["--data", corpus, "--num_steps", 16, "--threads", 1, "--limit", 50, "--json", "true"]
    assert call(compute_elbo.main, monkeypatch, "--checkpoint", out, *score) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bits_per_token"] < 0.9 * report["unigram_bits_per_token"]
    about = json.loads((out / "checkpoint" / "process.json").read_text())
    assert about["process"] == "mdlm" and about["facts"]["step"] > 1
    network = json.loads((out / "checkpoint" / "config.json").read_text())
    assert network["initialized_from"] == "random"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--minutes", 0], "minutes=0.0 must lie in"),
        (["--minutes", "nan"], "minutes=nan must lie in"),
        (["--batch_size", 0], "batch_size=0 must lie in"),
        (["--seed", -1], "seed=-1 must lie in"),
        (["--output_dir", "/dev/null/x"], "/dev/null cannot be written to"),
        (["--like", "nowhere"], "checkpoint nowhere: no such folder"),
    ],
)
def test_bad_settings_are_refused_before_the_training(trained, tmp_path, monkeypatch, capsys, flags, message) -> None:
    base = ["--like", trained, "--train_data", trained.parent / "corpus.txt", "--output_dir", tmp_path / "peer"]
    assert call(peer.main, monkeypatch, *base, *flags) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_a_checkpoint_is_not_replaced(trained: Path, monkeypatch, capsys) -> None:
    base = ["--like", trained, "--train_data", trained.parent / "corpus.txt", "--output_dir", trained]
    assert call(peer.main, monkeypatch, *base) == 2
    assert "holds a checkpoint; give another folder" in capsys.readouterr().err


def test_models_of_pairs_are_refused(trained_pairs: Path, tmp_path, monkeypatch, capsys) -> None:
    base = ["--like", trained_pairs, "--train_data", "a.txt", "--output_dir", tmp_path / "peer"]
    assert call(peer.main, monkeypatch, *base) == 2
    assert "another kind of model; give the checkpoint of a BERT" in capsys.readouterr().err
