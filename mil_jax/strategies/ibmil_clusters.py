"""How IBMIL makes a dictionary of confounders of bag embeddings: k-means of their directions (Lin et al. 2023, section 3.2).

An entry is the mean of the embeddings of a cluster, as they are: only for the clustering each is brought to length 1. As in the reference
20 rounds of Lloyd's algorithm; its starts are drawn by k-means++ here, and the best of ten counts.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

ROUNDS, STARTS, SEED = 20, 10, 66


class Clusters(NamedTuple):
    """entries: float32 [k, E]. centres: [k, E], of the embeddings at length 1. cluster: int32 [n], where each embedding belongs."""

    entries: np.ndarray
    centres: np.ndarray
    cluster: np.ndarray


def clusters(embeddings: np.ndarray, number: int, start: Sequence[int] | None = None) -> Clusters:
    """Of embeddings [n, E], n at least `number`. start: rows to start from. If one is not finite, nothing is: all NaN, cluster -1."""
    x = np.asarray(embeddings, np.float64)
    if not np.isfinite(x).all():
        nothing = np.full((number, x.shape[1]), np.nan, np.float32)
        return Clusters(nothing, nothing, np.full(len(x), -1, np.int32))
    unit = x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-10)
    means = KMeans(
        number,
        init="k-means++" if start is None else unit[np.asarray(start)],
        n_init=STARTS if start is None else 1,
        max_iter=ROUNDS,
        tol=0.0,
        random_state=SEED,
        algorithm="lloyd",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different embeddings than clusters
        means.fit(unit)
    centres, cluster = means.cluster_centers_, means.labels_.astype(np.int32)
    # A cluster without members is the twin of another: its entry is the embedding nearest to it.
    members = [np.flatnonzero(cluster == c) for c in range(number)]
    entries = [
        x[rows].mean(axis=0) if len(rows) else x[np.argmin(np.linalg.norm(unit - centre, axis=1))]
        for rows, centre in zip(members, centres)
    ]
    return Clusters(np.array(entries, np.float32), centres, cluster)
