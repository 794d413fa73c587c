"""One phase of training, epoch by epoch: draw the order, dispatch its steps, fetch what they gave, decide who goes on, save.

The host waits for the devices once an epoch, when it fetches. Checkpoints and compaction are steps of the loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax.data.loading.windows import Dispatch
from mil_jax.engine import nan_debugging
from mil_jax.engine.bag_order import EpochOrder
from mil_jax.engine.callbacks import Callback, TrainingInterrupted
from mil_jax.engine.checkpoints import Checkpoints
from mil_jax.engine.compaction import InactiveReplicas
from mil_jax.engine.compilation import Programs
from mil_jax.engine.early_stopping import Progress
from mil_jax.engine.engine import Engine
from mil_jax.engine.programs import EpochInputs, StepCarry, keep_improved
from mil_jax.engine.types import Phase
from mil_jax.engine.validation import ValidationScorer
from mil_jax.strategies.base import TrainState
from mil_jax.types import PyTree

_keep_improved = jax.jit(keep_improved, donate_argnums=0)
_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


class EpochLoop:
    """A phase from its start, or from its newest checkpoint, to its end. `epoch` and `dispatch`: where it stands."""

    def __init__(
        self,
        engine: Engine,
        phase: Phase,
        listener: Callback,
        checkpoints: Checkpoints | None = None,
        keep_choices: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self.engine, self.phase, self.listener, self.checkpoints = engine, phase, listener, checkpoints
        self.keep_choices = keep_choices or (lambda choices: None)
        self.keeps_best = phase.selection.monitor != "last"
        self.scorer = ValidationScorer(engine.task, engine.plan, engine.data)
        self.progress = Progress.start(engine.num_replicas, phase.selection)
        self.epoch = self.dispatch = 0
        self.inactive = InactiveReplicas(engine.placement)

    def run(self, previous: TrainState | None) -> tuple[TrainState, Progress]:
        """The state with each replica's chosen parameters. previous: what the phase before ended with."""
        engine = self.engine
        engine.prepare(self.phase.strategy)
        all_replicas = engine.programs
        self._begin(previous)
        while self.epoch < self.phase.epochs and self.progress.active.any():
            self._compact()
            order = engine.order.epoch(engine.plan.replicas, self.progress.active, self.epoch)
            inputs = engine.lay_out(self.phase, order, self.epoch)
            engine.compile(self.phase, [*dict.fromkeys(bucket for bucket, *_ in order.dispatches)], self.carry, inputs)
            engine.settle_chunks(self.keep_choices)
            if self.epoch + 1 < self.phase.epochs:
                engine.order.draw_ahead(engine.plan.replicas, self.progress.active, self.epoch + 1)
            begun, left = time.perf_counter(), order.dispatches[self.dispatch :]
            before = _copy(self.carry) if engine.settings.debug_nans else None
            self._dispatch(order, inputs, left)
            logits, sums = self._fetch()
            self.inactive.epoch(time.perf_counter() - begun, self.progress.active)
            if before is not None:
                self._require_finite(order, inputs, before, left)
            self._decide(order, logits, sums)
            self._save_if_due()
        if engine.programs is not all_replicas:
            self._keep_on_device(np.arange(engine.num_replicas), all_replicas)
        state = self.carry.state
        return state if self.best is None else state.replace(params=self.best), self.progress

    def _begin(self, previous: TrainState | None) -> None:
        """The initial states, or those of the newest checkpoint."""
        engine, checkpoints = self.engine, self.checkpoints
        place = checkpoints.place(engine.plan.described()) if checkpoints else None
        if place:
            self.epoch, self.dispatch = place["epoch"], place["dispatch"]
            self.progress = Progress.from_json(place["progress"])
        if not (engine.vectorised and self.inactive.half_have_stopped(self.progress.active)):
            engine.compile_ahead(self.phase, previous)
        self.carry = engine.begin(self.phase.strategy, previous)
        self.best: PyTree = _copy(self.carry.state.params) if self.keeps_best else None
        if checkpoints and place:
            shapes = engine.strip_padding(jax.eval_shape(lambda: (self.carry, self.best)))
            self.carry, self.best = engine.shard(checkpoints.arrays(shapes))
        self.listener.phase(self.phase.strategy.name, self.epoch, self.phase.epochs)

    def _compact(self) -> None:
        """Takes the replicas that have stopped from the devices, where that pays."""
        engine, active = self.engine, self.progress.active
        if not (engine.vectorised and self.inactive.half_have_stopped(active)):
            return
        if engine.vote.blocking(self.inactive.idle_seconds >= engine.programs.seconds):
            members = np.flatnonzero(active)
            fewer = engine.programs.for_fewer(self.inactive.rows(active), engine.same_bags(members))
            self._keep_on_device(members, fewer)

    def _keep_on_device(self, members: np.ndarray, programs: Programs) -> None:
        self.carry, self.best = self.inactive.keep_on_device(members, (self.carry, self.best))
        self.engine.use(programs)

    def _dispatch(self, order: EpochOrder, inputs: EpochInputs, dispatches: Sequence[Dispatch]) -> None:
        """Sends the steps to the devices; saves and raises TrainingInterrupted where it is asked to stop meanwhile."""
        engine = self.engine
        for window in engine.loader.windows(order.bags, dispatches):
            self.carry = engine.dispatch(self.carry, inputs, window)
            self.dispatch += window.ends_dispatch
            self.listener.steps(int((window.hi - window.lo).sum()))
            if window.ends_dispatch and self.checkpoints and engine.vote.delayed(self.listener.stop_requested()):
                self._save(self.checkpoints, wait=True)
                raise TrainingInterrupted

    def _fetch(self) -> tuple[np.ndarray | None, dict[str, np.ndarray]]:
        """Logits [R, V, C] of the selection part, None where nothing is chosen by it, and sums of the step metrics [R], on the host."""
        engine, part = self.engine, self.engine.data.selection
        logits = engine.evaluate(self.carry.state, part, self.progress.active) if self.keeps_best else None
        engine.loader.verify_rest()
        fetched: tuple[np.ndarray | None, dict[str, np.ndarray]]
        fetched = engine.strip_padding(engine.fetch((logits, self.carry.metrics)))
        return fetched

    def _require_finite(
        self, order: EpochOrder, inputs: EpochInputs, before: StepCarry, dispatches: Sequence[Dispatch]
    ) -> None:
        """Raises NotFinite where the epoch's `dispatches`, which began with `before`, left an active replica not finite."""
        engine = self.engine

        def again(carry: StepCarry, dispatch: Dispatch) -> StepCarry:
            for window in engine.loader.windows(order.bags, [dispatch]):
                carry = engine.dispatch(carry, inputs, window)
            return carry

        def fetch(tree: PyTree) -> PyTree:
            return engine.strip_padding(engine.fetch(tree))

        finite = fetch(nan_debugging.finite_replicas((self.carry.metrics, self.carry.state.params)))
        suspects = self.progress.active & ~finite
        if suspects.any():
            raise nan_debugging.find(suspects, order.bags, self.epoch, dispatches, before, again, fetch)

    def _decide(self, order: EpochOrder, logits: np.ndarray | None, sums: dict[str, np.ndarray]) -> None:
        """Ends the epoch: its scores, whose parameters are the best so far, and who stops."""
        engine, phase = self.engine, self.phase
        part = engine.listed(engine.data.selection)
        scores, rows = self.scorer.epoch(phase, logits, part, sums, order.counts, self.progress.active, self.epoch)
        improved = self.progress.update(self.epoch, sums["loss"], scores, phase.selection)
        for row in rows:
            row["improved"] = bool(improved[row["replica"]])
        if self.keeps_best and improved.any():
            self.best = _keep_improved(self.best, self.carry.state.params, engine.shard(improved))
        self.carry = self.carry.replace(metrics=engine.no_metrics())
        self.listener.epoch(rows)
        self.epoch, self.dispatch = self.epoch + 1, 0

    def _save_if_due(self) -> None:
        """A checkpoint at the end, and where enough time has passed; raises TrainingInterrupted after it where it is asked to stop."""
        ended = self.epoch == self.phase.epochs or not self.progress.active.any()
        stop = self.engine.vote.blocking(self.listener.stop_requested())
        if self.checkpoints and (stop or ended or self.engine.vote.blocking(self.checkpoints.due())):
            self._save(self.checkpoints, wait=stop)
        if self.checkpoints and stop:
            raise TrainingInterrupted

    def _save(self, checkpoints: Checkpoints, wait: bool) -> None:
        place = {
            "epoch": self.epoch,
            "dispatch": self.dispatch,
            "progress": self.progress.to_json(),
            "runs": self.engine.plan.described(),
        }
        arrays = self.inactive.of_all((self.carry, self.best))
        checkpoints.save(self.epoch * 1_000_000 + self.dispatch, arrays, place, wait=wait)
