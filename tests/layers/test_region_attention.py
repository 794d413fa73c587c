"""Region partition and region attention against plain numpy, written from the definition: convolution on the logits, loops over
regions and tokens.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax.layers import region_attention as ra
from mil_jax.layers.initializers import Affine

WIDTH, HEADS = 8, 2


def grid_of(n: int, grid: ra.Grid) -> tuple[int, int]:
    """(H, r) of a bag with n instances."""
    root = int(np.ceil(np.sqrt(n)))
    unit = grid.region_size or grid.region_num
    side = -(-root // unit) * unit
    region = grid.region_size or side // grid.region_num
    if side**2 - n > n / (grid.min_region_ratio + 1e-8) or n < grid.min_region_num:
        side = region = root + root % 2
    return side, region


def regions_of(n: int, grid: ra.Grid) -> list[list[int]]:
    """The places t of each region, in order; t >= n is a zero token."""
    side, r = grid_of(n, grid)
    return [
        [row * side + column for row in range(top, top + r) for column in range(left, left + r)]
        for top in range(0, side, r)
        for left in range(0, side, r)
    ]


@functools.partial(jax.jit, static_argnames="grid")
def run_regions(x, mask, qkv, proj, epeg, grid):
    return ra.region_attention(x, mask, Affine(*qkv), Affine(*proj), epeg, num_heads=HEADS, grid=grid)


@functools.partial(jax.jit, static_argnames="grid")
def run_between(x, mask, phi, qkv, proj, grid):
    layers = (Affine(*qkv), Affine(*proj))
    return ra.cross_region_attention(x, mask, lambda x: x @ phi, *layers, num_heads=HEADS, grid=grid)


@functools.partial(jax.jit, static_argnames="grid")
def places(mask, grid):
    """(region, slot) of each instance [N, 2], as what lies there comes back to it."""

    def numbers(regions):
        region, slot = jnp.indices(regions.exists.shape)
        return ra.from_regions(jnp.stack([region, slot], axis=-1).astype(jnp.float32), regions)

    return ra.by_regions(numbers, mask, grid)


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def inner_attention(x, qkv, proj, heads, epeg=None):
    """One region x [P, D]; epeg = (kernel [k, 1 or k, heads], bias [heads]), convolved with the P x P logits."""
    length, width = x.shape
    d = width // heads
    q, k, v = np.split(x @ qkv[0] + qkv[1], 3, axis=1)
    out = np.zeros_like(x)
    for head in range(heads):
        part = slice(head * d, head * d + d)
        logits = (q[:, part] / np.sqrt(d)) @ k[:, part].T
        if epeg is not None:
            kernel = epeg[0][..., head]
            high, wide = kernel.shape
            padded = np.pad(logits, ((high // 2, high // 2), (wide // 2, wide // 2)))
            logits = logits + epeg[1][head]
            for u in range(high):
                for w in range(wide):
                    logits = logits + kernel[u, w] * padded[u : u + length, w : w + length]
        out[:, part] = softmax(logits) @ v[:, part]
    return out @ proj[0] + proj[1]


def draw(seed: int, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(shape).astype(np.float32) * 0.5 for shape in shapes]


def layers(seed: int = 1) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    a, b, c, d = draw(seed, (WIDTH, 3 * WIDTH), (3 * WIDTH,), (WIDTH, WIDTH), (WIDTH,))
    return (a, b), (c, d)


def bag(n: int, bucket: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(real rows [n, D], padded with NaN [bucket, D], mask)."""
    (x,) = draw(0, (n, WIDTH))
    padded = np.full((bucket, WIDTH), np.nan, np.float32)
    padded[:n] = x
    return x, padded, np.arange(bucket) < n


GRIDS = {
    "eight": ra.Grid(),
    "four": ra.Grid(region_num=4),
    "one": ra.Grid(region_num=1),
    "size": ra.Grid(region_size=3),
    "few": ra.Grid(region_num=3, min_region_num=20),
    "ratio": ra.Grid(region_num=4, min_region_ratio=1.5),
}


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize(("n", "bucket"), [(1, 40), (15, 40), (16, 16), (17, 40), (26, 26), (40, 40)])
def test_regions_hold_the_places_of_the_square(grid, n, bucket):
    expected = [[t if t < n else -1 for t in region] for region in regions_of(n, grid)]

    found = np.asarray(places(jnp.arange(bucket) < n, grid))
    for number, region in enumerate(expected):
        for slot, token in enumerate(region):
            if token >= 0:
                np.testing.assert_array_equal(found[token], [number, slot])
    np.testing.assert_array_equal(found[n:], 0)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("n", [1, 17, 30])
def test_region_attention_is_attention_in_every_region_with_its_zero_tokens(grid, n):
    x, padded, mask = bag(n, 33)
    qkv, proj = layers()
    kernel, bias = draw(2, (5, 1, HEADS), (HEADS,))
    whole = np.concatenate([x, np.zeros((10_000, WIDTH), np.float32)])
    expected = np.zeros_like(whole)
    for region in regions_of(n, grid):
        expected[region] = inner_attention(whole[region], qkv, proj, HEADS, (kernel, bias))
    epeg = Affine(jnp.asarray(kernel)[:, :, None], jnp.asarray(bias))
    found = run_regions(padded, mask, qkv, proj, epeg, grid)
    np.testing.assert_allclose(found[:n], expected[:n], atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (7, 1), (21, 1), (3, 3), (9, 9)], ids=str)
def test_epeg_is_a_convolution_of_the_logits(shape):
    (x,) = draw(3, (2, 6, WIDTH))
    qkv, proj = layers()
    kernel, bias = draw(4, (*shape, HEADS), (HEADS,))
    expected = [inner_attention(region, qkv, proj, HEADS, (kernel, bias)) for region in x]
    epeg = Affine(jnp.asarray(kernel)[:, :, None], jnp.asarray(bias))
    exists = jnp.ones((2, 6), bool)
    found = Affine(*proj)(ra.multi_head_attention(Affine(*qkv)(x), exists, HEADS, epeg))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("n", [1, 10, 16, 17, 30])
@pytest.mark.parametrize("representatives", [1, 3])
def test_cross_region_attention_deals_out_what_the_representatives_gather(n, representatives):
    grid = ra.Grid(region_num=3)
    x, padded, mask = bag(n, 33)
    qkv, proj = layers()
    (phi,) = draw(5, (WIDTH, representatives))
    whole = np.concatenate([x, np.zeros((100, WIDTH), np.float32)])
    places = regions_of(n, grid)
    logits = [whole[region] @ phi for region in places]  # [P, k] each
    gathered = np.stack(
        [
            inner_attention(
                np.stack(
                    [softmax(values, 0)[:, j] @ whole[region] for region, values in zip(places, logits, strict=True)]
                ),
                qkv,
                proj,
                HEADS,
            )
            for j in range(representatives)
        ]
    )  # [k, G, D]
    expected = np.zeros_like(whole)
    for number, (region, values) in enumerate(zip(places, logits, strict=True)):
        position = (values - values.min(0)) / (values.max(0) - values.min(0) + 1e-8)
        expected[region] = (softmax(values, 1) * position) @ gathered[:, number]
    found = run_between(padded, mask, phi, qkv, proj, grid)
    np.testing.assert_allclose(found[:n], expected[:n], atol=1e-5)


def test_a_region_of_equal_instances_has_a_finite_gradient():
    x = jnp.tile(jnp.asarray(draw(0, (1, WIDTH))[0]), (36, 1))
    qkv, proj = layers()
    (phi,) = draw(5, (WIDTH, 2))

    def total(x, phi):
        mask = jnp.ones(36, bool)
        grid = ra.Grid(region_num=3)
        return ra.cross_region_attention(
            x, mask, lambda x: x @ phi, Affine(*qkv), Affine(*proj), num_heads=HEADS, grid=grid
        ).sum()

    for gradient in jax.jit(jax.grad(total, argnums=(0, 1)))(x, phi):
        np.testing.assert_array_equal(gradient, 0.0)


def test_groups_computed_in_turn_give_what_all_at_once_give(monkeypatch):
    _, padded, mask = bag(30, 33)
    qkv, proj = layers()
    epeg = Affine(jnp.asarray(draw(2, (5, 1, 1, HEADS))[0]), None)

    def total(x):
        x = jnp.where(mask[:, None], x, 0.0)
        return jnp.sum(
            ra.region_attention(x, mask, Affine(*qkv), Affine(*proj), epeg, num_heads=HEADS, grid=ra.Grid(4)) ** 2
        )

    value, gradient = jax.jit(jax.value_and_grad(total))(padded)
    monkeypatch.setattr(ra, "GROUP_ELEMENTS", 16)
    grouped_value, grouped_gradient = jax.jit(jax.value_and_grad(lambda x: total(x)))(padded)
    np.testing.assert_allclose(grouped_value, value, rtol=1e-5)
    np.testing.assert_allclose(grouped_gradient, gradient, rtol=1e-5, atol=1e-4)


def test_groups_bound_the_memory_of_the_logits(monkeypatch):
    """Both passes over 8 pairs of region and head, 4 MiB of logits each, need less than all of them at once."""
    bucket = 4096
    qkv, proj = layers()
    mask = jnp.ones(bucket, bool)

    def run(x):
        return ra.region_attention(x, mask, Affine(*qkv), Affine(*proj), None, num_heads=HEADS, grid=ra.Grid(2)).sum()

    monkeypatch.setattr(ra, "GROUP_ELEMENTS", 1024**2)
    compiled = jax.jit(jax.grad(run)).lower(jax.ShapeDtypeStruct((bucket, WIDTH), jnp.float32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * 4 * 2**20


def test_regions_are_ranked_and_weighted_to_a_mean_of_one():
    n, grid = 30, ra.Grid(region_num=3)
    x, padded, mask = bag(n, 33)
    (score,) = draw(6, (WIDTH,))
    places = [[t for t in region if t < n] for region in regions_of(n, grid)]
    scores = np.array([x[region].mean(0) @ score if region else -np.inf for region in places])
    best = np.argsort(-scores)[:4]
    expected = np.zeros(n)
    for number, weight in zip(best, 4 * softmax(scores[best]), strict=True):
        expected[places[number]] = weight
    found = ra.region_weights(jnp.asarray(padded), jnp.asarray(mask), lambda x: x @ score, grid=grid, num_best=4)
    np.testing.assert_allclose(found[:n], expected, rtol=1e-5)
    np.testing.assert_array_equal(found[n:], 0.0)
