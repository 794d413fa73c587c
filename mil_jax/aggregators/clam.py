"""CLAM, clustering-constrained attention MIL, with one attention branch (SB) or one per class (MB) (Lu et al. 2021).

x [N, D] -> h = relu(x W1 + b1) -> scores a [K, N] by (gated) attention -> M = softmax(a) h [K, L] -> logits. In training the k most
and k least attended instances of the true class are labelled 1 and 0 for an instance classifier of that class. Differences to
the reference: instances are chosen by raw scores (the softmax underflows to ties), a bag of fewer than k instances uses all
of them (the reference stops), and only the chosen rows are computed with a gradient of the instance loss.
"""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from mil_jax.aggregators import checks
from mil_jax.aggregators.base import Aggregator
from mil_jax.bags import Bag, Prediction
from mil_jax.errors import ConfigError
from mil_jax.layers import losses, masked
from mil_jax.layers.activations import ACTIVATIONS
from mil_jax.layers.attention_pool import attention_pool, branch_scores
from mil_jax.layers.dropout import draw_key, dropout_factors, hyper
from mil_jax.layers.initializers import KERNEL_INITIALIZERS, Affine, AffineParameters
from mil_jax.layers.topk import top_k
from mil_jax.types import Array, PyTree

SB_VARIANTS: dict[str, dict[str, Any]] = {
    "clam_sb": {},
    "mhim_clam_sb": {"initializer": "xavier_normal", "bag_weight": 1.0, "instance_weight": 0.0},
    "milab_clam_sb": {
        "dropout": 0.0,
        "attention_dim": 384,
        "instance_loss": "cross_entropy",
        "initializer": "kaiming_uniform",
    },
    "pathgene_clam_sb": {
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "instance_loss": "none",
        "initializer": "xavier_normal",
    },
}
MB_VARIANTS: dict[str, dict[str, Any]] = {"clam_mb": {}}

_WITHOUT_CLASSES = ("regression", "survival")  # tasks whose targets may have the shape of several labels
_NEEDS_CLASSES = "the instance loss of CLAM needs classes as targets; set aggregator.instance_loss='none'"
_INSTANCE_LOSSES = {"svm": losses.smooth_top1_svm, "cross_entropy": losses.cross_entropy}


class ClamSB(Aggregator):
    """One attention branch, one linear bag classifier over all classes.

    num_outputs: number of logits C, and of instance classifiers.
    pre_feature_dim: width of a further layer in front of the feature layer (PathGene, for D other than 1,024); 0 = none.
    feature_dim, feature_activation ("relu" or "gelu"): the layer D -> feature_dim; `dropout` follows it in training.
    attention_dim: hidden width; 256 is the reference's size "small", 384 "big".
    gated: gated attention, else plain tanh. attention_dropout: dropout of each attention branch.
    num_sampled: k, the instances per pseudo label (`k_sample` or `B`); a bag of n < k instances uses n.
    subtyping: the most attended instances are also labelled 0 for the other classes, and the loss is a mean over classes.
    instance_loss: "svm" (smooth top-1), "cross_entropy", or "none" for the bag loss alone.
    bag_loss: "task" (the task's own) or "svm" (smooth top-1 over the classes).
    bag_weight, instance_weight: loss = bag_weight * bag loss + instance_weight * instance loss; None = 1 - bag_weight.
    initializer: "torch" (present CLAM), "xavier_normal" (older CLAM), "kaiming_uniform" or "orthogonal".

    Prediction: attention, scores [N], embedding [L] (MB: [C, N], [C, L]). aux: "top" and "bottom", the numbers of the k most and
    least attended instances [K, k], of which the first min(k, n) count; "top_logits" and "bottom_logits", what each class's
    instance classifier says about them [C, k, 2]; "num_instances"; "bag_weight". Sown in "intermediates": "instance_features" [N, L] and
    "instance_logits" [N, C, 2]. Raises ConfigError for settings that cannot work.
    """

    pre_feature_dim: int = 0
    feature_dim: int = 512
    feature_activation: str = "relu"
    dropout: float = 0.25
    attention_dim: int = 256
    gated: bool = True
    attention_dropout: float = 0.25
    num_sampled: int = 8
    subtyping: bool = False
    instance_loss: str = "svm"
    bag_loss: str = "task"
    bag_weight: float = 0.7
    instance_weight: float | None = None
    initializer: str = "torch"

    variants = SB_VARIANTS
    numeric_settings: ClassVar[tuple[str, ...]] = ("dropout", "attention_dropout", "bag_weight")
    branch_per_class: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("feature_dim", "attention_dim", "num_sampled"):
            checks.positive(name, getattr(self, name))
        if self.pre_feature_dim != 0:
            checks.positive("pre_feature_dim", self.pre_feature_dim)
        checks.one_of("feature_activation", self.feature_activation, ("relu", "gelu"))
        checks.rate("dropout", self.dropout)
        checks.rate("attention_dropout", self.attention_dropout)
        checks.one_of("instance_loss", self.instance_loss, ("svm", "cross_entropy", "none"))
        checks.one_of("bag_loss", self.bag_loss, ("task", "svm"))
        checks.one_of("initializer", self.initializer, KERNEL_INITIALIZERS)
        checks.not_negative("bag_weight", self.bag_weight)
        if self.instance_weight is not None:
            checks.not_negative("instance_weight", self.instance_weight)
        elif self.bag_weight > 1:
            raise ConfigError(
                f"aggregator.bag_weight={self.bag_weight} leaves a negative weight for the instance loss; "
                "choose at most 1, or set aggregator.instance_weight"
            )
        if self.bag_loss == "svm" and self.num_outputs < 2:
            raise ConfigError("aggregator.bag_loss='svm' compares classes and needs at least two outputs, not 1")
        super().__post_init__()

    @nn.compact
    def __call__(self, bag: Bag, train: bool = False) -> Prediction:
        if bag.features.ndim != 2:
            raise ConfigError(
                f"CLAM reads feature vectors [N, D], but the bag has the shape {list(bag.features.shape)}"
            )
        x = masked.zero_padding(bag.features, bag.mask)  # [N, D]
        layers = self._feature_layers(x.shape[-1])
        factors = self._dropout_factors(len(x), train)
        h = self._embed(x, layers, factors)  # [N, L]
        self.sow("intermediates", "instance_features", h)
        scores = self._scores(h, train)  # [K, N]
        attention = masked.softmax(scores, bag.mask)
        embedding = attention_pool(attention, h)  # [K, L]
        logits = self._bag_logits(embedding)
        aux = self._pseudo_labelled(x, h, scores, bag.mask, layers, factors)
        aux["bag_weight"] = jnp.asarray(hyper(self, "bag_weight", self.bag_weight), jnp.float32)
        scores = masked.hide_padding(scores, bag.mask)
        if not self.branch_per_class:
            attention, scores, embedding = attention[0], scores[0], embedding[0]
        return Prediction(logits, attention, scores, embedding, aux=aux)

    def _layer(self, name: str, inputs: int, outputs: int) -> Affine:
        return AffineParameters(outputs, self.initializer, name=name)(inputs)

    def _feature_layers(self, width: int) -> list[Affine]:
        layers = []
        if self.pre_feature_dim:
            layers.append(self._layer("pre_feature", width, self.pre_feature_dim))
            width = self.pre_feature_dim
        return [*layers, self._layer("feature", width, self.feature_dim)]

    def _dropout_factors(self, num_instances: int, train: bool) -> Array | None:
        key = draw_key(self, "dropout", self.dropout, train, 0)
        if key is None:
            return None
        return dropout_factors(key, (num_instances, self.feature_dim), hyper(self, "dropout", self.dropout))

    def _embed(self, x: Array, layers: list[Affine], factors: Array | None) -> Array:
        for layer in layers:
            x = ACTIVATIONS[self.feature_activation](layer(x))
        return x if factors is None else x * factors.astype(x.dtype)

    def _scores(self, h: Array, train: bool) -> Array:
        return branch_scores(
            h,
            self._layer("attention_v", self.feature_dim, self.attention_dim),
            self._layer("attention_w", self.attention_dim, self.num_outputs if self.branch_per_class else 1),
            self._layer("attention_u", self.feature_dim, self.attention_dim) if self.gated else None,
            dropout_rate=hyper(self, "attention_dropout", self.attention_dropout),
            dropout_key=draw_key(self, "attention_dropout", self.attention_dropout, train, 1),
        ).T

    def _bag_logits(self, embedding: Array) -> Array:
        return self._layer("classifier", self.feature_dim, self.num_outputs)(embedding[0])

    def _pseudo_labelled(
        self,
        x: Array,
        h: Array,
        scores: Array,
        mask: Array,
        layers: list[Affine],
        factors: Array | None,
    ) -> dict[str, Array]:
        """What the instance loss needs, for every class; which of it counts depends on the label."""
        classifiers = [self._layer(f"instance_classifier_{c}", self.feature_dim, 2) for c in range(self.num_outputs)]
        kernels = jnp.stack([layer.kernel for layer in classifiers])  # [C, L, 2]
        biases = jnp.stack([layer.bias for layer in classifiers])  # type: ignore[misc]  # [C, 2]
        self.sow("intermediates", "instance_logits", jnp.einsum("nl,clt->nct", h, kernels) + biases)
        chosen = top_k(jnp.stack([scores, -scores]), mask, self.num_sampled)  # [2, K, k]
        # Recomputed from x: gathered from h, they would cost the backward pass a scatter into [N, L].
        rows = self._embed(x[chosen], layers, None if factors is None else factors[chosen])  # [2, K, k, L]
        rows = jnp.broadcast_to(rows, (2, self.num_outputs, *rows.shape[2:]))
        top_logits, bottom_logits = jnp.einsum("sckl,clt->sckt", rows, kernels) + biases[:, None]
        return {
            "num_instances": jnp.sum(mask, dtype=jnp.int32),
            "top": chosen[0],
            "bottom": chosen[1],
            "top_logits": top_logits,
            "bottom_logits": bottom_logits,
        }

    @nn.nowrap
    def training_loss(self, task: Any, predictions: Prediction, targets: Array, weights: Array) -> Array:
        """bag_weight * bag loss + instance_weight * instance loss over a batch of bags [B]; weights [B], 0 = no bag.

        With `instance_loss` "none" the bag loss alone.
        """
        bag_loss = self.bag_loss_value(task, predictions, targets, weights)
        if self.instance_loss == "none":
            return bag_loss
        if task.name in _WITHOUT_CLASSES:
            raise ConfigError(_NEEDS_CLASSES)
        bag_weight = predictions.aux["bag_weight"][0]
        instance_weight = 1.0 - bag_weight if self.instance_weight is None else self.instance_weight
        return bag_weight * bag_loss + instance_weight * self.instance_loss_value(predictions, targets, weights)

    @nn.nowrap
    def bag_loss_value(self, task: Any, predictions: Prediction, targets: Array, weights: Array) -> Array:
        """The task's loss, or the smooth top-1 SVM over the classes; a mean over bags."""
        if self.bag_loss == "task":
            return task.loss(predictions, targets, weights)
        if targets.ndim != 1:
            raise ConfigError("aggregator.bag_loss='svm' needs one class per bag; use 'task' for several labels")
        present = (weights > 0) & (targets >= 0)
        logits = jnp.where(present[:, None], predictions.logits.astype(jnp.float32), 0.0)
        return losses.mean_over_bags(losses.smooth_top1_svm(logits, jnp.maximum(targets, 0)), present, weights)

    @nn.nowrap
    def instance_loss_value(self, predictions: Prediction, targets: Array, weights: Array) -> Array:
        """The clustering loss, a mean over bags: pseudo labels of the bag's own classes, and with `subtyping` of the others."""
        inside, outside = _membership(targets, self.num_outputs)  # [B, C]
        present = (weights > 0) & jnp.any(inside | outside, axis=1)
        aux, row_loss = predictions.aux, _INSTANCE_LOSSES[self.instance_loss]
        selected = jnp.minimum(self.num_sampled, aux["num_instances"])  # [B]
        counts = jnp.arange(self.num_sampled) < selected[:, None]  # [B, k]

        def mean_loss(name: str, label: int) -> Array:
            logits = jnp.where(present[:, None, None, None], aux[name].astype(jnp.float32), 0.0)  # [B, C, k, 2]
            per_row = row_loss(logits, jnp.full(logits.shape[:-1], label))
            return jnp.sum(per_row * counts[:, None], axis=-1) / jnp.maximum(selected, 1)[:, None]  # [B, C]

        in_class = (mean_loss("top_logits", 1) + mean_loss("bottom_logits", 0)) / 2
        per_bag = jnp.sum(jnp.where(inside, in_class, 0.0), axis=1)
        if self.subtyping:
            per_bag += jnp.sum(jnp.where(outside, mean_loss("top_logits", 0), 0.0), axis=1)
            per_bag /= self.num_outputs
        return losses.mean_over_bags(per_bag, present, weights)

    @nn.nowrap
    def state_dict_map(self, variant: str) -> dict[str, tuple[str, str]]:
        """Published parameter name -> (path of the parameter, transform), for `interop.torch_checkpoints`.

        Raises ConfigError for an unknown variant, and for one of the other number of branches.
        """
        checks.one_of("variant", variant, self.variants)
        layers = self._published_body(variant)
        classifier = "classifier" if variant == "milab_clam_sb" else "classifiers"
        if self.branch_per_class:
            layers |= {f"classifier_{c}": f"{classifier}.{c}" for c in range(self.num_outputs)}
        else:
            layers["classifier"] = classifier
        layers |= {f"instance_classifier_{c}": f"instance_classifiers.{c}" for c in range(self.num_outputs)}
        mapping = {}
        for layer, published in layers.items():
            mapping[f"{published}.weight"] = (f"{layer}/kernel", "linear")
            mapping[f"{published}.bias"] = (f"{layer}/bias", "same")
        return mapping

    def _published_body(self, variant: str) -> dict[str, str]:
        """Layer -> published name, of the feature layers and the attention."""
        last = 3  # of the plain attention's Sequential; one less where it was built without dropout
        if variant == "milab_clam_sb":
            layers, attention = {"feature": "patch_embed.0"}, "global_attn"
        elif variant == "pathgene_clam_sb":
            names = ["pre_feature", "feature"] if self.pre_feature_dim else ["feature"]
            layers = {name: f"attention_net.{2 * place}" for place, name in enumerate(names)}
            attention, last = f"attention_net.{2 * len(names)}", 2
        else:
            layers, attention = {"feature": "attention_net.0"}, "attention_net.3"
        if not self.gated:
            return layers | {"attention_v": f"{attention}.module.0", "attention_w": f"{attention}.module.{last}"}
        return layers | {
            "attention_v": f"{attention}.attention_a.0",
            "attention_u": f"{attention}.attention_b.0",
            "attention_w": f"{attention}.attention_c",
        }

    @nn.nowrap
    def feature_shape(self, params: PyTree) -> tuple[int, ...]:
        return (params["pre_feature" if self.pre_feature_dim else "feature"]["kernel"].shape[0],)


class ClamMB(ClamSB):
    """One attention branch and one independent classifier per class; needs at least two classes. Fields: see `ClamSB`."""

    variants = MB_VARIANTS
    branch_per_class: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_outputs < 2:
            raise ConfigError("clam_mb has one branch per class and needs at least two outputs, not 1; use clam_sb")

    def _bag_logits(self, embedding: Array) -> Array:
        layers = [self._layer(f"classifier_{c}", self.feature_dim, 1) for c in range(self.num_outputs)]
        return jnp.concatenate([layer(embedding[c]) for c, layer in enumerate(layers)])


def _membership(targets: Array, num_classes: int) -> tuple[Array, Array]:
    """Targets [B] or [B, C] -> (the bag is of the class, the bag is not of it), bool [B, C]; neither where unknown.

    Raises ConfigError for targets that are no classes.
    """
    if targets.ndim == 1 and jnp.issubdtype(targets.dtype, jnp.integer):
        known = (targets >= 0)[:, None]
        # One output stands for the positive class of two.
        inside = targets[:, None] == (jnp.arange(num_classes) if num_classes > 1 else 1)
    elif targets.ndim == 2 and targets.shape[1] == num_classes:
        known, inside = ~jnp.isnan(targets), targets > 0
    else:
        raise ConfigError(_NEEDS_CLASSES)
    return known & inside, known & ~inside


AGGREGATORS = {"clam_sb": ClamSB, "clam_mb": ClamMB}
