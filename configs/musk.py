"""Gated attention MIL, 256 wide with a 128-wide attention, for the classic sets of vectors (MUSK1, Fox) of Ilse et al. 2018.

    python scripts/mil_benchmarks.py --data MUSK1_FOLDER --config configs/musk.py

Adam 5e-4 and L2 5e-3 are the paper's for MUSK1; 20 epochs, fixed beforehand, and the last one is taken: nothing is chosen on a
test fold. One hidden layer where the paper has three (256, 128, 64). Figures and machine: benchmarks/README.md.
"""

from mil_jax.config import ConfigDict, base_config


def get_config() -> ConfigDict:
    """The recipe."""
    config = base_config()
    config.name = "musk"
    config.aggregator = ConfigDict(
        {
            "name": "abmil",
            "feature_dim": 256,
            "dropout": 0.0,
            "attention_dim": 128,
            "gated": True,
            "attention_dropout": 0.0,
            "initializer": "torch",
        }
    )
    config.task.loss_name = "bernoulli"
    config.data.normalize = "zscore"
    config.splits.val_fraction = 0.0  # the last epoch is taken: no bag is spent on choosing one
    config.optimizer.update({"name": "adam", "lr": 5e-4, "weight_decay": 5e-3})
    config.train.update({"epochs": 20, "monitor": "last"})
    return config
