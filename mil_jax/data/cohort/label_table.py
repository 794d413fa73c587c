"""From label tables to rows (slide or patient name, patient, targets), and from labels to classes.

Column names of CLAM, slideflow (`case_id`/`patient`, `slide_id`/`slide`), STAMP (`PATIENT`, `FILENAME` in a second
table), PathGene (`path`) and Patho-Bench are recognised; what was recognised is said in `LabelRows.report`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from mil_jax.data.cell_words import flags_of, known, values_of
from mil_jax.data.cohort.numeric_columns import raw_column, require_numbers
from mil_jax.data.cohort.settings import CohortSettings, is_rule
from mil_jax.data.row_filter import kept_rows
from mil_jax.data.tables import (
    MISSING,
    columns_seen,
    is_number,
    listed,
    mentioned_columns,
    read_columns,
    read_header,
    require_column,
    suggestion,
)
from mil_jax.errors import DataError

SLIDE_COLUMNS = ("slide_id", "slide", "FILENAME", "path")
PATIENT_COLUMNS = ("case_id", "PATIENT", "patient", "patient_id")
KEPT, FILTERED, UNLABELLED = 0, 1, 2
_MOST_SAID = 8  # sentences on the cells of single columns
_WHOLE_NUMBER = re.compile(r"[+-]?\d+\.0+")


@dataclass
class LabelRows:
    """The used columns of a label table under fixed names.

    table: one row per row of the file, indexed by its line: `name` (slide or patient), `patient` (NaN = unknown),
        then the used raw columns. state: KEPT, FILTERED or UNLABELLED, int8 [rows].
    by_patient: the rows are patients, not slides. patient_column: the column or "" when a rule must tell.
    lost: (slide or patient, reason) of two tables that were joined; num_labelled: labelled rows before that join.
    report: what was recognised.
    """

    table: pd.DataFrame
    state: np.ndarray
    by_patient: bool
    patient_column: str
    num_labelled: int
    lost: list[tuple[str, str]] = field(default_factory=list)
    report: list[str] = field(default_factory=list)


def read_label_rows(settings: CohortSettings) -> LabelRows:
    """Reads the label table (and STAMP's slide table). Raises DataError as `tables.read_columns`, and for a label
    outside the declared classes."""
    path = Path(settings.labels)
    header = read_header(path)
    two_tables = bool(settings.slides_table)
    said: list[str] = []
    patient_column = _patient_column(settings, header, said)
    if two_tables:
        if not patient_column:
            raise DataError(
                f"{path}: data.slides_table needs the patient's column in both tables; name it by data.patient"
            )
        id_column = patient_column
    else:
        id_column = _id_column(settings, header, patient_column, said)
    for name in settings.targets:
        if name not in header:
            near = suggestion(name, header)
            raise DataError(f"{path}: no target column {name!r}{near}; {columns_seen(path, header)}")
    site = [settings.site] if settings.site and settings.site != "tcga" else []
    filtered_by = mentioned_columns(settings.filter, header) if settings.filter else []
    raw = list(dict.fromkeys([*settings.targets, *site, *settings.columns]))
    wanted = [id_column, *([patient_column] if patient_column else []), *raw, *filtered_by]
    cells = read_columns(path, wanted, missing=frozenset(("",)))
    source = cells.mask(cells.isin(MISSING), np.nan)
    columns = {"name": source[id_column], "patient": known(source[patient_column]) if patient_column else np.nan}
    of_columns: list[str] = []
    for name in raw:
        column, found = values_of(cells[name], name, settings.class_order)
        if name in settings.events:
            column, more = flags_of(column, name, events=not settings.censored)
            said += [f"{path.name}, {sentence}" for sentence in more]
        columns[raw_column(name)] = _whole_numbers(column) if name in settings.targets else column
        of_columns += [f"{path.name}, {sentence}" for sentence in found]
    table = pd.DataFrame(columns)
    said += of_columns[:_MOST_SAID]
    if len(of_columns) > _MOST_SAID:
        said.append(f"{path.name}: and so in {len(of_columns) - _MOST_SAID} more columns")
    state = np.full(len(table), KEPT, np.int8)
    state[table[[raw_column(name) for name in settings.targets]].isna().all(axis=1)] = UNLABELLED
    if settings.filter:
        state[~kept_rows(source, settings.filter, path, header)] = FILTERED
        count = int((state == FILTERED).sum())
        said.append(f"{path.name}: data.filter={settings.filter!r} leaves out {count} of {len(table)} rows")
    said += _undeclared(table, state, settings)
    require_numbers(table, state == KEPT, settings)
    named = table["name"].notna().to_numpy()
    if not named.all():
        raise DataError(
            f"{path}, line {table.index[~named][0]}: no id in column {id_column!r}"
            f" ({int((~named).sum())} such rows); fill it in or delete the row"
        )
    by_patient = bool(patient_column) and id_column == patient_column and not two_tables
    rows = LabelRows(table, state, by_patient, patient_column, int((state == KEPT).sum()), report=said)
    return _joined_with_slides(rows, settings) if two_tables else rows


def resolve_classes(labels: pd.DataFrame, settings: CohortSettings) -> tuple[str, ...]:
    """The classes in order: `settings.classes`, else sorted (numbers as numbers), the positive one last.

    labels: one column of `Cohort.labels`; with `multi_label` all of them, each a class. Raises DataError for fewer than two
    classes, for a positive class that no bag has, and for columns of several labels that hold anything but 0, 1, true, false.
    """
    path, column = settings.labels, labels.columns[0]
    if settings.multi_label:
        for name in settings.targets:
            found = sorted(
                {value for value in labels[name].dropna() if value.lower() not in ("0", "1", "true", "false")}
            )
            if found:
                raise DataError(
                    f"{path}: column {name!r} holds {listed(found)}; with task.name=multilabel target columns hold 0 and 1"
                )
        return settings.targets
    present = set(labels[column].dropna())
    numeric = all(map(is_number, present))
    order = settings.class_order or tuple(sorted(present, key=(lambda name: (float(name), name)) if numeric else None))
    if len(order) < 2:
        raise DataError(
            f"{path}: column {column!r} has {len(order)} class among the matched bags"
            f" ({listed(order)}); a classification needs two, and words such as 'Unknown', 'none' and '-' are missing values unless "
            "data.classes names them"
        )
    positive = settings.positive_class
    if not positive:
        return order
    if positive not in order:
        near = suggestion(positive, order)
        raise DataError(f"{path}: data.positive={positive!r} is none of the classes {listed(order, 12)}{near}")
    return (*(name for name in order if name != positive), positive)


def _patient_column(settings: CohortSettings, header: list[str], said: list[str]) -> str:
    """The column of patient ids, or "" when a rule gives them."""
    path, patient = Path(settings.labels), settings.patient or ""
    if is_rule(patient):
        id_column = settings.id_column or _recognised(SLIDE_COLUMNS, header) or _recognised(PATIENT_COLUMNS, header)
        if patient != "none" and id_column in PATIENT_COLUMNS:
            return id_column
        return ""
    if patient:
        if patient not in header:
            near = suggestion(patient, [*header, "tcga", "none"])
            raise DataError(
                f"{path}: data.patient={patient!r} is no column{near}; give a column of {listed(header, 12)}, 'tcga', "
                "'regex:...' or 'none'"
            )
        return patient
    found = _recognised(PATIENT_COLUMNS, header)
    if not found:
        raise DataError(
            f"{path}: whose slide is whose is not known; set data.patient to a column of the table, to 'tcga', "
            "to 'regex:...' on the slide id, or to 'none' if every slide is a patient of its own; "
            f"{columns_seen(path, header)}, as the first line that is neither empty nor of # names them"
        )
    said.append(f"{path.name}: patients from column {found!r}")
    return found


def _id_column(settings: CohortSettings, header: list[str], patient_column: str, said: list[str]) -> str:
    path = Path(settings.labels)
    if settings.id_column:
        require_column(settings.id_column, header, path)
        return settings.id_column
    found = _recognised(SLIDE_COLUMNS, header) or patient_column or _recognised(PATIENT_COLUMNS, header)
    if not found:
        raise DataError(
            f"{path}: which column names the slides is not known; set data.id_column to one of {listed(header, 12)}"
        )
    said.append(f"{path.name}: {'patients' if found == patient_column else 'slides'} named by column {found!r}")
    return found


def _recognised(names: Sequence[str], header: Sequence[str]) -> str:
    return next((name for name in names if name in header), "")


def _whole_numbers(column: pd.Series) -> pd.Series:
    """Labels 0.0, 1.0 (a column once saved with gaps) -> 0, 1, so that they equal those of another table."""
    present = column.dropna()
    if any(map(_WHOLE_NUMBER.fullmatch, present)) and all(is_number(x) and float(x).is_integer() for x in present):
        return column.map(lambda text: str(int(float(text))), na_action="ignore")
    return column


def _undeclared(table: pd.DataFrame, state: np.ndarray, settings: CohortSettings) -> list[str]:
    """Raises DataError for a label outside the declared classes, or takes it away and says so."""
    said = []
    for name in settings.targets if settings.class_order else ():
        column = table[raw_column(name)]
        strange = (state == KEPT) & ~(column.isin(settings.class_order) | column.isna()).to_numpy()
        if not strange.any():
            continue
        value = column[strange].iloc[0]
        if settings.unknown_labels == "error":
            raise DataError(
                f"{settings.labels}, line {column.index[strange][0]}: {value!r} in column {name!r} is not "
                f"one of the classes {list(settings.class_order)} ({int(strange.sum())} such rows); fix it, leave such rows out with "
                "data.filter, or, in training, add it to data.classes"
            )
        table.loc[strange, raw_column(name)] = np.nan
        said.append(
            f"{Path(settings.labels).name}: {int(strange.sum())} labels in column {name!r} are none of the classes and dropped "
            f"({listed(sorted(set(column[strange])))})"
        )
    raw = [raw_column(name) for name in settings.targets]
    state[(state == KEPT) & table[raw].isna().all(axis=1).to_numpy()] = UNLABELLED
    return said


def _joined_with_slides(rows: LabelRows, settings: CohortSettings) -> LabelRows:
    """STAMP's two tables: a row per row of the slide table, with its patient's labels."""
    path = Path(settings.slides_table or "")
    header = read_header(path)
    column = rows.patient_column if rows.patient_column in header else _recognised(PATIENT_COLUMNS, header)
    if not column:
        require_column(rows.patient_column, header, path)
    id_column = settings.id_column or _recognised(SLIDE_COLUMNS, header)
    if not id_column:
        raise DataError(
            f"{path}: which column names the slides is not known; set data.id_column to one of {listed(header)}"
        )
    slides = read_columns(path, [column, id_column]).dropna()
    known = rows.table["patient"].notna().to_numpy()
    table, state = rows.table[known], rows.state[known]
    lost = [(name, "its row names no patient") for name in rows.table["name"][~known & (rows.state == KEPT)]]
    repeated = table[table["patient"].duplicated(keep=False)]
    conflicting = repeated.drop(columns="name").drop_duplicates()
    if conflicting["patient"].duplicated().any():
        patient = conflicting["patient"][conflicting["patient"].duplicated()].iloc[0]
        lines = listed(repeated.index[repeated["patient"] == patient])
        raise DataError(
            f"{settings.labels}, lines {lines}: patient {patient} has rows that contradict each other; keep one"
        )
    labels = table.assign(state=state, line=table.index).drop_duplicates("patient").drop(columns="name")
    named = slides.rename(columns={column: "patient", id_column: "name"})
    # A table once saved with gaps says 7.0 for 7.
    named["patient"], labels["patient"] = (_whole_numbers(table["patient"]) for table in (named, labels))
    if not set(named["patient"]) & set(labels["patient"]):
        raise DataError(
            f"{path}: none of its patients ({listed(named['patient'].unique())}) is in {settings.labels} "
            f"({listed(labels['patient'].dropna().unique())}); name the columns of the same ids, or write them alike"
        )
    joined = named.merge(labels, on="patient", how="left", sort=False)
    unknown = joined["state"].isna()
    lost += [(name, f"its patient has no row in {Path(settings.labels).name}") for name in joined["name"][unknown]]
    bare = labels[~labels["patient"].isin(named["patient"]) & (labels["state"] == KEPT)]
    lost += [(name, f"labelled patient without a slide in {path.name}") for name in bare["patient"]]
    joined = joined[~unknown].set_index("line").rename_axis("row")
    joined.index = joined.index.astype(np.int64)
    state = joined.pop("state").to_numpy(np.int8)
    said = [*rows.report, f"{path.name}: slides named by column {id_column!r}, joined by {column!r}"]
    num_labelled = int((state == KEPT).sum()) + len(bare)
    return LabelRows(joined, state, False, rows.patient_column, num_labelled, lost, said)
