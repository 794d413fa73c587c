"""The settings that a cohort is read with: the run's own, but for its files, its filter and its tables."""

from __future__ import annotations

from ml_collections import ConfigDict

from mil_jax.config import base_config, require_setting, set_from_text
from mil_jax.errors import ConfigError
from mil_jax.inference.options import Options
from mil_jax.inference.trained_run import TrainedRun
from mil_jax.settings import SETTINGS

_OWN_FILES = (  # not the run's
    *("features", "recursive", "shards", "labels", "slides_table", "filter", "encoder_name", "site"),
)
_FREE = (
    *(*_OWN_FILES, "id_column", "patient", "target", "event", "censored", "duplicates", "min_matched", "nonfinite"),
    *("cache", "residency", "prefetch_gib"),
)


def cohort_config(run: TrainedRun, options: Options) -> ConfigDict:
    """The run's settings with where the cohort lies. Raises ConfigError for a setting that is not of the cohort."""
    config = in_one_process(run.config)
    config.data.target = ",".join(run.targets) or "label"
    for name in _OWN_FILES:
        config.data[name] = SETTINGS[f"data.{name}"].default
    config.data[options.source], config.data.labels = options.folder, options.labels
    config.data.classes = config.data.positive = ""  # they are the run's
    for name, value in options.settings.items():
        require_setting(config, name)
        if name.removeprefix("data.") not in _FREE or not name.startswith("data."):
            free = ", ".join(f"data.{one}" for one in _FREE[2:])
            raise ConfigError(
                f"--config.{name} is the run's and stays as it was trained; of a cohort may be set {free}"
            )
        set_from_text(config, name, value)
    return config


def in_one_process(config: ConfigDict) -> ConfigDict:
    """The same settings without those of several processes; settings that are younger than the run have their defaults."""
    alone = base_config()
    with alone.unlocked():
        alone.update(ConfigDict(config.to_dict()))
    for name in alone.distributed:
        alone.distributed[name] = SETTINGS[f"distributed.{name}"].default
    return alone
