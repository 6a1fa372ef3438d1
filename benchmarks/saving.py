"""Share of a training's time spent on saving its state.

    python benchmarks/saving.py                    # the demo's network, a state every 500 steps
    python benchmarks/saving.py --steps 1000 --batch_size 64

Saving is timed within the training. The time includes writing, checksums and waiting for the disk.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import main as training  # noqa: E402
from training import bookkeeper  # noqa: E402
from utils.command_line import run_script  # noqa: E402

SETTINGS = [
    "--tokenizer", "wordpiece", "--vocab_size", "4096", "--model_name_or_path", "modernbert-small",
    "--from_scratch", "true", "--max_length", "64", "--optimizer", "muon", "--learning_rate", "3e-3",
    "--config_overrides", "hidden_size=192,intermediate_size=384,num_attention_heads=3", "--tracker", "none",
    "--eval_sequences", "8", "--eval_step_size", "1024",
]  # fmt: skip


def main() -> None:
    """Train on a corpus and time the saving of states."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train_data", default="out/demo/corpus", help="default: what `bash run.sh demo` leaves")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--batch_size", type=int, default=128)
    args = parser.parse_args()
    saving, steps = [], []
    real_save, real_agree = bookkeeper.Bookkeeper.save_state, bookkeeper.Bookkeeper.agree

    def save_state(self: bookkeeper.Bookkeeper, step: int, position: object, **facts: bool) -> None:
        began = time.monotonic()
        real_save(self, step, position, **facts)
        saving.append(time.monotonic() - began)

    def agree(self: bookkeeper.Bookkeeper, *words: object) -> bookkeeper.Agreement:
        steps.append(time.monotonic())
        return real_agree(self, *words)

    bookkeeper.Bookkeeper.save_state, bookkeeper.Bookkeeper.agree = save_state, agree
    with tempfile.TemporaryDirectory() as name:
        words = ["--train_data", args.train_data, "--output_dir", f"{name}/run", "--cache_dir", f"{name}/cache"]
        words += ["--max_steps", args.steps, "--eval_steps", 10 * args.steps, "--save_every", args.every]
        sys.argv = ["main.py", *SETTINGS, *map(str, [*words, "--batch_size", args.batch_size])]
        run_script(training.main)
        size = sum(file.stat().st_size for file in next((Path(name) / "run" / "state").iterdir()).iterdir())
    step = (steps[-1] - steps[0]) / (len(steps) - 1)
    share = sum(saving) / len(saving) / (args.every * step)
    print(json.dumps({
        "share_of_the_time": round(share, 5), "seconds_to_save": round(sum(saving) / len(saving), 3),
        "seconds_a_step": round(step, 4), "steps_between": args.every, "state_mb": round(size / 1e6, 1),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
