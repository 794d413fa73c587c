"""The final model: trained on everything, for as many epochs as cross-validation chose (`splits.folds=0`, `train.epochs_of=RUN`).

It has no validation and no test part. How good it is, is what the cross-validation said; and each epoch is of more bags than there.
Thresholds and calibration come from the validation predictions of that run: `validation.csv`, copied into the final model's folder.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from mil_jax.engine.checkpoints import read_final
from mil_jax.errors import ConfigError
from mil_jax.run_folder.folder import RunFolder, require_same_settings

VALIDATION = "validation.csv"  # in the final model's folder
# What may differ between the cross-validation and the final model.
_FREE = (
    *("name", "run", "splits", "distributed", "demo"),
    *("data.features", "data.shards", "data.cache", "data.residency", "data.prefetch_gib", "data.labels", "data.min_matched"),
    *(f"train.{name}" for name in ("epochs", "epochs_of", "monitor", "patience", "min_epochs", "num_seeds", "seed", "order")),
    "train.first_epoch",
    *(f"train.{name}" for name in ("checkpoint_seconds", "steps_per_dispatch", "replica_axis", "memory_gib", "debug_nans")),
    *(f"train.{name}" for name in ("tensorboard", "wandb", "data_parallel", "instance_parallel", "matmul_precision", "protocol")),
    "train.microbatch_size",
)  # fmt: skip


class Final(NamedTuple):
    """config: the settings that the final model is trained with. notes: sentences for the summary."""

    config: ConfigDict
    notes: tuple[str, ...]


def is_final(config: ConfigDict) -> bool:
    """Whether everything is trained on."""
    return config.splits.folds == 0


def final_settings(config: ConfigDict) -> Final:
    """Settings of the final model, with the epochs that a cross-validated run chose; any other settings as they are.

    Raises ConfigError where it is not clear how long to train, or the run had other settings.
    """
    source = config.train.epochs_of
    if not is_final(config):
        if source:
            raise ConfigError(f"train.epochs_of={source} is for the final model: set splits.folds=0, or leave it out")
        return Final(config, ())
    config = ConfigDict(config.to_dict())
    nothing_held_out = "The final model: every bag was trained on and none was held out, so nothing is measured here"
    if not source:
        if config.train.monitor != "last":
            raise ConfigError(
                f"splits.folds=0 leaves no validation part for train.monitor={config.train.monitor}: name the cross-validated run whose "
                "epochs to take with train.epochs_of=RUN, or set train.monitor=last and train.epochs"
            )
        return Final(config, (f"{nothing_held_out}. It was trained for {config.train.epochs} epochs, as set.",))
    folder = RunFolder.require_complete(source)
    require_same_settings(folder, config.to_dict(), _FREE, f"train.epochs_of={source}")
    summary = folder.read_json("summary.json")
    _, _, runs = read_final(folder.checkpoints)
    trained = folder.config["train"]["epochs"]
    chosen = [trained if run["epoch"] < 0 else run["epoch"] + 1 for run in runs]
    epochs = int(np.median(chosen))
    # The learning rate falls as it did there, so the schedule keeps its length.
    schedule = folder.config["optimizer"]["schedule"]["epochs"] or trained
    config.train.update(epochs=epochs, monitor="last", patience=0, min_epochs=0, first_epoch=0)
    config.optimizer.schedule.epochs = schedule
    note = (
        f"{nothing_held_out}. It was trained for {epochs} epochs, the median of those that the {len(chosen)} runs of {source} chose "
        f"({min(chosen)} to {max(chosen)})."
    )
    decides = config.task.name not in ("survival", "regression", "multiclass")
    calibration = [_calibration(source, len(validation_rows(folder)))] if decides else []
    return Final(config, (note, *_expected(source, summary), *calibration))


def leave_validation(config: ConfigDict, folder: RunFolder) -> None:
    """Writes VALIDATION into the final model's folder, where the cross-validated run has any validation predictions."""
    if config.train.epochs_of:
        rows = validation_rows(RunFolder.require_complete(config.train.epochs_of))
        if len(rows):
            folder.write_table(VALIDATION, rows)


def validation_rows(folder: RunFolder) -> pd.DataFrame:
    """The predictions of a run's models for their own validation parts; none where the test part chose the epochs, or the run is a final
    model, which has those of the run that it was made from.
    """
    for name in ("predictions.csv", VALIDATION):
        if (folder.path / name).is_file():
            table = folder.read_table(name)
            return table.iloc[:0] if "selected_on" in table else table[table["part"] == "val"]
    return pd.DataFrame(columns=["fold", "part"])


def _calibration(source: str, rows: int) -> str:
    """Where thresholds and calibration come from."""
    if not rows:
        return f"There will be no thresholds and no calibration: {source} has no validation predictions of its own."
    return (
        f"Thresholds and calibration of its evaluations are chosen on the validation predictions of {source} ({rows} rows, {VALIDATION}), "
        "pooled over its folds and averaged over its seeds: of models like this one, trained on less."
    )


def _expected(source: str, summary: dict[str, Any]) -> list[str]:
    """What the cross-validation measured."""
    auc = summary.get("metrics", {}).get("auc")
    if not auc or auc["mean"] is None:
        return [f"What to expect of it is the cross-validated result in {source}/summary.md."]
    selected = ", selected on test" if summary["selected_on_test"] else ""
    return [
        f"What to expect of it is the cross-validated result of {source}: AUC {auc['mean']:.3f}, the mean of its folds{selected}."
    ]
