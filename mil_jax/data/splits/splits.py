"""Splits of a cohort into training, validation and test parts, and the check that no patient is in two of them.

Own splits are grouped by patient (and by site or any column) and stratified; a leak in them is an error. Published ones
(`split_files.py`) are run as they are: their leaks are reported and `Splits.leak_free` marks the clean test bags.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mil_jax.csv_cells import inert_table
from mil_jax.data.cohort.cohort import Cohort
from mil_jax.data.splits.checks import check_classes, find_leaks, require_patients_whole
from mil_jax.data.splits.folds import (
    TEST,
    TRAIN,
    UNUSED,
    VALIDATION,
    carve_validation,
    deal,
    held_out_parts,
    k_folds,
    label_counts,
)
from mil_jax.data.splits.published import bags_of_ids, long_table, read_ids, read_published
from mil_jax.data.tables import SUFFIXES, listed, suggestion
from mil_jax.errors import ConfigError, DataError
from mil_jax.files import atomic_write

__all__ = [
    "TEST",
    "TRAIN",
    "UNUSED",
    "VALIDATION",
    "SplitSettings",
    "Splits",
    "make_splits",
    "read_splits",
    "splits_from_folds",
]

KINDS = ("k_fold", "monte_carlo", "leave_one_group_out", "file")
_YES = ("test", "true", "yes", "1")
_NO = ("train", "training", "val", "validation", "false", "no", "0")


@dataclass(frozen=True)
class SplitSettings:
    """How the parts are made.

    kind: "k_fold" (`repeats` times; with 0 folds all bags are for training), "monte_carlo" (`folds` random draws of
        `test_fraction`), "leave_one_group_out" (each value of `group` is once the test part) or "file" (published splits, `file`).
    group: column of `Cohort.bags` whose values are never in the test part and another; "site" gives site-preserved folds. Patients
        never cross any parts; a carved validation part keeps patients whole, not groups.
    test: a fixed official test set: a column of `Cohort.bags` (test, true, yes, 1), a file of ids, or a list of ids.
        What `kind` holds out of the rest is then the validation part.
    val_fraction: part of the training patients that becomes the validation part where there is none; 0 = none.
    min_matched, strict: for published files, as in `CohortSettings`. label_column: whose rows of a run's splits.csv count, where it
        has those of several.
    Raises ConfigError for a value that is none of these.
    """

    kind: str = "k_fold"
    folds: int = 5
    repeats: int = 1
    group: str = ""
    test: str | Sequence[str] = ""
    test_fraction: float = 0.2
    val_fraction: float = 0.15
    file: str | os.PathLike[str] = ""
    seed: int = 0
    min_matched: float = 0.5
    strict: bool = False
    label_column: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(
                f"splits.kind={self.kind!r}{suggestion(self.kind, KINDS)}; choose one of {', '.join(KINDS)}"
            )
        if (self.kind == "file") != bool(self.file):
            raise ConfigError("splits.kind='file' and splits.file=PATH go together; set both or neither")
        if self.folds == 0 and (self.kind != "k_fold" or self.repeats > 1 or self.group or len(self.test)):
            raise ConfigError(
                "splits.folds=0 trains on everything and holds nothing out: leave the other settings of splits as they are"
            )
        if 0 < self.folds < (2 if self.kind == "k_fold" else 1) or self.repeats < 1:
            raise ConfigError(
                f"splits.folds={self.folds}, splits.repeats={self.repeats}: too few for splits.kind={self.kind!r}"
            )
        if self.repeats > 1 and self.kind != "k_fold":
            raise ConfigError(f"splits.repeats={self.repeats} is for splits.kind='k_fold'; set splits.repeats=1")
        if not 0 <= self.val_fraction < 1 or not 0 < self.test_fraction < 1:
            raise ConfigError(
                f"splits.val_fraction={self.val_fraction}, splits.test_fraction={self.test_fraction}: give parts of 1"
            )
        if self.kind == "leave_one_group_out" and not self.group:
            raise ConfigError("splits.kind='leave_one_group_out' needs splits.group, a column such as 'site'")
        if self.kind == "file" and len(self.test):
            raise ConfigError("splits.test cannot go with splits.file, which names its test parts itself")


@dataclass(frozen=True)
class Splits:
    """parts: int8 [folds, M], TRAIN, VALIDATION, TEST or UNUSED. names: of the folds.

    leak_free: bool [folds, M], test bags whose patient is in no other part of the fold.
    leaks: fold, part, other, patients, bags (those of `part`); empty for own splits.
    excluded: slide, reason. report: sentences for the user.
    """

    parts: np.ndarray
    names: list[str]
    leak_free: np.ndarray
    leaks: pd.DataFrame
    excluded: pd.DataFrame
    report: list[str]

    def to_csv(self, path: str | os.PathLike[str], cohort: Cohort) -> None:
        """Writes fold, bag_id, patient_id, part; `read_splits` gives the same parts and names back."""
        with atomic_write(path) as temporary:
            inert_table(long_table(self.parts, self.names, cohort)).to_csv(temporary, index=False)


def make_splits(
    cohort: Cohort, targets: np.ndarray | None, settings: SplitSettings, classes: Sequence[str] = ()
) -> Splits:
    """The splits of a cohort, the same for the same seed whatever the order of tables and shards.

    targets: class numbers [M] (-1 = missing) or 0/1 columns [M, C] to stratify by; None: by numbers of bags only.
    classes: their names, for messages. Raises DataError when a patient is in two parts, a class is absent from a
    training part, or there are fewer groups than folds.
    """
    counts = _counts(cohort, targets, classes)
    if settings.kind == "file":
        published = read_published(settings.file, cohort, settings.label_column, min_matched=settings.min_matched)
        parts, report = published.parts, published.report
        excluded = _excluded(published.excluded, settings.strict, report)
        if not published.has_test:
            parts[parts == VALIDATION] = TEST
            report.append("the file has no test parts: its validation parts are the test parts here")
        untested = np.flatnonzero(~(parts == TEST).any(axis=1))
        if len(untested):
            raise DataError(
                f"{settings.file}: fold {published.names[untested[0]]} has no test bag ({len(untested)} such folds); every fold needs one"
            )
        return _finish_published(cohort, parts, published.names, counts, settings, classes, excluded, report)
    if settings.folds == 0:
        parts = np.full((1, len(cohort.bags)), TRAIN, np.int8)
        report = ["no folds: everything is trained on", *check_classes(parts, ["all"], counts, classes)]
        return Splits(
            parts, ["all"], parts == TEST, find_leaks(parts, ["all"], cohort)[0], _excluded([], False, report), report
        )
    parts, names, lost = _own_parts(cohort, counts, settings)
    leaks = require_patients_whole(parts, names, cohort)
    report = [f"{len(names)} folds, {settings.kind}, grouped by patient{_and_group(settings)}, seed {settings.seed}"]
    report += check_classes(parts, names, counts, classes)
    excluded = _excluded(
        [(name, "in the official test set, but not in the cohort") for name in lost], settings.strict, report
    )
    return Splits(parts, names, parts == TEST, leaks, excluded, report)


def splits_from_folds(
    folds: np.ndarray, cohort: Cohort, targets: np.ndarray, settings: SplitSettings, classes: Sequence[str] = ()
) -> Splits:
    """Published folds as numbers: folds [repeats, M], the fold in which each bag is tested; order of `cohort.bags`."""
    folds = np.atleast_2d(np.asarray(folds))
    if folds.shape[1] != len(cohort.bags):
        raise DataError(f"the folds are given for {folds.shape[1]} bags, but the cohort has {len(cohort.bags)}")
    numbers = [np.unique(row) for row in folds]
    parts = np.concatenate([(row == number[:, None]) * (TEST - TRAIN) + TRAIN for row, number in zip(folds, numbers)])
    names = _fold_names([len(number) for number in numbers])
    report = [f"published folds: {len(folds)} repeats, {len(names)} folds"]
    return _finish_published(
        cohort,
        parts.astype(np.int8),
        names,
        _counts(cohort, targets, classes),
        settings,
        classes,
        _excluded([], False, report),
        report,
    )


def read_splits(path: str | os.PathLike[str], cohort: Cohort) -> Splits:
    """Reads splits as they stand in a file, without carving validation parts: the inverse of `Splits.to_csv`."""
    published = read_published(path, cohort, min_matched=0.0)
    leaks, leak_free, said = find_leaks(published.parts, published.names, cohort)
    report = published.report + said
    excluded = _excluded(published.excluded, False, report)
    return Splits(published.parts, published.names, leak_free, leaks, excluded, report)


def _own_parts(cohort: Cohort, counts: np.ndarray, settings: SplitSettings) -> tuple[np.ndarray, list[str], list[str]]:
    """Parts int8 [folds, M], fold names, and the ids of the official test set that no bag has."""
    patients = _codes(cohort.bags["patient_id"])
    groups = _groups(cohort, settings.group) if settings.group else patients
    fixed, lost = _official_test(cohort, patients, settings)
    rest = np.flatnonzero(~fixed)
    held_out = VALIDATION if fixed.any() else TEST
    inside: list[np.ndarray] = []
    if settings.kind == "leave_one_group_out":
        values, number = np.unique(cohort.bags[settings.group].to_numpy(object)[rest].astype(str), return_inverse=True)
        _require_groups(len(values), 2, settings)
        inside.append(held_out_parts(number, len(values), held_out))
        names = [str(value) for value in values]
    elif settings.kind == "k_fold":
        _require_groups(len(np.unique(groups[rest])), settings.folds, settings)
        for repeat in range(settings.repeats):
            rng = np.random.default_rng([settings.seed, repeat])
            fold_of = k_folds(groups[rest], counts[rest], settings.folds, rng)
            inside.append(held_out_parts(fold_of, settings.folds, held_out))
        names = _fold_names([settings.folds] * settings.repeats)
    else:
        _require_groups(len(np.unique(groups[rest])), 2, settings)
        share = settings.val_fraction if fixed.any() else settings.test_fraction
        for draw in range(settings.folds):
            rng = np.random.default_rng([settings.seed, draw])
            chosen = (
                deal(groups[rest], counts[rest], [share, 1 - share], rng) == 0 if share else np.zeros(len(rest), bool)
            )
            inside.append(np.where(chosen, held_out, TRAIN).astype(np.int8)[None])
        names = _fold_names([settings.folds])
    parts = np.full((len(names), len(fixed)), TEST, np.int8)
    parts[:, rest] = np.concatenate(inside)
    _carve(parts, patients, counts, settings)
    return parts, names, lost


def _finish_published(
    cohort: Cohort,
    parts: np.ndarray,
    names: list[str],
    counts: np.ndarray,
    settings: SplitSettings,
    classes: Sequence[str],
    excluded: pd.DataFrame,
    report: list[str],
) -> Splits:
    carved = _carve(parts, _codes(cohort.bags["patient_id"]), counts, settings)
    if carved:
        report.append(
            f"{carved} folds come without validation part: carved from {settings.val_fraction:.0%} of training patients"
        )
    leaks, leak_free, said = find_leaks(parts, names, cohort)
    report += said + check_classes(parts, names, counts, classes)
    return Splits(parts, names, leak_free, leaks, excluded, report)


def _carve(parts: np.ndarray, patients: np.ndarray, counts: np.ndarray, settings: SplitSettings) -> int:
    """Gives every fold without validation part one, in place; how many were given."""
    bare = np.flatnonzero(~(parts == VALIDATION).any(axis=1)) if settings.val_fraction else np.empty(0, np.int64)
    for fold in bare:
        rng = np.random.default_rng([settings.seed, 1, int(fold)])
        carve_validation(parts[fold], patients, counts, settings.val_fraction, rng)
    return len(bare)


def _official_test(cohort: Cohort, patients: np.ndarray, settings: SplitSettings) -> tuple[np.ndarray, list[str]]:
    """Bool [M], the bags of the fixed test set; and its ids that no bag has."""
    test = settings.test
    lost: list[str] = []
    if isinstance(test, str) and not test:
        return np.zeros(len(cohort.bags), bool), []
    if isinstance(test, str) and not test.lower().endswith(SUFFIXES):
        if test not in cohort.bags:
            near = suggestion(test, cohort.bags.columns)
            raise DataError(
                f"splits.test={test!r} is no column of the cohort{near}; it has {listed(cohort.bags.columns, 12)}"
            )
        fixed = np.array([_is_test(value, bag, test) for value, bag in zip(cohort.bags[test], cohort.bags["bag_id"])])
    else:
        ids = read_ids(test) if isinstance(test, str) else list(test)
        fixed, lost = bags_of_ids(ids, cohort)
    if not fixed.any() or fixed.all():
        which = "every bag" if fixed.all() else "no bag"
        raise DataError(f"splits.test={test if isinstance(test, str) else listed(test)!r} holds {which} of the cohort")
    torn = np.intersect1d(patients[fixed], patients[~fixed])
    if len(torn):
        patient = cohort.bags["patient_id"][np.flatnonzero(patients == torn[0])[0]]
        raise DataError(
            f"{len(torn)} patients are in the official test set and outside of it (such as {patient}); name all of "
            "their slides, or run the splits as published with splits.file"
        )
    return fixed, lost


def _is_test(value: object, bag: str, column: str) -> bool:
    text = "" if pd.isna(value) else str(value).lower()
    if text and text not in _YES + _NO:
        raise DataError(
            f"splits.test: bag {bag} has {value!r} in column {column!r}; write test for test bags, else train"
        )
    return text in _YES


def _groups(cohort: Cohort, column: str) -> np.ndarray:
    """Codes of a group column. Raises DataError when it is absent or incomplete or tears a patient apart."""
    if column not in cohort.bags:
        near = suggestion(column, cohort.bags.columns)
        raise DataError(
            f"splits.group={column!r} is no column of the cohort{near}; it has {listed(cohort.bags.columns, 12)}"
        )
    values = cohort.bags[column]
    unknown = values.isna() | (values == "")
    if unknown.any():
        bags = listed(cohort.bags["bag_id"][unknown])
        raise DataError(
            f"splits.group={column!r}: {int(unknown.sum())} bags have no value ({bags}); "
            "fill it in, or leave them out with data.filter"
        )
    pairs = pd.DataFrame({"patient": cohort.bags["patient_id"], "group": values}).drop_duplicates()
    torn = pairs[pairs["patient"].duplicated(keep=False)].sort_values("patient", kind="stable")
    if len(torn):
        patient = torn["patient"].iloc[0]
        groups = listed(torn["group"][torn["patient"] == patient])
        raise DataError(
            f"splits.group={column!r}: patient {patient} is in the groups {groups}; "
            "a patient must be in one, or would be in two parts"
        )
    return _codes(values)


def _require_groups(number: int, least: int, settings: SplitSettings) -> None:
    if number < least:
        what = f"values of {settings.group!r}" if settings.group else "patients"
        raise DataError(
            f"splits.kind={settings.kind!r} needs at least {least} {what}, the cohort has {number}; use fewer folds"
        )


def _counts(cohort: Cohort, targets: np.ndarray | None, classes: Sequence[str]) -> np.ndarray:
    if targets is None:
        return np.zeros((len(cohort.bags), 0), np.int64)
    if len(targets) != len(cohort.bags):
        raise ValueError(f"{len(targets)} targets for {len(cohort.bags)} bags")
    return label_counts(targets, len(classes))


def _codes(values: pd.Series) -> np.ndarray:
    return pd.factorize(values, sort=True)[0].astype(np.int64)


def _fold_names(folds_per_repeat: Sequence[int]) -> list[str]:
    """`0`, `1`, ...; with several repeats `0-0`, `0-1`, ... (repeat, fold)."""
    if len(folds_per_repeat) == 1:
        return [str(fold) for fold in range(folds_per_repeat[0])]
    return [f"{repeat}-{fold}" for repeat, number in enumerate(folds_per_repeat) for fold in range(number)]


def _and_group(settings: SplitSettings) -> str:
    return f" and {settings.group}" if settings.group else ""


def _excluded(rows: Sequence[tuple[str, str]], strict: bool, report: list[str]) -> pd.DataFrame:
    """The table of what was left out; a sentence per reason is added to `report`."""
    frame = pd.DataFrame(list(rows), columns=["slide", "reason"], dtype=object)
    if strict and len(frame):
        slide, reason = rows[0]
        raise DataError(f"{slide}: {reason}; with --strict nothing may be excluded ({len(frame)} would be)")
    report += [f"excluded {len(group)}: {why} ({listed(group['slide'])})" for why, group in frame.groupby("reason")]
    return frame
