"""What people and portals write into cells of values: words for a missing value, decimal commas, words for alive and dead.

Columns of ids are left as they are: NA is a hospital of TCGA.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np
import pandas as pd

from mil_jax.data.tables import is_number

# cBioPortal, GDC, TCGA's clinical tables, REDCap, Excel, R and pandas; compared without case, brackets and quotes.
_MISSING = frozenset(
    (
        *(
            "na",
            "n/a",
            "#n/a",
            "nan",
            "nat",
            "null",
            "none",
            "nil",
            "missing",
            "unknown",
            "unk",
            "unspecified",
            "unavailable",
            "n.a.",
            "n.a",
            "n.d.",
            "#n/a n/a",
            "#na",
            "-nan",
            "1.#ind",
            "-1.#ind",
            "1.#qnan",
            "-1.#qnan",
            "blank",
            "tbd",
        ),
        *(
            "not available",
            "not applicable",
            "not reported",
            "not evaluated",
            "not known",
            "not specified",
            "not provided",
        ),
        *(
            "not recorded",
            "not collected",
            "not allowed to collect",
            "no data",
            "no value",
            "not done",
            "not performed",
            "not tested",
            "not assessed",
            "not determined",
            "to be determined",
            "discrepancy",
            "pending",
            "redacted",
            "withheld",
        ),
        *("#value!", "#ref!", "#div/0!", "#name?", "#num!", "#null!"),
    )
)
_NOTHING = re.compile(r"[-\u2010-\u2015.?*_'\"\[\]()<>\s]*")
_COMMA = re.compile(r"[+-]?\d+,\d+")
_TRUTH = {"true": "1", "yes": "1", "y": "1", "false": "0", "no": "0", "n": "0"}
_FATES = {
    **dict.fromkeys(("dead", "deceased", "died", "progressed", "recurred", "recurred/progressed"), "1"),
    **dict.fromkeys(("alive", "living", "censored", "disease free", "diseasefree", "progression free"), "0"),
}


def says_missing(text: str) -> bool:
    """Whether a cell says that its value is missing: `[Not Available]`, `'--`, `Unknown`."""
    if _NOTHING.fullmatch(text):
        return True
    return " ".join(text.strip(" \t\u00a0'\"[](){}<>").replace("_", " ").casefold().split()) in _MISSING


def known(column: pd.Series) -> pd.Series:
    """A column whose cells that say that their value is missing are missing; an empty one stays as it is."""
    return column.mask(np.array([isinstance(cell, str) and says_missing(cell) for cell in column], bool), np.nan)


def values_of(column: pd.Series, name: str, classes: Collection[str] = ()) -> tuple[pd.Series, list[str]]:
    """A column of values: text, NaN = missing; and sentences on what was read as missing, and on decimal commas.

    classes: what the user calls a class is one, whatever it says, in any case: another case of it is then named as no class.
    """
    said: list[str] = []
    words = column.dropna()
    named = {name.casefold() for name in classes}
    words = words[[says_missing(text) and text.casefold() not in named for text in words]]
    if len(words):
        counts = ", ".join(f"{text!r} {count}" for text, count in words.value_counts().head(6).items())
        said.append(
            f"column {name!r}: {len(words)} cells say that the value is missing ({counts}); if such a word is a class, name it in "
            "data.classes"
        )
        column = column.mask(column.isin(set(words)), np.nan)
    present = column.dropna()
    commas = [text for text in present if _COMMA.fullmatch(text)]
    thousands = all(len(text.partition(",")[2]) == 3 for text in commas)
    if commas and not thousands and all(_COMMA.fullmatch(text) or re.fullmatch(r"[+-]?\d+", text) for text in present):
        said.append(f"column {name!r}: decimal commas, read as points ({commas[0]})")
        column = column.map(lambda text: text.replace(",", "."), na_action="ignore")
    return column, said


def flags_of(column: pd.Series, name: str, events: bool = True) -> tuple[pd.Series, list[str]]:
    """A column of flags: cells such as `1:DECEASED`, `0:LIVING`, `yes` as 1 and 0, in one of `events` also `Dead` and `Alive`. What is none
    of these stays, and so does `1:LIVING`, or `1:DECEASED` where 1 means censored. And sentences.
    """
    words = _TRUTH | _FATES if events else _TRUTH

    def flag(text: str) -> str:
        head, colon, rest = text.partition(":")
        if colon and head.strip() in ("0", "1") and rest.strip():
            fate = _fate(rest)
            return head.strip() if fate is None or (fate == head.strip()) == events else text
        return words.get(" ".join(text.casefold().split()), text)

    read = column.map(flag, na_action="ignore")
    pairs = pd.DataFrame({"text": column, "flag": read}).dropna().drop_duplicates()
    pairs = pairs[(pairs["text"] != pairs["flag"]) & pairs["flag"].isin(["0", "1"])]
    said = [f"column {name!r}: " + ", ".join(f"{a!r} is read as {b}" for a, b in pairs.itertuples(index=False))]
    return read, [*(said if len(pairs) else []), *_doubtful(name, events)]


def _fate(text: str) -> str | None:
    """1 or 0 where words say that something happened, or not: `DECEASED`, `DEAD WITH TUMOR`."""
    words = " ".join(text.casefold().split())
    return _FATES.get(words) or _FATES.get(re.split(r"[^a-z]", words)[0])


def _doubtful(name: str, events: bool) -> list[str]:
    """A sentence where a column's name says the opposite of what it is taken for."""
    says_censored = re.search(r"(?<!un)(?<!not )(?<!not_)censor", name.casefold()) is not None
    if events and says_censored:
        return [f"column {name!r} is taken for events (1 = it happened); if 1 means censored, name it in data.censored"]
    if not events and not says_censored and re.search(r"event|vital|dead|death|deceased|status", name.casefold()):
        return [
            f"column {name!r} is taken for censoring (1 = censored); if 1 means that it happened, name it in data.event"
        ]
    return []


def as_plain_numbers(column: pd.Series) -> pd.Series | None:
    """A column whose cells are mostly numbers, with `042` as 42; None where it is one of categories. The cells that are none stay."""
    present = column.dropna()
    plain = present.map(lambda text: str(int(text)) if re.fullmatch(r"0\d{1,17}", text) else text)
    numeric = plain.map(is_number)
    if not len(present) or numeric.mean() < 0.8:
        return None
    return column.where(column.isna(), plain.reindex(column.index))
