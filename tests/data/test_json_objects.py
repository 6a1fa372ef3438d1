"""json_objects.py: arrays and sequences of objects of any size, read in parts."""

import json
from pathlib import Path

import pytest

from data import json_objects as module
from data.json_objects import json_objects
from utils.errors import UserError

OBJECTS = [{"text": f"object {i} 世界 " + "x" * (97 * i % 200), "list": [1, {"a": "]}"}]} for i in range(50)]


@pytest.mark.parametrize("part", [1, 7, 2**20])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int, indent: int) -> None:
    monkeypatch.setattr(module, "PART", part)
    file = tmp_path / "a.json"
    file.write_text("\ufeff \n" + json.dumps(OBJECTS, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
    assert list(json_objects(file)) == list(enumerate(OBJECTS))


def test_objects_one_after_the_other_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("\n".join(map(json.dumps, OBJECTS)))
    assert [value for _, value in json_objects(tmp_path / "a.json")] == OBJECTS


def test_an_object_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_LINE", 1000)
    monkeypatch.setattr(module, "PART", 100)
    (tmp_path / "a.json").write_text('[{"text": "' + "x" * 100_000)
    with pytest.raises(UserError, match="object 1 has more than 1,000 characters; split it"):
        list(json_objects(tmp_path / "a.json"))


@pytest.mark.parametrize("part", [1, 2**20])
def test_a_damaged_object_is_refused_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    monkeypatch.setattr(module, "PART", part)
    monkeypatch.setattr(module, "MOST_LINE", 10_000)
    damaged = json.dumps(OBJECTS, indent=1).replace('"object 1 ', '"object 1" ', 1)
    (tmp_path / "a.json").write_text(damaged)
    line = damaged[: damaged.index('"object 1"')].count("\n") + 1
    with pytest.raises(UserError, match=rf"a.json:{line}: object 2 is not JSON \(Expecting ',' delimiter\)"):
        list(json_objects(tmp_path / "a.json"))
