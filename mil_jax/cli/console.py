"""What all commands share: the console, and how a command ends.

Exit codes: 0; 2 = the user's error, one sentence on stderr; 1 = a bug, with its traceback; 130 = stopped by the keyboard; 143 =
stopped by SIGTERM, after saving where there is something to save; 129 = the terminal was closed.
"""

from __future__ import annotations

import errno
import signal
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from mil_jax.errors import RenamedSetting, UserError

if TYPE_CHECKING:
    import pandas as pd  # half a second, which `--help` need not wait

console = Console(soft_wrap=True)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)
_errors = Console(stderr=True, soft_wrap=True)


def say(text: str) -> None:
    """One line for the user, as it is."""
    console.print(text, markup=False, highlight=False)


def run_command(main: Callable[[list[str]], int]) -> None:
    """Runs `main` on the command line and exits with its code; a UserError becomes one sentence and code 2."""
    # An exit, unlike the bare signal, removes what is half-written.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, RenamedSetting):
            say(str(message))
        else:
            shown(message, category, *where, **more)

    warnings.showwarning = show
    try:
        code = main(sys.argv[1:])
    except UserError as error:
        code = _refused(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            code = _refused(f"{where}the disk is full; free some space and run the command again")
        elif error.errno in _FORBIDDEN and where:
            code = _refused(
                f"{where}cannot be used ({error.strerror}); change its permissions, or choose another place"
            )
        else:
            raise
    except KeyboardInterrupt:
        _errors.print(
            "stopped by the keyboard; a training that had saved its state is resumed with --resume", markup=False
        )
        code = 130
    finally:
        warnings.showwarning = shown
    sys.exit(code)


def _refused(sentence: str) -> int:
    _errors.print(f"error: {sentence}", style="red", markup=False, highlight=False)
    return 2


def frame_table(title: str, frame: pd.DataFrame) -> Table:
    """A data frame as a table for the terminal."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for name in frame.columns:
        table.add_column(str(name), justify="right" if frame[name].dtype.kind in "biufc" else "left")
    for row in frame.itertuples(index=False):
        table.add_row(*(f"{value:g}" if isinstance(value, float) else str(value) for value in row))
    return table
