"""The label columns of a run. Files and messages name a label column only where there are several, and that rule is written here alone."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

LABEL_COLUMN = "label_column"  # the field and the column of tables that names it


@dataclass(frozen=True)
class LabelColumns:
    """The columns by number; a single one is never named."""

    names: tuple[str, ...]

    def title(self, number: int) -> str:
        """The column's name, or "" where there is only one."""
        return self.names[number] if len(self.names) > 1 else ""

    def named(self, number: int, text: str, separator: str) -> str:
        """ "TP53: text", or the text alone."""
        return separator.join(filter(None, (self.title(number), text)))

    def field(self, number: int) -> dict[str, str]:
        """{"label_column": "TP53"}, or {}."""
        return {LABEL_COLUMN: self.title(number)} if self.title(number) else {}

    def add_to(self, table: pd.DataFrame, number: int) -> None:
        """Names the label column of all rows, in place, in a first column of the table."""
        for name, value in self.field(number).items():
            table.insert(0, name, value)

    def rows(self, table: pd.DataFrame, number: int) -> pd.DataFrame:
        """The rows of a label column, without the columns that only others fill."""
        if not self.title(number) or table.empty:
            return table
        return table[table[LABEL_COLUMN] == self.names[number]].dropna(axis="columns", how="all")
