"""What all commands share: the console, and how a command ends.

Exit codes: 0; 2 = the user's error, one sentence on stderr; 1 = a bug, with its traceback; 143 = stopped by SIGTERM after saving.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pandas as pd
from rich.console import Console
from rich.table import Table

from mil_jax.errors import UserError

console = Console(soft_wrap=True)
_errors = Console(stderr=True, soft_wrap=True)


def say(text: str) -> None:
    """One line for the user, as it is."""
    console.print(text, markup=False, highlight=False)


def run_command(main: Callable[[list[str]], int]) -> None:
    """Runs `main` on the command line and exits with its code; a UserError becomes one sentence and code 2."""
    try:
        code = main(sys.argv[1:])
    except UserError as error:
        _errors.print(f"error: {error}", style="red", markup=False, highlight=False)
        code = 2
    except KeyboardInterrupt:
        _errors.print("stopped by the keyboard; what was saved can be gone on with (--resume)", markup=False)
        code = 130
    sys.exit(code)


def frame_table(title: str, frame: pd.DataFrame) -> Table:
    """A data frame as a table for the terminal."""
    table = Table(title=title, title_justify="left")
    for name in frame.columns:
        table.add_column(str(name))
    for row in frame.itertuples(index=False):
        table.add_row(*(f"{value:g}" if isinstance(value, float) else str(value) for value in row))
    return table
