"""The laws every aggregator keeps, as one reusable check.

    law.check_aggregator(create("abmil", 2, feature_dim=16), (12,))

puts a module through all of `PROMISES`; `promises=[...]` through some. `check_padding` and `check_replicas` take any
function of a bag and a key, so a strategy's step is checked the same way. Sizes, data and garbage vary inside two
compiled buckets; bare bags, each a compilation, are compared at the sizes given.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mil_jax.bags import Bag, Prediction
from mil_jax.types import PyTree

SMALL_BUCKET, LARGE_BUCKET = 16, 40
GARBAGE = (np.nan, np.inf, -1e30, 7.0)
NUM_DRAWS = 6
NUM_REPLICAS = 3
# Sums over a longer bucket are taken in another order: a few units in the last place of the largest number involved.
RTOL, ATOL = 2e-5, 2e-6


class Seen(NamedTuple):
    """What a function gave for a bag: arrays without an instance axis, and arrays whose FIRST axis is the
    instances'.
    """

    whole: PyTree
    per_instance: dict[str, jax.Array]


Run = Callable[[Bag, jax.Array], Seen]


def make_bag(
    seed: int, num_instances: int, bucket: int, feature_shape: tuple[int, ...], garbage: float = np.nan
) -> Bag:
    """A random bag in a bucket; the same seed and number of instances give the same instances in every bucket."""
    generator = np.random.default_rng(seed)
    features = np.full((bucket, *feature_shape), garbage, np.float32)
    features[:num_instances] = generator.standard_normal((num_instances, *feature_shape))
    coords = np.full((bucket, 2), -9, np.int32)
    coords[:num_instances] = generator.permutation(4 * num_instances)[: 2 * num_instances].reshape(-1, 2) * 256
    return Bag(jnp.asarray(features), jnp.asarray(np.arange(bucket) < num_instances), jnp.asarray(coords))


def assert_close(found: PyTree, expected: PyTree, what: str) -> None:
    """Equal to float32 round-off, relative to the largest magnitude of each array; integers and -inf exactly."""
    found_leaves = jax.tree_util.tree_leaves_with_path(found)
    expected_leaves = jax.tree_util.tree_leaves_with_path(expected)
    assert [path for path, _ in found_leaves] == [path for path, _ in expected_leaves], f"{what}: other outputs"
    for (path, a), (_, b) in zip(found_leaves, expected_leaves, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        where = f"{what}: {jax.tree_util.keystr(path)}"
        assert not np.isnan(a).any(), f"{where} holds NaN"
        assert not np.isnan(b).any(), f"{where} holds NaN"
        finite = np.abs(b[np.isfinite(b)]) if b.dtype.kind == "f" else ()
        atol = ATOL + RTOL * (finite.max() if np.size(finite) else 0.0) if b.dtype.kind == "f" else 0
        np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=where)


def check_padding(
    run: Run, feature_shape: tuple[int, ...], *, bare_sizes: Sequence[int] = (1, 7), min_size: int = 1
) -> None:
    """A bag in a longer bucket, whatever lies in the padding, gives what it gives in a shorter one, and bare.

    run: compiled, so that the two buckets are two programs for all draws.
    """
    generator = np.random.default_rng(0)
    sizes = [SMALL_BUCKET, min_size, *generator.integers(min_size, SMALL_BUCKET + 1, NUM_DRAWS - 2)]
    for seed, n in enumerate(map(int, sizes)):
        key = jax.random.key(seed)
        short = run(make_bag(seed, n, SMALL_BUCKET, feature_shape, GARBAGE[seed % len(GARBAGE)]), key)
        long = run(make_bag(seed, n, LARGE_BUCKET, feature_shape, GARBAGE[(seed + 1) % len(GARBAGE)]), key)
        _assert_same(long, short, n, f"{n} instances in buckets of {LARGE_BUCKET} and {SMALL_BUCKET}")
    for seed, n in enumerate(bare_sizes):
        key = jax.random.key(seed)
        padded = run(make_bag(seed, n, LARGE_BUCKET, feature_shape), key)
        _assert_same(padded, run(make_bag(seed, n, n, feature_shape), key), n, f"{n} instances, padded and bare")


def _assert_same(padded: Seen, shorter: Seen, n: int, what: str) -> None:
    assert_close(padded.whole, shorter.whole, what)
    for name, values in padded.per_instance.items():
        assert_close(values[:n], shorter.per_instance[name][:n], f"{what}: {name}")
        padding = np.asarray(values[n:])
        hidden = -np.inf if name == "scores" else 0.0
        assert (padding == hidden).all(), f"{what}: {name} is not {hidden} on padding"


def check_replicas(run: Callable[[PyTree, Bag, jax.Array], PyTree], states: PyTree, bag: Bag) -> None:
    """R states with R keys under one vmap give what each gives alone. states: stacked on a leading axis. run: compiled."""
    keys = jax.random.split(jax.random.key(1), jax.tree.leaves(states)[0].shape[0])
    together = jax.jit(jax.vmap(run, in_axes=(0, None, 0)))(states, bag, keys)
    for index, key in enumerate(keys):
        one = run(jax.tree.map(lambda x, i=index: x[i], states), bag, key)
        assert_close(jax.tree.map(lambda x, i=index: x[i], together), one, f"replica {index}")


class _Aggregator:
    """An aggregator seen through one forward and backward pass, compiled once per bucket for all promises."""

    def __init__(self, module: nn.Module, feature_shape: tuple[int, ...]) -> None:
        self.module, self.feature_shape = module, feature_shape
        self.params = jax.jit(self.init)(jax.random.key(0))
        self.seen = jax.jit(self._seen, static_argnames="train")

    def init(self, key: jax.Array) -> PyTree:
        return self.module.init(key, make_bag(0, 4, SMALL_BUCKET, self.feature_shape, 0.0))["params"]

    def bag(self, num_instances: int) -> Bag:
        return make_bag(0, num_instances, SMALL_BUCKET, self.feature_shape)

    def _seen(self, params: PyTree, bag: Bag, key: jax.Array, train: bool) -> Seen:
        """Outputs, a loss that all logits and the embedding enter, and its gradient."""

        def loss(params: PyTree) -> tuple[jax.Array, Prediction]:
            prediction = self.module.apply({"params": params}, bag, train=train, rngs={"dropout": key})
            value = jnp.sum(jnp.square(prediction.logits - 1.0))
            return value if prediction.embedding is None else value + jnp.mean(prediction.embedding), prediction

        (value, prediction), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        whole = {"logits": prediction.logits, "loss": value, "gradients": gradients}
        if prediction.embedding is not None:
            whole["embedding"] = prediction.embedding
        per_instance = {
            "attention": prediction.attention if prediction.attention is None else prediction.attention.T,
            "scores": prediction.scores if prediction.scores is None else prediction.scores.T,
            "instance_logits": prediction.instance_logits,
        }
        return Seen(whole, {name: values for name, values in per_instance.items() if values is not None})


_aggregator = functools.cache(_Aggregator)


def _padding(aggregator: _Aggregator, train: bool, bare_sizes: Sequence[int]) -> None:
    def run(bag: Bag, key: jax.Array) -> Seen:
        return aggregator.seen(aggregator.params, bag, key, train=train)

    check_padding(run, aggregator.feature_shape, bare_sizes=bare_sizes)


def _permutation(aggregator: _Aggregator) -> None:
    """Without dropout the order of the instances means nothing, and what belongs to an instance moves with it."""
    n, bag, key = 11, aggregator.bag(11), jax.random.key(0)
    order = np.concatenate([np.random.default_rng(1).permutation(n), np.arange(n, SMALL_BUCKET)])
    permuted_bag = bag.replace(features=bag.features[order], coords=bag.coords[order])
    plain = aggregator.seen(aggregator.params, bag, key, train=False)
    permuted = aggregator.seen(aggregator.params, permuted_bag, key, train=False)
    assert_close(permuted.whole, plain.whole, "permuted")
    for name, values in permuted.per_instance.items():
        assert_close(values[:n], plain.per_instance[name][order[:n]], f"permuted: {name}")


def _one_instance(aggregator: _Aggregator) -> None:
    """A bag of one instance has finite outputs and gradients, and gives that instance all the attention."""
    seen = aggregator.seen(aggregator.params, aggregator.bag(1), jax.random.key(0), train=True)
    _assert_finite(seen.whole)
    if "attention" in seen.per_instance:
        np.testing.assert_allclose(seen.per_instance["attention"][0], 1.0, rtol=1e-6)


def _all_padding(aggregator: _Aggregator) -> None:
    """A place that holds no bag gives finite outputs and gradients, so that a weight of zero can remove it."""
    _assert_finite(aggregator.seen(aggregator.params, aggregator.bag(0), jax.random.key(0), train=True).whole)


def _assert_finite(tree: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        assert np.isfinite(np.asarray(leaf)).all(), f"{jax.tree_util.keystr(path)} is not finite"


def _replicas(aggregator: _Aggregator) -> None:
    params = jax.jit(jax.vmap(aggregator.init))(jax.random.split(jax.random.key(7), NUM_REPLICAS))
    check_replicas(functools.partial(aggregator.seen, train=True), params, aggregator.bag(9))


PROMISES = ("padding", "padding_train", "permutation", "one_instance", "all_padding", "replicas")


def check_aggregator(
    module: nn.Module,
    feature_shape: tuple[int, ...],
    *,
    promises: Sequence[str] = PROMISES,
    bare_sizes: Sequence[int] = (1, 7),
) -> None:
    """Checks `module` on bags of instances of `feature_shape`; leave out "permutation" where order matters.

    bare_sizes: numbers of instances at which the padded bag is compared with the bare one: those where the method
    changes its behaviour (fewer than k or landmarks, a perfect square, one over), each of them one more compilation.
    """
    aggregator = _aggregator(module, feature_shape)
    for promise in promises:
        if promise in ("padding", "padding_train"):
            _padding(aggregator, promise == "padding_train", bare_sizes)
        else:
            {
                "permutation": _permutation,
                "one_instance": _one_instance,
                "all_padding": _all_padding,
                "replicas": _replicas,
            }[promise](aggregator)
