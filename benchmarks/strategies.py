"""What a training step of MHIM-MIL and of IBMIL costs against a plain one, of the same ABMIL on the same bag.

    python -m benchmarks.strategies --machine laptop

One bag of N instances of 1,024 features a step (forward, backward, update; one run, one device), `configs/abmil_mhim.py` without dropout,
float32. MHIM-MIL as in its command for Camelyon16 (of half of the instances a student sees nothing), with its high part alone (nearly
all are seen twice, by teacher and student), and as v2. IBMIL is its last stage. The ways take turns in one process. Bar: MHIM-MIL at
most 1.6 of the plain step.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cases import drawn_experiment, with_runs
from benchmarks.common import DEFAULT_MACHINE, RESULTS, median_ratio, write_result
from mil_jax.engine.runtime import keep_freed_memory
from mil_jax.profiling.forecast import open_bench, plan_epoch
from mil_jax.profiling.program_cost import Bench

SECONDS_PER_TURN = 1.0
CONFIG, PLAIN = "abmil_mhim", "plain"
_MHIM, _HIGH = "strategy.name=mhim", "strategy.mask_high=0.03"
WAYS: dict[str, list[str]] = {
    PLAIN: [],
    "MHIM-MIL, 0.5 random and 0.01 high": [
        *(_MHIM, "strategy.mask_random=0.5", "strategy.mask_high=0.01", "strategy.mask_high_share=0.5")
    ],
    "MHIM-MIL, 0.03 high": [_MHIM, _HIGH],
    "MHIM-MIL v2, 0.03 high, 5 queries": [
        *(_MHIM, _HIGH, "strategy.scores=class", "strategy.merge_queries=5", "strategy.merge_ratio=0.8")
    ],
    "IBMIL": ["strategy.name=ibmil"],
}
BARS = {name: "at most 1.6" for name in WAYS if name.startswith("MHIM-MIL,")}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default=DEFAULT_MACHINE, help="name of the machine, for the result's file")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each way; the median of their ratios counts")
    parser.add_argument("--instances", type=int, default=10_000, help="instances of a bag")
    parser.add_argument("--dim", type=int, default=1024, help="width of the features")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    keep_freed_memory()  # as every command does
    benches = {name: _bench(settings, options.instances, options.dim) for name, settings in WAYS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(options.rounds):
        for name in list(WAYS) if number % 2 == 0 else list(reversed(WAYS)):
            bench, bucket = benches[name]
            seconds[name].append(bench.time_steps(bucket, SECONDS_PER_TURN).seconds)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    figures, table = {}, []
    for name in WAYS:
        ratio = median_ratio(seconds[name], seconds[PLAIN])
        figures[name] = {"ratio": ratio, "seconds": medians[name], "rounds": seconds[name]}
        if name != PLAIN:
            what = f"step of {name}, over a plain one of ABMIL, N = {options.instances:,}"
            shown = f"{ratio:.2f} ({1e3 * medians[name]:.0f} ms / {1e3 * medians[PLAIN]:.0f} ms)"
            table.append((what, BARS.get(name, ""), shown))
    given = list(sys.argv[1:] if arguments is None else arguments)
    write_result("ways", options.machine, figures, table, arguments=given, folder=options.results)


def _bench(settings: list[str], instances: int, dim: int) -> tuple[Bench, int]:
    """The compiled programs of a way, and the number of its bucket."""
    experiment = drawn_experiment(
        CONFIG, bags=20, mean_size=instances, sigma=0.0, dim=dim, settings=["aggregator.dropout=0", *settings]
    )
    experiment = with_runs(experiment, 1)
    bench = open_bench(experiment, plan_epoch(experiment))
    last = len(bench.lengths) - 1
    bench.compile(last)
    return bench, last


if __name__ == "__main__":
    main()
