"""What features look like: norms, range, constant columns, duplicate and near-zero rows, per slide and over all.

Computed as slides stream past, in blocks that fit the cache. It is the check that catches a mis-loaded encoder before
a model is trained on its output: random weights give rows that hardly differ, a wrong layer gives constant columns, a
wrong normalisation other norms.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np

_BLOCK_BYTES = 1 << 20
SMALL_SPREAD = 0.05  # mean cosine between rows above 0.9975; trained encoders stay below (0.988 the most seen)
MANY_CONSTANT, MANY_DUPLICATES, MANY_NEAR_ZERO = 0.05, 0.05, 0.01  # shares worth a warning
_NEAR_ZERO = 1e-3  # of the slide's mean norm
NORM_FACTOR = 3.0  # a slide's mean norm that differs from the median slide's by more
_LARGE_VALUE = 1e3


class FeatureReport:
    """Collects statistics of the rows of all slides; instance images count as rows of all their values."""

    def __init__(self) -> None:
        self._slides: list[dict[str, Any]] = []
        self._identical: list[tuple[str, str]] = []
        self._first_with: dict[bytes, str] = {}
        self._images = False
        self._lowest = self._highest = self._sum = np.zeros(0)
        self._num_rows, self._squares = 0, 0.0

    @np.errstate(over="ignore", invalid="ignore")
    def add(self, slide_id: str, features: np.ndarray) -> None:
        """Counts one slide. features: [n, *F], finite, C-contiguous, n > 0, the same F for all slides."""
        rows = features.reshape(len(features), -1)
        if not self._num_rows:
            width = rows.shape[1]
            self._images = features.ndim > 2
            self._lowest, self._highest, self._sum = np.full(width, np.inf), np.full(width, -np.inf), np.zeros(width)
        norms, lowest, highest = self._add_rows(rows)
        hashes = _row_hashes(rows)
        digest = hashlib.blake2b(hashes.tobytes(), digest_size=16).digest()
        if digest in self._first_with:
            self._identical.append((self._first_with[digest], slide_id))
        self._first_with.setdefault(digest, slide_id)
        self._slides.append(
            {
                "slide_id": slide_id,
                "num_instances": len(rows),
                "norm_mean": float(norms.mean()),
                "norm_min": float(norms.min()),
                "norm_max": float(norms.max()),
                "min": lowest,
                "max": highest,
                "near_zero_rows": int((norms <= _NEAR_ZERO * norms.mean()).sum()),
                "duplicate_rows": len(rows) - len(np.unique(hashes)),
            }
        )

    @np.errstate(over="ignore", invalid="ignore")
    def summary(self) -> dict[str, Any]:
        """Everything as plain numbers, for JSON: totals, warnings, then one entry per slide.

        Norms of values beyond about 1e19 overflow; the statistics are not exact there.
        """
        return {
            "num_slides": len(self._slides),
            "num_instances": self._num_rows,
            "width": len(self._sum),
            "norm_root_mean_square": self._norm(),
            "min": float(self._lowest.min(initial=math.inf)),
            "max": float(self._highest.max(initial=-math.inf)),
            "spread": self._spread(),
            "constant_columns": self._constant_columns(),
            "near_zero_rows": self._total("near_zero_rows"),
            "duplicate_rows": self._total("duplicate_rows"),
            "identical_slides": self._identical,
            "warnings": self.warnings(),
            "slides": self._slides,
        }

    def warnings(self) -> list[str]:
        """One sentence for each thing that looks wrong."""
        found = []
        if self._identical:
            pairs = ", ".join(f"{first} = {second}" for first, second in self._identical[:5])
            found.append(f"{len(self._identical)} slides hold exactly the features of another slide ({pairs})")
        if self._images or not self._num_rows:
            return found  # what follows is about the output of encoders; images may well have constant pixels
        rows = self._num_rows
        if rows >= 10 and self._spread() < SMALL_SPREAD:
            found.append(
                f"the rows hardly differ from one another (spread {self._spread():.3f} of their norm): "
                "typical of an encoder with random or wrong weights"
            )
        constant = self._constant_columns()
        if rows >= 10 and len(constant) >= MANY_CONSTANT * len(self._sum):
            found.append(f"{len(constant)} of {len(self._sum)} columns are constant over all slides")
        for key, share, what in (
            ("near_zero_rows", MANY_NEAR_ZERO, "nearly zero"),
            ("duplicate_rows", MANY_DUPLICATES, "duplicates of another row of their slide"),
        ):
            count = self._total(key)
            if count > share * rows:
                found.append(f"{count} of {rows} rows are {what}")
        if (value := max(abs(self._lowest.min()), abs(self._highest.max()))) > _LARGE_VALUE:
            found.append(f"values reach {value:.4g}; consider data.normalize, or check the encoder's preprocessing")
        return found + self._unlike_slides()

    def _add_rows(self, rows: np.ndarray) -> tuple[np.ndarray, float, float]:
        """Norm of each row, smallest and largest value; updates the columns' statistics."""
        wide = rows.dtype.itemsize > 4 or (rows.dtype.kind in "iu" and rows.dtype.itemsize > 2)
        compute = np.dtype(np.float64 if wide else np.float32)
        step = max(1, _BLOCK_BYTES // max(1, rows.shape[1] * compute.itemsize))
        squares = np.empty(len(rows), np.float64)
        lowest, highest = math.inf, -math.inf
        for start in range(0, len(rows), step):
            block = rows[start : start + step]
            block = widened(block) if block.dtype == np.float16 else block.astype(compute, copy=False)
            squares[start : start + step] = np.einsum("nd,nd->n", block, block)
            block_lowest, block_highest = block.min(axis=0), block.max(axis=0)
            np.minimum(self._lowest, block_lowest, out=self._lowest)
            np.maximum(self._highest, block_highest, out=self._highest)
            self._sum += block.sum(axis=0)
            lowest = min(lowest, float(block_lowest.min()))
            highest = max(highest, float(block_highest.max()))
        self._num_rows += len(rows)
        self._squares += float(squares.sum())
        return np.sqrt(squares), lowest, highest

    def _norm(self) -> float:
        return math.sqrt(self._squares / self._num_rows) if self._num_rows else 0.0

    def _spread(self) -> float:
        """Root mean square distance of the rows from their mean, as a share of their root mean square norm."""
        if not self._squares:
            return 0.0
        mean = self._sum / self._num_rows
        return math.sqrt(max(0.0, 1.0 - float(mean @ mean) * self._num_rows / self._squares))

    def _constant_columns(self) -> list[int]:
        return np.flatnonzero(self._lowest == self._highest).tolist()

    def _total(self, key: str) -> int:
        return sum(slide[key] for slide in self._slides)

    def _unlike_slides(self) -> list[str]:
        norms = np.array([slide["norm_mean"] for slide in self._slides])
        median = float(np.median(norms))
        unlike = [
            s["slide_id"]
            for s, norm in zip(self._slides, norms)
            if not 1 / NORM_FACTOR <= norm / (median or 1.0) <= NORM_FACTOR
        ]
        if len(norms) < 3 or not unlike or not median:
            return []
        more = ", ..." if len(unlike) > 5 else ""
        return [
            f"the norms of {len(unlike)} slides differ from the median slide's by more than a factor of "
            f"{NORM_FACTOR:g} ({', '.join(unlike[:5])}{more}): perhaps another encoder or normalisation"
        ]


def widened(halves: np.ndarray) -> np.ndarray:
    """Finite float16 -> float32, exactly, eight times as fast as NumPy's own cast.

    Shifting a half's bits into place leaves its exponent too small by the difference of the biases, 127 - 15; the factor
    2^112 fixes that, for subnormal numbers too. The sign, extended by the wider integer, is cut back to one bit.
    """
    bits = halves.view(np.int16).astype(np.int32)
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, np.int32(-0x70000001), out=bits)
    floats = bits.view(np.float32)
    return np.multiply(floats, np.float32(2.0**112), out=floats)


def _row_hashes(rows: np.ndarray) -> np.ndarray:
    """uint64 [n]: equal for equal rows, by a random linear form of their bytes taken as the widest words that fit."""
    row_bytes = rows.shape[1] * rows.dtype.itemsize
    word = next(size for size in (8, 4, 2, 1) if row_bytes % size == 0)
    words = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), row_bytes).view(f"u{word}")
    factors = np.random.default_rng(0).integers(0, 2**63, words.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    return np.einsum("nd,d->n", words, factors)
