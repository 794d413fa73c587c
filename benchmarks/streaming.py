"""Streaming: the reader alone and beside computation, against plain reads and what peers do.

    python -m benchmarks.streaming --machine laptop [--gib 1] [--rounds 5] [--folder DIR]

An invented cohort of float16 bags (2,000 to 8,000 x 1,024) is written to shards, to a .pt file and to an .h5 file per slide. Every way
reads all bags once, in the same random order. "plain preadv" reads the same bytes into one reused array; `torch.load` and h5py
open a slide's file per step, as common training loops do. Warm reads come from the page cache; before a cold one the kernel is told
to drop it (a virtual machine's host may still hold the data). Checksums were verified in a first pass. Bar: with a step computed on every
bag, 0.8 of the speed of the slowest of plain read, transfer and computation.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags

from benchmarks.common import MACHINE, paired, write_result
from mil_jax import aggregators
from mil_jax.bags import Bag
from mil_jax.data.buckets import fit_ladder
from mil_jax.data.loading.resident import ResidentBags, aligned
from mil_jax.data.loading.streamed import StreamedBags, StreamingLoader
from mil_jax.data.loading.windows import Dispatch
from mil_jax.data.shards import tfrecord
from mil_jax.data.shards.reader import Shards
from mil_jax.data.shards.writer import write_shards
from mil_jax.interop.slide_bag import SlideBag

_GIB = flags.DEFINE_float("gib", 1.0, "Size of the cohort.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds; the median counts.")
_FOLDER = flags.DEFINE_string(
    "folder", "", "Where the cohort is written for the time being; empty: a temporary folder."
)

_WIDTH, _SIZES, _STREAM_GIB = 1024, (2_000, 8_000), 0.5
_BAR = 0.8


@dataclasses.dataclass(frozen=True)
class _Order:
    """bags [1, T, 1], and a run for each."""

    bags: np.ndarray
    runs: Sequence[Dispatch]


class _Cohort:
    """The same bags as shards, .pt and .h5 files, and the order in which they are read."""

    def __init__(self, folder: Path, gib: float) -> None:
        rng = np.random.default_rng(0)
        count = max(4, round(gib * 2**30 / (np.mean(_SIZES) * _WIDTH * 2)))
        self.sizes = rng.integers(*_SIZES, count)
        source = rng.standard_normal((_SIZES[1] + count, _WIDTH), np.float32).astype(np.float16)
        bags = {f"slide-{number}": source[number : number + size] for number, size in enumerate(self.sizes)}
        write_shards((SlideBag(name, bag) for name, bag in bags.items()), folder / "shards")
        for name, bag in bags.items():
            torch.save(torch.from_numpy(bag.copy()), folder / f"{name}.pt")
            with h5py.File(folder / f"{name}.h5", "w") as file:
                file["features"] = bag
        self.shards = Shards.open(folder / "shards")
        self.files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        self.ladder = fit_ladder(self.sizes)
        self.numbers = rng.permutation(count)
        names = [str(folder / f"slide-{number}") for number in self.numbers]
        self.pt, self.h5 = [f"{name}.pt" for name in names], [f"{name}.h5" for name in names]
        self.buffer = aligned((_SIZES[1], _WIDTH), np.dtype(np.float16))

    @property
    def num_bytes(self) -> int:
        """Of all features."""
        return int(self.sizes.sum()) * _WIDTH * 2

    def order(self) -> _Order:
        """A run for every bag."""
        step = np.arange(len(self.numbers) + 1)[:, None]
        bucket = self.ladder.bucket(self.sizes)[self.numbers]
        runs = [(int(b), lo, hi) for b, lo, hi in zip(bucket, step, step[1:])]
        return _Order(self.numbers[None, :, None], runs)

    def read_plainly(self) -> None:
        """One `preadv` per bag of the same bytes."""
        records = self.shards._records
        for number in self.numbers:
            descriptor = self.shards._descriptor(int(records["shard"][number]))
            offset = int(records["features_offset"][number])
            tfrecord.read_fully(descriptor, offset, [self.buffer[: self.sizes[number]]])

    def read_torch(self) -> None:
        """A .pt file per step."""
        for path in self.pt:
            torch.load(path, weights_only=True)

    def read_h5(self) -> None:
        """An .h5 file per step."""
        for path in self.h5:
            with h5py.File(path) as file:
                file["features"][:]

    def forget(self) -> None:
        """Asks the kernel to drop what it holds of the files."""
        for path in self.files:
            with path.open("rb") as file:
                os.fdatasync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class _Steps:
    """A step on every bag: streamed, and on one bag of each length that is on the device already."""

    def __init__(self, cohort: _Cohort, loader: StreamingLoader, step: Callable[[Bag], jax.Array]) -> None:
        self.order, self.loader, lengths = cohort.order(), loader, cohort.ladder.lengths
        self.programs = [
            jax.jit(partial(lambda bags, number, length: step(bags.bag(number, length)), length=length))
            for length in lengths
        ]
        self.there: dict[int, tuple[ResidentBags, int]] = {}
        for window, number in zip(loader.windows(self.order.bags, self.order.dispatches), cohort.numbers.tolist()):
            if window.bucket not in self.there:
                copied = jax.tree.map(lambda x: jnp.array(x, copy=True), window.bags)
                self.there[window.bucket] = jax.block_until_ready(copied), number
        for bucket, (bags, number) in self.there.items():
            jax.block_until_ready(self.programs[bucket](bags, number))

    def streamed(self) -> None:
        """Reading, transfer and computation."""
        for (number,), window in zip(self.order.bags[0], self.loader.windows(self.order.bags, self.order.dispatches)):
            window.done = self.programs[window.bucket](window.bags, number)
        jax.block_until_ready(window.done)

    def computed(self) -> None:
        """Computation alone."""
        for bucket, _, _ in self.order.dispatches:
            bags, number = self.there[bucket]
            done = self.programs[bucket](bags, number)
        jax.block_until_ready(done)


def main(_: list[str]) -> None:
    with tempfile.TemporaryDirectory(dir=_FOLDER.value or None) as temporary:
        cohort = _Cohort(Path(temporary), _GIB.value)
        order = cohort.order()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        bags = StreamedBags(cohort.shards, list(np.arange(len(cohort.sizes))[:, None]), int(_STREAM_GIB * 2**30))
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        loader = StreamingLoader(bags, cohort.ladder.lengths, lambda tree: jax.device_put(tree, device), order)
        try:
            _stream(loader, order)
            growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            steps = {name: _Steps(cohort, loader, step) for name, step in (("mean", _mean), ("ABMIL", _abmil()))}
            seconds = _measure(cohort, loader, order, steps)
        finally:
            loader.close()
        memory = {"windows_MB": loader.host_bytes / 1e6, "growth_of_the_process_MB": growth * 1024 / 1e6}
        _report(cohort, seconds, steps, memory)


def _measure(
    cohort: _Cohort, loader: StreamingLoader, order: _Order, steps: dict[str, _Steps]
) -> dict[str, dict[str, list[float]]]:
    """Seconds of every way, warm and cold."""
    reading: dict[str, Callable[[], None]] = {
        "plain preadv": cohort.read_plainly,
        "streamed": partial(_stream, loader, order),
        "torch.load per step": cohort.read_torch,
        "h5py per step": cohort.read_h5,
    }
    ways: dict[str, Callable[[], None]] = reading | {"transfer": partial(_transfer, loader, order)}
    for name, step in steps.items():
        ways |= {f"{name} computed": step.computed, f"{name} streamed": step.streamed}
    cold: dict[str, list[float]] = {name: [] for name in reading}
    for _ in range(_ROUNDS.value):
        for name, way in reading.items():
            cohort.forget()
            cold[name] += paired({name: way}, 1)[name]
    for way in ways.values():
        way()
    return {"warm": paired(ways, _ROUNDS.value), "cold": cold}


def _stream(loader: StreamingLoader, order: _Order) -> None:
    for window in loader.windows(order.bags, order.dispatches):
        window.done = window.bags.features


def _transfer(loader: StreamingLoader, order: _Order) -> None:
    """As many windows as an epoch has, from host memory that was written before."""
    for bucket, _, _ in order.dispatches:
        shape = loader.shapes(bucket).features.shape
        placed = loader.put(loader._windows[0].rows.features[: shape[0]])
    jax.block_until_ready(placed)


def _mean(bag: Bag) -> jax.Array:
    return jnp.sum(bag.features, axis=0, where=bag.mask[:, None]) / bag.num_instances


def _abmil() -> Callable[[Bag], jax.Array]:
    """The gradient of gated ABMIL, 128 wide."""
    module = aggregators.create("abmil", 2, feature_dim=128, attention_dim=64)
    empty = Bag(*(jnp.zeros(shape, kind) for shape, kind in (((8, _WIDTH), jnp.float32), ((8,), bool))))
    params = module.init(jax.random.key(0), empty)

    def step(bag: Bag) -> jax.Array:
        def loss(params: Any) -> jax.Array:
            prediction: Any = module.apply(params, bag)
            return jnp.sum(jnp.square(prediction.logits))

        gradients = jax.grad(loss)(params)
        return jnp.stack([jnp.sum(leaf) for leaf in jax.tree.leaves(gradients)])

    return step


def _report(
    cohort: _Cohort, seconds: dict[str, dict[str, list[float]]], steps: dict[str, _Steps], memory: dict[str, float]
) -> None:
    instances, gigabytes = int(cohort.sizes.sum()), cohort.num_bytes / 1e9
    medians = {
        state: {name: statistics.median(times) for name, times in ways.items()} for state, ways in seconds.items()
    }
    figures: dict[str, Any] = {
        "bags": len(cohort.sizes),
        "instances": instances,
        "GB": gigabytes,
        "host_memory": memory,
    }
    figures["seconds"] = seconds
    figures["instances_per_s"] = {state: {n: instances / s for n, s in ways.items()} for state, ways in medians.items()}
    table = []
    for state in ("warm", "cold"):
        rates = ", ".join(
            f"{name} {gigabytes / medians[state][name]:.2f}"
            for name in ("streamed", "plain preadv", "torch.load per step", "h5py per step")
        )
        table.append((f"reading bags of 4 to 16 MB in random order, {state}, GB/s", "", rates))
    warm = medians["warm"]
    for name in steps:
        alone = {"read": warm["plain preadv"], "transfer": warm["transfer"], "compute": warm[f"{name} computed"]}
        slowest = max(alone, key=alone.__getitem__)
        share = alone[slowest] / warm[f"{name} streamed"]
        hidden = (sum(alone.values()) - warm[f"{name} streamed"]) / (sum(alone.values()) - alone[slowest])
        figures[f"{name}: share of the slowest"] = {"slowest": slowest, "share": share, "overlapped": hidden}
        what = f"streamed with a step on each bag ({name}), warm, share of the slowest alone ({slowest})"
        table.append((what, f"at least {_BAR}", f"{share:.2f}"))
    held = f"{memory['windows_MB']:,.0f} MB; the process grew by {memory['growth_of_the_process_MB']:,.0f} MB"
    table.append(("host memory of streaming, all windows", "as stated", held))
    write_result("input", MACHINE.value, figures, table)


if __name__ == "__main__":
    app.run(main)
