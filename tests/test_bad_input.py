"""Unusable input of any script: exit code 2, one line of error, no traceback, nothing written, within seconds.

A table of malformed texts, checkpoints and flags; then hypothesis, which makes up its own.
"""

import gzip
import itertools
import json
import lzma
import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import compute_elbo
import compute_metric
import main
import predict
import predict_downstream_condition
import word_freq
from data.corpus import Source, read_records
from tests.conftest import SENTENCES, TINY, call, write_jsonl
from utils.errors import UserError

SECONDS = 20
NOISE = bytes(itertools.islice(itertools.cycle(range(255, 1, -3)), 5000))


class Bomb:
    """Object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, out: Path, script: object, flags: list
) -> str:
    """Run a script that must refuse its input; return its error."""
    began, before = time.monotonic(), sorted(out.parent.rglob("*"))
    code = call(script.main, monkeypatch, *flags)
    said = capfd.readouterr().err.strip()
    assert code == 2 and said.startswith("script.py: error: ") and said.count("\n") == 0, said
    assert "Traceback" not in said and len(said) < 2000
    assert time.monotonic() - began < SECONDS
    left = [path for path in out.parent.rglob("*") if path not in before]
    assert not [path for path in left if path.is_file() and "cache" not in path.parts], left
    return said


# ---- texts -----------------------------------------------------------------------------------------------------------

TEXTS: dict[str, bytes] = {
    "noise.txt": NOISE,
    "utf16.txt": "an ordinary sentence.\n".encode("utf-16"),
    "latin1.txt": "caf\xe9\n".encode("latin-1"),
    "nul.txt": b"one\0two\n",
    "long.txt": b"x" * 50_000_000,
    "empty.txt": b"",
    "blank.txt": b"\n \n\t\n",
    "noise.jsonl": NOISE,
    "nul.jsonl": b'{"text": "a\0b"}\n',
    "number.jsonl": b"3\n",
    "list.jsonl": b'["text"]\n',
    "null.jsonl": b"null\n",
    "open.jsonl": b'{"text": "a\n',
    "no_text.jsonl": b'{"words": "a"}\n',
    "number_text.jsonl": b'{"text": 3}\n',
    "deep.jsonl": b"[" * 100_000 + b"\n",
    "deep_object.jsonl": b'{"a":' * 100_000 + b"\n",
    "big_number.jsonl": b'{"text": ' + b"9" * 10_000 + b"}\n",
    "surrogate.jsonl": b'{"text": "\\ud800"}\n',
    "long.jsonl": b'{"text": "' + b"x" * 50_000_000 + b'"}\n',
    "half_pair.jsonl": b'{"src": "a"}\n',
    "empty_target.jsonl": b'{"src": "a", "trg": " "}\n',
    "nan.jsonl": b'{"text": NaN}\n',
    "noise.txt.gz": NOISE,
    "cut.txt.gz": gzip.compress(b"a sentence.\n" * 5000, mtime=0)[:60],
    "bomb.txt.gz": gzip.compress(b"0" * 200_000_000, 9, mtime=0),
    "noise.jsonl.xz": NOISE,
    "cut.jsonl.xz": lzma.compress(b'{"text": "a"}\n' * 5000)[:60],
    "noise.parquet": NOISE,
    "empty.parquet": b"",
    "cut.parquet": b"PAR1" + NOISE,
    "a.pickle": pickle.dumps({"text": "a"}),
    "a.zip": b"PK\3\4" + NOISE,
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write all of them, and some that are not regular files."""
    folder = tmp_path_factory.mktemp("texts")
    for name, content in TEXTS.items():
        (folder / name).write_bytes(content)
    pyarrow.parquet.write_table(pyarrow.table({"words": ["a"]}), folder / "no_text.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), folder / "numbers.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None]}), folder / "null.parquet")
    (folder / "nothing").mkdir()
    (folder / "nowhere.txt").symlink_to(folder / "not-there.txt")
    os.mkfifo(folder / "pipe.txt")
    (folder / "two").mkdir()
    for name in ("train.txt", "valid.txt", "valid.jsonl"):
        (folder / "two" / name).write_text("a sentence.\n")
    (folder / "good.txt").write_text("\n".join(SENTENCES))
    return folder


OTHERS = ["no_text.parquet", "numbers.parquet", "null.parquet", "nothing", "nowhere.txt", "pipe.txt", "missing.txt"]


@pytest.mark.parametrize("name", [*TEXTS, *OTHERS, "two"])
def test_a_text_to_train_on(monkeypatch, capfd, tmp_path: Path, texts: Path, name: str) -> None:
    flags = [*TINY, "--train_data", texts / name, "--output_dir", tmp_path / "run", "--cache_dir", tmp_path / "cache"]
    said = refused(monkeypatch, capfd, tmp_path / "run", main, [*flags, "--max_steps", 1])
    assert name in said


@pytest.mark.parametrize("name", ["noise.txt", "nul.txt", "long.jsonl", "bomb.txt.gz", "cut.jsonl.xz", *OTHERS])
def test_a_text_to_count_or_to_stream(monkeypatch, capfd, tmp_path, texts, trained, name: str) -> None:
    tokenizer = trained / "checkpoint"
    flags = ["--train_data", texts / name, "--tokenizer", tokenizer, "--output", tmp_path / "f.json", "--workers", 2]
    assert name in refused(monkeypatch, capfd, tmp_path / "f.json", word_freq, flags)
    flags = [*TINY, "--train_data", texts / name, "--tokenizer", tokenizer, "--output_dir", tmp_path / "run"]
    flags += ["--vocab_size", 0, "--streaming", "true", "--max_steps", 1, "--cache_dir", tmp_path / "cache"]
    assert name in refused(monkeypatch, capfd, tmp_path / "run", main, flags)


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def write(name: str, content: bytes | str) -> Callable[[Path], None]:
    """Return a function that replaces a file."""
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def described(**changes: object) -> Callable[[Path], None]:
    """Return a function that changes an entry of process.json."""

    def spoil(folder: Path) -> None:
        facts = json.loads((folder / "process.json").read_text())
        for name, value in changes.items():
            (facts["process_args"] if name in facts["process_args"] else facts)[name] = value
        (folder / "process.json").write_text(json.dumps(facts))

    return spoil


def remade(change: Callable[[dict], dict]) -> Callable[[Path], None]:
    """Return a function that damages tensors."""

    def spoil(folder: Path) -> None:
        save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})

    return spoil


def linked(folder: Path) -> None:
    """Replace a file by a link elsewhere."""
    shutil.copy(folder / "tokenizer.json", folder.parent / "elsewhere.json")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to(folder.parent / "elsewhere.json")


def pickled(folder: Path) -> None:
    """Replace the weights by a pickle that would run a program."""
    (folder / "model.safetensors").unlink()
    torch.save(Bomb(folder.parent / "executed"), folder / "pytorch_model.bin")


def disguised(folder: Path) -> None:
    """Write the pickle under the name of the safetensors file."""
    torch.save(Bomb(folder.parent / "executed"), folder / "model.safetensors")


CHECKPOINTS: dict[str, Callable[[Path], None]] = {
    "weights cut": lambda folder: os.truncate(folder / "model.safetensors", 5000),
    "weights empty": write("model.safetensors", b""),
    "weights noise": write("model.safetensors", NOISE),
    "weights huge header": write("model.safetensors", b"\xff" * 8 + b"{}"),
    "weights deep header": write("model.safetensors", (60_000).to_bytes(8, "little") + b"[" * 60_000),
    "weights a pickle": pickled,
    "weights a disguised pickle": disguised,
    "weights gone": lambda folder: (folder / "model.safetensors").unlink(),
    "weights lack one": remade(lambda weights: dict(list(weights.items())[1:])),
    "weights of another shape": remade(lambda weights: {name: w[:1].contiguous() for name, w in weights.items()}),
    "config empty": write("config.json", ""),
    "config list": write("config.json", "[]"),
    "config noise": write("config.json", NOISE),
    "config deep": write("config.json", "[" * 100_000),
    "config unknown": write("config.json", '{"model_type": "no_such"}'),
    "config gone": lambda folder: (folder / "config.json").unlink(),
    "config remote code": write("config.json", '{"model_type": "x", "auto_map": {"AutoConfig": "a.B"}}'),
    "process gone": lambda folder: (folder / "process.json").unlink(),
    "process empty": write("process.json", ""),
    "process null": write("process.json", "null"),
    "process deep": write("process.json", '{"a":' * 100_000),
    "process huge": write("process.json", b" " * 70_000_000),
    "process other": described(process="another"),
    "process format": described(format=99),
    "process steps negative": described(num_steps=-1),
    "process steps huge": described(num_steps=10**15),
    "process steps text": described(num_steps="many"),
    "process steps null": described(num_steps=None),
    "process lambda": described(word_freq_lambda=1e9),
    "process lambda list": described(word_freq_lambda=[1]),
    "process spindle": described(spindle="unheard of"),
    "process extra": described(process_args={"no_such": 1}),
    "process args list": described(process_args=[1]),
    "process length": described(max_length=-3),
    "process length huge": described(max_length=10**12),
    "process histogram": described(length_histogram=[0, -1]),
    "process histogram text": described(length_histogram="abc"),
    "process time": described(time_conditioning="sundial"),
    "process pairs": described(pairs={"prompt": 3, "target_window": "x"}),
    "words gone": lambda folder: (folder / "word_freq.json").unlink(),
    "words noise": write("word_freq.json", NOISE),
    "words list": write("word_freq.json", "[1]"),
    "words negative": write("word_freq.json", '{"the": -1}'),
    "words not a number": write("word_freq.json", '{"the": NaN}'),
    "words infinite": write("word_freq.json", '{"the": Infinity}'),
    "words text": write("word_freq.json", '{"the": "3"}'),
    "words strange": write("word_freq.json", '{"zzzz-not-there": 3}'),
    "words none": write("word_freq.json", "{}"),
    "tokenizer gone": lambda folder: [(folder / n).unlink() for n in ("tokenizer.json", "tokenizer_config.json")],
    "tokenizer empty": write("tokenizer.json", ""),
    "tokenizer list": write("tokenizer.json", "[]"),
    "tokenizer deep": write("tokenizer.json", "[" * 100_000),
    "tokenizer noise": write("tokenizer.json", NOISE),
    "a link out of the folder": linked,
}
USERS = {
    "predict": (predict, ["--num_samples", 1]),
    "score": (compute_elbo, ["--limit", 1]),
}


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("how", CHECKPOINTS)
def test_a_checkpoint(monkeypatch, capfd, tmp_path: Path, texts, trained: Path, how: str, user: str) -> None:
    script, flags = USERS[user]
    folder = tmp_path / "given" / "checkpoint"
    shutil.copytree(trained / "checkpoint", folder)
    CHECKPOINTS[how](folder)
    flags = ["--checkpoint", folder, *flags]
    if user == "score":
        flags += ["--data", texts / "good.txt", "--cache_dir", tmp_path / "cache"]
    said = refused(monkeypatch, capfd, tmp_path / "out", script, flags)
    assert folder.name in said and not (folder.parent / "executed").exists()


def test_a_pickle_beside_good_weights_is_never_opened(monkeypatch, tmp_path: Path, trained: Path, capfd) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(trained / "checkpoint", folder)
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "tokenizer.pkl", "model.pt"):
        torch.save(Bomb(tmp_path / "executed"), folder / name)
    assert call(predict.main, monkeypatch, "--checkpoint", folder, "--num_samples", 2, "--num_steps", 4) == 0
    assert capfd.readouterr().out.count("\n") == 2 and not (tmp_path / "executed").exists()


# ---- flags -----------------------------------------------------------------------------------------------------------

HUGE = 10**18
NUMBERS = {
    main: {
        "--batch_size": (-1, 0, HUGE, "many", 1.5), "--max_length": (-1, 2, HUGE), "--max_tokens": (-5, HUGE),
        "--vocab_size": (-1, 3, HUGE), "--num_steps": (-1, 0, HUGE), "--max_steps": (-1, HUGE), "--seed": (-1, 2**70),
        "--learning_rate": (-1, 0, "nan", "inf", "fast"), "--ema_decay": (-0.1, 1, "nan"), "--threads": (-1, HUGE),
        "--warm_start": (-1, 2, "nan"), "--word_freq_lambda": (-1, "nan", 99), "--valid_fraction": (0, 1, "nan"),
        "--accumulation_steps": (0, -1, HUGE), "--save_every": (-1, "often"), "--keep_last": (0, HUGE),
        "--save_minutes": (0, -1, "nan", "inf"), "--time_limit": (-1, "nan"), "--max_skipped_steps": (0,),
        "--num_workers": (-1, HUGE), "--shuffle_buffer": (0, HUGE), "--max_grad_norm": (-1, "nan"),
        "--weight_decay": (-1, "nan"), "--target_window": (-1, HUGE), "--hybrid_lambda": (-1, "nan"),
        "--strategy": ("tree",), "--resume": ("perhaps",), "--precision": ("fp7",), "--packing": ("maybe",),
        "--no_such_flag": (1,), "--config_overrides": ("hidden_size", "hidden_size=-4", "no_such=1"),
    },
    predict: {
        "--num_samples": (-1, 0, HUGE), "--num_steps": (-1, 0.5, HUGE, "nan"), "--temperature": (0, -1, "nan", "inf"),
        "--top_p": (0, 1.5, "nan"), "--top_k": (-1,), "--length": (-1, HUGE), "--seed": (-1, HUGE * HUGE),
        "--batch_size": (0, -1), "--output": ("a.pickle", "/dev/null/a.txt"), "--device": ("abacus",),
    },
    compute_elbo: {
        "--num_steps": (-1, HUGE), "--limit": (-1,), "--batch_size": (0, HUGE), "--evaluations": (-1, HUGE),
        "--target_se": (-1, 2, "nan"), "--estimator": ("guess",), "--posterior": ("none",), "--seed": (-1, 2**70),
    },
}  # fmt: skip
FLAGS = [(s, flag, value) for s, flags in NUMBERS.items() for flag, values in flags.items() for value in values]


@pytest.mark.parametrize(("script", "flag", "value"), FLAGS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_a_flag(monkeypatch, capfd, tmp_path, texts, trained, script: object, flag: str, value: object) -> None:
    flags = {
        main: [*TINY, "--train_data", texts / "good.txt", "--output_dir", tmp_path / "run", "--max_steps", 1],
        predict: ["--checkpoint", trained / "checkpoint"],
        compute_elbo: ["--checkpoint", trained / "checkpoint", "--data", texts / "good.txt"],
    }[script]
    flags += ["--cache_dir", tmp_path / "cache"] if script is not predict else []
    flags += ["--streaming", "true"] if flag in ("--num_workers", "--shuffle_buffer") else []
    said = refused(monkeypatch, capfd, tmp_path / "run", script, [*flags, flag, value])
    assert flag[2:].split("_")[0] in said


PREDICTIONS = {
    "noise": NOISE, "list": b"[1]\n", "no source": b'{"prediction": "a"}\n', "numbers": b'{"source": 1}\n',
    "deep": b"[" * 100_000, "cut": b'{"source": "a"', "empty": b"", "nul": b'{"source": "\0"}\n',
    "long": b'{"source": "' + b"x" * 50_000_000 + b'"}\n',
}  # fmt: skip


@pytest.mark.parametrize("how", PREDICTIONS)
def test_predictions_to_measure(monkeypatch, capfd, tmp_path: Path, how: str) -> None:
    (tmp_path / "given.jsonl").write_bytes(PREDICTIONS[how])
    said = refused(monkeypatch, capfd, tmp_path / "out", compute_metric, ["--predictions", tmp_path / "given.jsonl"])
    assert "given.jsonl" in said


@pytest.mark.parametrize("name", ["noise.jsonl", "half_pair.jsonl", "long.jsonl", "deep.jsonl", "empty_target.jsonl"])
def test_pairs_to_predict(monkeypatch, capfd, tmp_path: Path, texts: Path, trained_pairs: Path, name: str) -> None:
    flags = ["--checkpoint", trained_pairs, "--data", texts / name, "--output", tmp_path / "out.jsonl"]
    assert name in refused(monkeypatch, capfd, tmp_path / "out.jsonl", predict_downstream_condition, flags)


# ---- made up ---------------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9), st.lists, max_leaves=3
)
lines = st.one_of(
    st.binary(max_size=200),
    st.text().map(lambda text: text.encode("utf-8", "surrogatepass")),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(st.sampled_from(["text", "src", "trg", "x"]), json_values).map(lambda v: json.dumps(v).encode()),
)


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.lists(lines, max_size=6).map(b"\n".join), column=st.sampled_from(["text", "trg"]))
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
@pytest.mark.slow
def test_readers_read_or_refuse(tmp_path: Path, suffix: str, content: bytes, column: str) -> None:
    """Read 2,000 random files: each gives text that can be encoded, from an existing line, or is refused."""
    file = tmp_path / f"a{suffix}"
    file.write_bytes(content)
    try:
        for text, (which, line) in read_records(Source((file,), column=column)):
            assert text.encode() and text == text.strip() and which == 0
            assert 1 <= line <= content.count(b"\n") + 1
    except UserError as error:
        assert str(file) in str(error)


def test_a_source_with_an_empty_side_is_read(tmp_path: Path) -> None:
    """The source of a pair may be empty; it keeps its index."""
    file = write_jsonl(tmp_path / "a.jsonl", [{"src": "", "trg": "b"}, {"src": "c", "trg": "d"}])
    assert [text for text, _ in read_records(Source((file,), column="src"))] == ["", "c"]
