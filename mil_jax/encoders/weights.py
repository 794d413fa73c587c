"""Weights of a tile encoder: from a published file, strictly, or at random where that is asked for."""

from __future__ import annotations

import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp

from mil_jax.bags import Bag
from mil_jax.encoders.registry import TileEncoder, fitted_to
from mil_jax.errors import ConfigError, DataError
from mil_jax.interop.torch_checkpoints import import_state_dict, load_state_dict
from mil_jax.types import PyTree

RANDOM = "random"


def load_weights(encoder: TileEncoder, weights: str) -> tuple[TileEncoder, PyTree]:
    """The encoder, a bare one with what its weights say of it, and its parameters. weights: a file, or "random" (always the same numbers).

    Raises ConfigError where none are named, and DataError for a file that cannot be read or holds weights of another architecture.
    """
    if not weights:
        where = f" (published as {encoder.weights})" if encoder.weights else ""
        raise ConfigError(
            f"--weights is missing: name the file of {encoder.name}'s weights{where}, or ask for --weights=random to try things out"
        )
    if weights == RANDOM:
        shape = (1, encoder.preprocessing.crop, encoder.preprocessing.crop, 3)
        bag = Bag(jnp.zeros(shape), jnp.ones(1, bool))
        return encoder, jax.jit(lambda key: encoder.module.init(key, bag)["params"])(jax.random.key(0))
    arrays = encoder.reads(load_state_dict(weights))
    encoder = fitted_to(encoder, arrays)
    try:
        return encoder, import_state_dict(encoder.module, arrays, encoder.name)
    except DataError as error:
        raise DataError(f"{weights}: holds the weights of another network than {encoder.name}; {error}") from error


def identity(weights: str) -> str:
    """What is recorded of the weights: the file's name and a digest of its bytes, or that they are random."""
    if weights == RANDOM:
        return "random numbers, not trained"
    with Path(weights).open("rb") as file:
        return f"{Path(weights).name}, sha256 {hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
