"""Linear probes: the exact minimum of the task's loss on mean features, for a path of regularization strengths, chosen on validation.

Whatever the task, its loss over ALL training bags at once is minimised by L-BFGS in float64: logistic regression, ridge, discrete hazards,
Cox with the risk sets of the whole training part. Covariates are further features. All are scaled by the training bags' standard
deviations, which go into the weights afterwards, so the result is a plain `linear` aggregator. Each strength counts as an epoch; the
strongest comes first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from mil_jax.bags import Prediction
from mil_jax.data.cohort import covariates
from mil_jax.data.splits.splits import TEST, TRAIN
from mil_jax.data.tables import listed
from mil_jax.engine.callbacks import Callback, TrainingInterrupted
from mil_jax.engine.checkpoints import Checkpoints
from mil_jax.engine.early_stopping import Progress
from mil_jax.engine.types import FitResult
from mil_jax.errors import ConfigError
from mil_jax.experiment.experiment import Experiment
from mil_jax.interop.feature_files import counted
from mil_jax.strategies.base import TrainingBags
from mil_jax.strategies.linear_probe_settings import PROBE, LinearProbeSettings
from mil_jax.strategies.supervised import COVARIATES
from mil_jax.tasks.base import Task, fitted
from mil_jax.types import Array

_MOST_STEPS = 2000


@dataclass(frozen=True)
class ProbeFitter:
    """A `Fitter`; nothing is held in memory, and nothing is saved before the end."""

    experiment: Experiment
    embedded_note = "Embedded digits."

    def check(self) -> None:
        config = self.experiment.config
        _strengths(self.experiment)
        wanted = {
            "aggregator.name": (config.aggregator.name, "linear"),
            "data.normalize": (config.data.normalize, "none"),
            "train.num_seeds": (config.train.num_seeds, 1),
            "train.class_weights": (config.train.class_weights, False),
            "train.balanced_sampling": (config.train.balanced_sampling, False),
        }
        for name, (value, only) in wanted.items():
            if value != only:
                raise ConfigError(
                    f"{name}={value} does not go with strategy.name={PROBE}, which is exact: set it to {only}"
                )
        if self.experiment.selection.monitor == "last":
            raise ConfigError(
                f"strategy.name={PROBE} chooses its strength on validation: set train.monitor to val_loss"
            )

    def describe(self, factors: str, monitor: str) -> Iterator[str]:
        runs = counted(len(self.experiment.plan.replicas), "linear probe")
        yield f"{runs} ({factors}), each for {len(_strengths(self.experiment))} regularization strengths"
        yield monitor.replace("the epoch", "the strength")

    def read(self, *, compiling: bool = False) -> None:
        """Every bag is read once, while its mean is taken."""

    def fit(
        self,
        listener: Callback,
        open_checkpoints: Callable[[str], Checkpoints] | None = None,
        keep_choices: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> FitResult:
        return fit_probes(self.experiment, listener)

    def notes(self, result: FitResult) -> list[str]:
        strengths = _strengths(self.experiment)
        chosen = [
            f"{self.experiment.run_name(run)}: {strengths[place]:g}"
            for run, place in zip(self.experiment.plan.replicas, result.progress.best_epoch)
        ]
        return [
            "Linear probes on mean features: what curves call an epoch is a regularization strength, the strongest first; chosen: "
            f"{listed(chosen, 10)}."
        ]


def fit_probes(experiment: Experiment, listener: Callback) -> FitResult:
    """The runs of the experiment, sequentially. Raises TrainingInterrupted when asked to stop; nothing is saved before the end."""
    config, plan = experiment.config, experiment.plan
    strengths = _strengths(experiment)
    features = mean_features(experiment)
    width, extra = features.shape[1], experiment.covariates
    logits, parameters = [], []
    rows: list[list[dict[str, Any]]] = [[] for _ in strengths]
    listener.phase(PROBE, 0, len(strengths))
    for r, replica in enumerate(plan.replicas):
        values, parts = experiment.targets[replica.target].values, experiment.parts[experiment.row(replica)]
        training, chooses = parts == TRAIN, parts == experiment.selection_part
        task = fitted(experiment.task, values[training])
        x, path = features, []
        if extra:
            fit = covariates.fitted(extra.values[training])
            x = np.concatenate([features, covariates.standardised(extra.values, fit)], axis=1)
        for place, (kernel, bias, loss) in enumerate(_path(task, x, values, training, strengths)):
            out = x @ kernel + bias
            row = {"phase": PROBE, "epoch": place, "replica": r, "fold": replica.fold, "seed": replica.seed}
            row |= {"target": replica.target, "steps": int(training.sum()), "train_loss": loss}
            row |= {name: task.monitor(name, out[chooses], values[chooses]) for name in task.monitors}
            rows[place].append(row)
            path.append((kernel, bias, out))
            listener.steps(row["steps"] // config.train.batch_size)
            if listener.stop_requested():
                raise TrainingInterrupted
        logits.append([out for *_, out in path])
        parameters.append(path)
    progress = Progress.start(len(plan.replicas), experiment.selection)
    for place, of_strength in enumerate(rows):
        losses = np.array([row["train_loss"] for row in of_strength])
        scores = np.array([row[experiment.selection.monitor] for row in of_strength])
        improved = progress.update(place, losses, scores, dataclasses.replace(experiment.selection, patience=0))
        for row, better in zip(of_strength, improved):
            row["improved"] = bool(better)
        listener.epoch(of_strength)
    return _result(experiment, logits, parameters, progress, width)


def _strengths(experiment: Experiment) -> list[float]:
    """The strongest first."""
    settings = LinearProbeSettings(strengths=tuple(experiment.config.strategy.strengths))
    return sorted(settings.strengths, reverse=True)


def mean_features(experiment: Experiment) -> np.ndarray:
    """The mean instance of every bag, [M, D] float64; each record's checksum is verified."""
    shards, slides = experiment.shards, experiment.cohort.slides
    means = np.zeros((len(slides), *shards.feature_shape))
    for bag, numbers in enumerate(slides):
        for number in map(int, numbers):
            shards.verify(number)
            rows = np.empty((int(shards.num_instances[number]), *shards.feature_shape), shards.dtype)
            shards.read_features(number, rows)
            means[bag] += rows.astype(np.float64).sum(axis=0)
        means[bag] /= max(int(shards.num_instances[numbers].sum()), 1)
    return means


def _path(task: Task, features: np.ndarray, values: np.ndarray, training: np.ndarray, strengths: list[float]) -> Any:
    """(kernel [D, C], bias [C], training loss) for each strength, each begun with the one before."""
    center = features[training].mean(axis=0)
    spread = features[training].std(axis=0)
    scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)
    with jax.enable_x64(True):
        objective = _objective(task, (features - center) * scale, values, training)
        point = np.zeros((features.shape[1] + 1) * task.num_outputs)
        for strength in strengths:
            found = minimize(
                lambda x, strength=strength: objective(x, strength),
                point,
                jac=True,
                method="L-BFGS-B",
                options={"maxiter": _MOST_STEPS, "maxfun": 2 * _MOST_STEPS, "ftol": 1e-13, "gtol": 1e-8},
            )
            point = found.x
            weights = point.reshape(-1, task.num_outputs)
            kernel = weights[:-1] * scale[:, None]
            loss = float(found.fun - 0.5 * strength * np.sum(weights[:-1] ** 2))
            yield kernel, weights[-1] - center @ kernel, loss


def _objective(
    task: Task, scaled: np.ndarray, values: np.ndarray, training: np.ndarray
) -> Callable[[np.ndarray, float], tuple[float, np.ndarray]]:
    x, targets, present = jnp.asarray(scaled), jnp.asarray(values), jnp.asarray(training.astype(np.float64))

    @jax.jit
    def both(point: Array, strength: Array) -> tuple[Array, Array]:
        def penalised(point: Array) -> Array:
            weights = point.reshape(-1, task.num_outputs)
            logits = x @ weights[:-1] + weights[-1]
            return task.loss(Prediction(logits=logits), targets, present) + 0.5 * strength * jnp.sum(weights[:-1] ** 2)

        return jax.value_and_grad(penalised)(point)

    def on_host(point: np.ndarray, strength: float) -> tuple[float, np.ndarray]:
        value, gradient = jax.device_get(both(jnp.asarray(point), jnp.asarray(strength)))
        return float(value), np.asarray(gradient, np.float64)

    return on_host


def _result(
    experiment: Experiment, logits: list[Any], parameters: list[Any], progress: Progress, width: int
) -> FitResult:
    """What the engine would return, with the chosen strength of each run. width: of features; further rows of kernels are covariates'."""
    best = [max(int(place), 0) for place in progress.best_epoch]
    parts_of_run, bags_of_run, constants = [], [], []

    def no_moments() -> tuple[np.ndarray, np.ndarray]:
        raise AssertionError("features are scaled by the probe itself")

    for r, replica in enumerate(experiment.plan.replicas):
        parts = experiment.parts[experiment.row(replica)]
        wanted = {"val": experiment.selection_part, "test": TEST, "train": TRAIN}
        bags = {name: np.flatnonzero(parts == part) for name, part in wanted.items() if (parts == part).any()}
        bags_of_run.append(bags)
        parts_of_run.append({name: logits[r][best[r]][rows] for name, rows in bags.items()})
        values, extra = experiment.targets[replica.target].values[parts == TRAIN], experiment.covariates
        training = TrainingBags(values, no_moments, extra.values[parts == TRAIN] if extra else None)
        constants.append(experiment.phases[-1].strategy.constants(training))
    kernels, biases = (
        np.stack([parameters[r][place][part] for r, place in enumerate(best)]).astype(np.float32) for part in (0, 1)
    )
    params = {"classifier": {"kernel": kernels[:, :width], "bias": biases}}
    if experiment.covariates:
        params[COVARIATES] = {"kernel": kernels[:, width:]}
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *constants)
    facts = {"compilations": len(experiment.plan.replicas), "fetches": 0, "feature_bytes": 0}
    return FitResult(parts_of_run, bags_of_run, (params, stacked), progress, facts)
