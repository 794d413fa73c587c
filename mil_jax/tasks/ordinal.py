"""Classes in an order (grades, stages): cumulative logits (Cao et al. 2020, CORAL without the shared weights; Frank & Hall 2001).

Output k answers "is the class above class k?"; the loss is the mean binary cross entropy of these C - 1 answers, so that a far class costs
more than a near one. Probabilities of classes are differences of the answers, made to fall where they do not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax.numpy as jnp
import numpy as np
import pandas as pd
from scipy.special import expit

from mil_jax.bags import Prediction
from mil_jax.data.cohort.settings import CohortSettings
from mil_jax.data.tables import is_number, listed
from mil_jax.errors import ConfigError, DataError
from mil_jax.tasks.classification import Classification
from mil_jax.tasks.losses import binary_cross_entropy, mean_over_present
from mil_jax.tasks.metrics import classification as measures
from mil_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Ordinal(Classification):
    """The task of telling `classes` apart, which are in ascending order. Targets are int32 [M], -1 = unknown."""

    label_smoothing: float | Array = 0.0

    name: ClassVar[str] = "ordinal"
    losses: ClassVar[tuple[str, ...]] = ("cumulative",)
    settings: ClassVar[tuple[str, ...]] = ("loss_name",)
    numeric: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    main_metric: ClassVar[str] = "quadratic_kappa"
    headline: ClassVar[tuple[str, ...]] = ("quadratic_kappa", "accuracy", "auc", "f1")
    metric_names: ClassVar[tuple[str, ...]] = ("quadratic_kappa", *measures.NAMES)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.classes) < 3:
            raise ConfigError(f"an ordinal task needs three classes, found {list(self.classes)}; use classification")

    @classmethod
    def for_labels(cls, labels: pd.DataFrame, cohort: CohortSettings, settings: Mapping[str, Any]) -> Self:
        """Raises DataError for classes that are no numbers where nobody says their order."""
        names = sorted(set(labels.iloc[:, 0].dropna()))
        if not cohort.class_order and not all(map(is_number, names)):
            raise DataError(
                f"{cohort.labels}: the classes of column {labels.columns[0]!r} are words ({listed(names, 8)}), whose order nobody knows: "
                "say it with data.classes, from the lowest to the highest"
            )
        return super().for_labels(labels, cohort, settings)

    @property
    def num_outputs(self) -> int:
        return len(self.classes) - 1

    def _loss_per_bag(self, logits: Array, targets: Array) -> Array:
        above = (targets[:, None] > jnp.arange(self.num_outputs)).astype(jnp.float32)
        return jnp.mean(binary_cross_entropy(logits, above), axis=1)

    def loss(self, predictions: Prediction, targets: Array, weights: Array) -> Array:
        return mean_over_present(
            lambda logits: self._loss_per_bag(logits, targets), predictions.logits, targets >= 0, weights
        )

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """[M, C]."""
        above = np.minimum.accumulate(expit(np.asarray(logits, np.float64)), axis=1)
        padded = np.pad(above, ((0, 0), (1, 1)), constant_values=((0, 0), (1, 0)))
        return -np.diff(padded, axis=1)

    def monitor(self, name: str, logits: np.ndarray, targets: np.ndarray) -> float:
        """`val_loss`; `val_quadratic_kappa`."""
        if name == "val_quadratic_kappa":
            return self.metrics(self.probabilities(logits), targets)["quadratic_kappa"]
        above = (targets[:, None] > np.arange(self.num_outputs)).astype(np.float64)
        above[targets < 0] = np.nan
        return measures.binary_log_loss(expit(np.asarray(logits, np.float64)), above)

    def metrics(
        self, probabilities: np.ndarray, targets: np.ndarray, groups: np.ndarray | None = None
    ) -> dict[str, float]:
        once = np.ones((1, len(targets)))
        kappa = float(self._kappa(probabilities, targets, once)[0])
        return {"quadratic_kappa": kappa, **super().metrics(probabilities, targets, groups)}

    def weighted_metrics(
        self, probabilities: np.ndarray, targets: np.ndarray, weights: np.ndarray, groups: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        values = super().weighted_metrics(probabilities, targets, weights, groups)
        return {"quadratic_kappa": self._kappa(probabilities, targets, weights), **values}

    def _kappa(self, probabilities: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Cohen's kappa [B] with quadratic weights of decisions by the largest probability; NaN where all is one class."""
        known = targets >= 0
        index, p, weights = targets[known], probabilities[known], weights[:, known]
        if not len(index) or not np.isfinite(p).all():
            return np.full(len(weights), np.nan)
        decided = np.argmax(p, axis=1)
        classes = np.arange(self.num_classes)
        cost = (classes[:, None] - classes) ** 2
        true, said = weights @ np.eye(self.num_classes)[index], weights @ np.eye(self.num_classes)[decided]
        observed = weights @ cost[index, decided].astype(np.float64)
        expected = np.einsum("bi,ij,bj->b", true, cost, said) / weights.sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(expected > 0, 1 - observed / expected, np.nan)
