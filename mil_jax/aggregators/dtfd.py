"""DTFD-MIL, double-tier feature distillation (Zhang et al., CVPR 2022): attention MIL on pseudo-bags, then on what they distil.

x [N, D] -> h = relu(x W) -> tier 1: gated attention pooling and a classifier in each of G random groups of the bag. A class
activation gives every instance a probability; by it a few instances of each group (or its pooled feature) go on, without gradient,
to tier 2, a second gated attention pooling that makes the prediction. Trained by `strategies/dtfd.py`. Differences to the reference:
instances are ranked by a form of the probability that has no ties in float32, and no module is looped over groups.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mil_jax.aggregators import checks
from mil_jax.aggregators.base import Aggregator
from mil_jax.bags import Bag, Prediction
from mil_jax.errors import ConfigError
from mil_jax.layers import masked
from mil_jax.layers.attention_pool import attention_pool, attention_scores
from mil_jax.layers.dropout import draw_key, dropout, hyper
from mil_jax.layers.initializers import KERNEL_INITIALIZERS, Affine, AffineParameters, ranked_product
from mil_jax.layers.topk import random_ranks, top_k
from mil_jax.types import Array, PyTree

VARIANTS: dict[str, dict[str, Any]] = {"dtfd": {}}
DISTILLATIONS = ("max", "max_min", "max_attention", "pooled")
LARGEST_DIFFERENCE = 80.0  # of two class activations; exp of more overflows


class Distilled(NamedTuple):
    """Rows that tier 2 reads: features [P, K, d], for each of P partitions; real [P, K], whether there is such a row."""

    features: Array
    real: Array


class GatedAttention(NamedTuple):
    """Layers of a gated attention: v, u [d, Da], w [Da, 1]."""

    v: Affine
    u: Affine
    w: Affine

    def scores(self, h: Array) -> Array:
        """h [..., d] -> [...], float32."""
        # The softmax cancels the last bias: its gradient is 0, and rounding noise in it would be blown up by Adam.
        w = self.w._replace(bias=jax.lax.stop_gradient(self.w.bias))
        return attention_scores(h, self.v, w, self.u)


class DTFD(Aggregator):
    """Two tiers of gated attention pooling; for tasks with cross entropy.

    num_outputs: number of logits C, at least 2; instances are ranked by the probability of the LAST class, whatever the label.
    feature_dim: width d of the layer D -> d without bias. num_residual: residual blocks behind it.
    attention_dim: hidden width of both attentions.
    num_groups: G, the pseudo-bags that a bag is split into at random, anew in every step.
    distillation: what a group hands on: "pooled" (AFS: its pooled feature), "max" (MaxS: the instances of the largest probability),
        "max_min" (MaxMinS: and those of the smallest), "max_attention" (MAS: those of the largest attention).
    instances_per_group: k of them; the reference's total_instance // numGroup. A smaller group hands on what it has.
    num_partitions: random partitions at evaluation, whose probabilities are averaged.
    feature_dropout: behind the feature layers. dropout: in front of the classifiers of both tiers.
    joint: tier 1 learns from tier 2, too, through what it hands on: one loss, tier1_weight L1 + (1 - tier1_weight) L2, and one gradient to
        clip. Not the reference's: MIL-Lab trains so with 0.3 (0.5 with "pooled"), MHIM-MIL's copy with 0.
    initializer: "torch" (the reference), "xavier_normal" (its copies), "kaiming_uniform" or "orthogonal".

    Prediction: attention, scores [N]: of tier 1 over the whole bag. embedding [d], of tier 2. aux: "group_logits" [P, G, C] of tier 1 and
    "partition_logits" [P, C] of tier 2, for P partitions: one in training; "partition_embedding" [P, d], what its classifier reads. Sown
    in "intermediates": "group_attention" [P, N] (over the instance's own group), "activations" [P, N, C], "group_features" [P, G, d],
    "distilled" [P, K, d], "real" and "distilled_attention" [P, K], and where instances are selected their numbers "selected" [P, K].
    Raises ConfigError for settings that cannot work.
    """

    feature_dim: int = 512
    num_residual: int = 0
    attention_dim: int = 128
    num_groups: int = 4
    distillation: str = "pooled"
    instances_per_group: int = 1
    num_partitions: int = 1
    feature_dropout: float = 0.0
    dropout: float = 0.0
    joint: bool = False
    tier1_weight: float = 0.3
    initializer: str = "torch"

    variants = VARIANTS
    numeric_settings: ClassVar[tuple[str, ...]] = ("feature_dropout", "dropout", "tier1_weight")
    strategy: ClassVar[str] = "dtfd"

    def __post_init__(self) -> None:
        for name in ("feature_dim", "attention_dim", "num_groups", "instances_per_group", "num_partitions"):
            checks.positive(name, getattr(self, name))
        if self.num_residual != 0:
            checks.positive("num_residual", self.num_residual)
        checks.one_of("distillation", self.distillation, DISTILLATIONS)
        checks.rate("feature_dropout", self.feature_dropout)
        checks.rate("dropout", self.dropout)
        checks.share("tier1_weight", self.tier1_weight)
        checks.one_of("initializer", self.initializer, KERNEL_INITIALIZERS)
        if self.num_outputs < 2:
            raise ConfigError(
                "DTFD compares the probabilities of at least two classes, so one output is too few: "
                "set task.loss_name=cross_entropy"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, bag: Bag, train: bool = False) -> Prediction:
        if bag.features.ndim != 2:
            raise ConfigError(
                f"DTFD reads feature vectors [N, D], but the bag has the shape {list(bag.features.shape)}"
            )
        h = self._embed(masked.zero_padding(bag.features, bag.mask), train)  # [N, d]
        tier1 = _GatedAttention(self.attention_dim, self.initializer, name="attention")(self.feature_dim)
        classifier = AffineParameters(self.num_outputs, self.initializer, name="classifier")(self.feature_dim)
        scores = tier1.scores(h)  # [N]
        groups = group_numbers(self._ranks(bag, train), bag.num_instances, self.num_groups)  # [P, N]
        members = (groups[:, None] == jnp.arange(self.num_groups)[:, None]) & bag.mask  # [P, G, N]
        attention = masked.softmax(scores, members)  # [P, G, N]
        pooled = attention_pool(attention, h)  # [P, G, d]
        group_logits = classifier(self._dropped(pooled, train, 1))  # [P, G, C]
        self.sow("intermediates", "group_attention", jnp.sum(attention, axis=1))
        self.sow("intermediates", "group_features", pooled)
        handed_on = h, pooled, scores, attention, classifier.kernel
        if not self.joint:  # tier 2 learns from what tier 1 hands on, and tier 1 does not learn from tier 2
            handed_on = jax.lax.stop_gradient(handed_on)
        rows = self._distilled(*handed_on, members)
        logits, read, embedding = self._tier2(rows, train)  # [P, C], [P, d], [P, d]
        return Prediction(
            logits=_log_mean(logits),
            attention=masked.softmax(scores, bag.mask),
            scores=masked.hide_padding(scores, bag.mask),
            embedding=jnp.mean(embedding, axis=0),
            aux={"group_logits": group_logits, "partition_logits": logits, "partition_embedding": read},
        )

    def _embed(self, x: Array, train: bool) -> Array:
        h = _DimReduction(self.feature_dim, self.num_residual, self.initializer, name="dim_reduction")(x)
        key = draw_key(self, "feature_dropout", self.feature_dropout, train, 0)
        return h if key is None else dropout(h, hyper(self, "feature_dropout", self.feature_dropout), key)

    def _dropped(self, x: Array, train: bool, number: int) -> Array:
        key = draw_key(self, "dropout", self.dropout, train, number)
        return x if key is None else dropout(x, hyper(self, "dropout", self.dropout), key)

    def _ranks(self, bag: Bag, train: bool) -> Array:
        """The place of each instance in a random order, for each partition: int32 [P, N]. At evaluation always the same orders."""
        if train:
            return random_ranks(self.make_rng("dropout"), bag.mask)[None]
        keys = jax.random.split(jax.random.key(0), self.num_partitions)
        return jax.vmap(random_ranks, in_axes=(0, None))(keys, bag.mask)

    def _distilled(
        self, h: Array, pooled: Array, scores: Array, attention: Array, kernel: Array, members: Array
    ) -> Distilled:
        """What the groups hand on, group by group; of "max_min" the largest of a group, best first, then the smallest, worst last."""
        # The attention weight is inside the activation; the classifier's bias is not.
        activations = jnp.sum(attention, axis=1)[..., None] * ranked_product(h, kernel)
        self.sow("intermediates", "activations", activations)
        if self.distillation == "pooled":
            return Distilled(pooled.astype(h.dtype), jnp.ones(pooled.shape[:2], bool))
        k, count = self.instances_per_group, jnp.sum(members, axis=-1, keepdims=True)  # [P, G, 1]
        order = scores if self.distillation == "max_attention" else last_class_order(activations)[:, None]
        chosen, real = top_k(order, members, k), jnp.arange(k) < count  # [P, G, k]
        if self.distillation == "max_min":
            smallest = jnp.flip(top_k(-order, members, k), axis=-1)
            chosen = jnp.concatenate([chosen, smallest], axis=-1)
            real = jnp.concatenate([real, jnp.flip(real, axis=-1)], axis=-1)
        chosen = chosen.reshape(len(chosen), -1)  # [P, K]
        self.sow("intermediates", "selected", chosen)
        return Distilled(h[chosen], real.reshape(chosen.shape))

    @nn.nowrap
    def bag_logits(self, prediction: Prediction) -> Array:
        """Of tier 2, [P, C]."""
        logits: Array = prediction.aux["partition_logits"]
        return logits

    @nn.nowrap
    def with_bag_logits(self, prediction: Prediction, bag_logits: Array) -> Prediction:
        """The prediction for one bag with other logits [P, C] in place of those of tier 2's classifier."""
        return prediction.replace(logits=_log_mean(bag_logits), aux={**prediction.aux, "partition_logits": bag_logits})

    def _tier2(self, rows: Distilled, train: bool) -> tuple[Array, Array, Array]:
        layers = _Tier2(self.num_outputs, self.attention_dim, self.initializer, name="tier2")
        attention_layers, classifier = layers(self.feature_dim)
        attention = masked.softmax(attention_layers.scores(rows.features), rows.real)  # [P, K]
        embedding = jnp.einsum("pk,pkd->pd", attention, rows.features, preferred_element_type=jnp.float32)
        self.sow("intermediates", "distilled", rows.features)
        self.sow("intermediates", "real", rows.real)
        self.sow("intermediates", "distilled_attention", attention)
        read = self._dropped(embedding, train, 2)
        return classifier(read), read, embedding

    @nn.nowrap
    def state_dict_map(self, variant: str) -> dict[str, tuple[str, str]]:
        """Published parameter name -> (path of the parameter, transform), for `interop.torch_checkpoints`.

        The reference's checkpoint is a dict of four state dicts; a name is that of the entry, a dot, and the name in it.
        Raises ConfigError for an unknown variant.
        """
        checks.one_of("variant", variant, VARIANTS)
        layers = {
            "dim_reduction/feature": "dim_reduction.fc1",
            "attention/v": "attention.attention_V.0",
            "attention/u": "attention.attention_U.0",
            "attention/w": "attention.attention_weights",
            "classifier": "classifier.fc",
            "tier2/attention/v": "att_classifier.attention.attention_V.0",
            "tier2/attention/u": "att_classifier.attention.attention_U.0",
            "tier2/attention/w": "att_classifier.attention.attention_weights",
            "tier2/classifier": "att_classifier.classifier.fc",
        }
        for block in range(self.num_residual):
            layers[f"dim_reduction/residual_{block}_in"] = f"dim_reduction.resBlocks.{block}.block.0"
            layers[f"dim_reduction/residual_{block}_out"] = f"dim_reduction.resBlocks.{block}.block.2"
        mapping = {}
        for layer, published in layers.items():
            mapping[f"{published}.weight"] = (f"{layer}/kernel", "linear")
            if not layer.startswith("dim_reduction/"):
                mapping[f"{published}.bias"] = (f"{layer}/bias", "same")
        return mapping

    @nn.nowrap
    def feature_shape(self, params: PyTree) -> tuple[int, ...]:
        """Shape of the instances that `params` fit."""
        return (params["dim_reduction"]["feature"]["kernel"].shape[0],)


class _DimReduction(nn.Module):
    feature_dim: int
    num_residual: int
    initializer: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [N, D] -> [N, d]; padding stays 0."""

        def layer(name: str) -> AffineParameters:
            return AffineParameters(self.feature_dim, self.initializer, use_bias=False, name=name)

        h = jax.nn.relu(layer("feature")(x.shape[-1])(x))
        for block in range(self.num_residual):
            inner = jax.nn.relu(layer(f"residual_{block}_in")(self.feature_dim)(h))
            h = h + jax.nn.relu(layer(f"residual_{block}_out")(self.feature_dim)(inner))
        return h


class _GatedAttention(nn.Module):
    attention_dim: int
    initializer: str

    @nn.compact
    def __call__(self, width: int) -> GatedAttention:
        v, u = (AffineParameters(self.attention_dim, self.initializer, name=name)(width) for name in ("v", "u"))
        return GatedAttention(v, u, AffineParameters(1, self.initializer, name="w")(self.attention_dim))


class _Tier2(nn.Module):
    num_outputs: int
    attention_dim: int
    initializer: str

    @nn.compact
    def __call__(self, width: int) -> tuple[GatedAttention, Affine]:
        attention = _GatedAttention(self.attention_dim, self.initializer, name="attention")(width)
        return attention, AffineParameters(self.num_outputs, self.initializer, name="classifier")(width)


def group_numbers(ranks: Array, num_instances: Array, num_groups: int) -> Array:
    """The group of the instance at each place of an order, as numpy's `array_split` cuts it: the first n mod G groups hold
    n // G + 1 instances, the others n // G. ranks: int32, of real instances below num_instances.
    """
    size, longer = num_instances // num_groups, num_instances % num_groups
    in_longer = longer * (size + 1)
    return jnp.where(ranks < in_longer, ranks // (size + 1), longer + (ranks - in_longer) // jnp.maximum(size, 1))


def last_class_order(activations: Array) -> Array:
    """Orders instances as the softmax probability of the last class does: activations [..., C] -> [...].

    p = 1 / (C + sum_c expm1(a_c - a_last)), and minus that sum is returned: attention weights near 0 make all p equal in float32.
    """
    differences = jnp.minimum(activations[..., :-1] - activations[..., -1:], LARGEST_DIFFERENCE)
    return -jnp.sum(jnp.expm1(differences), axis=-1)


def _log_mean(logits: Array) -> Array:
    """Logits [P, C] whose softmax is the mean of the softmaxes: [C]."""
    if len(logits) == 1:
        return logits[0]
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return jax.nn.logsumexp(log_p, axis=0) - jnp.log(len(logits))


AGGREGATORS = {"dtfd": DTFD}
