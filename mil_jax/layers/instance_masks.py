"""Which instances of a bag are masked by their scores, as in MHIM-MIL (Tang et al. 2023, section 3.2, and the code of branch v1).

Three parts, whose union is masked: any instances at random, those of the lowest scores, and those of the highest, or a random subset of
a larger pool of them. How many is counted on the host in float64 (`mask_counts`); which ones is decided by ranks under the bag's mask,
so that a longer bucket masks the same. Several heads vote. The reference may mask all of a small bag; here one instance always stays.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax.types import AnyArray, Array

FUSIONS = ("vote", "mean")


class MaskCounts(NamedTuple):
    """How many instances of a bag are masked by each part; None for a part that is not in use.

    random, low: at random, and of the lowest scores. pool: of the highest scores; of these `high` are drawn, or all where it is None.
    With fusion "mean" the size of the pool is not known beforehand, and `high` is the share of it that is drawn.
    """

    random: AnyArray | None = None
    low: AnyArray | None = None
    pool: AnyArray | None = None
    high: AnyArray | None = None


def count(sizes: np.ndarray, ratio: Any) -> np.ndarray:
    """ceil(n * ratio), host, float64."""
    return np.ceil(np.asarray(sizes, np.float64) * ratio).astype(np.int64)


def high_counts(sizes: np.ndarray, ratio: Any, share: float, fusion: str = "vote") -> tuple[np.ndarray, np.ndarray]:
    """(pool, high) so that about n * ratio of the highest are masked, a `share` in (0, 1] of their pool; ratio: broadcast to `sizes`.

    Where the pool would be larger than the bag it is the bag, and the ratio itself is the share.
    """
    sizes, ratio = np.broadcast_arrays(np.asarray(sizes, np.int64), np.asarray(ratio, np.float64))
    whole = ratio / share > 1
    pool, share_of_pool = np.where(whole, sizes, count(sizes, ratio / share)), np.where(whole, ratio, share)
    return pool, share_of_pool if fusion == "mean" else count(pool, share_of_pool)


def ranks(values: Array, mask: Array) -> Array:
    """The place of each instance in ascending order of `values` [..., N], of equals the first first, padding last: int32 [..., N]."""
    order = jnp.argsort(jnp.where(mask, values, jnp.inf), axis=-1, stable=True)
    return jnp.argsort(order, axis=-1, stable=True).astype(jnp.int32)


def chosen_by_heads(ranks_of_heads: Array, mask: Array, number: Array, fusion: str) -> Array:
    """`number` instances of the lowest ranks [H, N] -> bool [N].

    "vote": every head marks its `number` lowest, and the instances with most marks are taken, of equals the first. "mean": what any
    head has among its number // H lowest.
    """
    heads = len(ranks_of_heads)
    if heads == 1:
        return mask & (ranks_of_heads[0] < number)
    if fusion == "mean":
        return mask & jnp.any(ranks_of_heads < number // heads, axis=0)
    votes = jnp.sum(ranks_of_heads < number, axis=0)
    return mask & (ranks(-votes, mask) < number)


def class_certainty(logits: Array) -> Array:
    """Orders instances as their largest class probability does: logits [N, C] -> [N], float32.

    p = 1 / (C + sum_c expm1(logit_c - largest)), and minus that sum is returned: where logits are small all p round to 1 / C.
    """
    logits = jax.lax.stop_gradient(logits.astype(jnp.float32))
    return -jnp.sum(jnp.expm1(logits - jnp.max(logits, axis=-1, keepdims=True)), axis=-1)


def masked_instances(
    scores: Array, mask: Array, counts: MaskCounts, draws: tuple[Array, Array], fusion: str = "vote"
) -> Array:
    """The masked ones of n real instances: bool [N]; one instance stays, the best that the high part leaves.

    scores: [H, N], of H heads. draws: two arrays [N] whose order is random, for the random part and the draw from the pool.
    """
    size = mask.shape[-1]
    number = jnp.sum(mask, dtype=jnp.int32)
    ascending = ranks(scores, mask)  # [H, N]
    descending = jnp.where(mask, number - 1 - ascending, size)
    masked = high = jnp.zeros_like(mask)
    if counts.random is not None:
        masked |= mask & (ranks(draws[0], mask) < counts.random)
    if counts.low is not None:
        masked |= chosen_by_heads(ascending, mask, counts.low, fusion)
    if counts.pool is not None:
        high = chosen_by_heads(descending, mask, counts.pool, fusion)
        if counts.high is not None:
            drawn = counts.high
            if fusion == "mean":  # the margin makes 0.3 * 10 in float32 3, not 4
                drawn = jnp.ceil(jnp.sum(high) * drawn - 5e-4).astype(jnp.int32)
            high &= ranks(draws[1], high) < drawn
    return leaving_one(masked | high, mask, jnp.sum(descending, axis=0) + jnp.where(high, len(scores) * size, 0))


def leaving_one(masked: Array, mask: Array, reluctance: Array) -> Array:
    """`masked` [N], but where that is the whole bag the instance of the least `reluctance` stays."""
    stays = jnp.arange(len(mask)) == jnp.argmin(jnp.where(mask, reluctance, jnp.iinfo(jnp.int32).max))
    return masked & ~(stays & jnp.all(masked == mask))
