"""Classes in an order (grades, stages): gated attention MIL, one answer "is it above class k?" for each step of the order.

    python -m mil_jax.train --config configs/ordinal.py
    python -m mil_jax.train --config configs/ordinal.py --config.data.features=FEATURES --config.data.labels=labels.csv \
        --config.data.target=isup_grade --config.data.classes=0,1,2,3,4,5
"""

from mil_jax.config import ConfigDict, base_config


def get_config() -> ConfigDict:
    """The recipe."""
    config = base_config()
    config.name = "ordinal"
    config.aggregator = ConfigDict(
        {
            "name": "abmil",
            "feature_dim": 512,
            "dropout": 0.25,
            "attention_dim": 384,
            "gated": True,
            "attention_dropout": 0.25,
            "initializer": "xavier_normal",
        }
    )
    config.task.update({"name": "ordinal"})
    config.optimizer.update({"name": "adam", "lr": 2e-4, "weight_decay": 1e-5})
    config.optimizer.schedule.update({"name": "cosine", "epochs": 100})
    config.train.update({"epochs": 100, "patience": 20, "min_epochs": 20})
    config.demo = ConfigDict(
        {
            "aggregator": {"feature_dim": 128, "attention_dim": 64},
            "optimizer": {"lr": 2e-3, "schedule": {"epochs": 20}},
            "train": {"epochs": 20, "patience": 0, "min_epochs": 0},
        }
    )
    return config
