"""DSMIL on the classic sets of vectors (MUSK1, Fox, ...): train_mil.py of binli123/dsmil-wsi.

    python scripts/mil_benchmarks.py --data MUSK1_FOLDER --config configs/recipes/dsmil_musk.py

The paper reports accuracies of 0.932 (MUSK1) and 0.729 (Fox), with the best epoch on each test fold; here the last epoch counts.

Without data: AUC 0.582 on the embedded digits (5 folds), 1 minute on 2 CPU cores (November 2026).
"""

from mil_jax.config import ConfigDict, base_config


def get_config() -> ConfigDict:
    """The recipe."""
    config = base_config()
    config.name = "dsmil_musk"
    config.aggregator = ConfigDict(
        {
            "name": "dsmil",
            "query_dim": 128,
            "nonlinear_query": True,
            "value": "identity",
            "bag_weight": 0.5,
            "max_weight": 0.5,
            "initializer": "torch",  # no init in train_mil.py
        }
    )
    config.task.loss_name = "bernoulli"  # --num_classes 1
    config.data.normalize = "zscore"
    config.splits.val_fraction = 0.0
    config.optimizer.update(
        {"name": "adam", "b1": 0.5, "b2": 0.9, "lr": 2e-4, "weight_decay": 5e-3}
    )  # --lr --weight_decay
    config.optimizer.schedule.update({"name": "cosine", "epochs": 40, "min_lr": 0.0})  # CosineAnnealingLR(40, 0)
    config.train.update(
        {"epochs": 40, "monitor": "last", "class_weights": True}
    )  # --num_epoch 40, pos_weight = #neg / #pos
    return config
