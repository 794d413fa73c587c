"""Whether packing would pay: a batch of bags end to end with segment ids, against the same bags padded to their bucket.

    python -m benchmarks.packing --machine laptop

Gated ABMIL 512/384, D = 1024, float32: loss and gradients of `--bags` bags of one bucket, with the padding that the fitted ladder
leaves (13 %) and that a longer one does (5 %: two to three times the lengths, `data.max_padding=0.05`). "padded": the library's aggregator
over [B, L], as the engine runs it. "packed": the same arithmetic over the real rows, softmax and pooling by segment (sorted ids, as a
loader would give them). "in one room": as a compiled program has to have it, the rows of every batch in as many as the largest of
1,000 drawn batches needs; the rest is padding again. It pays where this gains more than a longer ladder does.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.common import MACHINE, median_ratio, paired, write_result
from mil_jax import aggregators
from mil_jax.bags import Bag
from mil_jax.engine.mesh import wait
from mil_jax.engine.runtime import keep_freed_memory
from mil_jax.strategies.base import map_bags

_BAGS = flags.DEFINE_integer("bags", 8, "Bags of the batch.")
_SIZES = flags.DEFINE_list("sizes", ["1024", "4096"], "Lengths of the bucket.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Turns of each way; the median of their ratios counts.")

DIM = 1024
PADDINGS = (0.13, 0.05)
DRAWN_BATCHES = 1000


def packed_logits(params: Any, features: jax.Array, segments: jax.Array, num_bags: int) -> jax.Array:
    """Logits [B, C] of gated ABMIL for instances [total, D] of bags `segments` [total], ascending."""

    def layer(name: str, x: jax.Array) -> jax.Array:
        bias = params[name].get("bias", 0.0)
        return x @ params[name]["kernel"] + bias

    def by_bag(reduce: Any, values: jax.Array) -> jax.Array:
        return reduce(values, segments, num_segments=num_bags, indices_are_sorted=True)

    h = jax.nn.relu(layer("feature", features))
    gated = jnp.tanh(layer("attention_v", h)) * jax.nn.sigmoid(layer("attention_u", h))
    scores = layer("attention_w", gated)[:, 0]
    largest = jax.lax.stop_gradient(by_bag(jax.ops.segment_max, scores))
    exponentials = jnp.exp(scores - largest[segments])
    pooled = by_bag(jax.ops.segment_sum, exponentials[:, None] * h) / by_bag(jax.ops.segment_sum, exponentials)[:, None]
    return layer("classifier", pooled)


def measure(num_bags: int, length: int, padding: float, rounds: int) -> dict[str, Any]:
    """Seconds of each way in every round, after checking that they agree."""
    generator = np.random.default_rng(0)
    drawn = ((1 - generator.uniform(0, 2 * padding, (DRAWN_BATCHES, num_bags))) * length).astype(int)
    sizes, room = drawn[0], int(drawn.sum(1).max())
    features = generator.standard_normal((num_bags, length, DIM), np.float32)
    mask = np.arange(length) < sizes[:, None]
    module = aggregators.create("abmil", 2)
    bags = Bag(features=jnp.asarray(features), mask=jnp.asarray(mask))
    params = module.init({"params": jax.random.key(0)}, jax.tree.map(lambda x: x[0], bags))["params"]
    rows, segments = jnp.asarray(features[mask]), jnp.asarray(np.repeat(np.arange(num_bags), sizes))
    rest = room - len(rows)
    room_rows, room_segments = (
        jnp.pad(rows, ((0, rest), (0, 0))),
        jnp.pad(segments, (0, rest), constant_values=num_bags),
    )

    def loss(logits: jax.Array) -> jax.Array:
        return -jnp.mean(jax.nn.log_softmax(logits)[:, 0])

    def padded_loss(params: Any, bags: Bag) -> jax.Array:
        return loss(map_bags(lambda bag: module.apply({"params": params}, bag).logits, bags))

    def packed_loss(params: Any, rows: jax.Array, segments: jax.Array, num_segments: int) -> jax.Array:
        return loss(packed_logits(params, rows, segments, num_segments)[:num_bags])

    padded, packed = (
        jax.jit(jax.value_and_grad(padded_loss)),
        jax.jit(jax.value_and_grad(packed_loss), static_argnums=3),
    )
    ways = {
        "padded": lambda: padded(params, bags),
        "packed": lambda: packed(params, rows, segments, num_bags),
        "in one room": lambda: packed(params, room_rows, room_segments, num_bags + 1),  # the last: what is no bag
    }
    expected = jax.flatten_util.ravel_pytree(ways["padded"]())[0]
    for way in ways.values():
        found = jax.flatten_util.ravel_pytree(way())[0]
        np.testing.assert_allclose(found, expected, atol=1e-5 * float(jnp.abs(expected).max()))
    seconds = paired({name: lambda way=way: wait(way()) for name, way in ways.items()}, rounds)
    return {"seconds": seconds, "padding": float(1 - mask.mean())}


def main(_: Sequence[str]) -> None:
    keep_freed_memory()
    figures, table = {}, []
    for length, padding in itertools.product(map(int, _SIZES.value), PADDINGS):
        figures[f"L={length}, padding {padding}"] = one = measure(_BAGS.value, length, padding, _ROUNDS.value)
        packed, room = (
            median_ratio(one["seconds"]["padded"], one["seconds"][way]) for way in ("packed", "in one room")
        )
        what = (
            f"{_BAGS.value} bags of ABMIL in a bucket of {length:,}, {one['padding']:.0%} padding: padded over packed"
        )
        table.append((what, "more than 1 to pay", f"{packed:.2f}; in one room for all batches {room:.2f}"))
    write_result("packing", MACHINE.value, figures, table)


if __name__ == "__main__":
    app.run(main)
