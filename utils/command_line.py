"""Command lines: every setting is declared once, in a dataclass beside its consumer, and parsed here.

Both published DiffusionBERT command lines run as written: aliases stand beside each field, values that changed their
form are rewritten by `_MODERNISED`, and flags that mean nothing any more are accepted with a word of explanation.
"""

import argparse
import contextlib
import difflib
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from transformers import HfArgumentParser

from utils.errors import UserError, shown

_MODERNISED = {
    ("--spindle_schedule", "true"): ("--spindle", "paper"),
    ("--spindle_schedule", "false"): ("--spindle", "none"),
    ("--task_name", "QT"): ("--task_name", "conditional_data/Q-T"),
    **{("--task_name", task): ("--task_name", f"conditional_data/{task}") for task in ("qqp", "wiki_alignment", "CC")},
}
"""Published flags whose value changed its form."""

MEANINGLESS = {
    "--local_rank": "torchrun tells each process its rank",
    "--load_step": "a checkpoint is given by its folder",
    "--predict_x0": "the network always predicts x0",
    "--sample_strategy": "tokens are always drawn from the prediction; see --temperature, --top_k, --top_p",
    "--eval_step": "use --eval_steps",
    "--log_space": "all arithmetic is done in log space where it matters",
}
"""Published flags that no longer mean anything, each taking one value."""

FROM_CHECKPOINT = {
    "--model_type": "the checkpoint says which network it holds",
    "--model_name_or_path": "the checkpoint says which network it holds",
    "--vocab_size": "the checkpoint says which vocabulary it uses",
    "--schedule": "the checkpoint says which schedule it was trained with",
    "--noise_schedule": "the checkpoint says which schedule it was trained with",
    "--word_freq_lambda": "the checkpoint says which spindle it was trained with",
    "--timestep": "the checkpoint says how it is told the time",
    "--name": "the checkpoint is given by its folder",
}
"""More of them, for the scripts that read a checkpoint."""


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help with defaults where they say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        negation = any(name.startswith("--no_") for name in action.option_strings)
        silent = action.required or negation or action.default in ("", None)
        return action.help if silent else super()._get_help_string(action)


class _Parser(HfArgumentParser):
    """HfArgumentParser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists every setting)")


def value_of(flag: str, argv: list[str] | None = None) -> str | None:
    """Return the last value that a command line gives a flag, before the line is parsed; None if it has no such flag.

    Args:
        flag: as it is typed, with its dashes.
        argv: the words; by default the process's own.
    """
    words = _split_equals(sys.argv[1:] if argv is None else argv)
    values = [value for word, value in zip(words, words[1:], strict=False) if word == flag]
    return values[-1] if values else None


def parse(
    kinds: list[type],
    description: str,
    *,
    meaningless: dict[str, str] | None = None,
    elsewhere: dict[str, str] | None = None,
    epilog: str = "",
    argv: list[str] | None = None,
) -> tuple:
    """One frozen dataclass of each kind from the command line.

    Args:
        kinds: dataclasses; their fields are the flags.
        description: what --help says first.
        meaningless: flags that are accepted and explained on stderr, by name.
        elsewhere: flags that are known but not here, by name, and where they are, in words.
        epilog: what --help says last.
        argv: the words; default the process's own.

    Raises:
        UserError: if a flag is unknown or a value is out of range.
    """
    words = _modernise(sys.argv[1:] if argv is None else argv, {**MEANINGLESS, **(meaningless or {})})
    parser = _Parser(
        kinds, description=description.split("\n")[0], epilog=epilog, allow_abbrev=False, formatter_class=_Help
    )
    for action in parser._actions:  # transformers gives the negation of a flag the same help as the flag
        if negated := [name for name in action.option_strings if name.startswith("--no_")]:
            action.help = f"the same as {negated[0].replace('--no_', '--')} false"
    known = {name for action in parser._actions for name in action.option_strings}
    for word in words:  # before argparse, which would speak of a setting that is missing and not of the misspelt one
        if word.startswith("--") and word not in known:
            raise UserError(f"{_unknown(word, known, elsewhere or {})} (--help lists every setting)")
    try:
        *parsed, rest = parser.parse_args_into_dataclasses(words, True, look_for_args_file=False)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error
    if rest:
        raise UserError(f"{_unknown(rest[0], known, elsewhere or {})} (--help lists every setting)")
    return tuple(parsed)


def _unknown(word: str, known: set[str], elsewhere: dict[str, str]) -> str:
    """What is wrong with a word of the command line that nothing took."""
    if not word.startswith("-"):
        return f"a word too many: {shown(word)}; every setting is a flag and its value"
    if word.replace("-", "_").replace("__", "--", 1) in elsewhere:
        return f"{word} is a setting of {elsewhere[word.replace('-', '_').replace('__', '--', 1)]}"
    spelt = sorted(name for name in known if "-" not in name.lstrip("-"))
    near = difflib.get_close_matches(word, spelt, n=1, cutoff=0.75)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"unknown flag {shown(word)[1:-1]}{hint}"


def _modernise(argv: list[str], meaningless: dict[str, str]) -> list[str]:
    words: list[str] = []
    rest = iter(_split_equals(argv))
    for word in rest:
        if word in meaningless:
            next(rest, None)
            print(f"note: {word} has no effect: {meaningless[word]}", file=sys.stderr)
        elif word == "--spindle_schedule":
            value = next(rest, "").lower()
            if (word, value) not in _MODERNISED:
                raise UserError(f"{word} {value!r}: use --spindle paper, released or none")
            words += _MODERNISED[word, value]
        elif word == "--task_name":
            value = next(rest, "")
            words += _MODERNISED.get((word, value), (word, value))
        else:
            words.append(word)
    return words


def _split_equals(argv: list[str]) -> list[str]:
    split: list[str] = []
    for word in argv:
        flag, equals, value = word.partition("=")
        split += [flag, value] if word.startswith("--") and equals else [word]
    return split


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What a write may end in that says nothing of which file it was."""
REMEDIES = {
    **dict.fromkeys(NO_ROOM, "make room, or give another path"),
    errno.EMFILE: "close files or raise the limit (ulimit -n)",
    errno.ENFILE: "the system has too many files open; close some",
    errno.EIO: "the disk or the network behind it fails; give another path",
    errno.ELOOP: "a link leads to itself; give another path",
}
MOST_WORDS = 1500
"""Characters of an error line: its beginning names the value, its end the remedy."""


def run_script(main: Callable[[], None]) -> None:
    """Calls `main`; what the user got wrong ends in one line on stderr and exit code 2, never a traceback."""
    for stream in (sys.stdout, sys.stderr):  # what a terminal's encoding cannot show must not lose a result
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")
    try:
        main()
        if sys.stdout is not None:  # closed before the start (>&-)
            sys.stdout.flush()  # here, where what goes wrong is one line, and not when Python ends
    except UserError as error:
        _refuse(str(error))
    except BrokenPipeError:  # the reader of our output has seen enough: `predict.py ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.filename is None and error.errno not in REMEDIES:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        _refuse(f"{where}{error.strerror}; {REMEDIES.get(error.errno, 'give another path')}")
    except UnicodeEncodeError as error:
        _refuse(f"a path that is not UTF-8: {error.object!r}; rename it")
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        _refuse(
            "a process that reads text was killed (for its memory?); give fewer --num_workers or a smaller "
            "--shuffle_buffer, and start again to go on from the last saved state"
        )
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _refuse(message: str) -> None:
    line = f"{Path(sys.argv[0]).name}: error: {' '.join(message.split())}"
    if len(line) > MOST_WORDS:
        line = f"{line[: MOST_WORDS // 2]} [...] {line[-MOST_WORDS // 2 :]}"
    print(line.encode(errors="backslashreplace").decode(), file=sys.stderr)
    sys.exit(2)
