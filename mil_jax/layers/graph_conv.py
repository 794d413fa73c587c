"""GENConv (DeeperGCN, Li et al. 2020) on a graph of neighbour lists: a softmax over what a node receives, per channel.

Node v sends to the k nodes that it lists, so a node receives from those that list it: k edges out, any number in, none included.
Padded nodes send and receive nothing. Forward, a loop over the most edges that any node receives; backward, over the k that each
sends: both are gathers, and no array is larger than [N, k] or [N, 2 channels].
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mil_jax.layers.initializers import AffineParameters

Array = jax.Array
MESSAGE_EPSILON = 1e-7
_MOST_SPREAD = 60.0  # of t m in a bag, of which exponentials are taken: float32 holds exp(-87) to exp(88)


class Graph(NamedTuple):
    """Edges of N nodes, by source and by target.

    target, valid: [N, k], the nodes that each node sends to, and which of the k edges exist. source: [N k], where each edge comes from,
    sorted by the node that receives it. first, degree: [N], where a node's edges begin in `source`, and how many it has.
    """

    target: Array
    valid: Array
    source: Array
    first: Array
    degree: Array


def make_graph(neighbors: Array, mask: Array) -> Graph:
    """neighbors: [N, k] int32, the nodes that each node sends to, -1 for none. mask: [N]; padded rows may hold anything."""
    num_nodes, k = neighbors.shape
    inside = (neighbors >= 0) & (neighbors < num_nodes)
    target = jnp.where(inside, neighbors, 0)
    valid = inside & mask[:, None] & mask[target]
    receiver = jnp.where(valid, target, num_nodes).ravel()  # edges that do not exist come last
    order = jnp.argsort(receiver, stable=True)
    bounds = jnp.searchsorted(receiver[order], jnp.arange(num_nodes + 1))
    return Graph(target, valid, order // k, bounds[:-1], jnp.diff(bounds))


@jax.custom_vjp
def softmax_aggregation(messages: Array, temperature: Array, graph: Graph) -> Array:
    """sum over v in in(u) of softmax_v(t m_v) m_v, per channel: messages [N, D] float32, t a scalar -> [N, D]; 0 where none comes in."""
    return _aggregate(messages, temperature, graph)[0]


def _weights(messages: Array, temperature: Array, graph: Graph) -> tuple[Array, Array, Array]:
    """exp(t m - c) [N, D] of what is sent, with c [D] the largest t m of the bag, and whether no weight comes near to underflow.

    Then the weights serve all receivers, and no exponential is taken for an edge; c cancels.
    """
    sends = jnp.any(graph.valid, axis=1)[:, None]
    scaled = temperature * messages
    largest = jnp.max(jnp.where(sends, scaled, -jnp.inf), axis=0)
    largest = jnp.where(jnp.isfinite(largest), largest, 0.0)
    smallest = jnp.min(jnp.where(sends, scaled, largest), axis=0)
    weight = jnp.exp(jnp.where(sends, scaled - largest, -jnp.inf))
    return weight, largest, jnp.max(largest - smallest) < _MOST_SPREAD


def _aggregate(messages: Array, temperature: Array, graph: Graph) -> tuple[Array, Array]:
    """The aggregate and log sum exp(t m) of what comes in, [N, D] each."""
    most = jnp.max(graph.degree, initial=0)
    weight, common, near = _weights(messages, temperature, graph)
    table = jnp.concatenate([weight, weight * messages], axis=1)

    def incoming(slot: Array) -> tuple[Array, Array]:
        real = slot < graph.degree
        return graph.source[jnp.where(real, graph.first + slot, 0)], real[:, None]

    def add_near(slot: Array, sums: Array) -> Array:
        source, real = incoming(slot)
        return sums + jnp.where(real, table[source], 0.0)

    def maximum(slot: Array, largest: Array) -> Array:
        source, real = incoming(slot)
        return jnp.maximum(largest, jnp.where(real, temperature * messages[source], -jnp.inf))

    received = graph.degree[:, None] > 0
    # One of the two ways makes no turn: beside each other, batches of bags take no way in vain.
    far = jnp.where(near, 0, most)
    largest = jax.lax.fori_loop(0, far, maximum, jnp.full_like(messages, -jnp.inf))
    largest = jnp.where(near, common, jnp.where(received, largest, 0.0))

    def add_far(slot: Array, sums: Array) -> Array:
        source, real = incoming(slot)
        message = messages[source]
        weight = jnp.exp(jnp.where(real, temperature * message - largest, -jnp.inf))
        return sums + jnp.concatenate([weight, weight * message], axis=1)

    sums = jax.lax.fori_loop(0, most - far, add_near, jnp.zeros_like(table))
    sums = jax.lax.fori_loop(0, far, add_far, sums)
    total, weighted = jnp.split(sums, 2, axis=1)
    total = jnp.where(received, total, 1.0)
    return weighted / total, largest + jnp.log(total)


def _forward(
    messages: Array, temperature: Array, graph: Graph
) -> tuple[Array, tuple[Array, Array, Graph, Array, Array]]:
    aggregate, log_total = _aggregate(messages, temperature, graph)
    return aggregate, (messages, temperature, graph, aggregate, log_total)


def _backward(residuals: tuple[Array, Array, Graph, Array, Array], gradient: Array) -> tuple[Array, Array, None]:
    """To m_v: sum over the u that v sends to of g_u p_uv (1 + t (m_v - a_u)), with p_uv = exp(t m_v - log_total_u); to t: of
    g_u p_uv (m_v - a_u)^2, over all v."""
    messages, temperature, graph, aggregate, log_total = residuals
    k = graph.target.shape[1]
    weight, common, near = _weights(messages, temperature, graph)
    share = gradient * jnp.exp(jnp.where(graph.degree[:, None] > 0, common - log_total, -jnp.inf))
    table = jnp.concatenate([share, share * aggregate], axis=1)

    def add_near(slot: Array, sums: Array) -> Array:
        return sums + jnp.where(graph.valid[:, slot, None], table[graph.target[:, slot]], 0.0)

    def add_far(slot: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        target, real = graph.target[:, slot], graph.valid[:, slot, None]
        weight = jnp.exp(jnp.where(real, temperature * messages - log_total[target], -jnp.inf))
        flow, apart = weight * gradient[target], messages - aggregate[target]
        return sums[0] + flow * (1.0 + temperature * apart), sums[1] + jnp.sum(flow * apart**2)

    sums = jax.lax.fori_loop(0, jnp.where(near, k, 0), add_near, jnp.zeros_like(table))
    shares, with_aggregate = jnp.split(sums, 2, axis=1)
    flow = weight * (messages * shares - with_aggregate)  # sum of g_u p_uv (m_v - a_u)
    # As the sum over v of g_u p_uv (m_v - a_u) is 0, one of the two factors may stay m_v.
    near_sums = weight * shares + temperature * flow, jnp.sum(flow * messages)
    to_messages, to_temperature = jax.lax.fori_loop(0, jnp.where(near, 0, k), add_far, near_sums)
    return to_messages, to_temperature, None


softmax_aggregation.defvjp(_forward, _backward)


class GENConv(nn.Module):
    """x [N, D] -> W2 relu(LN(W1 (a + x))), D -> 2 D -> D, where a aggregates relu(x) + 1e-7 with a temperature that is learned.

    mlp_bias: whether W1 and W2 have biases. The aggregate [N, D] is sown as "aggregate" in "intermediates".
    """

    mlp_bias: bool = False

    @nn.compact
    def __call__(self, x: Array, graph: Graph) -> Array:
        width = x.shape[-1]
        temperature = self.param("temperature", nn.initializers.ones, (1,)).astype(jnp.float32)
        messages = jax.nn.relu(x.astype(jnp.float32)) + MESSAGE_EPSILON
        aggregate = softmax_aggregation(messages, temperature[0], graph)
        self.sow("intermediates", "aggregate", aggregate)
        y = AffineParameters(2 * width, use_bias=self.mlp_bias, name="expand")(width)(aggregate.astype(x.dtype) + x)
        y = jax.nn.relu(nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="norm")(y))
        return AffineParameters(width, use_bias=self.mlp_bias, name="contract")(2 * width)(y)
