"""RRT-MIL (Tang et al., CVPR 2024): a bag re-embedded by R2T (`r2t.py`), attention pooling, a linear classifier.

x [N, D] -> h = R2T(x) -> scores s = w' phi(V h) -> a = softmax(s) -> z = (a h) Wc + bc. Pooling is that of MHIM-MIL's
ABMIL, 128 wide without biases. The default fields are those of the published commands, the variant "rrtmil" has the
defaults of the reference's constructor.
"""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn

from mil_jax.aggregators import checks
from mil_jax.aggregators.base import Aggregator
from mil_jax.aggregators.r2t import RegionTransformer
from mil_jax.bags import Bag, Prediction
from mil_jax.layers import masked
from mil_jax.layers.activations import ACTIVATIONS
from mil_jax.layers.attention_pool import attention_pool, attention_scores
from mil_jax.layers.dropout import draws, hyper
from mil_jax.layers.initializers import Affine, AffineParameters

VARIANTS: dict[str, dict[str, Any]] = {"rrtmil": {"attention_activation": "relu"}}


class RRTMIL(RegionTransformer, Aggregator, kw_only=True):
    """Re-embedding, then attention pooling and a linear classifier.

    attention_dim, attention_activation ("tanh", "relu" or "gelu"), attention_gated,
    attention_bias, attention_dropout: of the pooling. Other fields: `RegionTransformer`. The prediction's `embedding` is [E].
    """

    attention_dim: int = 128
    attention_activation: str = "tanh"
    attention_gated: bool = False
    attention_bias: bool = False
    attention_dropout: float = 0.0

    variants = VARIANTS
    numeric_settings: ClassVar[tuple[str, ...]] = ("dropout", "transformer_dropout", "attention_dropout")

    def __post_init__(self) -> None:
        checks.positive("attention_dim", self.attention_dim)
        checks.one_of("attention_activation", self.attention_activation, ACTIVATIONS)
        checks.rate("attention_dropout", self.attention_dropout)
        super().__post_init__()

    @nn.compact
    def __call__(self, bag: Bag, train: bool = False) -> Prediction:
        h = self._reembedded(bag, train)  # [N, E]
        self.sow("intermediates", "instance_features", h)
        width = h.shape[-1]

        def layer(name: str, inputs: int, outputs: int) -> Affine:
            return AffineParameters(outputs, self.initializer, self.attention_bias, name=name)(inputs)

        drop = draws(self, "attention_dropout", self.attention_dropout, train)
        scores = attention_scores(
            h,
            layer("attention_v", width, self.attention_dim),
            layer("attention_w", self.attention_dim, 1),
            layer("attention_u", width, self.attention_dim) if self.attention_gated else None,
            activation=ACTIVATIONS[self.attention_activation],
            dropout_rate=hyper(self, "attention_dropout", self.attention_dropout),
            dropout_key=self.make_rng("dropout") if drop else None,
        )
        attention = masked.softmax(scores, bag.mask)
        embedding = attention_pool(attention, h)  # [E]
        logits = self._linear("classifier", width, self.num_outputs)(embedding)
        return Prediction(logits, attention, masked.hide_padding(scores, bag.mask), embedding)

    @nn.nowrap
    def state_dict_map(self, variant: str) -> dict[str, tuple[str, str]]:
        checks.one_of("variant", variant, VARIANTS)
        # With dropout the pooling's Sequential is one longer.
        layers = {"feature": "patch_to_emb.0", "classifier": "predictor"}
        pooling = "pool_fn.attention.attention"
        if self.attention_gated:
            layers |= {
                f"attention_{ours}": f"{pooling}_{theirs}" for ours, theirs in (("v", "a.0"), ("u", "b.0"), ("w", "c"))
            }
        else:
            layers |= {"attention_v": f"{pooling}.0", "attention_w": f"{pooling}.{3 if self.attention_dropout else 2}"}
        mapping = self._encoder_map("online_encoder.")
        for path, published in layers.items():
            mapping[f"{published}.weight"] = (f"{path}/kernel", "linear")
            if self.attention_bias or not path.startswith("attention"):
                mapping[f"{published}.bias"] = (f"{path}/bias", "same")
        return mapping


AGGREGATORS = {"rrt": RRTMIL}
