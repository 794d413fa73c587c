"""Published splits, recognised by their columns: CLAM's folder of `splits_k.csv` or `splits_k_bool.csv`; tables with a
column per fold (`fold_0`, ... holding train, val or test: Patho-Bench's `k=all.tsv`, HIPT's and Patch-GCN's); a table
with the test fold's number (PathGene's `Fold`); our own `splits.csv` (fold, bag_id, patient_id, part; of
several label columns each has its own).
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mil_jax.data.cohort.cohort import Cohort
from mil_jax.data.cohort.ids import match_ids, natural_key
from mil_jax.data.cohort.label_table import PATIENT_COLUMNS, SLIDE_COLUMNS
from mil_jax.data.label_columns import LABEL_COLUMN
from mil_jax.data.splits.folds import PART_NAMES, TEST, TRAIN, UNUSED, VALIDATION, held_out_parts
from mil_jax.data.tables import is_number, listed, read_columns, read_header
from mil_jax.errors import DataError

OWN_COLUMNS = ["fold", "bag_id", "patient_id", "part"]
_PARTS = {"train": TRAIN, "training": TRAIN, "val": VALIDATION, "valid": VALIDATION, "validation": VALIDATION}
_PARTS |= {"test": TEST, "testing": TEST}
_CLAM_FILE = re.compile(r"splits_(\d+)(_bool)?\.csv")
_FOLD_COLUMN = re.compile(r"fold_?(\d+)")
_TRUE = ("true", "1", "1.0")


@dataclass
class PublishedParts:
    """parts int8 [folds, M] (bags the file does not name: UNUSED), fold names, (id, reason) of ids without a bag. has_test: whether the
    file has test parts.
    """

    parts: np.ndarray
    names: list[str]
    excluded: list[tuple[str, str]]
    report: list[str]
    has_test: bool


def read_published(
    path: str | os.PathLike[str], cohort: Cohort, label_column: str = "", *, min_matched: float = 0.5
) -> PublishedParts:
    """Reads published splits for the bags of a cohort. label_column: whose rows count in a splits.csv of a run on several.

    Ids may be those of bags, slides or patients. Raises DataError when the file is of no known form, when it has splits of other label
    columns only, when a bag is in two parts of a fold, and when less than `min_matched` of the ids of the file, or of a part of a fold,
    belong to the cohort.
    """
    source = Path(path).expanduser()
    if source.is_dir():
        folds = _clam_folds(source)
    else:
        header = read_header(source)
        if set(OWN_COLUMNS) <= set(header):
            folds = _own_folds(source, header, label_column)
        elif columns := [name for name in header if _FOLD_COLUMN.fullmatch(name)]:
            folds = _column_folds(source, header, columns)
        elif "Fold" in header or "fold" in header:
            folds = _numbered_folds(source, header, "Fold" if "Fold" in header else "fold")
        else:
            raise DataError(
                f"{source}: not a split file of a known form; give CLAM's folder of splits_0.csv ..., a table with "
                "columns fold_0, fold_1, ... (train, val, test), one with a column 'Fold', or a run's splits.csv"
            )
    names = list(dict.fromkeys(name for members in folds.values() for name in members))
    bags_of, how = _bags_of_names(names, cohort)
    matched = sum(map(bool, bags_of.values()))
    if not names or matched == 0 or matched < min_matched * len(names):
        seen = f"the file has {listed(names, 2)}, the cohort {listed(cohort.bags['bag_id'], 2)}"
        raise DataError(
            f"{source}: only {matched} of {len(names)} ids of the splits are in the cohort, less than "
            f"data.min_matched={min_matched} ({seen})"
        )
    if min_matched:
        _require_parts(source, folds, bags_of, cohort, min_matched)
    parts = np.full((len(folds), len(cohort.bags)), UNUSED, np.int8)
    for row, (fold, members) in enumerate(folds.items()):
        for name, part in members.items():
            for bag in bags_of[name]:
                if parts[row, bag] not in (UNUSED, part):
                    raise DataError(
                        f"{source}: fold {fold} has bag {cohort.bags['bag_id'][bag]} in its {PART_NAMES[part]} part "
                        f"and in its {PART_NAMES[int(parts[row, bag])]} part; use data.unit='slide' or fix the file"
                    )
                parts[row, bag] = part
    excluded = [(name, f"in {source.name}, but not in the cohort") for name in names if not bags_of[name]]
    unused = np.flatnonzero((parts == UNUSED).all(axis=0))
    excluded += [(bag, f"in no part of {source.name}") for bag in cohort.bags["bag_id"].iloc[unused]]
    report = [f"{source.name}: {len(folds)} folds; {matched} of {len(names)} ids are in the cohort{how}"]
    has_test = any(TEST in members.values() for members in folds.values())
    return PublishedParts(parts, list(folds), excluded, report, has_test)


def _require_parts(
    source: Path,
    folds: Mapping[str, Mapping[str, int]],
    bags_of: Mapping[str, list[int]],
    cohort: Cohort,
    min_matched: float,
) -> None:
    """Raises DataError for a part of a fold that the file has and the cohort lacks, wholly or for the most part."""
    for fold, members in folds.items():
        for part in sorted(set(members.values())):
            names = [name for name, of in members.items() if of == part]
            found = sum(bool(bags_of[name]) for name in names)
            if not found or found < min_matched * len(names):
                lost = [name for name in names if not bags_of[name]]
                raise DataError(
                    f"{source}: only {found} of {len(names)} ids of the {PART_NAMES[part]} part of fold {fold} are in the cohort, less "
                    f"than data.min_matched={min_matched:g} (without: {listed(lost)}; the cohort has {listed(cohort.bags['bag_id'], 2)}); "
                    "add their features, or use splits of the slides that there are"
                )


def read_ids(path: str | os.PathLike[str]) -> list[str]:
    """The ids of a table's slide or patient column, or of its first column."""
    header = read_header(path)
    column = next((name for name in (*SLIDE_COLUMNS, *PATIENT_COLUMNS) if name in header), header[0])
    return read_columns(path, [column])[column].dropna().tolist()


def bags_of_ids(ids: Sequence[str], cohort: Cohort) -> tuple[np.ndarray, list[str]]:
    """Bool [M]: the bags that the ids (of bags, slides or patients) mean; and the ids that mean none."""
    bags_of, _ = _bags_of_names(ids, cohort)
    chosen = np.zeros(len(cohort.bags), bool)
    for bags in bags_of.values():
        chosen[bags] = True
    return chosen, [name for name in ids if not bags_of[name]]


def _clam_folds(folder: Path) -> dict[str, dict[str, int]]:
    names = sorted(path.name for path in folder.iterdir())
    found = {name: match for name in names if (match := _CLAM_FILE.fullmatch(name))}
    plain = {match[1]: name for name, match in found.items() if not match[2]}
    chosen = plain or {match[1]: name for name, match in found.items()}
    if not chosen:
        raise DataError(
            f"{folder}: no splits_0.csv or splits_0_bool.csv in this folder; name the folder of CLAM's splits"
        )
    folds = {}
    for number in sorted(chosen, key=int):
        path = folder / chosen[number]
        header = read_header(path)
        columns = [name for name in header if name.lower() in _PARTS]
        if not columns:
            raise DataError(f"{path}: no columns train, val and test; its columns are {listed(header)}")
        members: dict[str, int] = {}
        if plain:
            table = read_columns(path, columns)
            listed_ids = ((name, column) for column in columns for name in table[column].dropna())
        else:
            table = read_columns(path, [header[0], *columns])
            listed_ids = (
                (name, column)
                for column in columns
                for name, chosen_here in zip(table[header[0]], table[column], strict=True)
                if str(chosen_here).lower() in _TRUE
            )
        for name, column in listed_ids:
            _assign(members, name, _PARTS[column.lower()], path, number)
        folds[number] = members
    return folds


def _column_folds(path: Path, header: list[str], columns: list[str]) -> dict[str, dict[str, int]]:
    id_column = _id_column(path, header)
    table = read_columns(path, [id_column, *columns])
    folds: dict[str, dict[str, int]] = {}
    for column in sorted(columns, key=natural_key):
        number = _FOLD_COLUMN.fullmatch(column)[1]  # type: ignore[index]
        folds[number] = _members(path, number, table[id_column], table[column])
    return folds


def _own_folds(path: Path, header: list[str], label_column: str) -> dict[str, dict[str, int]]:
    of_several = [LABEL_COLUMN] if LABEL_COLUMN in header else []
    columns = ["fold", "bag_id", "part", *of_several]
    table = read_columns(path, columns, missing=frozenset())  # NA is a tissue source site of TCGA
    if of_several:
        there = table[LABEL_COLUMN].unique().tolist()
        table = table[table[LABEL_COLUMN] == label_column]
        if table.empty:
            raise DataError(f"{path}: has the splits of {listed(there)}, and none of label column {label_column!r}")
    return {
        str(fold): _members(path, str(fold), rows["bag_id"], rows["part"])
        for fold, rows in table.groupby("fold", sort=False)
    }


def _numbered_folds(path: Path, header: list[str], column: str) -> dict[str, dict[str, int]]:
    id_column = _id_column(path, header)
    table = read_columns(path, [id_column, column]).dropna()
    wrong = [not (is_number(text) and float(text).is_integer()) for text in table[column]]
    if any(wrong):
        line = table.index[wrong][0]
        raise DataError(f"{path}, line {line}: {table[column][line]!r} in column {column!r} is no fold number")
    fold_of = table[column].astype(float).astype(int).to_numpy()
    numbers = np.unique(fold_of)
    parts = held_out_parts(np.searchsorted(numbers, fold_of), len(numbers))
    folds: dict[str, dict[str, int]] = {}
    for row, number in enumerate(numbers):
        members: dict[str, int] = {}
        for name, part in zip(table[id_column], parts[row], strict=True):
            _assign(members, name, int(part), path, str(number))
        folds[str(number)] = members
    return folds


def _members(path: Path, fold: str, names: pd.Series, parts: pd.Series) -> dict[str, int]:
    members: dict[str, int] = {}
    for line, name, text in zip(names.index, names, parts, strict=True):
        if pd.isna(name) or pd.isna(text):
            continue
        part = _PARTS.get(text.lower())
        if part is None:
            raise DataError(f"{path}, line {line}: {text!r} in fold {fold} is none of train, val and test")
        _assign(members, name, part, path, fold)
    return members


def _assign(members: dict[str, int], name: str, part: int, path: Path, fold: str) -> None:
    if members.setdefault(name, part) != part:
        raise DataError(
            f"{path}: fold {fold} has {name} in its {PART_NAMES[members[name]]} part and in its {PART_NAMES[part]} part"
        )


def _id_column(path: Path, header: list[str]) -> str:
    for name in ("bag_id", *SLIDE_COLUMNS, *PATIENT_COLUMNS):
        if name in header:
            return name
    raise DataError(
        f"{path}: which column names the slides is not known; call it slide_id (or case_id for patients); its columns "
        f"are {listed(header, 12)}"
    )


def _bags_of_names(names: Sequence[str], cohort: Cohort) -> tuple[dict[str, list[int]], str]:
    """The bags that each name means: a bag, a slide in it, or a patient; and what was not exact, in words."""
    slides = [(slide, bag) for bag, slides in enumerate(cohort.slide_ids) for slide in slides]
    slide_matches = match_ids(names, [slide for slide, _ in slides])
    by_id = {bag_id: bag for bag, bag_id in enumerate(cohort.bags["bag_id"])}
    by_patient: dict[str, list[int]] = defaultdict(list)
    for bag, patient in enumerate(cohort.bags["patient_id"]):
        by_patient[patient].append(bag)
    found: dict[str, list[int]] = {}
    for name, numbers in zip(names, slide_matches.slides, strict=True):
        if name in by_id:
            found[name] = [by_id[name]]
        elif name in by_patient:
            found[name] = by_patient[name]
        else:
            found[name] = sorted({slides[number][1] for number in numbers})
    prefixed = [name for name in slide_matches.by_barcode if name not in by_id and name not in by_patient]
    how = f" ({len(prefixed)} by TCGA barcode prefix: {listed(prefixed)})" if prefixed else ""
    return found, how


def long_table(parts: np.ndarray, names: Iterable[str], cohort: Cohort) -> pd.DataFrame:
    """Parts int8 [folds, M] as rows (fold, bag_id, patient_id, part); unused bags have none."""
    rows, bags = np.nonzero(parts != UNUSED)
    part_names = np.array([PART_NAMES[part] for part in (TRAIN, VALIDATION, TEST)], dtype=object)
    return pd.DataFrame(
        {
            "fold": np.asarray(list(names), dtype=object)[rows],
            "bag_id": cohort.bags["bag_id"].to_numpy()[bags],
            "patient_id": cohort.bags["patient_id"].to_numpy()[bags],
            "part": part_names[parts[rows, bags]],
        }
    )
