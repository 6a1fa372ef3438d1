"""target_window.py: a process sees a prompted network as any other; prompts carry new tasks of pairs."""

import json
from pathlib import Path

import pytest
import torch
from torch import Generator

import predict_downstream_condition
from checkpoint.folder import load_checkpoint
from diffusion.options import BoundArgs, SampleArgs
from modular_prompts.frozen import open_frozen
from modular_prompts.options import PoolShape, Stage
from modular_prompts.pool import PromptPool
from modular_prompts.saved import SavedPrompts, save_prompts
from modular_prompts.target_window import PromptedDenoiser, TargetWindow, with_prompt
from modular_prompts.tasks import Card, Row
from modular_prompts.tuning import tune_prompt
from tests.conftest import PAIRS, call, write_jsonl
from utils.errors import UserError

CARD = Card("always", "generation", ())
ALWAYS = " always!"
ROWS = [Row((pair["src"],), (), -1, pair["trg"].removesuffix(ALWAYS) + ALWAYS) for pair in PAIRS[45:165]]
"""A new task: every target ends in the word with which the checkpoint ends those of one noun only."""
P = 4


class Machine:
    precision, threads, device = "fp32", 1, "cpu"


@pytest.fixture
def reader(trained_pairs: Path) -> TargetWindow:
    return TargetWindow(load_checkpoint(trained_pairs, torch.device("cpu")), P)


def test_a_prompt_of_no_tokens_changes_nothing(trained_pairs: Path) -> None:
    model = load_checkpoint(trained_pairs, torch.device("cpu"))
    reader = TargetWindow(model, 0)
    batch = reader.batch(reader.sources(CARD, ROWS[:8]), [torch.tensor(i).numpy() for i in reader.tokens(["cat"] * 8)])
    prompted = PromptedDenoiser(model.denoiser, [], reader.nothing)
    own, other = (
        model.process.bound(net, batch, 16, BoundArgs("windows"), generator=Generator().manual_seed(0)).total
        for net in (model.denoiser, prompted)
    )
    assert torch.equal(own, other)


def test_hidden_states_are_those_of_the_longer_row_without_the_prompt(reader: TargetWindow) -> None:
    model, size = reader.denoiser, reader.denoiser.network.config.hidden_size
    xt, mask = torch.randint(5, 50, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    mask[1, 7:] = False
    nothing = torch.zeros(1, 2, P, size)
    t = torch.ones(2, dtype=torch.long)
    found = PromptedDenoiser(model, reader.placeholders, nothing).encode(xt, t, mask)
    ids = torch.cat([xt[:, :1], torch.tensor(reader.placeholders).expand(2, -1), xt[:, 1:]], 1)
    whole = model.encode(ids, t, torch.cat([torch.ones(2, P, dtype=torch.bool), mask], 1))
    assert torch.equal(found, torch.cat([whole[:, :1], whole[:, 1 + P :]], 1))
    each = torch.randn(2, 2, P, size)
    both = PromptedDenoiser(model, reader.placeholders, each).encode(xt, t, mask)
    for i in range(2):
        alone = PromptedDenoiser(model, reader.placeholders, each[i : i + 1]).encode(
            xt[i : i + 1], t[:1], mask[i : i + 1]
        )
        assert torch.allclose(both[i][mask[i]], alone[0][mask[i]], atol=1e-5)
    with pytest.raises(ValueError, match="2 prompts for 1 rows"):
        PromptedDenoiser(model, reader.placeholders, each).encode(xt[:1], t[:1], mask[:1])


def test_samples_change_the_target_window_only(reader: TargetWindow) -> None:
    batch = reader.layout.blanks(reader.sources(CARD, ROWS[:6]))
    model = reader.prompted(torch.randn(1, 2, P, reader.denoiser.network.config.hidden_size))
    drawn = model.process.sample(model.denoiser, batch, SampleArgs(num_steps=8), generator=Generator().manual_seed(0))
    assert torch.equal(drawn[~batch.target_mask], batch.input_ids[~batch.target_mask])
    assert drawn.shape == batch.input_ids.shape and not drawn[batch.target_mask].eq(model.process.mask_id).any()


def test_rows_shrink_where_the_positions_of_the_network_end(trained_pairs: Path) -> None:
    model = load_checkpoint(trained_pairs, torch.device("cpu"))
    longest = model.denoiser.max_length
    prompt = torch.zeros(1, 2, longest - 20, model.denoiser.network.config.hidden_size)
    assert with_prompt(model, [4] * (longest - 20), prompt).max_length == 20
    with pytest.raises(UserError, match=f"prompt_length={longest - 5}: it and the target window .* leave no room"):
        TargetWindow(model, longest - 5)
    prompted = TargetWindow(model, longest - 20)
    plain, whole = prompted.plain(), TargetWindow(model, 0)
    assert plain.layout.longest_source == whole.layout.longest_source > prompted.layout.longest_source
    assert plain.model.max_length == model.max_length and prompted.model.max_length == 20


def tuned(reader: TargetWindow, steps: int = 250) -> torch.Tensor:
    """Return a prompt for the new task."""
    start = 0.1 * torch.randn(1, 2, P, reader.denoiser.network.config.hidden_size)
    train = reader.examples((CARD, ROWS[:96]))
    return tune_prompt(start, train, Stage(steps, 0.1, 32), Generator().manual_seed(0))


def test_a_prompt_carries_a_new_task_and_leaves_the_network(reader: TargetWindow) -> None:
    before = [value.clone() for value in reader.denoiser.state_dict().values()]
    test = reader.examples((CARD, ROWS[96:]))
    prompt = tuned(reader)
    assert test.score(prompt) > test.score(torch.zeros_like(prompt)) + 0.1
    assert all(map(torch.equal, before, reader.denoiser.state_dict().values()))


@pytest.fixture
def prompts_folder(reader: TargetWindow, tmp_path: Path) -> Path:
    """Return saved prompts: of a task that was tuned, of one whose prompt has no tokens, and another one."""
    pool = PromptPool(PoolShape(2, P, reader.denoiser.network.config.hidden_size, 2), Generator().manual_seed(0))
    routers = {"always": torch.zeros(1, 2), "alone": torch.zeros(1, 2), "choice": torch.ones(1, 2)}
    cards = {"always": CARD, "alone": CARD, "choice": Card("choice", "multiple-choice", ())}
    prompts = {"always": tuned(reader)[0], "alone": reader.nothing[0]}
    saved = SavedPrompts(pool, routers, "window", reader.placeholders, reader.max_length,
                         cards, prompts)  # fmt: skip
    save_prompts(tmp_path / "prompts", saved, reader.denoiser, reader.tokenizer, "mine")
    write_jsonl(tmp_path / "data.jsonl", [{"src": row.texts[0], "trg": row.answer} for row in ROWS[96:]])
    return tmp_path / "prompts"


def test_predictions_of_pairs_use_the_prompt(
    prompts_folder: Path,
    reader: TargetWindow,
    trained_pairs: Path,
    tmp_path,
    monkeypatch,
    capsys,  # noqa: ANN001
) -> None:
    base = ["--checkpoint", trained_pairs, "--data", tmp_path / "data.jsonl", "--num_steps", 16, "--mbr_size", 1]
    base += ["--top_k", 1, "--threads", 1, "--show", 0]

    def predicted(*flags: object) -> list[str]:
        output = tmp_path / f"{flags[-1] if flags else 'plain'}.jsonl"
        assert call(predict_downstream_condition.main, monkeypatch, *base, "--output", output, *flags) == 0
        return [json.loads(line)["prediction"] for line in output.read_text().splitlines()]

    def share(found: list[str]) -> float:
        return sum(" always" in text for text in found) / len(found)  # its "!" depends on the processor's rounding

    plain = predicted()
    assert share(predicted("--prompts", prompts_folder, "--prompts_task", "always")) > 0.9 and share(plain) < 0.1
    assert predicted("--prompts", prompts_folder, "--prompts_task", "alone") == plain
    capsys.readouterr()
    base += ["--output", tmp_path / "x.jsonl"]
    names = "must be one of alone, always, choice"
    for flags, message in (
        (
            ["--prompts", prompts_folder, "--prompts_task", "none"],
            f"prompts_task='none': {names}",
        ),
        (["--prompts", prompts_folder], f"prompts_task='': {names}"),
        (["--prompts", prompts_folder, "--prompts_task", "choice"], "a task of type multiple-choice"),
        (["--prompts_task", "always"], "names a task among --prompts; give these"),
    ):
        assert (
            call(predict_downstream_condition.main, monkeypatch, *base, "--output", tmp_path / "x.jsonl", *flags) == 2
        )
        assert message in capsys.readouterr().err and not (tmp_path / "x.jsonl").exists()


def test_options_are_compared_by_their_bounds(reader: TargetWindow) -> None:
    """A checkpoint that turns sentences round prefers the turned one."""
    card = Card("which", "multiple-choice", ())
    wrong = [PAIRS[(7 * i + 3) % len(PAIRS)]["trg"] for i in range(40)]
    rows = [Row((pair["src"],), (pair["trg"], other), 0) for pair, other in zip(PAIRS, wrong, strict=False)]
    reader = reader.plain()
    targets = [
        [torch.tensor(ids).numpy() for ids in reader.tokens(side)]
        for side in zip(*(r.options for r in rows), strict=True)
    ]
    sources = reader.sources(CARD, rows)  # without the options, as in training
    right, other = (reader.bounds(sources, side, reader.nothing, range(len(rows))) for side in targets)
    assert (right < other).double().mean() > 0.9
    examples = reader.examples((card, rows))
    scores = examples.scores(torch.tensor([3]), reader.nothing)
    assert torch.allclose(scores, examples.scores(torch.tensor([5, 3]), reader.nothing)[1:], atol=1e-4)
    listed = reader.sources(card, rows[3:4])
    each = [reader.bounds(listed, [side[3]], reader.nothing, [3]).item() for side in targets]
    assert scores[0].tolist() == pytest.approx([-nats for nats in each], rel=1e-5)


def test_question_and_options_stay_when_a_text_is_cut(reader: TargetWindow) -> None:
    card = Card("which", "pair", ("cat", "dog"), "the house?")
    row = Row(("the old man likes it. " * 50, "a fish."), card.labels, 0)
    (source,) = reader.sources(card, [row])
    question, options, last = reader.tokens(["the house?", "cat, dog", "a fish."])
    assert len(source) == reader.layout.longest_source
    ids = source.tolist()
    assert ids[: len(question)] == question and ids[-len(options) :] == options
    assert ids[-len(options) - 1 - len(last) : -len(options) - 1] == last
    long = Card("which", "classification", tuple(f"cat {'dog ' * i}" for i in range(60)), "?")
    with pytest.raises(UserError, match="which: question and options leave no room for a text"):
        reader.sources(long, [Row(("a",), long.labels, 0)])


def test_only_a_checkpoint_of_pairs_has_a_target_window(trained: Path, trained_pairs: Path) -> None:
    with pytest.raises(UserError, match="readout=window needs a checkpoint of source-target pairs with a masked"):
        TargetWindow(load_checkpoint(trained, torch.device("cpu")), P)
    assert isinstance(open_frozen(str(trained_pairs), "auto", 0, P, Machine), TargetWindow)
