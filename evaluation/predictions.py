"""Files of predictions: a journal that an interrupted run continues, our .jsonl, and DiffuSeq's one-file-per-seed form.

    {"index": 0, "source": ..., "reference": ..., "candidates": [...], "prediction": ...}     one line a source
    {"recover": ..., "reference": ..., "source": ...}                                         DiffuSeq's, a file a seed

Source and reference stand as the tokenizer writes them, as the candidates do; `index` is the pair's place in its file.
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
"""What a record of ours must hold."""
MOST_BYTES = 2**30
"""In a file of predictions; all of it is in memory."""


def fingerprint_of(checkpoint: Path, recipe: dict, sources: list[str], references: list[str]) -> str:
    """A hash of all that decides the predictions: the model's files, the settings, the pairs."""
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
    """The journal of an output file."""
    return output.with_name(output.name + ".part")


@contextlib.contextmanager
def alone_with(output: Path) -> Iterator[None]:
    """A lock on the journal of an output file: two programs at once would write it, and the result, through each other.

    Raises:
        UserError: if another process is at it, or it is no file.
    """
    path = journal_of(output)
    if path.exists():
        open_regular(path).close()
    refusal = f"output={output}: another process is predicting into it; wait for it, or give another output"
    with held_alone(path, refusal):
        yield


class Journal:
    """Records as they come, in OUTPUT.part; whoever opens it again with the same recipe finds them."""

    def __init__(self, output: Path, recipe: str) -> None:
        """Open or continue the journal of an output file; one of another recipe is begun anew."""
        self.path = journal_of(output)
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
                if not line.endswith(b"\n"):
                    break  # it was being written
                try:
                    entry = json.loads(line)
                    if number == 0 and entry["recipe"] != recipe:
                        print(
                            f"note: {self.path} is of other settings, pairs or weights: starting anew", file=sys.stderr
                        )
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
            raise UserError(f"{self.path}: {reason}; make room and type the command again: it goes on") from error

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


def write_diffuseq(folder: Path, records: list[dict], seed: int, num_steps: float) -> None:
    """A folder with one file a candidate, as if each had been drawn with a seed of its own (which it was)."""
    with folder_written_whole(folder) as temporary:  # whole, since its reader takes every file in it for a candidate
        for j in range(len(records[0]["candidates"])):
            with open(temporary / f"seed{seed + j}_step{num_steps}.json", "w", encoding="utf-8") as file:
                for record in records:
                    line = {"recover": record["candidates"][j], **{k: record[k] for k in ("reference", "source")}}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_predictions(path: Path) -> list[dict] | None:
    """Records of predictions in our form or DiffuSeq's; None if the file holds plain samples.

    Args:
        path: our .jsonl; one of DiffuSeq's .json files; or a folder of them, one a seed.

    Raises:
        UserError: if a file is empty or broken, or the files of several seeds do not belong together.
    """
    if path.is_dir():
        files = sorted(path.glob("*.json"), key=lambda file: [int(n) for n in re.findall(r"\d+", file.name)])
        if not files:
            raise UserError(f"{path}: no .json file of DiffuSeq's form in this folder")
        return merge([read_records(file) for file in files], files)
    if path.suffix.lower() == ".txt":
        return None
    records = read_records(path)
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


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line, stripped, as a corpus is read: a BOM is taken off, U+2028 is no end of a line.

    Raises:
        UserError: naming file and line, if it is not UTF-8 or too long; if it is no regular file, or too large.
    """
    number = size = 0
    try:
        with open_regular(path) as file:
            while line := read_line(file, path, partial(int, number + 1)):
                number, size = number + 1, size + len(line)
                if size > MOST_BYTES:
                    raise UserError(f"{path}: more than {MOST_BYTES:,} bytes; split it into several files")
                yield number, decoded(line, path, number)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def read_records(path: Path) -> dict[int, dict]:
    """The objects of a file with one JSON object a line, by their line's number."""
    records = {}
    for number, line in read_lines(path):
        try:
            record = json.loads(line) if line else None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: not JSON ({error}); every line must be an object") from error
        if record is not None and not isinstance(record, dict):
            raise UserError(f"{path}:{number}: every line must be an object; it is a {type(record).__name__}")
        if record is not None:
            records[number] = record
    if not records:
        raise UserError(f"{path}: no predictions in it")
    return records


def read_samples(path: Path) -> list[str]:
    """Plain samples: the lines of a .txt, empty ones too, or "text" of each line of a .jsonl.

    Raises:
        UserError: if there are none, or the file is of another kind.
    """
    if path.suffix.lower() == ".txt":
        samples = [line for _, line in read_lines(path)]
        if samples in ([], [""]):
            raise UserError(f"{path}: no predictions in it")
        return samples
    records = read_records(path)
    for number, record in records.items():
        _require(record, {"text": str}, path, number)
    return [record["text"].strip() for record in records.values()]


def merge(by_seed: list[dict[int, dict]], files: list[Path]) -> list[dict]:
    """DiffuSeq's files as records with one candidate a file; its [CLS], [SEP], [PAD] strings are taken off."""
    for records, file in zip(by_seed, files, strict=True):
        if len(records) != len(by_seed[0]):
            raise UserError(f"{file}: {len(records)} lines, but {files[0]} has {len(by_seed[0])}; predict again")
        for (number, record), first in zip(records.items(), by_seed[0].values(), strict=True):
            _require(record, {"recover": str, "reference": str, "source": str}, file, number)
            if record["reference"] != first["reference"]:
                raise UserError(
                    f"{file}:{number}: its reference is not the one in {files[0]}; keep one data set's files"
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
            what = {str: "a string", list: "a list"}[kind]
            raise UserError(
                f'{path}:{number}: every line must have {what} "{name}"; its keys are {shown(sorted(record))}'
            )
    _encodable([record[name] for name, kind in wanted.items() if kind is str], path, number)


def _encodable(texts: list[str], path: Path, number: int) -> None:
    if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
        raise UserError(f"{path}:{number}: a text has half a surrogate pair, which no encoding can hold; mend the line")
