"""Target columns that hold numbers, and the pairs of columns that survival needs: what may stand in them, with file, line and value."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mil_jax.data.cohort.settings import CohortSettings
from mil_jax.data.tables import brief
from mil_jax.errors import DataError

_TRUE, _FALSE = frozenset(("1", "true", "yes")), frozenset(("0", "false", "no"))


def raw_column(name: str) -> str:
    """The name of a raw column inside `LabelRows.table`, which can never meet `name` or `patient`."""
    return f"column {name}"


def as_numbers(column: pd.Series) -> pd.Series:
    """Text -> float64; NaN for what is empty or no number."""
    return pd.to_numeric(column, errors="coerce").astype(np.float64)


def as_flags(column: pd.Series) -> pd.Series:
    """Text -> 1.0 (1, true, yes), 0.0 (0, false, no); NaN for anything else."""
    lower = column.map(lambda text: str(text).lower(), na_action="ignore")
    return lower.map(
        lambda text: 1.0 if text in _TRUE else 0.0 if text in _FALSE else np.nan, na_action="ignore"
    ).astype(np.float64)


def require_numbers(table: pd.DataFrame, kept: np.ndarray, settings: CohortSettings) -> None:
    """Raises DataError for text in `settings.numbers`, a negative time, an event that is neither 0 nor 1, and half of a pair.

    table: raw columns, indexed by line. kept: bool [rows].
    """
    used = table[kept]
    for name in settings.numbers:
        column, numbers = used[raw_column(name)], as_numbers(used[raw_column(name)])
        _refuse(column, column.notna() & ~np.isfinite(numbers), name, settings, "is no finite number")
        if settings.events:
            _refuse(column, numbers < 0, name, settings, "is a negative time")
    for name in settings.events:
        column = used[raw_column(name)]
        meaning = (
            "0 nor 1 (1 = censored; a column that says what happened belongs in data.event)"
            if settings.censored
            else "0 nor 1"
        )
        _refuse(column, column.notna() & as_flags(column).isna(), name, settings, f"is neither {meaning}")
    for time, event in zip(settings.numbers, settings.events):
        pair = used[[raw_column(time), raw_column(event)]].isna()
        half = pair.any(axis=1) & ~pair.all(axis=1)
        if half.any():
            absent = time if pair[half].iloc[0, 0] else event
            raise DataError(
                f"{settings.labels}, line {used.index[half][0]}: nothing in column {absent!r}, but something in the other of "
                f"{time!r} and {event!r} ({int(half.sum())} such rows); fill it in, or leave such rows out with data.filter"
            )


def _refuse(column: pd.Series, wrong: pd.Series, name: str, settings: CohortSettings, what: str) -> None:
    if wrong.any():
        raise DataError(
            f"{settings.labels}, line {column.index[wrong][0]}: {brief(repr(column[wrong].iloc[0]))} in column {name!r} {what} "
            f"({int(wrong.sum())} such rows); fix it, or leave such rows out with data.filter"
        )
