"""IBMIL over its attention MIL: the bag embedding reads from a dictionary of confounders before it is classified.

    python -m mil_jax.train --config configs/ibmil_abmil.py
    python -m mil_jax.train --config configs/ibmil_abmil.py --config.data.features=FEATURES --config.data.labels=labels.csv \
        --config.data.target=subtype --config.strategy.clusters=16

Three stages for every fold and seed: the plain aggregator, k-means of its bag embeddings, and the aggregator again with the dictionary.
Options of HHHedo/IBMIL for `--model abmil`; its published settings by data set and backbone are configs/recipes/ibmil_*.py. Any aggregator
can take the place of abmil: `--config.strategy.name=ibmil` beside another config.

Without data: AUC 0.958 on the embedded digits (5 folds), 1 minute on 2 CPU cores (November 2026).
"""

from mil_jax.config import ConfigDict, base_config


def get_config() -> ConfigDict:
    """The recipe."""
    config = base_config()
    config.name = "ibmil_abmil"
    config.aggregator = ConfigDict(
        {
            "name": "abmil",  # --model abmil
            "feature_layer": "none",  # attention and classifier read the features as they come (--feats_size wide)
            "dropout": 0.0,
            "attention_dim": None,  # Linear(feats_size, feats_size), tanh
            "gated": False,
            "attention_dropout": 0.0,
            "initializer": "torch",
        }
    )
    config.strategy.update(
        {
            "name": "ibmil",  # --c_path given
            "clusters": "8",  # ..._proto_8.npy
            "mode": "agnostic",  # train_bag_cls_agnostic_feats_proto_8.npy
            "merge": "cat",  # --c_merge cat
            "query_dim": 128,  # --c_dim 128
            "learn_dictionary": False,  # no --c_learn
        }
    )
    config.task.loss_name = "binary_cross_entropy"  # BCEWithLogitsLoss, of one-hot labels
    config.optimizer.update({"name": "adam", "b1": 0.5, "b2": 0.9, "lr": 1e-4, "weight_decay": 1e-4})  # --lr
    config.optimizer.schedule.update({"name": "cosine", "epochs": 50, "min_lr": 5e-6})  # CosineAnnealingLR(50, 5e-6)
    config.train.update({"epochs": 50, "monitor": "val_auc"})  # --num_epochs 50
    config.demo = ConfigDict(
        {
            "strategy": {"query_dim": 32},
            "optimizer": {"lr": 5e-3, "schedule": {"epochs": 40}},
            "train": {"epochs": 40, "monitor": "val_loss"},
        }
    )
    return config
