"""Whether large inputs go through the commands, and what that takes: seconds, CPU seconds, peak memory of the process.

    python -m benchmarks.large_inputs --machine laptop [--part check] [--small] [--scratch DIR]

Each part draws its input, runs the commands as a user would, each in a process of its own, and fails where one fails:
`check`: `train --check` of growing cohorts. `slide`: one slide of 400,000 x 1,024 through `data_prep.shard`, then one training step on
it. `columns`: 3,000 label columns in one run. `table`: a label table of 10^6 rows, of which the cohort has a thousand. `files`: a
folder of 100,000 feature files. Seconds of a second point show whether the time grows as the input does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from absl import app, flags

from benchmarks.common import MACHINE, RESULTS, write_result

_PART = flags.DEFINE_string("part", "", "One part only.")
_SMALL = flags.DEFINE_bool("small", False, "Tiny inputs, to try the benchmark.")
_SCRATCH = flags.DEFINE_string("scratch", "", "Folder for the inputs; they are removed. Unset: the system's.")
_RESULTS = flags.DEFINE_string("results", str(RESULTS), "Folder of the result.")

Figures = dict[str, float]


def command(module: str, *arguments: object) -> Figures:
    """Runs a command in a process of its own; its figures. Raises RuntimeError where it fails."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)], stdout=output, stderr=subprocess.STDOUT
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"{' '.join(process.args)} ended with {process.returncode}: {output.read()[-2000:]!r}")
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_GB": round(used.ru_maxrss * 1024 / 1e9, 2),
    }


def write_cohort(folder: Path, slides: int, tiles: int = 4, dim: int = 8) -> None:
    """Feature files and a label table of a drawn cohort; two slides a patient."""
    (folder / "features").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(slides):
        np.save(folder / "features" / f"s{number:06d}.npy", rng.normal(size=(tiles, dim)).astype(np.float32))
    write_table(folder, slides, slides)


def write_table(folder: Path, rows: int, slides: int, columns: int = 1) -> None:
    """`labels.csv` of `rows` rows, of which the first `slides` have features."""
    rng = np.random.default_rng(1)
    numbers = np.arange(rows)
    table = {
        "slide_id": [f"s{number:06d}" for number in numbers],
        "case_id": [f"p{number // 2:06d}" for number in numbers],
    }
    labels = {
        f"label_{column}" if columns > 1 else "label": rng.choice(["A", "B"], max(rows, slides))[:rows]
        for column in range(columns)
    }
    pd.DataFrame(table | labels).to_csv(folder / "labels.csv", index=False)


def train(folder: Path, *more: object, target: str = "label", config: str = "configs/mean_pooling.py") -> Figures:
    """A training command on a drawn cohort."""
    return command(
        "mil_jax.train",
        f"--config={config}",
        f"--config.data.features={folder / 'features'}",
        f"--config.data.labels={folder / 'labels.csv'}",
        f"--config.data.target={target}",
        "--config.data.patient=case_id",
        f"--config.data.cache={folder / 'cache'}",
        f"--config.run={folder / 'run'}",
        *more,
    )


def check(folder: Path, small: bool) -> dict[str, Figures]:
    """`train --check` of growing cohorts: the first time, which converts the files, and again."""
    figures = {}
    for slides in (20, 40) if small else (5_000, 10_000, 20_000):
        cohort = folder / str(slides)
        write_cohort(cohort, slides)
        figures[f"check of {slides:,} slides, with conversion"] = train(cohort, "--check")
        figures[f"check of {slides:,} slides, again"] = train(cohort, "--check")
    return figures


def slide(folder: Path, small: bool) -> dict[str, Figures]:
    """The longest of 40 slides has 400,000 tiles of 1,024 numbers; in training it is one step of one epoch."""
    write_cohort(folder, 40, dim=1024)
    rng = np.random.default_rng(2)
    tiles = 500 if small else 400_000
    (folder / "features" / "s000000.npy").unlink()
    with h5py.File(folder / "features" / "s000000.h5", "w") as file:
        features = file.create_dataset("features", (tiles, 1024), np.float16)
        for start in range(0, tiles, 10_000):
            part = features[start : start + 10_000]
            features[start : start + 10_000] = rng.normal(size=part.shape).astype(np.float16)
        file["coords"] = np.stack([np.arange(tiles) * 256, np.zeros(tiles, int)], 1)
    for path in (folder / "features").glob("*.npy"):  # of the same type as the long one
        np.save(path, np.load(path).astype(np.float16))
    sharded = command("data_prep.shard", f"--features={folder / 'features'}", f"--out={folder / 'shards'}")
    more = (
        "--config.splits.folds=2",
        "--config.train.epochs=1",
        f"--config.data.shards={folder / 'shards'}",
        "--config.data.features=",
    )
    trained = train(folder, *more, config="configs/abmil.py")
    return {
        f"shards of a slide of {tiles:,} x 1,024": sharded,
        f"ABMIL, 2 folds, an epoch with {tiles:,} tiles": trained,
    }


def columns(folder: Path, small: bool) -> dict[str, Figures]:
    """Label columns of one cohort, trained side by side for 2 epochs."""
    wide = 30 if small else 3_000
    write_cohort(folder, 60)
    write_table(folder, 60, 60, wide)
    more = ("--config.train.epochs=2", "--config.splits.folds=2")
    return {f"{wide:,} label columns, 60 slides, 2 folds, 2 epochs": train(folder, *more, target="label_*")}


def table(folder: Path, small: bool) -> dict[str, Figures]:
    """`train --check` with a table that is far longer than the cohort."""
    figures = {}
    write_cohort(folder, 60 if small else 1_000)
    for rows in (100, 200) if small else (500_000, 1_000_000):
        write_table(folder, rows, 60)
        figures[f"check of a table of {rows:,} rows"] = train(folder, "--check", "--config.data.min_matched=0")
    return figures


def files(folder: Path, small: bool) -> dict[str, Figures]:
    """`train --check` with a folder of features of which the table names every hundredth slide."""
    count = 400 if small else 100_000
    write_cohort(folder, count)
    pd.read_csv(folder / "labels.csv").iloc[:: 10 if small else 100].to_csv(folder / "labels.csv", index=False)
    return {f"check with a folder of {count:,} files": train(folder, "--check")}


PARTS: dict[str, Callable[[Path, bool], dict[str, Figures]]] = {
    one.__name__: one for one in (check, slide, columns, table, files)
}


def main(_: list[str]) -> None:
    """Runs the parts and writes their figures."""
    for name in [_PART.value] if _PART.value else PARTS:
        with tempfile.TemporaryDirectory(dir=_SCRATCH.value or None) as scratch:
            figures = PARTS[name](Path(scratch) / "cohort", _SMALL.value)
        rows = [
            (what, "goes through", f"{one['seconds']} s, {one['cpu_seconds']} s of CPU, peak {one['peak_GB']} GB")
            for what, one in figures.items()
        ]
        folder = Path(_RESULTS.value)
        write_result("large_inputs", MACHINE.value, dict(figures), rows, part=name, folder=folder)


if __name__ == "__main__":
    app.run(main)
