"""bound.py: the mean of every estimator is the enumerated bound, and sets follow their stated distribution."""

import math

import pytest
import torch
from scipy.stats import chisquare
from torch import Generator, Tensor

from data.batch import Batch
from diffusion.masked.bound import balanced_sets, draw_sizes, size_weights
from diffusion.masked.word_freq_released import ReleasedWordFreqDiffusion
from diffusion.options import BoundArgs, step_windows
from diffusion.process import Vocabulary
from diffusion.process_options import WordFreqArgs
from tests.conftest import TableDenoiser, text_batch
from tests.toy_process import COUNTS, MASK, SCHEDULES, every, exact_bound, make
from utils.errors import UserError

V = 5
X0 = torch.tensor([0, 2, 1])
ESTIMATORS = {
    "windows": BoundArgs("windows"),
    "stratified, 3 of 6": BoundArgs(estimator="stratified", evaluations=3),
    "stratified, 8 of 6": BoundArgs(estimator="stratified", evaluations=8),
    "masked-count, 1": BoundArgs(estimator="masked-count", evaluations=1),
    "masked-count, 5": BoundArgs(estimator="masked-count", evaluations=5),
    "trajectory": BoundArgs(estimator="trajectory", evaluations=1),
    "3 trajectories": BoundArgs(estimator="trajectory", evaluations=3),
}


def applies(name: str, spindle: str) -> bool:
    return spindle == "none" or not name.startswith("masked-count")


def cases(*spindles: str) -> list[tuple[str, str]]:
    """Return every estimator with every spindle that it applies to."""
    return [(name, spindle) for name in ESTIMATORS for spindle in spindles if applies(name, spindle)]


SETTINGS = [
    ("none", "mutual", 6, 6),
    ("none", "cosine", 40, 7),
    ("paper", "mutual", 6, 6),
    ("released", "linear", 60, 20),
]


@pytest.mark.parametrize(
    ("name", "spindle", "schedule", "num_steps", "windows"),
    [(name, *setting) for name in ESTIMATORS for setting in SETTINGS if applies(name, setting[0])],
)
@pytest.mark.slow
def test_the_mean_of_every_estimator_is_the_enumerated_bound(
    name: str, spindle: str, schedule: str, num_steps: int, windows: int
) -> None:
    """Mean of 20,000 independent estimates, and of their reconstruction terms."""
    process, denoiser = make(num_steps, spindle, schedule=schedule), TableDenoiser(V)
    batch = text_batch(X0.expand(20_000, -1))
    bound = process.bound(denoiser, batch, windows, ESTIMATORS[name])
    expected, last = (exact_bound(process, denoiser, X0, windows, only_last=only) for only in (False, True))
    for draws, truth in ((bound.total, expected), (bound.reconstruction, last)):
        assert abs(draws.mean() - truth) < 4 * draws.std() / math.sqrt(len(draws)) + 1e-9


class Reader(TableDenoiser):
    """Denoiser that predicts some tokens better than others, and all better with more visible tokens."""

    def __init__(self, x0: Tensor) -> None:
        super().__init__(V)
        self.right = torch.nn.functional.one_hot(x0, V).double()

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        """Return a logit of the true token that depends on its position and on the number of visible tokens."""
        seen = xt.ne(MASK).double().mean(1)[:, None, None]
        talent = torch.linspace(-1, 4, xt.shape[1], dtype=torch.float64)[:, None]
        return self.right * (talent + 2 * seen)


@pytest.mark.parametrize(
    ("name", "spindle", "share"),
    [("masked-count", "none", 0.4), ("trajectory", "none", 0.5), ("trajectory", "paper", 0.5)],
)
@pytest.mark.slow
def test_the_estimators_err_less_than_windows_at_equal_cost(name: str, spindle: str, share: float) -> None:
    """Sixteen tokens, 64 forwards each."""
    x0 = torch.tensor([0, 1, 2, 4] * 4)
    process, batch = make(64, spindle), text_batch(x0.expand(1000, -1))
    published = process.bound(Reader(x0), batch, 64)
    ours = process.bound(
        Reader(x0), batch, 64, BoundArgs(estimator=name, evaluations=64 if name == "masked-count" else 4)
    )
    assert (ours.forwards <= 64).all() and (published.forwards == 64).all()
    assert ours.total.std() < share * published.total.std()


def test_the_bound_of_a_consistent_network_is_estimated_without_error() -> None:
    """Conditionals of one joint law: along any order, the chain rule gives the same -log p(x0)."""

    class Joint(TableDenoiser):
        law = torch.rand(V, V, V, dtype=torch.float64).index_fill(0, torch.tensor([MASK]), 0)
        law = law.index_fill(1, torch.tensor([MASK]), 0).index_fill(2, torch.tensor([MASK]), 0)

        def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
            """Return the logits log p(x_i | visible tokens)."""
            rows = []
            for row in xt.tolist():
                index = tuple(slice(None) if token == MASK else slice(token, token + 1) for token in row)
                rest = torch.zeros_like(self.law)
                rest[index] = self.law[index]
                rows.append(torch.stack([rest.sum([j for j in range(3) if j != i]) for i in range(3)]))
            return torch.stack(rows).log()

    process, args = make(10**6, "none"), BoundArgs(estimator="trajectory")
    bound = process.bound(Joint(V), text_batch(X0.expand(200, -1)), 1000, args).total
    expected = -(Joint.law[tuple(X0)] / Joint.law.sum()).log().item()
    assert (abs(bound - expected) < 1e-9).double().mean() > 0.97  # except where two tokens share a window


def test_a_trajectory_takes_a_forward_for_every_window_that_reveals() -> None:
    calls = []

    class Counting(TableDenoiser):
        def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
            calls.append(len(xt))
            return super().encode(xt, t, attention_mask)

    batch = text_batch(torch.zeros(50, 12, dtype=torch.long))
    bound = make(1000, "paper").bound(Counting(V), batch, 1000, ESTIMATORS["3 trajectories"])
    assert bound.forwards.sum() == sum(calls) and (bound.forwards <= 36).all() and bound.forwards.mean() > 34


@pytest.mark.parametrize(("name", "spindle"), cases("none", "paper"))
def test_neighbours_and_padding_do_not_change_the_bound_of_a_sentence(name: str, spindle: str) -> None:
    process, denoiser = make(12, spindle), TableDenoiser(V)
    on = torch.tensor([[True, True, True, False, False], [True] * 5])
    beside = Batch(torch.tensor([[0, 2, 1, 4, 4], [4, 4, 0, 1, 2]]), on, on)

    def streams(n: int) -> list[Generator]:
        return [Generator().manual_seed(seed) for seed in range(n)]

    alone = process.bound(denoiser, text_batch(X0[None]), 6, ESTIMATORS[name], generator=streams(1)).total
    both = process.bound(denoiser, beside, 6, ESTIMATORS[name], generator=streams(2)).total
    torch.testing.assert_close(both[:1], alone)


@pytest.mark.parametrize(("name", "spindle"), cases("none", "paper"))
def test_a_sentence_without_targets_costs_nothing(name: str, spindle: str) -> None:
    batch = Batch(X0.expand(2, -1), every(X0.expand(2, -1)), torch.tensor([[True] * 3, [False] * 3]))
    bound = make(6, spindle).bound(TableDenoiser(V), batch, 6, ESTIMATORS[name]).total
    assert bound[1] == 0 and bound[0] > 0


def test_estimators_are_refused_where_they_would_be_wrong() -> None:
    class Timed(TableDenoiser):
        time_conditioned = True

    batch = text_batch(X0[None])
    for name in ("masked-count", "trajectory"):
        args = BoundArgs(estimator=name)
        with pytest.raises(UserError, match="needs a network without time conditioning"):
            make(6, "none").bound(Timed(V), batch, 6, args)
        released = ReleasedWordFreqDiffusion(
            WordFreqArgs(6, posterior="released"), COUNTS, Vocabulary(len(COUNTS), MASK)
        )
        with pytest.raises(
            UserError, match="does not suit this process; with a number of steps it has windows, stratified"
        ):
            released.bound(TableDenoiser(V), batch, 6, args)
    with pytest.raises(UserError, match="does not suit this process"):
        make(6, "paper").bound(TableDenoiser(V), batch, 6, BoundArgs(estimator="masked-count"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"estimator": "best"}, "must be one of auto, windows, stratified, masked-count"),
        ({"estimator": "stratified", "evaluations": -1}, "evaluations=-1"),
        ({"target_se": 1.0}, "target_se=1.0"),
        ({"target_se": math.nan}, "target_se=nan"),
    ],
)
def test_invalid_estimator_settings_are_refused(setting: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        BoundArgs(**setting)


def test_auto_is_windows_or_masked_count_in_continuous_time() -> None:
    assert [BoundArgs().settled(steps).estimator for steps in (128, math.inf)] == ["windows", "masked-count"]
    assert BoundArgs(evaluations=5).settled(math.inf).evaluations == 5
    for args in (BoundArgs(evaluations=5), BoundArgs("windows", evaluations=5)):
        with pytest.raises(UserError, match="does not apply to windows"):
            args.settled(128)


# ---- sets ------------------------------------------------------------------------------------------------------------


def test_balanced_sets_are_each_uniform_and_together_even() -> None:
    n = 40_000
    targets = torch.tensor([True, True, False, True, True]).expand(n, -1)
    size = torch.tensor([[1, 1, 2, 2, 3, 1]]).expand(n, -1)
    masked = balanced_sets(targets, size, None)
    assert torch.equal(masked.sum(-1), size) and not masked[..., 2].any()
    for e in range(6):
        counts = torch.bincount((masked[:, e].long() * 2 ** torch.arange(5)).sum(-1))
        counts = counts[counts > 0]
        assert len(counts) == math.comb(4, int(size[0, e])) and chisquare(counts.numpy()).pvalue > 1e-3
    # 6 masked positions in all, 4 tokens: every token is covered
    assert masked[:, :4].sum(1)[:, [0, 1, 3, 4]].min() >= 1


@pytest.mark.parametrize("evaluations", [1, 7])
def test_sizes_of_sets_are_uniform_and_sorted(evaluations: int) -> None:
    lengths = torch.tensor([5, 2]).repeat_interleave(30_000)
    size = draw_sizes(lengths, torch.rand(60_000, evaluations, dtype=torch.float64))
    assert (size.diff(dim=1) >= 0).all()
    for length in (5, 2):
        counts = torch.bincount(size[lengths == length].flatten(), minlength=length + 1)
        assert counts[0] == 0 and len(counts) == length + 1
        share = counts[1:] / counts.sum()
        torch.testing.assert_close(share, torch.full_like(share, 1 / length), atol=0.01, rtol=0)
    assert draw_sizes(torch.tensor([0]), torch.tensor([[0.9]])).tolist() == [[0]]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_weight_of_a_size_is_its_sum_over_windows_and_tends_to_one_over_k(schedule: str) -> None:
    process, length = make(3000, "none", schedule=schedule), torch.tensor([6, 4])
    size = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4]])
    coarse = torch.tensor(step_windows(3000, 7))
    found = size_weights(process, length, size, coarse)
    for row, n in enumerate((6, 4)):
        for k in range(1, 5):
            terms = []
            for t, s in coarse.tolist():
                rate, before = 1 - process.schedule.base[t].item(), 1 - process.schedule.base[s].item()
                terms.append((rate - before) / rate * math.comb(n, k) * rate**k * (1 - rate) ** (n - k))
            assert found[row, k - 1].tolist() == pytest.approx([sum(terms), terms[-1]])
    fine = size_weights(process, length, size, torch.tensor(step_windows(3000, 3000)))
    if schedule == "mutual":
        torch.testing.assert_close(fine[..., 0], 1 / size.double(), rtol=0.01, atol=0)
