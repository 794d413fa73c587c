"""CLAM-MB on TCGA lung, LUAD against LUSC: task 2 of mahmoodlab/CLAM, with several branches as in the paper.

    python -m mil_jax.train --config configs/recipes/clam_mb_tcga_nsclc.py --config.data.features=FEATURES --config.data.labels=labels.csv \
        --config.data.target=subtype --config.data.patient=tcga

Reported for NSCLC subtyping (ImageNet ResNet-50 features): AUC 0.956. Command of the README, with clam_mb for clam_sb:
main.py --task task_2_tumor_subtyping --weighted_sample --bag_loss ce --inst_loss svm --early_stopping --lr 2e-4 --subtyping
"""

from mil_jax.config import ConfigDict, base_config


def get_config() -> ConfigDict:
    """The recipe."""
    config = base_config()
    config.name = "clam_mb_tcga_nsclc"
    config.aggregator = ConfigDict(
        {
            "name": "clam_mb",  # --model_type clam_mb
            "feature_dim": 512,  # --model_size small: 1024, 512, 256
            "attention_dim": 256,
            "gated": True,
            "dropout": 0.25,  # --drop_out 0.25
            "attention_dropout": 0.25,  # on whenever --drop_out is
            "num_sampled": 8,  # --B 8
            "subtyping": True,  # --subtyping
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
