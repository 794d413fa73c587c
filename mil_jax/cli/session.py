"""What the training commands share around their runs: flags, preparation, and the run folder that they write into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from mil_jax.cli.arguments import TrainFlags
from mil_jax.cli.console import console, say
from mil_jax.cli.loggers import require_packages
from mil_jax.cli.progress import StopOnSignal, TrainingProgress, conversion_progress
from mil_jax.config import ConfigDict
from mil_jax.engine import distributed
from mil_jax.engine.callbacks import Callback, TrainingInterrupted
from mil_jax.engine.device_memory import min_memory
from mil_jax.engine.nan_debugging import NotFinite
from mil_jax.engine.runtime import use_compilation_cache, use_most_gpu_memory, use_one_device_per_core
from mil_jax.engine.types import FitResult
from mil_jax.errors import ConfigError, TrainingError
from mil_jax.experiment.data_sources import cache_folder
from mil_jax.experiment.experiment import Experiment
from mil_jax.experiment.final_model import final_settings
from mil_jax.experiment.fitter import Fitter
from mil_jax.experiment.prepare import prepare
from mil_jax.experiment.run import FREE_ON_RESUME
from mil_jax.experiment.targets import splits_table
from mil_jax.run_folder.folder import RunFolder, is_run_folder, require_usable


def set_up(config: ConfigDict) -> None:
    """Processes, devices, memory and precision, before JAX is first used."""
    use_most_gpu_memory()
    distributed.start(**config.distributed)
    use_one_device_per_core()
    use_compilation_cache(cache_folder(config))
    console.quiet |= not distributed.is_first()
    min_memory()  # while all processes are here: later the first goes ahead of the others
    if config.train.matmul_precision != "default":
        jax.config.update("jax_default_matmul_precision", config.train.matmul_precision)


def prepared(config: ConfigDict, values: TrainFlags, name: str, choices: Mapping[str, Any] | None = None) -> Experiment:
    """The experiment, checked; `name`: the run folder to be, which nothing touches yet. choices: those made before; else those of a run
    that is resumed.
    """
    if values.check and (values.resume or values.overwrite):
        say("--check trains nothing: --resume and --overwrite have no effect")
    if config.data.synthetic.bags:
        raise ConfigError(
            "data.synthetic.bags draws sizes only, so there is nothing to train on: name data, or use python -m mil_jax.profile"
        )
    require_packages(tensorboard=config.train.tensorboard, wandb=config.train.wandb)
    set_up(config)
    with distributed.first_before_others(), conversion_progress() as progress:
        if not values.check:
            require_usable(name, resume=values.resume, overwrite=values.overwrite)
        if _resuming(values, name):
            choices = RunFolder.open(name).choices
        return prepare(
            final_settings(config).config,
            strict=values.strict,
            choices=choices,
            progress=progress,
            share=values.share,
        )


def open_folder(
    fitter: Fitter, values: TrainFlags, name: str, settings: Mapping[str, Any], *, compiling: bool = False
) -> RunFolder:
    """The run folder, with splits.csv and excluded.csv in it; `is_complete` when its run has ended. Bags to be held in memory are read
    before.

    settings: what config.json holds, and a resumed run must equal. compiling: of the experiment's programs, beside reading.
    """
    experiment = fitter.experiment
    if not _resuming(values, name):  # a damaged shard is found before there is a run folder
        with console.status(f"reading {len(experiment.cohort.bags)} bags"):
            fitter.read(compiling=compiling)
    folder = RunFolder(Path(name))
    with distributed.first_before_others():
        if distributed.is_first():
            folder = RunFolder.create(
                name,
                settings,
                experiment.fingerprints,
                resume=values.resume,
                overwrite=values.overwrite,
                free=FREE_ON_RESUME,
            )
    if folder.moved:
        say(f"The run that was in {folder.path} is now in {folder.moved}.")
    if folder.is_complete:
        say(f"The run in {folder.path} has ended; nothing is left to do. Its results: {folder.path / 'summary.md'}")
        return folder
    if distributed.is_first():
        folder.write_table("splits.csv", splits_table(experiment.targets, experiment.cohort))
        folder.write_table("excluded.csv", experiment.excluded)
    if _resuming(values, name):
        say(f"Resuming the run in {folder.path}.")
    return folder


def train_with_progress(
    fitter: Fitter, folder: RunFolder, train: Callable[[Fitter, RunFolder, Callback], FitResult], title: str = ""
) -> FitResult:
    """Calls `train` with a listener that shows and writes down how far it is (of several processes the first alone), and stops on signals.

    Raises TrainingInterrupted when it was stopped, TrainingError where train.debug_nans stopped a run.
    """
    experiment = fitter.experiment
    listener = TrainingProgress(experiment, folder, title) if distributed.is_first() else StopOnSignal()
    with listener:
        try:
            result = train(fitter, folder, listener)
            if listener.stopped_by and jax.process_count() == 1:  # after the last epoch; others may be to follow
                raise TrainingInterrupted
            return result
        except TrainingInterrupted as stopped:
            stopped.signal = listener.stopped_by
            raise
        except NotFinite as found:
            run = experiment.run_name(experiment.plan.replicas[found.replica])
            raise TrainingError(found.sentence(run, experiment.cohort.bags["bag_id"].to_numpy())) from found


def _resuming(values: TrainFlags, name: str) -> bool:
    return values.resume and not values.check and is_run_folder(name)
