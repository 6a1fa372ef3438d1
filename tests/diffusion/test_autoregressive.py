"""autoregressive.py: the chain rule, exact in scoring and in sampling; the network never attends to later tokens."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, BertConfig, GPT2Config, ModernBertDecoderConfig

from data.batch import Batch
from diffusion.autoregressive import Autoregressive
from diffusion.options import BoundArgs, SampleArgs
from diffusion.process import Vocabulary
from diffusion.process_options import AutoregressiveArgs
from models.bert import BertDenoiser
from tests.conftest import TableDenoiser, all_sentences, text_batch
from tests.diffusion.masked.test_row_clocks import N, agrees
from tests.toy_process import COUNTS, MASK, TOKENS
from utils.errors import UserError

V = len(COUNTS)


class CausalTable(TableDenoiser):
    """The hidden state at i is a scramble of the tokens up to i; its cache is those tokens."""

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits of the next token."""
        position = torch.arange(1, xt.shape[1] + 1, dtype=torch.float64)
        view = ((xt + 1) * position).cumsum(1) + position * 0.37
        token = torch.arange(self.vocab_size, dtype=torch.float64)
        return self.scale * torch.sin(view[..., None] * (1.3 + token) + token)

    def extend(self, tokens: Tensor, cache: Tensor | None) -> tuple[Tensor, Tensor]:
        """Encode everything again, for simplicity."""
        whole = tokens if cache is None else torch.cat([cache, tokens], 1)
        return self.encode(whole, None, None)[:, -tokens.shape[1] :], whole


def process(end_id: int | None = None) -> Autoregressive:
    return Autoregressive(AutoregressiveArgs(), Vocabulary(len(COUNTS), MASK), end_id=end_id)


def after(first: int, rest: Tensor) -> Batch:
    """Sentences that begin with a given token."""
    ids = torch.cat([torch.full_like(rest[:, :1], first), rest], 1)
    targets = torch.ones_like(ids, dtype=torch.bool)
    targets[:, 0] = False
    return Batch(ids, torch.ones_like(targets), targets)


def test_probabilities_of_all_sentences_sum_to_one() -> None:
    bound = process().bound(CausalTable(V), after(2, all_sentences(TOKENS, 3)), 1)
    assert torch.exp(-bound.total).sum().item() == pytest.approx(1) and (bound.forwards == 1).all()


def test_the_bound_is_the_chain_rule() -> None:
    """Compare with a sum over tokens in Python numbers."""
    denoiser, expected = CausalTable(V), 0.0
    sentence = [2, 0, 4, 1]
    for i in range(1, 4):
        logits = denoiser.encode(torch.tensor([sentence[:i]]), None, None)[0, -1]
        logits[MASK] = -math.inf
        expected -= logits.log_softmax(-1)[sentence[i]].item()
    batch = after(2, torch.tensor([[0, 4, 1]]))
    assert process().bound(denoiser, batch, 1).total.item() == pytest.approx(expected)
    loss = process().loss(denoiser, batch)
    assert loss.total.item() == pytest.approx(expected) and loss.num_tokens == 3


def test_tokens_that_are_no_targets_are_given_and_cost_nothing() -> None:
    ids = torch.tensor([[2, 0, 4, 1]])
    targets = torch.tensor([[False, False, True, False]])
    nats = process().cross_entropy(CausalTable(V), Batch(ids, torch.ones_like(targets), targets))
    assert (nats[~targets] == 0).all() and nats[0, 2] > 0
    whole = process().cross_entropy(CausalTable(V), after(2, ids[:, 1:]))
    assert nats[0, 2] == whole[0, 2]


def test_unsampled_tokens_are_scored_but_never_drawn() -> None:
    unsampled = Autoregressive(AutoregressiveArgs(), Vocabulary(len(COUNTS), MASK, unsampled_ids=(0,)))
    batch = after(2, torch.zeros(5000, 2, dtype=torch.long))
    assert not unsampled.sample(CausalTable(V), batch, SampleArgs())[:, 1:].eq(0).any()
    assert unsampled.bound(CausalTable(V), batch, 1).total.isfinite().all()


def test_the_cross_entropy_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = after(2, torch.tensor([[0, 4, 1], [1, 1, 0]]).repeat(20, 1))
    with torch.no_grad():
        whole = process().cross_entropy(CausalTable(V), batch)
        monkeypatch.setattr("diffusion.chunked_logits.MAX_LOGITS", 12 * V)
        torch.testing.assert_close(process().cross_entropy(CausalTable(V), batch), whole)


@pytest.mark.parametrize("filters", [{}, {"temperature": 0.7, "top_k": 3}])
def test_samples_follow_the_law(filters: dict) -> None:
    law = torch.zeros(V**3, dtype=torch.float64)
    for index, rest in enumerate(all_sentences(list(range(V)), 3)):
        chance, sentence = 1.0, [2]
        for token in rest.tolist():
            logits = CausalTable(V).encode(torch.tensor([sentence]), None, None)[0, -1]
            logits[MASK] = -math.inf
            logits = logits / filters.get("temperature", 1)
            kept = logits.topk(filters.get("top_k", V)).values[-1]
            chance *= logits.masked_fill(logits < kept, -math.inf).softmax(-1)[token].item()
            sentence.append(token)
        law[index] = chance
    batch = after(2, torch.zeros(N, 3, dtype=torch.long))
    drawn = process().sample(CausalTable(V), batch, SampleArgs(**filters), rows_at_once=50_000)
    assert agrees(drawn, batch, law)


def test_given_tokens_stay_and_rows_do_not_depend_on_their_neighbours() -> None:
    ids = torch.tensor([[2, 0, 1, 4], [2, 1, 0, 0], [2, 1, 1, 1]])
    attended = torch.tensor([[True] * 4, [True, True, True, False], [True] * 4])
    targets = torch.tensor([[False, True, False, True], [False, False, True, False], [False] * 4])
    batch, args = Batch(ids, attended, targets), SampleArgs()

    def streams(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    finished: list[int] = []
    together = process().sample(
        CausalTable(V), batch, args, generator=streams(0, 1, 2), on_step=lambda rows, _: finished.extend(rows.tolist())
    )
    apart = [
        process().sample(CausalTable(V), batch.rows(slice(i, i + 1)), args, generator=streams(i)) for i in range(3)
    ]
    assert torch.equal(together, torch.cat(apart)) and sorted(finished) == [0, 1]
    assert torch.equal(together[~targets], ids[~targets]) and not together.eq(MASK).any()


END = 1


def ending() -> Autoregressive:
    return process(END)


def ended(*texts: list[int]) -> Batch:
    """Return rows [2] text [END] [END]...; what follows the first end is not attended to."""
    longest = max(map(len, texts)) + 2
    ids = torch.tensor([[2, *text, *[END] * (longest - 1 - len(text))] for text in texts])
    positions, lengths = torch.arange(longest), torch.tensor([[len(text)] for text in texts])
    return Batch(ids, positions <= lengths + 1, (positions > 0) & (positions <= lengths))


def test_the_end_of_a_text_is_part_of_its_probability() -> None:
    """The probabilities of ended texts of up to three tokens and of all longer texts sum to one."""
    inner = [token for token in TOKENS if token != END]
    whole = [list(text) for n in range(1, 4) for text in itertools.product(inner, repeat=n)]
    nats = ending().bound(CausalTable(V), ended(*whole), 1).total
    longer = after(2, all_sentences(inner, 4))
    longer_nats = ending().bound(CausalTable(V), longer, 1).total
    first_logits = CausalTable(V).encode(torch.tensor([[2]]), None, None)[0, 0]
    first_logits[MASK] = -math.inf
    total = torch.exp(-nats).sum() + torch.exp(-longer_nats).sum() + first_logits.softmax(-1)[END]
    assert total.item() == pytest.approx(1)
    assert ending().loss(CausalTable(V), ended([0, 4], [0])).num_tokens == 3  # the tokens of texts
    plain = process().bound(CausalTable(V), ended([0, 4], [0]), 1).total
    assert (ending().bound(CausalTable(V), ended([0, 4], [0]), 1).total > plain).all()


def test_an_end_is_scored_once_even_if_pads_have_the_same_id() -> None:
    """GPT-2's padded rows: text, its end, and more of the same id, all attended to."""
    ids = torch.tensor([[2, 0, 4, END, END, END], [2, 0, END, END, END, END]])
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    for with_end in (False, True):
        targets = torch.tensor([[0, 1, 1, with_end, 0, 0], [0, 1, with_end, 0, 0, 0]]).bool()
        assert ending().scored(Batch(ids, everywhere, targets)).sum(1).tolist() == [3, 2]


def test_texts_are_drawn_with_ends_and_gaps_without() -> None:
    number = 20_000
    ids = torch.full((number, 4), MASK)
    ids[:, 0] = 2
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    open_ = Batch(ids, everywhere, ids == MASK)
    finished: list[int] = []
    drawn = ending().sample(CausalTable(V), open_, SampleArgs(), on_step=lambda rows, _: finished.extend(rows.tolist()))
    assert sorted(finished) == list(range(number))
    first = (drawn[:, 1:] == END).int().argmax(1) + 1
    has = (drawn[:, 1:] == END).any(1)
    after_it = (torch.arange(4) >= first[:, None]) & has[:, None]
    assert (drawn[after_it] == END).all()  # nothing but ends after the end
    one = ended([0])
    chance = math.exp(-ending().bound(CausalTable(V), one, 1).total.item())
    share = ((drawn[:, 1] == 0) & (drawn[:, 2] == END)).double().mean().item()
    assert abs(share - chance) < 4 * math.sqrt(chance / number)
    wide = F.pad(ids, (0, 1), value=END)
    gaps = Batch(wide, torch.ones_like(wide, dtype=torch.bool), wide == MASK)
    filled = ending().sample(CausalTable(V), gaps, SampleArgs())
    assert not (filled[:, 1:4] == END).any() and (filled[:, 4] == END).all()


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 30}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
NETWORKS = {
    "bert": BertConfig(**SIZES, is_decoder=True),
    "modernbert": ModernBertDecoderConfig(**SIZES, **SPECIAL, cls_token_id=1, sep_token_id=2),
    "gpt2": GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=30, **SPECIAL),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_causal_network_attends_to_the_left_and_its_cache_is_exact(name: str) -> None:
    denoiser = BertDenoiser(AutoModelForCausalLM.from_config(NETWORKS[name])).eval()
    ids = torch.randint(3, 30, (4, 9))
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        whole = denoiser.encode(ids, None, everywhere)
        changed = denoiser.encode(torch.cat([ids[:, :5], ids[:, 5:].flip(1)], 1), None, everywhere)
        torch.testing.assert_close(changed[:, :5], whole[:, :5])
        assert not torch.allclose(changed[:, 5:], whole[:, 5:])
        seen, cache = [], None
        for a, b in ((0, 4), (4, 5), (5, 6), (6, 9)):
            hidden, cache = denoiser.extend(ids[:, a:b], cache)
            seen.append(hidden)
        torch.testing.assert_close(torch.cat(seen, 1), whole, atol=1e-5, rtol=1e-5)


def test_unsupported_settings_are_refused() -> None:
    batch = after(2, torch.zeros(1, 2, dtype=torch.long))
    for call, message in (
        (
            lambda: process().bound(CausalTable(V), batch, 1, BoundArgs("trajectory")),
            "the likelihood of process=ar is exact, in one forward",
        ),
        (
            lambda: process().sample(CausalTable(V), batch, SampleArgs(num_steps=9)),
            "num_steps=9: process=ar draws token by",
        ),
        (lambda: process().sample(CausalTable(V), batch, SampleArgs(sampler="cached")), "is for masked processes"),
        (
            lambda: process().sample(CausalTable(V), batch, SampleArgs(sampler="sde")),
            "is for process=score, not process",
        ),
    ):
        with pytest.raises(UserError, match=message):
            call()
    for settings, message in (
        ({"time_conditioning": "layerwise"}, "process=ar has no time"),
        ({"warm_start": 0.1}, "warm_start is for masked processes"),
        ({"packing": True}, "packing=true is for masked processes"),
    ):
        with pytest.raises(UserError, match=message):
            AutoregressiveArgs().check_training(
                **{"time_conditioning": "none", "warm_start": 0, "packing": False, "fused_loss": False, **settings},
                time_sampling="uniform",
            )
    assert text_batch(batch.input_ids).input_ids.shape == (1, 3)
