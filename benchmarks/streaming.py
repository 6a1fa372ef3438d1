"""Stream a corpus larger than memory: peak memory of each process, and each line read exactly once.

    python benchmarks/streaming.py                    # 2 GB in 64 shards, 2 ranks of 2 workers each
    python benchmarks/streaming.py --gigabytes 0.2

Lines have one length, so a line's number follows from its offset in the file, and one bit per line records that it was
read. `growth_mb` is the largest growth of a process (a rank or one of its workers) while it read: VmHWM minus the
rank's memory before it opened the corpus.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from transformers import BertTokenizerFast  # noqa: E402

from data.corpus import Source  # noqa: E402
from data.options import DataArgs  # noqa: E402
from data.streaming import StreamedBatches, open_stream  # noqa: E402
from data.wordpiece import SPECIAL_TOKENS  # noqa: E402

LINE = 2000  # bytes
WORDS = [letter * 60 for letter in "abcdefghijklmnopqrst"]  # long, one token each, so that tokenizing costs little


def main() -> None:
    """Write the corpus, read it on all ranks and check the lines."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2, help="of each rank")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, each = Path(name), max(1, int(args.gigabytes * 1e9 / args.shards / LINE))
        write(folder, args.shards, each)
        began, context = time.monotonic(), multiprocessing.get_context("spawn")
        results = context.SimpleQueue()
        ranks = [
            context.Process(target=read, args=(folder, each, rank, args.ranks, args.workers, results))
            for rank in range(args.ranks)
        ]
        for process in ranks:
            process.start()
        found = [results.get() for _ in ranks]
        seen, growth = sum(seen for seen, _ in found), max(max(grown) for _, grown in found)
        print(json.dumps({
            "gigabytes": args.shards * each * LINE / 1e9, "shards": args.shards, "lines": args.shards * each,
            "read_once": int((seen == 1).sum()), "missed": int((seen == 0).sum()), "read_again": int((seen > 1).sum()),
            "growth_mb": round(growth, 1), "growth_mb_by_process": [[round(x, 1) for x in grown] for _, grown in found],
            "seconds": round(time.monotonic() - began, 1),
        }))  # fmt: skip


def write(folder: Path, shards: int, each: int) -> None:
    """Write files of equal numbers of lines, all of one length."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, LINE // 61))[: LINE - 1].ljust(LINE - 1) + "\n" for _ in range(500)]
    for shard in range(shards):
        with open(folder / f"train-{shard:05d}-of-{shards:05d}.txt", "w") as file:
            for i in range(each):
                file.write(texts[(shard + i) % 500])


def read(folder: Path, each: int, rank: int, ranks: int, workers: int, results: object) -> None:
    """Read the first epoch of all lanes of one rank."""
    torch.set_num_threads(1)
    source = Source(tuple(sorted(folder.glob("train-*"))))
    entries = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *WORDS])}
    tokenizer = BertTokenizerFast(vocab=entries)
    args = DataArgs("x", batch_size=64, max_length=32, num_workers=workers)
    before = megabytes("self", "VmRSS")
    text = open_stream(source, tokenizer, args)
    stream = StreamedBatches(text, seed=0, parts=ranks, rank=rank, world_size=ranks)
    seen, finished = np.zeros(len(source.files) * each, np.int8), set()
    while len(finished) < stream.lanes // ranks:
        number = stream.first + rank
        for part in stream.take():
            if part.epoch == 0:
                for file, at in part.locations.args[0]:
                    seen[file * each + at // LINE] += 1
            else:
                finished.add(number % stream.lanes)
    processes = ["self", *(str(child.pid) for child in multiprocessing.active_children())]
    results.put((seen, [megabytes(process, "VmHWM") - before for process in processes]))
    stream.close()


def megabytes(process: str, what: str) -> float:
    """Return a figure of /proc/PROCESS/status in MB."""
    line = next(line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) / 1000


if __name__ == "__main__":
    main()
