"""Tries settings, group by group, and reports what was chosen."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from absl import flags

from mil_jax.cli import session
from mil_jax.cli.arguments import train_flags
from mil_jax.cli.console import console, say
from mil_jax.cli.overview import describe_experiment
from mil_jax.cli.sweep_grid import Axis, Group, Point, draw_points, grouped, read_axes, shown, with_point
from mil_jax.config import ConfigDict, source_of
from mil_jax.data.splits.splits import TEST
from mil_jax.engine.callbacks import TrainingInterrupted
from mil_jax.engine.types import FitResult
from mil_jax.errors import ConfigError
from mil_jax.experiment.experiment import Experiment, strategy
from mil_jax.experiment.fitter import fitter_of
from mil_jax.experiment.prepare import derived
from mil_jax.experiment.run import FREE_ON_RESUME, train_in
from mil_jax.interop.feature_files import counted
from mil_jax.reports import sweep as report
from mil_jax.reports.run import collect
from mil_jax.reports.run.data_notes import notes_on_data
from mil_jax.run_folder.folder import RunFolder
from mil_jax.setting_names import present_arguments
from mil_jax.tasks.base import monitor_label


def run(config: ConfigDict, values: flags.FlagValues, demo: list[str]) -> int:
    """Trains and reports the sweep; returns the command's exit code. values: of the command's flags."""
    bare = [text.strip().removeprefix("--").removeprefix("config.") for text in values.sweep]
    asked = [text.removeprefix("config.") for text in present_arguments([f"config.{text}" for text in bare])]
    axes = read_axes(asked, config, random=values.random)
    points = draw_points(axes, config, values.random)
    started = time.monotonic()
    name = config.run or f"runs/{config.name}_sweep"
    how = train_flags(values)
    base = session.prepared(config, how, name)
    _require_choosable(base)
    groups = grouped(points, base.config)
    experiments = [_experiment(base, group, points) for group in groups]
    describe_experiment(base, demo, everything=values.check)
    runs = sum(len(experiment.plan.replicas) for experiment in experiments)
    say(
        f"sweep of {', '.join(axis.name for axis in axes)}: {counted(len(points), 'setting')} in "
        f"{counted(len(groups), 'group')} of one program each, {runs} runs in all"
    )
    if values.check:
        return 0
    settings = {**config.to_dict(), "sweep": asked, "random": values.random}
    with session.open_folder(fitter_of(base), how, name, settings) as folder:
        if folder.is_complete:
            return 0
        folder.write_choices({"ladder": list(base.ladder.lengths), "blocks": base.blocks})
        fits = []
        for number, (group, experiment) in enumerate(zip(groups, experiments)):
            try:
                fits.append(_train(folder, experiment, number, group, len(groups)))
            except TrainingInterrupted as stopped:
                say(f"Stopped; the state is saved. Resume it with --resume --config.run={folder.path}")
                return stopped.exit_code
        for empty in (*folder.path.glob("checkpoints"), *(folder.path / "groups").glob("*/figures")):
            empty.rmdir()  # what a run folder usually has, and a sweep fills elsewhere
        _report(folder, config, base, axes, points, list(zip(groups, experiments, fits)), time.monotonic() - started)
        say(f"Everything is in {folder.path}: summary.md, settings.csv, predictions.csv, best.py, figures/, groups/.")
        return 0


def _require_choosable(experiment: Experiment) -> None:
    if len(experiment.targets) > 1:
        raise ConfigError("a sweep is for one label column, as each has its own best setting: name one in data.target")
    if experiment.selection_part == TEST:
        raise ConfigError(
            "settings are not chosen on test parts, and train.protocol=reference has no validation part here: use "
            "train.protocol=clean"
        )


def _experiment(base: Experiment, group: Group, points: Sequence[Point]) -> Experiment:
    """The runs of a group; every point of it is checked before anything is trained."""
    for number in group.numbers:
        config = with_point(base.config, points[number])
        strategy(dataclasses.replace(base, config=config))
        dataclasses.replace(base.task, **{name: config.task[name] for name in base.task.settings})
    return derived(base, group.config, group.overrides)


def _train(folder: RunFolder, experiment: Experiment, number: int, group: Group, of: int) -> FitResult:
    """Trains a group in its own folder, or resumes it. Raises TrainingInterrupted when asked to stop."""
    title = f"group {number + 1} of {of}" if of > 1 else ""
    if title:
        say(f"{title}: {group.name or 'the config as it is'}, {counted(len(experiment.plan.replicas), 'run')}")
    with RunFolder.create(
        _group_folder(folder, number),
        experiment.config.to_dict(),
        experiment.fingerprints,
        resume=folder.resumed,
        free=FREE_ON_RESUME,
    ) as own:
        fit = session.train_with_progress(fitter_of(experiment), own, train_in, title)
    return dataclasses.replace(fit, state=None)  # no parameters are kept


def _report(
    folder: RunFolder,
    config: ConfigDict,
    base: Experiment,
    axes: Sequence[Axis],
    points: Sequence[Point],
    trained: Sequence[tuple[Group, Experiment, FitResult]],
    seconds: float,
) -> None:
    """Chooses, writes what was found, and shows it."""
    target, fold_names = base.targets[0], collect.fold_names(base.targets[0])
    scores = pd.concat([_scores(*one) for one in trained], ignore_index=True)
    choice = report.choose(scores, trained[0][1].selection.monitor, fold_names)
    config = with_point(config, points[choice.best])
    config.name, config.run = f"{config.name}_best", ""
    about = (
        f"The settings with the best mean {monitor_label(choice.select)} of a sweep: {shown(points[choice.best])}.\n\n"
        f"    python -m mil_jax.train --config {folder.path / 'best.py'}\n\n"
        "Chosen on the validation parts of all folds. They have no test score of their own: cross-validated on the same cohort\n"
        "they look a little too good, as validation bags of one fold are test bags of another.\n"
    )
    folder.write_text("best.py", source_of(config, about))
    own = [RunFolder.open(_group_folder(folder, number)).read_metrics() for number in range(len(trained))]
    with console.status("predictions, intervals and figures"):
        summary = report.write_sweep_summary(
            folder,
            target.task,
            pd.concat([_chosen_predictions(*one, choice, points) for one in trained], ignore_index=True),
            [{axis.name: point[axis.name] for axis in axes} for point in points],
            scores,
            choice,
            constants=collect.constant_answers(target),
            protocol=collect.run_protocol(trained[0][1]),
            title=f"{collect.title(base)}, sweep",
            fold_names=fold_names,
            notes=notes_on_data(base),
            facts={
                "settings": len(points),
                "groups": len(trained),
                "runs": len(scores),
                "compilations": sum(fit.facts["compilations"] for _, _, fit in trained),
                "seconds of training, compilation included": sum(rows[-1]["seconds"] for rows in own),
                "seconds of the last session": seconds,
            },
        )
    console.print(report.console_report(summary), soft_wrap=False)


def _scores(group: Group, experiment: Experiment, fit: FitResult) -> pd.DataFrame:
    """A row for each run: number (of its setting), fold, seed, score (NaN: none), epoch (the best, from 1), failed."""
    replicas, progress = experiment.plan.replicas, fit.progress
    return pd.DataFrame(
        {
            "number": _numbers(group, experiment),
            "fold": [replica.fold for replica in replicas],
            "seed": [replica.seed for replica in replicas],
            "score": np.where(progress.best_epoch >= 0, progress.best, np.nan),
            "epoch": progress.best_epoch + 1,
            "failed": progress.failed >= 0,
        }
    )


def _chosen_predictions(
    group: Group, experiment: Experiment, fit: FitResult, choice: report.Choice, points: Sequence[Point]
) -> pd.DataFrame | None:
    """The predictions of the runs of a group whose fold chose their setting; None where no fold chose here."""
    pairs = zip(experiment.plan.replicas, _numbers(group, experiment))
    chosen = [r for r, (replica, number) in enumerate(pairs) if choice.of_fold[replica.fold] == number]
    if not chosen:
        return None
    rows = collect.predictions(experiment, fit, chosen)
    return rows.assign(setting=[shown(points[choice.of_fold[fold]]) for fold in rows["fold"]])


def _numbers(group: Group, experiment: Experiment) -> list[int]:
    """The number of the setting of each run."""
    number = dict(zip(group.overrides, group.numbers))
    return [number[replica.overrides] for replica in experiment.plan.replicas]


def _group_folder(folder: RunFolder, number: int) -> Path:
    return folder.path / "groups" / str(number)
