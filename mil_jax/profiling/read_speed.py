"""How fast the features of a cohort are read from its shards, as training reads them: checksum verified, then into place."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from mil_jax.data.shards.reader import Shards

SAMPLE_BYTES = 512 << 20


def reading_rate(shards: Shards, slides: Sequence[np.ndarray]) -> float:
    """Bytes per second over some of the slides, `SAMPLE_BYTES` at most, spread over the cohort.

    slides: per bag the numbers of its slides. What the system has in its page cache is read from there, so that a second reading
    shows a higher rate than a first. Raises ShardError for a torn or altered record.
    """
    numbers = np.concatenate(slides)
    num_bytes = np.array([shards.num_bytes(int(number)) for number in numbers])
    enough = max(1, int(len(numbers) * min(1.0, SAMPLE_BYTES / num_bytes.sum())))
    chosen = numbers[np.linspace(0, len(numbers) - 1, enough).astype(int)]
    buffer = np.empty((int(shards.num_instances[chosen].max()), *shards.feature_shape), shards.dtype)
    buffer.fill(0)  # its pages are there before the clock runs
    begun = time.perf_counter()
    for number in chosen.tolist():
        shards.verify(number)
        shards.read_features(number, buffer[: int(shards.num_instances[number])])
    return sum(shards.num_bytes(number) for number in chosen.tolist()) / (time.perf_counter() - begun)
