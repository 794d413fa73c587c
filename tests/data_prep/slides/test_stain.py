"""Stain normalisation: against another library's output on real tiles, and what must hold on any."""

from __future__ import annotations

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

from data_prep.demo_slides import draw_slide
from data_prep.slides import stain

TARGET_VECTORS = np.array([[0.520699, 0.2073588], [0.7606757, 0.8483905], [0.3876146, 0.4870686]])
TARGET_MEAN, TARGET_DEVIATION = (57.772, 30.667, -12.323), (15.372, 10.192, 5.334)


@pytest.fixture(scope="module")
def tile() -> np.ndarray:
    drawn = draw_slide(2, 1024, 1024, lesion=True)
    row, column = (8 * place for place in np.argwhere(drawn.lesion)[len(np.argwhere(drawn.lesion)) // 2])
    return drawn.picture[max(row - 64, 0) :][:128, max(column - 64, 0) :][:, :128]


def real(shared, name: str) -> np.ndarray:
    return np.asarray(Image.open(shared / "data" / "stain" / f"{name}.png"))[..., :3]


def degrees(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    cosines = (one * other).sum(axis=0) / np.linalg.norm(one, axis=0) / np.linalg.norm(other, axis=0)
    return np.degrees(np.arccos(np.clip(cosines, -1, 1)))


def tissue(picture: np.ndarray) -> np.ndarray:
    """About the other library's mask: darker than Otsu's threshold, dilated, holes filled."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    dark = cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY_INV + cv2.THRESH_OTSU)[1]
    y, x = np.mgrid[-2:3, -2:3]
    wide = cv2.dilate(dark, (x * x + y * y <= 4).astype(np.uint8))
    contours, _ = cv2.findContours(wide, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(wide.copy(), contours, -1, 1, cv2.FILLED) > 0


def test_macenko_on_real_tiles_is_what_the_other_library_gives(shared):
    source, target = real(shared, "source_a"), real(shared, "target")
    wanted = stain.fit_macenko(target, tissue(target), residual=True)
    assert degrees(np.asarray(wanted.vectors)[:, :2], TARGET_VECTORS).max() < 0.1
    own = stain.fit_macenko(source, tissue(source), residual=True)
    made = np.asarray(stain.normalize_macenko(source, own, wanted)).astype(int)
    assert np.abs(made - real(shared, "expected_macenko_a")).mean() < 0.5


def test_without_a_mask_and_with_two_stains_the_difference_is_small(shared):
    source, target = real(shared, "source_a"), real(shared, "target")
    wanted = stain.fit_macenko(target)
    assert degrees(np.asarray(wanted.vectors), TARGET_VECTORS).max() < 1
    made = np.asarray(stain.normalize_macenko(source, stain.fit_macenko(source), wanted)).astype(int)
    assert np.abs(made - real(shared, "expected_macenko_a")).mean() < 5


def test_reinhard_on_real_tiles_is_what_the_other_library_gives(shared):
    source, target = real(shared, "source_a"), real(shared, "target")
    wanted = stain.fit_reinhard(target, tissue(target))
    np.testing.assert_allclose(wanted.mean, TARGET_MEAN, atol=0.2)
    np.testing.assert_allclose(wanted.deviation, TARGET_DEVIATION, atol=0.2)
    own = stain.fit_reinhard(source, tissue(source))
    made = np.asarray(stain.normalize_reinhard(source, own, wanted, tissue(source))).astype(int)
    assert np.abs(made - real(shared, "expected_reinhard_a")).mean() < 5


def test_a_tile_in_its_own_stains_stays_as_it_is(tile):
    own = stain.fit_macenko(tile, residual=True)
    same = np.asarray(stain.normalize_macenko(tile, own, own)).astype(int)
    assert np.abs(same - np.minimum(tile, stain.LIGHT)).max() <= 2
    colours = stain.fit_reinhard(tile)
    assert np.abs(np.asarray(stain.normalize_reinhard(tile, colours, colours)).astype(int) - tile).max() <= 1


def test_a_tile_without_tissue_stays_as_it_is():
    glass = np.full((32, 32, 3), 243, np.uint8)
    own = stain.fit_macenko(glass)
    assert not own.found
    assert (np.asarray(stain.normalize_macenko(glass, own, stain.reference_stains())) == glass).all()


def test_one_slides_stains_normalise_its_tiles_in_one_program(tile):
    own, target = stain.fit_macenko(tile), stain.reference_stains()
    tiles = np.stack([tile[:64, :64], tile[64:, 64:]])
    together = jax.jit(jax.vmap(stain.normalize_macenko, (0, None, None)))(tiles, own, target)
    alone = np.stack([stain.normalize_macenko(one, own, target) for one in tiles])
    assert np.abs(np.asarray(together).astype(int) - alone.astype(int)).max() <= 1


def test_macenko_undoes_another_staining(tile):
    """The same tissue, stained weaker and in other colours, looks alike after normalisation to one target."""
    density = np.asarray(stain.optical_density(tile))
    own = stain.fit_macenko(tile, residual=True)
    mixture = np.asarray(stain.concentrations(density, own.vectors))[..., :2]
    other_vectors = np.array([[0.65, 0.15], [0.68, 0.85], [0.33, 0.50]])
    other_vectors /= np.linalg.norm(other_vectors, axis=0)
    other = np.clip(stain.LIGHT * np.exp(-(mixture * (0.7, 1.2)) @ other_vectors.T), 0, 255).astype(np.uint8)
    before = np.abs(other.astype(int) - tile).mean()
    target = stain.reference_stains()
    both = [
        np.asarray(stain.normalize_macenko(one, stain.fit_macenko(one), target)).astype(int) for one in (tile, other)
    ]
    assert np.abs(both[0] - both[1]).mean() < 0.3 * before


def test_augmentation_depends_on_its_key_only_and_grows_with_its_strength(tile):
    keys = jax.random.split(jax.random.key(0), 2)
    one, again, other = (np.asarray(stain.augment_hed(key, tile)).astype(int) for key in (keys[0], keys[0], keys[1]))
    assert (one == again).all()
    assert (one != other).any()
    none, weak, strong = (
        np.abs(np.asarray(stain.augment_hed(keys[0], tile, strength)).astype(int) - tile).mean()
        for strength in (0.0, 0.02, 0.1)
    )
    assert none < 0.5 < weak < strong


def test_lab_colours_are_those_of_the_standard():
    """Lindbloom's values of pure colours: white, black, red, green, blue."""
    pixels = np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    known = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86]]
    lab = stain.rgb_to_lab(pixels)
    np.testing.assert_allclose(lab, known, atol=0.1)
    assert (np.asarray(stain.lab_to_rgb(lab)) == pixels).all()
