"""The regions of a slide: squares of `side` x `side` tiles, 16 x 16 for HIPT, in which a tile may be missing.

Regions lie on the slide's own grid, from its upper left corner, so that one tile more or less does not move them. 16 tiles of 256 pixels
are 4,096 pixels at the tiles' magnification; in level-0 pixels that is 8,192 where tiles of 20x come from a slide of 40x.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from mil_jax.data.features.graphs import check_distinct
from mil_jax.errors import DataError
from mil_jax.interop.slide_bag import SlideBag

_ENOUGH = 8  # tiles by which the spacing of the grid can be told: of fewer, all may lie two cells apart by accident
_TOLERANCE = 1 / 64  # of a tile: coordinates in micrometres are rounded


def in_regions(slide: SlideBag, side: int) -> SlideBag:
    """The slide with regions as its instances: features [R, side * side, D], coords [R, 2] of their corners, part_mask [R, side * side].

    Regions and the tiles in them are in order row by row; a tile that is missing is zero. A slide that comes in regions is kept.
    Raises DataError naming the slide where it has no coordinates, two tiles at one place, a grid that does not fit the size of its tiles,
    or regions of another size.
    """
    if slide.features.ndim == 3:
        if slide.features.shape[1] != side**2:
            raise DataError(
                f"slide {slide.slide_id} comes in regions of {slide.features.shape[1]} tiles, but regions of {side} x {side} are asked for"
            )
        return slide
    if slide.coords is None:
        raise DataError(
            f"slide {slide.slide_id} has no coordinates, and regions need them: write its features with coordinates, or as regions "
            f"[R, {side**2}, D]"
        )
    coords = np.asarray(slide.coords, np.int64)
    check_distinct(coords, slide.slide_id, "a grid of regions")
    size = _tile_size(slide, coords)
    corner = coords.min(axis=0)
    first = np.floor(corner / size).astype(np.int64)  # the number of its cell, in x and y
    cells = first + _cells(slide, coords - corner, size)
    regions, number = np.unique((cells // side)[:, ::-1], axis=0, return_inverse=True)  # in the order of (y, x)
    column, row = (cells % side).T
    number, place = number.ravel(), row * side + column
    features = np.zeros((len(regions), side**2, *slide.features.shape[1:]), slide.features.dtype)
    features[number, place] = slide.features
    part_mask = np.zeros(features.shape[:2], bool)
    part_mask[number, place] = True
    corners = corner + (regions[:, ::-1] * side - first) * size
    return dataclasses.replace(
        slide,
        features=features,
        coords=np.rint(corners).astype(np.int32),
        part_mask=part_mask,
        provenance=dataclasses.replace(slide.provenance, tile_size_level0=side * size),
    )


def as_one_region(slide: SlideBag, side: int) -> SlideBag:
    """Undoes what readers make of a file [1, T, D], whose first axis they take for a batch: with T tiles, no more and no less, and without
    coordinates it is a slide of one region.
    """
    if slide.coords is None and slide.features.ndim == 2 and len(slide.features) == side**2:
        return dataclasses.replace(slide, features=slide.features[None])
    return slide


def _tile_size(slide: SlideBag, coords: np.ndarray) -> float:
    size = slide.provenance.tile_size_level0
    if math.isfinite(size) and size > 0:
        return size
    if len(coords) < _ENOUGH:
        raise DataError(
            f"slide {slide.slide_id} does not say how large its tiles are, and {len(coords)} are too few to tell: write "
            "'patch_size_level0' beside its coordinates, or leave the slide out"
        )
    return float(_spacing(coords))


def _cells(slide: SlideBag, offsets: np.ndarray, size: float) -> np.ndarray:
    """Places in the grid, int64 [n, 2] from 0."""
    cells = np.rint(offsets / size).astype(np.int64)
    spacing = np.gcd.reduce(cells.ravel())
    if np.abs(offsets - cells * size).max() > _TOLERANCE * size:
        step = float(_spacing(offsets))
    elif len(cells) >= _ENOUGH and spacing > 1:
        step = spacing * size
    else:
        return cells
    raise DataError(
        f"slide {slide.slide_id}: the step of its grid is {step:g}, but the size of its tiles is {size:g}; regions need tiles side by "
        "side: fix the size in its feature file, or tile the slide again without overlap"
    )


def _spacing(coords: np.ndarray) -> int:
    """The smallest distance between two columns or two rows of tiles; 0 where there is one of each."""
    steps = np.concatenate([np.diff(np.unique(values)) for values in coords.T])
    return int(steps.min(initial=np.iinfo(np.int64).max)) if steps.size else 0
