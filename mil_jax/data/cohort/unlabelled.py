"""A cohort without a label table: every slide that has features, for predictions alone.

Patients come from a rule; without one, TCGA barcodes are recognised, and else each slide counts as a patient of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mil_jax.data.cohort.cohort import Cohort
from mil_jax.data.cohort.ids import natural_key, patients_by_rule, require_patients, tcga_patient, tcga_site
from mil_jax.data.cohort.settings import is_rule
from mil_jax.data.tables import listed
from mil_jax.errors import ConfigError, DataError


def unlabelled_cohort(slide_ids: Sequence[str], num_instances: np.ndarray, *, patient: str = "", unit: str) -> Cohort:
    """slide_ids, num_instances [S]: the shard folder's index. patient: a rule, as `data.patient`. unit: "slide" or "patient".

    Raises ConfigError where bags are patients whom no rule tells, DataError for a rule that fails and where all slides are empty.
    """
    used = [number for number in range(len(slide_ids)) if num_instances[number] > 0]
    if not used:
        raise DataError("none of the slides has tiles, so there is nothing to predict; name other features")
    names = [slide_ids[number] for number in used]
    patients, said = _patients(names, patient if is_rule(patient) else "", unit)
    members: dict[str, list[int]] = {}
    for bag, number in zip(patients if unit == "patient" else names, used, strict=True):
        members.setdefault(bag, []).append(number)
    patient_of = dict(zip(used, patients, strict=True))
    order = sorted(members, key=natural_key)
    slides = [
        np.asarray(sorted(members[bag], key=lambda number: natural_key(slide_ids[number])), np.int64) for bag in order
    ]
    bags = pd.DataFrame(
        {
            "bag_id": order,
            "patient_id": [patient_of[int(numbers[0])] for numbers in slides],
            "num_slides": [len(numbers) for numbers in slides],
            "num_instances": [int(num_instances[numbers].sum()) for numbers in slides],
            "site": [tcga_site(slide_ids[int(numbers[0])]) or "" for numbers in slides],
        }
    )
    empty = [
        (slide, "empty slide: it has no tiles") for number, slide in enumerate(slide_ids) if not num_instances[number]
    ]
    report = [said, f"{len(order)} bags ({unit}s) of {bags['patient_id'].nunique()} patients, without labels"]
    return Cohort(
        bags,
        slides,
        [tuple(slide_ids[number] for number in numbers) for numbers in slides],
        pd.DataFrame(index=range(len(order))),
        pd.DataFrame(empty, columns=["slide", "reason"], dtype=object),
        report,
    )


def _patients(names: Sequence[str], rule: str, unit: str) -> tuple[list[str], str]:
    """The patient of each slide, and in words where that comes from."""
    if not rule and all(map(tcga_patient, names)):
        rule = "tcga"
    if rule and rule != "none":
        found = patients_by_rule(rule, names)
        require_patients(rule, names, found)
        patients = [patient or "" for patient in found]
        return patients, f"patients from the rule {rule!r}: {len(set(patients))} patients of {len(names)} slides"
    if unit == "patient":
        raise ConfigError(
            f"the run's bags are patients, and whose slide is whose is not known ({listed(names)}); give a label table, or a rule: "
            "--config.data.patient=tcga or --config.data.patient=regex:PATTERN"
        )
    return list(names), "every slide counts as a patient of its own"
