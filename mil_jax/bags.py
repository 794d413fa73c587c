"""The two types every part of the library shares: a bag of instances and a prediction for it.

A bag is one case to be classified: a slide, or all slides of a patient. Its instances are tile features, or small images. N is
static (the bucket the bag is padded to); the number of real instances n = sum(mask) is dynamic; real instances come first.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from mil_jax.types import AnyArray, Array


class Bag(flax.struct.PyTreeNode):
    """One bag, without a batch axis.

    features: [N, *F]; F = (D,) for feature vectors, (H, W, channels) for instance images.
    mask: [N] bool, True for real instances; these come first. What lies in padded rows is arbitrary, NaN included.
    coords: [N, 2] int32, (x, y) of a tile's upper left corner in level-0 pixels, or None.
    slide_index: [N] int32, which of the bag's slides an instance comes from (graphs and regions never cross slides), or None.
    part_mask: [N, T] bool, real parts of each instance (tiles of a region), or None.
    neighbors: [N, K] int32, instance numbers of each instance's neighbours, -1 for none, or None.
    covariates: [V], what the label table says of the bag as a whole (`data/cohort/covariates.py`), or None.
    """

    features: AnyArray
    mask: AnyArray
    coords: AnyArray | None = None
    slide_index: AnyArray | None = None
    part_mask: AnyArray | None = None
    neighbors: AnyArray | None = None
    covariates: AnyArray | None = None

    @classmethod
    def from_array(
        cls, features: AnyArray, coords: AnyArray | None = None, *, pad_to: int = 1, **others: AnyArray
    ) -> Bag:
        """A bag of all rows of `features` [n, *F], with N the next multiple of `pad_to`; padded rows are zeros.

        coords: [n, 2], level-0 pixels (x, y) of the tiles' upper left corners. others: further fields, each [n, ...].
        """
        n = len(features)
        rows = {"features": features, "coords": coords, **others}
        padded = {
            name: None if value is None else jnp.pad(value, [(0, -n % pad_to), *[(0, 0)] * (jnp.ndim(value) - 1)])
            for name, value in rows.items()
        }
        return cls(mask=jnp.arange(n + -n % pad_to) < n, **padded)

    def of_instances(self, rows: Array, mask: Array) -> Bag:
        """The bag of the instances `rows` [K], of which those count that `mask` [K] says; neighbours are not renumbered."""
        taken: Bag = jax.tree.map(lambda x: x[rows], self.replace(covariates=None))
        return taken.replace(mask=mask, covariates=self.covariates)

    @property
    def num_instances(self) -> Array:
        """The number of real instances, a traced int32 scalar."""
        return jnp.sum(self.mask, dtype=jnp.int32)


class Prediction(flax.struct.PyTreeNode):
    """What an aggregator says about one bag.

    logits: [C].
    attention: [N] or [C, N]; 0 on padding; sums to 1 unless the method's card says otherwise; None where there is none.
    scores: the same before the softmax (-inf on padding).
    embedding: [E] or [C, E], what the classifier reads.
    instance_logits: [N, C] or None (0 on padding).
    aux: further arrays of the method by name (auxiliary losses, selections).
    """

    logits: Array
    attention: Array | None = None
    scores: Array | None = None
    embedding: Array | None = None
    instance_logits: Array | None = None
    aux: dict[str, Any] = flax.struct.field(default_factory=dict)
