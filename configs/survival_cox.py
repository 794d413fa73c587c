"""Survival by Cox's proportional hazards: gated attention MIL, the partial likelihood of 64 bags a step.

    python -m mil_jax.train --config configs/survival_cox.py
    python -m mil_jax.train --config configs/survival_cox.py --config.data.features=FEATURES --config.data.labels=labels.csv \
        --config.data.target=survival_months --config.data.censored=censorship --config.data.patient=case_id

The bags of a step are each other's risk sets. Bags of a step have one bucket length, so patients are compared with others of about as many
tiles (a Cox model stratified by size); --config.data.max_buckets=1 compares all with all, at the price of padding. With it a
--config.train.batch_size of the whole training part gives its full likelihood; --config.train.microbatch_size=16 bounds the memory.

Without data: C-index 0.611 on the embedded digits (5 folds), 1 minute on 2 CPU cores (November 2026).
"""

from mil_jax.config import ConfigDict, base_config


def get_config() -> ConfigDict:
    """The recipe."""
    config = base_config()
    config.name = "survival_cox"
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
    config.data.unit = "patient"
    config.task.update({"name": "survival", "loss_name": "cox", "ties": "efron"})
    config.optimizer.update({"name": "adam", "lr": 2e-4, "weight_decay": 1e-5})
    config.train.update({"epochs": 50, "batch_size": 64, "patience": 10, "min_epochs": 10})
    config.demo = ConfigDict(
        {
            "aggregator": {"feature_dim": 128, "attention_dim": 64},
            "optimizer": {"lr": 3e-3},
            "train": {"epochs": 30, "batch_size": 64, "patience": 0, "min_epochs": 0},
        }
    )
    return config
