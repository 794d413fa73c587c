"""Where the bags of an experiment come from: a shard folder, features that are converted once, invented or embedded bags."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from mil_jax.data.datasets.digits import CLASSES, EVENT, TARGETS, digits_cohort
from mil_jax.data.datasets.synthetic import synthetic_shards
from mil_jax.data.shards.convert import Progress, shards_for_features
from mil_jax.data.shards.reader import Shards
from mil_jax.errors import ConfigError, DataError


def cache_folder(config: ConfigDict) -> Path:
    """Where converted features and the embedded cohort are kept. Raises ConfigError where that is no folder."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mil_jax"
    folder = Path(config.data.cache) if config.data.cache else usual
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is no folder: name one for the converted features with data.cache")
    return folder


class Source(NamedTuple):
    """tables: settings that name the label table and splits that the bags come with; none for data that was named."""

    shards: Shards
    tables: dict[str, dict[str, str]]


def open_shards(config: ConfigDict, cache: Path, progress: Progress | None) -> Source:
    """The shard folder that is named, converted, invented or embedded; the last three lie below `cache`.

    Raises DataError for shards that hold fewer neighbours than data.neighbors asks for, or no such regions as data.regions does.
    """
    shards, tables = _open(config, cache, progress)
    if shards.num_neighbors < config.data.neighbors:
        held = f"{shards.num_neighbors} neighbours of each tile" if shards.num_neighbors else "no neighbours"
        raise DataError(
            f"{shards.folder}: these shards hold {held}, and data.neighbors={config.data.neighbors}; write them again with python -m "
            f"data_prep.shard --neighbors {config.data.neighbors}"
        )
    side = config.data.regions
    if side and shards.num_parts != side**2:
        held = f"regions of {shards.num_parts} tiles" if shards.num_parts else "no regions"
        raise DataError(
            f"{shards.folder}: these shards hold {held}, and data.regions={side}; write them again with python -m data_prep.shard "
            f"--regions {side}"
        )
    return Source(shards, tables)


def _open(config: ConfigDict, cache: Path, progress: Progress | None) -> Source:
    data = config.data
    if data.shards and data.features:
        raise ConfigError("data.shards and data.features are both set; name the one to train on")
    if data.synthetic.bags:
        shards, tables = synthetic_shards(config, cache)
        return Source(shards, {"data": tables})
    if data.shards:
        return Source(Shards.open(data.shards), {})
    if data.features:
        shards = shards_for_features(
            data.features,
            cache,
            recursive=data.recursive,
            encoder_name=data.encoder_name,
            nonfinite=data.nonfinite,
            num_neighbors=data.neighbors,
            regions=data.regions,
            progress=progress,
        )
        return Source(shards, {})
    for name in ("labels", "target", "event", "censored"):
        if data[name]:
            raise ConfigError(
                f"data.{name} is set but no features are: name their folder with data.features or data.shards"
            )
    if config.splits.file or config.splits.kind != "k_fold":
        raise ConfigError("the embedded digits come with their own five folds: leave splits.kind and splits.file out")
    digits, task = digits_cohort(cache, data.regions), config.task.name
    tables = {
        "labels": str(digits.labels),
        "target": TARGETS.get(task, "label"),
        "patient": "patient_id",
        "classes": CLASSES.get(task, ""),
        "event": EVENT if task == "survival" else "",
    }
    splits = {"kind": "file", "file": str(digits.splits)} if config.splits.folds else {}
    return Source(Shards.open(digits.shards), {"data": tables, "splits": splits})
