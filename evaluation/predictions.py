"""Files of predictions: our .jsonl, DiffuSeq's files (one per seed), and a journal for interrupted runs.

    {"index": 0, "source": ..., "reference": ..., "candidates": [...], "prediction": ...}     ours, a line per source
    {"recover": ..., "reference": ..., "source": ...}                                         DiffuSeq's, per seed

Source and reference are decoded by the tokenizer, like the candidates; `index` is the pair's index in its file.
"""

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from data.records import decoded, read_line
from utils.errors import UserError, shown
from utils.files import folder_written_whole, held_alone, open_regular, written_whole

FORM = {"source": str, "reference": str, "prediction": str, "candidates": list}
"""Required keys and types of a record in our form."""
MAX_BYTES = 2**30
"""Largest file of predictions; it is read into memory."""


def fingerprint_of(checkpoint: Path, recipe: dict, sources: list[str], references: list[str]) -> str:
    """Return a hash of everything that determines the predictions: model files, settings and pairs."""
    digest = hashlib.blake2b(json.dumps(recipe, sort_keys=True).encode(), digest_size=16)
    for file in sorted(path for path in checkpoint.iterdir() if path.suffix in (".json", ".safetensors")):
        digest.update(file.name.encode())
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    for texts in (sources, references):
        digest.update(json.dumps(texts).encode())
    return digest.hexdigest()


def journal_of(output: Path) -> Path:
    """Return the path of an output file's journal."""
    return output.with_name(output.name + ".part")


@contextlib.contextmanager
def lock_output(output: Path) -> Iterator[None]:
    """Lock the journal of an output file, so that two processes do not write to it at once.

    Raises:
        UserError: if another process holds the lock, or the journal is no regular file.
    """
    path = journal_of(output)
    if path.exists():
        open_regular(path).close()
    refusal = f"output={output}: another process is writing predictions to it; wait for it, or give another output"
    with held_alone(path, refusal):
        yield


class Journal:
    """Records of an unfinished run in OUTPUT.part; a later run with the same recipe continues it."""

    def __init__(self, output: Path, recipe: str) -> None:
        """Open the journal of an output file; it is cleared if its recipe differs."""
        self.path = journal_of(output)
        self.records: dict[int, dict] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        valid_bytes = self._read(recipe) if self.path.exists() else 0
        self.file = open(self.path, "r+b" if valid_bytes else "wb")
        self.file.truncate(valid_bytes)  # removes an incomplete last line
        self.file.seek(valid_bytes)
        if not valid_bytes:
            self._write({"recipe": recipe})

    def _read(self, recipe: str) -> int:
        """Read the complete lines; return their size in bytes, 0 if the recipe differs."""
        end = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    break  # the interrupted run did not complete it
                try:
                    entry = json.loads(line)
                    if number == 0 and entry["recipe"] != recipe:
                        difference = "was written with other settings, pairs or weights"
                        print(f"note: {self.path} {difference}: starting from the first source", file=sys.stderr)
                        return 0
                    if number:
                        _require(entry, FORM, self.path, number)
                        self.records[int(entry["index"])] = entry
                except (ValueError, KeyError, TypeError):
                    break
                end += len(line)
        return end

    def _write(self, entry: dict) -> None:
        try:
            self.file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
            self.file.flush()
        except OSError as error:
            reason = f"cannot be written ({error.strerror})"
            raise UserError(f"{self.path}: {reason}; free disk space and repeat the command to continue") from error

    def add(self, index: int, record: dict) -> None:
        """Add a record and write it to the file."""
        self.records[index] = record
        self._write(record)

    def finish(self, count: int) -> list[dict]:
        """Close the file and return records 0 to count - 1."""
        self.file.close()
        return [self.records[i] for i in range(count)]

    def remove(self) -> None:
        """Delete the file, once the results are written."""
        os.unlink(self.path)


def write_predictions(path: Path, records: list[dict]) -> None:
    """Write records in our form."""
    with written_whole(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def write_diffuseq(folder: Path, records: list[dict], seed: int, num_steps: float) -> None:
    """Write a folder with one file per candidate; candidate j was drawn with seed + j."""
    with folder_written_whole(folder) as temporary:  # an extra file would be read as a candidate
        for j in range(len(records[0]["candidates"])):
            with open(temporary / f"seed{seed + j}_step{num_steps}.json", "w", encoding="utf-8") as file:
                for record in records:
                    line = {"recover": record["candidates"][j], **{k: record[k] for k in ("reference", "source")}}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_predictions(path: Path) -> list[dict] | None:
    """Read predictions in our form or DiffuSeq's; return None if the file holds plain samples.

    Args:
        path: our .jsonl, a DiffuSeq .json file, or a folder of these, one per seed.

    Raises:
        UserError: if a file is empty or malformed, or the files of several seeds do not match.
    """
    if path.is_dir():
        files = sorted(path.glob("*.json"), key=lambda file: [int(n) for n in re.findall(r"\d+", file.name)])
        if not files:
            raise UserError(f"{path}: no .json file in this folder; give DiffuSeq's files, one per seed")
        return merge([json_objects(file) for file in files], files)
    if path.suffix.lower() == ".txt":
        return None
    records = json_objects(path)
    first, size = next(iter(records.values())), None
    if "recover" in first:
        return merge([records], [path])
    if "candidates" not in first:
        return None
    for number, record in records.items():
        _require(record, FORM, path, number)
        texts = record["candidates"]
        size = size or len(texts)
        if not texts or len(texts) != size or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{path}:{number}: {len(texts)} candidates, where the first line has {size}; predict again")
        _encodable(texts, path, number)
    return list(records.values())


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and stripped text of each line, read like a corpus: a BOM is removed, U+2028 does not end a line.

    Raises:
        UserError: naming file and line, if a line is not UTF-8 or too long; if the file is not regular, or too large.
    """
    number = size = 0
    try:
        with open_regular(path) as file:
            while line := read_line(file, path, partial(int, number + 1)):
                number, size = number + 1, size + len(line)
                if size > MAX_BYTES:
                    raise UserError(f"{path}: more than {MAX_BYTES:,} bytes; split it into several files")
                yield number, decoded(line, path, number)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give another file") from error


def json_objects(path: Path) -> dict[int, dict]:
    """Read a file with one JSON object per line; return the objects by line number."""
    records = {}
    for number, line in numbered_lines(path):
        try:
            record = json.loads(line) if line else None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: not JSON ({error}); every line must be an object") from error
        if record is not None and not isinstance(record, dict):
            raise UserError(f"{path}:{number}: every line must be an object; it is a {type(record).__name__}")
        if record is not None:
            records[number] = record
    if not records:
        raise UserError(f"{path}: no predictions in it; give another file")
    return records


def read_samples(path: Path) -> list[str]:
    """Read plain samples: all lines of a .txt, or "text" of each line of a .jsonl.

    Raises:
        UserError: if there are none, or the file is malformed.
    """
    if path.suffix.lower() == ".txt":
        samples = [line for _, line in numbered_lines(path)]
        if samples in ([], [""]):
            raise UserError(f"{path}: no predictions in it; give another file")
        return samples
    records = json_objects(path)
    for number, record in records.items():
        _require(record, {"text": str}, path, number)
    return [record["text"].strip() for record in records.values()]


def merge(by_seed: list[dict[int, dict]], files: list[Path]) -> list[dict]:
    """Merge DiffuSeq's files into records with one candidate per file, without [CLS], [SEP] and [PAD] strings."""
    for records, file in zip(by_seed, files, strict=True):
        if len(records) != len(by_seed[0]):
            raise UserError(f"{file}: {len(records)} lines, but {files[0]} has {len(by_seed[0])}; predict again")
        for (number, record), first in zip(records.items(), by_seed[0].values(), strict=True):
            _require(record, {"recover": str, "reference": str, "source": str}, file, number)
            if record["reference"] != first["reference"]:
                raise UserError(
                    f"{file}:{number}: its reference differs from that in {files[0]}; give files of one data set"
                )
    merged = []
    for lines in zip(*(records.values() for records in by_seed), strict=True):
        texts = [_strip(line["recover"]) for line in lines]
        sides = {name: _strip(lines[0][name]) for name in ("source", "reference")}
        merged.append({**sides, "candidates": texts, "prediction": texts[0]})
    return merged


def _strip(text: str) -> str:
    return " ".join(re.sub(r"\[(CLS|SEP|PAD)\]|</?s>|<pad>", " ", text).split())


def _require(record: dict, wanted: dict[str, type], path: Path, number: int) -> None:
    for name, kind in wanted.items():
        if not isinstance(record.get(name), kind):
            type_name = {str: "a string", list: "a list"}[kind]
            raise UserError(
                f'{path}:{number}: every line must have {type_name} "{name}"; its keys are {shown(sorted(record))}'
            )
    _encodable([record[name] for name, kind in wanted.items() if kind is str], path, number)


def _encodable(texts: list[str], path: Path, number: int) -> None:
    if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
        raise UserError(
            f"{path}:{number}: a text has an unpaired surrogate, which UTF-8 cannot encode; correct the line"
        )
