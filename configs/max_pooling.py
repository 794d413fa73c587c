"""Max pooling of instance logits (MHIM-MIL's `maxmil`): the baseline that a method has to beat.

    python -m mil_jax.train --config configs/max_pooling.py

Optimiser and schedule are those of MHIM-MIL, branch v1.

Without data: AUC 0.978 on the embedded digits (5 folds), 1 minute on 2 CPU cores (November 2026).
"""

from mil_jax.config import ConfigDict, start_from


def get_config() -> ConfigDict:
    """The recipe."""
    config = start_from("configs/mean_pooling.py")
    config.aggregator.name = "max_pooling"
    config.demo.aggregator.feature_dim = 256
    config.demo.optimizer.update({"lr": 5e-4, "schedule": {"epochs": 40}})
    config.demo.train.epochs = 40
    return config
