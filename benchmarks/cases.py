"""What several benchmarks measure: the published aggregators on bags whose sizes are drawn, timed by `mil_jax.profiling.program_cost`."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from mil_jax.config import ConfigDict, apply_demo, find_config, load_config, set_from_text
from mil_jax.engine.plan import Plan, Replica
from mil_jax.experiment.experiment import Experiment
from mil_jax.experiment.prepare import prepare
from mil_jax.profiling.forecast import open_bench, plan_epoch
from mil_jax.profiling.program_cost import Bench, ProgramCost

AGGREGATORS = ("abmil", "clam_sb", "clam_mb", "dsmil", "dtfd", "patch_gcn", "hipt", "transmil", "rrt")
FOLDS = 5


def published_config(aggregator: str, settings: Sequence[str] = (), *, small: bool = False) -> ConfigDict:
    """`configs/<aggregator>.py` with `settings` ("train.epochs=3") over it; `small`: the widths of its demo part."""
    config = load_config(find_config(f"configs/{aggregator}.py"))
    if small:
        apply_demo(config)
    for setting in settings:
        set_from_text(config, *setting.split("=", 1))
    return config


def drawn_experiment(
    aggregator: str,
    *,
    bags: int,
    mean_size: float,
    sigma: float,
    dim: int,
    settings: Sequence[str] = (),
    small: bool = False,
) -> Experiment:
    """An experiment of five folds on bags whose sizes are drawn and that have no features."""
    drawn = {"bags": bags, "mean_size": mean_size, "sigma": sigma, "dim": dim}
    named = [f"data.synthetic.{name}={value}" for name, value in drawn.items()]
    return prepare(published_config(aggregator, [*named, *settings], small=small))


def with_runs(experiment: Experiment, runs: int, targets: int = 1) -> Experiment:
    """The same with so many runs of each of so many targets: folds first, then seeds. The targets have the same labels."""
    replicas = tuple(Replica(run % FOLDS, run // FOLDS, target) for target in range(targets) for run in range(runs))
    plan = Plan(replicas, experiment.plan.hyper)
    return dataclasses.replace(experiment, plan=plan, targets=targets * experiment.targets)


class CompiledStep(NamedTuple):
    """The training step of the longest bucket of an experiment, and what it costs."""

    experiment: Experiment
    bench: Bench
    cost: ProgramCost


def compiled_step(experiment: Experiment) -> CompiledStep:
    """Compiles it, on features invented on the device."""
    bench = open_bench(experiment, plan_epoch(experiment))
    return CompiledStep(experiment, bench, bench.compile(len(bench.lengths) - 1)[0])


def step_figures(step: CompiledStep, seconds: float, most_bytes: float = float("inf")) -> dict[str, Any]:
    """Seconds and memory of the step; only the memory where it exceeds `most_bytes`."""
    last = len(step.bench.lengths) - 1
    figures = {
        "length": step.bench.lengths[last] * max(step.experiment.shards.num_parts, 1),  # of regions their tiles
        "operations": step.cost.operations / step.cost.side_by_side,
        "temporary_bytes": step.cost.temporary_bytes,
        "compile_seconds": step.cost.compile_seconds,
    }
    if step.cost.temporary_bytes <= most_bytes:
        figures["seconds"] = step.bench.time_steps(last, seconds).seconds
    return figures


def epoch_figures(experiment: Experiment) -> dict[str, Any]:
    """Seconds of an epoch of training steps as the engine sends them, and of drawing and laying out its order on the host."""
    plan = plan_epoch(experiment)
    bench = open_bench(experiment, plan)
    begun = time.perf_counter()
    for bucket in range(len(bench.lengths)):
        bench.compile(bucket)
    compiled = time.perf_counter() - begun
    bench.time_order(0.5)  # warms up
    seconds, _ = bench.time_order(float("inf"))
    return {
        "seconds": seconds,
        "host_seconds": plan.order_seconds + bench.time_laying_out(),
        "compile_seconds": compiled,
        "steps": int(plan.steps.sum()),
        "state_bytes": bench.state_bytes * len(experiment.plan.replicas),
    }


def machine_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
