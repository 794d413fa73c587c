"""The replica engine: all runs of a plan (folds x seeds x numeric settings) as one program on a cohort in device memory.

One step is one batch of B bags per replica. Between two epochs the host sees the validation outputs, decides, and sends two masks
back; nothing else leaves the device. Programs are compiled once per bucket (`engine/programs.py`); orders and schedules are
drawn on the host from the plan alone (`engine/bag_order.py`), so a run is the same alone, in company, and resumed.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax.data.loading.feature_moments import moments
from mil_jax.data.loading.residency import make_loader
from mil_jax.data.loading.resident import ResidentBags, Window
from mil_jax.data.loading.windows import Dispatch
from mil_jax.engine import analysis_phase, array_shapes, nan_debugging
from mil_jax.engine import programs as compiled
from mil_jax.engine.bag_order import BagOrder, EpochOrder
from mil_jax.engine.callbacks import Callback, TrainingInterrupted
from mil_jax.engine.checkpoints import Checkpoints
from mil_jax.engine.compaction import InactiveReplicas
from mil_jax.engine.compilation import Programs
from mil_jax.engine.device_memory import device_limit
from mil_jax.engine.distributed import Vote
from mil_jax.engine.early_stopping import Progress
from mil_jax.engine.mesh import Placement, sharing
from mil_jax.engine.plan import Plan
from mil_jax.engine.types import AnalysisPhase, AnyPhase, EngineData, EngineSettings, FitResult, Phase
from mil_jax.engine.validation import ValidationScorer
from mil_jax.strategies.base import Analysis, Strategy, TrainState
from mil_jax.tasks.base import Task
from mil_jax.types import Array, PyTree


def fit(
    phases: Sequence[AnyPhase],
    data: EngineData,
    task: Task,
    plan: Plan,
    settings: EngineSettings,
    listener: Callback,
    open_checkpoints: Callable[[str], Checkpoints] | None = None,
    keep_choices: Callable[[Mapping[str, Any]], None] | None = None,
) -> FitResult:
    """Trains every replica of the plan through all phases and predicts its selection and test bags.

    open_checkpoints: gives the checkpoints of a phase by name; training goes on from the newest. keep_choices: is given what was
    chosen automatically, before training begins. Raises TrainingInterrupted when asked to stop, ConfigError when a run does not fit a
    device.
    """
    return Engine(data, task, plan, settings).fit(phases, listener, open_checkpoints, keep_choices)


class Engine:
    """What `fit` is made of: `begin` a phase, `lay_out` the order of an epoch, `dispatch` its steps, `evaluate` a part."""

    def __init__(self, data: EngineData, task: Task, plan: Plan, settings: EngineSettings) -> None:
        self.data, self.task, self.plan, self.settings = data, task, plan, settings
        self.all_programs, self.analyses = list[Programs](), dict[str, PyTree]()
        self.side_by_side, self.kept = copy.deepcopy(settings.side_by_side), settings.side_by_side
        self.num_replicas = len(plan.replicas)
        instance_parallel = sharing(settings.instance_parallel, jax.device_count(), *data.lengths)
        data_parallel = sharing(settings.data_parallel, jax.device_count() // instance_parallel, settings.batch_size)
        self.placement = Placement(self.num_replicas, data_parallel, instance_parallel)
        self.shard, self.fetch, self.strip_padding = (
            self.placement.shard,
            self.placement.fetch,
            self.placement.strip_padding,
        )
        self.vote = Vote()
        self.vectorised = settings.vectorised
        self.order = BagOrder(
            data.training,
            data.bucket,
            len(data.lengths),
            batch_size=settings.batch_size,
            data_seed=settings.data_seed,
            steps_per_dispatch=settings.steps_per_dispatch,
            sampling=data.sampling,
            row=data.row,
            shared=settings.order == "shared",
            by_slot=settings.by_slot,
        )
        everyone = np.ones(self.num_replicas, bool)
        first = functools.partial(self.order.epoch, plan.replicas, everyone, 0)
        self.loader = make_loader(data.bags, data.lengths, self.placement, first)
        self.exits = contextlib.ExitStack()  # what ends the work in the background
        self.exits.callback(self.loader.close)
        self.targets = self.placement.shared(data.targets)
        self.covariates = None if data.covariates is None else self.placement.shared(data.covariates)
        self.rows = [data.row(replica) for replica in plan.replicas]
        self.parts = {"val": data.selection, "test": data.test}
        if task.reads_training:
            self.parts["train"] = data.training
        self.longest_part = int(max(1, *(part.sum(axis=1).max() for part in self.parts.values())))
        self._keep_improved = jax.jit(compiled.keep_improved, donate_argnums=0)
        self._copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))

    def fit(
        self,
        phases: Sequence[AnyPhase],
        listener: Callback,
        open_checkpoints: Callable[[str], Checkpoints] | None = None,
        keep_choices: Callable[[Mapping[str, Any]], None] | None = None,
        start: PyTree | None = None,
    ) -> FitResult:
        """As the function `fit`; once. start: parameters [R, ...] that the first phase gets as those of a phase before."""
        self.listener, self.keep_choices = listener, keep_choices or (lambda choices: None)
        state: TrainState | None = start and self.shard(TrainState.ended_with(start, self.num_replicas))
        with self.exits:
            for phase in phases:
                checkpoints = open_checkpoints(phase.strategy.name) if open_checkpoints else None
                try:
                    if isinstance(phase, AnalysisPhase):
                        state, found = analysis_phase.run(self, phase.strategy, state, checkpoints)
                        self.analyses[phase.strategy.name] = found
                    else:
                        state, progress = self.run(phase, state, checkpoints)
                finally:
                    if checkpoints:
                        checkpoints.close()
            assert state is not None
            return self.result(state, progress)

    @functools.cached_property
    def scorer(self) -> ValidationScorer:
        """What scores the epochs."""
        return ValidationScorer(self.task, self.plan, self.data)

    def _who(self) -> compiled.ReplicaIds:
        target = np.array([replica.target for replica in self.plan.replicas], np.int32)
        keys = jax.random.wrap_key_data(self.shard(np.asarray(jax.random.key_data(self.plan.keys()))))
        return compiled.ReplicaIds(key=keys, target=self.shard(target))

    def cohort(self, bags: ResidentBags) -> compiled.DeviceCohort:
        """What the programs read, of these bags or their shapes."""
        return compiled.DeviceCohort(bags, self.targets, self.covariates)

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

    def prepare(self, strategy: Strategy | Analysis) -> None:
        """From here on `programs` are those of this strategy."""
        if self.all_programs and self.all_programs[-1].strategy is strategy:
            return
        limit, chosen = device_limit(self.settings.memory_gib), self.side_by_side.setdefault(strategy.name, {})
        mesh, by_slot = self.placement.mesh, self.settings.by_slot
        self._use(Programs(strategy, mesh, self.data.lengths, self.vectorised, limit, chosen, by_slot))

    def compile_ahead(self, phase: AnyPhase, previous: TrainState | None = None) -> None:
        """Starts to compile the programs of a phase, unless that was done; no bag is read for it."""
        if isinstance(phase, AnalysisPhase):
            return  # it needs what the phase before ended with
        strategy, plan, batch_size = phase.strategy, self.plan, self.settings.batch_size
        self.prepare(strategy)
        if self.programs.compilations:
            return
        cohort = self.cohort(self.loader.shapes(0))
        tile = cohort.bags.features.shape[1 if cohort.bags.part_mask is None else 2 :]  # what moments are of
        fitted = array_shapes.fitted_shapes(strategy, plan, self.data, len(self.who.target), tile)
        first = functools.partial(compiled.initial, strategy, self.data.lengths[0])
        state = jax.eval_shape(first, cohort, self.who, fitted, previous, self.placement.count)
        placed, length = self.who.target.sharding, self.data.lengths[0]
        moving = array_shapes.moving_shapes(strategy, plan, state, cohort, length, batch_size, placed)
        epoch = array_shapes.epoch_shapes(
            strategy, plan, len(self.who.target), self.order.max_steps, batch_size, placed
        )
        self._compile(phase, np.flatnonzero(self.order.slot_counts).tolist(), moving, epoch)

    def begin(self, strategy: Strategy, previous: TrainState | None) -> compiled.StepCarry:
        """The initial states, whose shapes are taken from bag 0."""
        self.prepare(strategy)
        run = int(self.data.bucket[0]), np.zeros(1, np.int32), np.ones(1, np.int32)
        fitted = self.fitted(strategy)
        for window in self.loader.windows(np.zeros((1, 1, 1), np.int32), [run]):
            cohort = self.cohort(window.bags)
            state = self.programs.init(cohort, self.who, fitted, previous, self.placement.count)
        shapes = array_shapes.step_metrics(
            strategy, self.plan, jax.block_until_ready(state), cohort, self.data.lengths[0], self.settings.batch_size
        )
        self.no_metrics = {name: np.zeros((self.num_replicas, *x.shape), x.dtype) for name, x in shapes.items()}
        return compiled.StepCarry(state=state, metrics=self.shard(self.no_metrics))

    def _use(self, programs: Programs) -> None:
        """From here on these, for the replicas that the devices hold; they are closed at the end."""
        self.programs, self.who = programs, self._who()
        if programs not in self.all_programs:
            self.all_programs.append(programs)
            self.exits.callback(programs.close)

    def _leaves_stopped_out(self, left_out: InactiveReplicas, active: np.ndarray) -> bool:
        """Whether those that are not active any more go from the devices now."""
        if not (self.vectorised and left_out.half_have_stopped(active)):
            return False
        return self.vote.blocking(left_out.idle_seconds >= self.programs.seconds)

    def lay_out(self, phase: Phase, order: EpochOrder, epoch: int) -> compiled.EpochInputs:
        """The order of an epoch and its schedules, on the devices."""
        sizes = np.asarray(self.data.bags.sizes)
        extras = array_shapes.schedules(phase.strategy, self.plan, order, sizes, epoch, phase.epochs)
        return self.shard(compiled.EpochInputs(bags=order.bags, extras=extras))

    def run(
        self, phase: Phase, previous: TrainState | None, checkpoints: Checkpoints | None
    ) -> tuple[TrainState, Progress]:
        """One phase, from its start or from its newest checkpoint. Returns the state with each replica's chosen parameters."""
        strategy = phase.strategy
        self.prepare(strategy)
        keeps_best = phase.selection.monitor != "last"
        progress = Progress.start(self.num_replicas, phase.selection)
        epoch, dispatch = 0, 0
        left_out, whole = InactiveReplicas(self.placement), self.programs
        place = checkpoints.place(self.plan.described()) if checkpoints else None
        if place:
            epoch, dispatch = place["epoch"], place["dispatch"]
            progress = Progress.from_json(place["progress"])
        if not (self.vectorised and left_out.half_have_stopped(progress.active)):
            self.compile_ahead(phase, previous)
        moving = self.begin(strategy, previous)
        best = self._copy(moving.state.params) if keeps_best else None
        if checkpoints and place:
            shapes = self.strip_padding(jax.eval_shape(lambda: (moving, best)))
            moving, best = self.shard(checkpoints.arrays(shapes))
        self.listener.phase(strategy.name, epoch, phase.epochs)

        def save(wait: bool) -> None:
            assert checkpoints is not None
            where = {
                "epoch": epoch,
                "dispatch": dispatch,
                "progress": progress.to_json(),
                "runs": self.plan.described(),
            }
            arrays = left_out.of_all((moving, best))
            checkpoints.save(epoch * 1_000_000 + dispatch, arrays, where, wait=wait)

        while epoch < phase.epochs and progress.active.any():
            if self._leaves_stopped_out(left_out, progress.active):
                fewer = self.programs.for_fewer(left_out.rows(progress.active))
                moving, best = left_out.keep_on_device(np.flatnonzero(progress.active), (moving, best))
                self._use(fewer)
            order = self.order.epoch(self.plan.replicas, progress.active, epoch)
            arrays = self.lay_out(phase, order, epoch)
            self._compile(phase, [*dict.fromkeys(each[0] for each in order.dispatches)], moving, arrays)
            self._decide()
            begun = time.perf_counter()
            dispatches = order.dispatches[dispatch:]
            before = (self._copy(moving), dispatches) if self.settings.debug_nans else None
            for window in self.loader.windows(order.bags, dispatches):
                moving = self.dispatch(moving, arrays, window)
                dispatch += window.ends_dispatch
                self.listener.steps(int(order.steps(window.lo, window.hi).sum()))
                if window.ends_dispatch and checkpoints and self.vote.delayed(self.listener.stop_requested()):
                    save(wait=True)
                    raise TrainingInterrupted
            logits = self.evaluate(moving.state, self.data.selection, progress.active) if keeps_best else None
            self.loader.verify_rest()
            fetched, sums = self.strip_padding(self.fetch((logits, moving.metrics)))
            left_out.epoch(time.perf_counter() - begun, progress.active)
            if before:
                self._require_finite(order, epoch, progress.active, moving, arrays, *before)
            scores, rows = self.scorer.epoch(
                phase, fetched, self._part(self.data.selection), sums, order.counts, progress.active, epoch
            )
            improved = progress.update(epoch, sums["loss"], scores, phase.selection)
            for row in rows:
                row["improved"] = bool(improved[row["replica"]])
            if keeps_best and improved.any():
                best = self._keep_improved(best, moving.state.params, self.shard(improved))
            moving = moving.replace(metrics=self.shard(self.no_metrics))
            self.listener.epoch(rows)
            epoch, dispatch = epoch + 1, 0
            ended = epoch == phase.epochs or not progress.active.any()
            stop = self.vote.blocking(self.listener.stop_requested())
            if checkpoints and (stop or ended or self.vote.blocking(checkpoints.due())):
                save(wait=stop)
            if checkpoints and stop:
                raise TrainingInterrupted
        if self.programs is not whole:
            moving, best = left_out.keep_on_device(np.arange(self.num_replicas), (moving, best))
            self._use(whole)
        state = moving.state if best is None else moving.state.replace(params=best)
        return state, progress

    def dispatch(self, moving: compiled.StepCarry, arrays: compiled.EpochInputs, window: Window) -> compiled.StepCarry:
        """Sends the steps of a window of the feed to the devices. `moving` is given away."""
        lo, hi = self.shard((window.lo, window.hi))
        moving, window.done = self.programs.train(
            window.bucket, self.cohort(window.bags), self.who, moving, arrays, lo, hi, self.placement.count
        )
        return moving

    def _compile(self, phase: Phase, train: list[int], moving: compiled.StepCarry, epoch: compiled.EpochInputs) -> None:
        """Starts to compile what is not compiled yet: training programs of the buckets `train`, evaluation of all. moving, epoch: arrays
        or shapes.
        """
        whole = len(self.placement.members) == self.num_replicas
        between = self.data.selection.any(axis=0) & (whole or phase.selection.monitor != "last")
        seen = between | (np.any([part.any(axis=0) for part in self.parts.values()], axis=0) & whole)
        evaluate = np.unique(self.data.bucket[seen]).tolist()
        logits = self.longest_part, self.task.num_outputs
        cohorts = [self.cohort(self.loader.shapes(bucket)) for bucket in range(len(self.data.lengths))]
        self.programs.compile_ahead(train, evaluate, cohorts, self.who, moving, epoch, logits, self.placement.count)

    def _decide(self) -> None:
        """Waits until it is known how many replicas go side by side, and keeps that."""
        self.programs.decide()
        if self.side_by_side != self.kept:
            self.keep_choices({"runs_side_by_side": self.side_by_side})
            self.kept = copy.deepcopy(self.side_by_side)

    def _require_finite(
        self, order: EpochOrder, epoch: int, active: np.ndarray, moving: compiled.StepCarry, arrays: compiled.EpochInputs,
        before: compiled.StepCarry, dispatches: Sequence[Dispatch],
    ) -> None:  # fmt: skip
        """Raises NotFinite where the epoch's `dispatches`, which began with `before`, left an active replica not finite."""

        def again(moving: compiled.StepCarry, run: Dispatch) -> compiled.StepCarry:
            for window in self.loader.windows(order.bags, [run]):
                moving = self.dispatch(moving, arrays, window)
            return moving

        def fetch(tree: PyTree) -> PyTree:
            return self.strip_padding(self.fetch(tree))

        suspects = active & ~fetch(nan_debugging.finite_replicas((moving.metrics, moving.state.params)))
        if suspects.any():
            raise nan_debugging.find(suspects, order.bags, epoch, dispatches, before, again, fetch)

    def evaluate(self, state: TrainState, part: np.ndarray, active: np.ndarray | None = None) -> Array:
        """Logits [R, V, C] of each replica's bags of the part, in the order of `_part`; of those that are `active` [R], or all."""
        return self.predict(state, self._part(part, active)[0], (self.task.num_outputs,))

    def _part(self, part: np.ndarray, active: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        return self.data.listed(part, self.rows, self.longest_part, active)

    def predict(
        self, state: TrainState, bags: np.ndarray, shape: tuple[int, ...], tell: Callable[[int], None] | None = None
    ) -> Array:
        """Logits [R, V, *shape] of the bags [R, V], -1 for none, which are in order of their bucket. tell: how many more were sent."""
        logits = self.shard(np.zeros((*bags.shape, *shape), np.float32))
        spread_bags = self.shard(bags)
        buckets = np.where(bags >= 0, self.data.bucket[np.maximum(bags, 0)], len(self.data.lengths))
        edges = [(buckets < bucket).sum(axis=1).astype(np.int32) for bucket in range(len(self.data.lengths) + 1)]
        dispatches = [(bucket, lo, hi) for bucket, (lo, hi) in enumerate(itertools.pairwise(edges)) if (hi > lo).any()]
        for window in self.loader.windows(bags[..., None], dispatches):
            lo, hi = self.shard((window.lo, window.hi))
            logits, window.done = self.programs.evaluate(
                window.bucket, self.cohort(window.bags), state, spread_bags, logits, lo, hi, self.placement.count
            )
            if tell:
                tell(int((window.hi - window.lo).sum()))
        return logits

    def result(self, state: TrainState, progress: Progress) -> FitResult:
        """Predictions of each replica for its selection and test parts, and its chosen parameters, on the host."""
        device = {name: self.evaluate(state, part) for name, part in self.parts.items() if part.any()}
        logits, chosen = self.fetch((device, (state.params, state.constants)))
        per_replica, numbers = [], []
        for r in range(self.num_replicas):
            mine, mine_bags = {}, {}
            for name in device:
                bags, counts = self._part(self.parts[name])
                mine[name], mine_bags[name] = logits[name][r, : counts[r]], bags[r, : counts[r]]
            per_replica.append(mine)
            numbers.append(mine_bags)
        compilations = sum(programs.compilations for programs in self.all_programs)
        facts = {"compilations": compilations, "fetches": self.placement.fetches}
        facts["feature_bytes"] = self.loader.host_bytes
        return FitResult(per_replica, numbers, self.strip_padding(chosen), progress, facts, self.analyses)
