"""messages.py: notes and warnings on stderr; a full disk ends neither the program nor its silence."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from utils.messages import note


@pytest.mark.slow
def test_stdout_on_a_full_disk_costs_one_warning(capfd: pytest.CaptureFixture) -> None:
    words = "from utils.messages import speak\nfor n in range(3): speak('step')"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", words], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0 and done.stderr.count("\n") == 1 and "stdout cannot be written (No space" in done.stderr


def test_a_note_is_said_on_stderr(capsys) -> None:
    note("so")
    assert capsys.readouterr() == ("", "note: so\n")
