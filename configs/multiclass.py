"""Several label columns, each with classes of its own, by one model: gated attention MIL with a softmax for each column.

    python -m mil_jax.train --config configs/multiclass.py
    python -m mil_jax.train --config configs/multiclass.py --config.data.features=FEATURES --config.data.labels=labels.csv \
        --config.data.target=EGFR_exon,TP53_class,subtype

An empty cell is an unknown label: the bag counts in its other columns. For models of its own for each column leave task.name at
classification, with columns of equally many classes: see "Several targets" in the user guide.
"""

from mil_jax.config import ConfigDict, base_config


def get_config() -> ConfigDict:
    """The recipe."""
    config = base_config()
    config.name = "multiclass"
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
    config.task.name = "multiclass"
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
