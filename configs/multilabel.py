"""Several labels at once, each present, absent or unknown: gated attention MIL with a sigmoid for each, asymmetric loss.

    python -m mil_jax.train --config configs/multilabel.py
    python -m mil_jax.train --config configs/multilabel.py --config.data.features=FEATURES --config.data.labels=genes.csv \
        --config.data.target='*_mut' --config.task.loss_name=binary_cross_entropy

The asymmetric loss (Ridnik et al. 2021) with its published settings lets the many easy negatives of a rare gene count little; `focal` and
`binary_cross_entropy` are the others. For a model for each gene leave task.name at classification: see "Several targets" in the user guide.
"""

from mil_jax.config import ConfigDict, base_config


def get_config() -> ConfigDict:
    """The recipe."""
    config = base_config()
    config.name = "multilabel"
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
    config.task.update(
        {"name": "multilabel", "loss_name": "asymmetric", "gamma": 1.0, "gamma_negative": 4.0, "margin": 0.05}
    )
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
