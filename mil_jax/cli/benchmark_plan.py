"""What a benchmark is: methods, tasks and protocols, and the run that each pair of a method and a task becomes.

A benchmark file (configs/benchmarks/usual.py) defines `get_benchmark()`. A run is the command line of `python -m mil_jax.train`: the
settings of the benchmark, the method, the task and the protocol, then those of the user, of which the later ones win.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mil_jax.data.tables import listed, suggestion
from mil_jax.errors import ConfigError, DataError
from mil_jax.setting_names import present_arguments

_FROM_TABLES = ("data.labels", "data.classes", "splits.file")


@dataclass(frozen=True)
class Method:
    """config: its config file. settings: by dotted name, what is not as in the file; of_many: the same where there are over two classes."""

    config: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    of_many: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A task that is a label table of its own.

    stem: a regular expression for the end of the table's name, which begins with the cohort's. classes: their number, called 0, 1, ...
    """

    stem: str
    classes: int


@dataclass(frozen=True)
class Protocol:
    """settings: of every run. own_folds: splits are those of the label table, as they are published."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    own_folds: bool = False


@dataclass(frozen=True)
class Benchmark:
    """tables: the tasks, by name; without them the one task is what `data.labels` and `data.target` say. settings: of every run."""

    name: str
    methods: Mapping[str, Method]
    protocols: Mapping[str, Protocol]
    tables: Mapping[str, Table] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A label table: its cohort, and the name that the benchmark has for it; both "" in a benchmark without tables."""

    cohort: str = ""
    kind: str = ""
    path: Path = Path()
    classes: int = 0

    @property
    def name(self) -> str:
        return f"{self.cohort}_{self.kind}" if self.kind else ""


@dataclass(frozen=True)
class Run:
    """A method on a task: the command line that trains it, and its run folder."""

    method: str
    task: Task
    arguments: tuple[str, ...]
    folder: Path


def runs(
    benchmark: Benchmark,
    tasks: Sequence[Task],
    methods: Sequence[str],
    protocol: str,
    changed: Sequence[str],
    out: Path,
) -> list[Run]:
    """All runs, those of a task together. changed: `--config.SETTING=VALUE` of the user.

    Raises ConfigError for a protocol that there is not, and for a setting that the user may not change.
    """
    chosen = benchmark.protocols[chosen_of([protocol], benchmark.protocols, "--protocol")[0]]
    for argument in changed:
        name = argument.removeprefix("--config.").partition("=")[0]
        if name == "run" or (benchmark.tables and name in _FROM_TABLES):
            given = "--out" if name == "run" else "--tables"
            raise ConfigError(f"--config.{name} is set for each run, from {given}: leave it out")
    return [_run(benchmark, task, method, chosen, changed, out) for task in tasks for method in methods]


def _run(benchmark: Benchmark, task: Task, name: str, protocol: Protocol, changed: Sequence[str], out: Path) -> Run:
    method = benchmark.methods[name]
    settings = {**benchmark.settings, **method.settings, **(method.of_many if task.classes > 2 else {})}
    settings |= protocol.settings
    if benchmark.tables:
        settings["data.labels"] = task.path
        settings["data.classes"] = ",".join(map(str, range(task.classes)))
        if protocol.own_folds:
            settings["splits.file"] = task.path
    folder = out.joinpath(*map(_folder_name, filter(None, (task.name, name))))
    given = present_arguments([f"--config.{key}={value}" for key, value in settings.items()])
    return Run(name, task, (f"--config={method.config}", *given, *changed, f"--config.run={folder}"), folder)


def find_tasks(benchmark: Benchmark, folder: str) -> tuple[list[Task], list[str]]:
    """The tasks of the tables in a folder, in the order of the benchmark, and the names of tables that are none of its own.

    Of a list that is there in several states (`x_1.csv`, `x_1_1.csv`) the last one counts. Raises UserError where there is none.
    """
    if not benchmark.tables:
        if folder:
            raise ConfigError(
                f"--tables: {benchmark.name} has no tables of its own; name yours with --config.data.labels"
            )
        return [Task()], []
    if not folder:
        raise ConfigError(f"--tables is missing: name the folder that holds the label tables of {benchmark.name}")
    if not Path(folder).is_dir():
        raise DataError(f"--tables={folder}: there is no such folder; name the one that holds the label tables")
    paths = sorted(Path(folder).glob("*.csv"), key=lambda path: (len(path.stem), path.stem))
    found: dict[tuple[str, str], Path] = {}
    read = set()
    for name, table in benchmark.tables.items():
        pattern = re.compile(rf"(.+?)_(?:{table.stem})(?:_1)*", re.IGNORECASE)
        for path in paths:
            if matched := pattern.fullmatch(path.stem):
                found[matched[1], name] = path  # the longest name comes last
                read.add(path)
    if not found:
        raise DataError(
            f"--tables={folder}: none of its {len(paths)} tables is one of {benchmark.name}, such as "
            f"COHORT_{next(iter(benchmark.tables))}.csv"
        )
    tasks = [Task(cohort, kind, path, benchmark.tables[kind].classes) for (cohort, kind), path in found.items()]
    return tasks, [path.name for path in paths if path not in read]


def chosen_tasks(tasks: Sequence[Task], asked: Sequence[str]) -> list[Task]:
    """Those asked for, by name (`COHORT_EGFR_2`) or of all cohorts (`EGFR_2`); all where none is. Raises ConfigError for an unknown one."""
    known = list(dict.fromkeys([task.kind for task in tasks] + [task.name for task in tasks]))
    if asked and not any(known):
        raise ConfigError(
            "--tasks chooses among label tables, and this benchmark has none: name label columns in --config.data.target"
        )
    for name in asked:
        if name not in known:
            raise ConfigError(f"--tasks={name} is unknown{suggestion(name, known)}; there are {listed(known, 40)}")
    return [task for task in tasks if not asked or {task.kind, task.name} & set(asked)]


def chosen_of(asked: Sequence[str], known: Mapping[str, Any], flag: str) -> list[str]:
    """The names asked for, all where none is. Raises ConfigError for an unknown one."""
    for name in asked:
        if name not in known:
            raise ConfigError(f"{flag}={name} is unknown{suggestion(name, known)}; there are {listed(known, 40)}")
    return list(dict.fromkeys(asked)) or list(known)


def chosen_methods(asked: Sequence[str], methods: Mapping[str, Method]) -> list[str]:
    """The titles of the methods asked for by title or by the name of their config ("clam_sb"), all where none is.

    Raises ConfigError for an unknown name, and for a config of several methods.
    """
    titles = []
    for name in asked:
        of_config = (
            [] if name in methods else [title for title, one in methods.items() if Path(one.config).stem == name]
        )
        if len(of_config) > 1:
            raise ConfigError(f"--methods={name} is the config of {listed(of_config, 10)}: name one of these")
        titles.append(of_config[0] if of_config else name)
    return chosen_of(titles, methods, "--methods")


def _folder_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "_", name)
