"""resume.py: start of a run from its output folder; a resumed run equals an uninterrupted one."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data import sources
from tests.conftest import SENTENCES
from tests.test_main import records, train
from training.arguments import TrainArgs
from training.bookkeeper import Bookkeeper
from training.config import parts
from training.resume import Start, batches_per_process, differences, find_start, note_versions
from training.saved_state import newest_state, states
from training.setup import identities
from utils.errors import UserError
from utils.files import checksums

EVERYTHING = [
    "--max_steps", 12, "--optimizer", "muon", "--ema_decay", 0.9, "--eval_steps", 5, "--warm_start", 0.3,
    "--accumulation_steps", 2, "--batch_size", 8, "--save_every", 4, "--logging_steps", 1, "--warmup_steps", 3,
    "--config_overrides", "hidden_size=32,num_hidden_layers=1,num_attention_heads=2,attention_dropout=0.1",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, slow_setup: None) -> Path:
    """Return the folder of an uninterrupted run with EVERYTHING; its cache is beside it."""
    base = tmp_path_factory.mktemp("whole")
    (base / "corpus.txt").write_text("\n".join(SENTENCES) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        code, folder = train(patch, base / "corpus.txt", base, *EVERYTHING)
    assert code == 0
    return folder


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Request a stop in step number `step` of the next training."""
    real, calls = Bookkeeper.agree, []

    def agree(self, parts, stop_signal):
        calls.append(1)
        return real(self, parts, "SIGTERM" if len(calls) == step else stop_signal)

    monkeypatch.setattr(Bookkeeper, "agree", agree)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of the last state and of the weights of both checkpoints."""
    last = sorted(states(folder))[-1]
    files = [*last.glob("*.safetensors"), *folder.glob("checkpoint*/model.safetensors")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def logged(folder: Path) -> list[dict]:
    """Return the log without times."""
    timed = ("seconds", "tokens_per_second")
    every = records(folder, "train") + records(folder, "valid")
    return [{key: value for key, value in record.items() if key not in timed} for record in every]


@pytest.mark.parametrize("stops", [[1], [4], [5, 1], [3, 2, 6], [12]])
def test_a_resumed_run_equals_an_uninterrupted_one(
    monkeypatch, corpus: Path, tmp_path: Path, capsys, whole: Path, stops: list[int]
) -> None:
    """The stops lie within an epoch and after its end; before, at and after evaluations and saved states."""
    flags = [*EVERYTHING, "--cache_dir", whole.parent / "cache"]
    for stop in stops:
        with monkeypatch.context() as patch:
            stop_after(patch, stop)
            assert train(patch, corpus, tmp_path, *flags)[0] == 0
    step = sum(stops)
    output = capsys.readouterr().out
    assert ("the same command again to resume from there" in output) == (step < 12)
    code, folder = train(monkeypatch, corpus, tmp_path, *flags)
    assert code == 0 and (f"resumed after step {step}" if step < 12 else "this run is done, 12 steps") in (
        capsys.readouterr().out
    )
    assert contents(folder) == contents(whole) and len(contents(folder)) == 5
    assert logged(folder) == logged(whole) and len(records(folder, "settings")) == 1


@pytest.mark.slow
def test_fp16_resumes_with_its_loss_scale(monkeypatch, corpus: Path, tmp_path: Path) -> None:
    flags = ["--precision", "fp16", "--max_steps", 8]
    assert train(monkeypatch, corpus, tmp_path, *flags, name="whole")[0] == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        train(patch, corpus, tmp_path, *flags)
    code, folder = train(monkeypatch, corpus, tmp_path, *flags)
    assert code == 0 and contents(folder) == contents(tmp_path / "whole")
    facts = json.loads((sorted(states(folder))[-1] / "state.json").read_text())
    assert facts["scaler"]["scale"] > 0 and facts["scaler"]["_growth_tracker"] + facts["figures"]["skipped"] <= 8


def test_a_run_stopped_by_the_time_limit_can_be_resumed(monkeypatch, corpus: Path, tmp_path: Path, capsys) -> None:
    assert train(monkeypatch, corpus, tmp_path, "--max_steps", 9, name="whole")[0] == 0
    code, folder = train(monkeypatch, corpus, tmp_path, "--max_steps", 9, "--time_limit", 1e-6)
    assert code == 0 and "the time limit is near: stopped after step 1, and saved" in capsys.readouterr().out
    assert train(monkeypatch, corpus, tmp_path, "--max_steps", 9, "--time_limit", 60)[0] == 0
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_damaged_state_is_reported_and_the_one_before_it_is_resumed(
    monkeypatch, corpus: Path, tmp_path: Path, capsys, whole: Path
) -> None:
    flags = [*EVERYTHING, "--cache_dir", whole.parent / "cache"]
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        _, folder = train(patch, corpus, tmp_path, *flags)
    newest = sorted(states(folder))[-1]
    damaged = bytearray((newest / "optimizer.safetensors").read_bytes())
    damaged[-1] ^= 1
    (newest / "optimizer.safetensors").write_bytes(damaged)
    code, _ = train(monkeypatch, corpus, tmp_path, *flags)
    output = capsys.readouterr().out
    assert code == 0 and "step-000000000009 is passed over: optimizer.safetensors has changed" in output
    assert "resumed after step 8" in output and contents(folder) == contents(whole)


def test_a_lost_cache_is_rebuilt(monkeypatch, corpus: Path, tmp_path: Path) -> None:
    """The run keeps its own vocabulary, even if the cache holds another under the same name."""
    _, whole = train(monkeypatch, corpus, tmp_path, name="whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        train(patch, corpus, tmp_path)
    for file in (tmp_path / "cache").rglob("tokenizer.json"):
        file.write_text("{}")
    for file in (tmp_path / "cache").rglob("tokens.bin"):
        file.unlink()
    code, folder = train(monkeypatch, corpus, tmp_path)
    assert code == 0 and contents(folder) == contents(whole)


def test_a_finished_run_is_not_changed(monkeypatch, corpus: Path, tmp_path: Path, capsys) -> None:
    _, folder = train(monkeypatch, corpus, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    code, _ = train(monkeypatch, corpus, tmp_path)
    output = capsys.readouterr().out
    assert code == 0 and "this run is done, 3 steps; for more of them: --resume true --max_steps N" in output
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


@pytest.mark.slow
def test_a_finished_run_can_be_extended(monkeypatch, corpus: Path, tmp_path: Path, capsys) -> None:
    constant = ["--lr_schedule", "constant", "--warmup_steps", 2, "--eval_steps", 3]
    _, whole = train(monkeypatch, corpus, tmp_path, *constant, "--max_steps", 9, name="whole")
    _, folder = train(monkeypatch, corpus, tmp_path, *constant)
    assert train(monkeypatch, corpus, tmp_path, *constant, "--max_steps", 9)[0] == 2
    assert "other settings (max_steps=3)" in (err := capsys.readouterr().err) and "--resume true continues it" in err
    code, _ = train(monkeypatch, corpus, tmp_path, *constant, "--max_steps", 9, "--resume", "true")
    assert code == 0 and contents(folder) == contents(whole)
    assert train(monkeypatch, corpus, tmp_path, *constant, "--max_steps", 9)[0] == 0  # run.json now has the new length
    assert "this run is done, 9 steps" in capsys.readouterr().out
    assert train(monkeypatch, corpus, tmp_path, *constant, "--max_steps", 5, "--resume", "true")[0] == 2
    assert "this run has taken 9 steps, and would end at 5" in capsys.readouterr().err


@pytest.mark.slow
def test_an_extended_run_does_not_enter_its_first_phases_again(monkeypatch, corpus: Path, tmp_path: Path) -> None:
    def body() -> torch.Tensor:
        weights = load_file(sorted(states(tmp_path / "run"))[-1] / "weights.safetensors")
        return next(value for name, value in weights.items() if name.endswith("layers.0.mlp.Wi.weight"))

    phases = ["--warm_start", 0.5, "--head_first", 0.5, "--logging_steps", 1]
    train(monkeypatch, corpus, tmp_path, *phases, "--max_steps", 4)
    before = body()
    stop_after(monkeypatch, 2)
    code, folder = train(monkeypatch, corpus, tmp_path, *phases, "--max_steps", 40, "--resume", "true")
    assert code == 0 and records(folder, "train")[-1]["step"] == 6
    assert not torch.equal(before, body())
    assert [r["step"] for r in records(folder, "train") if r.get("warm_start")] == [1, 2]


def test_a_run_with_other_settings_does_not_change_the_folder(
    monkeypatch, capsys, corpus: Path, tmp_path: Path
) -> None:
    _, folder = train(monkeypatch, corpus, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    for flags, message in (
        (["--learning_rate", "1e-4"], "holds a run with other settings (learning_rate=0.003)"),
        (["--learning_rate", "1e-4", "--resume", "true"], "holds a run with other settings (learning_rate=0.003)"),
        (["--resume", "false"], "holds this run, and resume=false"),
        (["--resume", "maybe"], "invalid choice: 'maybe'"),
    ):
        code, _ = train(monkeypatch, corpus, tmp_path, *flags)
        assert code == 2 and message in capsys.readouterr().err
    (folder / "run.json").rename(tmp_path / "run.json")
    assert train(monkeypatch, corpus, tmp_path)[0] == 2
    assert "holds another run (checkpoint, checkpoint-last" in capsys.readouterr().err
    (tmp_path / "run.json").rename(folder / "run.json")
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    code, _ = train(monkeypatch, corpus, tmp_path, "--learning_rate", "1e-4", "--overwrite", "true")
    assert code == 0 and records(folder, "settings")[0]["learning_rate"] == 1e-4


def test_resuming_without_a_run_is_refused(monkeypatch, capsys, corpus: Path, tmp_path: Path) -> None:
    code, folder = train(monkeypatch, corpus, tmp_path, "--resume", "true")
    assert code == 2 and "there is no run in it" in capsys.readouterr().err and not folder.exists()


def test_a_run_on_other_text_is_refused(monkeypatch, capsys, corpus: Path, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        train(patch, corpus, tmp_path)
    corpus.write_text(corpus.read_text() + "one more line.\n" * 30)
    assert train(monkeypatch, corpus, tmp_path)[0] == 2
    assert "a run on other text" in capsys.readouterr().err


def test_moved_text_resumes_the_run_and_changed_text_is_refused(
    monkeypatch, capsys, corpus, tokenizer, tmp_path
) -> None:
    """New file name, folder and tokenizer folder; also for a finished run."""
    valid, vocabulary = tmp_path / "valid.txt", tmp_path / "vocabulary"
    valid.write_text("\n".join(corpus.read_text().splitlines()[:40]) + "\n")
    tokenizer.save_pretrained(vocabulary)
    flags = ["--valid_data", valid, "--tokenizer", vocabulary, "--vocab_size", 0]
    assert train(monkeypatch, corpus, tmp_path, *flags, name="whole")[0] == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        _, folder = train(patch, corpus, tmp_path, *flags)
    other = tmp_path / "other"
    other.mkdir()
    moved, checked = (Path(shutil.move(f, other / f"{i}.TXT")) for i, f in enumerate((corpus, valid)))
    flags = ["--tokenizer", shutil.move(vocabulary, other / "words"), "--vocab_size", 0]
    swapped = tmp_path / "swapped.txt"
    swapped.write_text(moved.read_text().replace("cat", "tac"))
    for text, held, kind in ((swapped, checked, "text"), (moved, swapped, "validation text")):
        assert train(monkeypatch, text, tmp_path, *flags, "--valid_data", held)[0] == 2
        assert f"holds a run on other {kind} (changed files, or the same text" in capsys.readouterr().err
    flags += ["--valid_data", checked]
    assert train(monkeypatch, moved, tmp_path, *flags)[0] == 0
    assert "resumed after step 2" in capsys.readouterr().out and contents(folder) == contents(tmp_path / "whole")
    again = Path(shutil.copy(moved, tmp_path / "again.txt"))
    for text, code in ((moved, 0), (again, 0), (swapped, 2)):  # the run is finished
        assert train(monkeypatch, text, tmp_path, *flags)[0] == code
    assert "this run is done" in capsys.readouterr().out


def test_a_run_fingerprinted_with_file_names_resumes_under_the_same_path(
    monkeypatch, capsys, corpus: Path, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        real = sources.fingerprint
        patch.setattr("data.tokenized_text.fingerprint", lambda source, **_: real(source, named=True))
        patch.setattr("training.setup.identities", lambda *a, real=identities: {**real(*a), "network": None})
        _, folder = train(patch, corpus, tmp_path)
    state = sorted(states(folder))[-1]
    facts = json.loads((state / "state.json").read_text())
    assert facts.pop("network") is None
    (state / "state.json").write_text(json.dumps(facts))
    checks = json.loads((state / "manifest.json").read_text())
    checks["state.json"] = checksums(state)["state.json"]
    (state / "manifest.json").write_text(json.dumps(checks))
    moved = Path(shutil.copy(corpus, tmp_path / "moved.txt"))
    assert train(monkeypatch, moved, tmp_path)[0] == 2  # its content cannot be compared
    assert "holds a run with other settings (train_data=" in capsys.readouterr().err
    assert train(monkeypatch, corpus, tmp_path)[0] == 0 and "resumed after step 2" in capsys.readouterr().out


@pytest.mark.parametrize("changed", ["validation text", "word frequencies", "text of a stream"])
def test_changed_input_files_are_refused(monkeypatch, capsys, corpus: Path, tmp_path: Path, changed: str) -> None:
    valid, counts, flags = tmp_path / "valid.txt", tmp_path / "counts.json", []
    lines = corpus.read_text().splitlines()
    valid.write_text("\n".join(lines[:40]) + "\n")
    counts.write_text('{"the": 5, "a": 2}')
    if changed == "text of a stream":
        flags = ["--streaming", "true", "--num_workers", 0, "--shuffle_buffer", 20, "--batch_size", 4]
    flags += ["--valid_data", valid, "--word_freq_file", counts]
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert train(patch, corpus, tmp_path, *flags)[0] == 0
    if changed == "validation text":
        valid.write_text("\n".join(lines[1:41]) + "\n")
    elif changed == "word frequencies":
        counts.write_text('{"the": 5, "a": 3}')
    else:
        corpus.write_text(corpus.read_text().swapcase())  # of the same size
    assert train(monkeypatch, corpus, tmp_path, *flags)[0] == 2
    assert f"holds a run on other {changed.split(' of')[0]} (changed files, or the same text" in capsys.readouterr().err


def test_a_restarted_job_with_overwrite_resumes_its_own_run(monkeypatch, corpus, tmp_path, capsys) -> None:
    """With --overwrite true another job's run is replaced, and the restarted job's own run is resumed."""
    # a second command in one allocation is not a restart
    for job, stop in (("first", 2), ("second", 2), ("second", 1)):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        with monkeypatch.context() as patch:
            stop_after(patch, stop)
            assert train(patch, corpus, tmp_path, "--overwrite", "true")[0] == 0
        assert f"stopped after step {stop}" in capsys.readouterr().out
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert train(monkeypatch, corpus, tmp_path, "--overwrite", "true")[0] == 0
    assert "resumed after step 1" in capsys.readouterr().out
    flags = ["--overwrite", "true", "--learning_rate", "1e-4"]
    assert train(monkeypatch, corpus, tmp_path, *flags)[0] == 0
    assert "resumed" not in capsys.readouterr().out
    assert train(monkeypatch, corpus, tmp_path, *flags, "--resume", "true")[0] == 2
    assert "overwrite=true restarts and resume=true continues; give one" in capsys.readouterr().err


def test_a_run_without_an_intact_state_is_refused_and_kept(monkeypatch, corpus: Path, tmp_path: Path, capsys) -> None:
    _, folder = train(monkeypatch, corpus, tmp_path)
    for state in states(folder):
        (state / "manifest.json").write_text("{}")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    for flags in ([], ["--resume", "true", "--max_steps", 9]):
        assert train(monkeypatch, corpus, tmp_path, *flags)[0] == 2
        assert "none of its saved states is intact" in capsys.readouterr().err
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_hidden_files_of_the_user_stay(monkeypatch, corpus: Path, tmp_path: Path) -> None:
    for name in (".env.template", ".checkpoint.notes", ".state.abcdefgh"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text("mine")
    _, folder = train(monkeypatch, corpus, tmp_path)
    assert {p.name for p in folder.glob(".*")} == {".env.template", ".checkpoint.notes"}


def test_a_run_killed_before_its_first_state_keeps_its_batches_per_step(
    monkeypatch, corpus: Path, tmp_path: Path
) -> None:
    """A run killed on four processes before its first state resumes on one with four batches per step."""
    _, folder = train(monkeypatch, corpus, tmp_path, "--batch_size", 8, "--accumulation_steps", 4)
    known = json.loads((folder / "run.json").read_text())
    for left in (*states(folder), folder / "checkpoint", folder / "checkpoint-last"):
        shutil.rmtree(left)
    (folder / "run.json").write_text(json.dumps({**known, "world_size": 4, "accumulation_steps": 1}))
    code, _ = train(monkeypatch, corpus, tmp_path, "--batch_size", 8)
    facts = newest_state(folder, pytest.fail)[1]
    assert code == 0 and facts["parts"] == 4 and facts["step"] == 3


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "\0", "null", "[" * 10**5, '{"world_size": "x"}', '{"accumulation_steps": 0}']
)
def test_a_damaged_run_json_is_reported(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match="run.json: damaged"):
        find_start(TrainArgs(str(tmp_path)), {}, print)


def test_settings_without_effect_on_the_result_may_change() -> None:
    known = {"learning_rate": 1.0, "device": "cpu", "world_size": 2, "accumulation_steps": 2, "max_steps": 5}
    assert differences(known, {**known, "device": "cuda"}, set()) == []
    assert differences(known, {**known, "accumulation_steps": 4}, set()) == ["accumulation_steps"]
    assert differences(known, {**known, "accumulation_steps": 9, "world_size": 1}, set()) == []
    assert differences(known, {**known, "learning_rate": 2.0, "max_steps": 6}, {"max_steps"}) == ["learning_rate"]
    betas = {"adam_beta1": 0.9, "adam_beta2": 0.98}  # values of runs older than these settings
    assert differences(known, {**known, **betas}, set()) == []
    assert differences(known, {**known, **betas, "adam_beta2": 0.999}, set()) == ["adam_beta2"]
    assert differences({**known, "gone": 1}, known, set()) == [] and differences(known, {**known, "new": 1}, set())


def test_a_step_keeps_its_batches_on_other_numbers_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    args = TrainArgs("x", accumulation_steps=3)
    assert batches_per_process(args, Start()) == 3
    for processes, each in ((1, 4), (2, 2), (4, 1)):
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        assert batches_per_process(args, Start(Path("s"), {"parts": 4})) == each
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="a step of this run is 4 batches, which 3 processes cannot share evenly"):
        batches_per_process(args, Start(Path("s"), {"parts": 4}))


def test_another_torch_version_is_reported() -> None:
    assert note_versions(Start(Path("s"), {"torch": torch.__version__})) == "" == note_versions(Start())
    assert "saved under torch 1.0, resumed under" in note_versions(Start(Path("s"), {"torch": "1.0"}))


def test_a_run_of_before_the_density_of_times_may_go_on() -> None:
    """Its settings lack those of the density and of new embeddings, which have defaults that change nothing."""
    settings = {field.name: field.default for part in parts("word_freq") for field in dataclasses.fields(part)}
    settings |= {"output_dir": "x", "train_data": "y", "world_size": 1, "job": ""}
    later = {"time_sampling", "bell", "bell_share", "embedding_start"}
    known = {name: value for name, value in settings.items() if name not in later}
    assert differences(known, settings, set()) == []
    assert differences(known, settings | {"time_sampling": "bell"}, set()) == ["time_sampling"]
