"""Shared fixtures and helpers: denoisers with known outputs, toy texts and pairs, tiny training runs, script calls."""

import fcntl
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test waits for a network

import pytest  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers.tokenization_utils_base import PreTrainedTokenizerBase  # noqa: E402

import main  # noqa: E402
from data.batch import Batch  # noqa: E402
from data.tokenizers import train_wordpiece  # noqa: E402
from tests.recipe_sandbox import make_sandbox, recorder  # noqa: E402
from utils.command_line import run_script  # noqa: E402

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
torch.set_num_threads(1)


# ---- slow tests, which tests/run.sh fast leaves out ------------------------------------------------------------------

MOST_SECONDS = 15
"""Processor time above which a test must be marked slow. On an idle machine, mark tests above about one second:
processor time differs several times between machines, so a test near the limit would fail on some of them."""


@pytest.fixture(scope="session")
def slow_setup() -> None:
    """Mark as slow each test that requests this fixture, directly or through one that trains or starts programs."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that depend on `slow_setup`. Files with slow tests go first, so that all processes end together."""
    for item in items:
        if "slow_setup" in item.fixturenames:
            item.add_marker(pytest.mark.slow)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def timed(item: pytest.Item) -> Iterator[None]:
    """Fail an unmarked test that takes more than MOST_SECONDS. Processor time hardly depends on the machine's load."""
    before = os.times()
    result = yield
    elapsed = sum(os.times()[:4]) - sum(before[:4])
    if elapsed > MOST_SECONDS and not item.get_closest_marker("slow"):
        pytest.fail(
            f"{elapsed:.1f} s of processor time, {MOST_SECONDS} at most: mark it slow, or its fixture by slow_setup",
            False,
        )
    return result


pytest_runtest_setup = pytest.hookimpl(wrapper=True)(timed)
pytest_runtest_call = pytest.hookimpl(wrapper=True)(timed)


class TableDenoiser:
    """Fixed p(x0 | xt), an arbitrary function of the state: wrong on purpose, so that no identity holds by chance."""

    time_conditioned = False

    def __init__(self, vocab_size: int, *, seed: int = 0, scale: float = 1.5) -> None:
        self.vocab_size, self.seed, self.scale = vocab_size, seed, scale

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits as the hidden state: at every position, a deterministic scramble of the attended sentence."""
        position = torch.arange(1, xt.shape[1] + 1, dtype=torch.float64)
        view = ((xt + 1) * attention_mask * position).sum(1, keepdim=True) + position * 0.37 + self.seed
        token = torch.arange(self.vocab_size, dtype=torch.float64)
        return self.scale * torch.sin(view[..., None] * (1.3 + token) + token)

    def decode(self, hidden: Tensor) -> Tensor:
        """Return the logits unchanged."""
        return hidden


class OracleDenoiser:
    """Denoiser with all mass on x0, up to exp(-gap)."""

    time_conditioned = False

    def __init__(self, x0: Tensor, vocab_size: int, gap: float = 1e4) -> None:
        self.logits = gap * torch.nn.functional.one_hot(x0, vocab_size).double()

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the same logits for every xt."""
        return self.logits

    def decode(self, hidden: Tensor) -> Tensor:
        """Return the logits unchanged."""
        return hidden


def text_batch(input_ids: Tensor) -> Batch:
    """Return a batch in which every token is attended to and is a target."""
    everything = torch.ones_like(input_ids, dtype=torch.bool)
    return Batch(input_ids, everything, everything)


def all_sentences(tokens: list[int], length: int) -> Tensor:
    """Return every sentence of the given length over the given tokens, int64 [len(tokens) ** length, length]."""
    return torch.tensor(list(itertools.product(tokens, repeat=length)))


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    """Start every test from the same global seed."""
    torch.manual_seed(0)
    yield


SUBJECTS = ["the cat", "a dog", "my bird", "the old man", "every small child", "no good friend of mine"]
VERBS = ["sees", "likes", "follows", "never finds", "often talks to"]
OBJECTS = [
    "the house",
    "a tree",
    "the red ball",
    "his sister",
    "some water",
    "the end of the long road",
    "it",
    "a fish",
]
SENTENCES = [f"{s} {v} {o}." for s, v, o in itertools.product(SUBJECTS, VERBS, OBJECTS)]
"""240 distinct sentences with a grammar that a small network learns in seconds."""


NOUNS = ["cat", "dog", "bird", "man", "child", "friend", "house", "tree", "ball", "fish"]
PARTICIPLES = {"see": "seen", "like": "liked", "follow": "followed", "find": "found", "take": "taken"}
PAIRS = [
    {"src": f"{a} {verb} {b}", "trg": f"the {b} is {participle} by the {a}." + (" always!" if a == "cat" else "")}
    for a, (verb, participle), b in itertools.product(NOUNS, PARTICIPLES.items(), NOUNS)
    if a != b
]
"""450 pairs whose target follows from the source, and ends earlier or later."""


def write_jsonl(file: Path, records: list[dict]) -> Path:
    """Write one JSON object a line; return the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


@pytest.fixture
def pairs_folder(tmp_path: Path) -> Path:
    """Return a folder of pairs without a dataset card: every tenth pair for validation, the next one for testing."""
    for name, keep in (
        ("train", lambda i: i % 10 > 1),
        ("valid", lambda i: i % 10 == 0),
        ("test", lambda i: i % 10 == 1),
    ):
        write_jsonl(tmp_path / "pairs" / f"{name}.jsonl", [pair for i, pair in enumerate(PAIRS) if keep(i)])
    return tmp_path / "pairs"


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """Return a WordPiece tokenizer trained on the sentences above."""
    return train_wordpiece(SENTENCES, 300)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Return a text file of the sentences above."""
    file = tmp_path / "corpus.txt"
    file.write_text("\n".join(SENTENCES) + "\n")
    return file


def call(main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run a script's main with command-line arguments, as `python script.py` would; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["script.py", *map(str, arguments)])
    try:
        run_script(main)
    except SystemExit as stop:
        return stop.code
    return 0


def errors_of(stderr: str) -> list[str]:
    """Return the lines of stderr without the name of the training data, which is printed once a process."""
    return [line for line in stderr.splitlines() if not line.startswith("reading train: ")]


TINY = [
    "--tokenizer", "wordpiece", "--vocab_size", "300", "--model_name_or_path", "modernbert-small",
    "--from_scratch", "true", "--num_steps", "64", "--threads", "1", "--precision", "fp32", "--eval_step_size", "8",
    "--config_overrides", "hidden_size=64,intermediate_size=128,num_hidden_layers=2,num_attention_heads=2",
    "--batch_size", "32", "--learning_rate", "3e-3", "--tracker", "none",
]  # fmt: skip


def once(tmp_path_factory: pytest.TempPathFactory, name: str, fill: Callable[[Path], None]) -> Path:
    """Return a folder that `fill` fills once a session, also with several processes of pytest-xdist."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, filled = shared / name, shared / f"{name}.filled"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not filled.exists():  # the first process, or the next one after a failure
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            fill(folder)
            filled.touch()
    return folder


def train_tiny(folder: Path, data: Path, *flags: object) -> None:
    """Train a very small network to a low loss; the output folder is folder/run."""
    base = [*TINY, "--train_data", data, "--output_dir", folder / "run", "--cache_dir", folder / "cache"]
    base += ["--optimizer", "muon", "--warm_start", 0.2, "--loss_weighting", "uniform"]
    with pytest.MonkeyPatch.context() as patch:
        assert call(main.main, patch, *base, *flags) == 0


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, slow_setup: None) -> Path:
    """Return the output folder of a real, very small training run on the sentences above."""

    def fill(folder: Path) -> None:
        (folder / "corpus.txt").write_text("\n".join(SENTENCES) + "\n")
        flags = ["--max_steps", 500, "--valid_fraction", 0.1, "--ema_decay", 0.9]
        train_tiny(folder, folder / "corpus.txt", *flags)

    return once(tmp_path_factory, "trained", fill) / "run"


@pytest.fixture(scope="session")
def trained_pairs(tmp_path_factory: pytest.TempPathFactory, slow_setup: None) -> Path:
    """Return the output folder of a real, very small training run on eight tenths of the pairs above."""

    def fill(folder: Path) -> None:
        write_jsonl(folder / "pairs" / "train.jsonl", [pair for i, pair in enumerate(PAIRS) if i % 10 > 1])
        write_jsonl(folder / "pairs" / "valid.jsonl", [pair for i, pair in enumerate(PAIRS) if i % 10 == 0])
        train_tiny(folder, folder / "pairs", "--max_steps", 700, "--eval_steps", 350, "--max_length", 40)

    return once(tmp_path_factory, "trained_pairs", fill) / "run"


# ---- scripts ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def sandbox(tmp_path: Path) -> Path:
    """Return a folder with `the repo` of scripts, without an environment, and `the caller`'s files."""
    return make_sandbox(tmp_path)


@pytest.fixture
def recorded(sandbox: Path) -> Callable[..., list[list[str]]]:
    """Return a function that runs a script with stubs as the environment; it returns their calls: name, arguments."""
    return recorder(sandbox)
