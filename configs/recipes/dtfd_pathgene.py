"""DTFD-MIL as PathGene trains it (panliangrui/NIPS2025, train_IBMIL.py without confounders): features 768 wide, 5 folds.

    python -m mil_jax.train --config configs/recipes/dtfd_pathgene.py --config.data.features=FEATURES \
        --config.data.labels=genes.csv --config.data.target=EGFR

The reference carries one model through all folds, which leaks, and chooses the epoch on the test fold; here each fold starts anew, and
takes DTFD's softmax and cross entropy in place of a sigmoid and BCE.
"""

from mil_jax.config import ConfigDict, base_config


def get_config() -> ConfigDict:
    """The recipe."""
    config = base_config()
    config.name = "dtfd_pathgene"
    config.aggregator = ConfigDict(
        {
            "name": "dtfd",
            "feature_dim": 384,  # L = 384, half of --feats_size 768
            "num_residual": 0,
            "attention_dim": 128,
            "num_groups": 4,  # numGroup = 4
            "distillation": "max_min",  # --distill MaxMinS
            "instances_per_group": 1,  # total_instance = 4, divided by numGroup
            "num_partitions": 1,
            "dropout": 0.0,
            "initializer": "torch",
        }
    )
    config.splits.folds = 5
    config.optimizer.update({"name": "adam", "lr": 1e-4, "weight_decay": 5e-3})  # two Adams
    config.optimizer.clip_norm = 5.0  # grad_clipping = 5
    config.optimizer.schedule.update({"name": "step", "every": 50, "gamma": 0.2})  # x 0.2 at epoch 50
    config.train.update({"epochs": 99, "monitor": "val_auc"})  # --num_epochs 100: epochs 1 to 99
    config.demo = ConfigDict(
        {
            "aggregator": {"feature_dim": 128, "attention_dim": 64, "num_partitions": 5},
            "optimizer": {"lr": 1e-3, "weight_decay": 1e-5, "schedule": {"name": "constant"}},
            "train": {"epochs": 20, "monitor": "val_loss"},
        }
    )
    return config
