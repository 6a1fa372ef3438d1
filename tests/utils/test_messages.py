"""messages.py: notes go to stderr; stdout on a full disk costs one warning and does not end the program."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from utils.messages import note


@pytest.mark.slow
def test_stdout_on_a_full_disk_costs_one_warning(capfd: pytest.CaptureFixture) -> None:
    program = "from utils.messages import speak\nfor n in range(3): speak('step')"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0 and done.stderr.count("\n") == 1 and "stdout cannot be written (No space" in done.stderr


def test_a_note_is_printed_to_stderr(capsys) -> None:
    note("so")
    assert capsys.readouterr() == ("", "note: so\n")
