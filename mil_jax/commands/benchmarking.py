"""Trains methods on tasks, one run folder after another, and reports them in one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from absl import flags

from mil_jax.cli import session
from mil_jax.cli.arguments import TrainFlags
from mil_jax.cli.benchmark_plan import Benchmark, Run, chosen_methods, chosen_tasks, find_tasks, runs
from mil_jax.cli.console import console, frame_table, say
from mil_jax.config import parse
from mil_jax.data.tables import listed
from mil_jax.errors import ConfigError, UserError
from mil_jax.experiment.experiment import Experiment
from mil_jax.experiment.fitter import fitter_of
from mil_jax.interop.feature_files import counted
from mil_jax.reports.benchmark import MethodOnTask, console_report, write_benchmark
from mil_jax.run_folder.folder import RunFolder, is_run_folder

RESUME = TrainFlags(resume=True)


def run(benchmark: Benchmark, values: flags.FlagValues, changed: list[str], train: Callable[[list[str]], int]) -> int:
    """Trains what has not ended, and reports; returns the command's exit code.

    values: of the command's flags. changed: settings of all runs. train: the command that trains.
    """
    found, strange = find_tasks(benchmark, values.tables)
    if strange:
        say(
            f"{values.tables}: {counted(len(strange), 'table')} left unread, no tasks of {benchmark.name}: {listed(strange, 10)}"
        )
    tasks, methods = chosen_tasks(found, values.tasks), chosen_methods(values.methods, benchmark.methods)
    out = Path(values.out or f"runs/{benchmark.name}_{values.protocol}")
    planned = runs(benchmark, tasks, methods, values.protocol, changed, out)
    pairs = f"{counted(len(methods), 'method')} on {counted(len(tasks), 'task')}"
    say(f"{benchmark.name}, protocol {values.protocol}: {pairs}; checking them ...")
    _check(planned, show=values.check)
    if values.check:
        return 0
    for number, run in enumerate(planned, start=1):
        say(f"\n{number} of {len(planned)}: {_title(run)}")
        if _has_ended(run):
            continue
        code = train([*run.arguments, "--resume"])
        if code:
            return code
    content = write_benchmark(
        out, benchmark.name, values.protocol, [MethodOnTask(run.method, run.task.name, run.folder) for run in planned]
    )
    console.print(console_report(content), soft_wrap=False)
    say(f"Everything is in {out}: summary.md, results.csv, benchmark.json, and a run folder for each method and task.")
    return 0


def _check(planned: Sequence[Run], *, show: bool) -> None:
    """Finds what cannot work before anything is trained: all settings, all methods on the first task, the first method on all tasks."""
    rows = []
    for run in planned:
        try:
            config, _, _ = parse([*run.arguments], lambda values: None)
            if config.distributed.coordinator:
                raise ConfigError("a benchmark runs in one process: leave distributed.coordinator out")
            if planned[0].task == run.task or planned[0].method == run.method:
                experiment = session.prepared(config, RESUME, str(run.folder))
                if planned[0].method == run.method:
                    rows += _described(run, experiment)
        except UserError as error:
            raise type(error)(f"{_title(run)}: {error}") from error
    if show:
        say(f"methods: {', '.join(dict.fromkeys(run.method for run in planned))}")
        console.print(frame_table("tasks", pd.DataFrame(rows)))


def _has_ended(run: Run) -> bool:
    """Whether there is nothing left to do. Raises RunFolderError where what there is has other settings or data."""
    if not (is_run_folder(run.folder) and RunFolder.open(run.folder).is_complete):
        return False
    config, _, _ = parse([*run.arguments], lambda values: None)
    experiment = session.prepared(config, RESUME, str(run.folder))
    with session.open_folder(fitter_of(experiment), RESUME, str(run.folder), config.to_dict()) as folder:
        return folder.is_complete


def _described(run: Run, experiment: Experiment) -> list[dict[str, object]]:
    """A row for each label column."""
    return [
        {
            "task": run.task.name or target.name,
            "folds": len(target.splits.parts),
            "bags": int(sum(target.class_counts.values())),
            "of each class": " / ".join(map(str, target.class_counts.values())),
        }
        for target in experiment.targets
    ]


def _title(run: Run) -> str:
    return f"{run.method} on {run.task.name}" if run.task.name else run.method
