"""Files of predictions: a journal that an interrupted run continues, our .jsonl, and DiffuSeq's one-file-per-seed form.

    {"index": 0, "source": ..., "reference": ..., "candidates": [...], "prediction": ...}     one line a source
    {"recover": ..., "reference": ..., "source": ...}                                         DiffuSeq's, a file a seed

Source and reference stand as the tokenizer writes them, as the candidates do; `index` is the pair's place in its file.
"""

import hashlib
import json
import os
from pathlib import Path

from runtime import written_whole


def fingerprint_of(checkpoint: Path, recipe: dict, sources: list[str], references: list[str]) -> str:
    """A hash of all that decides the predictions: the model's files, the settings, the pairs."""
    digest = hashlib.blake2b(json.dumps(recipe, sort_keys=True).encode(), digest_size=16)
    for file in sorted(path for path in checkpoint.iterdir() if path.suffix in (".json", ".safetensors")):
        digest.update(file.name.encode())
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    for text in (*sources, *references):
        digest.update(f"{len(text)}:{text}".encode())
    return digest.hexdigest()


class Journal:
    """Records as they come, in OUTPUT.part; whoever opens it again with the same recipe finds them."""

    def __init__(self, output: Path, recipe: str) -> None:
        """Open or continue the journal of an output file; one of another recipe is begun anew."""
        self.path = output.with_name(output.name + ".part")
        self.records: dict[int, dict] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        good = self._read(recipe) if self.path.exists() else 0
        self.file = open(self.path, "r+b" if good else "wb")
        self.file.truncate(good)  # a line that was being written when the run was stopped
        self.file.seek(good)
        if not good:
            self._write({"recipe": recipe})

    def _read(self, recipe: str) -> int:
        """Takes the whole lines; returns where they end, 0 if the journal is another recipe's."""
        end = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file):
                try:
                    entry = json.loads(line) if line.endswith(b"\n") else None
                    if number == 0 and entry["recipe"] != recipe:
                        return 0
                    if number:
                        self.records[int(entry["index"])] = entry
                except (ValueError, KeyError, TypeError):
                    break
                end += len(line)
        return end

    def _write(self, entry: dict) -> None:
        self.file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        self.file.flush()

    def add(self, index: int, record: dict) -> None:
        """Keep a record; from here on an interruption does not lose it."""
        self.records[index] = record
        self._write(record)

    def finish(self, count: int) -> list[dict]:
        """Records 0 to count - 1, in order."""
        self.file.close()
        return [self.records[i] for i in range(count)]

    def remove(self) -> None:
        """Delete the file: the results are elsewhere."""
        os.unlink(self.path)


def write_predictions(path: Path, records: list[dict]) -> None:
    """Our own form."""
    with written_whole(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def write_diffuseq(folder: Path, records: list[dict], seed: int, num_steps: int) -> None:
    """One file a candidate, as if each had been drawn with a seed of its own (which it was)."""
    for j in range(len(records[0]["candidates"])):
        with written_whole(folder / f"seed{seed + j}_step{num_steps}.json") as file:
            for record in records:
                line = {"recover": record["candidates"][j], **{k: record[k] for k in ("reference", "source")}}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
