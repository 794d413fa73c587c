"""The feature report: what it counts, and that it warns of features that no healthy encoder gives."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mil_jax.data.features.report import FeatureReport, widened
from mil_jax.data.shards.writer import write_shards
from mil_jax.interop.slide_bag import SlideBag


def healthy(seed: int, n: int = 300, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def report_of(*slides: np.ndarray) -> FeatureReport:
    report = FeatureReport()
    for number, features in enumerate(slides):
        report.add(f"s{number}", features)
    return report


def test_healthy_features_give_no_warning():
    assert report_of(*(healthy(seed) for seed in range(5))).warnings() == []


def test_statistics_are_those_of_all_rows():
    slides = [healthy(seed, n) for seed, n in ((0, 700), (1, 20))]
    rows = np.concatenate(slides).astype(np.float64)
    summary = report_of(*slides).summary()
    assert summary["num_instances"] == 720
    assert summary["min"] == rows.min()
    assert summary["max"] == rows.max()
    assert summary["norm_root_mean_square"] == pytest.approx(np.sqrt((rows**2).sum(1).mean()), rel=1e-6)
    spread = np.sqrt(((rows - rows.mean(0)) ** 2).sum() / (rows**2).sum())
    assert summary["spread"] == pytest.approx(spread, rel=1e-5)
    assert summary["slides"][1]["norm_mean"] == pytest.approx(np.linalg.norm(slides[1], axis=1).mean(), rel=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int16"])
@pytest.mark.parametrize("width", [3, 4, 32])
def test_duplicate_and_near_zero_rows_are_counted(dtype, width):
    features = (healthy(0, 100, width) * 100).astype(dtype)
    features[7] = features[90] = features[3]
    features[50] = 0
    slide = report_of(features).summary()["slides"][0]
    assert slide["duplicate_rows"] == 2
    assert slide["near_zero_rows"] == 1


def test_every_finite_half_is_widened_exactly():
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    assert widened(halves).tobytes() == halves.astype(np.float32).tobytes()


def test_constant_columns_are_listed():
    features = healthy(0)
    features[:, [4, 9]] = 1.5
    summary = report_of(features).summary()
    assert summary["constant_columns"] == [4, 9]
    assert any("2 of 32 columns are constant" in warning for warning in summary["warnings"])


def test_rows_that_hardly_differ_are_warned_of():
    nearly_equal = 5 + 0.01 * healthy(0)
    assert any("random or wrong weights" in warning for warning in report_of(nearly_equal).warnings())


def test_two_slides_with_the_same_features_are_named():
    assert any("s0 = s2" in warning for warning in report_of(healthy(0), healthy(1), healthy(0)).warnings())


def test_a_slide_with_other_norms_is_named():
    slides = [healthy(seed) for seed in range(4)]
    assert any("s4" in warning for warning in report_of(*slides, healthy(9) * 20).warnings())


def test_near_zero_and_duplicate_rows_are_warned_of():
    features = healthy(0)
    features[:30] = 0
    warnings = report_of(features).warnings()
    assert any("30 of 300 rows are nearly zero" in warning for warning in warnings)
    assert any("29 of 300 rows are duplicates" in warning for warning in warnings)


def test_constant_pixels_of_images_are_no_warning():
    images = np.zeros((20, 8, 8, 1), np.uint8)
    images[:, 3, 3] = np.arange(20)[:, None]
    assert report_of(images).warnings() == []


def test_the_report_lies_beside_the_shards(tmp_path):
    report = write_shards([SlideBag("a", healthy(0))], tmp_path / "shards")
    stored = json.loads((tmp_path / "shards" / "feature_report.json").read_text())
    assert stored == json.loads(json.dumps(report.features))
    assert stored["slides"][0]["slide_id"] == "a"


def test_real_features_give_no_warning(shared):
    features = np.load(shared / "data" / "uni_crc_embeddings" / "uni_crc.npz")["x_train"]
    assert report_of(features).warnings() == []
