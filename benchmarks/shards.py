"""Shards: rate of writing, rate of reading in random order against plain `preadv`, and host memory.

    python -m benchmarks.shards --machine laptop

Bags are 10,000 x 1,024 float16 (20 MB). Reading is warm (from the page cache) and repeats; the median round counts. "plain" is one
`preadv` per bag of the same bytes into the same array. Bars: writing 200 MB/s, reading 0.8 of plain (checksums are also reported).
"""

from __future__ import annotations

import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow_datasets  # noqa: F401  imported by the writer; here so that its memory is not counted
from absl import app, flags

from benchmarks.common import MACHINE, write_result
from mil_jax.data.shards.reader import Shards
from mil_jax.data.shards.writer import write_shards
from mil_jax.interop.slide_bag import SlideBag

_BAGS = flags.DEFINE_integer("bags", 48, "Number of bags.")

_INSTANCES, _WIDTH = 10_000, 1024
_BAG_BYTES = _INSTANCES * _WIDTH * 2
_WRITING_ROUNDS, _READING_ROUNDS = 5, 7
_MB = 1e6


def main(_: list[str]) -> None:
    source = _source()
    start_memory = _peak_memory()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "shards"
        writing, plain_writing = [], []
        for _ in range(_WRITING_ROUNDS):
            plain_writing.append(_write_plainly(Path(temporary) / "plain", source))
            writing.append(_write(folder, source))
        memory = _peak_memory() - start_memory
        reading = _read(Shards.open(folder))
    written = statistics.median(writing)
    share = reading["shards"] / reading["plain preadv"]
    verified = reading["shards, verified"] / reading["plain preadv"]
    bags_held = memory * _MB / _BAG_BYTES
    figures = {
        "bags": _BAGS.value,
        "bag_MB": _BAG_BYTES / _MB,
        "writing_MB_per_s": {"median": written, "rounds": writing, "plain write": plain_writing},
        "peak_memory_of_writing": {"MB": memory, "bags": bags_held},
        "reading_MB_per_s": reading,
        "reading_share_of_plain": share,
        "reading_with_checksums_share_of_plain": verified,
    }
    table = [
        ("writing shards of float16 features", "at least 200 MB/s", f"{written:,.0f} MB/s"),
        ("memory of writing, in bags of 20 MB", "", f"{bags_held:.1f}"),
        ("reading 20 MB bags in random order, warm, share of plain `preadv`", "at least 0.8", f"{share:.2f}"),
        ("the same with checksums verified", "", f"{verified:.2f}"),
    ]
    write_result("shards", MACHINE.value, figures, table)


def _source() -> np.ndarray:
    """Random rows, of which every bag is a window: nothing but writing is timed. Made in blocks, to leave no peak."""
    rng = np.random.default_rng(0)
    source = np.empty((_INSTANCES + _BAGS.value, _WIDTH), np.float16)
    for block in np.array_split(source, 100):
        block[:] = rng.standard_normal(block.shape, np.float32)
    return source


def _bags(source: np.ndarray) -> list[np.ndarray]:
    return [source[number : number + _INSTANCES] for number in range(_BAGS.value)]


def _write(folder: Path, source: np.ndarray) -> float:
    start = time.perf_counter()
    slides = (SlideBag(f"slide-{number:03d}", bag) for number, bag in enumerate(_bags(source)))
    report = write_shards(slides, folder, overwrite=True)
    return report.feature_bytes / _MB / (time.perf_counter() - start)


def _write_plainly(path: Path, source: np.ndarray) -> float:
    """The same bytes, without checks, checksums and report."""
    start = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for bag in _bags(source):
            file.write(bag.data)
    rate = _BAGS.value * _BAG_BYTES / _MB / (time.perf_counter() - start)
    path.unlink()
    return rate


def _read(shards: Shards) -> dict[str, float]:
    """Median MB/s of each way of reading all bags in random order; the ways take turns in every round."""
    staging = np.empty((_INSTANCES, _WIDTH), np.float16)
    # The places of the bags, found once: plain reading has no index to consult.
    records = np.genfromtxt(shards.folder / "records.csv", delimiter=",", names=True, dtype=None, encoding="utf-8")
    paths = [shards.folder / shard for shard in sorted(p.name for p in shards.folder.glob("*.tfrecord-*"))]
    descriptors = [os.open(path, os.O_RDONLY) for path in paths]

    def plain(i: int) -> None:
        done, view = 0, memoryview(staging).cast("B")
        while done < len(view):
            shard, offset = int(records["shard"][i]), int(records["features_offset"][i])
            done += os.preadv(descriptors[shard], [view[done:]], offset + done)

    def verified(i: int) -> None:
        shards.verify(i)
        shards.read_features(i, staging)

    ways: dict[str, Callable[[int], None]] = {
        "plain preadv": plain,
        "shards": lambda i: shards.read_features(i, staging),
        "shards, verified": verified,
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    rng = np.random.default_rng(0)
    for _ in range(1 + _READING_ROUNDS):  # the first round warms the page cache
        for name, way in ways.items():
            order = rng.permutation(len(shards))
            start = time.perf_counter()
            for i in order:
                way(int(i))
            rates[name].append(staging.nbytes * len(shards) / _MB / (time.perf_counter() - start))
    for descriptor in descriptors:
        os.close(descriptor)
    return {name: statistics.median(rate[1:]) for name, rate in rates.items()}


def _peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _MB


if __name__ == "__main__":
    app.run(main)
