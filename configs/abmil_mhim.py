"""The attention MIL that MHIM-MIL calls `attn` (variant `mhim_pure_attn`): ReLU attention without bias; its teacher and baseline.

    python -m mil_jax.train --config configs/abmil_mhim.py

Settings of `--model pure --baseline attn` in branch v1 of DearCaat/MHIM-MIL. The reference chooses the epoch on the test fold of
Camelyon16 (`--config.train.protocol=reference` with its splits); the default here carves a validation part.

Without data: AUC 0.981 on the embedded digits (5 folds), 1 minute on 2 CPU cores (November 2026).
"""

from mil_jax.config import ConfigDict, start_from


def get_config() -> ConfigDict:
    """The recipe."""
    config = start_from("configs/abmil.py")
    config.aggregator.update({"attention_dim": 128, "gated": False, "attention_dropout": 0.0})  # --baseline attn
    config.aggregator.attention_activation = "relu"  # --da_act relu
    config.aggregator.attention_bias = False
    config.demo.optimizer.lr = 1e-3
    return config
