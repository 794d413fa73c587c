"""Attention inside and between square regions of a bag: R-MSA with EPEG, and CR-MSA (Tang et al., CVPR 2024, eq. 3 to 9).

The instances of a bag, in their order, fill a square of H x H places row by row; the places left over are zero
tokens, which take part in the attention (with bias as key and value) as in the reference. The square is cut into
regions. H and the regions' side r follow from the dynamic number of instances; static are the number of regions and
the r^2 slots of the largest region a bucket can need. Slots and regions that do not exist are masked out.

Cost: N^2 / 64 products per head with 8 x 8 regions, by the design of the method. At most `GROUP_ELEMENTS` logits are
alive at a time (but at least those of one head in one region): groups are computed in turn under `jax.checkpoint`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax.layers import backend, masked
from mil_jax.layers.initializers import Affine
from mil_jax.layers.ppeg import square_side
from mil_jax.types import Array

GROUP_ELEMENTS = 2**22
GROUP_ELEMENTS_OF_ACCELERATORS = 2**26
# A region whose logits differ by rounding only counts as constant: dividing by its range would amplify noise.
RELATIVE_RANGE = 1e-6


@dataclasses.dataclass(frozen=True)
class Grid:
    """How the square is cut: into region_num x region_num regions, or with region_size > 0 into regions of that side.

    The bag stays one region (in a square of even side) when it has fewer than min_region_num instances, or more than
    n / min_region_ratio zero tokens (0 = never).
    """

    region_num: int = 8
    region_size: int = 0
    min_region_num: int = 0
    min_region_ratio: float = 0.0

    def side(self, smallest: Any) -> Any:
        """H, from ceil(sqrt(n))."""
        unit = self.region_size or self.region_num
        return -(-smallest // unit) * unit

    def undivided(self, num_instances: np.ndarray) -> np.ndarray:
        """Whether bags of these numbers of instances stay one region, in float64 as the reference decides it."""
        zero_tokens = self.side(_root(num_instances)) ** 2 - num_instances
        return (zero_tokens > num_instances / (self.min_region_ratio + 1e-8)) | (num_instances < self.min_region_num)


class Regions(NamedTuple):
    """A bag's places in G regions of P slots.

    token [G, P]: number of the instance in a slot. real [G, P]: whether there is one. exists [G, P]: whether the slot
    belongs to a region at all; a slot that exists without an instance holds a zero token. slot [N]: the slot of each
    instance, counted over all regions. mask [N]: the bag's.
    """

    token: Array
    real: Array
    exists: Array
    slot: Array
    mask: Array


def by_regions(function: Callable[[Regions], Array], mask: Array, grid: Grid) -> Array:
    """`function` of the regions of a bag with `mask` [N]; its result must not depend in shape on G and P."""
    sizes = np.arange(1, len(mask) + 1)
    undivided = grid.undivided(sizes)
    n = jnp.maximum(jnp.sum(mask, dtype=jnp.int32), 1)
    smallest = square_side(n)

    def divided(_: None = None) -> Array:
        side = grid.side(smallest)
        longest = int(grid.side(_root(sizes[~undivided][-1:]))[0])
        if grid.region_size:
            return function(
                _regions(mask, side, grid.region_size, (longest // grid.region_size) ** 2, grid.region_size)
            )
        region = longest // grid.region_num
        return function(_regions(mask, side, side // grid.region_num, grid.region_num**2, region))

    def whole(_: None = None) -> Array:
        longest = int(_even(_root(sizes[undivided][-1:]))[0])
        side = _even(smallest)
        return function(_regions(mask, side, side, 1, longest))

    if not undivided.any():
        return divided()
    if undivided.all():
        return whole()
    return jax.lax.cond(jnp.asarray(undivided)[n - 1], whole, divided, None)


def _root(n: np.ndarray) -> np.ndarray:
    return np.ceil(np.sqrt(n)).astype(int)


def _even(side: Any) -> Any:
    return side + side % 2


def _regions(mask: Array, side: Array, region_side: Array | int, num_regions: int, longest: int) -> Regions:
    """side, region_side: dynamic; num_regions, longest (the largest region_side): static."""
    per_side = side // region_side
    region, slot = jnp.arange(num_regions)[:, None], jnp.arange(longest**2)[None]
    exists = (region < per_side**2) & (slot < region_side**2)
    row = (region // per_side) * region_side + slot // region_side
    column = (region % per_side) * region_side + slot % region_side
    token = row * side + column
    real = exists & (token < jnp.sum(mask))
    instance = jnp.arange(len(mask))
    row, column = instance // side, instance % side
    home = (row // region_side) * per_side + column // region_side
    place = home * longest**2 + (row % region_side) * region_side + column % region_side
    return Regions(jnp.where(real, token, 0), real, exists, jnp.where(mask, place, 0), mask)


def to_regions(x: Array, regions: Regions) -> Array:
    """Instances x [N, D] -> [G, P, D], zero where there is none."""
    moved = _move(x, regions.token.ravel(), regions.real.ravel(), regions.slot, regions.mask)
    return moved.reshape(*regions.token.shape, -1)


def from_regions(y: Array, regions: Regions) -> Array:
    """Slots y [G, P, D] -> [N, D], zero on padding. The transpose of `to_regions`."""
    flat = y.reshape(-1, y.shape[-1])
    return _move(flat, regions.slot, regions.mask, regions.token.ravel(), regions.real.ravel())


@jax.custom_vjp
def _move(x: Array, source: Array, valid: Array, back: Array, back_valid: Array) -> Array:
    """Rows `source` of x where `valid`, else zero. `back` is the inverse, so that the gradient is a gather, too."""
    return jnp.where(valid[:, None], x.at[source].get(mode="clip"), 0.0)


def _move_forward(x: Array, *places: Array) -> tuple[Array, tuple[Array, ...]]:
    return _move(x, *places), places


def _move_backward(places: tuple[Array, ...], gradient: Array) -> tuple[Array | None, ...]:
    source, valid, back, back_valid = places
    return _move(gradient, back, back_valid, source, valid), None, None, None, None


_move.defvjp(_move_forward, _move_backward)


def multi_head_attention(qkv: Array, exists: Array, num_heads: int, epeg: Affine | None = None) -> Array:
    """Self-attention inside each of G sequences: qkv [G, P, 3 D], exists [G, P] -> [G, P, D], before the projection.

    epeg: a kernel [k, 1 or k, 1, heads] over the queries (and keys) of the logits. Its bias shifts all logits of a
    query alike, so the softmax removes it.
    """
    num_sequences, length, width = qkv.shape
    head_width = width // (3 * num_heads)
    split = qkv.reshape(num_sequences, length, 3, num_heads, head_width)
    q, k, v = split.transpose(2, 0, 3, 1, 4).reshape(3, num_sequences * num_heads, length, head_width)
    each = [q / math.sqrt(head_width), k, v, jnp.repeat(exists, num_heads, axis=0)]
    if epeg is not None:
        each.append(jnp.tile(epeg.kernel[:, :, 0].transpose(2, 0, 1), (num_sequences, 1, 1)))  # [G heads, k, 1 or k]
    out = _in_groups(_attend, each, length**2).reshape(num_sequences, num_heads, length, head_width)
    return out.transpose(0, 2, 1, 3).reshape(num_sequences, length, -1)


def _in_groups(function: Callable[..., Array], arrays: list[Array], elements: int) -> Array:
    """`function` over the leading axis B of the arrays, in groups of at most GROUP_ELEMENTS / elements (at least 1)."""
    total = len(arrays[0])
    most = GROUP_ELEMENTS if backend.is_cpu() else GROUP_ELEMENTS_OF_ACCELERATORS
    group = max(size for size in range(1, total + 1) if total % size == 0 and (size == 1 or size * elements <= most))
    if group == total:
        return function(*arrays)
    grouped = [x.reshape(total // group, group, *x.shape[1:]) for x in arrays]
    out = jax.lax.map(jax.checkpoint(lambda xs: function(*xs)), grouped)
    return out.reshape(total, *out.shape[2:])


def _attend(q: Array, k: Array, v: Array, exists: Array, taps: Array | None = None) -> Array:
    """q (scaled), k, v [B, P, d]; exists [B, P]; taps [B, k, 1 or k] -> [B, P, d]."""
    q, k = (jnp.where(exists[..., None], x, 0.0) for x in (q, k))
    if taps is not None:
        q, k = _with_epeg(q, k, taps)
    scores = jnp.einsum("bpd,bqd->bpq", q, k, preferred_element_type=jnp.float32)
    return jnp.einsum("bpq,bqd->bpd", masked.softmax(scores, exists[:, None]).astype(v.dtype), v)


def _with_epeg(q: Array, k: Array, taps: Array) -> tuple[Array, Array]:
    """Queries and keys whose products are the logits q k' plus their convolution with `taps`, zero padded.

    The logits are linear in q and in k, so the convolution is one of the queries; over keys, too, it is a sum over
    the kernel's columns, each with queries of its own and shifted keys: the columns lie side by side. No convolution
    of a P x P map is ever formed.
    """
    columns = taps.shape[2]
    queries = [_shifted_sum(q, taps[:, :, column]) for column in range(columns)]
    queries[columns // 2] += q
    return jnp.concatenate(queries, axis=-1), jnp.concatenate(_shifts(k, columns), axis=-1)


@jax.custom_vjp
def _shifted_sum(x: Array, weights: Array) -> Array:
    """sum_u weights[:, u] shift_u(x): x [B, P, d], weights [B, k] -> [B, P, d]. The gradient by hand keeps no shifted copies."""
    shifts = _shifts(x, weights.shape[1])
    return functools.reduce(jnp.add, [shifted * weights[:, u, None, None] for u, shifted in enumerate(shifts)])


def _shifted_sum_forward(x: Array, weights: Array) -> tuple[Array, tuple[Array, Array]]:
    return _shifted_sum(x, weights), (x, weights)


def _shifted_sum_backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, weights = residuals
    products = [jnp.sum(jnp.sum(shifted * gradient, axis=1), axis=1) for shifted in _shifts(x, weights.shape[1])]
    return _shifted_sum(gradient, weights[:, ::-1]), jnp.stack(products, axis=1)


_shifted_sum.defvjp(_shifted_sum_forward, _shifted_sum_backward)


def _shifts(x: Array, count: int) -> list[Array]:
    """x [B, P, d] moved by -(count // 2) ... count // 2 slots, with zeros moved in."""
    half = count // 2
    padded = jnp.pad(x, ((0, 0), (half, half), (0, 0)))
    return [padded[:, start : start + x.shape[1]] for start in range(count)]


def region_attention(
    x: Array, mask: Array, qkv: Affine, proj: Affine, epeg: Affine | None, *, num_heads: int, grid: Grid
) -> Array:
    """R-MSA: x [N, D] (layer-normalised) -> [N, D], attention inside each region. See `multi_head_attention`."""
    # The bias is added in the regions: zero tokens have it, too.
    projected = Affine(qkv.kernel, None)(masked.zero_padding(x, mask))  # [N, 3 D]

    def attend(regions: Regions) -> Array:
        slots = to_regions(projected, regions)  # [G, P, 3 D]
        if qkv.bias is not None:
            slots = slots + qkv.bias
        return from_regions(multi_head_attention(slots, regions.exists, num_heads, epeg), regions)

    return proj(by_regions(attend, mask, grid))


def cross_region_attention(
    x: Array,
    mask: Array,
    phi: Callable[[Array], Array],
    qkv: Affine,
    proj: Affine,
    *,
    num_heads: int,
    grid: Grid,
    drop: Callable[[Array], Array] = lambda z: z,
) -> Array:
    """CR-MSA: x [N, D] (layer-normalised) -> [N, D]. Each region is summed up by k representatives, these attend over
    the regions, one k at a time, and what they gather is dealt back to the instances.

    phi: [N, D] -> logits [N, k], 0 for a zero row. drop: applied to the representatives [G, k, D] after the projection.
    """
    x = masked.zero_padding(x, mask)
    logits = phi(x)  # [N, k]

    def attend(regions: Regions) -> Array:
        tokens, slots = to_regions(x, regions), to_regions(logits, regions)  # [G, P, D], [G, P, k]
        exists = regions.exists
        combine = masked.softmax(slots.transpose(0, 2, 1), exists[:, None])  # [G, k, P]
        representatives = jnp.einsum("gkp,gpd->kgd", combine, tokens)
        among = jnp.broadcast_to(exists[:, 0], representatives.shape[:2])
        gathered = proj(multi_head_attention(qkv(representatives), among, num_heads)).transpose(1, 0, 2)  # [G, k, D]
        share = jax.nn.softmax(slots, axis=-1) * _position_in_range(slots, exists[..., None])
        return from_regions(jnp.einsum("gpk,gkd->gpd", share, drop(gathered)), regions)

    return by_regions(attend, mask, grid)


def _position_in_range(slots: Array, exists: Array) -> Array:
    """(L - min) / (max - min) over the slots of a region [G, P, k]; 0 without gradient where all are equal.

    The reference divides by the range + 1e-8 there, too: its gradient grows by 1e8 in a region of equal instances.
    """
    lowest = jnp.min(slots, axis=1, keepdims=True, where=exists, initial=jnp.inf)
    highest = jnp.max(slots, axis=1, keepdims=True, where=exists, initial=-jnp.inf)
    span = highest - lowest
    varies = span > RELATIVE_RANGE * jnp.maximum(jnp.abs(highest), jnp.abs(lowest))
    position = (slots - jnp.where(varies, lowest, 0.0)) / jnp.where(varies, span + 1e-8, 1.0)
    return jnp.where(varies & exists, position, 0.0)


def region_weights(x: Array, mask: Array, score: Callable[[Array], Array], *, grid: Grid, num_best: int = 0) -> Array:
    """Regions are scored by the mean of their instances, ranked, and weighted: x [N, D] -> weights [N], 0 on padding.

    score: [G, D] -> [G]. The weight of an instance is M softmax(scores) of its region, over the M regions that hold
    instances, or over the num_best of them with the largest scores (others: 0), so that the mean weight of a region
    that counts is 1.
    """
    x = masked.zero_padding(x, mask)

    def weigh(regions: Regions) -> Array:
        count = jnp.sum(regions.real, axis=1)  # [G]
        scores = score(jnp.sum(to_regions(x, regions), axis=1) / jnp.maximum(count, 1)[:, None])
        counts = count > 0
        if num_best:
            rank = jnp.argsort(jnp.argsort(jnp.where(counts, -scores, jnp.inf), stable=True), stable=True)
            counts &= rank < num_best
        weights = jnp.sum(counts) * masked.softmax(scores, counts)
        return from_regions(jnp.broadcast_to(weights[:, None, None], (*regions.real.shape, 1)), regions)

    return by_regions(weigh, mask, grid)[:, 0]
