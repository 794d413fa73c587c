"""Stain normalisation (Macenko, Reinhard) and augmentation (HED), in JAX: pure functions on pixels, for `jit` and `vmap`.

Macenko et al., ISBI 2009: in optical density OD = -ln((I + 1) / I0) pixels are mixtures of two stain vectors, found as the extreme
angles in the plane of the two largest principal components; a picture is normalised by exchanging them for a target's. Reinhard et
al. 2001: the mean and deviation of each CIELAB channel are exchanged. HED augmentation (Tellez et al. 2018): the concentrations of
haematoxylin, eosin and DAB in the fixed basis of Ruifrok and Johnston are scaled and shifted at random.

Accuracy in float32: stain vectors, concentrations and their percentiles within 1e-4 of a float64 reference, relative to the largest;
pictures within one grey level. On real tiles, with the same mask and the residual as a third stain, the result is histolab's.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

LIGHT = 240.0  # I0, the light that glass lets through
FEWEST_PIXELS = 16  # of tissue that stains are estimated from

# Columns haematoxylin and eosin, and the 99th percentiles of their concentrations, of Macenko's own target.
_REFERENCE = (((0.5626, 0.2159), (0.7201, 0.8012), (0.4062, 0.5581)), (1.9705, 1.0308))
# Rows haematoxylin, eosin, DAB: Ruifrok and Johnston 2001.
_HED = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
# Linear sRGB to CIE XYZ, divided by the white point D65.
_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.95047, 1.0, 1.08883)


class Stains(NamedTuple):
    """vectors: [3, K], columns of unit length: haematoxylin, eosin, and with K = 3 what is left, orthogonal to both.
    strongest: [K], the 99th percentiles of their concentrations. found: bool, false where there was too little tissue.
    """

    vectors: jax.Array
    strongest: jax.Array
    found: jax.Array


def reference_stains() -> Stains:
    """The target that is used where the user names none."""
    vectors, strongest = _REFERENCE
    return Stains(jnp.array(vectors), jnp.array(strongest), jnp.array(True))


@jax.jit
def optical_density(pixels: ArrayLike, light: float = LIGHT) -> jax.Array:
    """-ln((I + 1) / I0) of pixels [..., 3] from 0 to 255."""
    return -jnp.log((jnp.asarray(pixels, jnp.float32) + 1) / light)


@functools.partial(jax.jit, static_argnames="residual")
def fit_macenko(
    pixels: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    light: float = LIGHT,
    least_density: float = 0.15,
    percentile: float = 1.0,
    residual: bool = False,
) -> Stains:
    """The stains of pixels [..., 3] (a tile, or pixels pooled from a slide).

    mask: [...] bool, the pixels that the vectors are estimated from; all count for the concentrations. least_density: pixels with
    less in any channel are left out as background. percentile: of the extreme angles. residual: add the third, orthogonal vector.
    """
    density = optical_density(pixels, light).reshape(-1, 3)  # [n, 3]
    chosen = (density >= least_density).all(axis=1)
    if mask is not None:
        chosen &= jnp.asarray(mask, bool).reshape(-1)
    count = chosen.sum()
    weights = chosen / jnp.maximum(count, 1)
    centred = density - weights @ density
    with jax.default_matmul_precision("highest"):
        covariance = (centred * weights[:, None]).T @ centred
        # The largest component last; its sign so that densities project on its positive side.
        plane = jnp.linalg.eigh(covariance)[1][:, 1:]
        plane = plane * jnp.where(plane.sum(axis=0) < 0, -1.0, 1.0)
        second, largest = (density @ plane).T
    angles = jnp.arctan2(largest, second)
    low, high = (_masked_percentile(angles, chosen, q) for q in (percentile, 100 - percentile))
    extremes = plane @ jnp.stack([jnp.cos(jnp.stack([low, high])), jnp.sin(jnp.stack([low, high]))])  # [3, 2]
    vectors = jnp.where(extremes[0, 0] >= extremes[0, 1], extremes, extremes[:, ::-1])
    if residual:
        third = jnp.cross(vectors[:, 0], vectors[:, 1])
        vectors = jnp.concatenate([vectors, third[:, None] / jnp.linalg.norm(third)], axis=1)
    strongest = jnp.percentile(concentrations(density, vectors), 99.0, axis=0)
    return Stains(vectors, strongest, count >= FEWEST_PIXELS)


@jax.jit
def concentrations(density: jax.Array, vectors: jax.Array) -> jax.Array:
    """Least squares: the mixture [..., K] of the stain vectors [3, K] nearest to optical densities [..., 3]."""
    with jax.default_matmul_precision("highest"):
        return density @ jnp.linalg.solve(vectors.T @ vectors, vectors.T).T


@jax.jit
def normalize_macenko(picture: ArrayLike, own: Stains, target: Stains, *, light: float = LIGHT) -> jax.Array:
    """A picture [..., 3] uint8 in the target's stains. own: its stains (or its slide's); without any it stays as it is."""
    pixels = jnp.asarray(picture, jnp.uint8)
    scaled = concentrations(optical_density(pixels, light), own.vectors) * (target.strongest / own.strongest)
    return jnp.where(own.found, _as_picture(scaled, target.vectors, light), pixels)


@jax.jit
def separate_stains(picture: ArrayLike, own: Stains, target: Stains, *, light: float = LIGHT) -> list[jax.Array]:
    """A picture [..., 3] uint8 of each stain alone, in the target's colours."""
    scaled = concentrations(optical_density(picture, light), own.vectors) * (target.strongest / own.strongest)
    return [
        _as_picture(scaled[..., k : k + 1], target.vectors[:, k : k + 1], light) for k in range(own.vectors.shape[1])
    ]


def _as_picture(mixture: jax.Array, vectors: jax.Array, light: float) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return jnp.clip(light * jnp.exp(-(mixture @ vectors.T)), 0, 255).astype(jnp.uint8)


def _masked_percentile(values: jax.Array, mask: jax.Array, q: float) -> jax.Array:
    """The q-th percentile of the values [n] where mask is true, by linear interpolation."""
    ordered = jnp.sort(jnp.where(mask, values, jnp.inf))
    place = q / 100 * jnp.maximum(mask.sum() - 1, 0)
    low = jnp.floor(place).astype(jnp.int32)
    high = jnp.minimum(low + 1, jnp.maximum(mask.sum() - 1, 0))
    return ordered[low] + (place - low) * jnp.where(high > low, ordered[high] - ordered[low], 0.0)


class Colours(NamedTuple):
    """Mean and deviation of the channels of CIELAB, each [3]."""

    mean: jax.Array
    deviation: jax.Array


@jax.jit
def fit_reinhard(pixels: ArrayLike, mask: ArrayLike | None = None) -> Colours:
    """The colours of pixels [..., 3] uint8. mask: [...] bool, those that count; None: all."""
    lab = rgb_to_lab(pixels).reshape(-1, 3)
    weights = jnp.ones(len(lab)) if mask is None else jnp.asarray(mask, jnp.float32).reshape(-1)
    weights = (weights / jnp.maximum(weights.sum(), 1))[:, None]
    mean = (lab * weights).sum(axis=0)
    return Colours(mean, jnp.sqrt((jnp.square(lab - mean) * weights).sum(axis=0)))


@jax.jit
def normalize_reinhard(picture: ArrayLike, own: Colours, target: Colours, mask: ArrayLike | None = None) -> jax.Array:
    """A picture [..., 3] uint8 with the target's colours. mask: [...] bool, the pixels to change (glass would be coloured); None: all."""
    lab = rgb_to_lab(picture)
    changed = lab_to_rgb((lab - own.mean) * (target.deviation / jnp.maximum(own.deviation, 1e-6)) + target.mean)
    return changed if mask is None else jnp.where(jnp.asarray(mask, bool)[..., None], changed, jnp.asarray(picture))


@jax.jit
def rgb_to_lab(pixels: ArrayLike) -> jax.Array:
    """sRGB [..., 3] from 0 to 255 -> CIELAB (D65): lightness from 0 to 100, and two colour axes."""
    value = jnp.asarray(pixels, jnp.float32) / 255
    linear = jnp.where(value > 0.04045, ((value + 0.055) / 1.055) ** 2.4, value / 12.92)
    with jax.default_matmul_precision("highest"):
        xyz = linear @ (jnp.array(_XYZ).T / jnp.array(_WHITE))
    f = jnp.where(xyz > 0.008856, jnp.cbrt(jnp.maximum(xyz, 1e-9)), 7.787 * xyz + 16 / 116)
    x, y, z = jnp.moveaxis(f, -1, 0)
    return jnp.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


@jax.jit
def lab_to_rgb(lab: jax.Array) -> jax.Array:
    """CIELAB [..., 3] -> sRGB uint8; colours that cannot be shown are cut off."""
    lightness, a, b = jnp.moveaxis(lab, -1, 0)
    y = (lightness + 16) / 116
    f = jnp.stack([y + a / 500, y, jnp.maximum(y - b / 200, 0)], axis=-1)
    xyz = jnp.where(f > 0.2068966, f**3, (f - 16 / 116) / 7.787) * jnp.array(_WHITE)
    with jax.default_matmul_precision("highest"):
        linear = xyz @ jnp.linalg.inv(jnp.array(_XYZ)).T
    value = jnp.where(linear > 0.0031308, 1.055 * jnp.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055, 12.92 * linear)
    return jnp.round(jnp.clip(value, 0, 1) * 255).astype(jnp.uint8)


@jax.jit
def augment_hed(key: jax.Array, picture: ArrayLike, strength: float = 0.05) -> jax.Array:
    """A picture [..., 3] uint8 with other stain concentrations: each scaled by 1 +- strength and shifted by +- strength.

    Draws are uniform, one pair per stain and picture.
    """
    scale, shift = jax.random.uniform(key, (2, 3), minval=-strength, maxval=strength)
    basis = jnp.array(_HED)
    basis = basis / jnp.linalg.norm(basis, axis=1, keepdims=True)
    density = -jnp.log(jnp.maximum(jnp.asarray(picture, jnp.float32), 1) / 255)
    with jax.default_matmul_precision("highest"):
        mixed = density @ jnp.linalg.inv(basis) * (1 + scale) + shift
        return jnp.round(jnp.clip(255 * jnp.exp(-(mixed @ basis)), 0, 255)).astype(jnp.uint8)
