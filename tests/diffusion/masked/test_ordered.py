"""ordered.py: samples follow the law of an ordered reveal, whose likelihood is exact."""

import itertools
import math

import pytest
import torch
from torch import Generator, Tensor

from data.batch import Batch
from diffusion.masked import ordered
from diffusion.masked.d3pm import D3pmDiffusion
from diffusion.masked.mdlm import MdlmDiffusion
from diffusion.masked.process import MaskedProcess
from diffusion.masked.word_freq_released import ReleasedWordFreqDiffusion
from diffusion.options import ORDERS, BoundArgs, SampleArgs, check_exact
from diffusion.process import Vocabulary
from diffusion.process_options import MdlmArgs, WordFreqArgs
from tests.conftest import TableDenoiser, all_sentences, text_batch
from tests.diffusion.masked.test_process import agrees
from tests.diffusion.masked.test_row_clocks import conditioned
from tests.toy_family import Timed, V, d3pm, limit_bound, mdlm, sedd
from tests.toy_process import COUNTS, MASK, TOKENS, every, make
from utils.errors import UserError

N = 20_000
FILTER_NAMES = ("temperature", "top_k", "top_p")
FILTERS = {"none": {}, "hot": {"temperature": 1.7}, "top-k": {"top_k": 2}, "top-p": {"top_p": 0.7, "temperature": 0.8}}
PROCESSES = {"word_freq": make, "no spindle": lambda: make(spindle="none"), "mdlm": mdlm, "d3pm": d3pm, "sedd": sedd}
TEXTS = all_sentences(TOKENS, 3)


def filtered(logits: list[float], temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> list[float]:
    """Return probabilities after the filters, in plain Python."""
    weights = [math.exp(x / temperature) for x in logits]
    by_size = sorted(range(len(weights)), key=lambda i: -weights[i])
    kept = by_size[: top_k or None]
    total, mass, nucleus = sum(weights[i] for i in kept), 0.0, []
    for i in kept:
        if mass < top_p:
            nucleus.append(i)
        mass += weights[i] / total
    total = sum(weights[i] for i in nucleus)
    return [weights[i] / total if i in nucleus else 0.0 for i in range(len(weights))]


def chosen_by_hand(logits: dict[int, list[float]], order: str, k: int) -> list[int]:
    """Return the next positions of the masked ones, from the definitions in plain Python."""
    ranks = {}
    for i, row in logits.items():
        p = sorted((math.exp(x) / sum(map(math.exp, row)) for x in row), reverse=True)
        ranks[i] = {
            "confidence": p[0],
            "margin": p[0] - p[1],
            "entropy": sum(x * math.log(x) for x in p if x > 0),
            "left-to-right": -i,
            "random-fixed": ordered.ranks_of_positions("random-fixed", 10)[i].item(),
        }[order]
    return sorted(ranks, key=lambda i: (-ranks[i], i))[:k]


def law_by_hand(
    process: MaskedProcess, denoiser: TableDenoiser, batch: Batch, law: dict, barred: tuple[int, ...] = (MASK,)
) -> dict[tuple, float]:
    """Return the probability of every text of a one-row batch, by following every path from all masks."""
    order, k = law["order"], law["tokens_per_step"]
    filters = {name: value for name, value in law.items() if name in FILTER_NAMES}
    targets = batch.noised[0].nonzero()[:, 0].tolist()
    found, states = {}, {tuple(batch.input_ids[0].masked_fill(batch.noised[0], MASK).tolist()): 1.0}
    while states:
        state, mass = states.popitem()
        masked = [i for i in targets if state[i] == MASK]
        if not masked:
            found[state] = found.get(state, 0.0) + mass
            continue
        hidden = denoiser.encode(
            torch.tensor([state]), time_of(process, len(masked) / len(targets)), batch.attention_mask
        )
        logits = {i: [hidden[0, i, v].item() if v not in barred else -math.inf for v in range(V)] for i in masked}
        chosen = chosen_by_hand(logits, order, k)
        each = [filtered(logits[i], **filters) for i in chosen]
        for tokens in itertools.product(range(V), repeat=len(chosen)):
            chance = mass * math.prod(p[v] for p, v in zip(each, tokens, strict=True))
            if chance > 0:
                new = list(state)
                for i, v in zip(chosen, tokens, strict=True):
                    new[i] = v
                states[tuple(new)] = states.get(tuple(new), 0.0) + chance
    return found


def time_of(process: MaskedProcess, share: float) -> Tensor:
    """Return the time input where this share of the tokens is masked; D3PM has whole steps of 1/T."""
    t = process.schedule.time_at(torch.tensor([1 - share], dtype=torch.float64))
    if isinstance(process, D3pmDiffusion):
        t = torch.tensor([max(1, round(t.item() * process.num_steps)) / process.num_steps], dtype=torch.float64)
    return process.time_input(t)


def exact(process: MaskedProcess, denoiser: TableDenoiser, batch: Batch, **law: object) -> Tensor:
    """Return the exact -log p of each row."""
    return process.bound(denoiser, batch, 4, BoundArgs("exact", **law)).total


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("order", ORDERS)
def test_the_likelihood_is_that_of_every_path_and_sums_to_one(order: str, k: int, filters: str) -> None:
    law = {"order": order, "tokens_per_step": k, **FILTERS[filters]}
    for denoiser in (TableDenoiser(V), TableDenoiser(V, seed=5, scale=3)):
        by_hand, found = (
            law_by_hand(mdlm(), denoiser, text_batch(TEXTS[:1]), law),
            exact(mdlm(), denoiser, text_batch(TEXTS), **law),
        )
        assert torch.exp(-found).sum().item() == pytest.approx(1, abs=1e-12)
        wanted = [by_hand.get(tuple(text), 0.0) for text in TEXTS.tolist()]
        torch.testing.assert_close(torch.exp(-found), torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", PROCESSES)
def test_every_masked_process_has_the_same_law(name: str) -> None:
    """The law depends on the prediction and on nothing else of the process, if the network is not told the time."""
    law = {"order": "margin", "tokens_per_step": 1, "temperature": 0.9}
    found, wanted = (exact(p, TableDenoiser(V), text_batch(TEXTS), **law) for p in (PROCESSES[name](), mdlm()))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("order", ORDERS)
def test_the_time_input_and_given_tokens_and_padding(name: str, order: str) -> None:
    """Three targets around a given token, before padding: the time is that of the share of the targets."""
    process, law = PROCESSES[name](), {"order": order, "tokens_per_step": 1, "temperature": 1.2}
    batch = conditioned(1)
    by_hand = law_by_hand(process, Timed(V), batch, law)
    many = conditioned(len(by_hand))
    rows = Batch(torch.tensor(list(by_hand)), many.attention_mask, many.target_mask)
    assert len(by_hand) == len(TEXTS) and sum(by_hand.values()) == pytest.approx(1)
    wanted = torch.tensor(list(by_hand.values()), dtype=torch.float64)
    torch.testing.assert_close(torch.exp(-exact(process, Timed(V), rows, **law)), wanted, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(("order", "k", "filters"), [("confidence", 1, "hot"), ("entropy", 2, "top-p")])
def test_samples_have_this_law_also_with_time_input(name: str, order: str, k: int, filters: str) -> None:
    process, law = PROCESSES[name](), {"order": order, "tokens_per_step": k, **FILTERS[filters]}
    by_hand = law_by_hand(process, Timed(V), text_batch(TEXTS[:1]), law)
    wanted = torch.tensor([by_hand.get(tuple(x), 0.0) for x in all_sentences(list(range(V)), 3).tolist()]).double()
    args = SampleArgs(sampler="ordered", **law)
    drawn = process.sample(Timed(V), text_batch(torch.zeros(N, 3, dtype=torch.long)), args, rows_at_once=7001)
    assert agrees(drawn, text_batch(torch.zeros(N, 3, dtype=torch.long)), wanted)


@pytest.mark.parametrize("order", ["confidence", "random-fixed"])
@pytest.mark.slow
def test_two_hundred_thousand_samples_have_the_exact_likelihood(order: str) -> None:
    number, law = 200_000, {"order": order, "tokens_per_step": 2, "top_k": 3}
    batch, texts = text_batch(torch.zeros(number, 3, dtype=torch.long)), all_sentences(list(range(V)), 3)
    clean = (texts != MASK).all(1)
    wanted = torch.zeros(len(texts)).double()
    wanted[clean] = torch.exp(-exact(mdlm(), TableDenoiser(V), text_batch(texts[clean]), **law))
    drawn = mdlm().sample(TableDenoiser(V), batch, SampleArgs(sampler="ordered", **law), rows_at_once=50_000)
    assert agrees(drawn, batch, wanted)


def test_from_left_to_right_it_is_the_chain_rule() -> None:
    x0, denoiser = torch.tensor([[2, 0, 4]]), TableDenoiser(V)
    nats = 0.0
    for i in range(3):
        xt = x0.clone()
        xt[:, i:] = MASK
        logits = denoiser.encode(xt, torch.ones(1), every(xt))[0, i].index_fill(0, torch.tensor([MASK]), -math.inf)
        nats -= logits.log_softmax(-1)[x0[0, i]].item()
    assert exact(mdlm(), denoiser, text_batch(x0), order="left-to-right").item() == pytest.approx(nats, abs=1e-12)


def test_the_bound_is_the_mean_over_all_orders_and_at_least_minus_log_of_their_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the limit the bound reveals tokens in random order: E over orders of -log p, by Jensen above -log of E p."""
    for x0 in ([2, 0, 4], [1, 1, 0]):
        batch, each = text_batch(torch.tensor([x0])), []
        for places in itertools.permutations(range(3)):
            ranks = torch.tensor(places, dtype=torch.float64)
            monkeypatch.setattr(ordered, "ranks_of_positions", lambda *_, ranks=ranks: ranks)
            each.append(exact(mdlm(), TableDenoiser(V), batch, order="random-fixed").item())
        bound = limit_bound(mdlm(), TableDenoiser(V), torch.tensor(x0))
        assert bound == pytest.approx(sum(each) / len(each), abs=1e-9)
        assert bound > -math.log(sum(map(math.exp, (-nats for nats in each))) / len(each)) + 1e-3
        assert max(each) - min(each) > 0.1  # this denoiser depends on the order


@pytest.mark.parametrize("order", ORDERS)
def test_neither_other_rows_nor_padding_change_anything(order: str) -> None:
    """Rows of 2, 3 and 5 tokens, alone and together; a given token stands between the targets of the last."""
    rows = [[2, 0], [4, 4, 1], [0, 1, 2, 0, 4]]
    ids, attended = torch.zeros(3, 6, dtype=torch.long), torch.zeros(3, 6, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)], attended[i, : len(row)] = torch.tensor(row), True
    targets = attended.clone()
    targets[2, 2] = False
    law = {"order": order, "tokens_per_step": 2}
    together = Batch(ids, attended, targets)
    bound = mdlm().bound(TableDenoiser(V), together, 4, BoundArgs("exact", **law))
    streams = [Generator().manual_seed(i) for i in range(3)]
    args = SampleArgs(sampler="ordered", **law)
    drawn = mdlm().sample(TableDenoiser(V), together, args, rows_at_once=2, generator=streams)
    assert bound.forwards.tolist() == [1, 2, 2]
    assert torch.equal(drawn[~targets], ids[~targets]) and not drawn.eq(MASK).any()
    for i, row in enumerate(rows):
        alone = together.rows((slice(i, i + 1), slice(len(row))))
        torch.testing.assert_close(exact(mdlm(), TableDenoiser(V), alone, **law), bound.total[i : i + 1])
        own = mdlm().sample(TableDenoiser(V), alone, args, generator=[Generator().manual_seed(i)])
        assert torch.equal(own[0], drawn[i, : len(row)])


def test_a_token_that_a_filter_excludes_has_an_infinite_likelihood() -> None:
    nats = exact(mdlm(), TableDenoiser(V), text_batch(TEXTS), top_k=1)
    assert nats.isfinite().sum() == 1 and nats[nats.isfinite()].item() == 0 and not nats.isnan().any()
    (mode,) = TEXTS[nats.isfinite()]
    drawn = mdlm().sample(
        TableDenoiser(V), text_batch(torch.zeros(3, 3).long()), SampleArgs(sampler="ordered", top_k=1)
    )
    assert torch.equal(drawn, mode.expand(3, -1))


@pytest.mark.parametrize("order", ["confidence", "entropy", "margin"])
@pytest.mark.parametrize(("lean", "revealed"), [(1e-6, 1), (2e-3, 3)])
def test_positions_that_are_equal_up_to_rounding_are_revealed_from_the_left(
    order: str, lean: float, revealed: int
) -> None:
    """The further right, the surer; by 1e-6 this changes nothing."""

    class Leaning(TableDenoiser):
        def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
            steps = lean * torch.arange(xt.shape[1])[:, None] * torch.tensor([1.0, 0, 0, 0, 0])
            return torch.tensor([1.0, 0.0, -1.0, 0.0, 0.5]) + steps.expand(len(xt), -1, -1)

    reveal = ordered.OrderedReveal(mdlm(), Leaning(V), BoundArgs("exact", order=order))
    batch = text_batch(torch.zeros(1, 4, dtype=torch.long))
    masked = torch.tensor([[False, True, True, True]])
    chosen, log_p = reveal.next(batch, torch.tensor([[0, MASK, MASK, MASK]]), masked)
    assert chosen[0].nonzero().item() == revealed and log_p.exp().sum().item() == pytest.approx(1)


def test_a_fixed_random_order_is_the_same_for_longer_rows() -> None:
    short, long = (ordered.ranks_of_positions("random-fixed", n) for n in (5, 500))
    assert torch.equal(short, long[:5]) and long.argsort().tolist() != sorted(range(500))


def test_unk_is_neither_sampled_nor_possible() -> None:
    """The law of texts without [UNK] is renormalised, as the sampler's is; a text with [UNK] has an infinite -log p."""
    process, unk = MdlmDiffusion(MdlmArgs(), Vocabulary(V, MASK, unsampled_ids=(1,))), (TEXTS == 1).any(1)
    for order in ORDERS:
        for filters in ({}, {"top_k": 2}):
            law = {"order": order, "tokens_per_step": 1, **filters}
            by_hand = law_by_hand(process, TableDenoiser(V), text_batch(TEXTS[:1]), law, barred=(MASK, 1))
            found = torch.exp(-exact(process, TableDenoiser(V), text_batch(TEXTS), **law))
            wanted = torch.tensor([by_hand.get(tuple(text), 0.0) for text in TEXTS.tolist()], dtype=torch.float64)
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-15)
            assert found[unk].sum() == 0 and found.sum().item() == pytest.approx(1)
    drawn = process.sample(
        TableDenoiser(V), text_batch(torch.zeros(2000, 3).long()), SampleArgs(sampler="ordered", temperature=3)
    )
    assert not drawn.eq(1).any() and not drawn.eq(MASK).any()


@pytest.mark.parametrize("order", ORDERS)
def test_padding_that_is_noised_belongs_to_the_law(order: str) -> None:
    """The sampler draws the [PAD]s of padded rows, so they count, in their turn."""
    ids, scored = TEXTS, torch.tensor([[True, True, False]]).expand(len(TEXTS), -1)
    found = exact(mdlm(), TableDenoiser(V), Batch(ids, every(ids), scored, every(ids)), order=order)
    torch.testing.assert_close(found, exact(mdlm(), TableDenoiser(V), text_batch(ids), order=order))


def test_a_text_with_a_mask_token_is_impossible() -> None:
    assert exact(mdlm(), TableDenoiser(V), text_batch(torch.tensor([[MASK, 0], [1, 0]]))).isinf().tolist() == [
        True,
        False,
    ]


def test_settings_that_do_not_fit_are_refused() -> None:
    for settings, message in [
        ({"order": "margin"}, "are for sampler=ordered"),
        ({"tokens_per_step": 2}, "are for sampler=ordered"),
        ({"sampler": "ordered", "num_steps": 8}, "give --tokens_per_step"),
        ({"sampler": "ordered", "order": "none"}, "order"),
    ]:
        with pytest.raises(UserError, match=message):
            SampleArgs(**settings)
    for settings, message in [
        ({"estimator": "windows", "temperature": 0.5}, "temperature is for estimator=exact, not windows"),
        ({"order": "margin"}, "order is for estimator=exact, not auto; add --estimator exact"),
        ({"estimator": "exact", "evaluations": 4}, "draws nothing"),
    ]:
        with pytest.raises(UserError, match=message):
            check_exact(BoundArgs(**settings), 0)
    with pytest.raises(UserError, match="tokens_per_step=0 must lie in 1"):
        SampleArgs(sampler="ordered", tokens_per_step=0)
    args = WordFreqArgs(num_steps=4, spindle="released", posterior="released")
    released = ReleasedWordFreqDiffusion(args, COUNTS, Vocabulary(V, MASK))
    with pytest.raises(UserError, match="estimator=exact"):
        exact(released, TableDenoiser(V), text_batch(TEXTS))
