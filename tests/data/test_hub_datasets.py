"""Data sets on the hub: names that are tried in order, configurations, and one-line reports."""

import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from data.corpus import find_source, holds_pairs, read_sentences, training_source
from data.hub_datasets import LM1B, HubDataset, is_hub_name, split_in
from data.sources import Source
from utils.errors import UserError

TEXT = ["the cat sees it.", "a dog likes the house.", "my bird finds a tree."]


def test_an_unreachable_hub_is_reported_with_the_names_and_a_remedy() -> None:
    with pytest.raises(UserError, match="Offline: give a .txt") as caught:
        training_source("lm1b")
    assert all(repo in str(caught.value) for repo, _, _ in LM1B)


def test_names_of_lm1b_are_tried_in_order_until_one_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake of `datasets` that records its calls: the first two names fail, the third exists."""
    requested = []

    class Rows(list):
        column_names = ("text",)

        def iter(self, batch_size: int) -> Iterator[dict]:
            yield {"text": list(self)}

    def get_dataset_split_names(repo: str, name: str | None = None, revision: str | None = None) -> list[str]:
        requested.append(HubDataset(repo, name, revision))
        if repo != LM1B[2].repo:
            raise RuntimeError(f"Dataset scripts are no longer supported, but found {repo}.py")
        return ["train", "test"]

    def load_dataset(repo: str, name: str | None, split: str, revision: str | None, streaming: bool) -> Rows:
        get_dataset_split_names(repo, name, revision)
        return Rows([" ", *(f" {split} {i} " for i in range(3))])

    stand_in = types.SimpleNamespace(get_dataset_split_names=get_dataset_split_names, load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    source = training_source("lm1b")
    assert requested == list(LM1B)
    assert list(read_sentences(source)) == ["train 0", "train 1", "train 2"]
    assert find_source("lm1b", "valid") is None and find_source("lm1b", "test").hub_split == "test"


def test_a_datasets_folder_is_read_like_a_hub_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real `datasets` library, with a parquet data set in a local folder."""
    import datasets

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "org" / "tiny"
    folder.mkdir(parents=True)
    datasets.Dataset.from_dict({"text": TEXT}).to_parquet(folder / "train.parquet")
    assert split_in("org/tiny", ["train"]) == "train" and split_in("org/tiny", ["valid", "dev"]) is None
    source = Source(hub_name="org/tiny", hub_split="train")
    assert list(read_sentences(source)) == TEXT and not holds_pairs(source)
    (folder.parent / "two").mkdir()
    datasets.Dataset.from_dict({"src": TEXT, "trg": TEXT[::-1]}).to_parquet(folder.parent / "two" / "train.parquet")
    source = Source(hub_name="org/two", hub_split="train")
    assert holds_pairs(source) and list(read_sentences(replace(source, column="trg"))) == TEXT[::-1]
    with pytest.raises(UserError, match='no column "text"'):
        list(read_sentences(source))


@pytest.fixture
def two_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a data set with two configurations, a local folder that `datasets` reads like a repository."""
    import datasets

    folder = tmp_path / "org" / "wiki"
    for name, text in (("small", TEXT[:1]), ("large", TEXT)):
        (folder / name).mkdir(parents=True)
        datasets.Dataset.from_dict({"text": text}).to_parquet(folder / name / "train-00000.parquet")
    entries = "".join(f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("small", "large"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{entries}---\n")
    monkeypatch.chdir(tmp_path)
    return "org/wiki"


def test_a_name_with_a_configuration_reads_that_configuration(two_configurations: str) -> None:
    assert split_in(f"{two_configurations}:large", ["train"]) == "train"
    for name, text in (("small", TEXT[:1]), ("large", TEXT)):
        source = Source(hub_name=f"{two_configurations}:{name}", hub_split="train")
        assert list(read_sentences(source)) == text and str(source) == f"{two_configurations}:{name}"


def test_a_configuration_that_is_missing_or_unknown_is_refused_with_a_choice(two_configurations: str) -> None:
    choice = "give one of org/wiki:small, org/wiki:large$"
    with pytest.raises(UserError, match=f"org/wiki has several configurations; {choice}"):
        split_in(two_configurations, ["train"])
    with pytest.raises(UserError, match=f"org/wiki has no configuration huge; {choice}"):
        split_in(f"{two_configurations}:huge", ["train"])


def test_the_choice_is_short_and_needs_no_second_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("Config name is missing.\nPlease pick one")

    stand_in = types.SimpleNamespace(get_dataset_split_names=refuse, get_dataset_config_names=refuse)
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    with pytest.raises(UserError, match="give one of its own: wiki:CONFIGURATION$"):
        split_in("wiki", ["train"])
    stand_in.get_dataset_config_names = lambda *_, **__: [f"c{i}" for i in range(300)]
    with pytest.raises(UserError, match="wiki:c9 and 290 more$"):
        split_in("wiki", ["train"])


@pytest.mark.parametrize("path", ["C:\\corpus", "D:/corpus", ":small", "a/b/c", "wiki:", "my text", "x", ""])
def test_paths_are_not_looked_up_on_the_hub(path: str) -> None:
    assert not is_hub_name(path)
    with pytest.raises(UserError, match="no such file or folder$|no path"):
        training_source(path)


def test_a_local_folder_has_no_configurations(two_configurations: str) -> None:
    with pytest.raises(UserError, match="org/wiki is a local file or folder, which has no configurations"):
        training_source(f"{two_configurations}:small")
    assert all(is_hub_name(name) for name in ("lm1b", "wikitext:a b", "Salesforce/wikitext:wikitext-2-raw-v1"))
