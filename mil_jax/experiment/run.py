"""An experiment through the engine, into its run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mil_jax.engine.checkpoints import Checkpoints
from mil_jax.engine.distributed import is_first
from mil_jax.engine.engine import Callback
from mil_jax.engine.types import FitResult
from mil_jax.experiment import ibmil_dictionary
from mil_jax.experiment.chosen_checkpoint import save_final
from mil_jax.experiment.experiment import Experiment
from mil_jax.experiment.linear_probe import fit_probes
from mil_jax.experiment.phases import PROBE
from mil_jax.run_folder.folder import RunFolder
from mil_jax.strategies.ibmil_settings import DICTIONARY

FREE_ON_RESUME = (
    *("run", "distributed", "data.cache", "data.residency", "data.prefetch_gib"),
    *("train.checkpoint_seconds", "train.debug_nans", "train.tensorboard", "train.wandb"),
    *("train.data_parallel", "train.instance_parallel"),
)


def train(experiment: Experiment, folder: RunFolder, listener: Callback) -> FitResult:
    """Runs the experiment and saves what it chose. As `train_in`."""
    result = train_in(experiment, folder, listener)
    save_final(experiment, folder, result)
    if DICTIONARY in result.analyses:
        ibmil_dictionary.save(experiment, folder, result.analyses[DICTIONARY])
    return result


def train_in(experiment: Experiment, folder: RunFolder, listener: Callback) -> FitResult:
    """Runs the experiment; raises Stopped when the listener asks to stop. Choices made before are reused when resuming."""
    keep = folder.write_choices if is_first() else lambda choices: None
    precision = experiment.config.train.precision
    keep({"residency": experiment.residency.kind, "ladder": list(experiment.ladder.lengths), "precision": precision})
    seconds = experiment.config.train.checkpoint_seconds
    return run(experiment, listener, lambda name: Checkpoints(folder.checkpoints / name, seconds), keep)


def run(
    experiment: Experiment,
    listener: Callback,
    open_checkpoints: Callable[[str], Checkpoints] | None = None,
    keep_choices: Callable[[Mapping[str, Any]], None] | None = None,
) -> FitResult:
    """Runs the experiment through the engine, or fits its linear probes; without `open_checkpoints` nothing is written."""
    if experiment.config.strategy.name == PROBE:
        return fit_probes(experiment, listener)
    engine = experiment.engine
    del experiment.engine  # it trains once
    start = experiment.given.params if experiment.given else None
    return engine.fit(experiment.phases, listener, open_checkpoints, keep_choices, start)
