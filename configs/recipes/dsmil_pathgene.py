"""DSMIL as PathGene trains it (panliangrui/NIPS2025): linear query, several labels, the mean of both streams' sigmoids.

    python -m mil_jax.train --config configs/recipes/dsmil_pathgene.py --config.data.features=FEATURES \
        --config.data.labels=genes.csv --config.data.target=EGFR,TP53 --config.task.name=multilabel

The reference carries one model through all folds, which leaks, and chooses the epoch on the test fold; here each fold starts anew.
"""

from mil_jax.config import ConfigDict, base_config


def get_config() -> ConfigDict:
    """The recipe."""
    config = base_config()
    config.name = "dsmil_pathgene"
    config.aggregator = ConfigDict(
        {
            "name": "dsmil",
            "query_dim": 128,
            "nonlinear_query": False,  # non_linearity 0
            "value": "identity",
            "prediction": "mean_probability",  # average
            "bag_weight": 0.5,
            "max_weight": 0.5,
            "initializer": "torch",
        }
    )
    config.task.loss_name = "binary_cross_entropy"
    config.optimizer.update({"name": "adam", "b1": 0.5, "b2": 0.9, "lr": 1e-4, "weight_decay": 1e-4})
    config.optimizer.schedule.update({"name": "cosine", "epochs": 100, "min_lr": 5e-6})
    config.train.update({"epochs": 99, "monitor": "val_auc"})
    config.demo = ConfigDict(
        {
            "optimizer": {"lr": 5e-3, "weight_decay": 1e-5, "schedule": {"epochs": 40}},
            "train": {"epochs": 40, "monitor": "val_loss", "patience": 0},
        }
    )
    return config
