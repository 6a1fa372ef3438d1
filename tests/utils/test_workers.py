"""workers.py: helper processes end with their parent and start no threads."""

import os
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from utils.workers import cores, disable_tokenizer_threads


def test_cores_are_those_this_process_may_use() -> None:
    assert 1 <= cores() <= os.cpu_count()


def test_a_helper_tokenizes_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    disable_tokenizer_threads()
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


PARENT = """
import os, time
from utils.workers import die_with_parent

helper = os.fork()
if not helper:
    die_with_parent()
    os.write(1, b"ready")
    time.sleep(60)
os.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no PR_SET_PDEATHSIG")
def test_a_helper_ends_when_its_parent_is_killed() -> None:
    """The helper holds its output pipe open, so the end of the pipe shows that the helper has ended."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE)
    assert parent.stdout.read(5) == b"ready"
    began = time.monotonic()
    parent.kill()
    assert parent.stdout.read() == b"" and time.monotonic() - began < 30
    parent.wait()
    parent.stdout.close()
