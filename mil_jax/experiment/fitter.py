"""How an experiment is carried out: by the replica engine, or, for linear probes, exactly (`experiment/linear_probe.py`)."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax

from mil_jax.data.loading.resident_loader import LazyBags
from mil_jax.data.splits.splits import TRAIN
from mil_jax.engine.callbacks import Callback
from mil_jax.engine.checkpoints import Checkpoints
from mil_jax.engine.engine import Engine
from mil_jax.engine.fit import run_phases
from mil_jax.engine.types import FitResult
from mil_jax.errors import ConfigError
from mil_jax.experiment.experiment import Experiment, engine_data, engine_settings, parameter_shapes
from mil_jax.experiment.linear_probe import ProbeFitter
from mil_jax.experiment.phases import BACKBONE, TEACHER, stage_names
from mil_jax.interop.feature_files import counted
from mil_jax.strategies.ibmil_settings import DICTIONARY
from mil_jax.strategies.linear_probe_settings import PROBE

MANY = 0.2  # the share of runs whose last epoch was chosen from which on it is said


class Fitter(Protocol):
    """Fits one experiment, once. embedded_note: what the summary says of the cohort that comes with the library."""

    @property
    def experiment(self) -> Experiment:
        """What is fitted."""

    @property
    def embedded_note(self) -> str:
        """See the class."""

    def check(self) -> None:
        """Raises ConfigError for settings that do not go with it."""

    def describe(self, factors: str, monitor: str) -> Iterator[str]:
        """What is planned, a sentence at a time. factors: "5 folds x 2 seeds". monitor: what chooses the epoch."""

    def read(self, *, compiling: bool = False) -> None:
        """Reads the bags that are to be held in memory; compiling: meanwhile the first programs are compiled.

        Raises ShardError for a torn or altered record.
        """

    def fit(
        self,
        listener: Callback,
        open_checkpoints: Callable[[str], Checkpoints] | None = None,
        keep_choices: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> FitResult:
        """Trains all runs; without `open_checkpoints` nothing is written. Raises TrainingInterrupted when the listener asks to stop."""

    def notes(self, result: FitResult) -> list[str]:
        """Sentences for the summary."""


@dataclass
class EngineFitter:
    """A `Fitter`. engine: with what `read` had compiled, until `fit` uses it."""

    experiment: Experiment
    engine: Engine | None = None
    embedded_note = (
        "Embedded digits with the config's demo part (small widths, few epochs); name data to train in earnest."
    )

    def check(self) -> None:
        task = self.experiment.task
        if task.couples_bags and self.experiment.config.train.batch_size == 1:
            raise ConfigError(
                f"task.loss_name={task.loss_name} compares the bags of a step, and train.batch_size is 1: set it to 32, say"
            )

    def describe(self, factors: str, monitor: str) -> Iterator[str]:
        experiment, train = self.experiment, self.experiment.config.train
        schedule = experiment.config.optimizer.schedule
        train_bags = int((experiment.parts == TRAIN).sum(axis=1).max())
        parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameter_shapes(experiment)))
        programs = len(stage_names(experiment.config)) * (2 * len(experiment.ladder.lengths) + 1)
        yield (
            f"{counted(len(experiment.plan.replicas), 'run')} ({factors}) of {parameters:,} parameters, "
            f"at most {counted(train.epochs, 'epoch')} of up to {train_bags} training bags each; "
            f"at most {programs} programs to compile"
        )
        if train.precision == "bfloat16":
            yield "The forward and backward pass are in bfloat16 (train.precision)."
        yield from self._stages_before()
        yield monitor
        for name, value in (("train.min_epochs", train.min_epochs), ("optimizer.schedule.epochs", schedule.epochs)):
            if value > train.epochs:
                yield f"{name}={value} is more than train.epochs={train.epochs}, and is not reached"

    def _stages_before(self) -> Iterator[str]:
        """What happens before the last stage."""
        config = self.experiment.config
        stages = stage_names(config)
        if stages[0] in (TEACHER, BACKBONE):
            epochs = config.strategy[f"{stages[0]}_epochs"] or config.train.epochs
            state = "last" if config.train.monitor == "last" else "best"
            use = {
                TEACHER: f"its {state} state is the first teacher",
                BACKBONE: f"its {state} state gives the embeddings for the dictionary",
            }
            yield f"before that each run is trained plainly for at most {counted(epochs, 'epoch')}: {use[stages[0]]}"
        if DICTIONARY in stages:
            yield f"the dictionary of each run: k-means of the embeddings of its training bags, {config.strategy.clusters} clusters"

    def read(self, *, compiling: bool = False) -> None:
        bags = self.experiment.bags
        if not isinstance(bags, LazyBags):
            return
        engine = self._open()
        with contextlib.ExitStack() as given_up:
            given_up.callback(engine.exits.close)
            if compiling:
                engine.compile_ahead(self.experiment.phases[0])
            engine.loader.read()
            if compiling:
                self.engine = engine
                given_up.pop_all()

    def fit(
        self,
        listener: Callback,
        open_checkpoints: Callable[[str], Checkpoints] | None = None,
        keep_choices: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> FitResult:
        engine, self.engine = self.engine or self._open(), None
        weights = self.experiment.initial_weights
        start = weights.params if weights else None
        return run_phases(engine, self.experiment.phases, listener, open_checkpoints, keep_choices, start)

    def notes(self, result: FitResult) -> list[str]:
        experiment = self.experiment
        chosen = [epoch + 1 for epoch in result.progress.best_epoch.tolist() if epoch >= 0]
        if experiment.selection.monitor == "last" or not chosen:
            return []
        epochs = experiment.config.train.epochs
        said = [f"Chosen epochs: {min(chosen)} to {max(chosen)} of {epochs}, median {statistics.median(chosen):g}."]
        last = chosen.count(epochs)
        if last > MANY * len(chosen):
            runs = counted(len(chosen), "run")
            said.append(f"The last epoch was chosen in {last} of {runs}: more epochs may do better (train.epochs).")
        return said

    def _open(self) -> Engine:
        experiment = self.experiment
        settings = engine_settings(experiment.config)
        settings = dataclasses.replace(settings, side_by_side=experiment.side_by_side, blocks=experiment.blocks)
        return Engine(engine_data(experiment), experiment.task, experiment.plan, settings)


FITTERS: dict[str, type[ProbeFitter]] = {PROBE: ProbeFitter}  # by strategy.name; the others go through the engine


def fitter_of(experiment: Experiment) -> Fitter:
    """What fits the experiment."""
    return FITTERS.get(experiment.config.strategy.name, EngineFitter)(experiment)
