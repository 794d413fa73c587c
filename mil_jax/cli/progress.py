"""How far a command is: a bar for the conversion of features, and for a training that also writes metrics.jsonl and stops on signals.

Where no bar can be shown (a log file), a line is printed every half minute.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mil_jax.cli.console import console, heeded, say
from mil_jax.cli.loggers import open_loggers
from mil_jax.data.shards import convert
from mil_jax.data.splits.splits import TEST, TRAIN
from mil_jax.experiment.experiment import Experiment
from mil_jax.experiment.phases import stage_names
from mil_jax.run_folder.folder import RunFolder

SECONDS_BETWEEN_LINES = 30.0
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def conversion_progress() -> Iterator[convert.Progress]:
    """A function for `prepare` that shows how far the conversion of feature files is; nothing where none is needed."""
    with _bar("slides") as bar:

        def progress(done: int, total: int, slide: str) -> None:
            task = bar.task_ids[0] if bar.task_ids else bar.add_task("converting features", rate="", total=total)
            bar.update(task, completed=done, description=f"converting features {slide}")

        yield progress


class StopOnSignal:
    """A listener of the engine that, while it is entered, asks to stop on Ctrl-C, SIGTERM and SIGHUP, and says nothing else.

    stopped_by: the signal, 0 before. A second Ctrl-C is a KeyboardInterrupt.
    """

    stopped_by = 0

    def __enter__(self) -> Self:
        self.before = {number: signal.signal(number, self._stop) for number in heeded(STOPPING)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, _: object) -> None:
        if self.stopped_by and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stopped_by = number
        if number != signal.SIGHUP:  # there is a terminal
            say(
                "Stopping; the state is saved first."
                + (" Ctrl-C again stops at once." if number == signal.SIGINT else "")
            )

    def phase(self, name: str, epoch: int, epochs: int) -> None:
        """Nothing to say."""

    def steps(self, count: int) -> None:
        """Nothing to say."""

    def epoch(self, rows: list[dict[str, Any]]) -> None:
        """Nothing to say."""

    def stop_requested(self) -> bool:
        return bool(self.stopped_by)


class TrainingProgress(StopOnSignal):
    """Shows progress and writes metrics.jsonl, too."""

    def __init__(self, experiment: Experiment, folder: RunFolder, title: str = "") -> None:
        """title: said before everything, where there are several trainings."""
        self.experiment, self.folder, self.title = experiment, folder, title and f"{title}: "
        train_settings = experiment.config.train
        self.loggers = open_loggers(folder, tensorboard=train_settings.tensorboard, wandb=train_settings.wandb)
        self.bar = _bar("bags, ")
        training = (experiment.parts == TRAIN).sum(axis=1)
        self.bags_per_epoch = int(sum(training[experiment.row(replica)] for replica in experiment.plan.replicas))
        self.batch_size = train_settings.batch_size

    def __enter__(self) -> Self:
        self.bar.start()
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        super().__exit__()
        self.loggers.close()

    def phase(self, name: str, epoch: int, epochs: int) -> None:
        self.folder.truncate_metrics(name, epoch - 1)
        stages = stage_names(self.experiment.config)
        self.stage = f"{self.title}stage {name}: " if len(stages) > 1 else self.title
        rows = self.folder.read_metrics()
        self.seconds_before = rows[-1]["seconds"] if rows else 0.0
        self.begun = self.line_at = time.monotonic()
        self.epochs = epochs
        self.done = self.done_before = epoch * self.bags_per_epoch
        self.task = self.bar.add_task(
            f"{self.title}{name}", total=self.bags_per_epoch * epochs, completed=self.done, rate="compiling"
        )
        if self.folder.resumed:
            where = f"Resumed in epoch {epoch + 1} of {epochs}." if epoch < epochs else "All epochs are done."
            say(self.stage + where)

    def steps(self, count: int) -> None:
        self.done += count * self.batch_size
        self.bar.update(self.task, completed=self.done, rate=f"{self._rate():,.0f} bags/s")

    def _rate(self) -> float:
        return (self.done - self.done_before) / max(time.monotonic() - self.begun, 1e-9)

    def epoch(self, rows: list[dict[str, Any]]) -> None:
        seconds = round(self.seconds_before + time.monotonic() - self.begun, 3)
        named = [{**row, **self._names(row), "seconds": seconds} for row in rows]
        self.folder.append_metrics(named)
        self.loggers.log([{name: value for name, value in row.items() if name != "seconds"} for row in named])
        epoch = rows[0]["epoch"] + 1
        # Runs that have stopped early leave less to do than was thought.
        left = (self.epochs - epoch) * sum(row["steps"] for row in rows) * self.batch_size
        shown = f"{self.stage}epoch {epoch}/{self.epochs}, {len(rows)} runs{_means(rows)}"
        if self.experiment.selection_part == TEST:
            shown = shown.replace(" val ", " test ")
        self.bar.update(self.task, total=self.done + left, description=shown)
        if not console.is_terminal and time.monotonic() - self.line_at > SECONDS_BETWEEN_LINES:
            self.line_at = time.monotonic()
            rate = self._rate()
            say(f"{shown}; {rate:,.0f} bags/s, {left / max(rate, 1e-9) / 60:.1f} minutes left at most")

    def _names(self, row: dict[str, Any]) -> dict[str, Any]:
        """What the numbers of a row mean: the fold, the label column where there are several, the settings that differ."""
        target, columns = self.experiment.targets[row["target"]], self.experiment.columns
        overrides = self.experiment.plan.replicas[row["replica"]].overrides
        settings = {"settings": dict(overrides)} if overrides else {}
        return {"fold_name": target.splits.names[row["fold"]], **columns.field(row["target"]), **settings}


def _means(rows: list[dict[str, Any]]) -> str:
    """Means over the runs of an epoch, of what is finite."""
    text = ""
    for key in [key for key in rows[0] if key == "train_loss" or key.startswith("val_")]:
        values = [row[key] for row in rows if key in row and math.isfinite(row[key])]
        text += f", {key.replace('_', ' ')} {np.mean(values):.3f}" if values else ""
    return text


def _bar(unit: str) -> Progress:
    """A progress bar with a rate, which each task gives as the field `rate`, and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit + "{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
