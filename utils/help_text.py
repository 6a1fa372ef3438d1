"""The text of --help: flags in groups with a heading each, the most used first, every default shown."""

import argparse
import dataclasses
import shutil
import textwrap

MOST_WIDTH = 100
"""Columns, at most."""
COLUMN = 28
"""Column at which the help of a flag begins."""
METAVARS = {int: "N", float: "X", str: "TEXT"}
SHORT_CHOICES = 22
"""Characters of a list of choices that stands beside its flag; a longer one goes into the help."""


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
        self.parser, self.width = parser, min(MOST_WIDTH, shutil.get_terminal_size((80, 24)).columns) - 2
        self.groups = {"most used": [actions[name] for name in most_used if name in actions]}
        for kind in kinds:
            names = [field.name for field in dataclasses.fields(kind) if field.name not in most_used]
            self.groups.setdefault(getattr(kind, "group", kind.__name__), []).extend(actions[name] for name in names)

    def __str__(self) -> str:
        required = [f"{a.option_strings[0]} {metavar(a)}" for a in self.parser._actions if a.required]
        parts = [
            self._wrap(" ".join(["usage:", self.parser.prog, *required, "[flags]"])),
            self._wrap(self.parser.description or ""),
        ]
        parts += [self._section(title, actions) for title, actions in self.groups.items() if actions]
        parts += [self._wrap(text) for text in (self._spellings(), self.parser.epilog or "") if text]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _section(self, title: str, actions: list[argparse.Action]) -> str:
        return "\n".join([f"{title}:", *(self._flag(action) for action in actions)])

    def _flag(self, action: argparse.Action) -> str:
        flag = f"  {action.option_strings[0]} {metavar(action)}".rstrip()
        lines = textwrap.wrap(help_of(action), max(20, self.width - COLUMN), break_on_hyphens=False)
        if len(flag) >= COLUMN - 1:
            lines.insert(0, "")
        return "\n".join(f"{flag if i == 0 else '':{COLUMN}}{line}".rstrip() for i, line in enumerate(lines))

    def _spellings(self) -> str:
        """Name the published spellings of flags, which are accepted too."""
        found = []
        for action in self.parser._actions:
            first, *others = action.option_strings
            dashes = {name for name in others if name.replace("-", "_") == first.replace("-", "_")}
            if first.startswith("--no_") or action.dest == "help":
                continue
            found += [f"{name} for {first}" for name in others if name not in dashes]
        text = "Dashes and underscores are the same; a flag that is true or false may stand alone for true."
        return f"{text} Also accepted: {', '.join(found)}." if found else text

    def _wrap(self, text: str) -> str:
        return textwrap.fill(text, self.width, subsequent_indent="  ", break_on_hyphens=False)


def metavar(action: argparse.Action) -> str:
    """Return what stands for the value of a flag: its choices, or a word for its type."""
    if is_switch(action):
        return ""
    choices = "|".join(map(str, action.choices or ()))
    if choices and len(choices) <= SHORT_CHOICES:
        return choices.lstrip("|")
    if choices:
        return "NAME"
    return METAVARS.get(action.type, "TEXT")


def is_switch(action: argparse.Action) -> bool:
    """Return whether a flag is true or false."""
    return isinstance(action.default, bool)


def help_of(action: argparse.Action) -> str:
    """Return the help of a flag with its choices and its default."""
    text, choices = action.help or "", "|".join(map(str, action.choices or ()))
    if len(choices) > SHORT_CHOICES:
        text = f"{text}; one of {', '.join(str(choice) for choice in action.choices if choice != '')}"
    if action.required:
        return f"{text} (required)"
    if action.default in ("", None):
        return text if "default" in text else f"{text} (default: none)"
    shown = str(action.default).lower() if is_switch(action) else str(action.default)
    if is_switch(action) and action.default:
        shown += f"; --no_{action.dest}: false"
    return f"{text} (default: {shown})"
