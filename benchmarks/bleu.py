"""Time of BLEU against a whole corpus: nltk and this project on a small size, this project on a full one.

python benchmarks/bleu.py
"""

import random
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from nltk.translate.bleu_score import corpus_bleu

from evaluation.text_metrics import ReferenceCorpus, self_bleu

WORDS = [f"w{i}" for i in range(5000)]
WEIGHTS = [1 / (rank + 1) for rank in range(len(WORDS))]


def sentences(count: int, seed: int) -> list[list[str]]:
    """Draw sentences of 5 to 40 words by Zipf's law."""
    rng = random.Random(seed)
    return [rng.choices(WORDS, WEIGHTS, k=rng.randint(5, 40)) for _ in range(count)]


def main() -> None:
    """Time both and print the results."""
    warnings.simplefilter("ignore")  # nltk warns of each sample without a common 4-gram
    samples, references = sentences(200, 0), sentences(2000, 1)
    begin = time.perf_counter()
    theirs = [corpus_bleu([references], [sample]) for sample in samples]
    middle = time.perf_counter()
    corpus = ReferenceCorpus(references)
    ours = [corpus.bleu(sample) for sample in samples]
    end = time.perf_counter()
    largest = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    print(f"200 samples against 2,000 references: nltk / ours = {(middle - begin) / (end - middle):.0f}")
    print(f"largest difference {largest:.1e}")
    samples, references = sentences(1000, 0), sentences(10_000, 1)
    begin = time.perf_counter()
    corpus = ReferenceCorpus(references)
    for sample in samples:
        corpus.bleu(sample)
    middle = time.perf_counter()
    self_bleu(samples)
    end = time.perf_counter()
    print(f"1,000 samples against 10,000 references: {middle - begin:.2f} s; self-BLEU of 1,000: {end - middle:.2f} s")


if __name__ == "__main__":
    main()
