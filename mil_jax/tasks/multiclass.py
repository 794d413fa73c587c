"""Several label columns, each with classes of its own (genes, exons, subtypes), predicted by one model: a softmax for each column.

A bag counts in the columns where it has a label. Losses: cross entropy or focal, the mean over a bag's known columns. Metrics are those of
`Classification` for each column, and their means.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from mil_jax.bags import Prediction
from mil_jax.data.cohort.label_table import resolve_classes
from mil_jax.data.cohort.settings import CohortSettings
from mil_jax.errors import ConfigError, DataError
from mil_jax.tasks.base import Task
from mil_jax.tasks.classification import Classification
from mil_jax.tasks.losses import mean_over_present
from mil_jax.tasks.metrics import classification as measures
from mil_jax.tasks.metrics.within_folds import Ranking
from mil_jax.types import Array


@dataclasses.dataclass(frozen=True)
class MultiClass(Task):
    """The task of telling apart the `classes` of each of the `columns`. Targets are float32 [M, outputs]: of each column one-hot, or NaN
    where it is unknown.

    loss_name: "cross_entropy", or "focal" with `gamma`. Raises ConfigError when the settings cannot work together.
    """

    columns: tuple[str, ...]
    classes: tuple[tuple[str, ...], ...]
    loss_name: str = ""
    gamma: float = 2.0

    name: ClassVar[str] = "multiclass"
    losses: ClassVar[tuple[str, ...]] = ("cross_entropy", "focal")
    settings: ClassVar[tuple[str, ...]] = ("loss_name", "gamma")
    main_metric: ClassVar[str] = "auc"
    headline: ClassVar[tuple[str, ...]] = ("auc", "accuracy", "balanced_accuracy", "f1")
    metric_names: ClassVar[tuple[str, ...]] = measures.NAMES
    joint: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._choose_loss()
        object.__setattr__(self, "classes", tuple(map(tuple, self.classes)))  # JSON has lists

    @classmethod
    def for_labels(cls, labels: pd.DataFrame, cohort: CohortSettings, settings: Mapping[str, Any]) -> Self:
        if labels.shape[1] == 1:
            raise ConfigError(
                "task.name=multiclass is for several label columns: name them in data.target, with commas"
            )
        if cohort.class_order or cohort.positive_class:
            raise ConfigError(
                "data.classes and data.positive cannot go with task.name=multiclass: each column has classes of its own, sorted"
            )
        classes = tuple(resolve_classes(labels[[name]], cohort) for name in labels.columns)
        return cls(tuple(labels.columns), classes, **settings)

    def parts(self) -> Iterator[tuple[str, Classification, slice]]:
        """Of each column its name, its task, and its places among the outputs."""
        start = 0
        for name, classes in zip(self.columns, self.classes, strict=True):
            yield name, Classification(classes, self.loss_name, gamma=self.gamma), slice(start, start + len(classes))
            start += len(classes)

    @property
    def num_outputs(self) -> int:
        return sum(map(len, self.classes))

    @property
    def output_names(self) -> tuple[str, ...]:
        """prob_COLUMN_CLASS."""
        return tuple(f"prob_{name}_{one}" for name, classes in zip(self.columns, self.classes) for one in classes)

    @property
    def column_names(self) -> tuple[str, ...]:
        return self.columns

    @property
    def strata_names(self) -> tuple[str, ...]:
        return tuple(f"{name}: {one}" for name, classes in zip(self.columns, self.classes) for one in classes)

    def strata(self, targets: np.ndarray) -> np.ndarray:
        return targets

    def known(self, targets: np.ndarray) -> np.ndarray:
        return ~np.isnan(targets).all(axis=1)

    def targets(self, labels: pd.DataFrame) -> np.ndarray:
        """Raises DataError for a value that is no class of its column, naming the bag."""
        return self._one_hot([part.targets(labels[[name]]) for name, part, _ in self.parts()])

    def _one_hot(self, indices: list[np.ndarray]) -> np.ndarray:
        """[M] class numbers of each column, -1 = unknown -> targets."""
        columns = []
        for (_, part, _), index in zip(self.parts(), indices, strict=True):
            column = np.eye(part.num_classes, dtype=np.float32)[index]
            column[index < 0] = np.nan
            columns.append(column)
        return np.concatenate(columns, axis=1)

    def loss(self, predictions: Prediction, targets: Array, weights: Array) -> Array:
        """The mean over bags of the mean over their known columns."""

        def per_bag(logits: Array) -> Array:
            total, number = jnp.zeros(len(logits)), jnp.zeros(len(logits))
            for _, part, places in self.parts():
                mine = targets[:, places]
                known = ~jnp.isnan(mine[:, 0])
                log_p = jax.nn.log_softmax(logits[:, places], axis=-1)
                chosen = jnp.where(known, jnp.sum(jnp.where(known[:, None], mine, 0.0) * log_p, axis=1), -1.0)
                scale = (-jnp.expm1(chosen)) ** part.gamma if self.loss_name == "focal" else 1.0
                total = total - jnp.where(known, scale * chosen, 0.0)
                number = number + known
            return total / jnp.maximum(number, 1.0)

        return mean_over_present(per_bag, predictions.logits, ~jnp.all(jnp.isnan(targets), axis=1), weights)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """A softmax over the classes of each column."""
        return np.concatenate([part.probabilities(logits[..., places]) for _, part, places in self.parts()], axis=-1)

    def monitor(self, name: str, logits: np.ndarray, targets: np.ndarray) -> float:
        """`val_loss`: the task's loss; `val_auc`: the mean over columns."""
        p = self.probabilities(np.asarray(logits, np.float64))
        if name == "val_auc":
            return float(np.mean([part.monitor(name, logits[:, at], targets[:, at]) for _, part, at in self.parts()]))
        if not self.known(targets).any() or not np.isfinite(p).all():
            return np.nan
        total, number = np.zeros(len(p)), np.zeros(len(p))
        for _, _, places in self.parts():
            known = ~np.isnan(targets[:, places.start])
            chosen = np.clip(np.sum(np.nan_to_num(targets[:, places]) * p[:, places], axis=1), measures.EPSILON, 1.0)
            scale = (1 - chosen) ** self.gamma if self.loss_name == "focal" else 1.0
            total -= np.where(known, scale * np.log(chosen), 0.0)
            number += known
        return float(np.mean(total[number > 0] / number[number > 0]))

    def metrics(
        self, probabilities: np.ndarray, targets: np.ndarray, groups: np.ndarray | None = None
    ) -> dict[str, float]:
        """Means over columns, and those of each (`auc_GENE`); `subset_accuracy` counts the bags with every column known and right."""
        by_column = {
            name: part.metrics(probabilities[:, at], targets[:, at], groups) for name, part, at in self.parts()
        }
        values = {name: float(np.mean([one[name] for one in by_column.values()])) for name in self.metric_names}
        complete = ~np.isnan(targets).any(axis=1)
        right = np.all(
            [probabilities[:, at].argmax(axis=1) == np.nan_to_num(targets[:, at]).argmax(axis=1) for *_, at in self.parts()],
            axis=0,
        )  # fmt: skip
        finite = np.isfinite(probabilities).all()
        values["subset_accuracy"] = float(np.mean(right[complete])) if complete.any() and finite else np.nan
        for column, one in by_column.items():
            values.update({f"{name}_{column}": value for name, value in one.items()})
        return values

    def weighted_metrics(
        self, probabilities: np.ndarray, targets: np.ndarray, weights: np.ndarray, groups: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """The mean over columns of each metric."""
        each = [
            part.weighted_metrics(probabilities[:, at], targets[:, at], weights, groups) for _, part, at in self.parts()
        ]
        return {name: np.mean([one[name] for one in each], axis=0) for name in self.metric_names}

    def rankings(
        self, probabilities: np.ndarray, targets: np.ndarray, groups: np.ndarray, patients: np.ndarray
    ) -> list[Ranking]:
        parts = [part.rankings(probabilities[:, at], targets[:, at], groups, patients) for _, part, at in self.parts()]
        return [one for part in parts for one in part] if all(parts) else []

    def constant(self, targets: np.ndarray) -> np.ndarray:
        """The shares of the classes of each column, of the bags where it is known."""
        return np.concatenate([part.constant(targets[:, at]) for _, part, at in self.parts()])

    def size_control(self, sizes: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        return {
            "auc": float(np.mean([part.size_control(sizes, targets[:, at])["auc"] for _, part, at in self.parts()]))
        }

    def enough_cases(self, targets: np.ndarray) -> bool:
        """Whether each class of each column has 10 validation cases."""
        return all(part.enough_cases(targets[:, at]) for _, part, at in self.parts())

    def require_trainable(self, targets: np.ndarray, run: str) -> None:
        for name, part, at in self.parts():
            try:
                part.require_trainable(targets[:, at], run)
            except DataError as error:
                raise DataError(f"label column {name!r}: {error}") from error

    def target_table(self, targets: np.ndarray) -> pd.DataFrame:
        """`target_COLUMN`, the class as text."""
        tables = {f"target_{name}": part.target_table(targets[:, at])["target"] for name, part, at in self.parts()}
        return pd.DataFrame(tables)

    def targets_of(self, table: pd.DataFrame) -> np.ndarray:
        return self._one_hot(
            [part.targets_of(table.rename(columns={f"target_{name}": "target"})) for name, part, _ in self.parts()]
        )
