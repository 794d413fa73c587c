"""How a cohort is joined: the columns of the label table, what to do with odd rows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from mil_jax.data.tables import (
    suggestion,
)
from mil_jax.errors import ConfigError


@dataclass(frozen=True)
class CohortSettings:
    """What of the label table is used, and how its rows become bags. An empty string or tuple means: not set.

    labels: the label table. slides_table: STAMP's second table (patient, feature file).
    target: label column, or several: each with classes of its own, or, with `multi_label`, one 0/1 label each.
    id_column: column of slide ids (or of patient ids, when it is the patient column).
    patient: a column, "regex:..." on the slide id, "tcga", or "none" (every slide is a patient of its own).
    unit: "slide" (a bag per slide) or "patient" (a bag of all slides of a patient).
    filter: pandas expression on the label table's columns; only rows for which it is true are used.
    classes: their order. positive: the class that becomes the last one, class 1 of two. Both hold for every target column.
    site: a column, or "tcga" (tissue source site); unset, TCGA barcodes are recognised and said so.
    columns: further columns to keep for the splits (groups, official test set).
    duplicates: when one row means several slides (a patient's or sample's barcode; the same slide in two folders):
        "error"; "newest" (the feature file written last); "all" (each with the row's label). A patient's row in a
        cohort of patients means all of that patient's slides and is no duplicate. Equal rows are merged under any
        setting, contradicting ones are an error under any.
    min_matched: least part of the labelled rows that must find a slide with tiles.
    strict: whatever would be excluded is an error.
    unknown_labels: of labels outside `classes`: "error", or "drop" (such a row has no label).
    multi_label: the target columns are labels of 0 and 1 of one model. numbers: target columns that hold numbers. events: of survival, the
        target columns that say whether it happened, one for each of `numbers`, which are then times, and not negative. censored: these
        columns say 1 where it did not.
    Raises ConfigError for a value that is none of these.
    """

    labels: str | os.PathLike[str]
    target: str | Sequence[str] = "label"
    slides_table: str | os.PathLike[str] | None = None
    id_column: str | None = None
    patient: str | None = None
    unit: str = "slide"
    filter: str | None = None
    classes: Sequence[object] | None = None
    positive: object = None
    site: str | None = None
    columns: Sequence[str] = ()
    duplicates: str = "error"
    min_matched: float = 0.5
    strict: bool = False
    unknown_labels: str = "error"
    multi_label: bool = False
    numbers: Sequence[str] = ()
    events: Sequence[str] = ()
    censored: bool = False

    def __post_init__(self) -> None:
        for key, allowed in (("unit", ("slide", "patient")), ("duplicates", ("error", "newest", "all"))):
            value = getattr(self, key)
            if value not in allowed:
                raise ConfigError(
                    f"data.{key}={value!r}{suggestion(str(value), allowed)}; choose one of {', '.join(allowed)}"
                )
        if not 0 <= self.min_matched <= 1:
            raise ConfigError(f"data.min_matched={self.min_matched} is a part of the labelled rows; give 0 to 1")
        if not self.labels:
            raise ConfigError("data.labels names no label table; give a csv, tsv, xlsx or parquet file")
        if not self.targets:
            raise ConfigError("data.target names no column of the label table")
        if len(set(self.targets)) < len(self.targets):
            raise ConfigError(f"data.target={list(self.targets)} names a column twice")
        if self.unit == "patient" and self.patient == "none":
            raise ConfigError(
                "data.unit='patient' cannot go with data.patient='none'; name the patients' column or rule"
            )
        if self.slides_table and is_rule(self.patient or ""):
            raise ConfigError(
                f"data.patient={self.patient!r} cannot go with data.slides_table, which names the patients"
            )
        if self.multi_label and (self.class_order or self.positive_class):
            raise ConfigError(
                "data.classes and data.positive cannot go with task.name=multilabel: each column is a class"
            )
        if self.numbers and (self.class_order or self.positive_class):
            raise ConfigError("data.classes and data.positive are for classes, and the target columns hold numbers")
        if len(set(self.class_order)) < len(self.class_order):
            raise ConfigError(f"data.classes={list(self.class_order)} names a class twice")
        if self.class_order and self.positive_class and self.positive_class not in self.class_order:
            hint = suggestion(self.positive_class, self.class_order)
            raise ConfigError(f"data.positive={self.positive_class!r} is not in data.classes{hint}")

    @property
    def targets(self) -> tuple[str, ...]:
        """The target columns."""
        return (self.target,) if isinstance(self.target, str) and self.target else tuple(self.target)

    @property
    def class_order(self) -> tuple[str, ...]:
        """`classes` as text."""
        return tuple(str(name) for name in self.classes or ())

    @property
    def positive_class(self) -> str:
        """`positive` as text, empty when not set."""
        return "" if self.positive is None else str(self.positive)


def is_rule(patient: str) -> bool:
    """Whether `data.patient` is a rule on slide ids rather than a column."""
    return patient in ("none", "tcga") or patient.startswith("regex:")
