"""HIPT's slide model on TCGA subtypes, over its pretrained region level, which stays frozen (mahmoodlab/HIPT).

    python -m data_prep.shard --features FEATURES --out SHARDS --regions 16
    python -m mil_jax.train --config configs/recipes/hipt_tcga.py --config.data.shards=SHARDS --config.data.labels=labels.csv \
        --config.data.target=subtype --config.aggregator.region_weights=vit4k_xs_dino.pth

FEATURES are the 384 numbers of the pretrained ViT256-16 (vit256_small_dino.pth). Published test AUC over ten splits: BRCA 0.874, NSCLC
0.952, RCC 0.980 (at 25 % of the slides 0.821, 0.923, 0.974). As published the last epoch counts, and there is no validation part
(protocol reference); the authors' splits are ten overlapping draws (splits.file=SPLITS). The demo part has no weights to freeze.
"""

from mil_jax.config import ConfigDict, base_config


def get_config() -> ConfigDict:
    """The recipe."""
    config = base_config()
    config.name = "hipt_tcga"
    config.data.regions = 16  # 4096-pixel regions of 256-pixel patches
    config.aggregator = ConfigDict(
        {
            "name": "hipt",  # --model_type hipt_lgp
            "region_dim": 192,  # vit4k_xs
            "region_depth": 6,
            "region_heads": 6,
            "table_side": 14,
            "region_weights": "",  # --pretrain_4k vit4k_xs_dino
            "frozen": True,  # --freeze_4k
            "hidden_dim": 192,
            "num_heads": 3,
            "dropout": 0.25,
        }
    )
    config.optimizer.update({"name": "adam", "lr": 2e-4, "weight_decay": 1e-5})  # --opt adam --lr 2e-4 --reg 1e-5 (L2)
    config.train.update(
        {
            "epochs": 20,  # --max_epochs 20
            "balanced_sampling": True,  # --weighted_sample
            "protocol": "reference",
            "monitor": "last",
        }
    )
    config.demo = ConfigDict(
        {
            "data": {"regions": 3, "normalize": "zscore"},
            "aggregator": {
                "frozen": False,
                "region_dim": 64,
                "region_depth": 1,
                "region_heads": 4,
                "table_side": 3,
                "hidden_dim": 64,
                "num_heads": 2,
                "dropout": 0.0,
            },
            "optimizer": {
                "name": "adamw",
                "lr": 7e-4,
                "weight_decay": 0.05,
                "clip_norm": 1.0,
                "schedule": {"name": "cosine", "warmup_epochs": 3.0},
            },
            "train": {"epochs": 35, "batch_size": 8, "balanced_sampling": False},
        }
    )
    return config
