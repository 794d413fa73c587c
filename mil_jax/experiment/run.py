"""An experiment fitted into its run folder."""

from __future__ import annotations

from mil_jax.engine.callbacks import Callback
from mil_jax.engine.checkpoints import Checkpoints
from mil_jax.engine.distributed import is_first
from mil_jax.engine.types import FitResult
from mil_jax.experiment import ibmil_dictionary
from mil_jax.experiment.chosen_checkpoint import save_final
from mil_jax.experiment.fitter import Fitter
from mil_jax.run_folder.folder import RunFolder
from mil_jax.strategies.ibmil_settings import DICTIONARY

FREE_ON_RESUME = (
    *("run", "distributed", "data.cache", "data.residency", "data.prefetch_gib"),
    *("train.checkpoint_seconds", "train.debug_nans", "train.tensorboard", "train.wandb"),
    *("train.data_parallel", "train.instance_parallel"),
)


def train(fitter: Fitter, folder: RunFolder, listener: Callback) -> FitResult:
    """Fits the experiment and saves what it chose. As `train_in`."""
    result = train_in(fitter, folder, listener)
    save_final(fitter.experiment, folder, result)
    if DICTIONARY in result.analyses:
        ibmil_dictionary.save(fitter.experiment, folder, result.analyses[DICTIONARY])
    return result


def train_in(fitter: Fitter, folder: RunFolder, listener: Callback) -> FitResult:
    """Fits the experiment. Choices made before are reused when resuming. Raises TrainingInterrupted when the listener asks to stop."""
    experiment = fitter.experiment
    keep = folder.write_choices if is_first() else lambda choices: None
    keep(
        {
            "residency": experiment.residency.kind,
            "ladder": list(experiment.ladder.lengths),
            "precision": experiment.config.train.precision,
            "blocks": experiment.blocks,
        }
    )
    seconds = experiment.config.train.checkpoint_seconds
    return fitter.fit(listener, lambda name: Checkpoints(folder.checkpoints / name, seconds), keep)
