"""Which models of a run may score a bag: those that held its patient out as test, or all of them where the run never met the patient.

Bags are joined with the run's splits.csv by patient (however the id is written; TCGA barcodes by participant) and by slide. What a model
was trained or validated on it never scores, whatever else is known of the bag.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mil_jax.data.cohort.cohort import Cohort
from mil_jax.data.cohort.ids import match_ids
from mil_jax.data.cohort.variants import patient_key
from mil_jax.data.tables import listed
from mil_jax.errors import DataError


@dataclass(frozen=True)
class Eligibility:
    """held_out: bool [folds, M], the fold tested on the bag's patient and never saw it else. unseen: bool [M], the run never met the
    patient.
    """

    held_out: np.ndarray
    unseen: np.ndarray

    @property
    def scored(self) -> np.ndarray:
        """bool [M]: the bags that any model may score."""
        return self.unseen | self.held_out.any(axis=0)

    @property
    def by_fold(self) -> np.ndarray:
        """bool [folds, M]: what each fold's models score."""
        return self.held_out | self.unseen


def eligible_models(splits: pd.DataFrame, folds: Sequence[str], cohort: Cohort) -> Eligibility:
    """splits: the rows of splits.csv of one label column. folds: their names, in order."""
    parts: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))  # patient -> fold -> parts
    patient_of: dict[str, str] = {}  # bag that the run knows -> patient
    rows = zip(splits["fold"], splits["bag_id"], splits["patient_id"], splits["part"], strict=True)
    for fold, bag, patient, part in rows:
        patient_of[bag] = patient_key(patient)
        parts[patient_of[bag]][str(fold)].add(part)
    known = _known_patients(cohort, patient_of, parts.keys())
    held_out = np.zeros((len(folds), len(known)), bool)
    for bag, patients in enumerate(known):
        for row, fold in enumerate(folds):
            met = set().union(*(parts[patient][fold] for patient in patients)) if patients else set()
            held_out[row, bag] = met == {"test"}
    return Eligibility(held_out, np.array([not patients for patients in known]))


def require_scored(scoring: Eligibility, cohort: Cohort, where: str) -> None:
    """Raises DataError with the count where patients were trained or validated on by every model."""
    seen = ~scoring.scored
    if not seen.any():
        return
    patients = sorted(set(cohort.bags["patient_id"][seen]))
    raise DataError(
        f"{where}: {len(patients)} of {cohort.bags['patient_id'].nunique()} patients ({int(seen.sum())} of {len(seen)} bags) were trained "
        f"or validated on by every model of the run that met them ({listed(patients)}); leave them out with --exclude-seen, or, where "
        "other people happen to have these ids, give them other ones"
    )


def _known_patients(cohort: Cohort, patient_of: dict[str, str], patients: object) -> list[set[str]]:
    """For each bag the patients of the run that it is of: by its own patient, and by its slides."""
    people = set(patients)  # type: ignore[call-overload]
    known = [{patient_key(patient)} & people for patient in cohort.bags["patient_id"]]
    slides = [(slide, bag) for bag, names in enumerate(cohort.slide_ids) for slide in names]
    names = list(patient_of)
    for name, numbers in zip(names, match_ids(names, [slide for slide, _ in slides]).slides, strict=True):
        for number in numbers:
            known[slides[number][1]].add(patient_of[name])
    return known
