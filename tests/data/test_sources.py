"""sources.py: the split of each file in a folder; ambiguous names and irregular files are refused."""

import gzip
import os
import socket
from pathlib import Path

import pytest

import main
from data import sources
from data.sources import Source, announce, find_source, fingerprint, overlap, split_of, summarise, training_source
from tests.conftest import SENTENCES, TINY, call
from utils.errors import UserError


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("ptb.train.txt", "train"), ("wiki-train-00000-of-00004.parquet", "train"), ("train_clean.jsonl", "train"),
        ("my test set.txt", "test"), ("TRAIN.TXT", "train"), ("qqp_dev.jsonl", "valid"), ("qqpDev.jsonl", "valid"),
        ("QQPDev.jsonl", "valid"), ("wiki.valid.raw.txt.gz", "valid"), ("validation.jsonl.xz", "valid"),
        ("eval2.txt", "valid"), ("testset.txt", "test"), ("Testing.txt", "test"), ("training_notes.txt", "train"),
        ("news.en.heldout-00000-of-00050.txt", "heldout"), ("held_out.txt", "heldout"), ("Held-Out.txt", "heldout"),
        ("heldout_test.txt", "test"), ("devtest.txt", "test"), ("latest.txt", ""), ("contest.txt", ""),
        ("news.en-00001-of-00100.txt", ""), ("constrained.txt", ""), ("validity.txt", ""),
        ("text.test2013.txt", "test"),
    ],
)  # fmt: skip
def test_a_word_of_the_file_name_gives_the_split(name: str, split: str) -> None:
    assert split_of(name) == split


def folder_of(folder: Path, names: str) -> str:
    """Write files of these names, each with a different sentence."""
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(names.split()):
        text = f"{SENTENCES[i]}\n".encode()
        (folder / name).write_bytes(gzip.compress(text) if name.lower().endswith("gz") else text)
    return str(folder)


@pytest.mark.parametrize(
    ("names", "train", "valid", "test"),
    [
        ("ptb.train.txt ptb.valid.txt ptb.test.txt", "ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"),
        ("TRAIN.TXT Dev.Txt.GZ", "TRAIN.TXT", "Dev.Txt.GZ", None),
        ("a.txt b.txt latest.txt", "a.txt b.txt latest.txt", None, None),
        ("train-0-of-2.txt train-1-of-2.txt x.test.txt", "train-0-of-2.txt train-1-of-2.txt", None, "x.test.txt"),
        ("train.txt heldout.txt", "train.txt", "heldout.txt", None),
        ("train.txt valid.txt heldout.txt", "train.txt", "valid.txt", "heldout.txt"),
        ("train.txt valid.txt test.txt heldout.txt", "train.txt", "valid.txt", "test.txt"),
        ("train.txt README.txt vocab.txt ._train.txt labels.csv counts.json", "train.txt", None, None),
        ("train.csv valid.json test.tsv.gz labels.csv", "train.csv", "valid.json", "test.tsv.gz"),
        ("mine.csv settings.json", "mine.csv", None, None),
        ("news.en-00001-of-00100.txt news.en-00002-of-00100.txt", "news.en-00001-of-00100.txt "
         "news.en-00002-of-00100.txt", None, None),
    ],
)  # fmt: skip
def test_a_folder_is_split_by_its_file_names(tmp_path: Path, names: str, train: str, valid: str, test: str) -> None:
    data = folder_of(tmp_path / "data", names)
    for split, expected in (("train", train), ("valid", valid), ("test", test)):
        source = find_source(data, split)
        assert (source and " ".join(file.name for file in source.files)) == expected
    assert list(sources._splits_of(Path(data))) == ["train", "valid", "test", "heldout"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("train.txt notes.txt", "train.txt name a split, notes.txt none; put it in the name"),
        ("a.txt b.txt c.txt d.txt e.txt test.txt", r"test.txt name a split, a.txt, b.txt, c.txt and 2 more none"),
        ("train_test.txt", r"train_test.txt names two splits \(test and train\); rename it, move it away"),
        ("train.txt train.txt.gz", "train.txt, train.txt.gz hold one text twice"),
        ("Train.txt train.jsonl", "Train.txt, train.jsonl hold one text twice"),
        ("a.txt a.jsonl", "a.jsonl, a.txt hold one text twice"),
        ("valid.txt", "but no train.txt or train.jsonl"),
        ("corpus.json", "a .json needs a split in its name: train.json"),
        ("train.doc", r"no text in this folder; it must contain a file like train.txt \(.txt, .jsonl, .csv"),
    ],
)
def test_a_folder_with_ambiguous_splits_is_refused(tmp_path: Path, names: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        training_source(folder_of(tmp_path / "data", names))


def test_two_validation_texts_are_ambiguous_but_shards_of_one_text_are_not(tmp_path: Path) -> None:
    data = folder_of(tmp_path / "data", "train.txt dev.txt valid.txt test-0-of-2.txt test-1-of-2.txt")
    with pytest.raises(UserError, match="valid is ambiguous: dev.txt, valid.txt"):
        find_source(data, "valid")
    assert len(find_source(data, "test").files) == 2


def test_the_sources_are_announced_once_by_one_process(tmp_path: Path, capsys, monkeypatch) -> None:
    data = folder_of(tmp_path / "data", "a.train.txt b.train.txt c.valid.txt d.test.txt LICENSE.txt e.csv")
    parts = {"train": find_source(data, "train"), "valid": find_source(data, "valid")}
    expected = "reading train: a.train.txt, b.train.txt; valid: c.valid.txt; test is left alone: d.test.txt; "
    assert summarise(parts) == expected + "tables that name no split: e.csv"
    monkeypatch.setattr(sources, "rank", lambda: 1)
    announce(parts)
    monkeypatch.setattr(sources, "rank", lambda: 0)
    announce(parts), announce(parts)
    assert capsys.readouterr().err == summarise(parts) + "\n"


def test_training_reports_its_files_and_validation_on_training_text(tmp_path, monkeypatch, capsys) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, part in {"x.train": SENTENCES, "x.valid": SENTENCES, "x.test": SENTENCES[:9]}.items():
        (folder / f"{name}.txt").write_text("\n".join(part))
    flags = [*TINY, "--train_data", folder, "--output_dir", tmp_path / "run", "--cache_dir", tmp_path / "cache"]
    assert call(main.main, monkeypatch, *flags, "--max_steps", 1, "--eval_sequences", 1) == 0
    out, err = capsys.readouterr()
    assert err.count("reading train: x.train.txt; valid: x.valid.txt; test is left alone: x.test.txt\n") == 1
    assert f"note: {folder / 'x.valid.txt'} is training text and validation text" in err
    assert "240 training and 240 validation sentences" in out


def test_overlap_is_found_by_path_or_content(tmp_path: Path) -> None:
    names = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt", "d.txt")]
    for file, text in zip(names, ("one", "one", "two", "three"), strict=True):
        file.write_text(text)
    texts = [Source((file,)) for file in names]
    assert overlap(texts[0], texts[0]) and overlap(texts[0], texts[1]) == str(names[1])
    assert not overlap(texts[0], texts[2]) and not overlap(texts[0], texts[3])


def test_a_fingerprint_depends_on_content_and_kind(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.txt", "b.TXT", "c.jsonl", "d.txt")]
    for file in files:
        file.write_text("{}" if file.name != "d.txt" else "[]")
    a, b, c, d = (fingerprint(Source((file,))) for file in files)
    assert a == b and len({a, c, d}) == 3
    assert fingerprint(Source((files[0],)), named=True) != fingerprint(Source((files[1],)), named=True)


def test_a_path_that_is_no_regular_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    os.symlink("loop", "loop")
    os.symlink("loop.txt", "loop.txt")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.txt")
        for name in ("pipe", "socket.txt", "/dev/zero"):
            with pytest.raises(UserError, match="not a regular file but a pipe, device or socket"):
                training_source(name)
    for name in ("loop", "loop.txt"):
        with pytest.raises(UserError, match="a link without a target, or to itself"):
            training_source(name)
    Path("a.doc").write_text("[]")
    with pytest.raises(UserError, match="not a supported kind of file; use one of .txt, .jsonl, .csv"):
        training_source("a.doc")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("PTBtrain.txt", "train"), ("PTBtest.txt", "test"), ("TRAINset.txt", "train"), ("TESTset.txt", "test"),
        ("IMDBTest.txt", "test"), ("aTEST.txt", "test"), ("newstest2014.txt", "test"), ("a.devel.txt", "valid"),
        ("validate.txt", "valid"), ("corpus.holdout.txt", "heldout"), ("hold-out.txt", "heldout"),
        ("x.tst.txt", "test"),
        ("latest.txt", ""), ("contest.txt", ""), ("LATEST.txt", ""), ("trains.txt", ""), ("valued.txt", ""),
    ],
)  # fmt: skip
def test_capitals_and_synonyms_give_the_split(name: str, split: str) -> None:
    assert sources.split_of(name) == split


@pytest.mark.parametrize("names", [["mytrain.txt", "mytest.txt"], ["wikitrain.txt", "wikivalid.txt", "wikitest.txt"]])
def test_split_names_within_a_longer_word_are_refused(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_text("a\n")
    with pytest.raises(UserError, match="beside .*train.txt: if these are splits, separate the word"):
        sources.find_source(str(tmp_path), "train")
