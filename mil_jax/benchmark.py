"""Trains several methods on one or several tasks and ends in one table: `python -m mil_jax.benchmark --config configs/benchmarks/usual.py`.

Each method on each task is a run of `python -m mil_jax.train` with a run folder of its own, below that of the benchmark. A run that has
ended is not trained again, one that was stopped goes on, and settings and data that are not those of a run are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from absl import flags

from mil_jax import train
from mil_jax.cli import session
from mil_jax.cli.arguments import TrainFlags
from mil_jax.cli.benchmark_plan import Benchmark, Run, chosen_of, chosen_tasks, find_tasks, runs
from mil_jax.cli.console import console, frame_table, run_command, say
from mil_jax.config import find_config, help_text, parse, run_file, split_off_config
from mil_jax.data.tables import listed
from mil_jax.errors import ConfigError, UserError
from mil_jax.experiment.experiment import Experiment
from mil_jax.experiment.fitter import fitter_of
from mil_jax.interop.feature_files import counted
from mil_jax.reports.benchmark import MethodOnTask, console_report, write_benchmark
from mil_jax.run_folder.folder import RunFolder, is_run_folder
from mil_jax.setting_names import present_arguments

ABOUT = """Trains methods x tasks x folds, resumes what was stopped, and ends in one table.

usage: python -m mil_jax.benchmark --config FILE [--methods A,B] [--tasks X,Y] [--protocol P] [--out FOLDER] [--config.SETTING=VALUE ...]

examples:
  python -m mil_jax.benchmark --config configs/benchmarks/usual.py --config.data.features=FEATURES --config.data.labels=labels.csv \\
      --config.data.target=subtype --out runs/benchmark
  python -m mil_jax.benchmark --config configs/benchmarks/pathgene.py --tables TABLES --config.data.features=FEATURES \\
      --methods ABMIL,TransMIL --tasks EGFR_2,TP53_3 --protocol clean

FILE defines the methods, each by a config of its own. --config.SETTING=VALUE changes a setting of all runs. The same command once more goes
on with what was stopped; with other methods or tasks and the same --out it trains what is missing. The table is of those asked for."""

RESUME = TrainFlags(resume=True)


def define_flags(values: flags.FlagValues) -> None:
    """The command's own flags; settings are `--config.*`."""
    flags.DEFINE_list("methods", [], "the methods, by their names in FILE; else all", flag_values=values)
    flags.DEFINE_list("tasks", [], "the label tables, by name; else all in --tables", flag_values=values)
    flags.DEFINE_string("tables", "", "of a benchmark with its own label tables: their folder", flag_values=values)
    flags.DEFINE_string("protocol", "clean", "one of those in FILE", flag_values=values)
    flags.DEFINE_string("out", "", "the folder of everything; else runs/NAME_PROTOCOL", flag_values=values)
    flags.DEFINE_bool(
        "check",
        False,
        "stop before training: show methods and tasks, with all data joined and checked",
        flag_values=values,
    )


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    if {"--help", "-help", "-h", "--helpfull"} & set(arguments):
        say(str(help_text(["--help"], define_flags, ABOUT)))
        return 0
    benchmark, values, changed = _read(arguments)
    found, strange = find_tasks(benchmark, values.tables)
    if strange:
        say(
            f"{values.tables}: {counted(len(strange), 'table')} left unread, no tasks of {benchmark.name}: {listed(strange, 10)}"
        )
    tasks, methods = chosen_tasks(found, values.tasks), chosen_of(values.methods, benchmark.methods, "--methods")
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
        code = train.main([*run.arguments, "--resume"])
        if code:
            return code
    content = write_benchmark(
        out, benchmark.name, values.protocol, [MethodOnTask(run.method, run.task.name, run.folder) for run in planned]
    )
    console.print(console_report(content), soft_wrap=False)
    say(f"Everything is in {out}: summary.md, results.csv, benchmark.json, and a run folder for each method and task.")
    return 0


def _read(arguments: list[str]) -> tuple[Benchmark, flags.FlagValues, list[str]]:
    """The benchmark file, the command's flags, and the settings that the user changes in all runs."""
    named, rest = split_off_config(arguments)
    if not named:
        raise ConfigError("--config is missing: name a benchmark file, such as --config configs/benchmarks/usual.py")
    benchmark = run_file(find_config(named), "get_benchmark")
    if not isinstance(benchmark, Benchmark):
        raise ConfigError(f"--config={named}: get_benchmark() must return a Benchmark")
    rest = present_arguments(rest)
    changed = [argument for argument in rest if argument.startswith("--config.")]
    values = flags.FlagValues()
    define_flags(values)
    try:
        unparsed = values(["mil_jax.benchmark", *(one for one in rest if one not in changed)])[1:]
    except flags.Error as error:
        raise ConfigError(f"{str(error).splitlines()[0]}; --help lists the options") from error
    if unparsed:
        raise ConfigError(f"{unparsed[0]!r} is no option; methods are given as --methods A,B")
    return benchmark, values, changed


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


if __name__ == "__main__":
    run_command(main)
