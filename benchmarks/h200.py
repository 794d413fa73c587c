"""What one GPU machine does, in parts of under eight minutes each; needs neither TensorFlow, tensorflow-datasets nor OpenSlide.

    python -m benchmarks.h200 --machine h200 --part resident
    python -m benchmarks.h200 --machine laptop --small            every part, small: to see that it works, on a CPU too

Parts:
    resident, streamed   epochs of ABMIL, 25 runs (5 folds x 5 seeds), by where the features lie
    precision            the same in float32 and bfloat16
    order                the same with the order of bags independent and of a fold
    runs                 the same with 1, 5 and 25 runs; and 1 and 25 runs on bags of 1,000 instances
    transmil             epochs of TransMIL, 25 runs
    steps-<aggregator>   one training step of one run at N = 1k, 10k, 60k, 400k, in float32 and bfloat16
    torchmil             the same steps in torchmil, where it is installed

The cohort is invented, of Camelyon16's size: 400 bags, lognormal, 10,000 instances of 1,024 float16 features in the mean; an epoch
has 288 training bags a run. It is written as shards once, below --scratch, and read as any cohort. Every part first measures the
ceilings of the machine. Epochs are timed from the second on, up to three, as they come from the engine, evaluation included; what
is said about a whole experiment is a forecast from them and the first, in which the programs were compiled.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import AGGREGATORS, drawn_experiment, published_config, step_figures, with_runs
from benchmarks.common import DEFAULT_MACHINE, RESULTS, write_result
from mil_jax.data.shards.reader import Shards
from mil_jax.data.shards.writer import write_shards
from mil_jax.engine.runtime import use_one_device_per_core
from mil_jax.experiment.experiment import Experiment
from mil_jax.experiment.fitter import fitter_of
from mil_jax.experiment.prepare import prepare
from mil_jax.interop.slide_bag import Provenance, SlideBag
from mil_jax.profiling.machine_peaks import measure_ceilings

EPOCHS = 3  # measured, after the one in which programs are compiled
EXPERIMENT_EPOCHS = 200  # of the experiment that is forecast
LAST_EPOCH_BEGINS = 240.0  # seconds after the first: a slow case is forecast from fewer epochs
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Size:
    """How large everything is. runs: of the epochs. instances: of the steps. deviation: of the logarithm of bag sizes."""

    bags: int = 400
    mean_size: float = 10_000
    deviation: float = 0.56
    dim: int = 1024
    runs: tuple[int, ...] = (1, 5, 25)
    instances: tuple[int, ...] = (1_000, 10_000, 60_000, 400_000)
    short: float = 1_000
    seconds: float = 2.0
    small: bool = False


SMALL = Size(bags=30, mean_size=40, dim=16, runs=(1, 5), instances=(64,), short=16, seconds=0.05, small=True)
Row = tuple[str, str, str]


@dataclass(frozen=True)
class Context:
    """What all parts get."""

    size: Size
    scratch: Path

    @property
    def most_runs(self) -> int:
        """Folds x seeds of the whole experiment."""
        return self.size.runs[-1]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default=DEFAULT_MACHINE, help="name of the machine, for the results' files")
    parser.add_argument("--part", choices=[*PARTS], help="only this one")
    parser.add_argument("--small", action="store_true", help="small sizes, to see that it works")
    parser.add_argument(
        "--scratch", type=Path, help="folder for the cohort's shards (8 GB), kept; else a temporary one"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    use_one_device_per_core()
    given = list(sys.argv[1:] if arguments is None else arguments)
    with tempfile.TemporaryDirectory() as temporary:
        context = Context(SMALL if options.small else Size(), options.scratch or Path(temporary))
        for part in [options.part] if options.part else PARTS:
            begun = time.perf_counter()
            ceilings = dataclasses.asdict(measure_ceilings(2 << 30 if not options.small else 1 << 20))
            figures, table = PARTS[part](context)
            figures |= {"ceilings": ceilings, "seconds_of_the_part": time.perf_counter() - begun}
            write_result("h200", options.machine, figures, table, part=part, arguments=given, folder=options.results)


class _Enough(Exception):
    """The epochs that were asked for are measured."""


class _Clock:
    """Listens to the engine and notes the seconds of each epoch; ends the training after the last that is wanted."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.bags = 0

    def phase(self, name: str, epoch: int, epochs: int) -> None:
        self.begun = self.before = time.perf_counter()

    def steps(self, count: int) -> None: ...

    def epoch(self, rows: list[dict[str, Any]]) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self.before)
        self.before, self.bags = now, sum(row["steps"] for row in rows)
        if len(self.seconds) > EPOCHS or (len(self.seconds) > 1 and now - self.begun > LAST_EPOCH_BEGINS):
            raise _Enough

    def stop_requested(self) -> bool:
        return False


def _cohort(context: Context, mean_size: float) -> list[str]:
    """The settings that name the invented cohort, which is written to the scratch folder the first time."""
    size = context.size
    folder = context.scratch / f"bags{size.bags}-mean{mean_size:.0f}-dim{size.dim}"
    labels = folder / "labels.csv"
    if not labels.exists():
        rng = np.random.default_rng(0)
        drawn = rng.lognormal(np.log(mean_size) - size.deviation**2 / 2, size.deviation, size.bags)
        sizes = np.maximum(drawn.astype(int), 1)
        # One block of random numbers, from which every bag takes rows: drawing all of them would take minutes.
        block = rng.standard_normal((int(sizes.max()), size.dim)).astype(np.float16)
        provenance = Provenance(256.0, coordinate_unit="level0_pixels", encoder="invented")

        def slides() -> Iterator[SlideBag]:
            for number, count in enumerate(sizes.tolist()):
                place = np.arange(count)
                coords = 256 * np.stack([place % 200, place // 200], axis=1).astype(np.int32)
                yield SlideBag(f"slide-{number:04d}", np.roll(block, number, axis=0)[:count], coords, provenance)

        write_shards(slides(), folder / "shards", overwrite=True, for_tensorflow=False)
        rows = [f"slide-{number:04d},{number % 2}" for number in range(size.bags)]
        labels.write_text("\n".join(["slide_id,label", *rows]) + "\n", encoding="utf-8")
    return [f"data.shards={folder / 'shards'}", f"data.labels={labels}", "data.target=label", "data.patient=none"]


def _epochs(
    context: Context, aggregator: str, runs: int, settings: Sequence[str] = (), mean_size: float | None = None
) -> dict[str, Any]:
    """Seconds of the epochs of so many runs, and what follows for a whole experiment."""
    cohort = _cohort(context, mean_size or context.size.mean_size)
    usual = ["train.epochs=100", "train.patience=0", "train.min_epochs=0", "splits.val_fraction=0.1"]
    config = published_config(aggregator, [*cohort, *usual, *settings], small=context.size.small)
    experiment = with_runs(prepare(config), runs)
    fitter = fitter_of(experiment)
    begun = time.perf_counter()
    fitter.read()
    clock, reading = _Clock(), time.perf_counter() - begun
    with contextlib.suppress(_Enough):
        fitter.fit(clock)
    epoch = statistics.median(clock.seconds[1:])
    return {
        "runs": runs,
        "lengths": experiment.ladder.lengths,
        "padding": experiment.ladder.waste,
        "cohort_bytes": _bytes(experiment.shards),
        "preparing_seconds": reading,
        "first_epoch_seconds": clock.seconds[0],
        "epoch_seconds": clock.seconds[1:],
        "bags_per_second": clock.bags / epoch,
        "forecast_seconds": clock.seconds[0] + (EXPERIMENT_EPOCHS - 1) * epoch,
    }


def _bytes(shards: Shards) -> int:
    return sum(shards.num_bytes(number) for number in range(len(shards)))


def _row(what: str, figures: dict[str, Any], bar: str = "") -> Row:
    if "left_out" in figures:
        return what, bar, f"left out: {figures['left_out']}"
    epoch = statistics.median(figures["epoch_seconds"])
    return what, bar, (
        f"{epoch:.3g} s an epoch, {figures['bags_per_second']:,.0f} bags/s; forecast of {EXPERIMENT_EPOCHS} epochs: "
        f"{figures['forecast_seconds'] / 60:.2g} min"
    )  # fmt: skip


def _compared(
    context: Context, what: str, aggregator: str, cases: dict[str, list[str]], bar: str = ""
) -> tuple[dict[str, Any], list[Row]]:
    """The same epochs under several settings."""
    figures = {name: _epochs(context, aggregator, context.most_runs, settings) for name, settings in cases.items()}
    return figures, [_row(f"{what}, {context.most_runs} runs, {name}", case, bar) for name, case in figures.items()]


def resident(context: Context) -> tuple[dict[str, Any], list[Row]]:
    return _compared(
        context, "ABMIL", "abmil", {"resident": ["data.residency=resident"]}, "forecast under 5 min in bf16"
    )


def streamed(context: Context) -> tuple[dict[str, Any], list[Row]]:
    return _compared(context, "ABMIL", "abmil", {"streamed": ["data.residency=streamed"]})


def precision(context: Context) -> tuple[dict[str, Any], list[Row]]:
    return _compared(context, "ABMIL", "abmil", {kind: [f"train.precision={kind}"] for kind in PRECISIONS})


def order(context: Context) -> tuple[dict[str, Any], list[Row]]:
    return _compared(
        context, "ABMIL", "abmil", {f"{kind} order": [f"train.order={kind}"] for kind in ("independent", "fold")}
    )


def transmil(context: Context) -> tuple[dict[str, Any], list[Row]]:
    # Fewer lengths, so that compilation leaves time for epochs.
    return _compared(context, "TransMIL", "transmil", {"4 lengths": ["data.max_buckets=4"]}, "forecast under 120 min")


def runs(context: Context) -> tuple[dict[str, Any], list[Row]]:
    figures, table = {}, []
    for mean_size in (context.size.mean_size, context.size.short):
        for count in context.size.runs:
            case = _epochs(context, "abmil", count, ["data.max_buckets=4"], mean_size)
            figures[f"{count} runs, mean {mean_size:.0f}"] = case
            table.append(_row(f"ABMIL, {count} runs, mean {mean_size:,.0f} instances", case))
        one, most = (figures[f"{count} runs, mean {mean_size:.0f}"] for count in (1, context.most_runs))
        gain = most["bags_per_second"] / one["bags_per_second"]
        bar = "at least 2" if mean_size == context.size.short else ""
        table.append(
            (
                f"ABMIL, bags/s of {context.most_runs} runs in one over one run, mean {mean_size:,.0f}",
                bar,
                f"{gain:.2f}",
            )
        )
    return figures, table


def _steps(aggregator: str) -> Callable[[Context], tuple[dict[str, Any], list[Row]]]:
    def part(context: Context) -> tuple[dict[str, Any], list[Row]]:
        figures: dict[str, Any] = {}
        table = []
        for kind in PRECISIONS:
            for length in context.size.instances:
                case = figures[f"{kind}, N={length}"] = _one_step(
                    context, aggregator, length, [f"train.precision={kind}"]
                )
                shown = (
                    f"{1e3 * case['seconds']:.3g} ms, {case['temporary_bytes'] / 2**30:.2g} GiB"
                    if "seconds" in case
                    else case["failed"]
                )
                table.append((f"step of {aggregator}, one run, {kind}, N = {length:,}", "", shown))
        return figures, table

    return part


def _one_step(context: Context, aggregator: str, length: int, settings: list[str]) -> dict[str, Any]:
    import jax

    size = context.size
    experiment: Experiment = drawn_experiment(
        aggregator, bags=20, mean_size=length, sigma=0.0, dim=size.dim, settings=settings, small=size.small
    )
    try:
        return step_figures(with_runs(experiment, 1), size.seconds, float("inf"))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return {"failed": "does not fit into the device's memory"}
        if "UNIMPLEMENTED" in str(error):  # XLA's CPU backend has no bfloat16 product of some shapes
            return {"failed": "not offered by XLA on this device"}
        raise


def torchmil(context: Context) -> tuple[dict[str, Any], list[Row]]:
    try:
        import torch
        import torchmil as _  # noqa: F401
    except ImportError:
        return {}, [("steps in torchmil", "", "left out: torchmil is not installed (extra `torchmil`)")]
    figures: dict[str, Any] = {}
    table = []
    for name in ("abmil", "dsmil", "transmil"):
        for kind in PRECISIONS:
            for length in context.size.instances:
                try:
                    seconds = _median_of(_torch_step(name, kind, length, context.size.dim), context.size.seconds)
                    figures[f"{name}, {kind}, N={length}"] = {"seconds": seconds}
                    shown = f"{1e3 * seconds:.3g} ms"
                except torch.OutOfMemoryError:
                    shown = "does not fit into the device's memory"
                table.append((f"step of torchmil's {name}, {kind}, N = {length:,}", "", shown))
    return figures, table


def _torch_step(name: str, kind: str, length: int, dim: int) -> Callable[[], None]:
    """Forward, backward and update of torchmil's model of our widths, on the GPU where there is one."""
    import torch
    from torchmil import models

    device = "cuda" if torch.cuda.is_available() else "cpu"
    first = torch.nn.Sequential(torch.nn.Linear(dim, 512), torch.nn.ReLU())
    network = {
        "abmil": lambda: models.ABMIL((dim,), att_dim=384, gated=True, feat_ext=first),
        "dsmil": lambda: models.DSMIL((dim,), att_dim=128, nonlinear_q=True, feat_ext=first),
        "transmil": lambda: models.TransMIL((dim,), att_dim=512, n_heads=8, n_landmarks=256, feat_ext=first),
    }[name]()
    network.train().to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-8, weight_decay=1e-5)
    bag, label = torch.randn(1, length, dim, device=device), torch.ones(1, device=device)
    mask = () if name == "transmil" else (torch.ones(1, length, device=device),)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=kind == "bfloat16"):
            _, losses = network.compute_loss(label, bag, *mask)
        sum(losses.values()).backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def _median_of(step: Callable[[], None], seconds: float) -> float:
    """The median of the steps of so many seconds, after two to warm up."""
    for _ in range(2):
        step()
    taken: list[float] = []
    while sum(taken) < seconds or len(taken) < 3:
        begun = time.perf_counter()
        step()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


PARTS: dict[str, Callable[[Context], tuple[dict[str, Any], list[Row]]]] = {
    **{part.__name__: part for part in (resident, streamed, precision, order, runs, transmil)},
    **{f"steps-{name}": _steps(name) for name in AGGREGATORS},
    "torchmil": torchmil,
}


if __name__ == "__main__":
    main()
