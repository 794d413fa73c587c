"""Training from the first phase to the last, and what it ends with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mil_jax.engine import analysis_phase
from mil_jax.engine.callbacks import Callback
from mil_jax.engine.checkpoints import Checkpoints
from mil_jax.engine.early_stopping import Progress
from mil_jax.engine.engine import Engine
from mil_jax.engine.epoch_loop import EpochLoop
from mil_jax.engine.plan import Plan
from mil_jax.engine.types import AnalysisPhase, AnyPhase, EngineData, EngineSettings, FitResult
from mil_jax.strategies.base import TrainState
from mil_jax.tasks.base import Task
from mil_jax.types import PyTree


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
    """Trains every replica of the plan through all phases and predicts its selection and test bags. The rest as in `run_phases`."""
    return run_phases(Engine(data, task, plan, settings), phases, listener, open_checkpoints, keep_choices)


def run_phases(
    engine: Engine,
    phases: Sequence[AnyPhase],
    listener: Callback,
    open_checkpoints: Callable[[str], Checkpoints] | None = None,
    keep_choices: Callable[[Mapping[str, Any]], None] | None = None,
    start: PyTree | None = None,
) -> FitResult:
    """As `fit`, by an engine that has trained nothing yet; it is closed at the end.

    open_checkpoints: gives the checkpoints of a phase by name; training goes on from the newest. keep_choices: is given what was
    chosen automatically, before training begins. start: parameters [R, ...] that the first phase gets as those of a phase before.
    Raises TrainingInterrupted when asked to stop, ConfigError when a run does not fit a device.
    """
    state: TrainState | None = start and engine.shard(TrainState.ended_with(start, engine.num_replicas))
    analyses: dict[str, PyTree] = {}
    with engine.exits:
        for phase in phases:
            checkpoints = open_checkpoints(phase.strategy.name) if open_checkpoints else None
            try:
                if isinstance(phase, AnalysisPhase):
                    state, found = analysis_phase.run(engine, phase.strategy, state, listener, checkpoints)
                    analyses[phase.strategy.name] = found
                else:
                    state, progress = EpochLoop(engine, phase, listener, checkpoints, keep_choices).run(state)
            finally:
                if checkpoints:
                    checkpoints.close()
        assert state is not None
        return _result(engine, state, progress, analyses)


def _result(engine: Engine, state: TrainState, progress: Progress, analyses: dict[str, PyTree]) -> FitResult:
    device = {name: engine.evaluate(state, part) for name, part in engine.parts.items() if part.any()}
    logits, chosen = engine.fetch((device, (state.params, state.constants)))
    scored = {name: engine.per_replica(engine.parts[name], logits[name]) for name in device}
    replicas = range(engine.num_replicas)
    return FitResult(
        logits=[{name: part[r][1] for name, part in scored.items()} for r in replicas],
        bags=[{name: part[r][0] for name, part in scored.items()} for r in replicas],
        state=engine.strip_padding(chosen),
        progress=progress,
        facts={
            "compilations": sum(programs.compilations for programs in engine.all_programs),
            "fetches": engine.placement.fetches,
            "feature_bytes": engine.loader.host_bytes,
        },
        analyses=analyses,
    )
