"""TensorBoard and Weights & Biases as further places for the numbers of each epoch; metrics.jsonl is always written.

Both packages are options, imported when they are asked for.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol

from mil_jax.cli.console import say
from mil_jax.errors import ConfigError
from mil_jax.run_folder.folder import RunFolder

_NOT_MEASURED = frozenset({"epoch", "fold", "seed", "replica", "target", "steps"})


class Logger(Protocol):
    """Takes the rows of an epoch (epoch, fold, seed and numbers by name)."""

    def log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """One row per run."""

    def close(self) -> None:
        """Writes what is waiting."""


class Loggers:
    """Several loggers as one."""

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self._loggers = loggers

    def log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for logger in self._loggers:
            logger.log(rows)

    def close(self) -> None:
        for logger in self._loggers:
            logger.close()


def open_loggers(folder: RunFolder, *, tensorboard: bool = False, wandb: bool = False) -> Loggers:
    """The loggers asked for, writing into the run folder. Raises ConfigError naming the extra of a missing
    package.
    """
    loggers: list[Logger] = []
    if tensorboard:
        say(
            f"TensorBoard's files, in {folder.path / 'tensorboard'}, hold the losses and scores of every epoch; nothing is sent."
        )
        loggers.append(_TensorBoard(folder))
    if wandb:
        loggers.append(_WandB(folder))
    return Loggers(loggers)


def require_packages(*, tensorboard: bool = False, wandb: bool = False) -> None:
    """Raises ConfigError as `open_loggers`, and opens nothing: to be called before a run folder is made."""
    if tensorboard:
        _imported("tensorboardX", setting="train.tensorboard", extra="tensorboard")
    if wandb:
        _imported("wandb", setting="train.wandb", extra="wandb")


class _TensorBoard:
    def __init__(self, folder: RunFolder) -> None:
        module = _imported("tensorboardX", setting="train.tensorboard", extra="tensorboard")
        self._writer = module.SummaryWriter(str(folder.path / "tensorboard"))

    def log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            for name, value in _numbers(row):
                self._writer.add_scalar(f"{name}/{_run(row)}", value, row["epoch"])

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """One W&B run for all folds and seeds; W&B's own environment variables (WANDB_PROJECT, WANDB_MODE) choose the
    rest.
    """

    def __init__(self, folder: RunFolder) -> None:
        module = _imported("wandb", setting="train.wandb", extra="wandb")
        name = folder.path.resolve().name
        say(
            f"Weights & Biases gets: the name of the run folder ({name}), all settings (paths of data among them), and after each epoch "
            "the losses and scores of every fold and seed; its client adds the command line, the machine and its load. No ids, labels or "
            "features. "
            "WANDB_MODE=offline keeps all of it here."
        )
        self._run = module.init(name=name, dir=str(folder.path), config=folder.config, reinit=True)

    def log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        values = {f"{name}/{_run(row)}": value for row in rows for name, value in _numbers(row)}
        if rows:
            self._run.log({**values, "epoch": rows[0]["epoch"]})

    def close(self) -> None:
        self._run.finish()


def _imported(package: str, *, setting: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f'{setting}=True needs the package {package}; install it by: pip install "mil-jax[{extra}]", or set it to False'
        ) from error


def _run(row: Mapping[str, Any]) -> str:
    names = [str(row["label_column"])] if "label_column" in row else []
    names += [f"{name}={value:g}" for name, value in row.get("settings", {}).items()]
    return "_".join([*names, f"fold_{row['fold']}_seed_{row['seed']}"])


def _numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if name not in _NOT_MEASURED and isinstance(value, int | float) and math.isfinite(value):
            yield name, float(value)
