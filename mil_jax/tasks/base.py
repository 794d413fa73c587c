"""What a task is: from a label table to targets, a loss on the device, and numbers for people on the host.

A task is a frozen dataclass. What it learns from one run's training part (bins of survival times, a median risk) are fields of it,
too, empty until then: `fit_targets` gives them, `dataclasses.replace` sets them, also inside a step, where they are traced. The loss
couples the bags of a step if it likes to; the mean of per-bag losses is only the usual case.

Reports and evaluation ask the task for everything: `probabilities`, `metrics`, `weighted_metrics` for resamples, `target_table` and
`output_names` for the columns of predictions.csv.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd

from mil_jax.bags import Prediction
from mil_jax.data.cohort.settings import CohortSettings
from mil_jax.errors import ConfigError
from mil_jax.tasks.metrics.within_folds import Ranking
from mil_jax.types import Array

METRIC_LABELS = {
    "auc": "AUC",
    "average_precision": "average precision",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "cohen_kappa": "Cohen's kappa",
    "quadratic_kappa": "quadratic kappa",
    "brier": "Brier",
    "expected_calibration_error": "ECE",
    "log_loss": "log loss",
    "subset_accuracy": "all labels right",
    "pathgene_auc": "AUC, PathGene's",
    "pathgene_accuracy": "all classes right, test threshold",
    "pathgene_f1": "F1, test threshold",
    "selection_score": "PathGene's score",
    "c_index": "C-index",
    "c_index_ipcw": "C-index, Uno",
    "dynamic_auc": "time-dependent AUC",
    "integrated_brier": "integrated Brier",
    "pearson": "Pearson r",
    "spearman": "Spearman rho",
    "r2": "R2",
    "mae": "MAE",
    "rmse": "RMSE",
}
LOWER_IS_BETTER = frozenset(
    {"brier", "expected_calibration_error", "log_loss", "integrated_brier", "mae", "rmse", "loss"}
)


def monitor_label(name: str, part: str = "validation") -> str:
    """ "val_auc" -> "validation AUC"."""
    metric = name.removeprefix("val_")
    return f"{part} {METRIC_LABELS.get(metric, metric)}"


def higher_is_better(monitor: str) -> bool:
    """The sense of a monitor such as "val_loss" or "val_auc"."""
    return monitor.removeprefix("val_") not in LOWER_IS_BETTER


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
    """See the module's docstring. M bags, B bags of a step, C outputs; `targets` [M, ...] as `targets()` makes them.

    name: as in `task.name`. losses: of `loss_name`, the usual one first. settings: the fields that are settings. numeric: by loss, those of
    them that are numbers inside a program, so that replicas may differ in them. run_fields: what one run's training part
    tells. main_metric: the one that tables lead with; `val_loss` and it, as `val_...`, can choose epochs.
    headline: the metrics of short tables. metric_names: those that `weighted_metrics` gives. joint: several target columns are one target
    of one model. reads_training: predictions for the training part are needed after training (`fit_predictions`).
    few_cases: why the main metric does not choose epochs where `enough_cases` says no. constant_name: what tables call `constant`.
    """

    name: ClassVar[str]
    losses: ClassVar[tuple[str, ...]]
    settings: ClassVar[tuple[str, ...]] = ("loss_name",)
    main_metric: ClassVar[str]
    headline: ClassVar[tuple[str, ...]]
    metric_names: ClassVar[tuple[str, ...]]
    numeric: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    run_fields: ClassVar[tuple[str, ...]] = ()
    joint: ClassVar[bool] = False
    reads_training: ClassVar[bool] = False
    few_cases: ClassVar[str] = "a fold has fewer than 10 validation cases of a class"
    constant_name: ClassVar[str] = "majority"

    @property
    @abc.abstractmethod
    def loss_name(self) -> str:
        """Which of `losses`; a field of each task."""

    @classmethod
    @abc.abstractmethod
    def for_labels(cls, labels: pd.DataFrame, cohort: CohortSettings, settings: Mapping[str, Any]) -> Self:
        """The task of these label columns; settings: fields by name. Raises ConfigError or DataError where they cannot be."""

    @property
    @abc.abstractmethod
    def num_outputs(self) -> int:
        """Outputs of the aggregator."""

    @property
    @abc.abstractmethod
    def output_names(self) -> tuple[str, ...]:
        """The columns of `probabilities`, as predictions.csv calls them."""

    @property
    def column_names(self) -> tuple[str, ...]:
        """Of targets of several columns, what the metrics of one column end with (`auc_EGFR`); empty for one column."""
        return ()

    @property
    def couples_bags(self) -> bool:
        """Whether the loss compares the bags of a step, so that one bag is not enough."""
        return False

    @property
    def monitors(self) -> tuple[str, ...]:
        """What can choose epochs."""
        return ("val_loss", f"val_{self.main_metric}")

    @abc.abstractmethod
    def targets(self, labels: pd.DataFrame) -> np.ndarray:
        """Label columns of bags (the index names them) -> targets. Raises DataError for a value that is none, naming the bag."""

    @abc.abstractmethod
    def known(self, targets: np.ndarray) -> np.ndarray:
        """bool [M]: the bags that have a label (one of several is enough)."""

    @property
    @abc.abstractmethod
    def strata_names(self) -> tuple[str, ...]:
        """What splits are stratified by, in words."""

    @abc.abstractmethod
    def strata(self, targets: np.ndarray) -> np.ndarray:
        """The same as numbers: int [M], -1 = unknown, or 0/1 columns [M, strata]."""

    def fit_targets(self, targets: np.ndarray) -> dict[str, np.ndarray]:
        """{field: float32 array} from the targets of a run's training part; none for most tasks."""
        del targets
        return {}

    def fit_predictions(self, logits: np.ndarray, targets: np.ndarray) -> Self:
        """The task with what it reads off the predictions [M, num_outputs] for its run's training part (`reads_training`)."""
        del logits, targets
        return self

    def of_run(self) -> dict[str, Any]:
        """What was learnt and settled, as lists and numbers; `dataclasses.replace(task, **of_run)` gives the task of the run again."""
        return {
            field.name: np.asarray(value).tolist()
            for field in dataclasses.fields(self)
            if field.name in self.run_fields and (value := getattr(self, field.name)) is not None
        }

    @abc.abstractmethod
    def loss(self, predictions: Prediction, targets: Array, weights: Array) -> Array:
        """A float32 scalar; logits [B, num_outputs], targets [B, ...], weights [B], 0 = no bag in this place, whose logits may be NaN."""

    @abc.abstractmethod
    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Logits [M, num_outputs] -> what is reported of each bag, float64 [M, len(output_names)], on the host."""

    @abc.abstractmethod
    def monitor(self, name: str, logits: np.ndarray, targets: np.ndarray) -> float:
        """One of `monitors`, cheap enough for every epoch and run; the loss without weights and smoothing."""

    @abc.abstractmethod
    def metrics(
        self, probabilities: np.ndarray, targets: np.ndarray, groups: np.ndarray | None = None
    ) -> dict[str, float]:
        """Metrics of M bags; NaN where undefined, never an exception or a warning.

        groups: [M], of bags whose predictions come from different models: a metric that ranks pairs of bags may compare within groups only.
        """

    @abc.abstractmethod
    def weighted_metrics(
        self, probabilities: np.ndarray, targets: np.ndarray, weights: np.ndarray, groups: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """{one of `metric_names`: [resamples]}; weights [resamples, M]: how often each bag was drawn. NaN where undefined."""

    def rankings(
        self, probabilities: np.ndarray, targets: np.ndarray, groups: np.ndarray, patients: np.ndarray
    ) -> list[Ranking]:
        """Of `auc`, whose mean it is, within groups [M]; patients: int [M]. Empty where it is undefined, and for tasks without it."""
        del probabilities, targets, groups, patients
        return []

    @abc.abstractmethod
    def constant(self, targets: np.ndarray) -> np.ndarray:
        """The best answer without looking at a bag, from training targets: [len(output_names)]."""

    def size_control(self, sizes: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """{metric: value} of the number of instances [M] alone as a prediction, in the better direction."""
        del sizes, targets
        return {}

    @abc.abstractmethod
    def enough_cases(self, targets: np.ndarray) -> bool:
        """Whether a validation part is large enough for the main metric to choose epochs."""

    @abc.abstractmethod
    def require_trainable(self, targets: np.ndarray, run: str) -> None:
        """Raises DataError where the training part of `run` ("fold 2") cannot be trained on."""

    def class_weights(self, targets: np.ndarray) -> np.ndarray:
        """Weights [C] float32 of classes. Raises ConfigError where there are none."""
        raise ConfigError(f"train.class_weights needs classes, and task.name={self.name} has none: leave it out")

    def sampling_weights(self, targets: np.ndarray) -> np.ndarray:
        """Probability [M] float64 of drawing each bag so that all strata come equally often; 0 = unlabelled."""
        strata = self.strata(targets)
        if strata.ndim != 1:
            raise ConfigError(
                f"train.balanced_sampling needs one class per bag, and task.name={self.name} has several: leave it out"
            )
        counts = np.bincount(strata[strata >= 0], minlength=len(self.strata_names))
        weights = np.where(strata >= 0, 1.0 / np.maximum(counts[strata], 1), 0.0)
        return weights / max(np.sum(weights), 1e-300)

    @abc.abstractmethod
    def target_table(self, targets: np.ndarray) -> pd.DataFrame:
        """Targets as columns for predictions.csv, called `target...`."""

    @abc.abstractmethod
    def targets_of(self, table: pd.DataFrame) -> np.ndarray:
        """The inverse of `target_table`; other columns of the table do not matter."""

    def choose_thresholds(self, probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray | None:
        """Decision thresholds from validation cases, or None for a task without decisions."""
        del probabilities, targets
        return None

    def threshold_metrics(
        self, probabilities: np.ndarray, targets: np.ndarray, thresholds: np.ndarray | None
    ) -> dict[str, float]:
        """`..._at_threshold`; empty without thresholds."""
        del probabilities, targets, thresholds
        return {}

    def _choose_loss(self) -> None:
        """For `__post_init__`: the usual loss where none is named. Raises ConfigError for one that is none of `losses`."""
        if not self.loss_name:
            object.__setattr__(self, "loss_name", self.losses[0])
        if self.loss_name not in self.losses:
            raise ConfigError(
                f"task.loss_name={self.loss_name!r} is not a loss of task.name={self.name}; choose one of {', '.join(self.losses)}"
            )


def fitted(task: Task, targets: np.ndarray) -> Task:
    """The task of a run, from the targets of its training part."""
    return dataclasses.replace(task, **task.fit_targets(targets))


def fields_of(columns: Sequence[str], table: pd.DataFrame) -> np.ndarray:
    """Columns of numbers, float64 [M, columns]."""
    return table[list(columns)].to_numpy(np.float64)
