"""Smooth max pooling, 15 epochs."""

from mil_jax.config import ConfigDict, base_config


def get_config() -> ConfigDict:
    """The recipe."""
    config = base_config()
    config.name = "smooth_max"
    config.aggregator = ConfigDict({"name": "smooth_max", "hidden_dim": 64})
    config.optimizer.update({"name": "adam", "lr": 2e-3})
    config.train.update({"epochs": 15})
    return config
