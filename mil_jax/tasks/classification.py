"""Classification of bags: one class per bag.

Losses: cross entropy; binary cross entropy with logits, the mean over classes on one-hot targets (PathGene); the clamped Bernoulli
likelihood of Ilse et al. 2018 on one output; focal loss on the softmax (Lin et al. 2017), for rare classes. Every loss is the mean over
the bags of a batch, as in the reference loops, which use one bag a step. Numbers for people (AUC, F1, ...) are in
`tasks/metrics/classification.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from scipy.special import expit, softmax

from mil_jax.bags import Prediction
from mil_jax.data.cohort.label_table import resolve_classes
from mil_jax.data.cohort.settings import CohortSettings
from mil_jax.errors import ConfigError, DataError
from mil_jax.tasks.base import Task
from mil_jax.tasks.losses import binary_cross_entropy, mean_over_present
from mil_jax.tasks.metrics import classification as measures
from mil_jax.tasks.metrics.resampled import of_one_label
from mil_jax.tasks.metrics.within_folds import Ranking, complete, ranking
from mil_jax.types import Array

MIN_CASES_PER_CLASS = 10
_BERNOULLI_CLAMP = 1e-5


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """The task of telling `classes` apart; of two classes the second is the positive one.

    classes: names in the order of the outputs.
    loss_name: one of `losses`; `bernoulli` needs exactly two classes and has one output.
    label_smoothing: cross entropy only, as in PyTorch: target (1 - e) one-hot + e / C. It may be a traced scalar
        (`dataclasses.replace(task, label_smoothing=...)` inside a step), so replicas can differ in it.
    gamma: of the focal loss, (1 - p)^gamma times the cross entropy.

    Raises ConfigError when the settings cannot work together.
    """

    classes: tuple[str, ...]
    loss_name: str = ""
    label_smoothing: float | Array = 0.0
    gamma: float = 2.0

    name: ClassVar[str] = "classification"
    losses: ClassVar[tuple[str, ...]] = ("cross_entropy", "binary_cross_entropy", "bernoulli", "focal")
    settings: ClassVar[tuple[str, ...]] = ("loss_name", "label_smoothing", "gamma")
    numeric: ClassVar[Mapping[str, tuple[str, ...]]] = {"cross_entropy": ("label_smoothing",)}
    main_metric: ClassVar[str] = "auc"
    headline: ClassVar[tuple[str, ...]] = ("auc", "accuracy", "balanced_accuracy", "f1")
    metric_names: ClassVar[tuple[str, ...]] = measures.NAMES

    def __post_init__(self) -> None:
        self._choose_loss()
        if len(set(self.classes)) < len(self.classes):
            raise ConfigError(f"data.classes={list(self.classes)} names a class twice; name each class once")
        if len(self.classes) < 2:
            raise ConfigError(f"a classification needs at least two classes, found {list(self.classes)}")
        if self.loss_name == "bernoulli" and len(self.classes) != 2:
            raise ConfigError(
                f"task.loss_name='bernoulli' is for two classes, found {len(self.classes)}; use 'cross_entropy'"
            )
        if isinstance(self.label_smoothing, int | float):
            if not 0 <= self.label_smoothing < 1:
                raise ConfigError(f"task.label_smoothing={self.label_smoothing} must lie in [0, 1)")
            if self.label_smoothing and self.loss_name != "cross_entropy":
                raise ConfigError("task.label_smoothing is for task.loss_name='cross_entropy' only")

    @classmethod
    def for_labels(cls, labels: pd.DataFrame, cohort: CohortSettings, settings: Mapping[str, Any]) -> Self:
        return cls(resolve_classes(labels, cohort), **settings)

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(f"prob_{name}" for name in self.classes)

    @property
    def strata_names(self) -> tuple[str, ...]:
        return self.classes

    def strata(self, targets: np.ndarray) -> np.ndarray:
        return self.class_index(targets)

    def known(self, targets: np.ndarray) -> np.ndarray:
        return self.class_index(targets) >= 0

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def num_outputs(self) -> int:
        """Outputs of the aggregator: one for `bernoulli`, else one per class."""
        return 1 if self.loss_name == "bernoulli" else len(self.classes)

    def targets(self, labels: pd.DataFrame) -> np.ndarray:
        """Label table (one row per bag) -> targets.

        One column with class names -> int32 [M], -1 = missing; as one-hot float32 [M, C] for `binary_cross_entropy`,
        NaN = missing. Raises DataError for a value that is no class, naming the row.
        """
        if labels.shape[1] != 1:
            raise DataError(
                f"one target column is needed, found {list(labels.columns)}; name one, or set task.name=multilabel"
            )
        column = labels.columns[0]
        number = {name: index for index, name in enumerate(self.classes)}
        indices = np.full(len(labels), -1, np.int32)
        for row, value in enumerate(labels[column]):
            text = label_text(value)
            if text is None:
                continue
            if text not in number:
                raise DataError(
                    f"label column {column!r}, bag {labels.index[row]}: {text!r} is none of the classes "
                    f"{list(self.classes)}; add it to data.classes or leave such rows out with data.filter"
                )
            indices[row] = number[text]
        if self.loss_name != "binary_cross_entropy":
            return indices
        one_hot = np.eye(self.num_classes, dtype=np.float32)[indices]
        one_hot[indices < 0] = np.nan
        return one_hot

    def class_index(self, targets: np.ndarray) -> np.ndarray:
        """The class of each bag, int64 [M], -1 = missing, from either form of single-label targets."""
        targets = np.asarray(targets)
        if targets.ndim == 1:
            return targets.astype(np.int64)
        return np.where(np.isnan(targets).any(axis=1), -1, np.argmax(targets, axis=1))

    def loss(self, predictions: Prediction, targets: Array, weights: Array) -> Array:
        """Mean over the bags present of weight * loss, a float32 scalar; 0 when there is none.

        predictions: logits [B, num_outputs]. targets: [B] or [B, C]. weights: [B]; 0 = no bag in this place.

        A bag is present when its weight is positive and its label is known.
        Class weights arrive multiplied into `weights`, and the mean divides by the NUMBER of bags: PyTorch's
        weighted mean divides by the sum of the weights instead, so at one bag per step w * l / w = l and its class
        weights do nothing.
        """
        known = targets >= 0 if targets.ndim == 1 else jnp.any(~jnp.isnan(targets), axis=1)
        return mean_over_present(lambda logits: self._loss_per_bag(logits, targets), predictions.logits, known, weights)

    def _loss_per_bag(self, logits: Array, targets: Array) -> Array:
        if self.loss_name in ("cross_entropy", "focal"):
            log_p = jax.nn.log_softmax(logits, axis=-1)  # [B, C]
            chosen = jnp.take_along_axis(log_p, jnp.maximum(targets, 0)[:, None], axis=-1)[:, 0]
            if self.loss_name == "focal":
                return -((-jnp.expm1(chosen)) ** self.gamma) * chosen
            return -(1.0 - self.label_smoothing) * chosen - self.label_smoothing * jnp.mean(log_p, axis=-1)
        if self.loss_name == "bernoulli":
            p = jnp.clip(jax.nn.sigmoid(logits[:, 0]), _BERNOULLI_CLAMP, 1.0 - _BERNOULLI_CLAMP)
            return -jnp.where(targets > 0, jnp.log(p), jnp.log(1.0 - p))
        known = ~jnp.isnan(targets)
        per_class = binary_cross_entropy(logits, jnp.where(known, targets, 0.0))
        return jnp.sum(jnp.where(known, per_class, 0.0), axis=1) / jnp.maximum(jnp.sum(known, axis=1), 1)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Logits [..., num_outputs] -> probabilities [..., C], numpy float64, on the host.

        Cross entropy and focal loss: softmax. Binary cross entropy: one sigmoid per class (rows need not sum to 1). Bernoulli:
        (1 - p, p) with p the sigmoid of the one output.
        """
        logits = np.asarray(logits, np.float64)
        if self.loss_name in ("cross_entropy", "focal"):
            return softmax(logits, axis=-1)
        if self.loss_name == "bernoulli":
            return np.concatenate([expit(-logits), expit(logits)], axis=-1)
        return expit(logits)

    def metrics(
        self, probabilities: np.ndarray, targets: np.ndarray, groups: np.ndarray | None = None
    ) -> dict[str, float]:
        """`tasks/metrics/classification.py` defines each."""
        return measures.single_label(probabilities, self.class_index(targets), groups)

    def weighted_metrics(
        self, probabilities: np.ndarray, targets: np.ndarray, weights: np.ndarray, groups: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        index = self.class_index(targets)
        known = index >= 0
        groups = None if groups is None else groups[known]
        return of_one_label(probabilities[known], index[known], weights[:, known], positive_only=False, groups=groups)

    def rankings(
        self, probabilities: np.ndarray, targets: np.ndarray, groups: np.ndarray, patients: np.ndarray
    ) -> list[Ranking]:
        index = self.class_index(targets)
        known = index >= 0
        scored = [1] if self.num_classes == 2 else range(self.num_classes)
        groups, number, patients = groups[known], int(patients.max(initial=-1)) + 1, patients[known]
        return complete([ranking(probabilities[known, c], index[known] == c, groups, patients, number) for c in scored])

    def monitor(self, name: str, logits: np.ndarray, targets: np.ndarray) -> float:
        """`val_loss`: without class weights and smoothing; `val_auc`: macro one-vs-rest."""
        probabilities = self.probabilities(logits)
        if name == "val_auc":
            return measures.macro_auc(probabilities, self.class_index(targets))
        if self.loss_name == "binary_cross_entropy":
            return measures.binary_log_loss(probabilities, targets)
        clamp = _BERNOULLI_CLAMP if self.loss_name == "bernoulli" else measures.EPSILON
        clipped = np.clip(probabilities, clamp, 1 - clamp)
        gamma = self.gamma if self.loss_name == "focal" else 0.0
        return measures.log_loss(clipped, self.class_index(targets), gamma)

    def constant(self, targets: np.ndarray) -> np.ndarray:
        return self.frequencies(targets)

    def size_control(self, sizes: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        index = self.class_index(targets)
        known = index >= 0
        values = [measures.binary_auc(sizes[known], index[known] == c) for c in range(self.num_classes)]
        return {"auc": float(np.mean([max(value, 1 - value) for value in values]))}

    def enough_cases(self, targets: np.ndarray) -> bool:
        """Whether each class has 10 validation cases, which a chosen threshold and the AUC as a monitor need."""
        return bool(np.all(self._class_counts(targets) >= MIN_CASES_PER_CLASS))

    def choose_thresholds(self, probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Decision thresholds [C] by Youden's index (the largest tpr - fpr) on validation cases; NaN = none chosen.

        For two classes only the positive class has one; for more classes there is none, nor with fewer than 10 cases of a class.
        """
        thresholds = np.full(self.num_classes, np.nan)
        if self.num_classes == 2 and self.enough_cases(targets):
            index = self.class_index(targets)
            thresholds[1] = measures.youden_threshold(probabilities[index >= 0, 1], index[index >= 0] == 1)
        return thresholds

    def threshold_metrics(
        self, probabilities: np.ndarray, targets: np.ndarray, thresholds: np.ndarray | None
    ) -> dict[str, float]:
        """`accuracy_at_threshold`, `balanced_accuracy_at_threshold` and `f1_at_threshold`; empty unless a threshold was chosen."""
        if thresholds is None or np.isnan(thresholds[1:]).any() or not np.isfinite(probabilities).all():
            return {}
        decisions = (probabilities[:, 1] >= thresholds[1]).astype(np.int64)
        decided = measures.single_label_decisions(decisions, self.class_index(targets), 2)
        return {f"{name}_at_threshold": decided[name] for name in ("accuracy", "balanced_accuracy", "f1")}

    def require_trainable(self, targets: np.ndarray, run: str) -> None:
        """Raises DataError naming the class when one is absent from the training part."""
        for name, count in zip(self.classes, self._class_counts(targets)):
            if count == 0:
                raise DataError(
                    f"{run}: the training part has no case of class {name!r}; use fewer folds, other splits, or leave the class out"
                )

    def class_weights(self, targets: np.ndarray) -> np.ndarray:
        """Inverse-frequency weights [C] float32 of training targets, M / (C * cases of the class).

        A class without a case gets 0. A bag's loss weight is `class_weights[class_index]`.
        """
        counts = self._class_counts(targets)
        weights = np.sum(counts) / (self.num_classes * np.maximum(counts, 1))
        return np.where(counts > 0, weights, 0.0).astype(np.float32)

    def frequencies(self, targets: np.ndarray) -> np.ndarray:
        """Share [C] of the labelled bags in each class; NaN where no bag is labelled."""
        counts = self._class_counts(targets)
        return counts / counts.sum() if counts.sum() else np.full(self.num_classes, np.nan)

    def target_table(self, targets: np.ndarray) -> pd.DataFrame:
        """One column `target` with the class as text."""
        names = np.array([*self.classes, None], dtype=object)  # class number -1 picks the last: no label
        return pd.DataFrame({"target": names[self.class_index(targets)]})

    def targets_of(self, table: pd.DataFrame) -> np.ndarray:
        return self.targets(table[["target"]])

    def _class_counts(self, targets: np.ndarray) -> np.ndarray:
        index = self.class_index(targets)
        return np.bincount(index[index >= 0], minlength=self.num_classes)


def label_text(value: Any) -> str | None:
    """A label as text, so that 1, 1.0, True and "1" name one class; None when missing."""
    if value is None or value is pd.NA or (isinstance(value, float | np.floating) and np.isnan(value)):
        return None
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value).strip() or None
