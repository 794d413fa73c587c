"""Whether packing would pay: a batch of bags end to end with segment ids, against the same bags padded to their bucket.

    python -m benchmarks.packing --machine laptop

Gated ABMIL 512/384, D = 1024, float32: loss and gradients of `--bags` bags of one bucket whose padding is 13 %, what the fitted ladder
leaves on average. "padded": the library's aggregator over [B, L], as the engine runs it. "packed": the same arithmetic over the real
rows alone, softmax and pooling by segment (sorted ids, as a loader would give them). Packing cannot gain more than the padding, and
pays where the segment reductions cost less than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.common import DEFAULT_MACHINE, median_ratio, paired, write_result
from mil_jax import aggregators
from mil_jax.bags import Bag
from mil_jax.strategies.base import map_bags
from mil_jax.training.devices import keep_freed_memory, wait

_MACHINE = flags.DEFINE_string("machine", DEFAULT_MACHINE, "Name of the machine, for the result's file.")
_BAGS = flags.DEFINE_integer("bags", 8, "Bags of the batch.")
_SIZES = flags.DEFINE_list("sizes", ["1024", "4096"], "Lengths of the bucket.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Turns of each way; the median of their ratios counts.")

DIM, PADDING = 1024, 0.13


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


def measure(num_bags: int, length: int, rounds: int) -> dict[str, Any]:
    """Seconds of both ways in every round, after checking that they agree."""
    generator = np.random.default_rng(0)
    shares = 1 - generator.uniform(0, 2 * PADDING, num_bags)
    sizes = np.maximum((shares * length).astype(int), 1)
    features = generator.standard_normal((num_bags, length, DIM), np.float32)
    mask = np.arange(length) < sizes[:, None]
    module = aggregators.create("abmil", 2)
    bags = Bag(features=jnp.asarray(features), mask=jnp.asarray(mask))
    params = module.init({"params": jax.random.key(0)}, jax.tree.map(lambda x: x[0], bags))["params"]
    rows, segments = jnp.asarray(features[mask]), jnp.asarray(np.repeat(np.arange(num_bags), sizes))

    def loss(logits: jax.Array) -> jax.Array:
        return -jnp.mean(jax.nn.log_softmax(logits)[:, 0])

    def padded_loss(params: Any, bags: Bag) -> jax.Array:
        return loss(map_bags(lambda bag: module.apply({"params": params}, bag).logits, bags))

    def packed_loss(params: Any, rows: jax.Array, segments: jax.Array) -> jax.Array:
        return loss(packed_logits(params, rows, segments, num_bags))

    padded, packed = jax.jit(jax.value_and_grad(padded_loss)), jax.jit(jax.value_and_grad(packed_loss))
    found, expected = (
        jax.flatten_util.ravel_pytree(x)[0] for x in (packed(params, rows, segments), padded(params, bags))
    )
    np.testing.assert_allclose(found, expected, atol=1e-5 * float(jnp.abs(expected).max()))
    seconds = paired(
        {"padded": lambda: wait(padded(params, bags)), "packed": lambda: wait(packed(params, rows, segments))}, rounds
    )
    return {"seconds": seconds, "padding": float(1 - mask.mean())}


def main(_: Sequence[str]) -> None:
    keep_freed_memory()
    figures, table = {}, []
    for length in map(int, _SIZES.value):
        figures[f"L={length}"] = one = measure(_BAGS.value, length, _ROUNDS.value)
        ratio = median_ratio(one["seconds"]["padded"], one["seconds"]["packed"])
        what = (
            f"{_BAGS.value} bags of ABMIL in a bucket of {length:,}, {one['padding']:.0%} padding: padded over packed"
        )
        table.append((what, "more than 1 to pay", f"{ratio:.2f}"))
    write_result("packing", _MACHINE.value, figures, table)


if __name__ == "__main__":
    app.run(main)
