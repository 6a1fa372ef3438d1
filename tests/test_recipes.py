"""run*.sh, runs/, tests/run.sh: their help, their refusals, the paths that they pass on.

They run in the sandbox of tests/recipe_sandbox.py.
"""

import ast
import dataclasses
import importlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import compute_elbo
from checkpoint.model_parts import PROCESSES
from data.tokenizers import LEARNT, TEXT8
from diffusion.options import BoundArgs
from models.networks import PRESETS
from tests.conftest import ROOT
from tests.recipe_sandbox import RECIPES, SCRIPTS, SOURCED, call, calls_in, flags
from training.config import parts
from utils.packaged import PACKAGED


@pytest.mark.parametrize("script", RECIPES)
def test_bash_parses_every_script(script: str) -> None:
    assert subprocess.run(["bash", "-n", ROOT / script], capture_output=True, check=False).returncode == 0


EMBEDDED = re.compile(r"<<'PYTHON'.*?\n(.*?)^PYTHON$", re.M | re.S)


@pytest.mark.parametrize("script", [name for name in RECIPES if "<<'PYTHON'" in (ROOT / name).read_text()])
def test_every_import_of_embedded_python_exists(script: str) -> None:
    for program in EMBEDDED.findall((ROOT / script).read_text()):
        for node in ast.walk(ast.parse(program)):
            if isinstance(node, ast.Import):
                assert all(importlib.import_module(each.name) for each in node.names)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, each.name) for each in node.names), ast.unparse(node)


@pytest.mark.parametrize("script", RECIPES)
def test_every_array_that_may_be_empty_is_guarded(script: str) -> None:
    """Bash before 4.4 reports an empty array as an unbound variable under set -u."""
    text = (ROOT / script).read_text()
    assert "set -euo pipefail" in text or script in SOURCED
    empty = set(re.findall(r"\b(\w+)=\(\)", "".join((ROOT / name).read_text() for name in RECIPES)))
    for name in empty:
        assert text.count(f'"${{{name}[@]}}"') == text.count(f'${{{name}[@]+"${{{name}[@]}}"}}'), name


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_printed_without_installing(script: str, sandbox: Path) -> None:
    for arguments in (["--help"], ["my text.txt", "--seed", "3", "-h"]):
        done = call(sandbox, script, *arguments)
        assert done.returncode == 0 and not done.stderr and not (sandbox / "the repo" / ".venv").exists()
        assert f" {script} " in done.stdout and not re.search("^#|SBATCH|set -e", done.stdout, re.M)
        assert max(map(len, done.stdout.replace(str(sandbox), "").splitlines())) <= 125


REFUSED = {
    "run.sh": {
        "nothere.txt": "nothere.txt: no such file or folder",
        "|": "(an empty name): no such file or folder",
        "/": "/: give a folder of texts",
        "cache/": "out/cache holds data of all runs",
        "a.v1.txt|a.v2.jsonl.gz": "a.v2.jsonl.gz: unexpected argument",
        "demo|--seed|3": "--seed: demo takes no arguments but pretrained",
        "-dash.txt": "-dash.txt is taken as a flag; write ./-dash.txt",
        "a.v1.txt|--valid_data=nothere.txt": "nothere.txt: no such file or folder",
        "--word_freq_file|./nothere": "./nothere: no such file or folder",
        "x" * 300: "no such file",
    },
    "run_condition.sh": {
        "": "a task is needed",
        "nothere": "nothere: no such folder",
        "tok": "tok: no train.jsonl in it",
        "-x|": "-x: no train.jsonl",
        "qqp": "no such folder",
        "pairs|train": "train: unexpected argument",
    },
    "runs/equal_time.sh": {
        "": "TRAIN.txt and VALID.txt are needed",
        "a.v1.txt|nothere.txt": "nothere.txt: no such file",
        "a.v1.txt|a.v1.txt|out|soon": "MINUTES=soon must be a number above 0",
        "a.v1.txt|a.v1.txt|out|1|2": "2: unexpected argument",
    },
    "runs/family.sh": {
        "a.v1.txt": "TRAIN.txt and VALID.txt are needed",
        "a.v1.txt|a.v1.txt|out|0": "STEPS=0 must be a whole number",
    },
    "runs/lm1b_mdlm.sh": {
        "": "a process is needed",
        "mdlm3": "mdlm3 must be one of mdlm",
        "mdlm|lm1b": "lm1b: unexpected argument",
    },
    "runs/lm1b_small.sh": {
        "a.v1.txt|a.v1.txt": "TOKENIZER are needed",
        "a.v1.txt|a.v1.txt|no/vocab.txt": "no/vocab.txt",
    },
    "runs/paper_tables.sh": {
        "my text.txt|a.v1.txt": "TRAIN, VALID and TEST are needed",
        "my text.txt|a.v1.txt|nothere.txt": "nothere.txt: no such file",
        "--gpu|my text.txt|a.v1.txt": "TRAIN, VALID and TEST are needed",
        "my text.txt|a.v1.txt|a.TXT|out|more": "more: unexpected argument",
    },
    "runs/pretrained.sh": {
        "my text.txt": "TRAIN.txt and VALID.txt are needed",
        "my text.txt|a.v1.txt|out|0": "MINUTES=0 must be a number above 0",
    },
    "runs/qqp.sh": {
        "pairs|pairs/test.jsonl|tok": "OUTPUT_FOLDER are needed",
        "pairs|pairs/test.jsonl|no/vocab.txt|out": "no/vocab.txt: no such file",
        "pairs|pairs/test.jsonl|tok|": "OUTPUT_FOLDER is empty",
    },
    "runs/score.sh": {
        "": "-d=TXT_CORPUS is needed",
        "a.v1.txt": "unexpected argument",
        "-d=nothere.txt": "nothere.txt: no such",
    },
    "runs/slurm.sh": {"--train_data|lm1b": "--output_dir is needed", "--output_dir|out": "not in a Slurm job"},
    "runs/text8.sh": {"": "TEXT8 is needed", "nothere": "nothere: no such file", "tok": "tok: no such file"},
    "runs/zero_shot.sh": {"model": "CHECKPOINT and FOLDER are needed", "model|nothere": "nothere: no such folder"},
}
"""By script: arguments, separated by |, and a part of the error."""


@pytest.mark.parametrize(
    ("script", "arguments"), [(script, arguments) for script in SCRIPTS for arguments in REFUSED.get(script, {})]
)
def test_wrong_arguments_are_refused_without_installing(script: str, arguments: str, sandbox: Path) -> None:
    done = call(sandbox, script, *(arguments.split("|") if arguments else []))
    assert done.returncode == 2 and not done.stdout and not (sandbox / "the repo" / ".venv").exists()
    *usage, last = done.stderr.splitlines()
    assert f" {script} " in "\n".join(usage) and done.stderr.count("error:") == 1
    assert last.startswith("error: ") and REFUSED[script][arguments] in last and len(last) < 300


@pytest.mark.parametrize(
    ("rows", "error"), [(" ", "is empty"), ("small\nnone", "none must be"), ("small small", "small is given twice")]
)
def test_wrong_rows_are_refused(rows: str, error: str, sandbox: Path) -> None:
    done = call(sandbox, "runs/pretrained.sh", "my text.txt", "a.v1.txt", ROWS=rows)
    assert done.returncode == 2 and f"error: ROWS{':' * ('empty' not in error)} {error}" in done.stderr


def test_every_recipe_has_a_refused_call() -> None:
    assert set(REFUSED) == {script for script in SCRIPTS if script != "tests/run.sh"}


PASSED_ON = [
    ("run.sh", "my text.txt", "main.py", {"--train_data": "C/my text.txt", "--output_dir": "out/my text"}),
    ("run.sh", "./-dash.txt", "main.py", {"--train_data": "C/./-dash.txt", "--output_dir": "out/-dash"}),
    ("run.sh", "a.v1.txt", "main.py", {"--output_dir": "out/a.v1"}),
    ("run.sh", "a.v2.jsonl.gz", "main.py", {"--output_dir": "out/a.v2"}),
    ("run.sh", "a.TXT", "main.py", {"--output_dir": "out/a"}),
    ("run.sh", "a.txt.d/", "main.py", {"--train_data": "C/a.txt.d/", "--output_dir": "out/a.txt.d"}),
    (
        "run.sh", "ünï {}.txt|--output_dir|new/run|--tokenizer|wordpiece|--model_name_or_path=bert-small|--cache_dir=c|"
        "--prompt|pairs|--word_freq_file=freq.json|--valid_data|-dash.txt", "main.py",
        {"--output_dir": "C/new/run", "--tokenizer": "wordpiece", "--model_name_or_path": "bert-small",
         "--prompt": "pairs", "--cache_dir": "C/c", "--word_freq_file": "C/freq.json", "--valid_data": "C/-dash.txt"},
    ),
    (
        "run.sh", "~/home.txt|--tokenizer|./wordpiece|--valid_data=~/home.txt|-mdir=~/x|--model_type|bert-base-uncased",
        "main.py",
        {"--train_data": "C/~/home.txt", "--tokenizer": "C/./wordpiece", "--valid_data": "C/~/home.txt", "-mdir": "H/x",
         "--model_type": "bert-base-uncased"},
    ),
    (
        "run.sh", "R/requirements.txt|-spm=tok|--model_type|model|--output_dir|--seed|3", "main.py",
        {"--train_data": "requirements.txt", "-spm": "C/tok", "--model_type": "C/model", "--seed": "3"},
    ),
    ("run.sh", "requirements.txt", "main.py", {"--train_data": "requirements.txt"}),
    ("run.sh", "my text.txt|--output-dir=n|--valid-data|-dash.txt", "main.py",
     {"--output_dir": "C/n", "--valid_data": "C/-dash.txt"}),
    ("run_condition.sh", "pairs|--output-dir|p", "predict_downstream_condition.py", {"--checkpoint": "C/p/checkpoint"}),
    ("run_condition.sh", "pairs", "main.py", {"--train_data": "C/pairs", "--output_dir": "out/condition_pairs"}),
    ("run_condition.sh", "pairs|-mdir|p", "predict_downstream_condition.py", {"--checkpoint": "C/p/checkpoint"}),
    *[("run_condition.sh", "pairs|--source-column=a b|--target_column|c", program,
       {"--source_column": "a b", "--target_column": "c"})
      for program in ("predict_downstream_condition.py", "compute_metric.py")],
    ("runs/equal_time.sh", "ünï {}.txt|a.v1.txt|x y|1.5", "main.py", {"--train_data": "C/ünï {}.txt"}),
    ("runs/family.sh", "my text.txt|ünï {}.txt", "compute_metric.py", {"--references": "C/ünï {}.txt"}),
    ("runs/lm1b_mdlm.sh", "mdlm|--train_data|lm1b", "compute_elbo.py", {"--data": "C/lm1b"}),
    ("runs/lm1b_mdlm.sh", "mdlm|--text_column|t", "compute_elbo.py", {"--text_column": "t"}),
    ("runs/lm1b_mdlm.sh", "mdlm|-d=my text.txt|-mdir|m", "compute_elbo.py", {"--checkpoint": "C/m/checkpoint-last"}),
    ("runs/lm1b_small.sh", "my text.txt|a.v1.txt|tok|--seed|3", "main.py", {"--tokenizer": "C/tok", "--seed": "3"}),
    (
        "runs/paper_tables.sh", "my text.txt|a.v1.txt|a.TXT|p", "main.py",
        {"--train_data": "C/my text.txt", "--time_conditioning": "layerwise"},
    ),
    ("runs/paper_tables.sh", "my text.txt|a.v1.txt|a.TXT|p", "compute_elbo.py", {"--data": "C/a.TXT"}),
    ("runs/pretrained.sh", "my text.txt|a.v1.txt|p|0.5", "main.py", {"--valid_data": "C/a.v1.txt"}),
    ("runs/qqp.sh", "pairs|pairs/test.jsonl|tok|q", "compute_metric.py", {"--predictions": "C/q/predictions.jsonl"}),
    ("runs/score.sh", "-d=my text.txt|-mdir=m", "main.py", {"-d": "C/my text.txt", "-mdir": "C/m"}),
    ("runs/text8.sh", "my text.txt|--output_dir=t", "predict.py", {"--checkpoint": "C/t/checkpoint-last"}),
    ("runs/zero_shot.sh", "model|texts", "compute_elbo.py", {"--checkpoint": "C/model", "--data": "C/texts/ptb.txt"}),
    ("runs/slurm.sh", "--train_data=lm1b|--output_dir|s", "main.py", {"--train_data": "C/lm1b", "--output_dir": "C/s"}),
    ("tests/run.sh", "fast|-k|pairs", "pytest", {"-m": "not slow", "-k": "pairs"}),
    ("tests/run.sh", "-k|pairs|a.v1.txt::test", "pytest", {"-k": "pairs", "pairs": "C/a.v1.txt::test"}),
]  # fmt: skip
"""Script, arguments, a program that it calls, flags of this call; C: the caller's folder, H: home, R: the scripts'."""


@pytest.mark.parametrize(("script", "arguments", "program", "expected"), PASSED_ON)
def test_paths_are_relative_to_the_callers_folder(
    script: str, arguments: str, program: str, expected: dict, sandbox: Path, recorded
) -> None:
    folders = {"C/": f"{sandbox}/the caller/", "H/": f"{sandbox}/home/", "R/": f"{sandbox}/the repo/"}
    arguments, slurm = arguments.replace("R/", folders["R/"]), {"SLURM_JOB_NODELIST": "n", "SLURM_NNODES": "1"}
    slurm |= {"SLURM_GPUS_ON_NODE": "1", "SLURM_JOB_ID": "7"} if script == "runs/slurm.sh" else {}
    programs = str(sandbox / "the repo" / ".venv" / "bin")
    before = sorted(path for path in (sandbox / "the caller").rglob("*"))
    actual = flags(recorded(script, *arguments.split("|"), PATH=f"{programs}:{os.environ['PATH']}", **slurm), program)
    resolved = {flag: folders.get(value[:2], value[:2]) + value[2:] for flag, value in expected.items()}
    assert {flag: actual[flag] for flag in resolved} == resolved
    assert (
        sorted(path for path in (sandbox / "the caller").rglob("*")) == before
        or "C/" in str(expected)
        or "x y" in arguments
    )


@pytest.mark.parametrize(
    "command", dict.fromkeys(f"{script}|{given}" for script, given, program, _ in PASSED_ON if program == "main.py")
)
def test_nothing_follows_an_interrupted_training(command: str, sandbox: Path, recorded) -> None:
    """main.py exits with 0 when it is interrupted: a score of such a model must not stand as that of a finished one."""
    script, *arguments = command.replace("R/", f"{sandbox}/the repo/").split("|")
    if script == "runs/slurm.sh":
        pytest.skip("queues itself again")
    done = call(sandbox, script, *arguments, STUB_INTERRUPTED="1")
    assert (
        done.returncode in (123, 130) and "the training is not finished" in done.stderr.splitlines()[-1]
    )  # 123: xargs
    after = [word for each in calls_in(sandbox) for word in each if re.match(r"(compute|predict)_?\w*\.py", word)]
    assert not after and not [*sandbox.rglob("*.json.part"), *sandbox.rglob("trained_on")]
    recorded(script, *arguments)  # goes on


def test_a_failed_look_at_the_vocabulary_is_an_error_and_a_poor_fit_is_none(sandbox: Path, recorded) -> None:
    assert flags(recorded("run.sh", "my text.txt"), "main.py")["--model_name_or_path"] == "minilm"
    shutil.rmtree(sandbox / "the repo" / "out")
    poor = flags(recorded("run.sh", "my text.txt", STUB_FIT="3"), "main.py")
    assert poor["--model_name_or_path"] == "modernbert-local"
    shutil.rmtree(sandbox / "the repo" / "out")
    assert call(sandbox, "run.sh", "my text.txt", STUB_FIT="1").returncode == 1
    assert not any("main.py" in each for each in calls_in(sandbox)[-1])


def test_scripts_run_from_any_folder_through_a_link_and_on_gpus(sandbox: Path, recorded) -> None:
    """The calls: through a link, from a read-only folder, from a folder of the repository, on two GPUs."""
    (sandbox / "link").symlink_to(sandbox / "the repo" / "run.sh")
    closed = sandbox / "the caller"
    closed.chmod(0o555)
    assert flags(recorded(sandbox / "link", "my text.txt"), "main.py")["--train_data"] == str(closed / "my text.txt")
    closed.chmod(0o755)
    arguments = ["../../the caller/pairs", str(closed / "pairs/test.jsonl"), "bert-base-uncased", "../out/q"]
    passed = flags(recorded("runs/qqp.sh", *arguments, cwd="the repo/runs"), "main.py")
    assert passed["--output_dir"] == "runs/../out/q" and passed["--tokenizer"] == "bert-base-uncased"
    calls = recorded("run.sh", "my text.txt", "--seed", "3", STUB_GPUS="2")
    assert flags(calls, "main.py")["--accumulation_steps"] == "2" and "torchrun" in [name for name, *_ in calls]
    of_hub = flags(
        recorded("runs/paper_tables.sh", "--gpu", STUB_GPUS="1", FLAGS="--seed 7 --weight_decay 0"), "main.py"
    )
    assert of_hub.items() > {"--train_data": "lm1b", "--weight_decay": "0", "--seed": "1"}.items()
    without = call(sandbox, "runs/paper_tables.sh", "--gpu", "o")
    assert without.returncode == 2 and "\nerror: --gpu needs a CUDA GPU" in without.stderr
    scored = [call for call in recorded("runs/zero_shot.sh", "model", "texts") if "compute_elbo.py" in call]
    assert len(scored) == 2  # a program that reads stdin does not consume the list of texts


def test_other_pairs_of_the_same_name_are_passed_to_main(sandbox: Path, recorded) -> None:
    first, again = (recorded("run_condition.sh", "pairs") for _ in range(2))
    assert any("main.py" in call for call in first) and not any("main.py" in call for call in again)
    columns = ["--source_column", "a", "--target_column", "b"]
    first, again = (recorded("run_condition.sh", "pairs", *columns) for _ in range(2))  # they are other pairs
    assert any("main.py" in call for call in first) and not any("main.py" in call for call in again)
    shutil.copytree(sandbox / "the caller" / "pairs", sandbox / "home" / "pairs")
    assert any("main.py" in call for call in recorded("run_condition.sh", "~/pairs", cwd="home"))


def test_setup_sh_lists_every_setting_that_is_a_path() -> None:
    """A new setting of type str must be listed in setup.sh as a path, or below in `no_paths`."""
    no_paths = {
        "warm_start_rates", "bell", "tracker", "device", "prompt", "config_overrides", "attn_implementation",
        "posterior", "given_kinds", "lora_targets", "text_column", "source_column", "target_column",
    }  # fmt: skip
    kinds = [kind for name in PROCESSES for kind in parts(name)] + [compute_elbo.ElboArgs, BoundArgs]
    texts = {field.name: field for kind in kinds for field in dataclasses.fields(kind) if field.type in (str, "str")}
    paths = {name: field for name, field in texts.items() if "choices" not in field.metadata and name not in no_paths}
    known = (ROOT / "runs" / "setup.sh").read_text().split("path_kind() {")[1].split("\n}")[0]
    listed = set(re.findall(r"(?<![\w-])--?[a-z_]+", known))
    assert listed == {f for name, field in paths.items() for f in (f"--{name}", *field.metadata.get("aliases", []))}
    for name in (*PRESETS, *PACKAGED, *LEARNT, TEXT8):
        assert re.search(rf"[ (]{name}( \||\))", known), name
