"""Regression: one number per bag, or several by one model, each known or not. Losses: squared, absolute and Huber's error.

Targets are scaled to mean 0 and deviation 1 of the run's own training part, so that neither the loss nor the learning rate depends on
their unit; predictions and metrics are in the table's unit. A column is taken as it stands, or as log10(1 + value) (`transform`),
HistCode's form for expression ratios.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax.numpy as jnp
import numpy as np
import pandas as pd

from mil_jax.bags import Prediction
from mil_jax.data.cohort.settings import CohortSettings
from mil_jax.errors import ConfigError, DataError
from mil_jax.tasks.base import Task, fields_of
from mil_jax.tasks.losses import mean_over_present
from mil_jax.types import AnyArray, Array

MIN_CASES = 10
STRATA = ("lowest quarter", "second quarter", "third quarter", "highest quarter")


@dataclasses.dataclass(frozen=True)
class Regression(Task):
    """The task of predicting the numbers in `columns`. Targets are float64 [M, columns], NaN = unknown.

    loss_name: "mse", "mae" or "huber", which is linear beyond `delta` deviations. transform: "none" or "log1p" (log10(1 + value)).
    quarters: [3], of the first column, by which splits are stratified.
    Learnt from a run's training part: center, spread [columns].
    Raises ConfigError when the settings cannot work together.
    """

    columns: tuple[str, ...]
    quarters: tuple[float, ...] = ()
    loss_name: str = ""
    delta: float = 1.0
    transform: str = "none"
    center: AnyArray = None
    spread: AnyArray = None

    name: ClassVar[str] = "regression"
    losses: ClassVar[tuple[str, ...]] = ("mse", "mae", "huber")
    settings: ClassVar[tuple[str, ...]] = ("loss_name", "delta", "transform")
    run_fields: ClassVar[tuple[str, ...]] = ("center", "spread")
    main_metric: ClassVar[str] = "pearson"
    headline: ClassVar[tuple[str, ...]] = ("pearson", "spearman", "r2", "mae")
    metric_names: ClassVar[tuple[str, ...]] = ("pearson", "spearman", "r2", "mae", "rmse")
    constant_name: ClassVar[str] = "mean"
    few_cases: ClassVar[str] = f"a fold has fewer than {MIN_CASES} validation cases"

    def __post_init__(self) -> None:
        self._choose_loss()
        if self.transform not in ("none", "log1p"):
            raise ConfigError(f"task.transform={self.transform!r} is unknown; choose one of none, log1p")

    @classmethod
    def for_labels(cls, labels: pd.DataFrame, cohort: CohortSettings, settings: Mapping[str, Any]) -> Self:
        task = cls(tuple(labels.columns), **settings)
        first = task.targets(labels)[:, 0]
        return dataclasses.replace(task, quarters=tuple(np.nanquantile(first, (0.25, 0.5, 0.75)).tolist()))

    @property
    def num_outputs(self) -> int:
        return len(self.columns)

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("predicted",) if len(self.columns) == 1 else tuple(f"predicted_{name}" for name in self.columns)

    @property
    def column_names(self) -> tuple[str, ...]:
        return self.columns if len(self.columns) > 1 else ()

    @property
    def strata_names(self) -> tuple[str, ...]:
        return STRATA

    def strata(self, targets: np.ndarray) -> np.ndarray:
        """The quarter of the first column."""
        first = targets[:, 0]
        return np.where(np.isnan(first), -1, np.searchsorted(self.quarters, first, side="right")).astype(np.int64)

    def known(self, targets: np.ndarray) -> np.ndarray:
        return ~np.isnan(targets).all(axis=1)

    def targets(self, labels: pd.DataFrame) -> np.ndarray:
        """Raises DataError for a value that is no finite number, or that `transform` cannot take."""
        columns = [pd.to_numeric(labels[name], errors="coerce").to_numpy(np.float64) for name in self.columns]
        targets = np.stack(columns, axis=1)
        known = labels[list(self.columns)].notna().to_numpy()
        wrong = known & ~np.isfinite(targets)
        if self.transform == "log1p":
            wrong |= targets <= -1
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            value = labels[self.columns[column]].iloc[row]
            what = "is no finite number" if self.transform == "none" else "has no logarithm of 1 + value"
            raise DataError(f"label column {self.columns[column]!r}, bag {labels.index[row]}: {value!r} {what}")
        return np.log10(1 + targets) if self.transform == "log1p" else targets

    def fit_targets(self, targets: np.ndarray) -> dict[str, np.ndarray]:
        """{"center", "spread"}; a column that does not vary has spread 1."""
        number = np.maximum((~np.isnan(targets)).sum(axis=0), 1)
        center = np.nansum(targets, axis=0) / number
        spread = np.sqrt(np.nansum((targets - center) ** 2, axis=0) / number)
        return {
            "center": center.astype(np.float32),
            "spread": np.where(spread > 0, spread, 1.0).astype(np.float32),
        }

    def loss(self, predictions: Prediction, targets: Array, weights: Array) -> Array:
        """The mean over bags of the mean over their known columns, in standard deviations of the training part."""
        known = ~jnp.isnan(targets)
        scaled = jnp.where(known, (targets - self.center) / self.spread, 0.0)

        def per_bag(logits: Array) -> Array:
            per_column = jnp.where(known, self._error(logits - scaled), 0.0)
            return jnp.sum(per_column, axis=1) / jnp.maximum(jnp.sum(known, axis=1), 1)

        return mean_over_present(per_bag, predictions.logits, jnp.any(known, axis=1), weights)

    def _error(self, difference: Any) -> Any:
        """Of a difference, in numpy or JAX."""
        size = abs(difference)
        if self.loss_name == "mse":
            return difference**2
        if self.loss_name == "mae":
            return size
        inside = size <= self.delta
        return inside * 0.5 * difference**2 + (1 - inside) * self.delta * (size - 0.5 * self.delta)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Predictions in the unit of the (transformed) column."""
        return np.asarray(logits, np.float64) * np.float64(self.spread) + np.float64(self.center)

    def monitor(self, name: str, logits: np.ndarray, targets: np.ndarray) -> float:
        """`val_loss`; `val_pearson`: the mean over columns."""
        if name == "val_pearson":
            return self.metrics(self.probabilities(logits), targets)["pearson"]
        known = ~np.isnan(targets)
        error = np.where(
            known, self._error(np.asarray(logits, np.float64) - (targets - self.center) / self.spread), 0.0
        )
        rows = known.any(axis=1)
        return float(np.mean(error[rows].sum(axis=1) / known[rows].sum(axis=1))) if rows.any() else np.nan

    def metrics(
        self, probabilities: np.ndarray, targets: np.ndarray, groups: np.ndarray | None = None
    ) -> dict[str, float]:
        """Means over columns; of several columns also of each (`pearson_GENE`)."""
        del groups
        once = np.ones((1, len(targets)))
        columns = [_of_column(p, y, once) for p, y in zip(probabilities.T, targets.T)]
        values = {name: float(np.mean([one[name][0] for one in columns])) for name in self.metric_names}
        for column, one in zip(self.column_names, columns):
            values.update({f"{name}_{column}": float(value[0]) for name, value in one.items()})
        return values

    def weighted_metrics(
        self, probabilities: np.ndarray, targets: np.ndarray, weights: np.ndarray, groups: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        del groups
        columns = [_of_column(p, y, weights) for p, y in zip(probabilities.T, targets.T)]
        return {name: np.mean([one[name] for one in columns], axis=0) for name in self.metric_names}

    def constant(self, targets: np.ndarray) -> np.ndarray:
        """The means of the training part."""
        number = np.maximum((~np.isnan(targets)).sum(axis=0), 1)
        return np.nansum(targets, axis=0) / number

    def size_control(self, sizes: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        once = np.ones((1, len(targets)))
        values = [abs(_of_column(np.asarray(sizes, np.float64), y, once)["pearson"][0]) for y in targets.T]
        return {"pearson": float(np.mean(values))}

    def enough_cases(self, targets: np.ndarray) -> bool:
        return bool((~np.isnan(targets)).sum(axis=0).min() >= MIN_CASES)

    def require_trainable(self, targets: np.ndarray, run: str) -> None:
        for name, column in zip(self.columns, targets.T):
            if len(np.unique(column[~np.isnan(column)])) < 2:
                raise DataError(f"{run}: column {name!r} has one value in the training part; there is nothing to learn")

    def target_table(self, targets: np.ndarray) -> pd.DataFrame:
        """`target`, or `target_COLUMN` each."""
        return pd.DataFrame(dict(zip(self._target_names, targets.T)))

    def targets_of(self, table: pd.DataFrame) -> np.ndarray:
        return fields_of(self._target_names, table)

    @property
    def _target_names(self) -> list[str]:
        return [name.replace("predicted", "target", 1) for name in self.output_names]


def _of_column(p: np.ndarray, y: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """{metric: [B]} of one column: predictions and targets [M], weights [B, M]; NaN without spread."""
    known = ~np.isnan(y)
    p, y, weights = p[known], y[known], weights[:, known]
    if not len(y) or not np.isfinite(p).all():
        return dict.fromkeys(Regression.metric_names, np.full(len(weights), np.nan))
    with np.errstate(divide="ignore", invalid="ignore"):
        total = weights.sum(axis=1)
        squared = weights @ (p - y) ** 2 / total
        varied = _covariance(y, y, weights) > 0
        return {
            "pearson": _correlation(np.broadcast_to(p, weights.shape), np.broadcast_to(y, weights.shape), weights),
            "spearman": _correlation(_ranks(p, weights), _ranks(y, weights), weights),
            "r2": np.where(varied, 1 - squared / _covariance(y, y, weights), np.nan),
            "mae": weights @ np.abs(p - y) / total,
            "rmse": np.sqrt(squared),
        }


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[B, M]: the mean rank that each value has where case m occurs weights[b, m] times."""
    found, place = np.unique(values, return_inverse=True)
    counts = np.zeros((len(weights), len(found)))
    np.add.at(counts.T, place, weights.T)
    below = np.cumsum(counts, axis=1) - counts
    return (below + (counts + 1) / 2)[:, place]


def _covariance(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[B], of [M] or [B, M]; round-off of what does not vary is 0."""
    total = weights.sum(axis=1)
    a, b = (np.broadcast_to(x, weights.shape) for x in (a, b))
    a = a - (np.sum(weights * a, axis=1) / total)[:, None]
    b = b - (np.sum(weights * b, axis=1) / total)[:, None]
    return np.sum(weights * a * b, axis=1) / total


def _correlation(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[B]; NaN where one of the two does not vary."""
    scale = np.sqrt(_covariance(a, a, weights) * _covariance(b, b, weights))
    size = np.max(np.abs(a), axis=1) * np.max(np.abs(b), axis=1)
    return np.where(scale > 1e-13 * size, _covariance(a, b, weights) / scale, np.nan)
