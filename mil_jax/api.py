"""The front door for Python: `mj.fit` trains and cross-validates, `mj.load` opens what was trained, a `Run` predicts.

`mil_jax.train` is the same from the command line: it parses, calls `fit_config`, and prints.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from mil_jax.cli.arguments import TrainFlags
from mil_jax.cli.console import console, say
from mil_jax.cli.overview import describe_experiment
from mil_jax.cli.session import open_folder, prepared, train_with_progress
from mil_jax.config import parse
from mil_jax.data.datasets.arrays import LABEL, PATIENT, array_cohort, label_table
from mil_jax.engine import distributed
from mil_jax.errors import ConfigError
from mil_jax.experiment.data_sources import cache_folder
from mil_jax.experiment.fitter import fitter_of
from mil_jax.experiment.joined_shares import join, require_alike
from mil_jax.experiment.run import train, train_in
from mil_jax.inference.array_predictions import ArrayPredictor
from mil_jax.inference.external_cohort import read_cohort
from mil_jax.inference.options import Options
from mil_jax.inference.score_cohort import score
from mil_jax.inference.trained_run import TrainedRun
from mil_jax.reports.evaluation.metrics import averaged
from mil_jax.reports.run.write import write_report
from mil_jax.run_folder.folder import RunFolder, is_run_folder, understood
from mil_jax.strategies.linear_probe_settings import PROBE
from mil_jax.strategies.published_checkpoints import published_state_dict

PathLike = str | os.PathLike[str]


def fit(
    *,
    features: PathLike = "",
    shards: PathLike = "",
    bags: Sequence[np.ndarray] | None = None,
    coords: Sequence[np.ndarray] | None = None,
    labels: PathLike | pd.DataFrame | Sequence[object] | np.ndarray = "",
    target: str = "",
    patients: str | Sequence[object] | None = None,
    config: PathLike = "abmil",
    folds: int | None = None,
    seeds: int | None = None,
    out: PathLike = "",
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    strict: bool = False,
    verbose: bool = True,
) -> Run:
    """Trains and cross-validates an aggregator; the run is as complete as one from the command line.

    features, shards: a folder of feature files, or of shards; or `bags`, arrays [n, *F], with `coords` [n, 2] where the method needs them.
    Without any of them the embedded digits are used.
    labels: the label table, a file or a data frame; with `bags` also a label for each bag. target: its column or columns.
    patients: the setting `data.patient` (a column, "tcga", "regex:PATTERN", "none"); with `bags` the patient of each, else each is of a
    patient of its own.
    config: a config file, or the name of one that comes with the package. settings: any others by dotted name, such as
    {"train.epochs": 30}. folds, seeds, out: `splits.folds`, `train.num_seeds`, and the run folder (else runs/NAME).
    resume, overwrite, strict: as the flags of `mil_jax.train`. verbose: show what is trained on, and how far it is.

    Raises UserError, one sentence, for whatever does not fit; TrainingInterrupted on Ctrl-C and SIGTERM, after saving.
    """
    asked: dict[str, Any] = {"data.features": features, "data.shards": shards, "data.target": target, "run": out}
    asked |= {"splits.folds": folds, "train.num_seeds": seeds, **(settings or {})}
    if bags is None:
        if coords is not None:
            raise ConfigError("coords are those of bags, which are not given: features and shards bring their own")
        if patients is not None and not isinstance(patients, str):
            raise ConfigError("patients must name a column or a rule (tcga, regex:PATTERN, none) where bags are files")
        asked["data.patient"] = patients
        if isinstance(labels, pd.DataFrame):
            labels = label_table(labels.to_csv(index=False), cache_folder(_configured(config, asked)[0]))
        asked["data.labels"] = labels
    else:
        if features or shards:
            raise ConfigError("bags are given beside a folder; name one of them")
        if isinstance(labels, str | os.PathLike):
            raise ConfigError("labels must be one for each bag, or a table with a row for each, where bags are arrays")
        data = _configured(config, asked)[0].data
        owners = None if isinstance(patients, str) else patients
        cohort = array_cohort(
            bags, labels, owners, coords, cache_folder(_configured(config, asked)[0]), data.neighbors, data.regions
        )
        asked |= {"data.shards": cohort.shards, "data.labels": cohort.labels, "data.target": target or LABEL}
        asked["data.patient"] = patients if isinstance(patients, str) else PATIENT
    configured, demo = _configured(config, asked)
    quiet, console.quiet = console.quiet, not verbose
    try:
        run = fit_config(configured, TrainFlags(resume=resume, overwrite=overwrite, strict=strict), demo)
    finally:
        console.quiet = quiet
    assert run is not None
    return run


def load(path: PathLike) -> Run:
    """A run that has ended. Raises RunFolderError where there is none."""
    return Run(RunFolder.require_complete(path))


def fit_config(config: ConfigDict, how: TrainFlags, demo: Sequence[str] = ()) -> Run | None:
    """Trains what a whole config asks for, says how far it is, and writes its run folder. None for `how.check`, which stops before, and
    for a share of the runs, whose results come when all shares are joined.

    demo: what the demo part of the config changed. Raises as `fit`.
    """
    started = time.monotonic()
    name = config.run or f"runs/{config.name}"
    experiment = prepared(config, how, name)
    describe_experiment(experiment, demo, everything=how.check)
    if how.check:
        return None
    fitter, shared = fitter_of(experiment), how.share != (1, 1)
    if shared:
        if experiment.config.strategy.name == PROBE:
            raise ConfigError(
                f"--runs is for what is trained step by step; strategy.name={PROBE} takes seconds: leave it out"
            )
        say(f"Share {how.share[0]} of {how.share[1]} of these runs is trained here: {len(experiment.plan.replicas)}.")
    with open_folder(fitter, how, name, config.to_dict(), compiling=True) as folder:
        if folder.is_complete:
            return Run(folder)
        result = train_with_progress(fitter, folder, train_in if shared else train)
        if shared:
            say(
                f"Share {how.share[0]} of {how.share[1]} is trained: {len(experiment.plan.replicas)} runs, in {folder.path}. "
                "When all are: mil-jax merge --part=FOLDER --part=FOLDER ... --out=RUN"
            )
            return None
        with distributed.first_before_others():
            if distributed.is_first():
                with console.status("predictions, intervals, leaks and figures"):
                    write_report(experiment, folder, result, time.monotonic() - started)
        return Run(folder)


def merge(parts: Sequence[PathLike], out: PathLike) -> Run:
    """Joins the shares of a training (`--runs i/n`), given by their run folders, into the run folder `out`. The cohort must be where the
    shares had it. Interrupted, the same call goes on.

    Raises UserError where shares do not fit together, have not ended, or are not all there.
    """
    shares, target = [RunFolder.open(part) for part in parts], Path(out)
    require_alike(shares)
    config = ConfigDict(shares[0].config)
    config.run = str(target)
    if not is_run_folder(target):
        join(prepared(config, TrainFlags(), config.run, choices=shares[0].choices), shares, target)
    run = fit_config(config, TrainFlags(resume=True))
    assert run is not None
    return run


class Run:
    """A run that has ended: what it found, and its models for other bags.

    path: its folder. Results are read when they are asked for, models are loaded once.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.path = folder.path
        self._folder = folder

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def config(self) -> ConfigDict:
        """All settings."""
        return ConfigDict(self._folder.config)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json: metrics with intervals, controls, statements."""
        summary: dict[str, Any] = self._folder.read_json("summary.json")
        return summary

    @property
    def predictions(self) -> pd.DataFrame:
        """predictions.csv: a row for each bag, fold, seed and part."""
        return self._folder.read_table("predictions.csv")

    @property
    def metrics(self) -> pd.DataFrame:
        """A row for each fold and seed, with the metrics of its test part; of several label columns with `label_column`."""
        with understood(self.path / "summary.json"):
            if "targets" not in self.summary:
                return pd.DataFrame(self.summary.get("runs", []))
            targets = self.summary["targets"].items()
            tables = [pd.DataFrame(one["runs"]).assign(label_column=name) for name, one in targets]
            return pd.concat(tables, ignore_index=True)

    @property
    def history(self) -> pd.DataFrame:
        """metrics.jsonl: a row for each run and epoch."""
        return pd.DataFrame(self._folder.read_metrics())

    @property
    def outputs(self) -> Any:
        """The names of what `predict` gives for each bag, such as prob_LUAD; {label column: names} where there are several."""
        names = {column: task.output_names for column, task in self._trained.tasks.items()}
        return names if len(names) > 1 else next(iter(names.values()))

    def predict(self, x: Any, coords: Any = None) -> Any:
        """Probabilities (of a regression its numbers), averaged over the models.

        x: one bag [n, *F], or a list of bags (then `coords` is one, too): float [bags, outputs], or {label column: ...} where there are
        several. Such bags count as new: all models are averaged. Or a folder of features: a data frame, a row for each slide; no model
        scores a patient whom it was trained or validated on.
        Raises UserError where the models read other features.
        """
        if isinstance(x, str | os.PathLike):
            return self._predict_folder(x)
        bags, places = (x, coords or [None] * len(x)) if isinstance(x, list | tuple) else ([x], [coords])
        found = [
            self._predictor.probabilities(np.asarray(self._predictor(*bag).logits))
            for bag in zip(bags, places, strict=True)
        ]
        columns = {name: np.stack([one[name] for one in found]) for name in self._trained.targets}
        return columns if len(columns) > 1 else next(iter(columns.values()))

    def attention(self, x: np.ndarray, coords: np.ndarray | None = None) -> np.ndarray:
        """What each instance of a bag [n, *F] weighs, averaged over the models: [n], or [branches, n].

        Raises ConfigError where the method has no attention, and for several label columns.
        """
        if len(self._trained.targets) > 1:
            raise ConfigError(
                "the run has several label columns, each with an attention of its own: train on one of them"
            )
        attention = self._predictor(x, coords).attention
        if attention is None:
            raise ConfigError(f"aggregator.name={self.config.aggregator.name} gives instances no attention")
        return np.asarray(np.mean(attention, axis=0))

    def to_torch(self, fold: int | str = 0, seed: int = 0, label_column: str = "", layout: str = "") -> dict[str, Any]:
        """A model's weights as a state dict of the published PyTorch code.

        fold: its name, as in splits.csv. layout: one of the method's published forms, else the first that fits.
        Raises ConfigError where there is no such model or form, and without PyTorch.
        """
        run = self._trained
        column = label_column or run.targets[0]
        named = {
            (run.targets[one.target], run.folds[one.target][one.fold], one.seed): number
            for number, one in enumerate(run.replicas)
        }
        number = named.get((column, str(fold), seed))
        if number is None:
            known = ", ".join(f"fold {name}, seed {one}" for target, name, one in named if target == column)
            raise ConfigError(
                f"the run has no model of fold {fold}, seed {seed}; there are: {known or ', '.join(run.targets)}"
            )
        try:
            import torch
        except ModuleNotFoundError as error:
            raise ConfigError("to_torch needs PyTorch: pip install 'mil-jax[torch]'") from error
        params = jax.tree.map(lambda x: x[number], run.params)
        state_dict = published_state_dict(self._predictor.strategy, params, layout)
        return {name: torch.from_numpy(np.array(value)) for name, value in state_dict.items()}

    def _predict_folder(self, folder: PathLike) -> pd.DataFrame:
        external = read_cohort(self._trained, Options("features", str(folder), name=Path(folder).name))
        tables = [
            averaged(group).table.assign(label_column=group.label_column) for group in score(self._trained, external)
        ]
        table = pd.concat(tables, ignore_index=True)
        return table if len(self._trained.targets) > 1 else table.drop(columns="label_column")

    @cached_property
    def _trained(self) -> TrainedRun:
        return TrainedRun.open(self.path)

    @cached_property
    def _predictor(self) -> ArrayPredictor:
        return ArrayPredictor(self._trained)


def _configured(config: PathLike, asked: Mapping[str, Any]) -> tuple[ConfigDict, list[str]]:
    """The whole config, and what its demo part changed. asked: settings by dotted name; None and "" leave the config's."""
    given = {name: value for name, value in asked.items() if value is not None and value != ""}
    arguments = [
        f"--config.{name}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in given.items()
    ]
    parsed, _, demo = parse(["--config", os.fspath(config), *arguments], lambda values: None)
    return parsed, demo
