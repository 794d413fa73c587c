"""The attention MIL that MHIM-MIL calls `attn` (variant `mhim_pure_attn`): ReLU attention without bias; its teacher and baseline.

    python -m mil_jax.train --config configs/abmil_mhim.py

Settings of `--model pure --baseline attn` in branch v1 of DearCaat/MHIM-MIL. The reference chooses the epoch on the test fold of
Camelyon16 (`--config.train.protocol=reference` with its splits); the default here carves a validation part.
"""

from mil_jax.config import ConfigDict, base_config


def get_config() -> ConfigDict:
    """The recipe."""
    config = base_config()
    config.name = "abmil_mhim"
    config.aggregator = ConfigDict(
        {
            "name": "abmil",
            "feature_dim": 512,
            "feature_activation": "relu",  # --act relu
            "dropout": 0.25,  # --dropout 0.25
            "attention_dim": 128,
            "gated": False,
            "attention_activation": "relu",  # --da_act relu
            "attention_bias": False,
            "attention_dropout": 0.0,
            "initializer": "xavier_normal",
        }
    )
    config.optimizer.update({"name": "adam", "lr": 2e-4, "weight_decay": 1e-5})  # --lr, --weight_decay (L2)
    config.optimizer.schedule.update({"name": "cosine", "epochs": 200})  # --lr_sche cosine --num_epoch 200
    config.train.update({"epochs": 130, "patience": 20, "min_epochs": 30})
    config.demo = ConfigDict(
        {
            "aggregator": {"feature_dim": 128, "attention_dim": 64},
            "optimizer": {"lr": 1e-3, "schedule": {"epochs": 20}},
            "train": {"epochs": 20, "patience": 0, "min_epochs": 0},
        }
    )
    return config
