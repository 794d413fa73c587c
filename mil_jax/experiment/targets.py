"""What runs predict: a label column with its classes and its splits. Several columns are several targets, trained in one program.

A bag without a label of a target is in no part of that target's folds. A column that is named and cannot be trained is an error;
one that only a pattern found (`mut_*`) is left out and listed, as in a panel of genes some are always too rare.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from mil_jax import tasks
from mil_jax.data.cohort.cohort import Cohort, CohortSettings
from mil_jax.data.cohort.covariates import covariate_columns
from mil_jax.data.cohort.numeric_columns import as_flags
from mil_jax.data.label_columns import LABEL_COLUMN, LabelColumns
from mil_jax.data.splits.folds import TEST, TRAIN, UNUSED, label_counts
from mil_jax.data.splits.published import long_table
from mil_jax.data.splits.splits import Splits, SplitSettings, make_splits
from mil_jax.data.tables import listed, read_header, suggestion
from mil_jax.errors import ConfigError, DataError
from mil_jax.tasks.base import Task

_PATTERN = frozenset("*?[")


@dataclass(frozen=True)
class Target:
    """name: the label column; several, with commas, for a multi-label model. values: [M] or [M, C], of every bag of the cohort."""

    name: str
    task: Task
    values: np.ndarray
    splits: Splits

    @cached_property
    def strata(self) -> np.ndarray:
        """What splits are stratified by: class numbers [M], -1 = missing, or 0/1 columns [M, C]."""
        return self.task.strata(self.values)

    @property
    def class_counts(self) -> dict[str, int]:
        """Bags of each class (of survival: with and without event; of regression: of each quarter)."""
        counts = label_counts(self.strata, len(self.task.strata_names)).sum(axis=0)
        return dict(zip(self.task.strata_names, counts.tolist(), strict=True))


def cohort_settings(config: ConfigDict, strict: bool) -> tuple[CohortSettings, frozenset[str]]:
    """What of the label table is used, and which target columns only a pattern found."""
    data = config.data
    header = read_header(data.labels) if data.labels else []
    targets, found = columns_named(data.target, header)
    events = _event_columns(config, targets, header)
    columns = [name for name in (config.splits.group, config.splits.test) if name and name != "site"]
    covariates = covariate_columns(data.covariates, (*targets, *events))
    settings = CohortSettings(
        labels=data.labels,
        target=(*targets, *events),
        slides_table=data.slides_table or None,
        id_column=data.id_column or None,
        patient=data.patient or None,
        unit=data.unit,
        filter=data.filter or None,
        classes=_names(data.classes) or None,
        positive=data.positive or None,
        site=data.site or None,
        columns=[*(name for name in columns if "." not in name), *covariates],
        duplicates=data.duplicates,
        min_matched=data.min_matched,
        strict=strict,
        unknown_labels=data.unknown_labels,
        multi_label=config.task.name == "multilabel",
        numbers=targets if config.task.name in ("regression", "survival") else (),
        events=events,
        censored=bool(config.data.censored),
    )
    return settings, found


def _event_columns(config: ConfigDict, times: Sequence[str], header: Sequence[str]) -> tuple[str, ...]:
    """Of survival, for each time the column that says whether the event happened. Raises ConfigError where it is not known."""
    data = config.data
    if config.task.name != "survival":
        for name in ("event", "censored"):
            if data[name]:
                raise ConfigError(f"data.{name} is for task.name=survival, not {config.task.name}: leave it out")
        return ()
    if data.event and data.censored:
        raise ConfigError("data.event and data.censored say the same: name one of the two columns")
    named = _names(data.event or data.censored)
    if len(named) != len(times):
        raise ConfigError(
            f"task.name=survival needs, for each of the {len(times)} times in data.target, a column that says whether it happened: "
            "name it in data.event (1 = it happened), or in data.censored (1 = censored)"
        )
    for name in named:
        if name not in header:
            raise ConfigError(
                f"no column {name!r} in {data.labels}{suggestion(name, header)}; its columns are {listed(header, 12)}"
            )
    return named


def split_settings(config: ConfigDict, strict: bool) -> SplitSettings:
    """How the parts are made."""
    splits = config.splits
    # The reference protocol takes splits as they are: no validation part is carved from the training patients.
    carve = splits.val_fraction if config.train.protocol == "clean" else 0.0
    return SplitSettings(
        kind="file" if splits.file else splits.kind,
        folds=splits.folds,
        repeats=splits.repeats,
        group=splits.group,
        test=splits.test,
        test_fraction=splits.test_fraction,
        val_fraction=carve,
        file=splits.file,
        seed=splits.seed,
        min_matched=config.data.min_matched,
        strict=strict,
    )


def columns_named(text: str, header: Sequence[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """(the columns that `data.target` names, those of them that only a pattern found). Raises ConfigError for an idle pattern.

    A name that is a column's own is never a pattern.
    """
    columns: dict[str, bool] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        if part in header or not _PATTERN & set(part):
            if columns.get(part) is False:
                raise ConfigError(f"data.target={text} names column {part!r} twice")
            columns[part] = False
            continue
        found = [name for name in header if fnmatchcase(name, part)]
        if not found:
            raise ConfigError(
                f"data.target={text}: no column of the label table matches {part!r}{suggestion(part, header)}; "
                f"its columns are {listed(header, 12)}"
            )
        for name in found:
            columns.setdefault(name, True)
    return tuple(columns), frozenset(name for name, by_pattern in columns.items() if by_pattern)


def make_targets(
    config: ConfigDict,
    cohort: Cohort,
    settings: CohortSettings,
    splitting: SplitSettings,
    found: Collection[str] = (),
) -> tuple[tuple[Target, ...], pd.DataFrame]:
    """The targets, and a table (label_column, reason) of those left out.

    found: the columns that only a pattern found. Raises UserError for a column that was named and cannot be trained, and for
    columns of different numbers of classes.
    """
    groups = label_groups(config, settings)
    targets, left_out = [], []
    for name, columns in groups.items():
        try:
            target = _target(config, cohort, name, columns, settings, splitting)
            if name in found and splitting.folds:
                _require_cases_to_test(target)
        except DataError as error:
            if len(groups) == 1:
                raise
            if name not in found or splitting.strict:
                raise DataError(f"label column {name!r}: {error}") from error
            left_out.append((name, str(error)))
        else:
            targets.append(target)
    if not targets:
        raise DataError(
            f"data.target={config.data.target}: none of its {len(left_out)} columns can be trained; {left_out[0][0]}: "
            f"{left_out[0][1]}"
        )
    _require_equal_widths(targets)
    return tuple(targets), pd.DataFrame(left_out, columns=[LABEL_COLUMN, "reason"], dtype=object)


def splits_table(targets: Sequence[Target], cohort: Cohort) -> pd.DataFrame:
    """The rows of splits.csv: fold, bag_id, patient_id, part, after the label column where there are several."""
    tables = [long_table(target.splits.parts, target.splits.names, cohort) for target in targets]
    columns = LabelColumns(tuple(target.name for target in targets))
    for number, table in enumerate(tables):
        columns.add_to(table, number)
    return pd.concat(tables, ignore_index=True)


def target_labels(
    config: ConfigDict, cohort: Cohort, columns: tuple[str, ...], settings: CohortSettings
) -> pd.DataFrame:
    """The label columns of a target, a row for each bag, with events as flags."""
    labels = cohort.labels[list(columns)].set_index(cohort.bags["bag_id"])
    if settings.events:
        happened = as_flags(labels[columns[1]])
        labels[columns[1]] = 1 - happened if config.data.censored else happened
    return labels


def label_groups(config: ConfigDict, settings: CohortSettings) -> dict[str, tuple[str, ...]]:
    """The label columns of each target, by its name."""
    if settings.events:
        return {time: (time, event) for time, event in zip(settings.numbers, settings.events)}
    if tasks.kind(config.task.name).joint or config.task.joint:
        return {",".join(settings.targets): settings.targets}
    return {name: (name,) for name in settings.targets}


def _target(
    config: ConfigDict,
    cohort: Cohort,
    name: str,
    columns: tuple[str, ...],
    settings: CohortSettings,
    splitting: SplitSettings,
) -> Target:
    labels = target_labels(config, cohort, columns, settings)
    task = tasks.create(config.task, labels, settings)
    values = task.targets(labels)
    labelled = task.known(values)
    if config.train.permute_labels:
        values[labelled] = np.random.default_rng([config.splits.seed, 2]).permutation(values[labelled])
    splitting = dataclasses.replace(splitting, label_column=name)
    strata = task.strata(values)
    uncensored = task.name == "survival" and not (strata == 0).any()  # one stratum: nothing to stratify by
    splits = make_splits(cohort, *(None, splitting) if uncensored else (strata, splitting, task.strata_names))
    if not labelled.all():
        parts = np.where(labelled, splits.parts, np.int8(UNUSED))
        splits = dataclasses.replace(splits, parts=parts, leak_free=splits.leak_free & labelled)
    for fold, parts in zip(splits.names, splits.parts, strict=True):
        task.require_trainable(values[parts == TRAIN], f"fold {fold}")
    return Target(name, task, values, splits)


def _require_cases_to_test(target: Target) -> None:
    counts = label_counts(target.strata, len(target.task.strata_names))
    for name, parts in zip(target.splits.names, target.splits.parts, strict=True):
        for title, count in zip(target.task.strata_names, counts[parts == TEST].sum(axis=0), strict=True):
            if count == 0:
                raise DataError(
                    f"fold {name}: no test bag of class {title}; use fewer folds, or name the column without a pattern"
                )


def _require_equal_widths(targets: Sequence[Target]) -> None:
    widths = Counter(len(target.task.output_names) for target in targets)
    usual = widths.most_common(1)[0][0]
    for target in targets:
        if target.task.name == "survival":  # times at which survival is reported may differ
            continue
        if len(target.task.output_names) != usual:
            raise DataError(
                f"label column {target.name!r} has {len(target.task.strata_names)} classes ({listed(target.task.strata_names)}) and "
                f"the others {usual}; targets of one run have equally many: train it in a run of its own, or set task.name=multiclass"
            )


def _names(text: str) -> tuple[str, ...]:
    """ "a, b" -> ("a", "b")."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
