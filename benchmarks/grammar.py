"""Share of samples of process=score that follow a small grammar, as in docs/results.md.

python benchmarks/grammar.py out/grammar                       # trains for two minutes
python benchmarks/grammar.py out/grammar10 --sigma_max 10      # further flags go to main.py and override
"""

import random
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ADJECTIVES, NOUNS = ["old", "big", "small", "young"], ["cat", "dog", "king", "queen", "bird"]
VERBS, PLACES = ["sees", "likes", "finds", "hears"], ["by the sea", "in the park", "near the house"]
THING = f"the (?:(?:{'|'.join(ADJECTIVES)}) )?(?:{'|'.join(NOUNS)})"
GRAMMAR = re.compile(f"{THING} (?:{'|'.join(VERBS)}) {THING}(?: (?:{'|'.join(PLACES)}))?")
SETTINGS = [
    "--process", "score", "--output_prior", "false", "-spm", "sentencepiece", "--vocab_size", "160",
    "--model_name_or_path", "score-lm-small", "--from_scratch", "true", "--config_overrides",
    "hidden_size=64,embedding_size=32,num_hidden_layers=2,fourier_size=32,intermediate_size=256",
    "--max_length", "24", "--batch_size", "16", "--max_steps", "2000", "--packing", "true", "--optimizer", "muon",
    "--learning_rate", "3e-3", "--warmup_steps", "100", "--eval_steps", "2000", "--eval_sequences", "64",
    "--threads", "1", "--precision", "fp32", "--tracker", "none",
]  # fmt: skip
SAMPLERS = [("renoise", 200), ("renoise", 20), ("renoise", 5), ("euler", 200), ("euler", 50), ("euler", 20)]
SAMPLERS += [("euler", 5), ("heun", 25), ("sde", 200), ("sde", 50)]


def sentence(rng: random.Random) -> str:
    """Draw a sentence such as "the old cat sees the big dog by the sea"."""

    def thing() -> str:
        return " ".join(["the", *rng.sample(ADJECTIVES, rng.randrange(2)), rng.choice(NOUNS)])

    return " ".join([thing(), rng.choice(VERBS), thing(), *rng.sample(PLACES, rng.randrange(2))])


def write_corpus(folder: Path) -> None:
    """Write 20,000 training and 300 validation sentences."""
    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for name, number in (("train", 20_000), ("valid", 300)):
        (folder / f"{name}.txt").write_text("".join(sentence(rng) + "\n" for _ in range(number)))


def share_in_grammar(texts: list[str]) -> float:
    """Return the share of lines that follow the grammar."""
    return sum(bool(GRAMMAR.fullmatch(text)) for text in texts) / len(texts)


def main() -> None:
    """Train, score, sample and print the shares."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    folder, more = Path(sys.argv[1]).absolute(), sys.argv[2:]
    write_corpus(folder)
    cache = ["--cache_dir", folder / "cache"]
    script("main.py", *SETTINGS, "-d", folder, "-mdir", folder / "run", *cache, *more)
    print(script("compute_elbo.py", "--checkpoint", folder / "run", "--data", folder / "valid.txt", *cache))
    for sampler, steps in SAMPLERS:
        words = ["--num_samples", 200, "--threads", 1, "--sampler", sampler, "--num_steps", steps]
        texts = script("predict.py", "--checkpoint", folder / "run", *words).splitlines()
        print(f"{sampler} {steps}: {share_in_grammar(texts):.3f} in the grammar, {len(set(texts))} different")


def script(name: str, *words: object) -> str:
    """Run one of the scripts; return its output."""
    command = [sys.executable, ROOT / name, *map(str, words)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    main()
