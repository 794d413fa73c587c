"""RRT-MIL on TCGA-BRCA with ResNet-50 features (1024 wide): the published settings of DearCaat/RRT-MIL.

    python -m mil_jax.train --config configs/recipes/rrt_tcga_brca_r50.py --config.data.features=FEATURES \
        --config.data.labels=labels.csv --config.data.target=subtype --config.data.patient=tcga

The reference has no validation part and chooses the epoch on the test fold: `--config.train.protocol=reference` does so and says so.
The default here carves validation patients from the training part. Its authors say that the refactored code does not fully
reproduce their paper.
"""

from mil_jax.config import ConfigDict, base_config


def get_config() -> ConfigDict:
    """The recipe."""
    config = base_config()
    config.name = "rrt_tcga_brca_r50"
    config.aggregator = ConfigDict(
        {
            "name": "rrt",
            "feature_dim": 512,  # the width is fixed in the reference
            "dropout": 0.25,  # dropout
            "transformer_dropout": 0.1,  # trans_dropout
            "num_layers": 2,  # n_layers: one R-MSA, one CR-MSA
            "num_heads": 8,
            "region_num": 8,  # region_num
            "epeg_kernel": 17,  # epeg_k
            "representatives": 3,  # crmsa_k
            "cross_region_heads": 1,  # crmsa_heads
            "shortcut": False,  # all_shortcut is not given
            "attention_activation": "tanh",  # da_act
        }
    )
    config.splits.update({"folds": 5, "seed": 2021, "val_fraction": 0.15})  # the repository's command: 5 folds
    config.optimizer.update({"name": "adam", "lr": 2e-4, "weight_decay": 1e-5})  # weight decay as L2
    config.optimizer.schedule.update({"name": "cosine", "epochs": 200})  # stepped each epoch
    config.train.update({"epochs": 200, "patience": 20, "min_epochs": 70, "monitor": "val_auc", "seed": 2021})
    config.demo = ConfigDict(
        {
            "aggregator": {
                "feature_dim": 64,
                "num_heads": 4,
                "cross_region_heads": 4,
                "region_num": 2,
                "cross_region_num": 2,
                "epeg_kernel": 3,
                "attention_dim": 32,
            },
            "optimizer": {"lr": 1e-3, "schedule": {"epochs": 20}},
            "train": {"epochs": 20, "patience": 0, "min_epochs": 0},
        }
    )
    return config
