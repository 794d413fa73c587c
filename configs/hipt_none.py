"""HIPT without transformers: gated attention over the tiles of each region of 16 x 16, then over the regions.

    python -m mil_jax.train --config configs/hipt_none.py
    python -m data_prep.shard --features FEATURES --out SHARDS --regions 16
    python -m mil_jax.train --config configs/hipt_none.py --config.data.shards=SHARDS --config.data.labels=labels.csv \
        --config.data.target=subtype

Model and optimiser are those of mahmoodlab/HIPT (`HIPT_None_FC`). Validation, carved from the training patients, chooses the epoch; the
reference takes the last one. The embedded digits lie on a grid in rows of five and are cut into regions of 3 x 3.

Without data: AUC 0.970 on the embedded digits (5 folds), 1 minute on 2 CPU cores (November 2026).
"""

from mil_jax.config import ConfigDict, base_config


def get_config() -> ConfigDict:
    """The recipe."""
    config = base_config()
    config.name = "hipt_none"
    config.data.regions = 16  # 4096-pixel regions of 256-pixel patches
    config.aggregator = ConfigDict(
        {"name": "hipt_none", "hidden_dim": 256, "dropout": 0.25}
    )  # --model_type hipt_n, small
    config.optimizer.update({"name": "adam", "lr": 2e-4, "weight_decay": 1e-5})  # --opt adam --lr 2e-4 --reg 1e-5 (L2)
    config.train.epochs = 20  # --max_epochs 20
    config.train.balanced_sampling = True  # --weighted_sample
    config.demo = ConfigDict(
        {
            "data": {"regions": 3, "normalize": "zscore"},
            "aggregator": {"hidden_dim": 64},
            "optimizer": {"lr": 1e-3},
            "train": {"epochs": 20, "batch_size": 4},
        }
    )
    return config
