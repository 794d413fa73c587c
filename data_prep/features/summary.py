"""What the features of a cohort look like, from the rows of its report: the check that would notice weights loaded wrongly.

Norms and values over all slides, how much rows differ, and how far the norms are from what the encoder usually gives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from data_prep.jobs import OK, Row
from mil_jax.data.features.report import MANY_CONSTANT, MANY_DUPLICATES, MANY_NEAR_ZERO, NORM_FACTOR, SMALL_SPREAD
from mil_jax.data.tables import listed
from mil_jax.encoders.registry import TileEncoder, size_warning
from mil_jax.interop.feature_files import counted

ENOUGH = 10  # rows of a slide, to judge how they differ
USUAL_MARGIN = 0.25  # beyond the norms that were seen


def summary_lines(rows: Sequence[Row], encoder: TileEncoder) -> tuple[list[str], list[str]]:
    """(what was encoded, in sentences; what should be looked at)."""
    done = [row for row in rows if row["status"] == OK]
    tiles = sum(row["tiles"] for row in done)
    lines = [f"{counted(len(done), 'slide')} with features, {counted(tiles, 'tile')}"]
    if not done:
        return lines, []
    norms = np.array([row["norm"] for row in done], float)
    width = done[0]["width"]
    lines.append(
        f"Features: width {width}, values {min(row['min'] for row in done):.4g} to {max(row['max'] for row in done):.4g}, "
        f"norms {min(row['norm_min'] for row in done):.4g} to {max(row['norm_max'] for row in done):.4g} "
        f"(mean {np.average(norms, weights=[row['tiles'] for row in done]):.4g}), "
        f"spread {np.median([row['spread'] for row in done]):.2f} of the norm; none is not finite"
    )
    lines.append(
        f"{encoder.name}: {encoder.output}; pretrained on {encoder.pretrained_on}"
        + (f"; usual norms {encoder.usual_norm[0]:g} to {encoder.usual_norm[1]:g}" if encoder.usual_norm else "")
    )
    return lines, _warnings(done, tiles, norms, width, encoder)


def _warnings(rows: Sequence[Row], tiles: int, norms: np.ndarray, width: int, encoder: TileEncoder) -> list[str]:
    found = []
    sizes = [math.nan if row["tile_um"] == "" else float(row["tile_um"]) for row in rows]
    unlike = {row["slide"]: sentence for row, size in zip(rows, sizes) if (sentence := size_warning(encoder, size))}
    for sentence in sorted(set(unlike.values())):
        slides = [slide for slide, said in unlike.items() if said == sentence]
        found.append(f"{counted(len(slides), 'slide')} ({listed(slides)}): {sentence}")
    if encoder.usual_norm:
        least, most = encoder.usual_norm[0] * (1 - USUAL_MARGIN), encoder.usual_norm[1] * (1 + USUAL_MARGIN)
        odd = [row["slide"] for row, norm in zip(rows, norms) if not least <= norm <= most]
        if odd:
            found.append(
                f"the norms of {counted(len(odd), 'slide')} ({listed(odd)}) are not what {encoder.name} usually gives, "
                f"{encoder.usual_norm[0]:g} to {encoder.usual_norm[1]:g}: check weights and preprocessing"
            )
    alike = [row["slide"] for row in rows if row["tiles"] >= ENOUGH and row["spread"] < SMALL_SPREAD]
    if alike:
        found.append(
            f"in {counted(len(alike), 'slide')} ({listed(alike)}) the tiles' vectors hardly differ: typical of random or wrong weights"
        )
    constant = [
        row["slide"] for row in rows if row["tiles"] >= ENOUGH and row["constant_columns"] >= MANY_CONSTANT * width
    ]
    if constant:
        found.append(f"in {counted(len(constant), 'slide')} ({listed(constant)}) many columns are constant")
    for column, share, what in (
        ("near_zero_rows", MANY_NEAR_ZERO, "nearly zero"),
        ("duplicate_rows", MANY_DUPLICATES, "the same as another tile's of their slide"),
    ):
        count = sum(row[column] for row in rows)
        if count > share * tiles:
            found.append(f"the vectors of {count} of {tiles} tiles are {what}")
    median = float(np.median(norms))
    if len(norms) >= 3 and median:
        far = [row["slide"] for row, norm in zip(rows, norms) if not 1 / NORM_FACTOR <= norm / median <= NORM_FACTOR]
        if far:
            found.append(
                f"the norms of {counted(len(far), 'slide')} ({listed(far)}) differ from the median slide's by more than a factor of "
                f"{NORM_FACTOR:g}"
            )
    return found
