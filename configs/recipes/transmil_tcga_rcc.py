"""TransMIL on TCGA-RCC, KICH, KIRC or KIRP: the paper's four-fold cross validation with the settings of its Camelyon16 file.

    python -m mil_jax.train --config configs/recipes/transmil_tcga_rcc.py --config.data.features=FEATURES \
        --config.data.labels=labels.csv --config.data.target=subtype --config.data.patient=tcga

Reported (paper): AUC 0.988, with 1,024-wide features of an ImageNet ResNet-50 on 256 x 256 tiles at 20x. No code was
published for this cohort; folds are grouped by patient here. Half precision there, float32 here.
"""

from mil_jax.config import ConfigDict, base_config


def get_config() -> ConfigDict:
    """The recipe."""
    config = base_config()
    config.name = "transmil_tcga_rcc"
    config.aggregator = ConfigDict(
        {
            "name": "transmil",  # Model.name: TransMIL
            "feature_dim": 512,  # nn.Linear(1024, 512), ReLU, no dropout
            "dropout": 0.0,
            "num_heads": 8,  # heads = 8, dim_head = dim // 8
            "num_landmarks": 256,  # num_landmarks = dim // 2
            "pinv_iterations": 6,
            "residual_kernel": 33,  # residual = True
            "attention_dropout": 0.1,
            "squaring": True,
            "position": "ppeg",
            "initializer": "torch",
        }
    )
    config.splits.update({"kind": "k_fold", "folds": 4})  # 4-fold cross validation (paper)
    config.optimizer.update(
        {"name": "lookahead_radam", "lr": 2e-4, "weight_decay": 1e-5}
    )  # Optimizer.opt, lr, weight_decay
    config.optimizer.update({"decay_min_axes": 2, "accumulate_steps": 2})  # biases not decayed; General.grad_acc: 2
    config.train.update(
        {"epochs": 200, "patience": 10, "monitor": "val_loss", "seed": 2021}
    )  # General.epochs, patience, seed
    config.demo = ConfigDict(
        {
            "aggregator": {"feature_dim": 64, "num_heads": 4, "num_landmarks": 8, "residual_kernel": 5},
            "optimizer": {"lr": 2e-3, "accumulate_steps": 1},
            "train": {"epochs": 12, "patience": 0},
        }
    )
    return config
