"""The PathGene benchmark (arXiv 2506.00096): its tasks x its eleven baselines, and pooling beside them.

    python -m mil_jax.benchmark --config configs/benchmarks/pathgene.py --tables TABLES --config.data.features=FEATURES
    ... --protocol pathgene

TABLES holds the label tables (`<cohort>_EGFR_2_1_1.csv`, columns path, label, Fold). Under `clean` folds are drawn again, stratified, no
patient in two of them, and validation inside the training folds chooses the epoch. Under `pathgene` the folds are those of the tables and
the test fold chooses the epoch, as in the scripts (panliangrui/NIPS2025). What differs from the scripts under both: docs/guide/pathgene.md.
The owners of the data set ask that it not be used; this is for those who may, and for tables of the same layout.
"""

from mil_jax.cli.benchmark_plan import Benchmark, Method, Protocol, Table

SCRIPT = {"optimizer.name": "adam", "optimizer.lr": 1e-4, "optimizer.weight_decay": 1e-4}
SCRIPT |= {"optimizer.b1": 0.5, "optimizer.b2": 0.9, "optimizer.schedule.min_lr": 5e-6}  # train_dsmil_abmil
EPOCHS = {"train.epochs": 99, "train.patience": 0, "train.min_epochs": 0, "optimizer.schedule.epochs": 100}
CLAM = {"aggregator.pre_feature_dim": 1024}  # features are 768 wide
SOFTMAX = {"task.loss_name": "cross_entropy"}
POOLING = {**SCRIPT, **EPOCHS, "aggregator.dropout": 0.0}


def get_benchmark() -> Benchmark:
    """The benchmark."""
    recipes = "configs/recipes"
    return Benchmark(
        name="pathgene",
        settings={
            "task.name": "pathgene",
            "task.loss_name": "binary_cross_entropy",
            "data.target": "label",
            "data.unknown_labels": "drop",
            # TCGA's participant, else what stands before the first dash
            "data.patient": "regex:^(TCGA-[^-]+-[^-.]+|[^-.]+)",
            "splits.folds": 5,
        },
        methods={
            "mean pooling": Method("configs/mean_pooling.py", POOLING),
            "max pooling": Method("configs/max_pooling.py", POOLING),
            "ABMIL": Method("configs/pathgene.py"),
            "CLAM-SB": Method(f"{recipes}/clam_sb_pathgene.py", CLAM),
            "CLAM-MB": Method(f"{recipes}/clam_sb_pathgene.py", {**CLAM, "aggregator.name": "clam_mb"}),
            "DSMIL": Method(f"{recipes}/dsmil_pathgene.py"),
            "TransMIL": Method(f"{recipes}/transmil_pathgene.py", of_many=SOFTMAX),
            "HIPT": Method(f"{recipes}/hipt_pathgene.py"),
            "MHIM-MIL": Method(f"{recipes}/mhim_dsmil_pathgene.py"),
            "Patch-GCN": Method(f"{recipes}/patch_gcn_pathgene.py"),
            "DTFD-MIL": Method(f"{recipes}/dtfd_pathgene.py", SOFTMAX),
            "IBMIL": Method(f"{recipes}/ibmil_dtfd_pathgene.py", SOFTMAX),
            "RRT-MIL": Method("configs/rrt.py", EPOCHS),  # has no script: its authors' settings
        },
        protocols={
            "clean": Protocol({"train.monitor": "val_auc"}),
            "pathgene": Protocol(
                {"train.protocol": "reference", "train.monitor": "val_selection_score"}, own_folds=True
            ),
        },
        tables={
            "EGFR_2": Table("EGFR_2", 2),
            "KRAS_2": Table("KRAS_2", 2),
            "ALK_2": Table("ALK_2", 2),
            "TP53_2": Table("(?:p53|TP53)_2", 2),
            "TP53_3": Table("(?:p53|TP53)_3", 3),  # wild type, nonsense, missense
            "TP53_5": Table("TP53_5", 5),
            "TP53_out": Table("(?:p53|TP53)_(?:out|exon_5)", 5),  # exons 5, 6, 7, 8, other
            "EGFR_out": Table("EGFR_out", 3),  # exons 19, 20, 21
            "KRAS_out": Table("KRAS_out", 2),  # exon groups
            "ALK_out": Table("ALK_out", 2),  # fusion, point mutation
            "TMB_2": Table("TMB_2", 2),
            "te_4": Table("te_4", 4),  # TP53 x EGFR
        },
    )
