"""TransMIL as PathGene trains it (panliangrui/NIPS2025, train_transMIL): labels that may each be present.

    python -m mil_jax.train --config configs/recipes/transmil_pathgene.py --config.data.features=FEATURES \
        --config.data.labels=genes.csv --config.data.target=EGFR,TP53 --config.task.name=multilabel

The reference carries one model through all folds, which leaks, and chooses the epoch on the test fold; here each starts afresh. For more
than two classes it takes the softmax cross entropy: --config.task.loss_name=cross_entropy.

Without data: AUC 0.947 on the embedded digits (5 folds), 1 minute on 2 CPU cores (November 2026).
"""

from mil_jax.config import ConfigDict, base_config


def get_config() -> ConfigDict:
    """The recipe."""
    config = base_config()
    config.name = "transmil_pathgene"
    config.aggregator = ConfigDict(
        {
            "name": "transmil",
            "feature_dim": 512,  # input_size is free
            "dropout": 0.0,
            "num_heads": 8,  # heads = 8, dim_head = dim // 8
            "num_landmarks": 256,  # num_landmarks = dim // 2
            "pinv_iterations": 6,
            "residual_kernel": 33,  # residual = True
            "attention_dropout": 0.1,
            "squaring": True,
            "position": "ppeg",
            "initializer": "torch",
        }
    )
    config.task.loss_name = "binary_cross_entropy"  # BCEWithLogitsLoss on one-hot labels
    config.optimizer.update({"name": "lookahead_radam", "lr": 2e-4, "weight_decay": 1e-5})  # over every parameter
    config.optimizer.schedule.update(
        {"name": "cosine", "epochs": 100, "min_lr": 5e-6}
    )  # CosineAnnealingLR(100, 5e-6), per epoch
    config.train.update({"epochs": 99, "monitor": "val_auc"})  # epochs 1 to 99
    config.demo = ConfigDict(
        {
            "aggregator": {"feature_dim": 64, "num_heads": 4, "num_landmarks": 8, "residual_kernel": 5},
            "optimizer": {"lr": 2e-3, "schedule": {"epochs": 12}},
            "train": {"epochs": 12, "monitor": "val_loss"},
        }
    )
    return config
