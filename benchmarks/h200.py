"""What one GPU does, in one call of at most nine minutes; needs jax, flax, optax, orbax, h5py, pandas, scikit-learn, and torch for
its rows.

    python -m benchmarks.h200 --machine h200                      every case, the most valuable first
    python -m benchmarks.h200 --machine laptop --small            small sizes, to see that it works, on a CPU too
    python -m benchmarks.h200 --machine laptop --small --rehearse also cases that raise, hang, and do not fit

Cases: ceilings of the machine; epochs of the engine with evaluation (5 folds, so many runs, 400 bags, lognormal, features drawn on the
device); one step of the same models as plain PyTorch modules (bfloat16 autocast, fused Adam, no synchronisation per step, for ABMIL also
as a CUDA graph); one step on a bag of 400,000 instances; AUC of the digits; whether padding changes what a model computes. Each is a
line of `h200-<machine>.jsonl` as soon as it ends, and has a deadline. Some cases at a time are compiled side by side, and none while one
is measured. The first epoch, in which the rest is compiled, is not counted. Ratios compare bags of ours with bags of the mean length
of the module's.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import functools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks.cases import CompiledStep, compiled_step, drawn_experiment, published_config, step_figures, with_runs
from benchmarks.common import DEFAULT_MACHINE, RESULTS, write_result
from benchmarks.supervised import LEFT_OUT, Case, Figures, run_cases
from mil_jax import aggregators
from mil_jax.bags import Bag
from mil_jax.data.loading.resident import ResidentBags
from mil_jax.engine.engine import Engine
from mil_jax.engine.fit import run_phases
from mil_jax.engine.runtime import use_compilation_cache, use_one_device_per_core
from mil_jax.experiment.experiment import Experiment, engine_data, engine_settings
from mil_jax.experiment.prepare import prepare
from mil_jax.machine import usable_cores
from mil_jax.profiling.machine_peaks import measure_ceilings

BUDGET = 540.0  # seconds of all cases
EXPERIMENT_EPOCHS = 200  # of the experiment that is forecast


@dataclass(frozen=True)
class Size:
    """How large everything is. mean, short: instances of a bag. longest: of the one long bag. runs: of the epochs, most first."""

    bags: int = 400
    mean: int = 10_000
    short: int = 1_000
    longest: int = 400_000
    deviation: float = 0.56
    dim: int = 1024
    runs: tuple[int, ...] = (25, 5, 1)
    epochs: int = 3
    seconds: float = 2.0
    small: bool = False


SMALL = Size(bags=30, mean=40, short=16, longest=256, dim=16, runs=(5, 1), epochs=1, seconds=0.05, small=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default=DEFAULT_MACHINE, help="name of the machine, for the results' files")
    parser.add_argument("--small", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--rehearse", action="store_true", help="also cases that raise, hang, and do not fit")
    parser.add_argument("--only", default="", help="cases whose name begins with this")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds of all cases")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    given = list(sys.argv[1:] if arguments is None else arguments)
    options.results.mkdir(parents=True, exist_ok=True)
    of_cases = options.small, options.rehearse, options.only
    with tempfile.TemporaryDirectory() as cache:
        lines = options.results / f"h200-{options.machine}.jsonl"
        figures = run_cases(make_cases, [*of_cases, cache], lines, options.budget, max(1, usable_cores() // 2))
    table = [
        (case.name, case.bar, figures[case.name].get(LEFT_OUT) or case.shown(figures[case.name]))
        for case in make_cases(*of_cases)
    ]
    write_result("h200", options.machine, figures, [*table, *_ratios(figures)], arguments=given, folder=options.results)


def make_cases(small: bool, rehearse: bool, only: str, cache: str = "") -> list[Case]:
    """In order of value. cache: folder of compiled programs, for a process that takes the place of another; "" where none measures."""
    if cache:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch works on the same device
        use_one_device_per_core()
        use_compilation_cache(Path(cache))
    size = SMALL if small else Size()
    most, *fewer = size.runs
    cases = [Case("ceilings", 40, functools.partial(_ceilings, size), _shown_ceilings)]
    cases += [_epochs(size, "abmil", most, size.mean, bar="forecast under 5 min")]
    cases += [_torch(size, "abmil", size.mean), _torch(size, "abmil", size.mean, graph=True)]
    cases += [_epochs(size, "abmil", most, size.short)]
    cases += [_epochs(size, "abmil", runs, mean) for mean in (size.mean, size.short) for runs in fewer]
    cases += [_torch(size, "abmil", size.short), _torch(size, "abmil", size.short, graph=True)]
    cases += [_epochs(size, "transmil", most, size.mean, bar="forecast under 120 min")]
    cases += [_torch(size, "transmil", size.mean)]
    for name in ("clam_sb", "dsmil"):
        cases += [_epochs(size, name, most, size.mean), _torch(size, name, size.mean)]
    cases += [_epochs(size, "rrt", most, size.mean), _torch(size, "rrt", size.mean)]
    cases += [_epochs(size, "abmil", most, size.mean, ("train.precision=float32",))]
    cases += [_epochs(size, name, most, size.mean, ("train.order=fold",)) for name in ("abmil", "dsmil")]
    cases += [_epochs(size, "mean_pooling", most, size.mean), _long_bag(size, "abmil"), _long_bag(size, "transmil")]
    cases += [
        Case(f"padding, {name}", 60, functools.partial(_padding, name), _shown_padding)
        for name in ("abmil", "transmil")
    ]
    cases += [_digits(kind) for kind in ("float32", "bfloat16")]
    if rehearse:
        cases = [*_rehearsed(size), *cases]
    return [case for case in cases if case.name.startswith(only)]


@functools.cache
def _cohort(sizes: tuple[int, ...], longest: int, dim: int) -> ResidentBags:
    """Bags of these sizes, drawn on the device."""
    rows = sum(sizes) + longest
    draw = jax.jit(lambda key: jax.random.normal(key, (rows, dim), jnp.float16))
    return ResidentBags(
        features=draw(jax.random.key(0)),
        coords=jnp.zeros((rows, 2), jnp.int32),
        slide_index=jnp.zeros(rows, jnp.int32),
        offsets=np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int32),
        sizes=np.array(sizes, np.int32),
    )


class _Enough(Exception):
    """The epochs that were asked for are measured."""


class _Clock:
    """Listens to the engine and notes the seconds of each epoch; ends the training after the last that is wanted."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.seconds: list[float] = []
        self.bags = 0

    def phase(self, name: str, epoch: int, epochs: int) -> None:
        self.before = time.perf_counter()

    def steps(self, count: int) -> None: ...

    def epoch(self, rows: list[dict[str, Any]]) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self.before)
        self.before, self.bags = now, sum(row["steps"] for row in rows)
        if len(self.seconds) > self.epochs:
            raise _Enough

    def stop_requested(self) -> bool:
        return False


def _epochs(size: Size, name: str, runs: int, mean: int, settings: tuple[str, ...] = (), bar: str = "") -> Case:
    """Epochs as the engine trains them."""

    def open_engine() -> tuple[Engine, Experiment]:
        usual = ["train.epochs=100", "train.patience=0", "train.min_epochs=0", "splits.val_fraction=0.1"]
        drawn = drawn_experiment(
            name,
            bags=size.bags,
            mean_size=mean,
            sigma=size.deviation,
            dim=size.dim,
            settings=[*usual, "data.max_buckets=4", *settings],
            small=size.small,
        )
        experiment = with_runs(drawn, runs)
        sizes = tuple(int(count) for count in experiment.shards.num_instances)
        bags = _cohort(sizes, experiment.ladder.lengths[-1], size.dim)
        data = dataclasses.replace(engine_data(experiment), bags=bags)
        engine = Engine(data, experiment.task, experiment.plan, engine_settings(experiment.config))
        engine.compile_ahead(experiment.phases[0])
        for bucket in np.flatnonzero(engine.order.slot_counts).tolist():
            engine.programs.built("train", bucket)
        return engine, experiment

    def measure(opened: tuple[Engine, Experiment]) -> Figures:
        engine, experiment = opened
        clock = _Clock(size.epochs)
        with contextlib.suppress(_Enough):
            run_phases(engine, experiment.phases, clock)
        epoch = statistics.median(clock.seconds[1:])
        return {
            "runs": runs,
            "lengths": experiment.ladder.lengths,
            "padding": experiment.ladder.waste,
            "first_epoch_seconds": clock.seconds[0],
            "epoch_seconds": clock.seconds[1:],
            "bags_per_second": clock.bags / epoch,
            "forecast_seconds": clock.seconds[0] + (EXPERIMENT_EPOCHS - 1) * epoch,
            "peak_bytes": _peak_bytes(),
        }

    def shown(found: Figures) -> str:
        return (
            f"{statistics.median(found['epoch_seconds']):.3g} s an epoch, {found['bags_per_second']:,.0f} bags/s; forecast of "
            f"{EXPERIMENT_EPOCHS} epochs: {found['forecast_seconds'] / 60:.2g} min{_gib(found['peak_bytes'])}"
        )

    more = "".join(f", {setting}" for setting in settings)
    return Case(_name_of(name, runs, mean) + more, 120, measure, shown, open_engine, bar)


def _name_of(name: str, runs: int, mean: int) -> str:
    return f"epochs of {name}, {runs} runs, mean {mean:,}"


def _peak_bytes() -> int:
    """The most that the device has held in this process; 0 where it does not say."""
    return int((jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0))


def _gib(peak: int) -> str:
    return f"; peak so far {peak / 2**30:.1f} GiB" if peak else ""


def _torch(size: Size, name: str, length: int, graph: bool = False) -> Case:
    """Forward, backward and update of a plain module on one bag."""

    def measure(_: None) -> Figures:
        import torch

        from benchmarks.torch_models import MODELS

        on_gpu = torch.cuda.is_available()
        if graph and not on_gpu:
            return {LEFT_OUT: "CUDA graphs need a GPU"}
        device = "cuda" if on_gpu else "cpu"
        module = MODELS[name](size.dim).to(device).train()
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-8, weight_decay=1e-5, fused=True, capturable=graph)
        bag, label = torch.randn(length, size.dim, device=device), torch.ones(1, dtype=torch.long, device=device)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16):
                loss = module.loss(bag, label)
            loss.backward()
            optimizer.step()

        def wait() -> None:
            if on_gpu:
                torch.cuda.synchronize()

        taken = step
        if graph:
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                for _ in range(3):
                    step()
            wait()
            recorded = torch.cuda.CUDAGraph()
            with torch.cuda.graph(recorded):
                step()
            taken = recorded.replay
        seconds = _seconds_of(taken, wait, size.seconds)
        return {"seconds": seconds, "bags_per_second": 1.0 / seconds}

    how = " as a CUDA graph" if graph else ""
    return Case(f"PyTorch, step of {name}{how}, N = {length:,}", 30, measure, _shown_step)


def _seconds_of(step: Callable[[], None], wait: Callable[[], None], seconds: float) -> float:
    """Of a step among as many as `seconds` hold, sent one after another and waited for once; after three to warm up."""
    for _ in range(3):
        step()
    wait()
    count, begun = 0, time.perf_counter()
    while count < 3 or time.perf_counter() - begun < seconds:
        step()
        count += 1
    wait()
    return (time.perf_counter() - begun) / count


def _shown_step(found: Figures) -> str:
    memory = f", {found['temporary_bytes'] / 2**30:.2g} GiB beside arguments" if "temporary_bytes" in found else ""
    return f"{1e3 * found['seconds']:.3g} ms{memory}"


def _long_bag(size: Size, name: str) -> Case:
    """A step of one run on one very long bag."""

    def compiled() -> CompiledStep:
        drawn = drawn_experiment(name, bags=20, mean_size=size.longest, sigma=0.0, dim=size.dim, small=size.small)
        return compiled_step(with_runs(drawn, 1))

    def measure(step: CompiledStep) -> Figures:
        return {**step_figures(step, size.seconds), "peak_bytes": _peak_bytes()}

    return Case(f"step of {name}, one run, N = {size.longest:,}", 60, measure, _shown_step, compiled)


def _ceilings(size: Size, _: None) -> Figures:
    return dataclasses.asdict(measure_ceilings(2 << 30 if not size.small else 1 << 20))


def _shown_ceilings(found: Figures) -> str:
    products = ", ".join(f"{kind} {rate / 1e12:.3g} TFLOP/s" for kind, rate in found["products"].items())
    return f"{products}; copies {found['copy'] / 1e12:.3g} TB/s"


def _padding(name: str, _: None) -> Figures:
    """The largest difference of the logits that padding with NaN makes, beside the largest logit."""
    module = aggregators.create(name, 2)
    features = jax.random.normal(jax.random.key(1), (700, 64))
    bare = Bag(features=features, mask=jnp.ones(700, bool))
    behind = jnp.full((324, 64), jnp.nan)
    padded = Bag(features=jnp.concatenate([features, behind]), mask=jnp.arange(1024) < 700)
    with jax.default_matmul_precision("highest"):
        variables = module.init(jax.random.key(0), bare)
        logits = [jax.jit(module.apply)(variables, bag).logits for bag in (bare, padded)]
    return {"largest": float(jnp.abs(logits[0]).max()), "error": float(jnp.abs(logits[0] - logits[1]).max())}


def _shown_padding(found: Figures) -> str:
    return f"logits of up to {found['largest']:.3g} differ by {found['error']:.1e}"


def _digits(kind: str) -> Case:
    """ABMIL on the digits that come with the library, by the engine."""

    def measure(_: None) -> Figures:
        experiment = prepare(published_config("abmil", [f"train.precision={kind}"], small=True))
        engine = Engine(engine_data(experiment), experiment.task, experiment.plan, engine_settings(experiment.config))
        found = run_phases(engine, experiment.phases, _Clock(10**9))
        labels = experiment.targets[0].values
        aucs = [
            roc_auc_score(labels[bags["test"]], logits["test"][:, -1] - logits["test"][:, 0])
            for bags, logits in zip(found.bags, found.logits, strict=True)
        ]
        return {"auc": float(np.mean(aucs)), "runs": len(aucs)}

    return Case(f"AUC of the digits, ABMIL, {kind}", 90, measure, lambda found: f"{found['auc']:.3f}")


def _rehearsed(size: Size) -> list[Case]:
    """Cases that end as they should not."""

    def hang(_: None) -> Figures:
        lock = (ctypes.c_char * 256)()
        pthread = ctypes.CDLL(None)
        for _ in range(2):  # the second never returns, and no signal of Python's is heard
            pthread.pthread_mutex_lock(lock)
        return {}

    def fail(_: None) -> Figures:
        return {"seconds": 1 / 0}

    def end(_: None) -> Figures:
        os.abort()

    return [
        Case("rehearsal: raises", 5, fail, _shown_step),
        Case("rehearsal: hangs", 5, hang, _shown_step),
        Case("rehearsal: ends its process", 5, end, _shown_step),
        _epochs(size, "abmil", 1, size.mean, ("train.memory_gib=1e-6", "train.replica_axis=vmap")),
    ]


def _ratios(figures: dict[str, Figures]) -> list[tuple[str, str, str]]:
    """Bags a second of the engine over those of PyTorch, and of many runs over one."""
    rows = []
    ours = {
        name: one["bags_per_second"] for name, one in figures.items() if name.startswith("epochs") and "runs" in one
    }
    for name, rate in ours.items():
        aggregator, mean = name.split()[2].rstrip(","), name.split("mean ")[1].split(", ")[0]
        for how in ("", " as a CUDA graph"):
            peer = figures.get(f"PyTorch, step of {aggregator}{how}, N = {mean}", {})
            if "bags_per_second" in peer:
                rows.append((f"bags/s over PyTorch's{how}: {name}", "", f"{rate / peer['bags_per_second']:.2f}"))
        alone = ours.get(_name_of(aggregator, 1, int(mean.replace(",", ""))))
        if alone and alone != rate:
            rows.append((f"bags/s over those of one run: {name}", "at least 2 at 1,000", f"{rate / alone:.2f}"))
    return rows


if __name__ == "__main__":
    main()
