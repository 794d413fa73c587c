"""Survival: time to an event, with censoring. Discrete hazards over bins of time, or Cox's proportional hazards.

Bins are quantiles of the times at which patients of the run's own training part died. Cox's likelihood couples the bags of a step, so it
needs `train.batch_size` above 1; its survival curves come from Breslow's baseline hazard, fitted to the predictions for the training part
after training. Risk groups are divided at the median predicted risk of the training part. Metrics: `tasks/metrics/survival.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax.numpy as jnp
import numpy as np
import pandas as pd
from scipy.special import log_expit, logsumexp

from mil_jax.bags import Prediction
from mil_jax.data.cohort.settings import CohortSettings
from mil_jax.errors import ConfigError, DataError
from mil_jax.tasks.base import Task, fields_of
from mil_jax.tasks.losses import at_least_float32, mean_over_present
from mil_jax.tasks.metrics import survival as measures
from mil_jax.tasks.metrics.kaplan_meier import kaplan_meier
from mil_jax.tasks.survival_losses import cox, discrete_ce, discrete_nll
from mil_jax.types import AnyArray, Array

MIN_EVENTS = 10
NUM_TIMES = 10  # at which survival is reported
_TRUE, _FALSE = ("1", "true", "yes"), ("0", "false", "no")


def bin_edges(time: np.ndarray, event: np.ndarray, bins: int) -> np.ndarray:
    """[bins + 1]: quantiles of the times of events, the outer ones moved to just outside of all times."""
    edges = np.quantile(time[event.astype(bool)], np.linspace(0, 1, bins + 1))
    edges[0], edges[-1] = time.min() - 1e-6, time.max() + 1e-6
    return edges


def bin_of(time: Any, edges: Any) -> Any:
    """The bin of each time, closed on the left: edge_b <= t < edge_{b+1}; times outside belong to the outer bins."""
    return (time[..., None] >= edges[1:-1]).sum(-1)


@dataclasses.dataclass(frozen=True)
class Survival(Task):
    """The task of saying who dies sooner. Targets are float64 [M, 2]: time, event (1 = it happened, 0 = censored), NaN = unknown.

    column: of the times. times: at which survival is reported, and the Brier score and dynamic AUC computed.
    loss_name: "nll" or "ce" of discrete hazards in `bins` bins, or "cox". alpha: weight taken from the censored (nll), and from the cross
    entropy (ce); a number inside a program. ties: "breslow" or "efron", of Cox. bins_from: "training", or "cohort", as published code: a
    leak, as test patients have a say in the bins; they are `cohort_edges` then.
    Learnt from a run's training part: edges [bins + 1], of nll and ce; after training median_risk and, of Cox, log_baseline [G], the
    logarithm of the cumulative baseline hazard at `times`.
    Raises ConfigError when the settings cannot work together.
    """

    column: str
    times: tuple[float, ...]
    loss_name: str = ""
    bins: int = 4
    alpha: float | Array = 0.0
    ties: str = "breslow"
    bins_from: str = "training"
    cohort_edges: tuple[float, ...] = ()
    edges: AnyArray | None = None
    median_risk: float = np.nan
    log_baseline: tuple[float, ...] = ()

    name: ClassVar[str] = "survival"
    losses: ClassVar[tuple[str, ...]] = ("nll", "ce", "cox")
    settings: ClassVar[tuple[str, ...]] = ("loss_name", "bins", "alpha", "ties", "bins_from")
    numeric: ClassVar[Mapping[str, tuple[str, ...]]] = {"nll": ("alpha",), "ce": ("alpha",)}
    run_fields: ClassVar[tuple[str, ...]] = ("times", "edges", "median_risk", "log_baseline")
    main_metric: ClassVar[str] = "c_index"
    headline: ClassVar[tuple[str, ...]] = ("c_index", "c_index_ipcw", "dynamic_auc", "integrated_brier")
    metric_names: ClassVar[tuple[str, ...]] = headline
    joint: ClassVar[bool] = True
    reads_training: ClassVar[bool] = True
    constant_name: ClassVar[str] = "same curve for all"
    few_cases: ClassVar[str] = f"a fold has fewer than {MIN_EVENTS} validation cases with an event"

    def __post_init__(self) -> None:
        self._choose_loss()
        if self.ties not in ("breslow", "efron"):
            raise ConfigError(f"task.ties={self.ties!r} is unknown; choose one of breslow, efron")
        if self.bins_from not in ("training", "cohort"):
            raise ConfigError(f"task.bins_from={self.bins_from!r} is unknown; choose one of training, cohort")

    @classmethod
    def for_labels(cls, labels: pd.DataFrame, cohort: CohortSettings, settings: Mapping[str, Any]) -> Self:
        task = cls(labels.columns[0], (), **settings)
        targets = task.targets(labels)
        died = targets[targets[:, 1] > 0, 0]
        if not len(died):
            raise DataError(
                f"{cohort.labels}: no matched bag has an event in column {labels.columns[1]!r}; a survival task needs events "
                "(if 1 means censored there, name the column in data.censored instead of data.event)"
            )
        times = tuple(np.unique(np.quantile(died, np.linspace(0.1, 0.9, NUM_TIMES))))
        task = dataclasses.replace(task, times=times)
        if not task.bins_leak:
            return task
        whole = dataclasses.replace(task, bins_from="training").fit_targets(targets)["edges"]
        return dataclasses.replace(task, cohort_edges=tuple(whole.tolist()))

    @property
    def discrete(self) -> bool:
        """Whether there are bins."""
        return self.loss_name != "cox"

    @property
    def bins_leak(self) -> bool:
        """Whether test patients have a say in the bins."""
        return self.discrete and self.bins_from == "cohort"

    @property
    def couples_bags(self) -> bool:
        return not self.discrete

    @property
    def num_outputs(self) -> int:
        return self.bins if self.discrete else 1

    @property
    def output_names(self) -> tuple[str, ...]:
        """risk (larger = sooner), high_risk (1: above the training part's median), the survival at each of `times`."""
        return ("risk", "high_risk", *(f"survival_at_{time:.4g}" for time in self.times))

    @property
    def strata_names(self) -> tuple[str, ...]:
        return ("censored", "event")

    def strata(self, targets: np.ndarray) -> np.ndarray:
        return np.where(self.known(targets), np.nan_to_num(targets[:, 1]), -1).astype(np.int64)

    def known(self, targets: np.ndarray) -> np.ndarray:
        return ~np.isnan(targets).any(axis=1)

    def targets(self, labels: pd.DataFrame) -> np.ndarray:
        """Columns (time, event), as text or numbers -> float64 [M, 2]; a bag without a time or an event is unknown."""
        time = pd.to_numeric(labels.iloc[:, 0], errors="coerce").to_numpy(np.float64)
        event = labels.iloc[:, 1].map(_flag, na_action="ignore").to_numpy(np.float64)
        negative = np.flatnonzero(time < 0)
        if len(negative):
            raise DataError(f"bag {labels.index[negative[0]]}: the time {time[negative[0]]:g} is negative")
        return np.where(np.isnan(time + event)[:, None], np.nan, np.stack([time, event], axis=1))

    def fit_targets(self, targets: np.ndarray) -> dict[str, np.ndarray]:
        """{"edges"}. Raises DataError with too few events for the bins."""
        if not self.discrete:
            return {}
        if self.bins_leak:
            return {"edges": np.asarray(self.cohort_edges, np.float32)}
        time, event = targets[self.known(targets)].T
        edges = bin_edges(time, event, self.bins) if event.any() else np.zeros(0)
        if event.sum() < self.bins or (np.diff(edges) <= 0).any():
            raise DataError(
                f"column {self.column!r}: the {int(event.sum())} events of a training part do not fill task.bins={self.bins} bins of time; "
                "use fewer bins or fewer folds"
            )
        return {"edges": edges.astype(np.float32)}

    def fit_predictions(self, logits: np.ndarray, targets: np.ndarray) -> Self:
        known = self.known(targets)
        risk = self._risk(logits)
        fitted_task = dataclasses.replace(self, median_risk=float(np.median(risk)))
        if self.discrete:
            return fitted_task
        return dataclasses.replace(
            fitted_task, log_baseline=_breslow(risk[known], targets[known], np.array(self.times))
        )

    def loss(self, predictions: Prediction, targets: Array, weights: Array) -> Array:
        """The mean over bags; Cox: over the risk sets that the bags of the step form."""
        known = ~jnp.any(jnp.isnan(targets), axis=1)
        safe = jnp.where(known[:, None], targets, 0.0)
        time, event = safe[:, 0], safe[:, 1]
        if not self.discrete:
            present = (weights > 0) & known
            theta = jnp.where(present, at_least_float32(predictions.logits[:, 0]), 0.0)
            return cox(theta, time, event, present, ties=self.ties)
        if self.edges is None:
            raise ValueError("the task has not learnt its bins")
        label = bin_of(time, self.edges)
        per_bag = discrete_nll if self.loss_name == "nll" else discrete_ce
        return mean_over_present(
            lambda logits: per_bag(logits, label, event, self.alpha), predictions.logits, known, weights
        )

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """See `output_names`. Survival is that after the last bin that ends by the time; of Cox exp(-H0(t) exp(theta))."""
        logits = np.asarray(logits, np.float64)
        risk = self._risk(logits)
        if self.discrete:
            ended = (np.array(self.times)[:, None] >= np.asarray(self.edges)[1:]).sum(axis=1)  # [G]
            survival = np.concatenate([np.ones((len(logits), 1)), self._survival(logits)], axis=1)[:, ended]
        elif self.log_baseline:
            survival = np.exp(-np.exp(np.minimum(np.array(self.log_baseline) + risk[:, None], 700.0)))
        else:
            survival = np.full((len(logits), len(self.times)), np.nan)
        above = np.where(np.isnan(risk) | np.isnan(self.median_risk), np.nan, risk > self.median_risk)
        return np.concatenate([risk[:, None], above[:, None], survival], axis=1)

    def _survival(self, logits: np.ndarray) -> np.ndarray:
        """[M, bins], after each bin."""
        return np.exp(np.cumsum(log_expit(-logits), axis=1))

    def _risk(self, logits: np.ndarray) -> np.ndarray:
        logits = np.asarray(logits, np.float64)
        return -self._survival(logits).sum(axis=1) if self.discrete else logits[:, 0]

    def monitor(self, name: str, logits: np.ndarray, targets: np.ndarray) -> float:
        """`val_loss`; `val_c_index`: Harrell's."""
        known = self.known(targets)
        logits, targets = np.asarray(logits, np.float64)[known], targets[known]
        if not len(targets) or not np.isfinite(logits).all():
            return np.nan
        if name == "val_c_index":
            cases = _cases(self._risk(logits), targets, None)
            return float(measures.concordance(cases, np.ones((1, len(targets)))).harrell[0])
        return self._loss_on_host(logits, *targets.T)

    def _loss_on_host(self, logits: np.ndarray, time: np.ndarray, event: np.ndarray) -> float:
        """`loss` in float64."""
        if not self.discrete:
            at_risk = np.where(time[None, :] >= time[:, None], logits[:, 0], -np.inf)
            return float(np.sum(event * (logsumexp(at_risk, axis=1) - logits[:, 0])) / len(time))
        label, least = bin_of(time, np.asarray(self.edges)), np.log(1e-7)
        after = np.cumsum(log_expit(-logits), axis=1)
        rows = np.arange(len(label))
        before = np.where(label > 0, after[rows, label - 1], 0.0)
        hazard, beyond = np.maximum(log_expit(logits[rows, label]), least), np.maximum(after[rows, label], least)
        if self.loss_name == "nll":
            losses = -event * (np.maximum(before, least) + hazard) - (1 - self.alpha) * (1 - event) * beyond
        else:
            died = np.log(-np.expm1(np.minimum(beyond, -1e-30)))
            losses = -self.alpha * event * (np.log(np.exp(before) + 1e-7) + hazard)
            losses -= (1 - self.alpha) * ((1 - event) * beyond + event * died)
        return float(np.mean(losses))

    def metrics(
        self, probabilities: np.ndarray, targets: np.ndarray, groups: np.ndarray | None = None
    ) -> dict[str, float]:
        """Of `weighted_metrics` with every case once."""
        values = self.weighted_metrics(probabilities, targets, np.ones((1, len(targets))), groups)
        return {name: float(value[0]) for name, value in values.items()}

    def weighted_metrics(
        self, probabilities: np.ndarray, targets: np.ndarray, weights: np.ndarray, groups: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """C-indices and dynamic AUC compare within `groups` only: risks of different models have no common scale."""
        known = self.known(targets)
        groups = None if groups is None else np.asarray(groups)[known]
        cases = _cases(probabilities[known, 0], targets[known], groups)
        return measures.of_weights(cases, probabilities[known, 2:], np.array(self.times), weights[:, known])

    def constant(self, targets: np.ndarray) -> np.ndarray:
        """The same risk for all, and the survival of the training part as a whole."""
        time, event = targets[self.known(targets)].T
        return np.concatenate([[0.0, 0.0], kaplan_meier(time, event).at(np.array(self.times))[0]])

    def size_control(self, sizes: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        known = self.known(targets)
        cases = _cases(np.asarray(sizes[known], np.float64), targets[known], None)
        value = measures.concordance(cases, np.ones((1, len(cases.time)))).harrell[0]
        return {"c_index": float(max(value, 1 - value))}

    def enough_cases(self, targets: np.ndarray) -> bool:
        return bool(np.nansum(targets[:, 1]) >= MIN_EVENTS)

    def require_trainable(self, targets: np.ndarray, run: str) -> None:
        if not np.nansum(targets[:, 1]):
            raise DataError(f"{run}: the training part has no event; use fewer folds or other splits")
        try:
            self.fit_targets(targets)
        except DataError as error:
            raise DataError(f"{run}: {error}") from error

    def target_table(self, targets: np.ndarray) -> pd.DataFrame:
        """`target_time`, `target_event`."""
        return pd.DataFrame({"target_time": targets[:, 0], "target_event": targets[:, 1]})

    def targets_of(self, table: pd.DataFrame) -> np.ndarray:
        return fields_of(["target_time", "target_event"], table)


def _cases(risk: np.ndarray, targets: np.ndarray, groups: np.ndarray | None) -> measures.Cases:
    groups = np.zeros(len(targets), np.int64) if groups is None else groups
    return measures.Cases(targets[:, 0], targets[:, 1] > 0, np.asarray(risk, np.float64), groups)


def _breslow(theta: np.ndarray, targets: np.ndarray, times: np.ndarray) -> tuple[float, ...]:
    """The logarithm of the cumulative baseline hazard at each time: of the sum over deaths until then of 1 / sum of risks."""
    time, event = targets.T
    deaths = np.flatnonzero(event > 0)
    at_risk = np.where(time[None, :] >= time[deaths, None], theta, -np.inf)
    terms = np.where(time[deaths][:, None] <= times, -logsumexp(at_risk, axis=1)[:, None], -np.inf)
    return tuple(logsumexp(terms, axis=0).tolist())


def _flag(value: Any) -> float:
    """1, true, yes -> 1. Raises DataError for what is neither."""
    text = str(int(value)) if isinstance(value, bool | int | float | np.number) else str(value).strip().lower()
    if text not in _TRUE + _FALSE:
        raise DataError(f"{value!r} in the event column is neither 0 nor 1")
    return float(text in _TRUE)
