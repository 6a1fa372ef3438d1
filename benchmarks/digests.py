"""Print digests of what training, sampling and scoring give at fixed seeds, to show that a refactoring kept them.

python benchmarks/digests.py > after.txt                        # this folder
python benchmarks/digests.py --folder ../before > before.txt    # another commit, checked out beside it
diff before.txt after.txt                                       # nothing may differ

Every line names a command and the first 16 hexadecimal digits of a SHA-256: of the weights after 50 steps, of 20
samples, or of the bound (also printed in full, to tell a changed order of sums from a changed formula). The commands
run in forks of one process that has imported the libraries already: about four minutes on two cores.
"""

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import runpy
import shlex
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import datasets  # noqa: F401  imported here once, so that no fork has to
import torch  # noqa: F401
import transformers  # noqa: F401
from safetensors.numpy import load_file

TINY = "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,intermediate_size=64"
SCORE = "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,embedding_size=16"
MASKED = ("auto", "row-clocks", "ancestral", "cached", "confidence", "remdm")
ESTIMATORS = ("windows", "stratified", "masked-count", "trajectory")
BERT = f"--model_name_or_path bert-small --from_scratch true --config_overrides {TINY}"
PRE_NORM = f"--model_name_or_path modernbert-small --from_scratch true --config_overrides {TINY}"

SETTINGS = (
    "--train_data train.txt --valid_data valid.txt --tokenizer wordpiece --vocab_size 300 --max_steps 50 "
    "--max_length 64 --batch_size 8 --learning_rate 1e-3"
)
RUNS = {
    "word_freq paper": f"{BERT} --num_steps 64",
    "word_freq released h": f"{BERT} --num_steps 64 --spindle released --schedule cosine",
    "word_freq none": f"{BERT} --num_steps 64 --spindle none",
    "word_freq uniform": f"{PRE_NORM} --num_steps 64 --loss_weighting uniform --warm_start 0.3 --hybrid_lambda 0.01",
    "word_freq released posterior": f"{BERT} --num_steps 64 --posterior released --spindle released",
    "word_freq layerwise": f"{BERT} --num_steps 64 --time_conditioning layerwise --ema_decay 0.9",
    "word_freq packing": f"{BERT} --num_steps 64 --packing true --max_length 64 --batch_size 4",
    "word_freq fused": f"{BERT} --num_steps 64 --fused_loss true --accumulation_steps 2 --optimizer muon",
    "word_freq streaming": f"{BERT} --num_steps 64 --streaming true --num_workers 1 --shuffle_buffer 100",
    "word_freq pairs": f"{BERT} --num_steps 64 --train_data pairs.jsonl --valid_data pairs_valid.jsonl",
    "mdlm": f"--process mdlm {BERT}",
    "mdlm padded": f"--process mdlm --protocol padded --max_length 32 {BERT}",
    "mdlm wrapped": f"--process mdlm --protocol wrapped --max_length 32 {BERT}",
    "d3pm": f"--process d3pm {BERT} --num_steps 64",
    "sedd": f"--process sedd {BERT}",
    "ar": f"--process ar {BERT}",
    "score": f"--process score --model_name_or_path score-lm-small --from_scratch true --config_overrides {SCORE}",
}
"""By name, the arguments of main.py besides SETTINGS, which they override."""


def samplers(run: str) -> list[str]:
    """Return the arguments of predict.py that a run's checkpoint is tried with."""
    if run == "score":
        return [f"--sampler {name} --num_steps 12" for name in ("auto", "euler", "heun", "renoise", "sde")]
    if run == "ar":
        return ["", "--temperature 0.8 --top_k 20"]
    if run == "word_freq released posterior":
        return ["--num_steps 16 --sampler auto", "--num_steps 16 --sampler confidence --posterior exact"]
    if run == "word_freq pairs":
        return ["--num_steps 8", "--num_steps 8 --sampler confidence"]
    more = ["--num_steps 16 --top_p 0.9 --temperature 0.9", "--num_steps inf"]
    if run == "mdlm wrapped":
        more += ["--semi_ar true --stride_length 8 --num_strides 2 --num_steps 8"]
    elif run != "mdlm padded":
        more += ["--num_steps 8 --length 40 --batch_size 7", "--num_steps 8 --infill 'a [MASK] [MASK] b [MASK] .'"]
    return [f"--num_steps 16 --sampler {name}" for name in MASKED] + more


def bounds(run: str) -> list[str]:
    """Return the arguments of compute_elbo.py that a run's checkpoint is scored with."""
    if run == "ar":
        return [""]
    if run == "score":
        return ["--num_steps 12", "--num_steps inf"]
    if run == "word_freq released posterior":
        return ["--num_steps 16", "--num_steps 16 --posterior exact"]
    limit = ["--num_steps inf", "--num_steps inf --estimator trajectory"]
    return [f"--num_steps 16 --estimator {name}" for name in ESTIMATORS] + limit


def write_texts(folder: Path) -> None:
    """Write the texts that everything is made from: sentences of a small grammar, with Zipf's frequencies."""
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 7))) for _ in range(400)]
    weights = [1 / (rank + 1) for rank in range(len(words))]

    def sentence() -> str:
        return " ".join(draw.choices(words, weights, k=draw.randint(4, 20))) + " ."

    for name, number in (("train.txt", 600), ("valid.txt", 60), ("test.txt", 40)):
        (folder / name).write_text("".join(sentence() + "\n" for _ in range(number)))
    for name, number in (("pairs.jsonl", 300), ("pairs_valid.jsonl", 40), ("pairs_test.jsonl", 20)):
        pairs = (
            {"src": text, "trg": " ".join(reversed(text.split()[:8]))} for text in (sentence() for _ in range(number))
        )
        (folder / name).write_text("".join(json.dumps(pair) + "\n" for pair in pairs))


def run_script(folder: Path, script: str, arguments: list[str], output: Path) -> bool:
    """Run a script as `python script arguments` in a fork, what it prints going to two files.

    Returns:
        False if it refused the arguments (exit code 2).

    Raises:
        SystemExit: if it fails in another way, with the end of its stderr.
    """

    def work() -> None:
        sys.path.insert(0, str(folder))
        sys.argv = [script, *arguments]
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{output}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        runpy.run_path(str(folder / script), run_name="__main__")

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    if process.exitcode not in (0, 2):
        stderr = Path(f"{output}.err").read_text()[-2000:]
        raise SystemExit(f"{script} {' '.join(arguments)}: exit code {process.exitcode}\n{stderr}")
    return process.exitcode == 0


def digest(content: bytes) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def digest_weights(checkpoint: Path) -> str:
    """Return a digest of every tensor of a checkpoint, by name, shape, type and content."""
    tensors = {str(path.relative_to(checkpoint)): load_file(path) for path in checkpoint.rglob("*.safetensors")}
    parts = hashlib.sha256()
    for file in sorted(tensors):
        for name, tensor in sorted(tensors[file].items()):
            parts.update(f"{file} {name} {tensor.shape} {tensor.dtype}".encode() + tensor.tobytes())
    return parts.hexdigest()[:16]


class Run:
    """One run of RUNS in a folder of texts: trained, then sampled and scored."""

    def __init__(self, scripts: Path, folder: Path, name: str) -> None:
        """Name the files; nothing runs yet."""
        self.scripts, self.name, self.path = scripts, name, folder / name.replace(" ", "-")
        self.checkpoint = self.path / "checkpoint-last"
        self.cache = ["--cache_dir", f"{self.path}-cache"]
        self.test = "pairs_test.jsonl" if name == "word_freq pairs" else "test.txt"
        self.number = 0

    def run(self, script: str, *arguments: str) -> Path | None:
        """Run a script; return where its output went, or None if it refused the arguments."""
        self.number += 1
        output = Path(f"{self.path}-{self.number}")
        resolved = [argument.replace("OUTPUT", str(output)) for argument in arguments]
        done = run_script(self.scripts, script, [*resolved, "--threads", "1", "--device", "cpu"], output)
        return output if done else None

    def lines(self) -> list[str]:
        """Return a line for each command."""
        given = [*RUNS[self.name].split(), "--no_fitlog", *self.cache, "--output_dir", str(self.path)]
        if not self.run("main.py", *SETTINGS.split(), *given):
            raise SystemExit(Path(f"{self.path}-{self.number}.err").read_text())
        sampling = self.candidates if self.name == "word_freq pairs" else self.samples
        return [
            f"{self.name} | main.py, 50 steps | {digest_weights(self.checkpoint)}",
            *map(sampling, samplers(self.name)),
            *map(self.bound, bounds(self.name)),
        ]

    def samples(self, arguments: str) -> str:
        """Return the line of 20 samples."""
        common = ["--checkpoint", str(self.checkpoint), "--output", "OUTPUT.jsonl"]
        output = self.run("predict.py", *common, *shlex.split(arguments))
        found = digest(Path(f"{output}.jsonl").read_bytes()) if output else "refused"
        return f"{self.name} | predict.py {arguments} | {found}"

    def candidates(self, arguments: str) -> str:
        """Return the line of three candidates for each of 20 sources."""
        common = ["--checkpoint", str(self.checkpoint), "--data", self.test, "--output", "OUTPUT.jsonl"]
        output = self.run("predict_downstream_condition.py", *common, *shlex.split(arguments))
        found = digest(Path(f"{output}.jsonl").read_bytes()) if output else "refused"
        return f"{self.name} | predict_downstream_condition.py {arguments} | {found}"

    def bound(self, arguments: str) -> str:
        """Return the line of the bound of 40 sentences or 20 pairs."""
        common = ["--checkpoint", str(self.checkpoint), "--data", self.test, "--json", "true", *self.cache]
        output = self.run("compute_elbo.py", *common, *arguments.split())
        if output is None:
            return f"{self.name} | compute_elbo.py {arguments} | refused"
        report = json.loads(Path(f"{output}.out").read_text())
        figures = json.dumps({key: value for key, value in report.items() if isinstance(value, int | float)})
        nats = report["nats_per_sequence"]
        return f"{self.name} | compute_elbo.py {arguments} | {digest(figures.encode())} {nats!r}"


def lines_of(scripts: Path, folder: Path, name: str) -> list[str]:
    """Return the lines of a run, for a process of a pool."""
    return Run(scripts, folder, name).lines()


def main() -> None:
    """Run everything in a temporary folder, two commands at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(__file__).parents[1], help="folder with the scripts to run")
    parser.add_argument("--only", default="", help="runs whose name contains this; all by default")
    args = parser.parse_args()
    folder = args.folder.resolve()
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        write_texts(Path(name))
        chosen = [run for run in RUNS if args.only in run]
        with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as workers:
            for lines in workers.map(lines_of, repeat(folder), repeat(Path(name)), chosen):
                print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
