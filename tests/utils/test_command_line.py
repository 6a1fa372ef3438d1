"""command_line.py: published command lines are parsed as written, booleans are booleans, errors are one line."""

import dataclasses
import os
import shlex
import subprocess
import sys

import pytest

from data.options import DataArgs
from diffusion.options import SampleArgs
from diffusion.process_options import WordFreqArgs
from models.options import NetworkArgs
from predict import PredictArgs
from tests.conftest import ROOT, call
from training.arguments import OptimArgs, TrainArgs
from utils.command_line import parse, run_script, with_flags
from utils.errors import UserError

TRAIN = [TrainArgs, DataArgs, NetworkArgs, WordFreqArgs, OptimArgs]

FORK_TRAIN = """--train_data_dir "./conditional_data" --vocab_size 30522 --block_size 128 --batch_size 64
    --learning_rate 1e-4 --num_train_epochs 100 --gradient_accumulation_steps 2 --model_type "bert-base-uncased"
    --diffusion_steps 2000 --noise_schedule "cosine" --spindle_schedule True --word_freq_file "word_freq.json"
    --output_dir "./diffusion_models" --num_workers 4 --fp16 True"""
FORK_PREDICT = """--checkpoint_path "./diffusion_models/checkpoint-10.pt" --model_type "bert-base-uncased"
    --vocab_size 30522 --block_size 128 --batch_size 4 --diffusion_steps 2000 --output_file "generated_texts.txt" """
OFFICIAL_TRAIN = """--epochs 3 --batch_size 128 --lr 5e-5 --num_steps 512 --eval_step_size 4 --eval_interval 15000
    --dev_size 5e-4 --schedule mutual --timestep layerwise --hybrid_lambda 1e-2 --word_freq_lambda 0.3 --seed 42
    --from_scratch false --task_name lm1b --model_name_or_path bert-base-uncased --accumulation_steps 2
    --sample_strategy Categorical --num_workers 16 --load_step -1 --predict_x0 true --logging_steps 1000
    --device cpu --output_dir out"""


def test_the_training_command_of_the_fork_is_parsed_as_written(capsys: pytest.CaptureFixture) -> None:
    train, data, network, noise, optim = parse(TRAIN, "train", argv=shlex.split(FORK_TRAIN))
    assert (data.train_data, data.vocab_size, data.max_length, data.batch_size) == (
        "./conditional_data",
        30522,
        128,
        64,
    )
    assert (optim.learning_rate, train.num_train_epochs, train.accumulation_steps) == (1e-4, 100, 2)
    assert (network.model_name_or_path, noise.num_steps, noise.schedule) == ("bert-base-uncased", 2000, "cosine")
    assert (noise.spindle, data.word_freq_file, train.output_dir) == ("paper", "word_freq.json", "./diffusion_models")
    assert train.fp16 is True
    assert not capsys.readouterr().err


def test_the_sampling_command_of_the_fork_is_parsed_as_written(capsys: pytest.CaptureFixture) -> None:
    from predict import WITHOUT_EFFECT

    args, sampling = parse(
        [PredictArgs, SampleArgs], "x", without_effect=WITHOUT_EFFECT, argv=shlex.split(FORK_PREDICT)
    )
    assert args.checkpoint == "./diffusion_models/checkpoint-10.pt" and args.output == "generated_texts.txt"
    assert (args.batch_size, sampling.num_steps) == (4, 2000)
    stderr = capsys.readouterr().err
    assert all(f"note: {flag} has no effect" in stderr for flag in ("--model_type", "--vocab_size", "--block_size"))


CONDITIONAL_TRAIN = """--lr 5e-5 --batch_size 64 --task_name QT --eval_steps 50 --output_dir out"""
CONDITIONAL_PREDICT = """--topk 15 --step_size 10 --task_name qqp --ckpt_path c --MBR_size 3 --seq_len 128"""


def test_the_released_conditional_commands_are_parsed_as_written(capsys: pytest.CaptureFixture) -> None:
    from predict_downstream_condition import WITHOUT_EFFECT, DownstreamArgs

    data = parse(TRAIN, "train", argv=shlex.split(CONDITIONAL_TRAIN))[1]
    assert data.train_data == "conditional_data/Q-T"
    flags = shlex.split(CONDITIONAL_PREDICT)
    args, sampling = parse([DownstreamArgs, SampleArgs], "x", without_effect=WITHOUT_EFFECT, argv=flags)
    assert (args.data, args.checkpoint, args.mbr_size, args.step_size) == ("conditional_data/qqp", "c", 3, 10)
    assert sampling.top_k == 15 and args.output == "generation_results/predictions.jsonl"
    assert "note: --seq_len has no effect" in capsys.readouterr().err


def test_the_flags_of_the_released_program_are_known() -> None:
    train, data, network, noise, optim = parse(TRAIN, "train", argv=shlex.split(OFFICIAL_TRAIN))
    assert network.from_scratch is False  # the released `type=bool` reads "false" as True
    assert (network.time_conditioning, data.train_data, data.valid_fraction) == ("layerwise", "lm1b", 5e-4)
    assert (train.num_train_epochs, train.accumulation_steps, train.eval_step_size, train.eval_steps) == (
        3,
        2,
        4,
        15000,
    )
    assert (optim.learning_rate, noise.num_steps, noise.hybrid_lambda) == (5e-5, 512, 0.01)


@pytest.mark.parametrize(
    ("text", "value"), [("false", False), ("False", False), ("0", False), ("true", True), ("1", True)]
)
def test_boolean_flags_take_true_false_1_and_0(text: str, value: bool) -> None:
    (args,) = parse([NetworkArgs], "x", argv=["--from_scratch", text])
    assert args.from_scratch is value


@pytest.mark.parametrize(("text", "spindle"), [("True", "paper"), ("false", "none")])
def test_the_boolean_spindle_flag_is_rewritten(text: str, spindle: str) -> None:
    for argv in (["--spindle_schedule", text], [f"--spindle_schedule={text}"]):
        assert parse([WordFreqArgs], "x", argv=argv)[0].spindle == spindle


BASE = ["--train_data", "x", "--output_dir", "y"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--no_such_flag", "1"], "no_such_flag"),
        (["--nois", "cosine"], "nois"),  # abbreviations are refused
        (["--schedule", "sqrt"], "invalid choice: 'sqrt'"),
        (["--spindle_schedule", "maybe"], "use --spindle paper, released or none"),
        (["--learning_rate", "fast"], "invalid float value: 'fast'"),
        (["--from_scratch", "perhaps"], "perhaps"),
        (["--num_steps", "0"], r"num_steps=0 \(T\) must lie in 1..1000000"),
        (["--word_freq_lambda", "-0.1"], "word_freq_lambda=-0.1 must lie in"),
        (["--word_freq_lambda", "nan"], "word_freq_lambda=nan must lie in"),
        (["--hybrid_lambda", "-1"], "hybrid_lambda=-1.0 must be 0 or more"),
        (["--max_steps", "-1"], "max_steps=-1"),
        (["--num_train_epochs", "0"], "give one of them above 0"),
        (["--accumulation_steps", "0"], "accumulation_steps=0 must lie in 1..1000000000"),
        (["--warm_start", "2"], "warm_start=2.0 must lie in"),
        (["--warm_start_rates", "0.5"], "must look like 0.1,0.4"),
        (["--warm_start_rates", "0.5,0.1"], "0 < low <= high <= 1"),
        (["--max_minutes", "-1"], "max_minutes=-1.0 must be 0 or more"),
        (["--max_minutes", "nan"], "max_minutes=nan must be 0 or more"),
    ],
)
def test_invalid_flags_are_one_line_and_exit_code_2(
    flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(UserError, match=message):
        parse(TRAIN, "x", argv=[*BASE, *flags])
    assert call(lambda: parse(TRAIN, "x"), monkeypatch, *BASE, *flags) == 2
    stderr = capsys.readouterr().err.strip()
    assert stderr.startswith("script.py: error: ") and "\n" not in stderr


def test_every_setting_has_help() -> None:
    for kind in [*TRAIN, PredictArgs, SampleArgs]:
        for field in dataclasses.fields(kind):
            assert field.metadata.get("help"), f"{kind.__name__}.{field.name}"


def raise_user_error() -> None:
    raise UserError("size=3 is too small\n  give 4 or more")


def test_a_user_error_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert call(raise_user_error, monkeypatch) == 2
    assert capsys.readouterr().err == "script.py: error: size=3 is too small give 4 or more\n"


def test_a_file_that_cannot_be_opened_is_a_one_line_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert call(lambda: open("/dev/null/x", "w"), monkeypatch) == 2
    assert capsys.readouterr().err.startswith("script.py: error: /dev/null/x: Not a directory; give another path")


def test_threads_give_up_their_core_soon_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenMP reads the variable when torch is imported, which `main` does."""
    seen = []
    for given in (None, "77"):
        monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
        if given:
            monkeypatch.setenv("GOMP_SPINCOUNT", given)
        run_script(lambda: seen.append(os.environ["GOMP_SPINCOUNT"]))
    assert seen == ["1000", "77"]


def test_a_closed_output_pipe_is_no_error() -> None:
    program = "from utils.command_line import run_script\nrun_script(lambda: [print('x' * 99) for _ in range(99999)])"
    shell = f"'{sys.executable}' -c \"{program}\" | head -1"
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "x" * 99 + "\n" and not done.stderr


def test_a_programming_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        call(lambda: 1 / 0, monkeypatch)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed."),
            "a process that reads text was killed",
        ),
        (UnicodeEncodeError("utf-8", "caf\udce9.txt", 3, 4, "surrogates"), "a path that is not UTF-8: 'caf"),
    ],
)
def test_known_errors_of_libraries_are_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture, error: Exception, message: str
) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run_script(main)
    stderr = capsys.readouterr().err
    assert ended.value.code == 2 and message in stderr and stderr.count("\n") == 1
    with pytest.raises(RuntimeError, match="something else"):
        run_script(lambda: (_ for _ in ()).throw(RuntimeError("something else")))


def test_the_first_arguments_without_a_flag_are_named_by_flags() -> None:
    names = ("checkpoint", "name")
    expected = ["--checkpoint", "a", "--data", "x", "--name", "b/c", "--private=true"]
    assert with_flags(["a", "--data", "x", "b/c", "--private=true"], names) == expected
    assert with_flags(["--checkpoint", "a", "b/c"], names) == ["--checkpoint", "a", "--name", "b/c"]
    assert with_flags(["a", "--name=b/c"], names) == ["--checkpoint", "a", "--name=b/c"]
    assert with_flags(["a", "b", "c"], names) == ["--checkpoint", "a", "--name", "b", "c"]
