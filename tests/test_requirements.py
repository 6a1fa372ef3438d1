"""requirements*.txt and pyproject.toml: the same pins, and no installation as a package."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.conftest import ROOT


def test_dependency_groups_equal_the_requirements_files() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    files = {"run": "requirements.txt", "dev": "requirements-dev.txt", "optional": "requirements-optional.txt"}
    files["pretrained"] = "requirements-pretrained.txt"
    for group, file in files.items():
        lines = [line.split("#")[0].split(" --hash=")[0].strip() for line in (ROOT / file).read_text().splitlines()]
        pinned = [line for line in lines if line]
        assert [entry for entry in groups[group] if isinstance(entry, str)] == pinned
    assert groups["dev"][0] == {"include-group": "run"}


def test_pip_install_fails_with_one_explanation(tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    assert "project" not in tomllib.loads((tmp_path / "pyproject.toml").read_text())
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if "bash run.sh demo" in line]
    assert done.returncode and len(lines) == 1 and "it is not a package" in lines[0] and "Traceback" not in done.stderr
