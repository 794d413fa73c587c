"""What is checked of every split: patients in two parts of a fold, and classes that a part lacks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mil_jax.data.cohort.cohort import Cohort
from mil_jax.data.splits.folds import PART_NAMES, TEST, TRAIN, VALIDATION
from mil_jax.data.tables import listed
from mil_jax.errors import DataError

LEAK_COLUMNS = ["fold", "part", "other", "patients", "bags", "example"]


def find_leaks(parts: np.ndarray, names: Sequence[str], cohort: Cohort) -> tuple[pd.DataFrame, np.ndarray, list[str]]:
    """Patients in two parts of one fold.

    parts: int8 [folds, M]. Returns a row per fold and pair of parts (`LEAK_COLUMNS`; `bags` are those of `part`), the
    test bags whose patient is in no other part, bool [folds, M], and a sentence per row.
    """
    patients = pd.factorize(cohort.bags["patient_id"])[0]
    number = int(patients.max(initial=-1)) + 1
    leak_free = parts == TEST
    rows, said = [], []
    for row, (name, fold) in enumerate(zip(names, parts, strict=True)):
        present = {part: np.bincount(patients[fold == part], minlength=number) > 0 for part in PART_NAMES}
        for part, other in ((TEST, TRAIN), (TEST, VALIDATION), (VALIDATION, TRAIN)):
            shared = present[part] & present[other]
            if not shared.any():
                continue
            bags = (fold == part) & shared[patients]
            if part == TEST:
                leak_free[row] &= ~bags
            example = cohort.bags["patient_id"][np.flatnonzero(bags)[0]]
            found = (name, PART_NAMES[part], PART_NAMES[other], int(shared.sum()), int(bags.sum()), example)
            rows.append(found)
            said.append(
                f"leak: fold {name}, {found[3]} patients ({found[4]} bags) of the {found[1]} part are also in the "
                f"{found[2]} part, such as {example}"
            )
    return pd.DataFrame(rows, columns=LEAK_COLUMNS), leak_free, said


def require_patients_whole(parts: np.ndarray, names: Sequence[str], cohort: Cohort) -> pd.DataFrame:
    """The empty table of leaks. Raises DataError naming a patient that is in two parts of a fold."""
    leaks, _, _ = find_leaks(parts, names, cohort)
    if len(leaks):
        row = leaks.iloc[0]
        raise DataError(
            f"fold {row['fold']}: patient {row['example']} is in both the {row['part']} and the {row['other']} part "
            f"({row['patients']} such patients); own splits must keep patients whole"
        )
    return leaks


def check_classes(parts: np.ndarray, names: Sequence[str], counts: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Sentences on validation and test parts that lack a class. Raises DataError when a training part lacks one.

    counts: int64 [M, C] from `label_counts`.
    """
    titles = (list(classes) or [str(number) for number in range(counts.shape[1])])[: counts.shape[1]]
    notes = []
    for name, fold in zip(names, parts, strict=True):
        for part, part_name in PART_NAMES.items():
            here = fold == part
            if not here.any() and part != TRAIN:
                continue
            absent = [title for title, count in zip(titles, counts[here].sum(axis=0), strict=True) if count == 0]
            if absent and part == TRAIN:
                raise DataError(
                    f"fold {name}: no training bag of class {listed(absent)}; use other folds, or leave the class out "
                    "with data.filter"
                )
            if absent:
                notes.append(f"fold {name}: no {part_name} bag of class {listed(absent)}")
    return notes
