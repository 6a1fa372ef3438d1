"""The text of --help: flags in groups with a heading each, the most used first, every default shown."""

import argparse
import dataclasses
import re
import shutil
import textwrap

MOST_WIDTH = 100
"""Columns, at most."""
COLUMN = 27
"""Column at which the help of a flag begins."""
METAVARS = {int: "N", float: "X", str: "TEXT"}
METAVARS_BY_ENDING = {
    "_dir": "DIR",
    "checkpoint": "DIR",
    "data": "DATA",
    "_file": "FILE",
    "output": "FILE",
    "predictions": "FILE",
    "name_or_path": "NAME",
    "tokenizer": "NAME",
    "model": "NAME",
    "device": "NAME",
    "implementation": "NAME",
}
"""Metavars of text settings by the end of their name."""
DEFAULT_IN_WORDS = re.compile(r"; default: (.*)$", re.DOTALL)


ORDER = ("most used", "data", "text format", "pairs (seq2seq)", "network", "process", "optimisation")
"""Headings in the order in which --help shows them; others follow."""


class HelpText:
    """Formats the flags of a parser by the dataclasses that they come from."""

    def __init__(self, parser: argparse.ArgumentParser, kinds: list[type], most_used: tuple[str, ...]) -> None:
        """Sort the flags into groups.

        Args:
            parser: made from the dataclasses.
            kinds: the dataclasses; `group`, a class attribute, is the heading of their flags.
            most_used: names of settings that are shown first.
        """
        actions = {a.dest: a for a in parser._actions if not a.option_strings[0].startswith(("--no_", "-h"))}
        self.parser, self.width = parser, min(MOST_WIDTH, shutil.get_terminal_size((80, 24)).columns) - 1
        self.groups = {"most used": [actions[name] for name in most_used if name in actions]}
        for kind in kinds:
            names = [field.name for field in dataclasses.fields(kind) if field.name not in most_used]
            self.groups.setdefault(getattr(kind, "group", kind.__name__), []).extend(actions[name] for name in names)
        self.groups = {title: self.groups[title] for title in sorted(self.groups, key=_position)}

    def __str__(self) -> str:
        required = [_flag_and_value(a) for actions in self.groups.values() for a in actions if a.required]
        parts = [
            self._wrap(" ".join(["usage:", self.parser.prog, *required, "[flags]"])),
            self._wrap(f"{self.parser.description or ''} Defaults stand in [brackets].".lstrip()),
        ]
        parts += [self._section(title, actions) for title, actions in self.groups.items() if actions]
        parts += [self._wrap(text) for text in (self._spellings(), self.parser.epilog or "") if text]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _section(self, title: str, actions: list[argparse.Action]) -> str:
        return "\n".join([f"{title}:", *(self._flag(action) for action in actions)])

    def _flag(self, action: argparse.Action) -> str:
        flag = f"  {_flag_and_value(action)}"
        lines = textwrap.wrap(help_of(action), max(20, self.width - COLUMN), break_on_hyphens=False)
        if len(flag) >= COLUMN:
            lines.insert(0, "")
        return "\n".join(f"{flag if i == 0 else '':{COLUMN}}{line}".rstrip() for i, line in enumerate(lines))

    def _spellings(self) -> str:
        """Name the published spellings of flags, which are accepted too."""
        found = []
        for actions in self.groups.values():
            for action in actions:
                first, *others = action.option_strings
                aliases = [name for name in others if name.replace("-", "_") != first.replace("-", "_")]
                found += [f"{first} (also {', '.join(aliases)})"] if aliases else []
        text = "Dashes and underscores are the same. A flag of true or false may stand alone for true."
        return f"{text} Published names: {', '.join(found)}." if found else text

    def _wrap(self, text: str) -> str:
        return textwrap.fill(text, self.width, break_on_hyphens=False, break_long_words=False)


def _flag_and_value(action: argparse.Action) -> str:
    return f"{action.option_strings[0]} {metavar(action)}".rstrip()


def metavar(action: argparse.Action) -> str:
    """Return what stands for the value of a flag: its choices if they fit, or a word for its type."""
    if isinstance(action.default, bool):
        return ""
    if action.metavar:
        return str(action.metavar)
    if action.choices:
        choices = "|".join(str(choice) for choice in action.choices if choice != "")
        return choices if len(f"  {action.option_strings[0]} {choices}") < COLUMN else "NAME"
    if action.type is str:
        for ending, word in METAVARS_BY_ENDING.items():
            if action.dest.endswith(ending):
                return word
    return METAVARS.get(action.type, "TEXT")


def help_of(action: argparse.Action) -> str:
    """Return the help of a flag, its choices where neither flag nor help names them, and its default in brackets."""
    text, shown = action.help or "", _shown(action.default, action.dest)
    in_words = DEFAULT_IN_WORDS.search(text)  # the default of an empty setting, as in "...; default: the checkpoint's"
    if in_words and action.default in ("", None):
        text, shown = text[: in_words.start()], in_words[1]
    choices = [str(choice) for choice in action.choices or () if choice != ""]
    if metavar(action) == "NAME" and not all(re.search(rf"\b{re.escape(name)}\b", text) for name in choices):
        text += f": {', '.join(choices)}"
    return f"{text} [{'required' if action.required else shown}]"


def _shown(default: object, name: str) -> str:
    if default in ("", None):
        return "none"
    if isinstance(default, bool):
        return f"true; --no_{name}: false" if default else "false"
    return f"{default:g}" if isinstance(default, float) else str(default)


def _position(title: str) -> int:
    return ORDER.index(title) if title in ORDER else len(ORDER)
