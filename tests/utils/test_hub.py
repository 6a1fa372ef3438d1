"""hub.py: an unreachable hub is a one-line error within seconds, and its cache is still read."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from transformers import BertConfig, BertForMaskedLM

from tests.conftest import ROOT, SENTENCES
from tests.mini_hub import MiniHub, running
from utils import hub


@pytest.fixture
def closing_hub() -> Iterator[tuple[str, list[int]]]:
    """Yield the address of a hub that closes every connection at once, and a list with one entry per connection."""
    calls: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def close_all() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:
                    return
                calls.append(1)

        threading.Thread(target=close_all, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", calls


@pytest.mark.parametrize(
    ("script", "flags", "names"),
    [
        ("word_freq.py", ["--tokenizer", "no/such-tokenizer"], ["'no/such-tokenizer'", "Offline: --tokenizer FOLDER"]),
        ("main.py", ["--tokenizer", "wordpiece"], ["dvruette/lm1b", "Offline: give a .txt"]),
    ],
)
@pytest.mark.slow
def test_an_unreachable_hub_is_contacted_once_and_reported_in_one_line(
    tmp_path: Path, script: str, flags: list[str], names: list[str], closing_hub: tuple[str, list[int]]
) -> None:
    """By default the libraries retry up to 18 times over two minutes, with one line each."""
    address, calls = closing_hub
    output = ["--output", tmp_path / "a.json"] if script == "word_freq.py" else ["--output_dir", tmp_path / "run"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address, "HF_HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, ROOT / script, "--train_data", "lm1b", *flags, *output],
        env=environment, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and len(calls) == 1
    assert all(name in result.stderr for name in [f"{address} does not answer", *names])
    assert not any(path.exists() for path in (tmp_path / "a.json", tmp_path / "run"))


def test_an_offline_hub_is_reported_with_its_variable() -> None:
    assert hub.check_hub() == "HF_HUB_OFFLINE is set"


def test_first_line_is_that_of_an_error_or_else_its_class_name() -> None:
    assert hub.first_line(ValueError("bad\nvery bad")) == "bad" and hub.first_line(ValueError()) == "ValueError"
    assert hub.first_line(ValueError("in x:\n  bad\nvery")) == "in x: bad"


def test_passwords_in_addresses_are_hidden(monkeypatch) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://me:secret@127.0.0.1:9")
    hub.check_hub.cache_clear()
    try:
        message = hub.check_hub()
    finally:
        hub.check_hub.cache_clear()
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert message.startswith("http://***@127.0.0.1:9 does not answer") and "secret" not in message
    error = ValueError("for url: https://me:s3cr3t@hub.example/api (see https://hub.example/@me)")
    assert hub.first_line(error) == "for url: https://***@hub.example/api (see https://hub.example/@me)"


@pytest.fixture
def mini(tmp_path: Path, tokenizer) -> MiniHub:
    """Return a hub with a very small LM1B and bert-base-uncased, under the names that `bash run.sh` downloads."""
    network, data = tmp_path / "hub" / "bert", tmp_path / "hub" / "lm1b"
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(network)
    tokenizer.save_pretrained(network)
    (data / "data").mkdir(parents=True)
    for i in range(2):
        rows = pyarrow.table({"text": SENTENCES[i::2] * 20})
        pyarrow.parquet.write_table(rows, data / "data" / f"train-{i:05d}-of-00002.parquet", compression="none")
    pyarrow.parquet.write_table(pyarrow.table({"text": SENTENCES[:9]}), data / "data" / "test-00000-of-00001.parquet")
    return MiniHub({"bert-base-uncased": network, "datasets/dvruette/lm1b": data})


def fine_tune(tmp_path: Path, address: str, name: str, *flags: object) -> subprocess.CompletedProcess:
    """Run the training of run.sh without arguments for two steps."""
    base = ["--train_data", "lm1b", "--model_name_or_path", "bert-base-uncased", "--max_steps", 2, "--num_steps", 16]
    base += ["--eval_step_size", 8, "--batch_size", 8, "--max_length", 32, "--tracker", "none", "--threads", 1]
    base += ["--output_dir", tmp_path / name, "--cache_dir", tmp_path / f"cache-{name}", "--valid_fraction", 0.1]
    settings = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
    return subprocess.run(
        [str(word) for word in [sys.executable, ROOT / "main.py", *base, *flags]],
        env={**os.environ, **settings}, cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.slow
def test_hub_files_are_downloaded_once_and_then_read_from_the_cache(tmp_path: Path, mini: MiniHub) -> None:
    """A download is resumed after broken connections; a file with a wrong checksum is refused and downloaded again."""
    with running(mini) as address:
        for altered, name in (("data/train-00001-of-00002.parquet", "lm1b"), ("model.safetensors", "bert-base")):
            mini.altered = altered
            refused = fine_tune(tmp_path, address, "first")
            assert refused.returncode == 2 and refused.stderr.count("\n") == 1
            assert name in refused.stderr and "has the checksum" in refused.stderr
            assert not (tmp_path / "first").exists()
        mini.altered, mini.cuts = "", 4
        before = mini.sent["model.safetensors"]
        first = fine_tune(tmp_path, address, "first")
        assert first.returncode == 0 and "trained 2 steps" in first.stdout and not first.stderr, first.stderr
        assert mini.cuts == 0 and mini.sent["model.safetensors"] > before + 1
        sent = mini.sent.copy()
        second = fine_tune(tmp_path, address, "second")
        assert second.returncode == 0 and mini.sent == sent
    alone = fine_tune(tmp_path, address, "alone")  # the hub is gone
    assert alone.returncode == 0, alone.stderr


@pytest.mark.slow
def test_streaming_leaves_no_data_on_the_disk(tmp_path: Path, mini: MiniHub) -> None:
    with running(mini) as address:
        done = fine_tune(tmp_path, address, "run", "--streaming", "true", "--shuffle_buffer", 400)
    assert done.returncode == 0 and not done.stderr and "a stream of lm1b" in done.stdout, done.stderr
    assert not list(tmp_path.glob("home/datasets/**/*.arrow")) and not list(
        tmp_path.glob("home/hub/datasets--*/blobs/*")
    )


@pytest.mark.slow
def test_a_hub_that_breaks_every_connection_is_reported(tmp_path: Path, mini: MiniHub) -> None:
    mini.cuts, mini.given = 1000, 0
    with running(mini) as address:
        done = fine_tune(tmp_path, address, "run")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "bert-base-uncased" in done.stderr
    assert not (tmp_path / "run").exists() and 1000 - mini.cuts < 40
