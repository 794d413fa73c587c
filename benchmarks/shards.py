"""Shards: rate of writing, rate of reading in random order against plain `preadv`, and host memory.

    python -m benchmarks.shards --machine laptop

Bags are 10,000 x 1,024 float16 (20 MB). Reading is warm (from the page cache) and repeats; the median round counts. "plain" is one
`preadv` per bag of the same bytes into the same array. Bars: writing 200 MB/s, reading 0.8 of plain (checksums are also reported).
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets  # noqa: F401  imported by the writer; here so that its memory is not counted
from absl import app, flags

from mil_jax.data.shards import Shards, SlideBag, write_shards

_MACHINE = flags.DEFINE_string("machine", f"{platform.system()}-{platform.machine()}".lower(), "Name of the machine.")
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
    result = {
        "command": " ".join(["python -m benchmarks.shards", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "machine": _machine(),
        "bags": _BAGS.value,
        "bag_MB": _BAG_BYTES / _MB,
        "writing_MB_per_s": {"median": statistics.median(writing), "rounds": writing, "plain write": plain_writing},
        "peak_memory_of_writing": {"MB": memory, "bags": memory * _MB / _BAG_BYTES},
        "reading_MB_per_s": reading,
        "reading_share_of_plain": reading["shards"] / reading["plain preadv"],
        "reading_with_checksums_share_of_plain": reading["shards, verified"] / reading["plain preadv"],
        "bars": {"writing_MB_per_s": 200, "reading_share_of_plain": 0.8},
    }
    path = Path(__file__).parent / "results" / f"shards-{_MACHINE.value}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


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


def _machine() -> dict[str, Any]:
    model = next(
        (line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")), platform.machine()
    )
    versions = {
        name: importlib.metadata.version(name) for name in ("mil-jax", "numpy", "google-crc32c", "tensorflow-datasets")
    }
    return {
        "name": _MACHINE.value,
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **versions,
    }


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    app.run(main)
