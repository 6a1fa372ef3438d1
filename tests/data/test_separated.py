"""separated.py: cells as spreadsheets and data sets write them."""

import csv
import io
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.separated import separated_rows
from utils.errors import UserError

CELL = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\r\ufeff"), max_size=12)


def rows(file: Path) -> list[dict]:
    return [row for _, row in separated_rows(file)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5))
def test_what_the_csv_module_writes_is_read_back(tmp_path_factory: pytest.TempPathFactory, cells: list) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("a", "b"), *cells])
    file = tmp_path_factory.mktemp("csv") / "x.csv"
    file.write_bytes(text.getvalue().encode())
    assert rows(file) == [{"a": a, "b": b} for a, b in cells]


def test_semicolons_separate_cells_if_the_header_has_more_of_them(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("id;text;a,b\n1;so, ja;3\n")
    assert rows(tmp_path / "x.csv") == [{"id": "1", "text": "so, ja", "a,b": "3"}]


@pytest.mark.parametrize("begin", ["", "\r\n", "sep={}\r\n", "\ufeffsep={}\n", "  \nsep={}\n"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_separator_of_a_csv_is_that_of_its_header_or_declared(tmp_path: Path, begin: str, separator: str) -> None:
    header = separator.join(["id", '"a;b,c;d,e"', "text"])
    row = separator.join(["1", '"x, y"', '"first; line\nsecond"'])
    (tmp_path / "x.csv").write_text(f"{begin.format(separator)}{header}\n{row}\n", encoding="utf-8")
    assert rows(tmp_path / "x.csv") == [{"id": "1", "a;b,c;d,e": "x, y", "text": "first; line\nsecond"}]


def test_an_endless_cell_is_refused_with_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.separated.MOST_TEXT", 100)
    (tmp_path / "x.csv").write_text('text\n"' + "a line\n" * 100)
    with pytest.raises(UserError, match=r"x.csv:2: the row that begins here has a cell of more than 400 characters"):
        rows(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (
            ["text", "plain", '"first line', "", 'second line"', '"whole"', '"he said.', 'yes"'],
            "3: a quotation .*line 5",
        ),
        (["id\ttext", '1\t"one', '2\ttwo"'], "2: a quotation .*line 3"),  # the number of cells is right by chance
        (["text", '"he said.', *["a line"] * 20, 'a TV of 12"'], ""),
        (["text", '"whole"', 'a TV of 12"', '"a" or "b"'], ""),
    ],
)
def test_the_first_line_break_in_a_cell_of_tsv_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture, lines: list, told: str
) -> None:
    (tmp_path / "x.tsv").write_text("\n".join(lines) + "\n")
    expected = [line.split("\t")[-1] for line in lines[1:] if line]
    assert [row["text"] for row in rows(tmp_path / "x.tsv")] == [t[1:-1] if t == '"whole"' else t for t in expected]
    error = capsys.readouterr().err
    assert re.search(told, error) and error.count("note:") == bool(told)


def test_a_spreadsheets_export_is_read(tmp_path: Path) -> None:
    """With a byte order mark, semicolons, the line ends of Windows and blank columns."""
    (tmp_path / "x.csv").write_bytes("\ufefftext;label;;\r\nso; es;1;;\r\n".replace("so; es", '"so; es"').encode())
    assert rows(tmp_path / "x.csv") == [{"text": "so; es", "label": "1", "": ""}]


def test_quotation_marks_of_tsv_are_text_unless_they_surround_a_cell(tmp_path: Path) -> None:
    lines = ['"no', 'he said "yes"', '"a ""b"" c"', '"a" or "b"', '"', '""']
    (tmp_path / "x.tsv").write_text("text\tid\r\n" + "".join(f"{line}\t1\r\n" for line in lines))
    assert [row["text"] for row in rows(tmp_path / "x.tsv")] == [
        '"no',
        'he said "yes"',
        'a "b" c',
        '"a" or "b"',
        '"',
        "",
    ]
