"""The picture of a folder of shards: how many instances slides have, and what padding them to the buckets' lengths costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mil_jax.data.buckets import Ladder
from mil_jax.data.shards import Shards
from mil_jax.files import written_whole
from mil_jax.interop.feature_files import counted
from mil_jax.reports.curves import COLOURS

_BINS, _TICKS = 30, 6


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
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
