"""hub.py: a hub that does not answer costs seconds and one line, and its cache is still read."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import hub

ROOT = Path(__file__).parent.parent


@pytest.fixture
def hangs_up() -> Iterator[tuple[str, list[int]]]:
    """The address of a hub that takes every call and hangs up at once, and a list that grows by one per call."""
    calls: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:
                    return
                calls.append(1)

        threading.Thread(target=answer, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", calls


@pytest.mark.parametrize(
    ("script", "words", "names"),
    [
        ("word_freq.py", ["--tokenizer", "no/such-tokenizer"], ["'no/such-tokenizer'", "Offline: --tokenizer FOLDER"]),
        ("main.py", ["--tokenizer", "wordpiece"], ["dvruette/lm1b", "Offline: give a .txt"]),
    ],
)
def test_a_hub_that_does_not_answer_is_asked_once_and_reported_in_one_line(
    tmp_path: Path, script: str, words: list[str], names: list[str], hangs_up: tuple[str, list[int]]
) -> None:
    """The real libraries; left alone they ask up to 18 times, over two minutes, with as many lines."""
    address, calls = hangs_up
    output = ["--output", tmp_path / "a.json"] if script == "word_freq.py" else ["--output_dir", tmp_path / "run"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address, "HF_HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, ROOT / script, "--train_data", "lm1b", *words, *output],
        env=environment, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and len(calls) == 1
    assert all(name in result.stderr for name in [f"{address} does not answer", *names])
    assert not any(path.exists() for path in (tmp_path / "a.json", tmp_path / "run"))


def test_offline_by_choice_is_said_so() -> None:
    assert hub.look_for_hub() == "HF_HUB_OFFLINE is set"


def test_the_first_line_of_an_error_or_its_name() -> None:
    assert hub.first_line(ValueError("bad\nvery bad")) == "bad" and hub.first_line(ValueError()) == "ValueError"
    assert hub.first_line(ValueError("in x:\n  bad\nvery")) == "in x: bad"
