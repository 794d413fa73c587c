"""CLAM-SB on the classic sets of vectors (MUSK1, Fox), beside configs/musk.py: its authors do not report them.

    python scripts/mil_benchmarks.py --data MUSK1_FOLDER --config configs/recipes/clam_sb_musk.py

Adam 5e-4, L2 5e-3 and 20 epochs, the last one taken, as for ABMIL; the loss is CLAM's own. One instance of each side, since a bag of
MUSK1 has a median of four.

Without data: AUC 0.980 on the embedded digits (5 folds), 1 minute on 2 CPU cores (November 2026).
"""

from mil_jax.config import ConfigDict, base_config


def get_config() -> ConfigDict:
    """The recipe."""
    config = base_config()
    config.name = "clam_sb_musk"
    config.aggregator = ConfigDict(
        {
            "name": "clam_sb",
            "feature_dim": 256,
            "dropout": 0.0,
            "attention_dim": 128,
            "attention_dropout": 0.0,
            "num_sampled": 1,
            "instance_loss": "svm",
            "bag_weight": 0.7,
            "initializer": "torch",
        }
    )
    config.data.normalize = "zscore"
    config.splits.val_fraction = 0.0
    config.optimizer.update({"name": "adam", "lr": 5e-4, "weight_decay": 5e-3})
    config.train.update({"epochs": 20, "monitor": "last"})
    return config
