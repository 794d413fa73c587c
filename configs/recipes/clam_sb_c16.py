"""CLAM-SB on Camelyon16, tumour against normal: task 1 of mahmoodlab/CLAM.

    python -m mil_jax.train --config configs/recipes/clam_sb_c16.py --config.data.features=FEATURES --config.data.labels=labels.csv \
        --config.data.target=label --config.data.positive=tumor

Reported for lymph node metastasis (Camelyon16 and 17 together, ImageNet ResNet-50 features): AUC 0.953. Command of the README:
main.py --task task_1_tumor_vs_normal --weighted_sample --bag_loss ce --inst_loss svm --early_stopping --lr 2e-4 --k 10
"""

from mil_jax.config import ConfigDict, base_config


def get_config() -> ConfigDict:
    """The recipe."""
    config = base_config()
    config.name = "clam_sb_c16"
    config.aggregator = ConfigDict(
        {
            "name": "clam_sb",  # --model_type clam_sb
            "feature_dim": 512,  # --model_size small: 1024, 512, 256
            "attention_dim": 256,
            "gated": True,
            "dropout": 0.25,  # --drop_out 0.25
            "attention_dropout": 0.25,  # on whenever --drop_out is
            "num_sampled": 8,  # --B 8
            "subtyping": False,  # no --subtyping: normal is no subtype
            "instance_loss": "svm",  # --inst_loss svm
            "bag_weight": 0.7,  # --bag_weight 0.7
            "initializer": "torch",
        }
    )
    config.splits.update(
        {"kind": "monte_carlo", "folds": 10, "test_fraction": 0.1, "seed": 1}
    )  # create_splits_seq.py --k 10
    config.splits.val_fraction = 1 / 9  # --val_frac 0.1 of all
    config.optimizer.update({"name": "adam", "lr": 2e-4, "weight_decay": 1e-5})  # --opt adam --lr 2e-4 --reg 1e-5
    config.train.update({"epochs": 200, "balanced_sampling": True})  # --max_epochs 200 --weighted_sample
    config.train.update({"monitor": "val_loss", "patience": 20, "min_epochs": 51})  # --early_stopping
    config.demo = ConfigDict(
        {
            "aggregator": {"feature_dim": 128, "attention_dim": 64, "num_sampled": 1},
            "splits": {"kind": "k_fold"},
            "optimizer": {"lr": 1e-3},
            "train": {"epochs": 20, "patience": 0, "min_epochs": 0},
        }
    )
    return config
