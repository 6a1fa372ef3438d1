"""readouts.py: scores are those of the frozen network computed by hand, whatever else is in the batch."""

import pytest
import torch
from torch import Generator
from transformers import BertConfig, BertForMaskedLM
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from models.factory import make_denoiser
from modular_prompts.options import PoolShape, Stage
from modular_prompts.pool import PromptPool
from modular_prompts.readouts import SCALE, Cosine, Readout, Verbaliser, fitted, placeholders
from modular_prompts.tasks import Card, Row
from modular_prompts.tuning import prompt_of, tune_prompt, tune_router
from utils.errors import UserError

CARD = Card("my task", "pair", (), "the house of a friend?")
LONG = "the old man often talks to every small child . " * 30
ROWS = [
    Row(("the cat sees a tree.", "a dog likes the house."), ("tree", "the red ball", "dog"), 0),
    Row(("no good friend of mine sees a dog.", "it."), ("small child", "cat"), 1),
    Row((LONG, "the cat."), ("tree", "the cat"), 0),
]
P = 3
ZERO = torch.zeros(1, 2, P, 32)


def readout(kind: type, tokenizer: PreTrainedTokenizerBase, prompt_length: int = P, max_length: int = 40) -> Readout:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    network = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), initializer_range=0.5, **shape))
    return kind(make_denoiser(network, "none", 64), tokenizer, prompt_length, max_length)


def test_the_verbalisers_score_is_the_mean_log_probability_at_the_masks(tokenizer: PreTrainedTokenizerBase) -> None:
    reader = readout(Verbaliser, tokenizer)
    scores = reader.examples((CARD, ROWS)).scores(torch.tensor([0]), ZERO)
    for j, option in enumerate(ROWS[0].options):
        ids = tokenizer(option, add_special_tokens=False)["input_ids"]
        answer = tokenizer("answer:", add_special_tokens=False)["input_ids"]
        tail = [*answer, *[tokenizer.mask_token_id] * len(ids), tokenizer.sep_token_id]
        row = reader.written(reader.pieces([(CARD, ROWS[:1])])[0], tail)
        log_p = reader.denoiser.network(input_ids=row[None]).logits[0].log_softmax(-1)
        expected = sum(log_p[len(row) - 1 - len(ids) + i, token] for i, token in enumerate(ids)) / len(ids)
        assert scores[0, j].item() == pytest.approx(expected.item(), abs=1e-4)


def test_the_cosine_is_that_of_the_means(tokenizer: PreTrainedTokenizerBase) -> None:
    reader = readout(Cosine, tokenizer)
    scores = reader.examples((CARD, ROWS)).scores(torch.tensor([0]), ZERO)
    body = reader.denoiser.network.bert
    row = body(input_ids=reader.written(reader.pieces([(CARD, ROWS)])[0])[None]).last_hidden_state[0]
    pooled = torch.cat([row[:1], row[1 + P :]]).mean(0)
    for j, option in enumerate(ROWS[0].options):
        ids = tokenizer(option, return_tensors="pt")["input_ids"]  # [CLS] option [SEP]
        vector = body(input_ids=ids).last_hidden_state[0].mean(0)
        expected = SCALE * torch.nn.functional.cosine_similarity(pooled, vector, dim=0)
        assert scores[0, j].item() == pytest.approx(expected.item(), abs=1e-3)


@pytest.mark.parametrize("kind", [Verbaliser, Cosine])
def test_neither_padding_nor_other_rows_and_tasks_change_a_score(kind: type, tokenizer) -> None:
    examples = readout(kind, tokenizer).examples((CARD, ROWS))
    prompts = torch.randn(3, 2, P, 32)
    together = examples.scores(torch.tensor([2, 0, 1]), prompts)
    for place, row in enumerate((2, 0, 1)):
        alone = examples.scores(torch.tensor([row]), prompts[place : place + 1])
        assert torch.allclose(together[place], alone[0], atol=1e-4)
        missing = len(ROWS[row].options)
        assert together[place, missing:].eq(-torch.inf).all() and together[place, :missing].isfinite().all()


@pytest.mark.parametrize("kind", [Verbaliser, Cosine])
def test_the_order_of_options_does_not_matter(kind: type, tokenizer: PreTrainedTokenizerBase) -> None:
    reader, order = readout(kind, tokenizer), [2, 0, 1]
    moved = Row(ROWS[0].texts, tuple(ROWS[0].options[i] for i in order), 1)
    first, second = (reader.examples((CARD, [row])).scores(torch.tensor([0]), ZERO)[0] for row in (ROWS[0], moved))
    assert torch.allclose(first[order], second, atol=1e-5)


@pytest.mark.parametrize("kind", [Verbaliser, Cosine])
def test_tuning_leaves_the_network_as_it_was(kind: type, tokenizer: PreTrainedTokenizerBase) -> None:
    reader = readout(kind, tokenizer)
    before = {name: value.clone() for name, value in reader.denoiser.state_dict().items()}
    examples, generator = reader.examples((CARD, ROWS)), Generator().manual_seed(0)
    pool = PromptPool(PoolShape(4, P, 32, 2), generator)
    rows, everything = torch.arange(3), torch.zeros(1, 4)
    losses = [examples.loss(prompt_of(pool, everything), rows).item()]
    logits = tune_router(pool, examples, Stage(20, 0.3), generator)
    losses.append(examples.loss(prompt_of(pool, logits), rows).item())
    prompt = tune_prompt(prompt_of(pool, logits), examples, Stage(20, 1e-2), generator)
    losses.append(examples.loss(prompt, rows).item())
    assert losses[0] > losses[1] > losses[2]
    assert all(torch.equal(value, before[name]) for name, value in reader.denoiser.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in reader.denoiser.parameters())


def test_a_long_text_is_cut_and_the_question_stays(tokenizer: PreTrainedTokenizerBase) -> None:
    reader = readout(Cosine, tokenizer)
    ids, question = (
        reader.written(reader.pieces([(CARD, ROWS)])[2]).tolist(),
        reader.tokens([CARD.question, "the cat."]),
    )
    assert len(ids) == 40 and ids[1 + P : 1 + P + len(question[0])] == question[0]
    assert ids[1 : 1 + P] == reader.placeholders and ids[-1 - len(question[1]) : -1] == question[1]


def test_what_cannot_be_written_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(
        UserError, match="a prompt of 30 tokens, the question and .* leave no room for a text in max_length=40"
    ):
        readout(Verbaliser, tokenizer, 30).examples((CARD, ROWS))
    with pytest.raises(UserError, match="my task: the tokenizer has no token for the option"):
        readout(Cosine, tokenizer).examples((CARD, [Row(("a",), ("\u200b", "cat"), 0)]))
    with pytest.raises(UserError, match="a task of type extraction has no options, which this read-out needs"):
        readout(Cosine, tokenizer).examples((Card("who", "extraction", ()), [Row(("a", "b"), (), -1, "b")]))
    with pytest.raises(UserError, match="x: options such as 'cat, CAT' have the same tokens; use a network"):
        readout(Verbaliser, tokenizer).examples(
            (Card("x", "pair", ("cat", "CAT")), [Row(("a", "b"), ("cat", "CAT"), 0)])
        )
    with pytest.raises(UserError, match="max_length=1000 must be at most 512, the network's positions"):
        readout(Cosine, tokenizer, max_length=1000)


@pytest.mark.parametrize(
    ("lengths", "room", "expected"),
    [((9, 2), 6, (4, 2)), ((9, 9), 6, (3, 3)), ((2, 3), 9, (2, 3)), ((5,), 2, (2,)), ((9, 8), 9, (5, 4))],
)
def test_the_longest_text_is_cut_first(lengths: tuple, room: int, expected: tuple) -> None:
    found = [len(text) for text in fitted([[7] * n for n in lengths], room)]
    assert sum(found) == min(room, sum(lengths)) and sorted(found) == sorted(expected)


@pytest.mark.parametrize("kind", [Verbaliser, Cosine])
def test_a_prompt_without_tokens_has_no_placeholders(kind: type, tokenizer: PreTrainedTokenizerBase) -> None:
    reader = readout(kind, tokenizer)
    assert reader.fitting(torch.zeros(1, 2, P, 32)) is reader
    fitted, alone = reader.fitting(reader.nothing), reader.plain()
    scores = [each.examples((CARD, ROWS)).scores(torch.arange(3), reader.nothing) for each in (fitted, alone, reader)]
    assert torch.equal(scores[0], scores[1]) and not torch.allclose(scores[0], scores[2])


def test_placeholders_are_unused_tokens_or_else_the_first_token(tokenizer: PreTrainedTokenizerBase) -> None:
    assert placeholders(tokenizer, 3) == [tokenizer.cls_token_id] * 3

    class Bert:
        cls_token_id = 1

        def get_vocab(self) -> dict[str, int]:
            return {"[unused10]": 12, "[unused2]": 4, "[unused1]": 3, "[unused]": 9, "a": 20}

    assert placeholders(Bert(), 3) == [3, 4, 12] and placeholders(Bert(), 4) == [1] * 4


def test_a_few_rows_may_have_options_of_equal_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    card, rows = Card("x", "multiple-choice", ()), [Row(("a",), ("cat", "dog"), 0)] * 20
    readout(Cosine, tokenizer).examples((card, [*rows, Row(("a",), ("it", "IT"), 1)]))


def test_options_after_a_word_begin_with_a_space_where_words_have_spaces(tokenizer: PreTrainedTokenizerBase) -> None:
    """Byte-level tokenizers have other tokens for a word after a space, and those are what a row can hold."""
    reader, seen = readout(Verbaliser, tokenizer), []
    encode = reader.tokens
    reader.tokens = lambda texts: seen.extend(texts) or encode(texts)
    english, chinese = Card("x", "pair", ("cat", "dog")), Card("y", "pair", ("tree", "ball"), "", "zh-CN")
    reader.option_tokens([(english, [Row(("a", "b"), english.labels, 0)])], in_text=True)
    reader.option_tokens([(chinese, [Row(("a", "b"), chinese.labels, 0)])], in_text=True)
    reader.option_tokens([(english, [Row(("a", "b"), english.labels, 0)])])
    assert seen == [" cat", " dog", "ball", "tree", "cat", "dog"]
