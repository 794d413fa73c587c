"""Covariates: columns of the label table, such as age and sex, that a model reads beside a bag's instances.

A column of numbers is one number; any other is a column of 0 and 1 for each category that occurs in the cohort. What is not known is NaN,
and where a cohort has such bags, a further column of 0 and 1 says so. Here nothing is fitted: means and deviations are those of each
run's training bags (`fitted`), and what is not known is put at their mean (`standardised`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd

from mil_jax.data.cell_words import as_plain_numbers
from mil_jax.data.cohort.variants import same_classes
from mil_jax.data.tables import brief, listed
from mil_jax.errors import ConfigError, DataError
from mil_jax.types import AnyArray

FILE = "covariates.json"  # of a run folder, where there are any
_MOST_CATEGORIES = 20  # or half of the bags
RESERVED = ("bag_id", "patient_id", "num_slides", "num_instances", "site")  # columns of `Cohort.bags` of its own


@dataclass(frozen=True)
class Covariate:
    """A column of the label table. categories: of text, in order; none of numbers. missing: whether bags were without it in training."""

    name: str
    categories: tuple[str, ...] = ()
    missing: bool = False


@dataclass(frozen=True)
class Covariates:
    """Of a cohort: its columns, their values float32 [M, V] (NaN = not known), and a sentence on each column."""

    columns: tuple[Covariate, ...]
    values: np.ndarray
    report: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns of the label table."""
        return tuple(one.name for one in self.columns)


def covariate_columns(text: str, targets: Sequence[str]) -> tuple[str, ...]:
    """The columns that `data.covariates` names. Raises ConfigError for one that is predicted, or is named twice, or cannot be told
    from what a cohort has of its own.
    """
    names = named(text)
    for name in names:
        if name in targets:
            raise ConfigError(f"data.covariates={text}: {name!r} is what is predicted; leave it out")
        if names.count(name) > 1:
            raise ConfigError(f"data.covariates={text} names column {name!r} twice")
        if name in RESERVED:
            raise ConfigError(
                f"data.covariates={text}: {name!r} is also what mil_jax calls something; give the column another name in the table"
            )
    return names


def named(text: str) -> tuple[str, ...]:
    """ "age, sex" -> ("age", "sex")."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def read_covariates(bags: pd.DataFrame, text: str, where: str) -> Covariates | None:
    """The columns that `data.covariates` names, of `Cohort.bags`; None where it names none. where: the table, for messages.

    Raises DataError for a column that says the same of all bags.
    """
    found, said = [], []
    for name in named(text):
        present = bags[name].replace("", np.nan).dropna()
        without = len(bags) - len(present)
        if present.nunique() < 2:
            only = f"says {present.iloc[0]!r} of every bag" if len(present) else "is empty for all bags"
            raise DataError(f"{where}: column {name!r} {only}; leave it out of data.covariates")
        numbers = as_plain_numbers(bags[name].replace("", np.nan))
        if numbers is None and present.nunique() > max(_MOST_CATEGORIES, len(present) // 2):
            raise DataError(
                f"{where}: column {name!r} holds {present.nunique()} different texts ({listed(present.unique())}), which are neither "
                "numbers nor categories; write plain numbers, or leave it out of data.covariates"
            )
        one = Covariate(name, () if numbers is not None else tuple(sorted(set(present))), without > 0)
        what = "numbers" if numbers is not None else f"{len(one.categories)} categories ({listed(one.categories, 6)})"
        lacking = f"; {without} bags are without it" if without else ""
        said += same_classes(name, present.tolist(), "categories") if one.categories else []
        found.append(one)
        said.append(f"covariate {name!r}: {what}{lacking}")
    return Covariates(tuple(found), values(bags, found, where), tuple(said)) if found else None


def values(bags: pd.DataFrame, covariates: Sequence[Covariate], where: str) -> np.ndarray:
    """float32 [M, K], NaN = not known; where: the table, for messages.

    Raises DataError for text in place of a number, and for a category that is none of those of training, naming the bag.
    """
    columns: list[np.ndarray] = []
    for one in covariates:
        column = bags[one.name].replace("", np.nan)
        known = column.notna().to_numpy()
        if one.categories:
            _refuse(
                bags,
                column,
                known & ~column.isin(one.categories).to_numpy(),
                where,
                f"none of {listed(one.categories, 12)}",
            )
            columns += [np.where(known, column == category, np.nan) for category in one.categories]
        else:
            plain = as_plain_numbers(column)
            numbers = pd.to_numeric(column if plain is None else plain, errors="coerce").to_numpy(np.float64)
            _refuse(bags, column, known & ~np.isfinite(numbers), where, "no finite number")
            columns.append(numbers)
        if one.missing:
            columns.append(~known)
    return np.stack(columns, axis=1).astype(np.float32)


def without(bags: pd.DataFrame, covariates: Sequence[Covariate]) -> list[str]:
    """A sentence on each column that some of the bags to be predicted are without."""
    counts = {one.name: int(bags[one.name].replace("", np.nan).isna().sum()) for one in covariates}
    stands = "the mean of the training bags stands for it"
    return [
        f"{count} of {len(bags)} bags are without the covariate {name!r}: {stands}"
        for name, count in counts.items()
        if count
    ]


def fitted(known: np.ndarray) -> dict[str, np.ndarray]:
    """{"mean", "scale"} [K] float32 of the values [n, K] of training bags. Numbers are divided by their deviation; columns of 0 and 1 are
    not, since rare ones would be blown up. A column that does not vary is scaled to 0: what was never seen says nothing.
    """
    there = ~np.isnan(known)
    count = np.maximum(there.sum(axis=0), 1)
    filled = np.where(there, known, 0.0).astype(np.float64)
    mean = filled.sum(axis=0) / count
    deviation = np.sqrt((np.where(there, filled - mean, 0.0) ** 2).sum(axis=0) / count)
    flags = (~there | (known == 0) | (known == 1)).all(axis=0)
    varies = deviation > 1e-6 * np.maximum(np.abs(mean), 1e-30)
    scale = np.divide(1.0, np.where(flags, 1.0, deviation), out=np.zeros_like(deviation), where=varies)
    return {"mean": mean.astype(np.float32), "scale": scale.astype(np.float32)}


def standardised(known: AnyArray, fit: Mapping[str, Any]) -> AnyArray:
    """Values [..., K] on a device, of the scale of the training bags; what is not known is at their mean."""
    there = ~jnp.isnan(known)
    return jnp.where(there, (jnp.where(there, known, 0.0) - fit["mean"]) * fit["scale"], 0.0)


def described(covariates: Sequence[Covariate]) -> list[dict[str, Any]]:
    """As JSON can hold it."""
    return [{"name": one.name, "categories": list(one.categories), "missing": one.missing} for one in covariates]


def restored(content: Sequence[Mapping[str, Any]]) -> tuple[Covariate, ...]:
    """The inverse of `described`."""
    return tuple(Covariate(one["name"], tuple(one["categories"]), one["missing"]) for one in content)


def _refuse(bags: pd.DataFrame, column: pd.Series, wrong: np.ndarray, where: str, what: str) -> None:
    if wrong.any():
        place = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"{where}, bag {bags['bag_id'].iloc[place]}: {brief(repr(column.iloc[place]))} in column {column.name!r} is {what}, which the "
            f"covariate holds ({int(wrong.sum())} such bags); fix it, empty it, or leave such rows out with data.filter"
        )
