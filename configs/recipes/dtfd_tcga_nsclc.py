"""DTFD-MIL on the lung subtypes of TCGA, LUAD against LUSC, with features of ImageNet's ResNet-50 (1024 wide, 256 x 256 tiles at 20x).

    python -m mil_jax.train --config configs/recipes/dtfd_tcga_nsclc.py --config.data.features=FEATURES --config.data.labels=labels.csv \
        --config.data.target=subtype --config.data.patient=tcga

Published: AUC 0.961, accuracy 0.894 (MaxMinS). Options of Main_DTFD_MIL.py in hrzhang1123/DTFD-MIL; the number of
groups is the paper's. The reference chooses the epoch among the last fifth; here any epoch may be chosen.
"""

from mil_jax.config import ConfigDict, base_config


def get_config() -> ConfigDict:
    """The recipe."""
    config = base_config()
    config.name = "dtfd_tcga_nsclc"
    config.aggregator = ConfigDict(
        {
            "name": "dtfd",
            "feature_dim": 512,  # --mDim 512
            "num_residual": 0,  # --numLayer_Res 0
            "attention_dim": 128,
            "num_groups": 8,  # --numGroup 8
            "distillation": "max_min",  # --distill_type MaxMinS
            "instances_per_group": 1,  # --total_instance 8, divided by --numGroup
            "num_partitions": 1,  # --num_MeanInference 1
            "dropout": 0.0,  # --droprate 0 and --droprate_2 0
            "initializer": "torch",
        }
    )
    config.optimizer.update({"name": "adam", "lr": 1e-4, "weight_decay": 1e-4})  # --lr 1e-4 --weight_decay 1e-4 (L2)
    config.optimizer.clip_norm = 5.0  # --grad_clipping 5, of each network on its own
    config.optimizer.schedule.update(
        {"name": "step", "every": 100, "gamma": 0.2}
    )  # --epoch_step [100] --lr_decay_ratio 0.2
    config.splits.update({"folds": 4})  # not an option of the code: its authors split outside
    config.train.update({"epochs": 200, "monitor": "val_auc", "seed": 32})  # --EPOCH 200, seed 32
    config.demo = ConfigDict(
        {
            "aggregator": {"feature_dim": 128, "attention_dim": 64, "num_partitions": 5},
            "optimizer": {"lr": 1e-3, "schedule": {"name": "constant"}},
            "train": {"epochs": 20},
        }
    )
    return config
