"""Kill a training repeatedly at random moments; it must end with the weights of an undisturbed run.

    python benchmarks/faults.py --runs 50
    python benchmarks/faults.py --runs 10 --processes 2
    python benchmarks/faults.py --runs 50 --json

A run is a small training on generated sentences. It is killed (SIGKILL) up to five times: after a random time, or just
before or after a random atomic rename (`files.rename`, `files.exchange`) in the writing of a checkpoint or state. Each
time the same command is run again, until it ends by itself. Then weights, averages, optimizer and log are compared with
those of the undisturbed run. `identical` counts runs that end with the same bytes, `lost` runs that failed to resume.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).parent.parent
SETTINGS = [
    "--tokenizer", "wordpiece", "--vocab_size", "300", "--model_name_or_path", "modernbert-small",
    "--from_scratch", "true", "--num_steps", "64", "--threads", "1", "--precision", "fp32", "--eval_step_size", "32",
    "--config_overrides",
    "hidden_size=64,intermediate_size=128,num_hidden_layers=2,num_attention_heads=2,attention_dropout=0.1",
    "--batch_size", "8", "--learning_rate", "3e-3", "--optimizer", "muon", "--ema_decay", "0.9",
    "--eval_sequences", "16", "--eval_steps", "20", "--save_every", "7", "--max_steps", "60", "--logging_steps", "1",
    "--accumulation_steps", "2", "--valid_fraction", "0.1", "--warm_start", "0.2",
]  # fmt: skip
COMPARED = ("weights.safetensors", "average.safetensors", "optimizer.safetensors")
KILLS = 5
"""Largest number of kills in a run."""
RENAME = "FAULTS_RENAME"
"""Environment variable with the number n of the rename at which a process dies: n before it, n + 0.5 after it."""


def main() -> None:
    """Run the reference and the killed runs; print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1, help="of torchrun, on gloo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "corpus.txt")
        began = time.monotonic()
        assert start(folder, "reference", args.processes).wait() == 0, (folder / "reference.log").read_text()
        whole = time.monotonic() - began
        rng, found = random.Random(args.seed), {"runs": args.runs, "identical": 0, "lost": 0, "kills": 0}
        found |= {"in_renames": 0, "processes": args.processes}
        for i in tqdm(range(args.runs), desc="runs", disable=None):
            one_run(folder, f"run{i}", whole, rng, args.processes, found)
    print(json.dumps(found) if args.json else "\n".join(f"{name}: {value}" for name, value in found.items()))
    sys.exit(found["identical"] != args.runs)


def write_corpus(file: Path) -> None:
    """Write a few hundred sentences."""
    who, does, whom = "the cat,a dog,my bird,his sister,they", "see,like,follow,find", "us,him,it"
    when = "now,again,never,today,at last,once more,all day long"
    rows = itertools.product(*(words.split(",") for words in (who, does, whom, when)))
    file.write_text("".join(f"{a} {b} {c} {d}.\n" for a, b, c, d in rows))


def start(folder: Path, name: str, processes: int, rename: float = 0) -> subprocess.Popen:
    """Start or resume the training in its own process group."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [*launcher, __file__, "--child", "--train_data", folder / "corpus.txt", "--cache_dir", folder / "cache"]
    command += ["--output_dir", folder / name, *SETTINGS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), RENAME: str(rename)}
    with open(folder / f"{name}.log", "a") as log:
        return subprocess.Popen(
            [str(part) for part in command], stdout=log, stderr=log, env=environment, start_new_session=True
        )


def one_run(folder: Path, name: str, whole: float, rng: random.Random, processes: int, found: dict) -> None:
    """Run a training with up to five kills; add its result to `found`."""
    for _ in range(rng.randint(1, KILLS)):
        at_rename = rng.random() < 0.5
        rename = rng.randint(1, 36) + rng.choice([0, 0.5]) if at_rename else 0
        process = start(folder, name, processes, rename)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(whole + 60 if at_rename else rng.uniform(0, whole))
        killed = process.poll() != 0
        if process.poll() is None or processes > 1:
            kill(process, folder / name)
        if not killed:
            break
        found["kills"] += 1
        found["in_renames"] += at_rename
    code = start(folder, name, processes).wait()
    ended = folder / name / "state" / "step-000000000060"
    if code or not ended.is_dir():
        found["lost"] += 1
    elif same(ended, folder / "reference" / "state" / ended.name) and logged(folder / name) == logged(
        folder / "reference"
    ):
        found["identical"] += 1
    for leftover in ("checkpoint", "checkpoint-last"):
        assert not list((folder / name).glob(f".{leftover}.*")), "something half-written was left"


def kill(process: subprocess.Popen, folder: Path) -> None:
    """Kill all processes of a run and wait until the last has ended."""
    while True:
        at_work = [file.parent for file in Path("/proc").glob("[0-9]*/cmdline") if str(folder) in arguments_of(file)]
        for each in at_work:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(each.name), signal.SIGKILL)
        if not at_work:
            break
        time.sleep(0.05)
    process.wait()


def arguments_of(file: Path) -> list[str]:
    """Return the arguments of a process's command line; none if it has ended."""
    with contextlib.suppress(OSError):
        return file.read_text().split("\0")
    return []


def same(one: Path, other: Path) -> bool:
    """Return whether two states hold the same bytes and their checkpoints the same weights."""
    pairs = [(one / name, other / name) for name in COMPARED]
    beside = [Path("checkpoint"), Path("checkpoint-last")]
    pairs += [tuple(state.parent.parent / name / "model.safetensors" for state in (one, other)) for name in beside]
    return all(a.read_bytes() == b.read_bytes() for a, b in pairs)


def logged(run: Path) -> list[dict]:
    """Return a run's log without times and notes on interruptions."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    timed = ("seconds", "tokens_per_second")
    return [
        {key: value for key, value in record.items() if key not in timed}
        for record in records
        if record["kind"] in ("train", "valid")
    ]


def child() -> None:
    """Run main.py, and kill it at the n-th rename."""
    import main as training
    from utils import files
    from utils.command_line import run_script

    wanted, renames = float(os.environ[RENAME]), itertools.count(1)

    def deadly(real: Callable[[Path, Path], object]) -> Callable[[Path, Path], object]:
        def renamed(old: Path, new: Path) -> object:
            number = next(renames)
            if wanted == number:
                os.kill(os.getpid(), signal.SIGKILL)
            done = real(old, new)
            if wanted == number + 0.5:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        return renamed

    files.rename, files.exchange = deadly(files.rename), deadly(files.exchange)
    sys.argv.remove("--child")
    run_script(training.main)


if __name__ == "__main__":
    child() if "--child" in sys.argv else main()
