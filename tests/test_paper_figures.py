"""benchmarks/paper_figures.py: every figure of a trained model, and refused checkpoints."""

from pathlib import Path

import pytest

from benchmarks import paper_figures
from tests.conftest import SENTENCES, call, errors_of
from tests.diffusion import test_family
from tests.test_main import train


def draw(monkeypatch: pytest.MonkeyPatch, output: Path, *arguments: object) -> int:
    """Draw a figure as the command line does; return the exit code."""
    return call(paper_figures.main, monkeypatch, *arguments, "--output", output)


def test_every_figure_is_a_picture(monkeypatch: pytest.MonkeyPatch, trained: Path, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(paper_figures, "TEMPERATURES", (0.5, 1.0))
    (tmp_path / "held.txt").write_text("\n".join(SENTENCES[::7]) + "\n")
    figures = {
        "schedule": ["--checkpoint", trained, "--sentence", SENTENCES[5]],
        "decoding": ["--checkpoint", trained],
        "convergence": ["--runs", trained],
        "diversity": ["--checkpoints", trained, "--references", tmp_path / "held.txt", "--samples", 12],
    }
    for name, arguments in figures.items():
        assert draw(monkeypatch, tmp_path / f"{name}.png", name, *arguments) == 0
        assert (tmp_path / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    lines = capsys.readouterr().out.splitlines()
    shown = [line for line in lines if "t = " in line]
    masks = [line.count("[M]") for line in shown]
    assert [line.split("  ")[-2].strip() for line in shown] == ["t = 32", "t = 24", "t = 16", "t = 8", "t = 0"]
    assert masks == sorted(masks, reverse=True) and masks[0] > 3 and masks[-1] == 0
    assert sum("temperature" in line for line in lines) == 2


def test_a_damaged_log_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    (tmp_path / "log.jsonl").write_text('{"kind": "settings"}\n{"kind": "va')
    assert draw(monkeypatch, tmp_path / "f.png", "convergence", "--runs", tmp_path) == 2
    (line,) = errors_of(capsys.readouterr().err)
    assert f"{tmp_path}/log.jsonl:2: no JSON" in line


def test_a_run_and_its_checkpoint_have_the_name_of_the_run() -> None:
    for path in ("out/demo", "out/demo/", "out/demo/checkpoint", "out/demo/checkpoint-last"):
        assert paper_figures.label_of(path) == "demo"


@pytest.mark.parametrize("figure", ["decoding", "diversity"])
def test_a_model_of_pairs_is_refused(
    monkeypatch: pytest.MonkeyPatch, trained_pairs: Path, tmp_path: Path, capsys, figure: str
) -> None:
    (tmp_path / "held.txt").write_text("a b\n")
    given = ["--checkpoints", trained_pairs, "--references", tmp_path / "held.txt"]
    given = given if figure == "diversity" else ["--checkpoint", trained_pairs]
    assert draw(monkeypatch, tmp_path / "f.png", figure, *given) == 2
    (line,) = errors_of(capsys.readouterr().err)
    assert "was trained on pairs" in line and not (tmp_path / "f.png").exists()


def test_the_decoding_of_the_released_posterior_is_refused(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path, capsys
) -> None:
    code, folder = train(monkeypatch, corpus, tmp_path, "--posterior", "released")
    capsys.readouterr()
    assert code == 0 and draw(monkeypatch, tmp_path / "f.png", "decoding", "--checkpoint", folder) == 2
    (line,) = errors_of(capsys.readouterr().err)
    assert "sampler=row-clocks" in line and not (tmp_path / "f.png").exists()


def test_the_decoding_of_a_process_without_masks_is_refused(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path, capsys
) -> None:
    code, folder = test_family.train(monkeypatch, "ar", corpus, tmp_path, "--max_steps", 1)
    capsys.readouterr()
    assert code == 0 and draw(monkeypatch, tmp_path / "f.png", "decoding", "--checkpoint", folder) == 2
    (line,) = errors_of(capsys.readouterr().err)
    assert "sampler=row-clocks" in line and not (tmp_path / "f.png").exists()
