"""run*.sh and runs/: scripts that bash can read, and that say how they are called when they are called wrongly."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted([*ROOT.glob("*.sh"), *ROOT.glob("runs/*.sh"), *ROOT.glob("tests/*.sh")])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.name)
def test_bash_can_read_it(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("name", ["equal_time", "family", "lm1b_mdlm", "lm1b_small", "score", "text8", "zero_shot"])
def test_a_recipe_without_its_words_says_how_it_is_called(name: str) -> None:
    done = subprocess.run(["bash", ROOT / "runs" / f"{name}.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and f"bash runs/{name}.sh " in done.stderr and not done.stdout
