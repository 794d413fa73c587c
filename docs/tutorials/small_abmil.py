"""Gated ABMIL, small enough for the tutorials: a config of your own starts from a method's and changes what differs."""

from mil_jax.config import ConfigDict, start_from


def get_config() -> ConfigDict:
    """The recipe."""
    config = start_from("configs/abmil.py")
    config.name = "small_abmil"
    config.aggregator.update({"feature_dim": 64, "attention_dim": 32})
    config.optimizer.update({"lr": 2e-3})
    config.optimizer.schedule.update({"epochs": 15})
    config.train.update({"epochs": 15, "patience": 0, "min_epochs": 0})
    return config
