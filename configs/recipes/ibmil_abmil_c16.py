"""IBMIL over its attention MIL on Camelyon16, tumour against normal, with the official test set (HHHedo/IBMIL, --model abmil).

    python -m mil_jax.train --config configs/recipes/ibmil_abmil_c16.py --config.data.features=FEATURES \
        --config.data.labels=labels.csv --config.data.target=label --config.data.positive=tumor --config.splits.test=TEST_COLUMN

Options of the reference for features of an ImageNet ResNet-18 (512 wide; 384 and 768 in the paper, too). It has no validation part and
chooses the epoch on the test set; to do the same, and to have it marked so:
    --config.train.protocol=reference --config.splits.val_fraction=0 --config.splits.folds=1
For TCGA, where the first 80 % of its list are trained on: --config.task.loss_name=binary_cross_entropy and no --config.splits.test.
"""

from mil_jax.config import ConfigDict, base_config


def get_config() -> ConfigDict:
    """The recipe."""
    config = base_config()
    config.name = "ibmil_abmil_c16"
    config.aggregator = ConfigDict(
        {
            "name": "abmil",  # --model abmil
            "feature_layer": "none",
            "dropout": 0.0,
            "attention_dim": None,  # Linear(feats_size, feats_size), tanh, Linear(feats_size, 1)
            "gated": False,
            "attention_dropout": 0.0,
            "initializer": "torch",  # PyTorch's defaults
        }
    )
    config.strategy.update(
        {
            "name": "ibmil",  # --c_path
            "clusters": "8",  # ..._proto_8.npy; 2, 4 and 16 are tried, too
            "mode": "agnostic",  # train_bag_cls_agnostic_feats
            "merge": "cat",  # --c_merge cat
            "query_dim": 128,  # --c_dim 128
            "learn_dictionary": False,  # no --c_learn
        }
    )
    config.task.loss_name = "bernoulli"  # --num_classes 1: BCEWithLogitsLoss of one logit
    config.splits.update({"kind": "monte_carlo", "folds": 5, "val_fraction": 0.1})  # none there, see above
    config.optimizer.update({"name": "adam", "b1": 0.5, "b2": 0.9, "lr": 1e-4, "weight_decay": 1e-4})  # --lr, Adam
    config.optimizer.schedule.update({"name": "cosine", "epochs": 50, "min_lr": 5e-6})  # CosineAnnealingLR(50, 5e-6)
    config.train.update({"epochs": 49, "monitor": "val_auc"})  # --num_epochs 50: epochs 1 to 49
    config.demo = ConfigDict(
        {
            "strategy": {"query_dim": 32},
            "optimizer": {"lr": 5e-3, "schedule": {"epochs": 30}},
            "train": {"epochs": 30, "monitor": "val_loss"},
        }
    )
    return config
