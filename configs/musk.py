"""Gated attention MIL, 256 wide with a 128-wide attention, for the classic sets of vectors (MUSK1, Fox) of Ilse et al. 2018.

    python scripts/mil_benchmarks.py --data MUSK1_FOLDER --config configs/musk.py

Adam 5e-4 and L2 5e-3 are the paper's for MUSK1; 20 epochs, fixed beforehand, and the last one is taken: nothing is chosen on a
test fold. One hidden layer where the paper has three (256, 128, 64). Figures and machine: benchmarks/README.md.

Without data: AUC 0.969 on the embedded digits (5 folds), 1 minute on 2 CPU cores (November 2026).
"""

from mil_jax.config import ConfigDict, start_from


def get_config() -> ConfigDict:
    """The recipe."""
    config = start_from("configs/abmil_ilse.py")
    config.aggregator.update({"feature_layer": "linear", "feature_dim": 256, "gated": True})
    config.data.normalize = "zscore"
    config.optimizer.weight_decay = 5e-3
    config.demo = ConfigDict()
    return config
