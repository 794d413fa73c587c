"""The replica engine: all runs of a plan (folds x seeds x numeric settings) as one program on a cohort in device memory.

One step is one batch of B bags per replica. Between two epochs the host sees the validation outputs, decides, and sends two masks
back; nothing else leaves the device. Programs are compiled once per bucket (`engine/programs.py`); orders and schedules are
drawn on the host from the plan alone (`engine/bag_order.py`), so a run is the same alone, together with others, and resumed. What is
done with it: `engine/fit.py` goes through the phases, `engine/epoch_loop.py` through the epochs of one.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from mil_jax.data.loading.feature_moments import moments
from mil_jax.data.loading.resident import Window
from mil_jax.engine import array_shapes, programs
from mil_jax.engine.bag_order import BagOrder, EpochOrder
from mil_jax.engine.distributed import Vote
from mil_jax.engine.plan import Plan
from mil_jax.engine.predictor import Predictor
from mil_jax.engine.programs import EpochInputs, StepCarry, StepInputs
from mil_jax.engine.types import AnalysisPhase, AnyPhase, EngineData, EngineSettings, Phase
from mil_jax.strategies.base import Analysis, Strategy, TrainState
from mil_jax.tasks.base import Task
from mil_jax.types import PyTree


class Engine(Predictor):
    """What training is made of: `begin` a phase, `lay_out` the order of an epoch, `dispatch` its steps, `evaluate` a part."""

    data: EngineData

    def __init__(self, data: EngineData, task: Task, plan: Plan, settings: EngineSettings) -> None:
        self.task = task
        self.order = BagOrder(
            data.training,
            data.bucket,
            len(data.lengths),
            batch_size=settings.batch_size,
            data_seed=settings.data_seed,
            steps_per_dispatch=settings.steps_per_dispatch,
            sampling=data.sampling,
            row=data.row,
            order=settings.order,
            blocks=settings.blocks,
        )
        parts = {"val": data.selection, "test": data.test}
        if task.reads_training:
            parts["train"] = data.training
        first = functools.partial(self.order.epoch, plan.replicas, np.ones(len(plan.replicas), bool), 0)
        super().__init__(data, task.num_outputs, plan, settings, parts, first)
        self.steps["train"] = self._within_windows(self.order.block_slots.tolist())
        self.targets = self.placement.replicate(data.targets)
        self.vote = Vote()
        self._kept = settings.side_by_side

    def fitted(self, strategy: Strategy | Analysis) -> PyTree:
        """(hyper, constants) of every replica; what is fitted to a training part is computed once for all its replicas."""
        constants: dict[int, PyTree] = {}
        for row, replica in zip(self.rows, self.plan.replicas):
            if row not in constants:
                constants[row] = strategy.constants(
                    self.data.training_bags(replica, functools.partial(self._moments_of, row))
                )
        per_replica = [constants[row] for row in self.rows]
        stacked = jax.tree.map(lambda *rows: np.stack(rows), *per_replica)
        return self.shard((self.plan.stacked_hyper(), stacked))

    @functools.cached_property
    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the training bags of every row of the split table, from one pass over them."""
        numbers = np.flatnonzero(self.data.training.any(axis=0))
        return moments(self.loader.instances(numbers), self.data.training)

    def _moments_of(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        return self._moments[0][row], self._moments[1][row]

    def compile_ahead(self, phase: AnyPhase, previous: TrainState | None = None) -> None:
        """Starts to compile the programs of a phase, unless that was done; no bag is read for it."""
        if isinstance(phase, AnalysisPhase):
            return  # it needs what the phase before ended with
        strategy, plan, batch_size = phase.strategy, self.plan, self.settings.batch_size
        self.prepare(strategy)
        if self.programs.compilations:
            return
        cohort, length = self.cohort(self.loader.shapes(0)), self.data.lengths[0]
        tile = cohort.bags.features.shape[1 if cohort.bags.part_mask is None else 2 :]  # what moments are of
        rows, sharding = len(self.ids.target), self.ids.target.sharding
        fitted = array_shapes.fitted_shapes(strategy, plan, self.data, rows, tile)
        first = functools.partial(programs.initial, strategy, length)
        state = jax.eval_shape(first, cohort, self.ids, fitted, previous, self.placement.count)
        carry = array_shapes.carry_shapes(strategy, plan, state, cohort, length, batch_size, sharding)
        epoch = array_shapes.epoch_shapes(strategy, plan, rows, self.order.max_steps, batch_size, sharding)
        self.compile(phase, np.flatnonzero(self.order.slot_counts).tolist(), carry, epoch)

    def compile(self, phase: Phase, train: list[int], carry: StepCarry, epoch: EpochInputs) -> None:
        """Starts to compile what is not compiled yet: training programs of the buckets `train`, evaluation of all. carry, epoch: arrays
        or shapes.
        """
        whole = len(self.placement.members) == self.num_replicas
        between = self.data.selection.any(axis=0) & (whole or phase.selection.monitor != "last")
        seen = between | (np.any([part.any(axis=0) for part in self.parts.values()], axis=0) & whole)
        evaluate = np.unique(self.data.bucket[seen]).tolist()
        inputs = StepInputs(self.ids, epoch, self.ends_shape)
        logits = self.longest_part, self.num_outputs
        self.programs.compile_ahead(train, evaluate, self.cohort_shapes(), carry, inputs, logits, self.placement.count)

    def settle_chunks(self, keep_choices: Callable[[Mapping[str, Any]], None]) -> None:
        """Waits until it is known how many replicas go side by side, and keeps that."""
        self.programs.decide()
        if self.side_by_side != self._kept:
            keep_choices({"runs_side_by_side": self.side_by_side})
            self._kept = copy.deepcopy(self.side_by_side)

    def begin(self, strategy: Strategy, previous: TrainState | None) -> StepCarry:
        """The initial states, whose shapes are taken from bag 0."""
        self.prepare(strategy)
        dispatch = int(self.data.bucket[0]), np.zeros(1, np.int32), np.ones(1, np.int32)
        fitted = self.fitted(strategy)
        for window in self.loader.windows(np.zeros((1, 1, 1), np.int32), [dispatch]):
            cohort = self.cohort(window.bags)
            state = self.programs.init(cohort, self.ids, fitted, previous, self.placement.count)
        shapes = array_shapes.step_metrics(
            strategy, self.plan, jax.block_until_ready(state), cohort, self.data.lengths[0], self.settings.batch_size
        )
        self._no_metrics = {name: np.zeros((self.num_replicas, *x.shape), x.dtype) for name, x in shapes.items()}
        return StepCarry(state=state, metrics=self.no_metrics())

    def no_metrics(self) -> PyTree:
        """The sums of the step metrics before an epoch, on the devices."""
        return self.shard(self._no_metrics)

    def lay_out(self, phase: Phase, order: EpochOrder, epoch: int) -> EpochInputs:
        """The order of an epoch and its schedules, on the devices."""
        sizes = np.asarray(self.data.bags.sizes)
        extras = array_shapes.schedules(phase.strategy, self.plan, order, sizes, epoch, phase.epochs)
        epoch_inputs: EpochInputs = self.shard(EpochInputs(bags=order.bags, extras=extras))
        return epoch_inputs

    def dispatch(self, carry: StepCarry, epoch: EpochInputs, window: Window) -> StepCarry:
        """Sends the steps of a window of the loader to the devices. `carry` is donated."""
        cohort = self.cohort(window.bags)
        for ends in self.programs.portions("train", window.bucket, window.lo, window.hi):
            inputs = StepInputs(self.ids, epoch, self.shard(ends))
            carry, window.done = self.programs.train(window.bucket, cohort, carry, inputs, self.placement.count)
        return carry
