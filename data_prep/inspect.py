"""Command: what a folder of shards holds, in words and as a picture: slides, sizes, buckets, padding, provenance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from absl import flags
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from data_prep.cli import parsed
from mil_jax.cli.console import console, frame_table, run_command, say
from mil_jax.data.buckets import Ladder, fit_ladder
from mil_jax.data.shards.index import read_index
from mil_jax.data.shards.reader import Shards
from mil_jax.data.shards.writer import REPORT_FILE
from mil_jax.files import atomic_write
from mil_jax.interop.feature_files import counted
from mil_jax.reports.figures.curves import COLOURS

ABOUT = """Says what a folder of shards holds.

usage: python -m data_prep.inspect --shards DIR [--picture FILE.png]

example:
  python -m data_prep.inspect --shards shards/ --picture shards.png"""
PROVENANCE = {
    "encoder": "encoder",
    "tile_size_level0": "tile, level-0 pixels",
    "mpp_level0": "um/px at level 0",
    "coordinate_unit": "coordinates in",
}
_SHOWN = 10
_BINS, _TICKS = 30, 6  # of the picture


def define_flags(values: flags.FlagValues) -> None:
    """The command's settings."""
    flags.DEFINE_string("shards", "", "folder of shards", flag_values=values)
    flags.DEFINE_string(
        "picture", "", "picture to draw; default: inspect.png beside the folder's name", flag_values=values
    )
    flags.DEFINE_float(
        "max-padding", 0.15, "share of padding that training's buckets may have", 0.0, 0.99, flag_values=values
    )
    flags.DEFINE_integer("max-buckets", 12, "most buckets of training", 1, 100, flag_values=values)
    flags.DEFINE_alias("max-waste", "max-padding", flag_values=values)  # their old names
    flags.DEFINE_alias("max-shapes", "max-buckets", flag_values=values)


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    values = parsed("data_prep.inspect", arguments, define_flags, ABOUT, needed=("shards",))
    if values is None:
        return 0
    folder = Path(values.shards)
    shards, index = Shards.open(folder), read_index(folder)
    sizes = shards.num_instances
    max_padding: Any = values["max-padding"].value
    max_buckets: Any = values["max-buckets"].value
    ladder = fit_ladder(sizes, max_padding=max_padding, max_buckets=max_buckets)
    stored = int(index.records["length"].sum())
    _say_sizes(shards, sum(shard.num_bytes for shard in index.shards), len(index.shards), 1 - int(sizes.sum()) / stored)
    console.print(frame_table("buckets of training on all of them", _buckets(shards, ladder)))
    say(f"{len(ladder.lengths)} shapes; {ladder.waste:.1%} of the rows are padding")
    console.print(frame_table("provenance", _provenance(shards)))
    _say_features(folder)
    for slide, reason in shards.excluded[:_SHOWN]:
        say(f"Excluded: {slide} ({reason})")
    if len(shards.excluded) > _SHOWN:
        say(f"and {len(shards.excluded) - _SHOWN} more")
    for note in shards.notes:
        say(f"Note: {note}")
    picture = (
        Path(values.picture) if values.picture else folder.absolute().with_name(f"{folder.absolute().name}-inspect.png")
    )
    draw(picture, shards, ladder)
    say(f"Picture: {picture}")
    return 0


def _say_sizes(shards: Shards, num_bytes: int, files: int, waste: float) -> None:
    sizes = pd.Series(shards.num_instances)
    shape = " x ".join(map(str, shards.feature_shape))
    say(
        f"{shards.folder}: {counted(len(shards), 'slide')}, {int(sizes.sum()):,} instances of {shape} {shards.dtype.name}, "
        f"{num_bytes / 1e6:,.1f} MB in {counted(files, 'shard')} ({waste:.1%} padding as stored)"
    )
    say(
        f"Instances of a slide: {sizes.min():,} to {sizes.max():,}, median {sizes.median():,.0f}, "
        f"middle half {sizes.quantile(0.25):,.0f} to {sizes.quantile(0.75):,.0f}"
    )
    extras = [f"{shards.num_neighbors} neighbours of each tile"] if shards.num_neighbors else []
    extras += [f"regions of {shards.num_parts} tiles"] if shards.num_parts else []
    if extras:
        say(f"With {' and '.join(extras)}")


def _buckets(shards: Shards, ladder: Ladder) -> pd.DataFrame:
    number = ladder.bucket(shards.num_instances)
    rows = []
    for bucket, length in enumerate(ladder.lengths):
        sizes = shards.num_instances[number == bucket]
        rows.append((length, len(sizes), f"{1 - sizes.sum() / (length * len(sizes)):.1%}"))
    return pd.DataFrame(rows, columns=["length", "slides", "padding"])


def _provenance(shards: Shards) -> pd.DataFrame:
    table = shards.provenance[list(PROVENANCE)]
    table = table.astype(object).where(table.notna(), "unknown")
    counts = table.value_counts().rename("slides").reset_index()
    return counts.rename(columns=PROVENANCE)


def _say_features(folder: Path) -> None:
    path = folder / REPORT_FILE
    if not path.is_file():
        return
    seen = json.loads(path.read_text(encoding="utf-8"))
    say(
        f"Features: values {seen['min']:.4g} to {seen['max']:.4g}, norm {seen['norm_root_mean_square']:.4g}, spread {seen['spread']:.2f}, "
        f"{counted(len(seen['constant_columns']), 'constant column')}, {counted(seen['duplicate_rows'], 'duplicate row')}, "
        f"{counted(seen['near_zero_rows'], 'near-zero row')}"
    )


def draw(path: Path, shards: Shards, ladder: Ladder) -> None:
    """Two panels: a histogram of the sizes with the buckets' lengths; real and padded instances of each bucket."""
    sizes, lengths = shards.num_instances, np.array(ladder.lengths)
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    edges = np.geomspace(sizes.min(), max(lengths[-1], sizes.min() + 1), _BINS + 1)
    left.hist(sizes, bins=edges, color=COLOURS[0])
    for length in lengths:
        left.axvline(length, color=COLOURS[1], linewidth=1)
    left.set(xscale="log", xlabel="instances of a slide (lines: buckets)", ylabel="slides")
    ticks = np.unique(np.rint(np.geomspace(edges[0], edges[-1], _TICKS)))
    left.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    left.set_xticks([], minor=True)
    left.yaxis.set_major_locator(MaxNLocator(integer=True))
    number = ladder.bucket(sizes)
    real = np.array([sizes[number == bucket].sum() for bucket in range(len(lengths))])
    padded = np.array([(number == bucket).sum() for bucket in range(len(lengths))]) * lengths - real
    place = np.arange(len(lengths))
    right.bar(place, real, color=COLOURS[0], label="instances")
    right.bar(place, padded, bottom=real, color=COLOURS[4], label="padding")
    right.set_xticks(place, [f"{length:,}" for length in lengths], rotation=45)
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    right.set(xlabel="bucket", ylabel="rows", title=f"{ladder.waste:.1%} padding")
    right.legend(frameon=False)
    encoders = ", ".join(sorted(set(shards.provenance["encoder"])))
    width = " x ".join(map(str, shards.feature_shape))
    figure.suptitle(
        f"{counted(len(shards), 'slide')}, {int(sizes.sum()):,} instances of {width} {shards.dtype.name}, encoder {encoders}"
    )
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


if __name__ == "__main__":
    run_command(main)
