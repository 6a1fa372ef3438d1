"""DiffusionBERT.ipynb: every cell runs on a CPU, from a folder without results, and the file holds no outputs."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, SENTENCES

NOTEBOOK = "DiffusionBERT.ipynb"


def cells() -> list[dict]:
    return json.loads((ROOT / NOTEBOOK).read_text())["cells"]


def test_the_notebook_has_six_steps_and_no_outputs() -> None:
    titles = [line for cell in cells() for line in cell["source"] if line.startswith("## ")]
    names = ["Clone and install", "Data", "Word frequencies", "Train", "Generate", "Look"]
    assert [title.strip() for title in titles] == [f"## {i}. {name}" for i, name in enumerate(names, 1)]
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_the_large_version_writes_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the cell of the data with a stand-in for the hub, which has more sentences than are taken."""
    (cell,) = ["".join(c["source"]) for c in cells() if "load_hub" in "".join(c["source"])]
    rows = ({"text": f"a  sentence number {i} ."} for i in range(60_000))
    monkeypatch.setattr("data.sources.training_source", lambda name: name)
    monkeypatch.setattr("data.corpus.load_hub", lambda source, streaming: rows if streaming else None)
    exec(compile(cell, NOTEBOOK, "exec"), {"OUT": tmp_path, "SMALL": False})
    train, valid = ((tmp_path / "text" / f"{name}.txt").read_text().splitlines() for name in ("train", "valid"))
    assert len(train) == 50_000 and valid[0] == "a sentence number 50000 ." and len(valid) == 1000


def test_the_small_version_makes_the_embedded_corpus(tmp_path: Path) -> None:
    (cell,) = ["".join(c["source"]) for c in cells() if "data.demo_corpus" in "".join(c["source"])]
    calls = []

    def run(*arguments: object) -> None:
        calls.append(arguments)
        (tmp_path / "text").mkdir()
        (tmp_path / "text" / "valid.txt").write_text("a sentence.\n")

    exec(compile(cell, NOTEBOOK, "exec"), {"OUT": tmp_path, "SMALL": True, "run": run})
    assert calls == [("-m", "data.demo_corpus", "--output", tmp_path / "text")]


@pytest.mark.slow
def test_every_cell_runs_on_a_cpu(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    from nbclient import NotebookClient

    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    for name in filter(None, names.split("\0")):
        if not name.startswith(("tests/", "docs/", "benchmarks/")) and (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tmp_path / name)
    for name, start in (("train", 0), ("valid", 200)):  # so that the docstring corpus is not made, which takes a minute
        (tmp_path / "out" / "notebook_small" / "text").mkdir(parents=True, exist_ok=True)
        lines = "\n".join(SENTENCES[start : start + 200]) + "\n"
        (tmp_path / "out" / "notebook_small" / "text" / f"{name}.txt").write_text(lines)
    notebook = nbformat.read(tmp_path / NOTEBOOK, 4)
    for cell in notebook.cells:  # the only changes: a shorter training, on one thread beside the other tests
        cell.source = cell.source.replace("MINUTES = 4 if SMALL", "MINUTES = 0.05 if SMALL")
        cell.source = cell.source.replace("--threads {min(4, os.cpu_count())}", "--threads 1")
    resources = {"metadata": {"path": str(tmp_path)}}
    client = NotebookClient(notebook, timeout=900, iopub_timeout=60, kernel_name="python3", resources=resources)
    client.execute()
    outputs = {index: cell.get("outputs", []) for index, cell in enumerate(notebook.cells)}
    pictures = [o for found in outputs.values() for o in found if "image/png" in o.get("data", {})]
    assert len(pictures) == 2  # the spindle and the curve
    text = "".join(o.get("text", "") for found in outputs.values() for o in found if o.get("name") == "stdout")
    assert "token types seen; written to out/notebook_small/word_freq.json" in text
    assert "  samples     after step" in text  # of the last evaluation; a slow machine has no earlier one
    assert text.count("-log p is at most ") == 2
    assert not [o for found in outputs.values() for o in found if o.get("name") == "stderr"]
    (film,) = [o["data"]["text/html"] for o in outputs[len(notebook.cells) - 1]]
    assert film.startswith('<iframe srcdoc="&lt;!') and (tmp_path / "out" / "notebook_small" / "film.html").exists()
