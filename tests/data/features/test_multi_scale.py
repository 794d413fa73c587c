"""Two magnifications are joined by where their tiles lie."""

from __future__ import annotations

import numpy as np
import pytest

from mil_jax.data.features.multi_scale import join_scales
from mil_jax.errors import DataError

# Tiles of 4 pixels inside tiles of 16; the grid starts at (8, 8).
LOW_COORDS = np.array([[8, 8], [24, 8], [8, 24]], np.int32)
HIGH_COORDS = np.array([[8, 24], [20, 20], [24, 8], [8, 8]], np.int32)
OFF_GRID = LOW_COORDS + np.array([[0, 0], [1, 0], [0, 0]], np.int32)
LOW = np.array([[1.0], [2.0], [3.0]], np.float32)
HIGH = np.array([[10.0], [20.0], [30.0], [40.0]], np.float32)


def test_cat_puts_the_high_magnification_first():
    joined = join_scales(HIGH, HIGH_COORDS, LOW, LOW_COORDS, 16)
    np.testing.assert_array_equal(joined, [[10, 3], [20, 1], [30, 2], [40, 1]])


def test_fusion_adds_a_quarter_of_the_low_magnification():
    joined = join_scales(HIGH, HIGH_COORDS, LOW, LOW_COORDS, 16, "fusion")
    np.testing.assert_array_equal(joined[:, 0], [10.75, 20.25, 30.5, 40.25])


@pytest.mark.parametrize(
    ("high_coords", "low_coords", "low", "mode", "complaint"),
    [
        (HIGH_COORDS + 100, LOW_COORDS, LOW, "cat", r"4 tiles lie in no .* first at \(108, 124\)"),
        (HIGH_COORDS, OFF_GRID, LOW, "cat", r"\(25, 8\) is off the grid of 16"),
        (HIGH_COORDS, LOW_COORDS, np.ones((3, 2)), "fusion", "1 and 2 wide"),
        (HIGH_COORDS, LOW_COORDS, LOW, "sum", "'cat' or 'fusion'"),
    ],
)
def test_scales_that_do_not_belong_together_are_refused(high_coords, low_coords, low, mode, complaint):
    with pytest.raises(DataError, match=complaint):
        join_scales(HIGH, high_coords, low, low_coords, 16, mode)
