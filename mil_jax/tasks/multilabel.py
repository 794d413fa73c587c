"""Several labels of one bag, each present, absent or unknown by itself: genes, findings. One model with a sigmoid for each.

An unknown label (an empty cell) takes no part in losses and metrics. Losses: binary cross entropy, the mean over a bag's known labels;
focal (Lin et al. 2017) and asymmetric (Ridnik et al. 2021), for rare labels.
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
from mil_jax.data.cohort.label_table import resolve_classes
from mil_jax.data.cohort.settings import CohortSettings
from mil_jax.errors import ConfigError, DataError
from mil_jax.tasks.base import Task, fields_of
from mil_jax.tasks.classification import MIN_CASES_PER_CLASS, label_text
from mil_jax.tasks.losses import binary_asymmetric, binary_cross_entropy, binary_focal, mean_over_present
from mil_jax.tasks.metrics import classification as measures
from mil_jax.tasks.metrics.resampled import of_one_label
from mil_jax.tasks.metrics.within_folds import Ranking, complete, ranking
from mil_jax.types import Array

_TRUE, _FALSE = {"1", "true", "yes"}, {"0", "false", "no"}


@dataclasses.dataclass(frozen=True)
class MultiLabel(Task):
    """The task of finding which of `classes` are present; one label column each, holding 0, 1 or nothing.

    loss_name: one of `losses`. gamma: of `focal`, and of the positives of `asymmetric`; gamma_negative, margin: of its negatives.
    Targets are float32 [M, C], NaN = unknown. Raises ConfigError when the settings cannot work together.
    """

    classes: tuple[str, ...]
    loss_name: str = ""
    gamma: float = 2.0
    gamma_negative: float = 4.0
    margin: float = 0.05

    name: ClassVar[str] = "multilabel"
    losses: ClassVar[tuple[str, ...]] = ("binary_cross_entropy", "focal", "asymmetric")
    settings: ClassVar[tuple[str, ...]] = ("loss_name", "gamma", "gamma_negative", "margin")
    main_metric: ClassVar[str] = "auc"
    headline: ClassVar[tuple[str, ...]] = ("auc", "accuracy", "balanced_accuracy", "f1")
    metric_names: ClassVar[tuple[str, ...]] = measures.NAMES
    joint: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._choose_loss()
        if len(set(self.classes)) < len(self.classes):
            raise ConfigError(f"data.target={list(self.classes)} names a column twice; name each label once")

    @classmethod
    def for_labels(cls, labels: pd.DataFrame, cohort: CohortSettings, settings: Mapping[str, Any]) -> Self:
        if labels.shape[1] == 1:
            raise ConfigError(
                "task.name=multilabel is for several label columns of 0 and 1: name them in data.target, with commas"
            )
        return cls(resolve_classes(labels, cohort), **settings)

    @property
    def num_outputs(self) -> int:
        return len(self.classes)

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(f"prob_{name}" for name in self.classes)

    @property
    def column_names(self) -> tuple[str, ...]:
        return self.classes

    @property
    def strata_names(self) -> tuple[str, ...]:
        return self.classes

    def strata(self, targets: np.ndarray) -> np.ndarray:
        return targets

    def known(self, targets: np.ndarray) -> np.ndarray:
        return ~np.isnan(targets).all(axis=1)

    def targets(self, labels: pd.DataFrame) -> np.ndarray:
        """One column per class holding 0/1 (or true/false, yes/no) -> float32 [M, C]. Raises DataError for anything else."""
        absent = [name for name in self.classes if name not in labels.columns]
        if absent:
            raise DataError(f"no label column for the classes {absent}; the columns are {list(labels.columns)}")
        targets = np.full((len(labels), len(self.classes)), np.nan, np.float32)
        for place, name in enumerate(self.classes):
            for row, value in enumerate(labels[name]):
                text = label_text(value)
                if text is None:
                    continue
                if text.lower() not in _TRUE | _FALSE:
                    raise DataError(
                        f"label column {name!r}, bag {labels.index[row]}: {text!r} is neither 0 nor 1; "
                        "a multi-label target holds 0, 1 or nothing"
                    )
                targets[row, place] = text.lower() in _TRUE
        return targets

    def loss(self, predictions: Prediction, targets: Array, weights: Array) -> Array:
        """The mean over bags of the mean over their known labels."""
        known = ~jnp.isnan(targets)
        y = jnp.where(known, targets, 0.0)

        def per_bag(logits: Array) -> Array:
            per_label = jnp.where(known, self._per_label(logits, y), 0.0)
            return jnp.sum(per_label, axis=1) / jnp.maximum(jnp.sum(known, axis=1), 1)

        return mean_over_present(per_bag, predictions.logits, jnp.any(known, axis=1), weights)

    def _per_label(self, logits: Array, y: Array) -> Array:
        if self.loss_name == "focal":
            return binary_focal(logits, y, self.gamma)
        if self.loss_name == "asymmetric":
            return binary_asymmetric(logits, y, self.gamma, self.gamma_negative, self.margin)
        return binary_cross_entropy(logits, y)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """One sigmoid per label; rows need not sum to 1."""
        return expit(np.asarray(logits, np.float64))

    def monitor(self, name: str, logits: np.ndarray, targets: np.ndarray) -> float:
        """`val_loss`: the task's loss; `val_auc`: the mean over labels."""
        p = self.probabilities(logits)
        if name == "val_auc":
            return measures.macro_auc_multi_label(p, targets)
        if self.loss_name == "binary_cross_entropy":
            return measures.binary_log_loss(p, targets)
        if not self.known(targets).any() or not np.isfinite(p).all():
            return np.nan
        known = ~np.isnan(targets)
        p = np.clip(p, measures.EPSILON, 1 - measures.EPSILON)
        truth = np.where(targets > 0, p, 1 - p)
        if self.loss_name == "focal":
            losses = -((1 - truth) ** self.gamma) * np.log(truth)
        else:
            shifted = np.maximum(p - self.margin, 0.0)
            negative = shifted**self.gamma_negative * np.log1p(-shifted)
            losses = -np.where(targets > 0, (1 - p) ** self.gamma * np.log(p), negative)
        rows = known.any(axis=1)
        return float(np.mean(np.sum(np.where(known, losses, 0.0), axis=1)[rows] / known.sum(axis=1)[rows]))

    def metrics(
        self, probabilities: np.ndarray, targets: np.ndarray, groups: np.ndarray | None = None
    ) -> dict[str, float]:
        return measures.multi_label(probabilities, targets, self.classes, groups)

    def weighted_metrics(
        self, probabilities: np.ndarray, targets: np.ndarray, weights: np.ndarray, groups: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """The mean over labels of each metric."""
        per_class = []
        for p, y in zip(probabilities.T, targets.T):
            known = ~np.isnan(y)
            pair = np.stack([1 - p[known], p[known]], axis=1)
            index = (y[known] > 0).astype(np.int64)
            own = None if groups is None else groups[known]
            per_class.append(of_one_label(pair, index, weights[:, known], positive_only=True, groups=own))
        return {name: np.mean([values[name] for values in per_class], axis=0) for name in self.metric_names}

    def rankings(
        self, probabilities: np.ndarray, targets: np.ndarray, groups: np.ndarray, patients: np.ndarray
    ) -> list[Ranking]:
        found = []
        for p, y in zip(probabilities.T, targets.T):
            known = ~np.isnan(y)
            found.append(ranking(p[known], y[known] > 0, groups[known], patients[known], patients.max(initial=-1) + 1))
        return complete(found)

    def constant(self, targets: np.ndarray) -> np.ndarray:
        """Share [C] of the bags with each label, of those where it is known."""
        known = np.sum(~np.isnan(targets), axis=0)
        return np.where(known > 0, np.sum(targets > 0, axis=0) / np.maximum(known, 1), np.nan)

    def size_control(self, sizes: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        values = [measures.binary_auc(sizes[~np.isnan(y)], y[~np.isnan(y)] > 0) for y in targets.T]
        return {"auc": float(np.mean([max(value, 1 - value) for value in values]))}

    def enough_cases(self, targets: np.ndarray) -> bool:
        """Whether each label has 10 validation cases with it, and 10 without."""
        return bool(np.all(self._rarer(targets) >= MIN_CASES_PER_CLASS))

    def require_trainable(self, targets: np.ndarray, run: str) -> None:
        for name, count in zip(self.classes, self._rarer(targets)):
            if count == 0:
                raise DataError(
                    f"{run}: the training part has either no case with or no case without class {name!r}; use fewer folds, other "
                    "splits, or leave the class out"
                )

    def choose_thresholds(self, probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """A threshold for each label [C] by Youden's index; NaN with fewer than 10 validation cases with or without it."""
        thresholds = np.full(len(self.classes), np.nan)
        for c in range(len(self.classes)):
            known = ~np.isnan(targets[:, c])
            positive = targets[known, c] > 0
            if min(np.sum(positive), np.sum(~positive)) >= MIN_CASES_PER_CLASS:
                thresholds[c] = measures.youden_threshold(probabilities[known, c], positive)
        return thresholds

    def threshold_metrics(
        self, probabilities: np.ndarray, targets: np.ndarray, thresholds: np.ndarray | None
    ) -> dict[str, float]:
        """As of a classification; empty unless every label has a threshold."""
        if thresholds is None or np.isnan(thresholds).any() or not np.isfinite(probabilities).all():
            return {}
        decided = measures.multi_label_decisions(probabilities >= thresholds, targets)
        return {f"{name}_at_threshold": decided[name] for name in ("accuracy", "balanced_accuracy", "f1")}

    def target_table(self, targets: np.ndarray) -> pd.DataFrame:
        """`target_CLASS`, holding 0, 1 or nothing."""
        return pd.DataFrame({f"target_{name}": targets[:, c] for c, name in enumerate(self.classes)})

    def targets_of(self, table: pd.DataFrame) -> np.ndarray:
        return fields_of([f"target_{name}" for name in self.classes], table).astype(np.float32)

    def _rarer(self, targets: np.ndarray) -> np.ndarray:
        """Cases [C] with or without each label, whichever are fewer."""
        return np.minimum(np.sum(targets > 0, axis=0), np.sum(targets == 0, axis=0))
