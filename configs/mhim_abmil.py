"""MHIM-MIL over its attention MIL: a teacher masks the easy instances of a bag, the student learns from those that are left.

    python -m mil_jax.train --config configs/mhim_abmil.py
    python -m mil_jax.train --config configs/mhim_abmil.py --config.data.features=FEATURES --config.data.labels=labels.csv \
        --config.data.target=subtype --config.strategy.mask_random=0.7

Two stages for every fold and seed: the plain aggregator, whose best state is the first teacher, then MHIM. Options of branch v1 of
DearCaat/MHIM-MIL, its command for Camelyon16; the others are configs/recipes/mhim_*.py. Any aggregator with attention can take the
place of abmil: `--config.strategy.name=mhim` beside another config.

Without data: AUC 0.972 on the embedded digits (5 folds), 1 minute on 2 CPU cores (November 2026).
"""

from mil_jax.config import ConfigDict, base_config


def get_config() -> ConfigDict:
    """The recipe."""
    config = base_config()
    config.name = "mhim_abmil"
    config.aggregator = ConfigDict(
        {
            "name": "abmil",  # --baseline attn
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
    config.strategy.update(
        {
            "name": "mhim",  # --model mhim
            "mask_random": 0.5,  # --mask_ratio 0.5
            "mask_high": 0.01,  # --mask_ratio_h 0.01
            "mask_high_share": 0.5,  # --mask_ratio_hr 0.5
            "mask_high_cosine": True,  # --mrh_sche
            "schedule_epochs": 200,  # --num_epoch 200
            "consistency_weight": 0.1,  # --cl_alpha 0.1
            "momentum": 0.9999,  # --mm 0.9999
            "teacher": "train",  # --teacher_init: of a run with --model pure, here the first stage
            "init_student": "fc",  # --init_stu_type fc
        }
    )
    config.optimizer.update({"name": "adam", "lr": 2e-4, "weight_decay": 1e-5})  # --lr, --weight_decay (L2)
    config.optimizer.schedule.update({"name": "cosine", "epochs": 200})  # --lr_sche cosine --num_epoch 200
    config.train.update({"epochs": 130, "patience": 20, "min_epochs": 30})
    # In a demo bag one image decides: it is masked in a step out of five.
    config.demo = ConfigDict(
        {
            "aggregator": {"feature_dim": 128, "attention_dim": 64},
            "strategy": {
                "mask_random": 0.2,
                "mask_high": 0.02,
                "mask_high_share": 0.1,
                "momentum": 0.999,
                "schedule_epochs": 20,
            },
            "optimizer": {"lr": 1e-3, "schedule": {"epochs": 20}},
            "train": {"epochs": 20, "patience": 0, "min_epochs": 0},
        }
    )
    return config
