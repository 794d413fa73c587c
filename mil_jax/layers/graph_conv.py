"""GENConv (DeeperGCN, Li et al. 2020) on a graph of neighbour lists: a softmax over what a node receives, per channel.

Node v sends to the k nodes that it lists, so a node receives from those that list it: k edges out, any number in, none included.
Padded nodes send and receive nothing. Forward, a loop over the most edges that any node receives; backward, over the k that each
sends: both are gathers, and no array is larger than [N, k] or [N, channels]. A GPU takes all edges at once: its scatters are fast, and it
would wait for the host before each round of a loop whose length is data.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mil_jax.layers import backend
from mil_jax.layers.initializers import AffineParameters
from mil_jax.types import Array

MESSAGE_EPSILON = 1e-7


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


def _aggregate(messages: Array, temperature: Array, graph: Graph) -> tuple[Array, Array]:
    """The aggregate and log sum exp(t m) of what comes in, [N, D] each."""
    return (_aggregate_slot_by_slot if backend.is_cpu() else _aggregate_at_once)(messages, temperature, graph)


def _aggregate_at_once(messages: Array, temperature: Array, graph: Graph) -> tuple[Array, Array]:
    receiver = jnp.where(graph.valid, graph.target, len(messages))  # edges that do not exist are dropped
    sent, edges = messages[:, None], (*graph.target.shape, messages.shape[-1])  # [N, 1, D], (N, k, D)
    scaled = jnp.broadcast_to(temperature * sent, edges)
    largest = jnp.full_like(messages, -jnp.inf).at[receiver].max(scaled, mode="drop")
    receives = largest > -jnp.inf
    largest = jnp.where(receives, largest, 0.0)
    weight = jnp.exp(jnp.where(graph.valid[..., None], scaled - largest[graph.target], -jnp.inf))
    total = jnp.zeros_like(messages).at[receiver].add(weight, mode="drop")
    weighted = jnp.zeros_like(messages).at[receiver].add(weight * sent, mode="drop")
    total = jnp.where(receives, total, 1.0)
    return weighted / total, largest + jnp.log(total)


def _aggregate_slot_by_slot(messages: Array, temperature: Array, graph: Graph) -> tuple[Array, Array]:
    most = jnp.max(graph.degree, initial=0)

    def incoming(slot: Array) -> tuple[Array, Array]:
        real = slot < graph.degree
        source = graph.source[jnp.where(real, graph.first + slot, 0)]
        return messages[source], real[:, None]

    def maximum(slot: Array, largest: Array) -> Array:
        message, real = incoming(slot)
        return jnp.maximum(largest, jnp.where(real, temperature * message, -jnp.inf))

    largest = jax.lax.fori_loop(0, most, maximum, jnp.full_like(messages, -jnp.inf))
    largest = jnp.where(graph.degree[:, None] > 0, largest, 0.0)

    def add(slot: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        message, real = incoming(slot)
        weight = jnp.exp(jnp.where(real, temperature * message - largest, -jnp.inf))
        return sums[0] + weight, sums[1] + weight * message

    zeros = jnp.zeros_like(messages)
    total, weighted = jax.lax.fori_loop(0, most, add, (zeros, zeros))
    total = jnp.where(graph.degree[:, None] > 0, total, 1.0)
    return weighted / total, largest + jnp.log(total)


def _forward(
    messages: Array, temperature: Array, graph: Graph
) -> tuple[Array, tuple[Array, Array, Graph, Array, Array]]:
    aggregate, log_total = _aggregate(messages, temperature, graph)
    return aggregate, (messages, temperature, graph, aggregate, log_total)


def _backward(residuals: tuple[Array, Array, Graph, Array, Array], gradient: Array) -> tuple[Array, Array, None]:
    messages, temperature, graph, aggregate, log_total = residuals

    def flows(target: Array, real: Array) -> tuple[Array, Array]:
        """What edges to `target` [...] bring back to the messages [..., D] and to the temperature [..., D]."""
        sent = jnp.expand_dims(messages, tuple(range(1, target.ndim)))
        weight = jnp.exp(jnp.where(real[..., None], temperature * sent - log_total[target], -jnp.inf))
        flow, apart = weight * gradient[target], sent - aggregate[target]
        return flow * (1.0 + temperature * apart), flow * apart**2

    if not backend.is_cpu():
        to_messages, to_temperature = flows(graph.target, graph.valid)
        return jnp.sum(to_messages, axis=1), jnp.sum(to_temperature), None

    def add(slot: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        to_messages, to_temperature = flows(graph.target[:, slot], graph.valid[:, slot])
        return sums[0] + to_messages, sums[1] + jnp.sum(to_temperature)

    start = jnp.zeros_like(messages), jnp.zeros_like(temperature)
    to_messages, to_temperature = jax.lax.fori_loop(0, graph.target.shape[1], add, start)
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
