"""Numbers per bag (expression, scores, cell fractions): gated attention MIL, squared error in standard deviations of the training part.

    python -m mil_jax.train --config configs/regression.py
    python -m mil_jax.train --config configs/regression.py --config.data.features=FEATURES --config.data.labels=expression.csv \
        --config.data.target='gene_*' --config.task.transform=log1p

Several columns are several models (HistCode has one for each of 200 genes), trained as one program; --config.task.joint=true makes them
outputs of one model. task.transform=log1p predicts log10(1 + value), HistCode's form for expression ratios.

Without data: Pearson r 0.912 on the embedded digits (5 folds), 1 minute on 2 CPU cores (November 2026).
"""

from mil_jax.config import ConfigDict, base_config


def get_config() -> ConfigDict:
    """The recipe."""
    config = base_config()
    config.name = "regression"
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
    config.task.update({"name": "regression", "loss_name": "mse"})
    config.optimizer.update({"name": "adam", "lr": 1e-4, "weight_decay": 1e-5})  # HistCode
    config.train.update({"epochs": 200, "patience": 10})  # HistCode stops by the test loss, here by that of validation
    config.demo = ConfigDict(
        {
            "aggregator": {"feature_dim": 128, "attention_dim": 64},
            "optimizer": {"lr": 2e-3},
            "train": {"epochs": 30, "patience": 0},
        }
    )
    return config
