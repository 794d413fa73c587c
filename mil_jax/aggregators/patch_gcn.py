"""Patch-GCN (Chen et al. 2021): the tiles of a slide as nodes of a graph, three graph convolutions, gated attention over all depths.

h0 = relu(W x + b); h1 = GEN_0(h0); h_{l+1} = h_l + relu(LN(GEN_l(h_l))); P = relu(W [h0 | h1 | h2 | h3] + b); z = sum of P by gated
attention; logits = W relu(W z + b). The graph is `Bag.neighbors`: a tile sends to those that it lists. As in the reference, the
first convolution stands bare: no norm, no activation, no residual.
"""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mil_jax.aggregators import checks
from mil_jax.aggregators.base import Aggregator
from mil_jax.bags import Bag, Prediction
from mil_jax.errors import ConfigError
from mil_jax.layers import masked
from mil_jax.layers.attention_pool import attention_pool, attention_scores
from mil_jax.layers.coarse_graph import cell_means, make_cells, to_tiles
from mil_jax.layers.dropout import draw_key, dropout, hyper
from mil_jax.layers.feature_clusters import feature_clusters, within
from mil_jax.layers.graph_conv import GENConv, Graph, make_graph
from mil_jax.layers.initializers import Affine, AffineParameters
from mil_jax.types import Array, PyTree

BLOCKS = ("res", "res+")
READOUTS = ("attention", "mean", "max")
COARSE_GRAPHS = ("none", "parallel", "sequential")

VARIANTS: dict[str, dict[str, Any]] = {
    "patch_gcn": {},
    "patch_gcn_pyg1": {"mlp_bias": True},  # with PyG 1.6.3, as in the published experiments
}
_TEMPERATURE = {"patch_gcn": "aggr_module.t", "patch_gcn_pyg1": "t"}
_PUBLISHED = {
    "feature": "fc.0",
    "context": "path_phi.0",
    "attention_v": "path_attention_head.attention_a.0",
    "attention_u": "path_attention_head.attention_b.0",
    "attention_w": "path_attention_head.attention_c",
    "bag": "path_rho.0",
    "classifier": "classifier",
}


class PatchGCN(Aggregator):
    """Graph convolutions and a read-out over all their depths.

    hidden_dim: width d of the nodes; the read-out is (num_convolutions + 1) d wide.
    num_convolutions: graph convolutions, the first of them bare; the reference's `num_layers` - 1.
    block: "res" (convolution, norm, activation, sum, dropout) or "res+" (norm, activation, dropout, convolution, sum).
    mlp_bias: biases in the convolutions.
    readout: "attention" (gated), "mean" or "max" over the tiles.
    coarse_graph: not the reference's; "none", or a graph of cells of cell_tiles x cell_tiles tiles, with as many convolutions of its own
        on the cells' means of h0. What it ends with is one more depth beside the others ("parallel") or is added to h0 ("sequential").
    feature_clusters: not the reference's; 0, or k-means clusters of each bag's features, between which edges are cut.
    dropout: after the feature layer. conv_dropout: in each block. context_dropout: after the layer over all depths.
    attention_dropout: of both branches of the attention.

    The rates are numeric: the collection "hyper" may hold other values. The prediction's `embedding` is [depths d], with num_convolutions
    + 1 depths, or one more. The nodes after the feature layer and each convolution are sown as "nodes" in "intermediates".
    Raises ConfigError for settings that cannot work, and for a bag without a graph.
    """

    hidden_dim: int = 128
    num_convolutions: int = 3
    block: str = "res"
    mlp_bias: bool = False
    readout: str = "attention"
    coarse_graph: str = "none"
    cell_tiles: int = 4
    feature_clusters: int = 0
    dropout: float = 0.25
    conv_dropout: float = 0.1
    context_dropout: float = 0.25
    attention_dropout: float = 0.25

    variants = VARIANTS
    numeric_settings: ClassVar[tuple[str, ...]] = ("dropout", "conv_dropout", "context_dropout", "attention_dropout")

    def __post_init__(self) -> None:
        checks.positive("hidden_dim", self.hidden_dim)
        checks.positive("num_convolutions", self.num_convolutions)
        checks.one_of("block", self.block, BLOCKS)
        checks.one_of("readout", self.readout, READOUTS)
        checks.one_of("coarse_graph", self.coarse_graph, COARSE_GRAPHS)
        checks.positive("cell_tiles", self.cell_tiles)
        if self.feature_clusters:
            checks.positive("feature_clusters", self.feature_clusters)
        for name in self.numeric_settings:
            checks.rate(name, getattr(self, name))
        super().__post_init__()

    @nn.compact
    def __call__(self, bag: Bag, train: bool = False) -> Prediction:
        if bag.features.ndim != 2:
            raise ConfigError(
                f"patch_gcn reads feature vectors [N, D], but the bag has the shape {list(bag.features.shape)}"
            )
        if bag.neighbors is None:
            raise ConfigError(
                "patch_gcn reads a graph, and the bags have none: set data.neighbors=8, for shards that were written with "
                "python -m data_prep.shard --neighbors 8"
            )
        whole = graph = make_graph(bag.neighbors, bag.mask)
        if self.feature_clusters:
            cluster = feature_clusters(bag.features, bag.mask, self.feature_clusters)
            graph = make_graph(within(bag.neighbors, cluster), bag.mask)
        x = masked.zero_padding(bag.features, bag.mask)
        h = self._dropped(jax.nn.relu(self._affine("feature", self.hidden_dim, x.shape[-1])(x)), "dropout", 0, train)
        coarse = [] if self.coarse_graph == "none" else [self._coarse(h, bag, whole, train)]
        if self.coarse_graph == "sequential":
            h = h + coarse.pop()
        depths = [h]
        for number in range(self.num_convolutions):
            h = self._block("", number, h, graph, train)
            depths.append(h)
        depths += coarse
        for nodes in depths:
            self.sow("intermediates", "nodes", nodes)
        width = len(depths) * self.hidden_dim
        context = jax.nn.relu(self._affine("context", width, width)(jnp.concatenate(depths, axis=-1)))  # [N, L]
        context = self._dropped(context, "context_dropout", 1, train)
        attention, scores, pooled = self._read_out(context, bag.mask, train)
        embedding = jax.nn.relu(self._affine("bag", width, width)(pooled))
        logits = self._affine("classifier", self.num_outputs, width)(embedding)
        return Prediction(logits, attention, scores, embedding)

    def _coarse(self, h: Array, bag: Bag, graph: Graph, train: bool) -> Array:
        """What the graph of cells makes of h [N, d], for each tile."""
        if bag.coords is None:
            raise ConfigError("aggregator.coarse_graph needs coordinates, and the bags have none: set it to 'none'")
        cells = make_cells(bag.coords, bag.slide_index, graph, bag.mask, self.cell_tiles)
        beside = make_graph(cells.neighbors, cells.real)
        h = cell_means(h, cells, bag.mask)
        for number in range(self.num_convolutions):
            h = self._block("coarse_", number, h, beside, train)
        return to_tiles(h, cells, bag.mask)

    def _block(self, prefix: str, number: int, h: Array, graph: Graph, train: bool) -> Array:
        convolution = GENConv(self.mlp_bias, name=f"{prefix}conv_{number}")
        if number == 0:
            return convolution(h, graph)
        norm = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=f"{prefix}norm_{number}")
        draw = 2 + number + (self.num_convolutions if prefix else 0)
        if self.block == "res":
            h = h + jax.nn.relu(norm(convolution(h, graph)))
            return self._dropped(h, "conv_dropout", draw, train)
        inner = self._dropped(jax.nn.relu(norm(h)), "conv_dropout", draw, train)
        return h + convolution(inner, graph)

    def _read_out(self, context: Array, mask: Array, train: bool) -> tuple[Array | None, Array | None, Array]:
        """Attention and scores [N], where the read-out has them, and the nodes' summary [L]."""
        if self.readout == "mean":
            return None, None, masked.mean(context, mask)
        if self.readout == "max":
            # Activations are not negative, so that a bag without instances gives what its zeros do.
            return None, None, jnp.max(jnp.where(mask[:, None], context, 0.0), axis=0)
        width = context.shape[-1]
        scores = attention_scores(
            context,
            self._affine("attention_v", width, width),
            self._affine("attention_w", 1, width),
            self._affine("attention_u", width, width),
            dropout_rate=hyper(self, "attention_dropout", self.attention_dropout),
            dropout_key=draw_key(self, "attention_dropout", self.attention_dropout, train, 2),
        )
        attention = masked.softmax(scores, mask)
        return attention, masked.hide_padding(scores, mask), attention_pool(attention, context)

    def _dropped(self, x: Array, name: str, number: int, train: bool) -> Array:
        rate = getattr(self, name)
        key = draw_key(self, name, rate, train, number)
        return x if key is None else dropout(x, hyper(self, name, rate), key)

    def _affine(self, name: str, outputs: int, inputs: int) -> Affine:
        return AffineParameters(outputs, name=name)(inputs)

    @nn.nowrap
    def state_dict_map(self, variant: str) -> dict[str, tuple[str, str]]:
        """Published parameter name -> (path of the parameter, transform), for `interop.torch_checkpoints`.

        Raises ConfigError for an unknown variant, and with a coarse graph.
        """
        checks.one_of("variant", variant, VARIANTS)
        if self.coarse_graph != "none":
            raise ConfigError(
                f"there are no published weights with aggregator.coarse_graph={self.coarse_graph!r}: set it to 'none' to import or export"
            )
        mapping = {}

        def linear(published: str, layer: str, bias: bool = True) -> None:
            mapping[f"{published}.weight"] = (f"{layer}/kernel", "linear")
            if bias:
                mapping[f"{published}.bias"] = (f"{layer}/bias", "same")

        def layer_norm(published: str, layer: str) -> None:
            mapping[f"{published}.weight"] = (f"{layer}/scale", "same")
            mapping[f"{published}.bias"] = (f"{layer}/bias", "same")

        for layer, published in _PUBLISHED.items():
            if self.readout == "attention" or not layer.startswith("attention"):
                linear(published, layer)
        for number in range(self.num_convolutions):
            conv, layer = f"layers.{number}.conv", f"conv_{number}"
            mapping[f"{conv}.{_TEMPERATURE[variant]}"] = (f"{layer}/temperature", "same")
            linear(f"{conv}.mlp.0", f"{layer}/expand", self.mlp_bias)
            layer_norm(f"{conv}.mlp.1", f"{layer}/norm")
            linear(f"{conv}.mlp.4", f"{layer}/contract", self.mlp_bias)
            if number:
                layer_norm(f"layers.{number}.norm", f"norm_{number}")
        return mapping

    @nn.nowrap
    def unused_entries(self, variant: str) -> dict[str, tuple[int, ...]]:
        """The norm of the first convolution, which the reference has and never uses."""
        checks.one_of("variant", variant, VARIANTS)
        return {f"layers.0.norm.{name}": (self.hidden_dim,) for name in ("weight", "bias")}

    @nn.nowrap
    def feature_shape(self, params: PyTree) -> tuple[int, ...]:
        return (params["feature"]["kernel"].shape[0],)


AGGREGATORS = {"patch_gcn": PatchGCN}
