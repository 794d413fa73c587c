"""The dictionaries of confounders of IBMIL: written beside the run so that they can be looked at, and read from another run or a file.

dictionary.npz: of every run an array [k, E] or [k, classes, E] by the run's name ("fold 0, seed 0"). dictionary.csv: a row for each run
and training bag: which entry of its dictionary it is part of.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from mil_jax.data.splits.splits import TRAIN
from mil_jax.engine.checkpoints import read_final
from mil_jax.engine.distributed import is_first
from mil_jax.errors import ConfigError, DataError
from mil_jax.experiment.experiment import Experiment
from mil_jax.experiment.pretrained_weights import InitialWeights, Source, TargetRun, completed, same_runs
from mil_jax.files import atomic_write
from mil_jax.interop.array_files import open_arrays
from mil_jax.run_folder.folder import RunFolder, is_run_folder
from mil_jax.strategies.ibmil_settings import DICTIONARY, IBMILSettings
from mil_jax.types import PyTree

ENTRIES, MEMBERS = "dictionary.npz", "dictionary.csv"


def source(config: ConfigDict) -> Source | None:
    """Where the dictionaries come from, if from elsewhere."""
    if config.strategy.name != "ibmil" or not config.strategy.dictionary:
        return None
    return Source("strategy.dictionary", Path(config.strategy.dictionary), "dictionary")


def load(source: Source, normalize: str, expected: Any, targets: Sequence[TargetRun]) -> InitialWeights:
    """A dictionary for every run; expected: its shape.

    Raises ConfigError or DataError where it has another shape, or comes of bags that the run validates or tests on.
    """
    path = source.path
    if is_run_folder(path):
        folder = completed(source, normalize)
        if not (path / ENTRIES).is_file():
            raise ConfigError(
                f"{source} holds no {ENTRIES}: name a run of strategy.name=ibmil that made its dictionaries"
            )
        entries = list(_arrays(path / ENTRIES).values())
        places = same_runs(source, read_final(folder.checkpoints)[2], targets)
        note = f"The dictionary of each run is that of the same run of {path}."
    else:
        if path.suffix != ".npy" or not path.is_file():
            raise ConfigError(f"{source} is neither a run folder nor a .npy file: name what holds a dictionary")
        entries, places = [_arrays(path)[""]], [0] * len(targets)
        note = f"The dictionary came from {path}; provenance unknown: it may be of slides that are tested here."
    for place in sorted(set(places)):
        if entries[place].shape != expected.shape or not np.isfinite(entries[place]).all():
            raise DataError(
                f"{source} holds a dictionary of the shape {list(entries[place].shape)}, and this run reads one of "
                f"{list(expected.shape)}, of finite numbers: use one of the same aggregator, strategy.clusters and strategy.mode"
            )
    return InitialWeights({DICTIONARY: np.stack([entries[place].astype(np.float32) for place in places])}, note)


def _arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name; of one alone by ""."""
    content = open_arrays(file)
    return {name: content.read(name) for name in content.headers}


def require_bags(experiment: Experiment) -> None:
    """Raises ConfigError where a fold has fewer training bags than clusters are asked of them."""
    clusters = experiment.config.strategy.clusters
    most = max(IBMILSettings(clusters=clusters).numbers)
    for target in experiment.targets:
        for name, parts in zip(target.splits.names, target.splits.parts):
            number = int((parts == TRAIN).sum())
            if number < most:
                raise ConfigError(
                    f"strategy.clusters={clusters} asks for {most} clusters of training bags, and fold {name} has {number} training bags: "
                    "lower it"
                )


def save(experiment: Experiment, folder: RunFolder, found: PyTree) -> None:
    """Writes both files; found: what the analysis of the training bags found."""
    if not is_first():
        return
    runs, ids = experiment.plan.replicas, experiment.cohort.bags["bag_id"].to_numpy()
    entries = found["params"][DICTIONARY]
    with atomic_write(folder.path / ENTRIES) as temporary, temporary.open("wb") as file:
        np.savez(file, **{experiment.run_name(run): entries[r] for r, run in enumerate(runs)})
    numbers = IBMILSettings(clusters=experiment.config.strategy.clusters).numbers
    first_entry = np.cumsum([0, *numbers[:-1]])  # of each clustering
    tables = []
    for r, run in enumerate(runs):
        target = experiment.targets[run.target]
        bags = found["bags"][r][found["bags"][r] >= 0]
        cluster = found["per_bag"]["cluster"][r, : len(bags)]  # [n, clusterings, classes]
        for clustering, first in enumerate(first_entry):
            for number in range(cluster.shape[2]):
                mine = cluster[:, clustering, number]
                tables.append(
                    pd.DataFrame(
                        {
                            **experiment.columns.field(run.target),
                            "fold": run.fold,
                            "fold_name": target.splits.names[run.fold],
                            "seed": run.seed,
                            "bag_id": ids[bags],
                            **({"class": number} if cluster.shape[2] > 1 else {}),
                            "entry": np.where(mine < 0, -1, mine + first),
                        }
                    )
                )
    folder.write_table(MEMBERS, pd.concat(tables, ignore_index=True))
