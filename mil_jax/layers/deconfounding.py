"""The deconfounding branch of IBMIL (Lin et al., CVPR 2023): an embedding reads from a dictionary of confounders, both are classified.

q = Wq M + bq, k_j = Wk F_j + bk; a = softmax over the entries j of q . k_j / sqrt(Q); R = sum_j a_j F_j (entries are their own values);
logits = a linear map of [M, R], M + R or M - R. No prior over the entries: all weigh the same. There is no instance axis here, so nothing
is masked.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from mil_jax.layers.dropout import draw_key, dropout, hyper
from mil_jax.layers.initializers import Affine, AffineParameters
from mil_jax.types import Array

MERGES = ("cat", "add", "sub")


class Deconfounding(nn.Module):
    """num_outputs: logits C. query_dim: Q. merge: "cat", "add" or "sub". merged_norm: a LayerNorm behind it.

    dictionary_dropout: in training, of the entries as the keys see them; numeric, the collection "hyper" may hold another rate.
    initializer: of all linear layers.
    """

    num_outputs: int
    query_dim: int = 128
    merge: str = "cat"
    merged_norm: bool = False
    dictionary_dropout: float = 0.0
    initializer: str = "torch"

    @nn.compact
    def __call__(self, embedding: Array, dictionary: Array, train: bool = False) -> tuple[Array, Array, Array]:
        """embedding [E] or [classes, E], dictionary [k, E] or [k, classes, E] -> logits [C], what the classifier read ([E] or
        [classes, E], twice as wide for "cat"), and the attention over the entries, [k] or [k, classes].
        """
        width = embedding.shape[-1]
        embedding, dictionary = embedding.astype(jnp.float32), dictionary.astype(jnp.float32)
        query = AffineParameters(self.query_dim, self.initializer, name="query")(width)(embedding)  # [.., Q]
        key = AffineParameters(self.query_dim, self.initializer, name="key")(width)
        # The softmax cancels the keys' bias: its gradient is 0, and rounding noise in it would be blown up by Adam.
        key = Affine(key.kernel, jax.lax.stop_gradient(key.bias))
        entries, of_dropout = dictionary, draw_key(self, "dictionary_dropout", self.dictionary_dropout, train, 0)
        if of_dropout is not None:
            entries = dropout(entries, hyper(self, "dictionary_dropout", self.dictionary_dropout), of_dropout)
        keys = key(entries)  # [k, .., Q]
        own = "kcq" if dictionary.ndim == 3 else "kq"  # one dictionary for each class, or one for all
        axes = "c" if embedding.ndim == 2 else ""
        scores = jnp.einsum(f"{own},{axes}q->k{axes}", keys, query) / math.sqrt(self.query_dim)
        attention = jax.nn.softmax(scores, axis=0)  # [k, ..]
        read = jnp.einsum(f"k{axes},{own.replace('q', 'e')}->{axes}e", attention, dictionary)  # as the embedding
        merged = {
            "cat": lambda: jnp.concatenate([embedding, read], axis=-1),
            "add": lambda: embedding + read,
            "sub": lambda: embedding - read,
        }[self.merge]()
        if self.merged_norm:
            merged = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="norm")(merged)
        classifier = AffineParameters(self.num_outputs, self.initializer, name="classifier")(*merged.shape)
        kernel = classifier.kernel.reshape(-1, self.num_outputs)
        return Affine(kernel, classifier.bias)(merged.reshape(-1)), merged, attention
