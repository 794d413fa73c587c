"""What the features of a cohort look like as a whole: mean and spread, how far another cohort lies from it, and bags that are copies.

Each bag counts alike, by at most 1,024 of its instances, in four blocks that lie evenly in it: enough for a mean, and a cohort larger
than memory is read in seconds. Distances are in units of the standard deviation of a feature.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mil_jax.data.loading.resident import _BLOCK_ROWS
from mil_jax.data.shards.reader import Shards

BLOCKS, BLOCK_ROWS = 4, 256
NEAR = 0.01  # bags whose means differ by less, root mean square over the features, in standard deviations, are copies
_CHUNK = 1024  # bags compared at a time


@dataclass(frozen=True)
class BagMoments:
    """Of each bag: means [M, D] and variances [M, D] of its instances, float64; D: the features of an instance, flat."""

    means: np.ndarray
    variances: np.ndarray


@dataclass(frozen=True)
class FeatureMoments:
    """Of a cohort: mean, variance [D] of instances, between: variance [D] of the means of bags; bags: how many."""

    mean: np.ndarray
    variance: np.ndarray
    between: np.ndarray
    bags: int


@dataclass(frozen=True)
class Distance:
    """Of one cohort from another. shift: of the mean. expected: the shift of as many bags drawn from the other cohort. spread: median
    over the features of the ratio of the standard deviations.
    """

    shift: float
    expected: float
    spread: float

    @property
    def sentence(self) -> str:
        """For people."""
        return (
            f"features lie {self.shift:.2f} standard deviations from those of training (bags of the training cohort would lie "
            f"{self.expected:.2f} away by chance), their spread is {self.spread:.2f} times as large"
        )


def bag_moments(shards: Shards, slides: Sequence[np.ndarray]) -> BagMoments:
    """slides[b]: numbers of the slides of bag b. Raises ShardError where a shard cannot be read."""
    moments = [_moments(_sample(shards, numbers)) for numbers in slides]
    return BagMoments(np.stack([mean for mean, _ in moments]), np.stack([variance for _, variance in moments]))


def cohort_moments(bags: BagMoments) -> FeatureMoments:
    """Of all the bags together."""
    between = bags.means.var(axis=0)
    return FeatureMoments(bags.means.mean(axis=0), bags.variances.mean(axis=0) + between, between, len(bags.means))


def distance(training: FeatureMoments, other: FeatureMoments) -> Distance:
    """How far `other` lies from `training`; features that are constant in training are left out."""
    varying = training.variance > 0
    scale = training.variance[varying]
    if not varying.any():
        return Distance(np.nan, np.nan, np.nan)
    shift = np.mean((other.mean - training.mean)[varying] ** 2 / scale)
    # Both means are those of a sample of bags.
    expected = np.mean(training.between[varying] / scale) * (1 / other.bags + 1 / training.bags)
    spread = np.median(np.sqrt(other.variance[varying] / scale))
    return Distance(float(np.sqrt(shift)), float(np.sqrt(expected)), float(spread))


def near_duplicates(bags: BagMoments) -> np.ndarray:
    """int [pairs, 2]: bags whose features are nearly the same, in ascending order."""
    moments = cohort_moments(bags)
    varying = moments.variance > 0
    if not varying.any():
        return np.empty((0, 2), np.int64)
    scaled = (bags.means - moments.mean)[:, varying] / np.sqrt(moments.variance[varying] * varying.sum())
    norms = np.sum(scaled**2, axis=1)
    pairs = []
    for start in range(0, len(scaled), _CHUNK):
        squared = norms[start : start + _CHUNK, None] + norms - 2 * scaled[start : start + _CHUNK] @ scaled.T
        first, second = np.nonzero(squared < NEAR**2)
        pairs.append(np.stack([first + start, second], axis=1))
    found = np.concatenate(pairs)
    return found[found[:, 0] < found[:, 1]]


def _sample(shards: Shards, numbers: np.ndarray) -> np.ndarray:
    """Instances of a bag [n, D]; of regions the tiles that there are."""
    parts = []
    for number in numbers.tolist():
        size = int(shards.num_instances[number])
        if shards.num_parts or size <= BLOCKS * BLOCK_ROWS:
            features = np.empty((size, *shards.feature_shape), shards.dtype)
            shards.read_features(number, features)
            parts.append(features[shards.read_part_mask(number)] if shards.num_parts else features)
            continue
        for first in np.linspace(0, size - BLOCK_ROWS, BLOCKS).astype(int).tolist():
            block = np.empty((BLOCK_ROWS, *shards.feature_shape), shards.dtype)
            shards.read_features(number, block, first)
            parts.append(block)
    rows = np.concatenate(parts)
    return rows.reshape(len(rows), -1).astype(np.float64)


def _moments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return rows.mean(axis=0), rows.var(axis=0)


def moments(bags: Iterable[tuple[int, np.ndarray]], parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population standard deviation, float64 [P, *F], of all instances of the bags marked in `parts` [P, num_bags].

    bags: (number, features [n, *F]) of every bag in any part. Each is looked at once, in blocks, whatever the number of parts.
    """
    counts = np.zeros(len(parts))
    guess = totals = squares = np.zeros(0)
    for number, features in bags:
        members = np.flatnonzero(parts[:, number])
        for start in range(0, len(features), _BLOCK_ROWS):
            block = np.array(features[start : start + _BLOCK_ROWS], np.float64)
            if not guess.size:
                # Sums are taken about a first guess of the mean: without it, large means would cancel the digits of small deviations.
                guess = block.mean(axis=0)
                totals, squares = np.zeros((2, len(parts), *guess.shape))
            block -= guess
            counts[members] += len(block)
            totals[members] += block.sum(axis=0)
            squares[members] += np.square(block, out=block).sum(axis=0)
    counts = counts.reshape(-1, *(1,) * guess.ndim)
    mean = totals / counts
    variance = np.maximum(squares / counts - mean**2, 0.0)
    # A constant column has a variance of rounding noise; its deviation is exactly 0.
    variance[variance <= 1e-12 * np.maximum(np.abs(mean + guess), 1e-30) ** 2] = 0.0
    return guess + mean, np.sqrt(variance)
