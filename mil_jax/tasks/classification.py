"""Classification of bags: one class per bag, or several labels that may each be present.

Losses: cross entropy; binary cross entropy with logits, the mean over classes on one-hot or multi-hot targets
(PathGene); the clamped Bernoulli likelihood of Ilse et al. 2018 on one output. Every loss is the mean over the bags
of a batch, as in the reference loops, which use one bag a step. Numbers for people (AUC, F1, ...) are in
`tasks/metrics.py`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from scipy.special import expit, softmax

from mil_jax.bags import Prediction
from mil_jax.errors import ConfigError, DataError
from mil_jax.tasks import metrics as measures

LOSSES = ("cross_entropy", "binary_cross_entropy", "bernoulli")
HIGHER_IS_BETTER = {"val_loss": False, "val_auc": True}
MIN_CASES_PER_CLASS = 10
_BERNOULLI_CLAMP = 1e-5
_TRUE, _FALSE = {"1", "true", "yes"}, {"0", "false", "no"}


@dataclasses.dataclass(frozen=True)
class Classification:
    """The task of telling `classes` apart; of two classes the second is the positive one.

    classes: names in the order of the outputs.
    loss_name: one of `LOSSES`; `bernoulli` needs exactly two classes and has one output.
    label_smoothing: cross entropy only, as in PyTorch: target (1 - e) one-hot + e / C. It may be a traced scalar
        (`dataclasses.replace(task, label_smoothing=...)` inside a step), so replicas can differ in it.
    multi_label: every class is present or absent by itself (one label column per class); needs `binary_cross_entropy`.

    Raises ConfigError when the settings cannot work together.
    """

    classes: tuple[str, ...]
    loss_name: str = "cross_entropy"
    label_smoothing: Any = 0.0
    multi_label: bool = False

    def __post_init__(self) -> None:
        if self.loss_name not in LOSSES:
            raise ConfigError(f"task.loss_name={self.loss_name!r} is not a loss; choose one of {', '.join(LOSSES)}")
        if len(set(self.classes)) < len(self.classes):
            raise ConfigError(f"data.classes={list(self.classes)} names a class twice; name each class once")
        if self.multi_label and self.loss_name != "binary_cross_entropy":
            raise ConfigError("task.multi_label needs task.loss_name='binary_cross_entropy'")
        if not self.multi_label and len(self.classes) < 2:
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
        NaN = missing. With `multi_label`, one column per class holding 0/1 (or true/false, yes/no) -> float32 [M, C].
        Raises DataError for a value that is no class, naming the row, and for a missing column.
        """
        if self.multi_label:
            return self._multi_hot(labels)
        if labels.shape[1] != 1:
            raise DataError(
                f"one target column is needed, found {list(labels.columns)}; name one, or set task.multi_label=True"
            )
        column = labels.columns[0]
        number = {name: index for index, name in enumerate(self.classes)}
        indices = np.full(len(labels), -1, np.int32)
        for row, value in enumerate(labels[column]):
            text = _text(value)
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

    def _multi_hot(self, labels: pd.DataFrame) -> np.ndarray:
        absent = [name for name in self.classes if name not in labels.columns]
        if absent:
            raise DataError(f"no label column for the classes {absent}; the columns are {list(labels.columns)}")
        targets = np.full((len(labels), self.num_classes), np.nan, np.float32)
        for place, name in enumerate(self.classes):
            for row, value in enumerate(labels[name]):
                text = _text(value)
                if text is None:
                    continue
                if text.lower() not in _TRUE | _FALSE:
                    raise DataError(
                        f"label column {name!r}, bag {labels.index[row]}: {text!r} is neither 0 nor 1; "
                        "a multi-label target holds 0, 1 or nothing"
                    )
                targets[row, place] = text.lower() in _TRUE
        return targets

    def class_index(self, targets: np.ndarray) -> np.ndarray:
        """The class of each bag, int64 [M], -1 = missing, from either form of single-label targets."""
        if self.multi_label:
            raise ConfigError("class weights and balanced sampling need one class per bag; this task is multi-label")
        targets = np.asarray(targets)
        if targets.ndim == 1:
            return targets.astype(np.int64)
        return np.where(np.isnan(targets).any(axis=1), -1, np.argmax(targets, axis=1))

    def loss(self, predictions: Prediction, targets: jax.Array, weights: jax.Array) -> jax.Array:
        """Mean over the bags present of weight * loss, a float32 scalar; 0 when there is none.

        predictions: logits [B, num_outputs]. targets: [B] or [B, C]. weights: [B]; 0 = no bag in this place.

        A bag is present when its weight is positive and its label (one label of it, for multi-label targets) is known.
        Class weights arrive multiplied into `weights`, and the mean divides by the NUMBER of bags: PyTorch's
        weighted mean divides by the sum of the weights instead, so at one bag per step w * l / w = l and its class
        weights do nothing.
        """
        known = targets >= 0 if targets.ndim == 1 else jnp.any(~jnp.isnan(targets), axis=1)
        present = (weights > 0) & known  # [B]
        # Replaced before the loss, not after: a NaN logit of an empty place would reach the gradient as 0 * NaN.
        logits = jnp.where(present[:, None], predictions.logits.astype(jnp.float32), 0.0)
        per_bag = self._loss_per_bag(logits, targets)  # [B]
        total = jnp.sum(jnp.where(present, weights * per_bag, 0.0))
        return total / jnp.maximum(jnp.sum(present), 1)

    def _loss_per_bag(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        if self.loss_name == "cross_entropy":
            log_p = jax.nn.log_softmax(logits, axis=-1)  # [B, C]
            chosen = jnp.take_along_axis(log_p, jnp.maximum(targets, 0)[:, None], axis=-1)[:, 0]
            return -(1.0 - self.label_smoothing) * chosen - self.label_smoothing * jnp.mean(log_p, axis=-1)
        if self.loss_name == "bernoulli":
            p = jnp.clip(jax.nn.sigmoid(logits[:, 0]), _BERNOULLI_CLAMP, 1.0 - _BERNOULLI_CLAMP)
            return -jnp.where(targets > 0, jnp.log(p), jnp.log(1.0 - p))
        known = ~jnp.isnan(targets)
        y = jnp.where(known, targets, 0.0)
        per_class = -(y * jax.nn.log_sigmoid(logits) + (1.0 - y) * jax.nn.log_sigmoid(-logits))
        return jnp.sum(jnp.where(known, per_class, 0.0), axis=1) / jnp.maximum(jnp.sum(known, axis=1), 1)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Logits [..., num_outputs] -> probabilities [..., C], numpy float64, on the host.

        Cross entropy: softmax. Binary cross entropy: one sigmoid per class (rows need not sum to 1). Bernoulli:
        (1 - p, p) with p the sigmoid of the one output.
        """
        logits = np.asarray(logits, np.float64)
        if self.loss_name == "cross_entropy":
            return softmax(logits, axis=-1)
        if self.loss_name == "bernoulli":
            return np.concatenate([expit(-logits), expit(logits)], axis=-1)
        return expit(logits)

    def metrics(self, probabilities: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Metrics of M bags (`tasks/metrics.py` defines each); NaN where undefined, never an exception or a warning."""
        if self.multi_label:
            return measures.multi_label(probabilities, targets, self.classes)
        return measures.single_label(probabilities, self.class_index(targets))

    def monitor(self, select: str, probabilities: np.ndarray, targets: np.ndarray) -> float:
        """The number that chooses epochs, cheap enough for every epoch and run; `HIGHER_IS_BETTER` gives its sense.

        `val_loss` is the task's loss without class weights and smoothing; `val_auc` the (macro one-vs-rest) AUC.
        Raises ConfigError for another name.
        """
        if select == "val_auc":
            if self.multi_label:
                return measures.macro_auc_multi_label(probabilities, targets)
            return measures.macro_auc(probabilities, self.class_index(targets))
        if select == "val_loss":
            return self._loss_of_probabilities(probabilities, targets)
        raise ConfigError(f"train.select={select!r} is no monitor; choose one of {', '.join(HIGHER_IS_BETTER)}")

    def _loss_of_probabilities(self, probabilities: np.ndarray, targets: np.ndarray) -> float:
        if self.loss_name == "binary_cross_entropy":
            return measures.binary_log_loss(probabilities, targets)
        clamp = _BERNOULLI_CLAMP if self.loss_name == "bernoulli" else measures.EPSILON
        return measures.log_loss(np.clip(probabilities, clamp, 1 - clamp), self.class_index(targets))

    def enough_cases(self, targets: np.ndarray) -> bool:
        """Whether each class has 10 validation cases, which a chosen threshold and the AUC as a monitor need."""
        return bool(np.all(self._counts(targets) >= MIN_CASES_PER_CLASS))

    def choose_thresholds(self, probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Decision thresholds [C] by Youden's index (the largest tpr - fpr) on validation cases; NaN = none chosen.

        For two classes only the positive class has one; for more classes of a single label there is none. With fewer
        than 10 cases of a class (multi-label: positive or negative ones) there is none either.
        """
        thresholds = np.full(self.num_classes, np.nan)
        if self.multi_label:
            for c in range(self.num_classes):
                known = ~np.isnan(targets[:, c])
                positive = targets[known, c] > 0
                if min(np.sum(positive), np.sum(~positive)) >= MIN_CASES_PER_CLASS:
                    thresholds[c] = measures.youden_threshold(probabilities[known, c], positive)
        elif self.num_classes == 2 and self.enough_cases(targets):
            index = self.class_index(targets)
            thresholds[1] = measures.youden_threshold(probabilities[index >= 0, 1], index[index >= 0] == 1)
        return thresholds

    def threshold_metrics(
        self, probabilities: np.ndarray, targets: np.ndarray, thresholds: np.ndarray
    ) -> dict[str, float]:
        """`accuracy_at_threshold`, `balanced_accuracy_at_threshold` and `f1_at_threshold`.

        Empty unless a threshold was chosen (multi-label: for every class).
        """
        chosen = thresholds if self.multi_label else thresholds[1:]
        if np.isnan(chosen).any() or not np.isfinite(probabilities).all():
            return {}
        if self.multi_label:
            decided = measures.multi_label_decisions(probabilities >= thresholds, targets)
        else:
            decisions = (probabilities[:, 1] >= thresholds[1]).astype(np.int64)
            decided = measures.single_label_decisions(decisions, self.class_index(targets), 2)
        return {f"{name}_at_threshold": decided[name] for name in ("accuracy", "balanced_accuracy", "f1")}

    def require_all_classes(self, targets: np.ndarray, run: str) -> None:
        """Raises DataError naming the class when one is absent from the training part of `run` ("fold 2, seed 0")."""
        for name, count in zip(self.classes, self._counts(targets)):
            if count == 0:
                what = "has either no case with or no case without" if self.multi_label else "has no case of"
                remedy = "use fewer folds, other splits, or leave the class out"
                raise DataError(f"{run}: the training part {what} class {name!r}; {remedy}")

    def class_weights(self, targets: np.ndarray) -> np.ndarray:
        """Inverse-frequency weights [C] float32 of training targets, M / (C * cases of the class).

        A class without a case gets 0. A bag's loss weight is `class_weights[class_index]`.
        """
        counts = self._class_counts(targets)
        weights = np.sum(counts) / (self.num_classes * np.maximum(counts, 1))
        return np.where(counts > 0, weights, 0.0).astype(np.float32)

    def sampling_weights(self, targets: np.ndarray) -> np.ndarray:
        """Probability [M] float64 of drawing each bag so that all classes come equally often; 0 = unlabelled."""
        index = self.class_index(targets)
        counts = self._class_counts(targets)
        weights = np.where(index >= 0, 1.0 / np.maximum(counts[index], 1), 0.0)
        return weights / max(np.sum(weights), 1e-300)

    def frequencies(self, targets: np.ndarray) -> np.ndarray:
        """Share [C] of the labelled bags in each class (multi-label: with each label); NaN where no bag is labelled."""
        if not self.multi_label:
            counts = self._class_counts(targets)
            return counts / counts.sum() if counts.sum() else np.full(self.num_classes, np.nan)
        known = np.sum(~np.isnan(targets), axis=0)
        return np.where(known > 0, np.sum(targets > 0, axis=0) / np.maximum(known, 1), np.nan)

    def _class_counts(self, targets: np.ndarray) -> np.ndarray:
        index = self.class_index(targets)
        return np.bincount(index[index >= 0], minlength=self.num_classes)

    def _counts(self, targets: np.ndarray) -> np.ndarray:
        """Cases per class [C]; multi-label: the smaller of positive and negative cases of each class."""
        if self.multi_label:
            return np.minimum(np.sum(targets > 0, axis=0), np.sum(targets == 0, axis=0))
        return self._class_counts(targets)


def _text(value: Any) -> str | None:
    """A label as text, so that 1, 1.0, True and "1" name one class; None when missing."""
    if value is None or value is pd.NA or (isinstance(value, float | np.floating) and np.isnan(value)):
        return None
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value).strip() or None
