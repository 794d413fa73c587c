"""Measures what an experiment costs, and forecasts it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from absl import flags

from mil_jax.cli.console import console, frame_table, say
from mil_jax.cli.overview import describe_experiment
from mil_jax.cli.progress import conversion_progress
from mil_jax.cli.session import set_up
from mil_jax.config import ConfigDict
from mil_jax.data.loading.residency import STREAMED
from mil_jax.errors import DataError
from mil_jax.experiment.experiment import Experiment
from mil_jax.experiment.phases import stage_names
from mil_jax.experiment.prepare import prepare
from mil_jax.files import write_text
from mil_jax.machine import memory_bytes
from mil_jax.profiling import report as report
from mil_jax.profiling.forecast import (
    BucketFigures,
    EpochPlan,
    Forecast,
    forecast,
    open_bench,
    plan_epoch,
    time_dispatch,
    time_host,
)
from mil_jax.profiling.machine_peaks import Ceilings, measure_ceilings
from mil_jax.profiling.program_cost import Bench, ProgramCost
from mil_jax.profiling.read_speed import reading_rate
from mil_jax.profiling.report import duration
from mil_jax.run_folder.environment import describe_environment

TRACED_STEPS = 3
MEMORY_SHARE = 0.9  # of a machine's memory that temporary arrays may take


def run(config: ConfigDict, values: flags.FlagValues, demo: list[str]) -> int:
    """Writes and says the profile; returns the command's exit code. values: of the command's flags."""
    set_up(config)
    jax.config.update("jax_enable_compilation_cache", False)  # what is measured is compiling, not reading
    with conversion_progress() as progress:
        experiment = prepare(config, strict=values.strict, progress=progress)
    describe_experiment(experiment, demo)
    with console.status("drawing the order of the bags"):
        plan = plan_epoch(experiment)
        bench = open_bench(experiment, plan)
    costs = _compile(experiment, bench)
    _say_memory(experiment, bench, costs)
    with console.status("measuring what this machine can do"):
        ceilings = measure_ceilings(bench.working_set)
    figures, around = _measure(bench, costs, values.seconds)
    _show("plan, by bucket length", report.plan_table(experiment, plan, figures))
    say(
        "MiB: temporary memory of a device, and one run's share of it. GFLOP: matrix products of one run with one batch."
    )
    lines = report.rooflines(
        figures,
        ceilings,
        experiment.config.train.precision,
        bench.row_bytes,
        bench.state_bytes,
        config.train.batch_size,
    )
    _show("measured, all runs together", report.measured_table(experiment, figures, lines))
    _say_ceilings(ceilings)
    rate = None if config.data.synthetic.bags else _reading(experiment)
    with console.status("measuring the beginning of an epoch"):
        dispatch = time_dispatch(bench, figures, values.seconds)
        host = time_host(experiment, plan, bench)
    expected = forecast(
        experiment,
        plan,
        bench,
        figures,
        dispatch=dispatch,
        around_evaluation=around,
        host=host,
        reading=_bytes_read(experiment, plan) / rate if rate else 0.0,
    )
    _show("forecast: where the time of the whole config goes", report.time_table(expected))
    _say_forecast(experiment, expected, rate)
    if values.trace:
        _trace(bench, values.trace)
    sentences = report.verdict(
        experiment,
        plan,
        figures,
        lines,
        expected,
        devices=bench.engine.placement.places,
        vectorised=bench.engine.vectorised,
    )
    say("")
    for sentence in sentences:
        say(sentence)
    path = Path(config.run or f"runs/{config.name}-profile") / "profile.json"
    write_text(path, _json(experiment, bench, plan, figures, lines, ceilings, rate, expected, sentences))
    say(f"All figures are in {path}.")
    return 0


def _compile(experiment: Experiment, bench: Bench) -> list[tuple[ProgramCost, ProgramCost]]:
    """The costs of all programs. Raises DataError for a bucket whose temporary arrays exceed the memory."""
    costs, memory = [], _device_memory()
    with console.status("compiling") as status:
        for number, length in enumerate(bench.lengths):
            status.update(f"compiling length {length:,} ({number + 1} of {len(bench.lengths)})")
            too_long = "leave longer bags out with data.filter, run fewer runs at once (train.num_seeds), or narrow the aggregator"
            try:
                costs.append(bench.compile(number))
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                raise DataError(
                    f"bags of {length:,} instances do not fit into the device's memory; {too_long}"
                ) from error
            needed = max(cost.temporary_bytes for cost in costs[-1])
            if memory and needed > MEMORY_SHARE * memory:
                raise DataError(
                    f"bags of {length:,} instances need {needed / 2**30:.1f} GiB of temporary memory on a device that has "
                    f"{memory / 2**30:.1f} GiB; {too_long}"
                )
    return costs


def _measure(
    bench: Bench, costs: list[tuple[ProgramCost, ProgramCost]], seconds: float
) -> tuple[list[BucketFigures], float]:
    """(the figures of each bucket, seconds around an evaluation)."""
    figures, around = [], []
    with console.status("measuring") as status:
        for number, (length, (train, evaluate)) in enumerate(zip(bench.lengths, costs)):
            status.update(f"measuring length {length:,} ({number + 1} of {len(costs)})")
            step = bench.time_steps(number, seconds)
            evaluation, besides = bench.time_evaluation(number, seconds / 2)
            figures.append(BucketFigures(length, train, evaluate, step, evaluation))
            around.append(besides)
    return figures, float(np.median(around))


def _reading(experiment: Experiment) -> float:
    with console.status("reading some of the features"):
        rate = reading_rate(experiment.shards, experiment.cohort.slides)
    say(f"Reading the shards with checksums: {rate / 1e9:,.2f} GB/s, as far as the system's page cache holds them now.")
    return rate


def _say_memory(experiment: Experiment, bench: Bench, costs: list[tuple[ProgramCost, ProgramCost]]) -> None:
    cohort, runs = _cohort_bytes(experiment), bench.engine.placement.per_device
    temporary = max(cost.temporary_bytes for pair in costs for cost in pair)
    memory = _device_memory()
    say(
        f"Memory of a device: cohort {_size(cohort)}, state {_size(bench.state_bytes)} a run x {runs}, temporary arrays up to "
        f"{_size(temporary)}; {_size(memory)} there."
        if memory
        else f"Memory: cohort {_size(cohort)}, state {_size(bench.state_bytes)} a run, temporary arrays up to {_size(temporary)}."
    )


def _say_ceilings(ceilings: Ceilings) -> None:
    products = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s of {kind} products" for kind, rate in ceilings.products.items())
    near = (
        f" ({ceilings.near / 1e9:,.1f} within its caches, where all of this fits)"
        if ceilings.near > 1.2 * ceilings.copy
        else ""
    )
    say(f"This machine, measured now: {products}; {ceilings.copy / 1e9:,.1f} GB/s of copying{near}.")
    say("% of roofline: of the tighter of the two. traffic %: what the compiler counts as moved, against copying.")


def _say_forecast(experiment: Experiment, expected: Forecast, rate: float | None) -> None:
    config, runs = experiment.config, len(experiment.plan.replicas)
    say(
        f"Forecast, not measured: {duration(expected.epoch_seconds)} an epoch of all {runs} runs ("
        f"{expected.bags / expected.epoch_seconds:,.0f} bags/s, {expected.instances / expected.epoch_seconds:,.0f} instances/s), "
        f"{duration(expected.total)} for {config.train.epochs} epochs."
        + "".join(f" The stage {name} before it is not counted." for name in stage_names(config)[:-1])
    )
    say(
        "It assumes that every run goes to its last epoch"
        + (f" (train.patience={config.train.patience} may stop it before)" if config.train.patience else "")
        + (", that no bag is read for two runs at once" if experiment.residency.kind == STREAMED else "")
        + ", that all programs are compiled from scratch and sequentially, and that the machine is as busy as it was just now."
    )
    num_bytes = _cohort_bytes(experiment)
    memory = _device_memory()
    if rate is None and memory and num_bytes > MEMORY_SHARE * memory:
        say(
            f"The cohort ({_size(num_bytes)}) is larger than a device's memory ({_size(memory)}): reading it once an epoch keeps up "
            f"from {num_bytes / expected.epoch_seconds / 1e9:.2f} GB/s on."
        )


def _trace(bench: Bench, folder: str) -> None:
    with console.status("tracing"), jax.profiler.trace(folder):
        for number, length in enumerate(bench.lengths):
            with jax.profiler.TraceAnnotation(f"bucket of {length}"):
                bench.run_steps(number, TRACED_STEPS)
    say(f"A trace of {TRACED_STEPS} steps of each bucket is in {folder}; open it with Perfetto or TensorBoard.")


def _bytes_read(experiment: Experiment, plan: EpochPlan) -> float:
    """Of features: the cohort once, or, where it is streamed, at most what all runs read in an epoch."""
    if experiment.residency.kind != STREAMED:
        return _cohort_bytes(experiment)
    sizes = experiment.cohort.bags["num_instances"].to_numpy()
    means = np.bincount(experiment.bucket, sizes, len(experiment.ladder.lengths)) / np.maximum(
        np.bincount(experiment.bucket, minlength=len(experiment.ladder.lengths)), 1
    )
    bags = plan.steps.sum(axis=0) * experiment.config.train.batch_size + plan.evaluated.sum(axis=0)
    return float(bags @ means) * _cohort_bytes(experiment) / sizes.sum()


def _cohort_bytes(experiment: Experiment) -> int:
    return sum(experiment.shards.num_bytes(int(number)) for slides in experiment.cohort.slides for number in slides)


def _device_memory() -> int:
    """Bytes of a device's memory; of a CPU the machine's, shared by its devices; 0 where it is not known."""
    if jax.default_backend() == "cpu":
        return memory_bytes() // jax.local_device_count()
    return int((jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0))


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:,.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.1f} MiB"


def _show(title: str, table: pd.DataFrame) -> None:
    console.print(frame_table(title, table))


def _json(
    experiment: Experiment,
    bench: Bench,
    plan: EpochPlan,
    figures: list[BucketFigures],
    lines: list[report.Roofline],
    ceilings: Ceilings,
    rate: float | None,
    expected: Forecast,
    sentences: list[str],
) -> str:
    numbers = experiment.bucket
    content: dict[str, Any] = {
        "config": experiment.config.to_dict(),
        "environment": describe_environment(),
        "plan": {
            "runs": len(experiment.plan.replicas),
            "bags": len(experiment.cohort.bags),
            "cohort_bytes": _cohort_bytes(experiment),
            "state_bytes_per_run": bench.state_bytes,
            "padding_waste": experiment.ladder.waste,
            "side_by_side": bench.engine.vectorised,
            "devices": bench.engine.placement.places,
            "dispatches_per_epoch": len(plan.order.dispatches),
        },
        "buckets": [
            {
                **asdict(bucket),
                "bags": int((numbers == number).sum()),
                "steps_per_epoch": int(plan.steps[:, number].sum()),
                "roofline": asdict(line),
            }
            for number, (bucket, line) in enumerate(zip(figures, lines))
        ],
        "ceilings": asdict(ceilings),
        "reading_bytes_per_second": rate,
        "forecast": {**asdict(expected), "total_seconds": expected.total},
        "verdict": sentences,
    }
    return json.dumps(content, indent=1) + "\n"
