"""How time and memory grow: with instances, bags, runs, target columns and devices. Curves, fitted slopes, pictures.

    python -m benchmarks.scaling --machine laptop                       all parts
    python -m benchmarks.scaling --machine laptop --part instances --aggregators abmil,dsmil

Each point is a process of its own, so that its peak memory is its own. `instances`: a training step (forward, backward, update; one
run, one device, the published widths, D = 1024) of a bag that fills its bucket, for each aggregator; a curve ends where the step's
temporary memory would exceed 70 % of the machine's. The other parts time one epoch of small gated ABMIL as the engine sends it:
against the number of bags, of runs, of target columns (one run each), and of devices. Devices of a CPU are simulated and share its
cores: that part shows that more devices cost nothing and that all are used, not that they are faster.

A straight line through the origin has slope 1 in logarithms; `bend` is the largest deviation of a point from the fitted line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import (
    AGGREGATORS,
    compiled_step,
    drawn_experiment,
    epoch_figures,
    machine_memory,
    step_figures,
    with_runs,
)
from benchmarks.common import DEFAULT_MACHINE, RESULTS, write_result
from mil_jax.engine.runtime import keep_freed_memory

MEMORY_SHARE = 0.7
SHORTEST_SECONDS = 1.0  # of measuring a step
# What an epoch of the other parts trains: bags, runs, target columns, devices, of which one is varied.
EPOCH = {"bags": 500, "runs": 5, "targets": 1, "devices": 1}
EPOCH_WIDTHS = ["aggregator.feature_dim=64", "aggregator.attention_dim=32", "data.max_buckets=3"]
DEFAULTS = {
    "instances": [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 100_000],
    "bags": [100, 300, 1_000, 3_000, 10_000, 30_000, 100_000],
    "runs": [1, 2, 5, 10, 25],
    "targets": [1, 2, 5, 10, 25, 50],
    "devices": [1, 2, 4, 8],
}
AXES = {
    "instances": "instances of a bag",
    "bags": "bags",
    "runs": "runs",
    "targets": "target columns",
    "devices": "devices",
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default=DEFAULT_MACHINE, help="name of the machine, for the results' files")
    parser.add_argument("--part", choices=[*DEFAULTS], help="only this one")
    parser.add_argument("--aggregators", default=",".join(AGGREGATORS), help="of the part `instances`")
    parser.add_argument("--values", help="the points of the part, with commas, instead of its own")
    parser.add_argument("--dim", type=int, default=1024, help="width of the features in the part `instances`")
    parser.add_argument("--small", action="store_true", help="small widths: to see that it works")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.point:
        print(json.dumps(_point(json.loads(options.point))))
        return
    given = list(sys.argv[1:] if arguments is None else arguments)
    for part in [options.part] if options.part else DEFAULTS:
        values = [int(value) for value in options.values.split(",")] if options.values else DEFAULTS[part]
        shared = {"part": part, "dim": options.dim, "small": options.small}
        curves = {}
        for name in options.aggregators.split(",") if part == "instances" else ["abmil"]:
            curves[name] = _curve([{**shared, "aggregator": name, "value": value} for value in values])
        slopes = {name: _line(points) for name, points in curves.items()}
        table = [
            (
                f"scaling of {name} with {AXES[part]}, {_range(curves[name])}",
                "",
                f"slope {line['slope']:.2f}, bend {line['bend']:.0%}",
            )
            for name, line in slopes.items()
            if line
        ]
        figures = {"points": curves, "lines": slopes}
        write_result("scaling", options.machine, figures, table, part=part, arguments=given, folder=options.results)
        _draw(part, curves, slopes, options.results / f"scaling-{part}-{options.machine}.png")


def _curve(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Measures each point in its own process; ends the curve where one does not fit in memory."""
    curve = []
    for point in points:
        environment = os.environ.copy()
        if point["part"] == "devices":
            environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={point['value']}"
        command = [sys.executable, "-m", "benchmarks.scaling", "--point", json.dumps(point)]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if ended.returncode:
            raise RuntimeError(f"{point}: {ended.stderr[-2000:]}")
        curve.append({"value": point["value"], **json.loads(ended.stdout.splitlines()[-1])})
        print(f"{point['part']} {point['aggregator']}: {curve[-1]}", flush=True)
        if "seconds" not in curve[-1]:
            break
    return curve


def _point(point: dict[str, Any]) -> dict[str, Any]:
    """One point's figures. memory_bytes: how much the process's memory rose by features, state, compilation and steps."""
    keep_freed_memory()  # as every command does
    if point["part"] == "instances":
        widths = {"mean_size": point["value"], "sigma": 0.0, "dim": point["dim"]}
        experiment = drawn_experiment(point["aggregator"], bags=2 * 10, **widths, small=point["small"])
        before = _peak()
        step = compiled_step(with_runs(experiment, 1))
        figures = step_figures(step, SHORTEST_SECONDS, MEMORY_SHARE * machine_memory())
    else:
        numbers = EPOCH | {point["part"]: point["value"]}
        runs = 8 if point["part"] == "devices" else numbers["runs"] if point["part"] != "targets" else 1
        experiment = drawn_experiment(
            "abmil", bags=numbers["bags"], mean_size=64, sigma=0.3, dim=64, settings=EPOCH_WIDTHS
        )
        before = _peak()
        figures = epoch_figures(with_runs(experiment, runs, numbers["targets"]))
    return figures | {"memory_bytes": _peak() - before}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _measured(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [point for point in points if "seconds" in point]


def _line(points: list[dict[str, Any]]) -> dict[str, float]:
    """The line fitted to the logarithms: slope, and the largest deviation of a point from it; empty for fewer than three points."""
    measured = _measured(points)
    if len(measured) < 3:
        return {}
    x = np.log([point.get("length", point["value"]) for point in measured])
    y = np.log([point["seconds"] for point in measured])
    slope, offset = np.polyfit(x, y, 1)
    return {
        "slope": float(slope),
        "offset": float(offset),
        "bend": float(np.expm1(np.abs(y - slope * x - offset).max())),
    }


def _range(points: list[dict[str, Any]]) -> str:
    measured = _measured(points)
    return f"{measured[0]['value']:,} to {measured[-1]['value']:,}: {measured[0]['seconds']:.3g} to {measured[-1]['seconds']:.3g} s"


def _draw(part: str, curves: dict[str, list[dict[str, Any]]], lines: dict[str, dict[str, float]], path: Path) -> None:
    """Seconds, and where it was measured memory, against the part's axis, both logarithmic."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from mil_jax.reports.figures.curves import COLOURS

    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    seconds, memory = figure.subplots(1, 2)
    for colour, (name, points) in zip(itertools.cycle(COLOURS), curves.items()):
        measured = _measured(points)
        x = [point.get("length", point["value"]) for point in measured]
        label = f"{name}, slope {lines[name]['slope']:.2f}" if lines[name] else name
        seconds.plot(x, [point["seconds"] for point in measured], "o-", color=colour, label=label, markersize=4)
        memory.plot(
            x,
            [point["memory_bytes"] / 2**20 for point in measured],
            "o-",
            color=colour,
            label=f"{name}, process",
            markersize=4,
        )
        if all("temporary_bytes" in point for point in points):
            everywhere = [point.get("length", point["value"]) for point in points]
            memory.plot(
                everywhere,
                [point["temporary_bytes"] / 2**20 for point in points],
                ":",
                color=colour,
                label=f"{name}, compiler",
            )
    unit = "s a training step" if part == "instances" else "s an epoch"
    for axes, what in ((seconds, unit), (memory, "MiB of memory added")):
        axes.set(xscale="log", yscale="log", xlabel=AXES[part], ylabel=what)
        axes.legend(fontsize=6)
        axes.grid(alpha=0.3)
    FigureCanvasAgg(figure)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
