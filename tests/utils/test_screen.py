"""screen.py: frames at every pause, read from a pseudo-terminal; and lines without a terminal."""

import fcntl
import os
import re
import select
import struct
import sys
import termios
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import predict
from tests.conftest import call
from utils import screen
from utils.screen import BRIGHT, DIM, INTERVAL, MOST_SECONDS, PLAIN, FramePauses, Screen, break_lines


class Emulator:
    """Emulated terminal: characters and styles on its screen after the bytes sent to it."""

    SEQUENCE = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])")

    def __init__(self, columns: int, height: int) -> None:
        self.columns, self.height = columns, height
        self.cells = [[]]
        self.row = self.column = 0
        self.style = ""

    def feed(self, text: str) -> None:
        position = 0
        while position < len(text):
            sequence = self.SEQUENCE.match(text, position)
            position = sequence.end() if sequence else position + 1
            if sequence:
                self.execute(sequence[1], sequence[2])
            elif text[position - 1] == "\r":
                self.column = 0
            elif text[position - 1] == "\n":
                self.down()
            else:
                self.put(text[position - 1])

    def execute(self, number: str, letter: str) -> None:
        if letter == "m":
            self.style = "" if number in ("", "0") else number
        elif letter == "A":
            self.row = max(self.row - int(number or 1), len(self.cells) - self.height, 0)
        elif letter in "KJ":
            assert number in ("", "2")
            del self.cells[self.row][0 if number == "2" else self.column :]
            if letter == "J":
                del self.cells[self.row + 1 :]
        else:
            raise AssertionError(f"unexpected escape sequence ending in {letter}")

    def down(self) -> None:
        self.row += 1
        if self.row == len(self.cells):
            self.cells.append([])

    def put(self, character: str) -> None:
        if unicodedata.combining(character):
            before, style = self.cells[self.row][self.column - 1]
            self.cells[self.row][self.column - 1] = before + character, style
            return
        wide = unicodedata.east_asian_width(character) in "WF"
        if self.column + 1 + wide > self.columns:  # a terminal wraps a line that is too long
            self.column = 0
            self.down()
        line = self.cells[self.row]
        line += [(" ", "")] * (self.column + 1 + wide - len(line))
        line[self.column] = character, self.style
        if wide:
            line[self.column + 1] = "", self.style
        self.column += 1 + wide

    @property
    def lines(self) -> list[str]:
        return ["".join(c for c, _ in line).rstrip() for line in self.cells]

    def styled(self, style: str) -> str:
        return "".join(c for line in self.cells for c, applied in line if f"\x1b[{applied}m" == style)


def stop_clock(monkeypatch: pytest.MonkeyPatch, sleep: Callable[[float], None]) -> None:
    """Stop the clock of utils/screen.py while the network computes, so that the machine's speed has no effect."""
    monkeypatch.setattr(screen, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: 0.0))


class Terminal:
    """Pseudo-terminal as stdout and stderr; `moments` are its screens at every pause of the program."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, columns: int, height: int, term: str = "xterm") -> None:
        self.master, slave = os.openpty()
        self.emulator, self.moments, self.pauses = Emulator(columns, height), [], []
        self.resize(columns, height)
        self.stream = os.fdopen(slave, "w", encoding="utf-8")
        monkeypatch.setenv("TERM", term)
        monkeypatch.delenv("NO_COLOR", raising=False)
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, self.stream)
        stop_clock(monkeypatch, self.pause)

    def resize(self, columns: int, height: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", height, columns, 0, 0))

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.read()
        self.moments.append((self.emulator.lines, self.emulator.styled(DIM), self.emulator.styled(BRIGHT)))

    def read(self) -> list[str]:
        self.stream.flush()
        taken = b""
        while select.select([self.master], [], [], 0)[0]:
            taken += os.read(self.master, 2**16)
        self.emulator.feed(taken.decode())
        return self.emulator.lines

    def close(self) -> None:
        self.stream.close()
        os.close(self.master)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Terminal]]:
    terminals = []

    def make(columns: int = 80, height: int = 24, **variables: str) -> Terminal:
        terminals.append(Terminal(monkeypatch, columns, height, **variables))
        return terminals[-1]

    yield make
    monkeypatch.undo()
    for each in terminals:
        each.close()


def joined(lines: list[str]) -> str:
    """Return the lines of a screen as one text, without the number of forward passes."""
    return re.sub(r"^\d+ ", "", " ".join(" ".join(lines).split()))


def sample(monkeypatch: pytest.MonkeyPatch, trained: Path, *flags: object) -> int:
    return call(predict.main, monkeypatch, "--checkpoint", trained, "--threads", 1, "--num_steps", 32, *flags)


def test_a_terminal_shows_the_text_during_sampling(terminal, monkeypatch, trained: Path, capsys) -> None:
    assert sample(monkeypatch, trained, "--num_samples", 1, "--length", 14, "--seed", 3) == 0
    (expected,) = capsys.readouterr().out.splitlines()
    display = terminal(columns=40)  # so that the text takes two lines
    assert sample(monkeypatch, trained, "--show", "true", "--length", 14, "--seed", 3) == 0
    shown = display.read()
    assert joined(shown) == expected and shown[-1] == "" and len(shown) == 3
    assert not display.emulator.styled(DIM).strip("0123456789 ") and not display.emulator.styled(BRIGHT)
    assert len(display.moments) >= 5 and set(display.pauses) == {INTERVAL}
    dots = [joined(lines).count("·") for lines, _, _ in display.moments]
    assert dots[0] == 14 and dots == sorted(set(dots), reverse=True)  # every pause shows more of the text
    for lines, dim, bright in display.moments[1:]:
        assert len([line for line in lines if line]) <= 2 and not any("sampling" in line for line in lines)
        assert dim.count("·") == joined(lines).count("·") and bright.strip()


def test_several_samples_are_shown_in_turn_with_their_numbers(terminal, monkeypatch, trained, capsys) -> None:
    infill = ["--infill", "the cat [MASK] the [MASK] Ω.", "--num_samples", 3, "--sampler", "confidence"]
    assert sample(monkeypatch, trained, *infill) == 0
    expected = capsys.readouterr().out.splitlines()
    display = terminal()
    assert sample(monkeypatch, trained, *infill, "--show", "true") == 0
    notes, texts = display.read()[:2], [re.sub(r" +", " ", line) for line in display.read()[2:-1]]
    assert "unknown to this vocabulary" in notes[0] + notes[1] and "law is not the model's" in notes[0] + notes[1]
    assert [re.fullmatch(r"(\d): \d+ (.*)", text).groups() for text in texts] == [
        (str(i), text) for i, text in enumerate(expected, start=1)
    ]
    for line in display.emulator.cells[2:5]:  # "the cat" is given and plain; filled-in tokens stay bright
        assert not any(style for _, style in line[10:17]) and any(f"\x1b[{style}m" == BRIGHT for _, style in line[17:])


def test_an_interrupt_leaves_the_terminal_on_a_new_line(terminal, monkeypatch, trained) -> None:
    display = terminal()
    real, calls = display.pause, []

    def interrupt(seconds: float) -> None:
        calls.append(seconds)
        real(seconds)
        if len(calls) == 3:
            raise KeyboardInterrupt

    stop_clock(monkeypatch, interrupt)
    assert sample(monkeypatch, trained, "--show", "true", "--length", 9) == 130
    lines = display.read()
    assert "·" in lines[0] and lines[1:] == ["interrupted", ""] and display.emulator.style == ""


@pytest.mark.parametrize(("term", "no_color"), [("dumb", ""), ("", ""), ("xterm", "1")])
def test_dumb_terminals_and_no_color_get_no_styles(terminal, monkeypatch, trained, term: str, no_color: str) -> None:
    display = terminal(term=term)
    monkeypatch.setenv("NO_COLOR", no_color)
    assert sample(monkeypatch, trained, "--show", "true", "--length", 6) == 0
    lines = display.read()
    assert not display.emulator.styled(DIM) + display.emulator.styled(BRIGHT)
    assert len(lines) == 2 if no_color else len(lines) > 3 and not display.pauses


def show_frames(screen: Screen, *texts: str) -> None:
    with screen.text():
        for i, text in enumerate(texts):
            screen.frame(f"{i}  ", [(text, PLAIN)], last=i == len(texts) - 1)


def test_wide_and_combining_characters_are_overwritten_completely(terminal) -> None:
    display = terminal(columns=21)
    show_frames(Screen(display.stream), "日本語の文章は" * 5, "日本語 の" * 6, "e\u0301" * 17, "end\x1b[2Jof\nit")
    assert [joined(lines).replace(" ", "") for lines, _, _ in display.moments] == [
        "日本語の文章は" * 5, "日本語の" * 6, "e\u0301" * 17
    ]  # fmt: skip
    assert len(display.moments[0][0]) == 5 and len(display.moments[2][0]) == 1  # 17 columns a line: 8 wide characters
    assert display.read() == ["3  end [2Jof it", ""]


def test_a_text_taller_than_the_terminal_is_clipped_until_its_last_frame(terminal) -> None:
    display = terminal(columns=20, height=6)
    long = " ".join(f"word{i:02}" for i in range(30))
    show_frames(Screen(display.stream), long.replace("o", "·"), long.replace("r", "·"), long)
    for lines, _, _ in display.moments:
        assert len(lines) == 5 and lines[-1] == "…" and "·" in lines[0] and "15" not in " ".join(lines)
    assert joined(display.read()) == long


def test_a_resized_terminal_gets_a_new_frame(terminal) -> None:
    display = terminal(columns=40)
    screen = Screen(display.stream)
    with screen.text():
        screen.frame("", [("a " * 30, PLAIN)])
        display.resize(20, 24)
        screen.frame("", [("b " * 8, PLAIN)])
    assert [line for line in display.read() if line][-1] == ("b " * 8).strip()


def test_the_sum_of_pauses_is_bounded(monkeypatch) -> None:
    pauses: list[float] = []
    stop_clock(monkeypatch, pauses.append)
    frames = FramePauses()
    for _ in range(2000):
        frames.wait()
    assert sum(pauses) <= MOST_SECONDS and pauses[0] == INTERVAL


def test_a_line_breaks_at_spaces_and_keeps_its_styles() -> None:
    lines = break_lines([("1: ", DIM), ("the old cat", PLAIN), (" sees", BRIGHT), (" abcdefghijklmnop", PLAIN)], 12, 3)
    assert ["".join(part for part, _ in line) for line in lines] == [
        "1: the old", "   cat sees", "   abcdefghi", "   jklmnop"
    ]  # fmt: skip
    assert ("sees", BRIGHT) in [(part.strip(), style) for part, style in lines[1]]
    assert break_lines([("ab", PLAIN)], 1, 7) == [[("ab", PLAIN)]] and break_lines([], 9, 0) == [[]]


def test_without_a_terminal_every_change_is_a_line(monkeypatch, trained, capsys) -> None:
    stop_clock(monkeypatch, lambda seconds: pytest.fail("paused without a terminal"))
    assert sample(monkeypatch, trained, "--show", "true", "--length", 6, "--num_samples", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split(":")[0] for line in lines} == {"1", "2"} and "\x1b" not in "".join(lines)
    assert all(re.fullmatch(r"[12]:  {4}\d  \S.*", line) or re.fullmatch(r"[12]: +\d+  \S.*", line) for line in lines)
