"""How long an experiment will take, from the measured seconds of its parts and the order its bags will come in.

A forecast is arithmetic: epochs x (steps of each bucket x their seconds + evaluation + dispatches + host), and compilation and
reading once. It takes every run to its last epoch, so a run that stops early makes it too long.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mil_jax.data.loading.residency import STREAMED
from mil_jax.data.loading.windows import Dispatch
from mil_jax.data.splits.splits import TEST, TRAIN
from mil_jax.engine.bag_order import BagOrder, EpochOrder
from mil_jax.experiment.experiment import Experiment, engine_settings, sampling_weights, strategy
from mil_jax.profiling.program_cost import Bench, Measured, ProgramCost
from mil_jax.tasks.base import fitted

PARTS = ("steps", "evaluation", "dispatches", "host", "reading", "compilation")


@dataclass(frozen=True)
class BucketFigures:
    """A bucket: its length, the programs' costs, the measured seconds of a step and of an evaluated bag in every run."""

    length: int
    train: ProgramCost
    evaluate: ProgramCost
    step: Measured
    evaluation_seconds: float


@dataclass(frozen=True)
class EpochPlan:
    """One epoch's work. steps, evaluated, tested: int [R, buckets], bags of each run. slots: int [buckets], see `count_steps`.

    order_seconds: of drawing the order on the host. at_once: by bucket, steps that a program makes, though some of them be idle.
    """

    steps: np.ndarray
    slots: np.ndarray
    evaluated: np.ndarray
    tested: np.ndarray
    order_seconds: float
    order: EpochOrder
    at_once: list[int]


def plan_epoch(experiment: Experiment) -> EpochPlan:
    """Draws the first epoch's order as the engine would."""
    parts, bucket, config = experiment.parts, experiment.bucket, experiment.config
    settings, replicas = engine_settings(config), experiment.plan.replicas
    buckets = len(experiment.ladder.lengths)
    order = BagOrder(
        parts == TRAIN,
        bucket,
        buckets,
        batch_size=settings.batch_size,
        data_seed=settings.data_seed,
        steps_per_dispatch=settings.steps_per_dispatch,
        sampling=sampling_weights(experiment),
        row=experiment.row,
        order=settings.order,
    )
    begun = time.perf_counter()
    epoch = order.epoch(replicas, np.ones(len(replicas), bool), 0)
    seconds = time.perf_counter() - begun
    at_once = order.block_slots.tolist() if settings.vectorised else [1] * buckets
    steps, slots = count_steps(epoch.dispatches, at_once)

    def counts(part: int) -> np.ndarray:
        return np.stack([np.bincount(bucket[parts[experiment.row(r)] == part], minlength=buckets) for r in replicas])

    evaluated = counts(experiment.selection_part)
    if experiment.selection.monitor == "last":
        evaluated = np.zeros_like(evaluated)
    return EpochPlan(steps, slots, evaluated, counts(TEST), seconds, epoch, at_once)


def open_bench(experiment: Experiment, plan: EpochPlan) -> Bench:
    """The programs of the experiment, on features invented on the device."""
    return Bench(
        strategy(experiment),
        experiment.task,
        experiment.plan,
        experiment.ladder.lengths,
        engine_settings(experiment.config),
        experiment.shards.feature_shape,
        experiment.shards.dtype,
        np.stack([target.values for target in experiment.targets]),
        plan.order,
        plan.at_once,
        experiment.first_row,
        experiment.config.data.neighbors,
        experiment.shards.num_parts,
        experiment.covariates.values if experiment.covariates else None,
    )


def count_steps(dispatches: Sequence[Dispatch], at_once: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(steps of each run by bucket [R, buckets]; slots by bucket [buckets], as many as the run with most steps has in each dispatch).

    at_once: by bucket, of how many slots a dispatch has a multiple.
    """
    steps, slots = np.zeros((len(dispatches[0][1]), len(at_once)), np.int64), np.zeros(len(at_once), np.int64)
    for number, lo, hi in dispatches:
        steps[:, number] += hi - lo
        slots[number] += -(-(hi - lo).max() // at_once[number]) * at_once[number]
    return steps, slots


def time_host(experiment: Experiment, plan: EpochPlan, bench: Bench) -> float:
    """Seconds that the host needs between two epochs: order, schedules, and judging the validation outputs of all runs."""
    seconds = plan.order_seconds + bench.time_laying_out()
    held_out = np.flatnonzero(experiment.parts[0] == experiment.selection_part)
    if not plan.evaluated.any():
        return seconds
    task = experiment.task
    logits = np.random.default_rng(0).standard_normal((len(held_out), task.num_outputs)).astype(np.float32)
    values = experiment.targets[0].values
    task = fitted(task, values[experiment.parts[0] == TRAIN])
    begun = time.perf_counter()
    for name in task.monitors:
        task.monitor(name, logits, values[held_out])
    return seconds + len(plan.steps) * (time.perf_counter() - begun)


@dataclass(frozen=True)
class Forecast:
    """seconds: by part (PARTS), of the whole config. epoch_seconds: of one epoch. bags: steps times bags of all runs in an epoch.

    padding_share, idle_share: of the time of the steps, spent on padding, and by runs (or devices) that have nothing to do.
    """

    seconds: dict[str, float]
    epoch_seconds: float
    bags: int
    instances: int
    padding_share: float
    idle_share: float

    @property
    def total(self) -> float:
        """Seconds in all."""
        return sum(self.seconds.values())


def busiest(work: np.ndarray, slots: np.ndarray, seconds: np.ndarray, bench: Bench) -> float:
    """Seconds on the device that has most to do.

    work: [R, buckets] steps of each run. slots: [buckets], of a device where runs go side by side. seconds: [buckets] of a step of
    every run.
    """
    if bench.engine.vectorised:
        return float(slots @ seconds)
    per_device = bench.engine.placement.per_device
    of_run = work @ (seconds / per_device)
    return max(float(of_run[first : first + per_device].sum()) for first in range(0, len(work), per_device))


def time_dispatch(bench: Bench, figures: list[BucketFigures], seconds: float) -> float:
    """Seconds that a dispatch takes beside its steps, from the beginning of an epoch as training sends it.

    At most what a dispatch without steps takes that is waited for; where one step is longer than `seconds`, that. Where runs go side by
    side there is no dispatch without steps: no limit, or 0.
    """
    step_seconds = np.array([bucket.step.seconds for bucket in figures])
    idle = np.median([bucket.step.idle_seconds for bucket in figures])
    if step_seconds.min() > seconds:
        return float(idle)
    taken, runs = bench.time_order(seconds)
    beside = max(taken - busiest(*count_steps(runs, bench.at_once), step_seconds, bench), 0.0) / len(runs)
    return beside if bench.engine.vectorised else min(beside, float(idle))


def forecast(
    experiment: Experiment,
    plan: EpochPlan,
    bench: Bench,
    figures: list[BucketFigures],
    *,
    dispatch: float,
    around_evaluation: float,
    host: float,
    reading: float,
) -> Forecast:
    """See the module's docstring. dispatch: seconds of one beside its steps. host, around_evaluation: seconds an epoch.

    reading: seconds of reading the cohort once; of a streamed one, those of reading every run's bags of an epoch, beside the steps.
    """
    epochs, batch = experiment.config.train.epochs, experiment.config.train.batch_size
    step_seconds = np.array([bucket.step.seconds for bucket in figures])
    evaluation_seconds = np.array([bucket.evaluation_seconds for bucket in figures])
    steps = busiest(plan.steps, plan.slots, step_seconds, bench)
    evaluation = busiest(plan.evaluated, plan.evaluated.max(axis=0), evaluation_seconds, bench)
    final = busiest(plan.tested, plan.tested.max(axis=0), evaluation_seconds, bench) + evaluation
    around = around_evaluation if plan.evaluated.any() else 0.0
    dispatches = len(plan.order.dispatches) * dispatch
    seconds = {
        "steps": epochs * steps,
        "evaluation": epochs * evaluation + final,
        "dispatches": epochs * dispatches,
        "host": epochs * (host + around),
        "reading": epochs * max(reading - steps - evaluation, 0.0)
        if experiment.residency.kind == STREAMED
        else reading,
        "compilation": sum(bucket.train.compile_seconds + bucket.evaluate.compile_seconds for bucket in figures),
    }
    once = final + seconds["compilation"] + (0.0 if experiment.residency.kind == STREAMED else reading)
    sizes = experiment.cohort.bags["num_instances"].to_numpy()
    in_use = plan.steps.sum(axis=0) * step_seconds
    lengths = np.array([bucket.length for bucket in figures])
    filled = np.array(
        [sizes[experiment.bucket == b].mean() if (experiment.bucket == b).any() else 0 for b in range(len(figures))]
    )
    runs, devices = len(plan.steps), bench.engine.placement.places
    idle = 1.0 - runs / (bench.engine.placement.per_device * devices)
    if bench.engine.vectorised:
        idle = 1.0 - float(in_use.sum()) / max(runs * float(plan.slots @ step_seconds), 1e-30)
    return Forecast(
        seconds=seconds,
        epoch_seconds=(sum(seconds.values()) - once) / epochs,
        bags=int(plan.steps.sum()) * batch,
        instances=int(plan.steps.sum(axis=0) @ filled) * batch,
        padding_share=float(in_use @ (1 - filled / lengths) / max(in_use.sum(), 1e-30)),
        idle_share=idle,
    )
