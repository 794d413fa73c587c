"""Kills commands at random and at named instants, starts them again, and compares what is there with an undisturbed run, file by file.

    python scripts/kill_anywhere.py [--commands shard,train] [--kills 6] [--seed 0] [--folder DIR]

Each trial runs a command on a small cohort and ends it by SIGKILL, SIGTERM, SIGINT or SIGHUP: right before one of its file operations
(making, opening to write, renaming, linking or removing a file or folder, locking), some milliseconds after one, as in the middle of a
write, or at a moment drawn from its whole time. The same command is then started again (trainings with --resume), and must end well. All
files must then be those of an undisturbed run, none more, none less, but for what takes another value each time: see `VOLATILE`.
Of checkpoints the final parameters are compared, bit for bit. Also wrong: a traceback, or an exit code that is not the signal's.

Exit 0 only when nothing was wrong; a failure is printed with the command that repeats it.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

# What takes another value each time: names of JSON and of columns, and all that begin with "seconds"; of summary.md the lines.
VOLATILE = ("mtime_ns", "crc32c", "sessions", "compilations", "bags per second")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}
LONGEST = 300.0  # seconds, for a command that hangs
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate", "shutil.rmtree", "fcntl.flock"}
SLIDES = ("--count=2", "--width=1024", "--height=1024")
TILE = ("--mpp=0.5", "--tile=128", "--workers=1")
ENCODE = (
    *("--encoder=resnet18", "--weights=random", "--input-size=32", "--mean=0.5,0.5,0.5", "--std=0.5,0.5,0.5"),
    *("--pool=mean", "--batch-size=16", "--threads=2"),
)
SMALL = {
    "aggregator.feature_dim": 8,
    "aggregator.attention_dim": 4,
    "data.features": "{home}/cohort/features",
    "data.labels": "{home}/cohort/labels.csv",
    "data.target": "label",
    "data.patient": "none",
    "data.max_buckets": 1,
    "splits.folds": 2,
    "train.checkpoint_seconds": 0,
    "train.epochs": 3,
    "train.min_epochs": 0,
    "train.patience": 0,
}
SETTINGS = tuple(f"--config.{name}={value}" for name, value in SMALL.items())
BENCHMARK = """
from mil_jax.cli.benchmark_plan import Benchmark, Method, Protocol


def get_benchmark():
    return Benchmark(
        name="small",
        methods={"mean": Method("configs/mean_pooling.py"), "max": Method("configs/max_pooling.py")},
        protocols={"clean": Protocol()},
    )
"""


@dataclass(frozen=True)
class Command:
    """module: whose `main` it is, "" for the conversion into a cache. arguments: with {now} for the trial's folder and {home} for what
    all trials share. before: commands that make what it begins with. again: arguments of the second start.
    """

    module: str
    arguments: Sequence[str]
    before: Sequence[str] = ()
    again: Sequence[str] = ()
    imports: Sequence[str] = ()


COMMANDS = {
    "shard": Command(
        "data_prep.shard", ("--features={home}/cohort/features", "--out={now}/shards"), imports=("tensorflow_datasets",)
    ),
    "add": Command(
        "data_prep.shard", ("--features={home}/cohort/more", "--out={now}/shards", "--add"), before=("shard",)
    ),
    "overwrite": Command(
        "data_prep.shard", ("--features={home}/cohort/more", "--out={now}/shards", "--overwrite"), before=("shard",)
    ),
    "cache": Command("", ("{home}/cohort/features", "{now}/cache"), imports=("tensorflow_datasets",)),
    "demo_slides": Command("data_prep.demo_slides", ("--out={now}/slides", *SLIDES)),
    "tile": Command(
        "data_prep.tile", ("--slides={now}/slides", "--out={now}/work", *TILE, "--quality"), before=("demo_slides",)
    ),
    "encode": Command("data_prep.encode", ("--work={now}/work", *ENCODE), before=("demo_slides", "tile")),
    "train": Command(
        "mil_jax.train", ("--config=configs/abmil.py", *SETTINGS, "--config.run={now}/run"), again=("--resume",)
    ),
    "sweep": Command(
        "mil_jax.sweep",
        (
            *("--config=configs/abmil.py", *SETTINGS, "--config.run={now}/sweep"),
            *("--sweep=optimizer.lr=0.001,0.01", "--sweep=train.batch_size=1,2"),
        ),
        again=("--resume",),
    ),
    "benchmark": Command("mil_jax.benchmark", ("--config={home}/benchmark.py", *SETTINGS[2:], "--out={now}/benchmark")),
    "evaluate": Command(
        "mil_jax.evaluate",
        ("--run={now}/run", "--features={home}/cohort/more", "--labels={home}/cohort/more.csv"),
        before=("train",),
    ),
}


@dataclass(frozen=True)
class Kill:
    """When a process is killed: `delay` seconds after it begins (operation 0), or after it is about to do that file operation."""

    signal: int
    operation: int
    delay: float

    def __str__(self) -> str:
        where = f"before file operation {self.operation}" if self.operation else "after the start"
        after = f"{1000 * self.delay:.0f} ms " if self.delay else ""
        return f"{signal.Signals(self.signal).name} {after}{where}".replace("ms before", "ms after it was about to do")


@dataclass
class Watch:
    """An audit hook that counts the file operations below a folder, and kills the process at one of them.

    seen: the operations, in words.
    """

    below: str
    kill: Kill | None
    seen: list[str] = field(default_factory=list)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            if not isinstance(arguments[2], int) or not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event not in CHANGES:
            return
        place = "" if event == "fcntl.flock" or isinstance(arguments[0], int) else os.fsdecode(arguments[0])
        if event != "fcntl.flock" and not place.startswith(self.below):
            return
        self.seen.append(f"{event} {place.removeprefix(self.below)}")
        if self.kill is not None and len(self.seen) == self.kill.operation:
            self.strike()

    def strike(self) -> None:
        assert self.kill is not None
        if self.kill.delay:
            threading.Timer(self.kill.delay, os.kill, (os.getpid(), self.kill.signal)).start()
        else:
            os.kill(os.getpid(), self.kill.signal)


def run(command: Command, home: Path, kill: Kill | None, more: Sequence[str] = ()) -> tuple[int, str, list[str], float]:
    """Runs a command in a process of its own; returns its code (of a signal negative), output, file operations and seconds."""
    log, operations = home / "log.txt", home / "operations.txt"
    operations.unlink(missing_ok=True)
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        _become(command, home, kill, more, operations)
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            break
        if time.monotonic() - started > LONGEST:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    seen = operations.read_text().splitlines() if operations.exists() else []
    return os.waitstatus_to_exitcode(status), log.read_text(), seen, time.monotonic() - started


def _become(command: Command, home: Path, kill: Kill | None, more: Sequence[str], operations: Path) -> None:
    """The rest of a child's life."""
    from mil_jax.cli.console import run_command

    arguments = [text.format(home=home, now=home / "now") for text in (*command.arguments, *more)]
    watch = Watch(str(home / "now"), kill)
    sys.argv = ["kill_anywhere", *arguments]

    def main(arguments: list[str]) -> int:
        if kill is not None and not kill.operation:
            watch.strike()
        if not command.module:
            from mil_jax.data.shards.convert import shards_for_features

            return 0 if len(shards_for_features(*arguments)) else 1
        return int(importlib.import_module(command.module).main(arguments))

    sys.addaudithook(watch)
    code = 1
    try:
        run_command(main)
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    if kill is None:
        operations.write_text("\n".join(watch.seen))
    sys.stdout.flush()
    os._exit(code)


def make_cohort(folder: Path, names: str, seed: int) -> None:
    """Features of 12 slides, in a folder, and their labels."""
    rng = np.random.default_rng(seed)
    (folder / names).mkdir(parents=True)
    rows = ["slide_id,label"]
    for number in range(12):
        features = rng.normal(number % 2, 1, (20 + number, 8)).astype(np.float32)
        np.save(folder / names / f"{names}{number:02d}.npy", features)
        rows.append(f"{names}{number:02d},{'ab'[number % 2]}")
    (folder / f"{'labels' if names == 'features' else names}.csv").write_text("\n".join(rows) + "\n")


def files_of(folder: Path) -> dict[str, str]:
    """All files and empty folders by name, with a digest of what must be the same in each run."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if "/checkpoints/" in name and "tmp" not in name:
            if re.search("/checkpoints/final/[0-9]+$", name):
                found[name] = _parameters(path)
        elif path.is_file():
            found[name] = hashlib.sha256(_lasting(path)).hexdigest()[:16]
        elif not any(path.iterdir()):
            found[f"{name}/"] = ""
    return found


def _lasting(path: Path) -> bytes:
    if path.suffix == ".json":
        return json.dumps(_without_volatile(json.loads(path.read_text())), sort_keys=True).encode()
    if path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        return json.dumps([_without_volatile(json.loads(line)) for line in lines]).encode()
    if path.suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(path.read_text())))
        return json.dumps([_without_volatile(row) for row in rows]).encode()
    if path.suffix == ".md":
        lines = path.read_text().splitlines()
        return "\n".join(line for line in lines if not any(word in line for word in ("seconds", *VOLATILE))).encode()
    return path.read_bytes()


def _without_volatile(content: Any) -> Any:
    if isinstance(content, dict):
        kept = {key: value for key, value in content.items() if key not in VOLATILE and not key.startswith("seconds")}
        return {key: _without_volatile(value) for key, value in kept.items()}
    return [_without_volatile(value) for value in content] if isinstance(content, list) else content


def _parameters(step: Path) -> str:
    """Of the arrays of a checkpoint; read in a process of its own, since JAX that has been used does not survive a fork."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        import orbax.checkpoint as ocp

        try:
            with ocp.CheckpointManager(step.parent) as manager:
                arrays = manager.restore(int(step.name), args=ocp.args.Composite(arrays=ocp.args.StandardRestore()))
            import jax

            digest = hashlib.sha256()
            for key, value in jax.tree.leaves_with_path(arrays["arrays"]):
                array = np.asarray(value)
                digest.update(f"{key}{array.dtype}{array.shape}".encode() + array.tobytes())
            os.write(writing, digest.hexdigest()[:16].encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said:
        text = said.read()
    os.waitpid(child, 0)
    return text


def draw(rng: random.Random, operations: int, seconds: float) -> Kill:
    """An instant."""
    number, kind = int(rng.choice(SIGNALS)), rng.random()
    if kind < 0.25:
        return Kill(number, 0, round(rng.uniform(0, seconds), 3))
    return Kill(number, rng.randint(1, operations), 0.0 if kind < 0.75 else round(rng.uniform(0.001, 0.03), 4))


class Trials:
    """The trials of one command. Raises RuntimeError where it fails undisturbed."""

    def __init__(self, name: str, home: Path) -> None:
        self.name, self.home, self.now, self.command = name, home, home / "now", COMMANDS[name]
        self.start = home / f"before-{name}"
        shutil.rmtree(self.now, ignore_errors=True)
        self.now.mkdir()
        for other in self.command.before:
            self._undisturbed(COMMANDS[other])
        shutil.copytree(self.now, self.start)
        self._undisturbed(self.command)  # the compilation cache is filled
        self._begin()
        self.operations, self.seconds = self._undisturbed(self.command)
        self.expected = files_of(self.now)

    def _begin(self) -> None:
        shutil.rmtree(self.now)
        shutil.copytree(self.start, self.now)

    def _undisturbed(self, command: Command) -> tuple[list[str], float]:
        code, said, operations, seconds = run(command, self.home, None)
        if code:
            raise RuntimeError(f"{self.name}, undisturbed: exit {code}\n{said}")
        return operations, seconds

    def trial(self, kill: Kill) -> tuple[str, str]:
        """(what was wrong, or nothing; how the process ended)."""
        self._begin()
        code, said, _, _ = run(self.command, self.home, kill)
        ended = f"exit {code}" if code >= 0 else signal.Signals(-code).name
        if "Traceback" in said:
            return f"a traceback:\n{said}", ended
        if code not in (0, -signal.SIGKILL if kill.signal == signal.SIGKILL else CODES[signal.Signals(kill.signal)]):
            return f"exit {code}:\n{said}", ended
        code, said, _, _ = run(self.command, self.home, None, self.command.again)
        if code and not (code == 2 and ": exists" in said):
            return f"exit {code} when started again:\n{said}", ended
        found = files_of(self.now)
        names = sorted(found.keys() | self.expected.keys())
        different = [name for name in names if found.get(name) != self.expected.get(name)]
        words = [
            f"{name} ({'is left' if name not in self.expected else 'differs' if name in found else 'is missing'})"
            for name in different
        ]
        return ", ".join(words), ended


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--kills", type=int, default=6, help="of each command")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the instants; the seed of a kill is this and its number"
    )
    parser.add_argument("--first", type=int, default=0, help="number of the first kill, to repeat one")
    parser.add_argument("--folder", type=Path, help="where all is done, to look at it; a temporary folder by default")
    arguments = parser.parse_args()
    names = arguments.commands.split(",")
    for name in names:
        for module in (COMMANDS[name].module, *COMMANDS[name].imports):
            importlib.import_module(module or "mil_jax.data.shards.convert")
    kills = failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        home = (arguments.folder or Path(temporary)).resolve()
        os.environ["XDG_CACHE_HOME"] = os.environ["JAX_COMPILATION_CACHE_DIR"] = str(home / "cache")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        (home / "cache").mkdir(parents=True)
        (home / "benchmark.py").write_text(BENCHMARK)
        for part, seed in (("features", 0), ("more", 1)):
            make_cohort(home / "cohort", part, seed)
        for name in names:
            trials = Trials(name, home)
            print(f"{name}: {len(trials.operations)} file operations in {trials.seconds:.1f} s undisturbed", flush=True)
            for number in range(arguments.first, arguments.first + arguments.kills):
                kill = draw(random.Random(f"{arguments.seed} {name} {number}"), len(trials.operations), trials.seconds)
                what = f" ({trials.operations[kill.operation - 1]})" if kill.operation else ""
                wrong, ended = trials.trial(kill)
                kills += ended != "exit 0"
                failed += bool(wrong)
                print(f"{number:3d} {'FAIL' if wrong else 'pass'}: {kill}{what}: {ended}", flush=True)
                if wrong:
                    again = f"--commands {name} --seed {arguments.seed} --first {number} --kills 1"
                    print(f"{wrong}\nrepeat it: python scripts/kill_anywhere.py {again}", flush=True)
    print(f"{kills} kills that met a running command, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
