"""Cases of Patch-GCN: the graph of a slide, one graph convolution, and the whole network with a survival or a classification loss."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax import aggregators
from mil_jax.bags import Bag
from mil_jax.data.features.graphs import nearest_neighbors
from mil_jax.interop.torch_checkpoints import export_state_dict, import_state_dict
from mil_jax.layers.graph_conv import GENConv, make_graph
from tests.parity.adapters.base import Answer, class_targets, classification_task, gradient_entries
from tests.parity.case import Case

LOG_CLIP = 1e-7  # of the survival loss


def _padded(x: np.ndarray, bucket: int | None, value: float) -> np.ndarray:
    rows = np.full((bucket or len(x), *x.shape[1:]), value, x.dtype)
    rows[: len(x)] = x
    return rows


class NearestNeighbors:
    """Neighbours by our k-d tree; reverse lists and degrees by the graph that the layer makes of them."""

    def bag_sizes(self, case: Case) -> list[int]:
        return [len(x) for name, x in case.arrays.items() if name.startswith("out/coords_")]

    def answer(self, case: Case, bucket: int | None) -> Answer:
        values: dict[str, Any] = {}
        skipped = {}
        for name in [name.removeprefix("out/coords_") for name in case.arrays if name.startswith("out/coords_")]:
            coords = case.arrays[f"out/coords_{name}"]
            n = len(coords)
            skipped[f"out/coords_{name}"] = "the coordinates are given"
            neighbors = nearest_neighbors(coords, case.config["k"], name)
            graph = make_graph(_padded(neighbors, bucket, 0), jnp.arange(bucket or n) < n)
            source, first, degree = (np.asarray(x) for x in (graph.source, graph.first[:n], graph.degree[:n]))
            incoming = np.full((n, degree.max()), -1)
            for node in range(n):
                incoming[node, : degree[node]] = source[first[node] : first[node] + degree[node]]
            values[f"out/neighbours_{name}"] = neighbors[:, : min(case.config["k"], n - 1)]
            values[f"out/in_neighbours_{name}"] = incoming
            values[f"out/in_degree_{name}"] = degree
        return Answer(values, skipped)


class Convolution:
    """One layer on given edges; the loss is a product with a cotangent."""

    def bag_sizes(self, case: Case) -> list[int]:
        return [case.meta["inputs"]["x"][0]]

    def answer(self, case: Case, bucket: int | None) -> Answer:
        x, cotangent, state = case.input("x"), case.input("ct"), case.state_dict()
        state["aggr_module.t"] = np.full((1,), case.config["t"], np.float32)
        n = len(x)
        graph = make_graph(_padded(_lists(case.arrays["out/edge_index"], n), bucket, 0), jnp.arange(bucket or n) < n)
        module = GENConv(mlp_bias=case.config["bias"])
        names = {
            "temperature": ("aggr_module.t", lambda w: w),
            "expand/kernel": ("mlp.0.weight", np.transpose),
            "expand/bias": ("mlp.0.bias", lambda w: w),
            "norm/scale": ("mlp.1.weight", lambda w: w),
            "norm/bias": ("mlp.1.bias", lambda w: w),
            "contract/kernel": ("mlp.4.weight", np.transpose),
            "contract/bias": ("mlp.4.bias", lambda w: w),
        }
        params: dict[str, Any] = {}
        for path, (name, transform) in names.items():
            if name in state:
                group, _, leaf = path.rpartition("/")
                (params.setdefault(group, {}) if group else params)[leaf] = jnp.asarray(transform(state[name]))

        @jax.jit
        def run(params: Any, x: Any, graph: Any) -> Any:
            def loss(params: Any, x: Any) -> Any:
                y, sown = module.apply({"params": params}, x, graph, mutable="intermediates")
                return jnp.sum(y[:n] * cotangent), (y[:n], sown["intermediates"]["aggregate"][0][:n])

            return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)

        # The layer's contract: rows behind the nodes are finite.
        (loss, (y, aggregate)), (grads, to_input) = run(params, _padded(x, bucket, 7.0), graph)
        values = {
            "loss": loss,
            "y": y,
            "agg": aggregate,
            "grad_x": to_input[:n],
            "grad_t": grads["temperature"],
        }
        flat = {
            name: transform(
                np.asarray(grads[path] if "/" not in path else grads[path.split("/")[0]][path.split("/")[1]])
            )
            for path, (name, transform) in names.items()
            if name in state
        }
        return Answer(
            {f"out/{key}": value for key, value in values.items()} | gradient_entries(flat),
            {"out/edge_index": "the edges are given"},
        )


def _lists(edges: np.ndarray, num_nodes: int) -> np.ndarray:
    """Edges [2, E] (source, target) -> the nodes [N, k] that each node sends to, -1 for none."""
    lists: list[list[int]] = [[] for _ in range(num_nodes)]
    for source, target in edges.T.tolist():
        lists[source].append(target)
    rows = np.full((num_nodes, max(1, *map(len, lists))), -1, np.int32)
    for row, targets in zip(rows, lists, strict=True):
        row[: len(targets)] = targets
    return rows


class Network:
    """A bag of one slide or of several, whose graph is built from their coordinates."""

    def bag_sizes(self, case: Case) -> list[int]:
        return [case.meta["inputs"]["x"][0]]

    def answer(self, case: Case, bucket: int | None) -> Answer:
        config, x = case.config, case.input("x")
        n, num_outputs = len(x), config["n_classes"]
        neighbors = _graph_of_slides(case.arrays["out/coords"], config.get("slides", [n]))
        bag = Bag(
            features=jnp.asarray(_padded(x, bucket, np.nan)),
            mask=jnp.arange(bucket or n) < n,
            neighbors=jnp.asarray(_padded(neighbors, bucket, 0)),
        )
        variant = "patch_gcn_pyg1" if "layers.0.conv.t" in case.meta["params"] else "patch_gcn"
        convolutions = {name.split(".")[1] for name in case.meta["params"] if name.startswith("layers.")}
        module = aggregators.create(
            "patch_gcn",
            num_outputs,
            hidden_dim=config["hidden_dim"],
            num_convolutions=len(convolutions),
            mlp_bias=config["genconv_bias"],
        )
        params = import_state_dict(module, case.state_dict(), variant)
        survival = "censored" in config
        task = classification_task("bce_logits", num_outputs)

        @jax.jit
        def run(params: Any, bag: Bag) -> Any:
            def loss(params: Any) -> Any:
                prediction, sown = module.apply({"params": params}, bag, mutable="intermediates")
                if survival:
                    value = _survival_loss(prediction.logits, config["label"], config["censored"], config["alpha"])
                else:
                    one_hot = class_targets(task, np.arange(num_outputs) == config["label"], 1)
                    value = task.loss(jax.tree.map(lambda leaf: leaf[None], prediction), one_hot, jnp.ones(1))
                return value, (prediction, sown["intermediates"]["nodes"])

            return jax.value_and_grad(loss, has_aux=True)(params)

        (loss, (prediction, nodes)), grads = run(params, bag)
        hazards = jax.nn.sigmoid(prediction.logits)
        survival_curve = jnp.cumprod(1.0 - hazards)
        values = {
            "loss": loss,
            "logits": prediction.logits,
            "prob": jax.nn.softmax(prediction.logits),
            "A_raw": prediction.scores[:n],
            "A": prediction.attention[:n],
            "bag": prediction.embedding,
            "hazards": hazards,
            "survival": survival_curve,
            "risk": -jnp.sum(survival_curve),
            "coords": case.arrays["out/coords"],
            "edge_index": _edges(neighbors),
        }
        for depth, h in enumerate(nodes):
            values |= {f"h{depth}": h[:n], f"h{depth}_norm": jnp.linalg.norm(h[:n], axis=-1)}
        return Answer(
            {f"out/{key}": value for key, value in values.items()}
            | gradient_entries(export_state_dict(module, grads, variant)),
            {"out/coords": "the coordinates are given"},
        )


def _graph_of_slides(coords: np.ndarray, sizes: list[int]) -> np.ndarray:
    k = 8
    stops = np.cumsum(sizes)
    parts = []
    for number, (size, stop) in enumerate(zip(sizes, stops, strict=True)):
        own = nearest_neighbors(coords[stop - size : stop], k, f"slide {number}")
        parts.append(np.where(own >= 0, own + stop - size, -1))
    return np.concatenate(parts)


def _edges(neighbors: np.ndarray) -> np.ndarray:
    """Neighbour lists [N, k] -> edges [2, E] (source, target)."""
    source = np.repeat(np.arange(len(neighbors)), neighbors.shape[1])
    target = neighbors.ravel()
    return np.stack([source, target])[:, target >= 0]


def _survival_loss(logits: jax.Array, label: int, censored: float, alpha: float) -> jax.Array:
    """Negative log likelihood of discrete hazards: of the event's bin, or of surviving it where censored."""
    hazards = jax.nn.sigmoid(logits)
    survival = jnp.concatenate([jnp.ones(1), jnp.cumprod(1.0 - hazards)])

    def log(value: jax.Array) -> jax.Array:
        return jnp.log(jnp.maximum(value, LOG_CLIP))

    event = -(1.0 - censored) * (log(survival[label]) + log(hazards[label]))
    return (1.0 - alpha) * (event - censored * log(survival[label + 1])) + alpha * event


ADAPTERS = {
    ("patchgcn", "graph"): NearestNeighbors(),
    ("patchgcn", "genconv"): Convolution(),
    **{("patchgcn", variant): Network() for variant in ("small", "small_bias", "two_slides", "real", "pathgene")},
}
