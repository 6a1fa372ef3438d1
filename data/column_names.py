"""Names of the columns or keys that hold a text or a pair, and the strings that are wanted of a record."""

from dataclasses import dataclass, field
from typing import ClassVar

from utils.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ColumnNames:
    """Names of the columns or keys that hold a text or a pair, where they are not the usual ones."""

    group: ClassVar[str] = "data"

    text_column: str = field(default="", metadata={"metavar": "NAME", "help": "column of the text; default: text"})
    source_column: str = field(
        default="", metadata={"metavar": "NAME", "help": "column of a pair's source; default: src, source or input"}
    )
    target_column: str = field(
        default="", metadata={"metavar": "NAME", "help": "column of its target; default: trg, tgt, target or output"}
    )

    def __post_init__(self) -> None:
        if bool(self.source_column) != bool(self.target_column):
            given, lacking = ("source", "target") if self.source_column else ("target", "source")
            raise UserError(f"{given}_column={getattr(self, f'{given}_column')} needs a {lacking}_column too")
        if self.text_column and self.source_column:
            raise UserError("text_column is for text, source_column and target_column for pairs; leave one kind out")
        if self.source_column and self.source_column == self.target_column:
            raise UserError(f"source_column and target_column are both {self.source_column}; give two columns")

    @property
    def column_names(self) -> "ColumnNames":
        """The three names alone."""
        return ColumnNames(**{name: getattr(self, name) for name in ("text_column", "source_column", "target_column")})

    @property
    def given(self) -> tuple[str, ...]:
        """The names that are given, in the order of the columns."""
        return tuple(name for name in (self.text_column, self.source_column, self.target_column) if name)


UNNAMED = ColumnNames()


@dataclass(frozen=True)
class Columns:
    """Strings that a record must have."""

    keys: tuple[str, ...]
    """text, or src and trg."""
    names: tuple[str, ...] = ()
    """Their names in the record; (): the usual ones."""
