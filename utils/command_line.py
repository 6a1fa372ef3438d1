"""Command lines: a setting is declared once, in a dataclass beside the code that uses it, and parsed here.

Both published DiffusionBERT command lines run as written. Each field lists its aliases, `_MODERNISED` rewrites values
whose form has changed, and flags without effect are accepted with a note.
"""

import argparse
import contextlib
import difflib
import errno
import os
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import NoReturn

from utils.errors import UserError, shown
from utils.help_text import HelpText

_MODERNISED = {
    ("--spindle_schedule", "true"): ("--spindle", "paper"),
    ("--spindle_schedule", "false"): ("--spindle", "none"),
    ("--task_name", "QT"): ("--task_name", "conditional_data/Q-T"),
    **{("--task_name", task): ("--task_name", f"conditional_data/{task}") for task in ("qqp", "wiki_alignment", "CC")},
}
"""Published flags and values, and their present form."""

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
"""Values of --precision."""
BOOLEANS = {
    **dict.fromkeys(("true", "1", "yes", "t", "y"), True),
    **dict.fromkeys(("false", "0", "no", "f", "n"), False),
}
WITHOUT_EFFECT = {
    "--local_rank": "torchrun tells each process its rank",
    "--load_step": "a checkpoint is named by its folder",
    "--predict_x0": "the network always predicts x0",
    "--sample_strategy": "tokens are always drawn from the prediction; see --temperature, --top_k, --top_p",
    "--eval_step": "use --eval_steps",
    "--log_space": "all arithmetic is done in log space where it matters",
}
"""Published flags without effect, each with one value, and the reason."""

FROM_CHECKPOINT = {
    "--model_type": "the checkpoint says which network it holds",
    "--model_name_or_path": "the checkpoint says which network it holds",
    "--vocab_size": "the checkpoint says which vocabulary it uses",
    "--schedule": "the checkpoint says which schedule it was trained with",
    "--noise_schedule": "the checkpoint says which schedule it was trained with",
    "--word_freq_lambda": "the checkpoint says which spindle it was trained with",
    "--timestep": "the checkpoint says which time input its network has",
    "--name": "the checkpoint is named by its folder",
}
"""Further flags without effect in scripts that read a checkpoint, and the reason."""


class _Parser(argparse.ArgumentParser):
    """Parser whose flags are the fields of dataclasses, with errors of one line and the help of `HelpText`."""

    help_text: HelpText

    def add_field(self, entry: Field, kind: type) -> None:
        """Add the flag of a field of type str, int, float or bool, or such a type or None."""
        settings = {**entry.metadata, "dest": entry.name}
        names = dict.fromkeys([f"--{entry.name}", f"--{entry.name.replace('_', '-')}", *settings.pop("aliases", ())])
        settings |= {"required": True} if entry.default is MISSING else {"default": entry.default}
        if kind is not bool:
            self.add_argument(*names, **settings, type=kind)
            return
        self.add_argument(*names, **settings, type=_true_or_false, nargs="?", const=True)
        if entry.default is True:
            opposite = (f"--no_{entry.name}", f"--no-{entry.name.replace('_', '-')}")
            self.add_argument(*opposite, action="store_false", dest=entry.name, default=True)

    def error(self, message: str) -> NoReturn:
        message = message.replace("choose from '', ", "choose from ")  # "" is the default of some settings
        raise UserError(f"{message} (--help lists every setting)")

    def format_help(self) -> str:
        return str(self.help_text)


def value_of(flag: str, argv: list[str] | None = None) -> str | None:
    """Return the last value of a flag in a command line that is not parsed yet; None if the flag is absent.

    Args:
        flag: name with its dashes.
        argv: arguments; default: those of this process.
    """
    arguments = _split_equals(sys.argv[1:] if argv is None else argv)
    values = [value for argument, value in zip(arguments, arguments[1:], strict=False) if argument == flag]
    return values[-1] if values else None


def parse(
    kinds: list[type],
    description: str,
    *,
    most_used: tuple[str, ...] = (),
    without_effect: dict[str, str] | None = None,
    elsewhere: dict[str, str] | None = None,
    epilog: str = "",
    argv: list[str] | None = None,
) -> tuple:
    """Parse the command line into one instance of each dataclass.

    Args:
        kinds: dataclasses; their fields are the flags.
        description: first line of --help.
        most_used: names of the settings that --help lists first.
        without_effect: flags that are accepted without effect, and the reason that is printed.
        elsewhere: flags that this command lacks, and the command that has them.
        epilog: last paragraph of --help.
        argv: arguments; default: those of this process.

    Raises:
        UserError: if a flag is unknown or a value is out of range.
    """
    arguments = _modernise(sys.argv[1:] if argv is None else argv, {**WITHOUT_EFFECT, **(without_effect or {})})
    parser = _Parser(description=description.split("\n")[0], epilog=epilog, allow_abbrev=False)
    for kind in kinds:
        types = typing.get_type_hints(kind)
        for entry in fields(kind):
            parser.add_field(entry, (*typing.get_args(types[entry.name]), types[entry.name])[0])
    parser.help_text = HelpText(parser, kinds, most_used)
    known = {name for action in parser._actions for name in action.option_strings}
    for argument in arguments:  # argparse would report a missing setting instead of the misspelt one
        if argument.startswith("--") and argument not in known:
            raise UserError(f"{_unknown(argument, known, elsewhere or {})} (--help lists every setting)")
    found, rest = parser.parse_known_args(arguments)
    if rest:
        raise UserError(f"{_unknown(rest[0], known, elsewhere or {})} (--help lists every setting)")
    try:
        return tuple(kind(**{entry.name: getattr(found, entry.name) for entry in fields(kind)}) for kind in kinds)
    except ValueError as error:  # UserError, or one of a library
        raise UserError(str(error)) from error


def _true_or_false(text: str) -> bool:
    if text.lower() not in BOOLEANS:
        raise argparse.ArgumentTypeError(f"{shown(text)} must be true or false")
    return BOOLEANS[text.lower()]


def with_flags(argv: list[str], names: Sequence[str]) -> list[str]:
    """Return arguments in which the first that are not flags are named by flags, unless these flags are given.

    Args:
        argv: the arguments.
        names: flags whose names may be left out, in their order.
    """
    given = {argument.partition("=")[0] for argument in argv}
    found, left = [], iter([f"--{name}" for name in names if f"--{name}" not in given])
    for i, argument in enumerate(argv):
        before = argv[i - 1] if i else ""
        is_value = before.startswith("-") and "=" not in before
        flag = None if argument.startswith("-") or is_value else next(left, None)
        found += [argument] if flag is None else [flag, argument]
    return found


def _unknown(argument: str, known: set[str], elsewhere: dict[str, str]) -> str:
    """Return the error message for an argument that no setting takes."""
    if not argument.startswith("-"):
        return f"unexpected argument {shown(argument)}; every setting is a flag and its value"
    if argument.replace("-", "_").replace("__", "--", 1) in elsewhere:
        return f"{argument} is a setting of {elsewhere[argument.replace('-', '_').replace('__', '--', 1)]}"
    spelt = sorted(name for name in known if "-" not in name.lstrip("-"))
    near = difflib.get_close_matches(argument, spelt, n=1, cutoff=0.75)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"unknown flag {shown(argument)[1:-1]}{hint}"


def _modernise(argv: list[str], without_effect: dict[str, str]) -> list[str]:
    """Rewrite published flags and values in their present form; drop flags without effect, with a note."""
    arguments: list[str] = []
    rest = iter(_modernise_fitlog(_split_equals(argv)))
    for argument in rest:
        if argument in without_effect:
            next(rest, None)
            print(f"note: {argument} has no effect: {without_effect[argument]}", file=sys.stderr)
        elif argument == "--spindle_schedule":
            value = next(rest, "").lower()
            if (argument, value) not in _MODERNISED:
                raise UserError(f"{argument} {value!r}: use --spindle paper, released or none")
            arguments += _MODERNISED[argument, value]
        elif argument == "--task_name":
            value = next(rest, "")
            arguments += _MODERNISED.get((argument, value), (argument, value))
        else:
            arguments.append(argument)
    return arguments


def _modernise_fitlog(argv: list[str]) -> list[str]:
    """Rewrite --fitlog, with or without a value, and --no_fitlog as --tracker fitlog or none."""
    arguments, rest = [], list(argv)
    while rest:
        argument = rest.pop(0)
        if argument.replace("-", "_") not in ("__fitlog", "__no_fitlog"):
            arguments.append(argument)
            continue
        given = rest.pop(0).lower() if rest and rest[0].lower() in BOOLEANS else "true"
        wanted = BOOLEANS[given] == (argument == "--fitlog")
        arguments += ["--tracker", "fitlog" if wanted else "none"]
    return arguments


def _split_equals(argv: list[str]) -> list[str]:
    split: list[str] = []
    for argument in argv:
        flag, equals, value = argument.partition("=")
        split += [flag, value] if argument.startswith("--") and equals else [argument]
    return split


FULL_OR_READ_ONLY = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of a file system, for any file."""
REMEDIES = {
    **dict.fromkeys(FULL_OR_READ_ONLY, "make room, or give another path"),
    errno.EMFILE: "close files or raise the limit (ulimit -n)",
    errno.ENFILE: "the system has too many files open; close some",
    errno.EIO: "the disk or its network fails; give another path",
    errno.ELOOP: "a link leads to itself; give another path",
}
WAITING = {"GOMP_SPINCOUNT": "1000"}
"""Rounds for which a thread of OpenMP waits on its core for another thread before it gives the core up; by default
300,000. If another program holds a core, two threads then take turns on the other one: a step of the demo takes 7 s
instead of half a second. With 1,000 it takes half a second, and a few percent more than by default on a quiet machine.
"""
MOST_CHARACTERS = 1500
"""Characters of an error line. A longer one loses its middle, since its ends name the value and the remedy."""


def run_script(main: Callable[[], None]) -> None:
    """Call `main`; report a user's error as one line on stderr, without a traceback, and exit with code 2.

    `main` imports torch, whose threads then wait for each other as `WAITING` says.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        for name, value in WAITING.items():
            os.environ.setdefault(name, value)
    for stream in (sys.stdout, sys.stderr):  # no result is lost to a character that the terminal cannot show
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")
    try:
        main()
        if sys.stdout is not None:  # None: closed before the start (>&-)
            sys.stdout.flush()  # now, so that an error becomes one line
    except UserError as error:
        _refuse(str(error))
    except BrokenPipeError:  # the reader has closed the pipe: `predict.py ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.filename is None and error.errno not in REMEDIES:
            raise
        path = f"{error.filename}: " if error.filename is not None else ""
        _refuse(f"{path}{error.strerror}; {REMEDIES.get(error.errno, 'give another path')}")
    except UnicodeEncodeError as error:
        _refuse(f"a path that is not UTF-8: {error.object!r}; rename it")
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        _refuse(
            "a process that reads text was killed (out of memory?); lower --num_workers or "
            "--shuffle_buffer, and restart to resume from the last saved state"
        )
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _refuse(message: str) -> None:
    """Print an error message as one line, and exit with code 2."""
    line = f"{Path(sys.argv[0]).name}: error: {' '.join(message.split())}"
    if len(line) > MOST_CHARACTERS:
        line = f"{line[: MOST_CHARACTERS // 2]} [...] {line[-MOST_CHARACTERS // 2 :]}"
    print(line.encode(errors="backslashreplace").decode(), file=sys.stderr)
    sys.exit(2)
