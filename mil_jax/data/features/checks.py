"""What is checked before features are stored: finite values, one width, one type, and casts that say what they cost."""

from __future__ import annotations

import dataclasses

import numpy as np

from mil_jax.data.features.report import FeatureReport
from mil_jax.data.shards.index import STORABLE
from mil_jax.errors import ConfigError, DataError
from mil_jax.interop.slide_bag import SlideBag

NONFINITE = ("error", "drop_rows", "drop_slide")

_BLOCK_BYTES = 1 << 20  # worked on at a time: stays in the cache
_SMALLEST_NORMAL = {"float16": 2.0**-14, "float32": 2.0**-126}


class SlideChecks:
    """What slides must have in common, and what was found wrong with them."""

    def __init__(self, dtype: np.dtype | None, nonfinite: str, excluded: list[tuple[str, str]]) -> None:
        if nonfinite not in NONFINITE:
            raise ConfigError(f"nonfinite={nonfinite!r} is not known; choose one of {', '.join(NONFINITE)}")
        self.dtype, self.nonfinite, self.excluded = dtype, nonfinite, excluded
        self.report = FeatureReport()
        self.dropped: dict[str, int] = {}
        self.largest_error: float | None = None
        self._sources: dict[str, str] = {}
        self._first: tuple[str, tuple[int, ...], np.dtype] | None = None
        self._offenders: list[str] = []

    def check(self, slide: SlideBag) -> SlideBag | None:
        """The slide as it is to be stored, or None where it is left out."""
        if not slide.slide_id.strip() or not slide.slide_id.isprintable():
            raise DataError(
                f"{slide.source or 'slide'}: its id {slide.slide_id!r} is not printable text; rename the file"
            )
        self._check_once(slide.slide_id, slide.source)
        if len(slide.features) == 0:
            self.excluded.append((slide.slide_id, "empty"))
            return None
        self._check_kind(slide.slide_id, slide.features)
        features, coords, part_mask = slide.features, slide.coords, slide.part_mask
        finite = finite_rows(features)
        if not finite.all():
            bad = np.flatnonzero(~finite)
            if self.nonfinite == "error":
                self._offenders.append(f"slide {slide.slide_id}, rows {ranges(bad)}")
                return None
            if self.nonfinite == "drop_slide" or not finite.any():
                self.excluded.append((slide.slide_id, f"{bad.size} of {len(finite)} rows are not finite"))
                return None
            self.dropped[slide.slide_id] = int(bad.size)
            features = features[finite]
            coords, part_mask = (None if x is None else x[finite] for x in (coords, part_mask))
        if self._offenders:  # nothing will be kept: only the other offenders are still looked for
            return None
        if self.dtype is not None and features.dtype != self.dtype:
            features, error = cast(features, self.dtype, f"slide {slide.slide_id}")
            self.largest_error = max(error, self.largest_error or 0.0)
        features = np.ascontiguousarray(features, features.dtype.newbyteorder("<"))
        self.report.add(slide.slide_id, features)
        return dataclasses.replace(slide, features=features, coords=coords, part_mask=part_mask)

    def count(self, slide_id: str, source: str, features: np.ndarray) -> None:
        """Counts a slide that is stored already, as it is: features [n, *F]."""
        self._check_once(slide_id, source)
        self._check_kind(slide_id, features)
        self.report.add(slide_id, features)

    def raise_for_offenders(self) -> None:
        """Raises DataError naming every row that is not finite."""
        if self._offenders:
            raise DataError(
                f"features that are not finite: {'; '.join(self._offenders)}; extract these slides again, "
                "or leave them out by data.nonfinite=drop_rows or drop_slide (data_prep.shard: --nonfinite)"
            )

    def _check_once(self, slide_id: str, source: str) -> None:
        if slide_id in self._sources:
            raise DataError(
                f"slide {slide_id} occurs twice ({self._sources[slide_id] or 'no file'} and {source or 'no file'}); remove or "
                "rename one of them"
            )
        self._sources[slide_id] = source

    def _check_kind(self, slide_id: str, features: np.ndarray) -> None:
        if features.dtype.name not in STORABLE:
            raise DataError(f"slide {slide_id}: features of type {features.dtype} cannot be stored; convert them first")
        shape, dtype = features.shape[1:], features.dtype
        if self._first is None:
            self._first = (slide_id, shape, dtype)
        first_id, first_shape, first_dtype = self._first
        if shape != first_shape:
            raise DataError(
                f"slide {slide_id} has {_width(shape)}, but slide {first_id} has {_width(first_shape)}; "
                "all slides of a folder must come from one encoder, and be [instances, features]"
            )
        if self.dtype is None and dtype != first_dtype:
            raise DataError(
                f"slide {slide_id} holds {dtype} features, but slide {first_id} {first_dtype}; "
                "write them as one type with python -m data_prep.shard --dtype float32, and name the shards with data.shards"
            )


def finite_rows(features: np.ndarray) -> np.ndarray:
    """features [n, *F] -> bool [n], True where every value of a row is finite."""
    rows = features.reshape(len(features), -1)
    if rows.dtype.kind != "f":
        return np.ones(len(rows), bool)
    finite = np.empty(len(rows), bool)
    for block in _blocks(rows):
        finite[block] = _finite(rows[block])
    return finite


def cast(features: np.ndarray, dtype: np.dtype, where: str) -> tuple[np.ndarray, float]:
    """Features in another type, and the largest relative error of a value.

    Values below the type's smallest normal number count relative to that number: there, what is lost is absolute.
    features: [n, *F], finite. Raises DataError, beginning with `where`, for a value that is too large for the type.
    """
    rows = features.reshape(len(features), -1)
    result = np.empty(rows.shape, dtype)
    largest_error = 0.0
    smallest = _SMALLEST_NORMAL.get(dtype.name, 1.0)
    for block in _blocks(rows):
        source = rows[block].astype(np.promote_types(rows.dtype, np.float32), copy=False)
        with np.errstate(over="ignore"):
            result[block] = source
        if not np.isfinite(result[block]).all():
            row, column = np.argwhere(~np.isfinite(result[block]))[0]
            raise DataError(
                f"{where}, row {block.start + row}: {source[row, column]:g} is too large for {dtype.name}; "
                "store a wider type (dtype=float32)"
            )
        error = np.abs(result[block].astype(source.dtype) - source)
        error /= np.maximum(np.abs(source), smallest)
        largest_error = max(largest_error, float(error.max(initial=0.0)))
    return result.reshape(features.shape), largest_error


def ranges(numbers: np.ndarray) -> str:
    """[3, 5, 6, 7] -> `3, 5-7`."""
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    runs = np.split(numbers, breaks)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _finite(rows: np.ndarray) -> np.ndarray:
    if rows.dtype == np.float16:  # by the exponent's bits: NumPy's own test converts each value first
        exponents = rows.view(np.uint16) & 0x7C00
        if exponents.max(initial=0) < 0x7C00:
            return np.ones(len(rows), bool)
    return np.isfinite(rows).all(axis=1)


def _blocks(rows: np.ndarray) -> list[slice]:
    step = max(1, _BLOCK_BYTES // max(1, rows.shape[1] * 4))
    return [slice(start, start + step) for start in range(0, len(rows), step)]


def _width(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} features" if len(shape) == 1 else f"features of shape {'x'.join(map(str, shape))}"
