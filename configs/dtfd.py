"""DTFD-MIL: attention MIL on random parts of a bag, then on what they distil.

    python -m mil_jax.train --config configs/dtfd.py
    python -m mil_jax.train --config configs/dtfd.py --config.data.features=FEATURES --config.data.labels=labels.csv \
        --config.data.target=subtype --config.aggregator.distillation=max_min --config.aggregator.num_groups=8

Defaults of the options of Main_DTFD_MIL.py in hrzhang1123/DTFD-MIL. Each network's gradient is clipped on its own. Settings of the
paper's data sets: configs/recipes/dtfd_*.py.

Without data: AUC 0.979 on the embedded digits (5 folds), 1 minute on 2 CPU cores (November 2026).
"""

from mil_jax.config import ConfigDict, base_config


def get_config() -> ConfigDict:
    """The recipe."""
    config = base_config()
    config.name = "dtfd"
    config.aggregator = ConfigDict(
        {
            "name": "dtfd",
            "feature_dim": 512,  # --mDim 512
            "num_residual": 0,  # --numLayer_Res 0
            "attention_dim": 128,
            "num_groups": 4,  # --numGroup 4
            "distillation": "pooled",  # --distill_type AFS
            "instances_per_group": 1,  # --total_instance 4, divided by --numGroup
            "num_partitions": 1,  # --num_MeanInference 1
            "dropout": 0.0,  # --droprate 0 and --droprate_2 0
            "initializer": "torch",
        }
    )
    config.optimizer.update({"name": "adam", "lr": 1e-4, "weight_decay": 1e-4})  # --lr 1e-4 --weight_decay 1e-4 (L2)
    config.optimizer.clip_norm = 5.0  # --grad_clipping 5
    config.optimizer.schedule.update(
        {"name": "step", "every": 100, "gamma": 0.2}
    )  # --epoch_step [100] --lr_decay_ratio 0.2
    config.train.update(
        {"epochs": 200, "monitor": "val_auc"}
    )  # --EPOCH 200; the reference chooses among the last 40 only
    config.demo = ConfigDict(
        {
            "aggregator": {"feature_dim": 128, "attention_dim": 64, "num_partitions": 5},
            "optimizer": {"lr": 1e-3, "schedule": {"name": "constant"}},
            "train": {"epochs": 20},
        }
    )
    return config
