"""MHIM-MIL over DSMIL as PathGene's train_MHIM.py would train it (panliangrui/NIPS2025): as shipped it cannot run.

    python -m mil_jax.train --config configs/recipes/mhim_dsmil_pathgene.py --config.data.features=FEATURES \
        --config.data.labels=genes.csv --config.data.target=EGFR

Its module is missing and names are undefined; these are the defaults of its options, by which nothing is masked: what is left of MHIM-MIL
is the consistency with the teacher. The DSMIL is that of MHIM-MIL. Masks: configs/recipes/mhim_dsmil_c16.py.

Without data: AUC 0.928 on the embedded digits (5 folds), 1 minute on 2 CPU cores (November 2026).
"""

from mil_jax.config import ConfigDict, base_config


def get_config() -> ConfigDict:
    """The recipe."""
    config = base_config()
    config.name = "mhim_dsmil_pathgene"
    config.aggregator = ConfigDict(
        {
            "name": "dsmil",  # baseline dsmil
            "feature_layer": "linear",
            "feature_dim": 512,
            "feature_activation": "relu",
            "dropout": 0.25,
            "query_dim": 128,
            "value": "relu",
            "prediction": "mean_probability",
            "loss": "streams",
            "bag_weight": 0.5,
            "max_weight": 0.5,
            "initializer": "xavier_normal",
        }
    )
    config.strategy.update(
        {
            "name": "mhim",
            "mask_random": 0.0,
            "mask_low": 0.0,
            "mask_high": 0.0,
            "mask_high_share": 1.0,
            "scores": "class",
            "consistency_weight": 0.5,  # alpha
            "task_weight": 1.0,
            "temperature": 0.1,
            "momentum": 0.9999,  # mm
            "teacher": "none",
        }
    )
    config.task.loss_name = "binary_cross_entropy"
    config.optimizer.update({"name": "lookahead_radam", "lr": 2e-4, "weight_decay": 1e-5})
    config.optimizer.schedule.update({"name": "cosine", "epochs": 100, "min_lr": 5e-6})
    config.train.update({"epochs": 99, "monitor": "val_auc"})
    config.demo = ConfigDict(
        {
            "aggregator": {"feature_dim": 128, "query_dim": 32},
            "strategy": {"momentum": 0.999},
            "optimizer": {"lr": 2e-3, "schedule": {"epochs": 20}},
            "train": {"epochs": 20, "monitor": "val_loss"},
        }
    )
    return config
