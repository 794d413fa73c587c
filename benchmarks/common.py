"""What the benchmarks share: timing in pairs, the facts that every result carries, and the table of all results.

    python -m benchmarks.common                writes the table at the end of benchmarks/README.md from benchmarks/results/*.json

A result is a JSON file with the command, machine, versions, date, commit, figures, and `table`: rows (what, bar, result).
"""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from absl import flags

from mil_jax.run_folder.environment import describe_environment

RESULTS = Path(__file__).parent / "results"
HEADING = "## Results"
DEFAULT_MACHINE = f"{platform.system()}-{platform.machine()}".lower()
MACHINE = flags.DEFINE_string("machine", DEFAULT_MACHINE, "Name of the machine, for the result's file.")


def paired(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in every round; within a round the ways take turns, in turned order every second round."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways) if number % 2 == 0 else list(reversed(ways)):
            start = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def in_turns(
    make: Callable[..., Sequence[Callable[[], Any]]],
    names: Sequence[str],
    arguments: Sequence[Any],
    rounds: int,
    turn_seconds: float,
) -> dict[str, list[float]]:
    """Median seconds of a step of each in every round, each library in a process of its own.

    make: what `make(name, *arguments)` returns there are ways of doing the same step, of which the faster counts in each turn.
    """
    context = multiprocessing.get_context("spawn")
    workers: dict[str, tuple[Any, Connection]] = {}
    for name in names:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(make, name, arguments, turn_seconds, theirs), daemon=True)
        process.start()
        theirs.close()
        workers[name] = process, ours
        ours.recv()  # compiled and warm
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for number in range(rounds):
        for name in list(workers) if number % 2 else reversed(workers):
            workers[name][1].send("run")
            seconds[name].append(workers[name][1].recv())
    for process, connection in workers.values():
        connection.close()
        process.join()
    return seconds


def use_threads(number: int) -> None:
    """This process and those that it starts keep to so many cores, where the system can say which."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:number]))


def _work(
    make: Callable[..., Sequence[Callable[[], Any]]],
    name: str,
    arguments: Sequence[Any],
    turn_seconds: float,
    connection: Connection,
) -> None:
    """Answers every message with the seconds of a turn."""
    steps = make(name, *arguments)
    for step in steps:
        _turn(step, turn_seconds)
    connection.send("ready")
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        connection.send(min(_turn(step, turn_seconds) for step in steps))


def _turn(step: Callable[[], Any], turn_seconds: float) -> float:
    seconds: list[float] = []
    while sum(seconds) < turn_seconds:
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """The median over the rounds of the ratio within a round: what slows a whole round cancels."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def write_result(
    name: str,
    machine: str,
    figures: dict[str, Any],
    table: Sequence[tuple[str, str, str]],
    *,
    part: str = "",
    arguments: Sequence[str] | None = None,
    folder: Path = RESULTS,
) -> None:
    """Writes <folder>/<name>[-<part>]-<machine>.json and prints it. table: rows (what, bar, result).

    arguments: of the command, where they are not those of this process.
    """
    environment = describe_environment()
    result = {
        "command": " ".join([f"python -m benchmarks.{name}", *(sys.argv[1:] if arguments is None else arguments)]),
        "date": datetime.date.today().isoformat(),
        "machine": {"name": machine, "cpu": _cpu_model(), "memory_GB": _memory_gb(), "load_average": os.getloadavg()[0]}
        | {key: environment[key] for key in ("system", "cpu_cores", "devices")},
        "versions": environment["versions"],
        "commit": environment["commit"],
        "table": [dict(zip(("what", "bar", "result"), row, strict=True)) for row in table],
        "figures": figures,
    }
    folder.mkdir(exist_ok=True)
    text = json.dumps(result, indent=1)
    (folder / f"{'-'.join(filter(None, (name, part, machine)))}.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def table() -> str:
    """All results as one Markdown table."""
    lines = ["| what | bar | result | command, machine, date |", "| --- | --- | --- | --- |"]
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        source = f"`{result['command']}`, {result['machine']['name']}, {result['date']}"
        lines += [f"| {row['what']} | {row['bar']} | {row['result']} | {source} |" for row in result.get("table", ())]
    return "\n".join(lines)


def write_table() -> None:
    """Renews what stands under the heading of the README's results."""
    readme = Path(__file__).parent / "README.md"
    before = readme.read_text(encoding="utf-8").partition(HEADING)[0]
    readme.write_text(f"{before}{HEADING}\n\n{table()}\n", encoding="utf-8")


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory_gb() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)


if __name__ == "__main__":
    write_table()
