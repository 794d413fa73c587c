"""What is said of labelled instances: the AUC over instances, and the FROC of lesions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mil_jax.reports.tables import Grid, number
from mil_jax.tasks.metrics.instances import RATES

HOW_INSTANCES = (
    "Single instances: the score is the bag's probability of the positive class times the instance's attention, relative to the largest "
    "of the bag (without attention: the instance's own probability). AUC over the instances of slides with positive ones. FROC: a "
    "detection is an instance whose score no neighbouring tile exceeds, a lesion a connected group of positive tiles; false positives are "
    "counted on all slides."
)


def instance_statements(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How it was done, and what was left out; nothing where no instances were scored."""
    left_out = {one["cohort"]: 0 for one in rows}
    for one in rows:
        left_out[one["cohort"]] += one["bags_left_out"]
    lost = [
        f"{name}: {count} bags without labels of their instances are left out of the numbers of single instances."
        for name, count in left_out.items()
        if count
    ]
    return [HOW_INSTANCES, *lost] if rows else []


def instance_grid(rows: Sequence[Mapping[str, Any]], *, few: bool = False) -> Grid:
    """Header and rows; "-" where the features come without coordinates. few: what a narrow terminal holds."""
    header = [
        "cohort",
        "scored by",
        "slides",
        "with lesions",
        "lesions",
        "instance AUC",
        "mean of slides",
        "FROC score",
    ]
    shown = () if few else RATES
    table = []
    for one in rows:
        sensitivity = one["froc"] or {}
        numbers = (one["instance_auc"], one["instance_auc_mean_of_slides"], one["froc_score"])
        table.append(
            [
                *(one["cohort"], one["scored"], str(one["slides"]), str(one["positive_slides"])),
                *("-" if one["lesions"] is None else str(one["lesions"]), *map(number, numbers)),
                *(number(sensitivity.get(str(rate))) for rate in shown),
            ]
        )
    return [*header, *(f"at {rate:g} FP" for rate in shown)], table
