"""What `--check` shows before any training: matches, losses, classes x folds x sites, leaks, bag sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mil_jax.data.cohort.cohort import Cohort
from mil_jax.data.splits.folds import PART_NAMES, label_counts
from mil_jax.data.splits.splits import Splits

QUANTILES = {"min": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "max": 1.0}


@dataclass(frozen=True)
class Description:
    """sentences: what was matched, excluded, split and leaked, in order. tables, by name:

    classes (class, bags, patients), counts (fold, part, class, site, bags, patients; a row where bags > 0),
    bag_sizes (class, bags, quantiles of the number of instances), excluded (reason, slides) and leaks.
    """

    sentences: list[str]
    tables: dict[str, pd.DataFrame]


def describe(cohort: Cohort, targets: np.ndarray, classes: Sequence[str], splits: Splits) -> Description:
    """Describes a cohort and its splits.

    targets: class numbers [M] (-1 = missing) or 0/1 columns [M, C], where a bag counts for each class it has.
    """
    member = label_counts(targets, len(classes)) > 0  # [M, C]
    patients = pd.factorize(cohort.bags["patient_id"])[0]
    per_class = pd.DataFrame(
        {
            "class": list(classes),
            "bags": member.sum(axis=0),
            "patients": [len(np.unique(patients[chosen])) for chosen in member.T],
        }
    )
    mapping = ", ".join(
        f"{number} = {name} ({bags} bags)" for number, name, bags in per_class[["class", "bags"]].itertuples()
    )
    sentences = [*cohort.report, f"classes: {mapping}", *splits.report]
    unlabelled = int((~member.any(axis=1)).sum())
    if unlabelled and np.asarray(targets).ndim == 1:
        sentences.append(f"{unlabelled} bags have no label")
    if not len(splits.leaks):
        sentences.append("no patient is in two parts of a fold")
    excluded = pd.concat([cohort.excluded, splits.excluded]).groupby("reason").size()
    tables = {
        "classes": per_class,
        "counts": _counts(cohort, patients, member, classes, splits),
        "bag_sizes": _bag_sizes(cohort, member, classes),
        "excluded": excluded.rename("slides").reset_index(),
        "leaks": splits.leaks,
    }
    return Description(sentences, tables)


def _counts(
    cohort: Cohort, patients: np.ndarray, member: np.ndarray, classes: Sequence[str], splits: Splits
) -> pd.DataFrame:
    """Bags and patients by fold, part, class and site."""
    bags, classes_of = np.nonzero(member)
    named = np.asarray([*classes], dtype=object)[classes_of]
    base = pd.DataFrame({"class": named, "site": cohort.bags["site"].to_numpy()[bags], "patient": patients[bags]})
    tables = []
    for name, fold in zip(splits.names, splits.parts, strict=True):
        for part, part_name in PART_NAMES.items():
            rows = base[fold[bags] == part]
            grouped = rows.groupby(["class", "site"], sort=True)["patient"].agg(["size", "nunique"]).reset_index()
            grouped.insert(0, "part", part_name)
            grouped.insert(0, "fold", name)
            tables.append(grouped)
    return pd.concat(tables, ignore_index=True).rename(columns={"size": "bags", "nunique": "patients"})


def _bag_sizes(cohort: Cohort, member: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    sizes = cohort.bags["num_instances"].to_numpy()
    rows = []
    for name, chosen in [*zip(classes, member.T, strict=True), ("all", np.ones(len(sizes), bool))]:
        points = np.quantile(sizes[chosen], list(QUANTILES.values())) if chosen.any() else [np.nan] * len(QUANTILES)
        rows.append({"class": name, "bags": int(chosen.sum()), **dict(zip(QUANTILES, points, strict=True))})
    return pd.DataFrame(rows)
