"""Instance AUC against scikit-learn, and the FROC against a count by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mil_jax.tasks.metrics.instances import RATES, LabelledSlide, froc, instance_auc, lesions, local_maxima, neighbours


def grid(rows: int, columns: int, step: int = 512) -> np.ndarray:
    return np.array([(x, y) for y in range(rows) for x in range(columns)]) * step


def test_the_auc_is_scikit_learns_over_instances_of_positive_slides():
    rng = np.random.default_rng(0)
    slides = [
        LabelledSlide(np.round(rng.random(40), 1), rng.random(40) < share, None) for share in (0.2, 0.0, 0.5, 0.3)
    ]
    together, mean = instance_auc(slides)
    positive = [slide for slide in slides if slide.labels.any()]
    labels, scores = (np.concatenate([slide[part] for slide in positive]) for part in (1, 0))
    assert together == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert mean == pytest.approx(np.mean([roc_auc_score(one.labels, one.scores) for one in positive]), abs=1e-12)
    assert np.isnan(instance_auc(slides[1:2])).all()


def test_lesions_are_connected_tiles_and_detections_the_largest_of_their_neighbourhood():
    coords = grid(3, 4)
    labels = np.array([1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 1], bool)
    pairs = neighbours(coords)
    assert len(neighbours(np.array([[0, 0], [10, 0], [1000, 0]]))) == 1
    assert lesions(labels, pairs).tolist() == [0, -1, -1, 1, -1, 0, -1, -1, -1, -1, -1, 2]
    scores = np.array([5, 1, 1, 4, 1, 3, 1, 1, 1, 1, 2, 2.5])
    assert np.flatnonzero(local_maxima(scores, pairs)).tolist() == [0, 3, 11]


def test_the_froc_counts_lesions_found_at_so_many_false_positives_a_slide():
    slides = [
        LabelledSlide(np.array([0.9]), np.array([True]), np.zeros((1, 2))),
        LabelledSlide(np.array([0.5]), np.array([True]), np.zeros((1, 2))),
        LabelledSlide(np.array([0.7]), np.array([False]), np.zeros((1, 2))),
        LabelledSlide(np.array([0.6]), np.array([False]), np.zeros((1, 2))),
    ]
    found = froc(slides)
    assert found is not None
    # One false positive in four slides (0.25) is 0.7, and the threshold then lies above 0.6; two let everything in.
    assert dict(zip(RATES, found.sensitivity)) == {0.25: 0.5, 0.5: 1.0, 1.0: 1.0, 2.0: 1.0, 4.0: 1.0, 8.0: 1.0}
    assert found.lesions == 2
    assert found.score == pytest.approx(5.5 / 6)


def test_without_coordinates_or_lesions_there_is_no_froc():
    assert froc([LabelledSlide(np.ones(2), np.array([True, False]), None)]) is None
    assert froc([LabelledSlide(np.ones(2), np.zeros(2, bool), grid(1, 2))]) is None
