"""Text in csv files that people open in spreadsheets: what would be taken for a formula there is written with a leading apostrophe.

Our own readers take it off again. Numbers stay as they are.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd  # half a second, which `--help` need not wait

_FIRST = r"[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]"  # the last four are = + - @ as East Asian keyboards write them
_FORMULA, _WRITTEN = re.compile(f"'*{_FIRST}"), re.compile(f"'+{_FIRST}")


def inert(cell: Any) -> Any:
    """A cell as it is written: `=1+1` as `'=1+1`. The inverse of `original`."""
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) and not _is_number(cell) else cell


def original(cell: Any) -> Any:
    """A cell as it was before it was written."""
    return cell[1:] if isinstance(cell, str) and _WRITTEN.match(cell) else cell


def inert_table(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose columns of text are inert."""
    texts = [name for name, kind in table.dtypes.items() if kind.kind not in "biufM"]
    return table.assign(**{str(name): table[name].map(inert) for name in texts}) if texts else table


def original_table(table: pd.DataFrame) -> pd.DataFrame:
    """The inverse of `inert_table`."""
    texts = [name for name, kind in table.dtypes.items() if kind.kind not in "biufM"]
    return table.assign(**{str(name): table[name].map(original) for name in texts}) if texts else table


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
