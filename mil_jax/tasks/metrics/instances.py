"""How well instances are found: the AUC over instances, and the FROC of lesions (Ehteshami Bejnordi et al. 2017, CAMELYON16).

Lesions are the connected groups of labelled instances, neighbours on the grid of tiles, the diagonal ones included. Detections are the
instances whose score no neighbour exceeds. A detection inside a lesion finds it, every other one is a false positive. At each threshold
on the score: sensitivity = lesions found / lesions of all slides; false positives per slide, over all slides, those without lesions, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from mil_jax.tasks.metrics.classification import binary_auc

RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false positives per slide


class LabelledSlide(NamedTuple):
    """scores float [n], labels bool [n], coords [n, 2], None where the features came without."""

    scores: np.ndarray
    labels: np.ndarray
    coords: np.ndarray | None


class Froc(NamedTuple):
    """sensitivity: at each of `RATES`. lesions: of all slides."""

    sensitivity: tuple[float, ...]
    lesions: int

    @property
    def score(self) -> float:
        """The mean sensitivity, CAMELYON16's number."""
        return float(np.mean(self.sensitivity))


def instance_auc(slides: Sequence[LabelledSlide]) -> tuple[float, float]:
    """(AUC of the instances of all slides that have positive ones, together; the mean of these slides' own AUCs); NaN without any."""
    positive = [slide for slide in slides if slide.labels.any()]
    if not positive:
        return np.nan, np.nan
    together = binary_auc(
        np.concatenate([slide.scores for slide in positive]), np.concatenate([slide.labels for slide in positive])
    )
    own = [binary_auc(slide.scores, slide.labels) for slide in positive if not slide.labels.all()]
    return together, float(np.mean(own)) if own else np.nan


def froc(slides: Sequence[LabelledSlide]) -> Froc | None:
    """None where a slide has no coordinates, or no instance is positive."""
    found: list[np.ndarray] = []
    false: list[np.ndarray] = []
    for slide in slides:
        if slide.coords is None:
            return None
        pairs = neighbours(slide.coords)
        detected = local_maxima(slide.scores, pairs)
        false.append(slide.scores[detected & ~slide.labels])
        lesion = lesions(slide.labels, pairs)
        best = np.full(int(lesion.max(initial=-1)) + 1, -np.inf)
        hits = detected & slide.labels
        np.maximum.at(best, lesion[hits], slide.scores[hits])
        found.append(best)
    best, wrong = np.concatenate(found), np.sort(np.concatenate(false))[::-1]
    if not len(best):
        return None
    sensitivity = []
    for rate in RATES:
        allowed = int(rate * len(slides))
        # With the next false positive's score as threshold there would be more than allowed.
        least = wrong[allowed] if allowed < len(wrong) else -np.inf
        sensitivity.append(float(np.mean(best > least)))
    return Froc(tuple(sensitivity), len(best))


def neighbours(coords: np.ndarray) -> np.ndarray:
    """int [pairs, 2]: tiles that touch, the diagonal ones included; the side of a tile is the usual distance to the nearest one."""
    if len(coords) < 2:
        return np.zeros((0, 2), np.int64)
    tree = cKDTree(coords)
    side = np.median(tree.query(coords, k=2, p=np.inf)[0][:, 1])
    return tree.query_pairs(1.01 * side, p=np.inf, output_type="ndarray")


def local_maxima(scores: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """bool [n]: whom no neighbour exceeds; of equal neighbours the first."""
    order = np.lexsort((-np.arange(len(scores)), scores))
    rank = np.empty(len(scores), np.int64)
    rank[order] = np.arange(len(scores))
    largest = np.ones(len(scores), bool)
    if len(pairs):
        largest[np.where(rank[pairs[:, 0]] < rank[pairs[:, 1]], pairs[:, 0], pairs[:, 1])] = False
    return largest


def lesions(labels: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """int [n]: the lesion of each instance, -1 = none."""
    inside = pairs[labels[pairs].all(axis=1)] if len(pairs) else pairs
    graph = coo_array((np.ones(len(inside)), (inside[:, 0], inside[:, 1])), shape=(len(labels), len(labels)))
    groups = connected_components(graph, directed=False)[1]
    numbered = np.full(len(labels), -1)
    numbered[labels] = np.unique(groups[labels], return_inverse=True)[1]
    return numbered


def instance_result(slides: Sequence[LabelledSlide]) -> dict[str, Any]:
    """The numbers of slides that were scored in one way."""
    together, mean = instance_auc(slides)
    found = froc(slides)
    return {
        "slides": len(slides),
        "positive_slides": sum(bool(slide.labels.any()) for slide in slides),
        "instance_auc": together,
        "instance_auc_mean_of_slides": mean,
        "lesions": found and found.lesions,
        "froc": found and dict(zip(map(str, RATES), found.sensitivity, strict=True)),
        "froc_score": found and found.score,
    }
