"""stepwise.py: samples of confidence and remdm follow their own distributions, which differ from p_theta."""

import itertools

import pytest
import torch

from data.batch import Batch
from diffusion.masked.stepwise import remask_rates
from diffusion.options import SampleArgs
from tests.conftest import TableDenoiser, all_sentences, text_batch
from tests.diffusion.masked.test_process import agrees
from tests.toy_family import Timed, V, d3pm, law_of_steps, mdlm, sedd
from tests.toy_process import MASK, every, make
from utils.errors import UserError

N = 20_000


def remasking_law(denoiser: TableDenoiser, length: int, args: SampleArgs) -> torch.Tensor:
    """Return the probability of every sentence, by propagating all states through the remasking kernel."""
    process = mdlm()
    law = {(MASK,) * length: 1.0}
    for t, s in process.schedule.windows(int(args.num_steps)):
        remask, reveal = (float(p) for p in remask_rates(1 - s, 1 - t, args.remask_eta))
        following: dict[tuple, float] = {}
        for state, mass in law.items():
            xt = torch.tensor([state])
            logits = denoiser.encode(xt, t[None], every(xt))[0].clone()
            logits[:, MASK] = -torch.inf
            pi = logits.softmax(-1)
            choices = [
                [(token, reveal * float(pi[i, token])) for token in range(V)] + [(MASK, 1 - reveal)]
                if state[i] == MASK
                else [(state[i], 1 - remask), (MASK, remask)]
                for i in range(length)
            ]
            for outcome in itertools.product(*choices):
                chance = mass
                for _, p in outcome:
                    chance *= p
                if chance > 1e-14:
                    name = tuple(token for token, _ in outcome)
                    following[name] = following.get(name, 0.0) + chance
        law = following
    return torch.tensor([law.get(tuple(x), 0.0) for x in all_sentences(list(range(V)), length).tolist()]).double()


def test_remasking_follows_its_own_kernel_and_not_p_theta() -> None:
    args = SampleArgs(num_steps=4, sampler="remdm", remask_eta=0.4)
    batch = text_batch(torch.zeros(N, 3, dtype=torch.long))
    law = remasking_law(TableDenoiser(V), 3, args)
    drawn = mdlm().sample(TableDenoiser(V), batch, args, rows_at_once=5000)
    assert law.sum() == pytest.approx(1) and agrees(drawn, batch, law)
    own = law_of_steps(mdlm(), TableDenoiser(V), 3, SampleArgs(num_steps=4))
    plain = torch.tensor([own.get(tuple(x), 0.0) for x in all_sentences(list(range(V)), 3).tolist()]).double()
    assert (law - plain).abs().sum() > 0.05 and not agrees(drawn, batch, plain)


@pytest.mark.parametrize("eta", [0.01, 0.3, 1.0])
def test_remasking_keeps_the_mask_rate_at_every_time(eta: float) -> None:
    level = torch.linspace(0, 1, 33, dtype=torch.float64)
    at_t, at_s = level[:-1], level[1:]
    remask, reveal = remask_rates(at_s, at_t, eta)
    torch.testing.assert_close((1 - at_t) * (1 - reveal) + at_t * remask, 1 - at_s)
    assert remask.min() >= 0 and remask.max() <= eta and reveal.min() >= 0 and reveal.max() <= 1
    assert remask[-1] == 0 and reveal[-1] == 1  # no token stays masked


def test_remasking_a_single_token_does_not_change_its_law() -> None:
    """A sentence of one token: drawing it again leaves its distribution unchanged."""
    args = SampleArgs(num_steps=5, sampler="remdm", remask_eta=0.5)
    batch = text_batch(torch.zeros(N, 1, dtype=torch.long))
    logits = TableDenoiser(V).encode(torch.tensor([[MASK]]), torch.ones(1), every(torch.zeros(1, 1)))[0, 0].clone()
    logits[MASK] = -torch.inf
    assert agrees(mdlm().sample(TableDenoiser(V), batch, args), batch, logits.softmax(-1).double())


def most_confident_first(denoiser: TableDenoiser, length: int, num_steps: int) -> list[int]:
    """Return the modes, revealed by decreasing confidence and in the scheduled numbers."""
    row = [MASK] * length
    for step in range(1, num_steps + 1):
        xt = torch.tensor([row])
        logits = denoiser.encode(xt, torch.ones(1), every(xt))[0].clone()
        logits[:, MASK] = -torch.inf
        pi = logits.softmax(-1)
        masked = sorted((i for i in range(length) if row[i] == MASK), key=lambda i: -float(pi[i].max()))
        left = -(-length * (num_steps - step) // num_steps)
        for i in masked[: len(masked) - left]:
            row[i] = int(pi[i].argmax())
    return row


@pytest.mark.parametrize("process", [mdlm(), make(12, "paper"), d3pm(num_steps=12)], ids=["mdlm", "spindle", "d3pm"])
def test_confidence_reveals_as_many_tokens_as_scheduled(process) -> None:
    """Of seven tokens, three quarters, a half, a quarter (rounded up) and none stay masked after the four steps."""
    batch = text_batch(torch.zeros(1, 7, dtype=torch.long))
    counts: list[int] = []
    args = SampleArgs(num_steps=4, sampler="confidence")
    process.sample(TableDenoiser(V), batch, args, on_step=lambda _, xt: counts.append(int(xt.eq(MASK).sum())))
    assert counts == [6, 4, 2, 0]


def test_the_most_confident_tokens_are_revealed_first() -> None:
    """The logits are so large that the drawn token is almost surely the mode, at different confidences."""
    denoiser = TableDenoiser(V, scale=9)
    batch = text_batch(torch.zeros(400, 6, dtype=torch.long))
    drawn = mdlm().sample(denoiser, batch, SampleArgs(num_steps=3, sampler="confidence"))
    greedy = torch.tensor(most_confident_first(denoiser, 6, 3))
    assert (drawn == greedy).all(1).float().mean() > 0.5


def test_a_confidence_threshold_saves_steps() -> None:
    batch, denoiser = text_batch(torch.zeros(1, 8, dtype=torch.long)), TableDenoiser(V, scale=9)
    for threshold, most in ((0.0, 8), (0.5, 4)):
        args = SampleArgs(num_steps=8, sampler="confidence", confidence_threshold=threshold)
        calls: list[int] = []
        mdlm().sample(denoiser, batch, args, on_step=lambda _, xt, calls=calls: calls.append(1))
        assert len(calls) <= most and (threshold or len(calls) == 8)


@pytest.mark.parametrize("sampler", ["confidence", "remdm"])
@pytest.mark.parametrize("timed", [False, True])
def test_given_tokens_stay_and_rows_do_not_depend_on_their_neighbours(sampler: str, timed: bool) -> None:
    ids = torch.tensor([[0, 2, 1, 4], [4, 1, 0, 0]])
    attended = torch.tensor([[True] * 4, [True, True, True, False]])
    targets = torch.tensor([[True, False, True, True], [True, False, True, False]])
    batch, eta = Batch(ids, attended, targets), {"remask_eta": 0.5} if sampler == "remdm" else {}
    args = SampleArgs(num_steps=4, sampler=sampler, **eta)
    denoiser, finished = (Timed if timed else TableDenoiser)(V), []

    def streams(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    options = {"on_step": lambda rows, xt: finished.extend(rows.tolist())}
    together = mdlm().sample(denoiser, batch, args, generator=streams(1, 2), **options)
    apart = [mdlm().sample(denoiser, batch.rows(slice(i, i + 1)), args, generator=streams(i + 1)) for i in (0, 1)]
    assert torch.equal(together, torch.cat(apart)) and sorted(finished) == [0, 1]
    assert torch.equal(together[~targets], ids[~targets]) and not together.eq(MASK).any()


def test_unsupported_sampler_settings_are_refused() -> None:
    batch, denoiser = text_batch(torch.zeros(1, 3, dtype=torch.long)), TableDenoiser(V)
    for process, settings, message in (
        (
            make(8, "paper"),
            {"sampler": "remdm"},
            "sampler=remdm does not suit this process; it has row-clocks",
        ),
        (d3pm(), {"sampler": "remdm"}, "sampler=remdm does not suit this process"),
        (sedd(), {"sampler": "remdm"}, "sampler=remdm does not suit this process; it has cached"),
        (mdlm(), {"sampler": "confidence", "num_steps": float("inf")}, "num_steps=inf is for sampler=row-clocks"),
        (mdlm(), {"remask_eta": 1.5, "sampler": "remdm"}, r"remask_eta=1.5 must lie in \[0, 1\]"),
        (mdlm(), {"remask_eta": 0.5}, "remask_eta is for sampler=remdm, not auto"),
        (mdlm(), {"confidence_threshold": 0.9}, "confidence_threshold is for sampler=confidence, not auto"),
        (mdlm(), {"confidence_threshold": 1.0, "sampler": "confidence"}, "must lie in"),
    ):
        with pytest.raises(UserError, match=message):
            process.sample(denoiser, batch, SampleArgs(**settings))
