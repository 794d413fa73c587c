"""The cohort: labelled slides that have features, as bags with targets, patients and sites.

Slides and labels are joined by name; both sides lose what the other lacks, and every loss is counted in `excluded`.
Nothing here depends on the order of the shards or of the table: bags are sorted by id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mil_jax.data.cohort.ids import Matches, match_ids, natural_key, patients_by_rule, require_patients, tcga_site
from mil_jax.data.cohort.label_table import FILTERED, KEPT, UNLABELLED, LabelRows, read_label_rows, resolve_classes
from mil_jax.data.cohort.numeric_columns import raw_column
from mil_jax.data.cohort.settings import CohortSettings, is_rule
from mil_jax.data.cohort.variants import same_classes, same_patients, tissue_kinds
from mil_jax.data.tables import listed
from mil_jax.errors import DataError

__all__ = ["Cohort", "CohortSettings", "build_cohort", "resolve_classes"]


@dataclass(frozen=True)
class Cohort:
    """Bags of one experiment, sorted by id.

    bags: a row per bag: bag_id, patient_id, num_slides, num_instances, site ("" = unknown), then the raw target,
        site and further columns of the label table that have other names than these.
    slides: per bag the row numbers of its slides in the shard folder. slide_ids: their names.
    labels: the target columns as text, NaN = missing. excluded: slide, reason. report: sentences for the user.
    """

    bags: pd.DataFrame
    slides: list[np.ndarray]
    slide_ids: list[tuple[str, ...]]
    labels: pd.DataFrame
    excluded: pd.DataFrame
    report: list[str]


class _Exclusions:
    """Collects (slide, reason); those that a setting asked for are never an error."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str]] = []
        self.unasked: list[tuple[str, str]] = []

    def add(self, slide: str, reason: str, asked_for: bool = False) -> None:
        self.rows.append((slide, reason))
        if not asked_for:
            self.unasked.append((slide, reason))

    def finish(self, strict: bool, report: list[str]) -> pd.DataFrame:
        if strict and self.unasked:
            slide, reason = self.unasked[0]
            raise DataError(
                f"{slide}: {reason}; with --strict nothing may be excluded ({len(self.unasked)} would be); "
                "fix the tables or run without --strict"
            )
        frame = pd.DataFrame(self.rows, columns=["slide", "reason"], dtype=object).drop_duplicates(ignore_index=True)
        for reason, group in frame.groupby("reason", sort=True):
            report.append(f"excluded {len(group)}: {reason} ({listed(group['slide'])})")
        return frame


def build_cohort(
    slide_ids: Sequence[str],
    num_instances: np.ndarray,
    settings: CohortSettings,
    *,
    modified: np.ndarray | None = None,
) -> Cohort:
    """Joins a shard folder's slides with the label table.

    slide_ids, num_instances [S]: the shard folder's index. modified [S]: when each feature file was written, for
    `duplicates="newest"`. Raises DataError when tables cannot be read, labels contradict each other, a patient is
    unknown, or nothing or less than `settings.min_matched` of the labelled rows remains.
    """
    rows = read_label_rows(settings)
    report, out = list(rows.report), _Exclusions()
    for name, reason in rows.lost:
        out.add(name, reason)
    matches = _match(rows, slide_ids, settings)
    _report_matches(matches, rows, report)
    pairs = _pairs(rows, matches, slide_ids, num_instances, settings, modified, out)
    _require_enough(rows, pairs, slide_ids, settings, report)
    pairs["patient"] = _patients(pairs, rows, slide_ids, settings, report)
    bag_of_slide = pairs["patient"] if settings.unit == "patient" else pairs["slide"].map(lambda row: slide_ids[row])
    cohort = _combine(pairs.assign(bag=bag_of_slide), slide_ids, np.asarray(num_instances), settings, report)
    report += [*same_patients(pairs["patient"]), *tissue_kinds({slide_ids[number] for number in pairs["slide"]})]
    if not (settings.numbers or settings.multi_label or settings.class_order):
        for name in settings.targets:
            report += same_classes(name, pairs[raw_column(name)].dropna().tolist())
    excluded = out.finish(settings.strict, report)
    return Cohort(*cohort, excluded=excluded, report=report)


def _match(rows: LabelRows, slide_ids: Sequence[str], settings: CohortSettings) -> Matches:
    names = rows.table["name"].tolist()
    if not (rows.by_patient and settings.patient and is_rule(settings.patient)):
        return match_ids(names, slide_ids)
    of_patient: dict[str, list[int]] = {}
    for number, patient in enumerate(patients_by_rule(settings.patient, slide_ids)):
        if patient:
            of_patient.setdefault(patient, []).append(number)
    return Matches([of_patient.get(name, []) for name in names], 0, 0, [])


def _report_matches(matches: Matches, rows: LabelRows, report: list[str]) -> None:
    found = sum(map(bool, matches.slides))
    report.append(f"{found} of {len(matches.slides)} rows of the label table name slides that have features")
    if matches.by_base_name:
        report.append(f"{matches.by_base_name} rows matched by file name, the folder left out")
    if matches.by_barcode:
        report.append(f"{len(matches.by_barcode)} rows matched by TCGA barcode prefix ({listed(matches.by_barcode)})")


def _pairs(
    rows: LabelRows,
    matches: Matches,
    slide_ids: Sequence[str],
    num_instances: np.ndarray,
    settings: CohortSettings,
    modified: np.ndarray | None,
    out: _Exclusions,
) -> pd.DataFrame:
    """Every used (row of the table, slide) with the row's columns; notes what is left out and why."""
    table_name = Path(settings.labels).name
    seen: dict[int, int] = {}  # slide -> best state of the rows that name it
    places, slides = [], []
    for place, (numbers, state, name) in enumerate(zip(matches.slides, rows.state, rows.table["name"], strict=True)):
        for number in numbers:
            seen[number] = min(state, seen.get(number, state))
        if state != KEPT:
            continue
        if not numbers:
            out.add(name, f"labelled in {table_name}, but without features")
        if len(numbers) > 1 and not (rows.by_patient and settings.unit == "patient"):
            numbers = _undoubled(numbers, rows.table.index[place], name, slide_ids, settings, modified, out)
        filled = [number for number in numbers if num_instances[number] > 0]
        places += [place] * len(filled)
        slides += filled
    reasons = {
        UNLABELLED: f"no label in its row of {table_name}",
        FILTERED: "left out by data.filter",
    }
    for number, slide in enumerate(slide_ids):
        state = seen.get(number)
        if state is None:
            out.add(slide, f"no row in {table_name}")
        elif state in reasons:
            out.add(slide, reasons[state], asked_for=state == FILTERED)
        elif num_instances[number] == 0:
            out.add(slide, "empty slide: it has no tiles")
    return rows.table.iloc[places].assign(slide=np.asarray(slides, np.int64), place=places).reset_index()


def _undoubled(
    numbers: list[int],
    line: int,
    name: str,
    slide_ids: Sequence[str],
    settings: CohortSettings,
    modified: np.ndarray | None,
    out: _Exclusions,
) -> list[int]:
    """The slides to use of several that one row means, by `settings.duplicates`."""
    if settings.duplicates == "all":
        return numbers
    names = listed(sorted(slide_ids[number] for number in numbers))
    if settings.duplicates == "error":
        raise DataError(
            f"{settings.labels}, line {line}: {name!r} means {len(numbers)} slides ({names}); set data.duplicates to "
            "'all' (each with this row's label) or 'newest', or data.unit='patient' if the row is a patient's"
        )
    if modified is None or not np.isfinite(modified[numbers]).all():
        raise DataError(
            f"{settings.labels}, line {line}: data.duplicates='newest' needs the dates of the feature files of {names}, "
            "which the shards do not tell; set it to 'all', or leave rows out with data.filter"
        )
    newest = max(numbers, key=lambda number: (modified[number], natural_key(slide_ids[number])))
    for number in numbers:
        if number != newest:
            out.add(slide_ids[number], f"older than {slide_ids[newest]} of the same row", asked_for=True)
    return [newest]


def _require_enough(
    rows: LabelRows, pairs: pd.DataFrame, slide_ids: Sequence[str], settings: CohortSettings, report: list[str]
) -> None:
    path = settings.labels
    used = rows.num_labelled
    if used == 0:
        why = "data.filter leaves none" if (rows.state == FILTERED).any() else "no row has a label"
        raise DataError(f"{path}: no labelled row is left ({why})")
    matched = (
        pairs["row_number"].nunique() if "row_number" in pairs else pairs.drop_duplicates(["row", "name"]).shape[0]
    )
    examples = f"the table has {listed(rows.table['name'], 2)}, the features {listed(slide_ids, 2)}"
    if matched == 0:
        raise DataError(
            f"{path}: none of {used} labelled rows has a slide with features ({examples}); "
            "set data.id_column to the column that names the slides, or data.patient to a rule"
        )
    if matched < settings.min_matched * used:
        raise DataError(
            f"{path}: only {matched} of {used} labelled rows have a slide with features, less than "
            f"data.min_matched={settings.min_matched} ({examples}); fix the names, or lower data.min_matched"
        )
    report.append(f"{matched} of {used} labelled rows are used, with {pairs['slide'].nunique()} slides")


def _patients(
    pairs: pd.DataFrame, rows: LabelRows, slide_ids: Sequence[str], settings: CohortSettings, report: list[str]
) -> pd.Series:
    """The patient of each pair. Raises DataError where it is unknown or contradictory."""
    slides = [slide_ids[number] for number in pairs["slide"]]
    if rows.patient_column:
        unknown = pairs["patient"].isna()
        if unknown.any():
            raise DataError(
                f"{settings.labels}, line {pairs['row'][unknown].iloc[0]}: no patient, or a word such as 'Unknown', in column "
                f"{rows.patient_column!r} ({int(unknown.sum())} such slides); fill it in"
            )
        patients = pairs["patient"]
    elif settings.patient == "none":
        report.append("every slide counts as a patient of its own (data.patient='none')")
        patients = pd.Series(slides, index=pairs.index, dtype=object)
    else:
        rule = settings.patient or ""
        found = patients_by_rule(rule, slides)
        require_patients(rule, slides, found)
        what = "TCGA barcodes (first 12 characters)" if rule == "tcga" else f"the rule {rule!r}"
        report.append(f"patients from {what}: {len(set(found))} patients of {len(set(slides))} slides")
        patients = pd.Series(found, index=pairs.index, dtype=object)
    _require_one(pairs.assign(patient=patients), "slide", "patient", slide_ids, "two patients", settings)
    return patients


def _require_one(
    pairs: pd.DataFrame, key: str, column: str, slide_ids: Sequence[str], what: str, settings: CohortSettings
) -> None:
    """Raises DataError when rows of one `key` hold different values in `column`."""
    values = pairs[[key, column]].dropna().drop_duplicates()
    if len(values) == values[key].nunique():
        return
    place = values[key][values[key].duplicated()].iloc[0]
    rows = pairs[(pairs[key] == place) & pairs[column].notna()].drop_duplicates(column)
    shown = " and ".join(
        f"{value!r} (line {line}, slide {slide_ids[slide]})"
        for value, line, slide in list(zip(rows[column], rows["row"], rows["slide"], strict=True))[:3]
    )
    name = slide_ids[place] if key == "slide" else place
    kind = "slide" if key == "slide" or settings.unit == "slide" else "patient"
    raise DataError(
        f"{settings.labels}: {kind} {name} has {what}: {shown}; keep one, or leave such rows out with data.filter"
    )


def _combine(
    pairs: pd.DataFrame,
    slide_ids: Sequence[str],
    num_instances: np.ndarray,
    settings: CohortSettings,
    report: list[str],
) -> tuple[pd.DataFrame, list[np.ndarray], list[tuple[str, ...]], pd.DataFrame]:
    """Pairs -> bags, slides, slide_ids, labels."""
    raw = [name for name in pairs.columns if name.startswith(raw_column(""))]
    for column in raw:
        name = column.removeprefix(raw_column(""))
        what = "different labels" if name in settings.targets else f"different values in column {name!r}"
        _require_one(pairs, "bag", column, slide_ids, what, settings)
    merged = int(pairs.duplicated("slide").sum())
    if merged:
        report.append(f"{merged} repeated rows with the same slide and label were merged")
    first = pairs.groupby("bag", sort=False).first()  # the first value that is not missing
    slides_of: dict[str, set[int]] = {}
    for bag, slide in zip(pairs["bag"], pairs["slide"], strict=True):
        slides_of.setdefault(bag, set()).add(slide)
    order = sorted(slides_of, key=natural_key)
    first = first.loc[order]
    slides = [
        np.asarray(sorted(slides_of[bag], key=lambda row: natural_key(slide_ids[row])), np.int64) for bag in order
    ]
    columns: dict[str, Any] = {
        "bag_id": order,
        "patient_id": first["patient"].tolist(),
        "num_slides": [len(rows) for rows in slides],
        "num_instances": [int(num_instances[rows].sum()) for rows in slides],
    }
    names = [tuple(slide_ids[row] for row in rows) for rows in slides]
    columns["site"] = _sites(first, names, settings, report)
    for column in raw:
        columns.setdefault(column.removeprefix(raw_column("")), first[column].tolist())
    labels = pd.DataFrame(
        {name: pd.Series(first[raw_column(name)].tolist(), dtype=object) for name in settings.targets}
    )
    report.append(f"{len(order)} bags ({settings.unit}s) of {len(set(columns['patient_id']))} patients")
    return pd.DataFrame(columns), slides, names, labels


def _sites(first: pd.DataFrame, names: list[tuple[str, ...]], settings: CohortSettings, report: list[str]) -> list[str]:
    """The site of each bag; "" = unknown."""
    if settings.site and settings.site != "tcga":
        return first[raw_column(settings.site)].fillna("").tolist()
    found = [tcga_site(slides[0]) for slides in names]
    if not all(found):
        if settings.site == "tcga":
            lost = [slides[0] for slides, site in zip(names, found, strict=True) if not site]
            raise DataError(
                f"data.site='tcga', but {len(lost)} slides have no TCGA barcode ({listed(lost)}); name a column"
            )
        return [""] * len(names)
    report.append(f"sites from TCGA barcodes (tissue source site): {len(set(found))} sites")
    return [site or "" for site in found]
