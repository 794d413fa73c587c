"""Every setting of a run but the aggregator's: its default, what it means, and the numbers it may be.

One table serves the defaults of config files, `--help` and the check of values. What depends on other settings, or is a choice among
names, is checked where it is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from mil_jax.errors import ConfigError

MAX_SEED = 2**31 - 1  # seeds are folded into keys as 32-bit numbers
FEATURE_DIFFERENCES = ("encoder", "tile_size")  # in which features may differ from a run's, where it is asked for


class Setting(NamedTuple):
    """meaning: one sentence, names in backticks. least, most: of a number, both allowed. choices: where nothing else checks them."""

    default: Any
    meaning: str
    least: float = -math.inf
    most: float = math.inf
    choices: tuple[str, ...] = ()


SETTINGS: dict[str, Setting] = {
    "name": Setting("", "Name of the recipe; names the run folder and the summary."),
    "run": Setting("", "The run folder; empty: `runs/<name>`."),
    "data.features": Setting(
        "", "Folder of feature files, one per slide (CLAM, TRIDENT, STAMP or plain). Converted once into the cache."
    ),
    "data.recursive": Setting(
        False,
        "Also read feature files in the subfolders of `data.features` (one for each class, or GDC's for each file).",
    ),
    "data.shards": Setting("", "Instead of `data.features`: a folder written by `python -m data_prep.shard`."),
    "data.cache": Setting(
        "", "Where converted features and the embedded cohort are kept; empty: `mil_jax` in the user's cache folder."
    ),
    "data.encoder_name": Setting(
        "", "The encoder's name, where the feature files do not say it; else `unknown` is recorded."
    ),
    "data.nonfinite": Setting(
        "error",
        "Rows with NaN or infinity: `error` (all offenders are listed), `drop_rows` or `drop_slide`.",
        choices=("error", "drop_rows", "drop_slide"),
    ),
    "data.neighbors": Setting(
        0,
        "Neighbours of each tile, for methods on graphs (Patch-GCN: 8); shards must hold as many (`data_prep.shard --neighbors 8`).",
        least=0,
        most=64,
    ),
    "data.regions": Setting(
        0,
        "Tiles a side of the square regions that are the instances, for HIPT (16); shards must hold such (`data_prep.shard --regions "
        "16`). 0: instances are as they come.",
        least=0,
        most=64,
    ),
    "data.synthetic.bags": Setting(
        0,
        "For `mil_jax.profile` only, instead of data: forecast for so many bags, their sizes drawn, their features invented.",
        least=0,
        most=10_000_000,
    ),
    "data.synthetic.mean_size": Setting(
        10_000.0, "Mean number of instances of the bags that are drawn.", least=1.0, most=1e8
    ),
    "data.synthetic.sigma": Setting(
        0.56, "Deviation of the logarithm of their sizes, which are lognormal.", least=0.0, most=3.0
    ),
    "data.synthetic.dim": Setting(1024, "Width of their features.", least=1, most=1_000_000),
    "data.labels": Setting("", "The label table: csv, tsv, xlsx or parquet."),
    "data.slides_table": Setting("", "STAMP's second table, from patients to feature files."),
    "data.target": Setting(
        "",
        "The label column; several with commas, or a pattern such as `mut_*`, are targets of their own, each with its own models "
        "and splits.",
    ),
    "data.id_column": Setting("", "The column of slide names, where it is not recognised."),
    "data.patient": Setting(
        "", "Whose slide is whose: a column, `tcga` (barcodes), `regex:PATTERN` on the slide name, or `none`."
    ),
    "data.site": Setting("", "The hospital of a bag: a column, or `tcga`; empty: TCGA barcodes are recognised."),
    "data.unit": Setting("slide", "A bag is a `slide`, or all slides of a `patient`."),
    "data.filter": Setting(
        "",
        "An expression on the label table's columns, such as `age > 60 and stage in ['I', 'II']`; other rows are left out.",
    ),
    "data.classes": Setting("", "The classes in order, with commas; empty: those that occur, sorted."),
    "data.event": Setting(
        "",
        "Of survival: the column that says whether it happened (1) or was censored (0) at the time in `data.target`.",
    ),
    "data.censored": Setting("", "Instead of `data.event`: a column in which 1 means censored."),
    "data.covariates": Setting(
        "",
        "Columns of the label table, with commas, that the classifier reads beside the bag's embedding, such as `age,sex`; numbers are "
        "standardised by each run's training bags.",
    ),
    "data.unknown_labels": Setting(
        "error",
        "A label that is not in `data.classes`: `error`, or `drop` (its row is left out and counted).",
        choices=("error", "drop"),
    ),
    "data.positive": Setting("", "The class that is put last (of two: the positive one)."),
    "data.duplicates": Setting(
        "error", "One row of the table means several slides: `error`, `newest` (by file date) or `all`."
    ),
    "data.min_matched": Setting(
        0.5, "Least part of the labelled rows, and of the ids of a split file, that must be found; less is an error."
    ),
    "data.residency": Setting(
        "auto",
        "Where features are while training: `resident` (in memory), `streamed` (read from the shards again and again), or `auto` "
        "(by size); changes no result.",
        choices=("auto", "resident", "streamed"),
    ),
    "data.prefetch_gib": Setting(
        4.0,
        "Streamed: most GiB of host memory for features that are read ahead; so much of each device where all hold the cohort together.",
        least=1e-6,
        most=1e6,
    ),
    "data.normalize": Setting(
        "none", "`none`, `l2` (each instance to length 1) or `zscore` (mean and deviation of the run's training bags)."
    ),
    "data.max_padding": Setting(
        0.15,
        "Bags are padded to a few lengths, as few as keep the padding under this part of all instances;",
        least=0.0,
        most=0.99,
    ),
    "data.max_buckets": Setting(
        12,
        "at most this many lengths. Each is compiled once for training and once for evaluation.",
        least=1,
    ),
    "reembed.name": Setting(
        "",
        "Re-embeds the instances of a bag before the aggregator sees them: `rrt` (R2T); empty: they stay as they are.",
    ),
    "strategy.name": Setting(
        "",
        "How the aggregator is trained: `mhim` (a teacher masks instances), `ibmil` (its bag embedding reads from a dictionary of "
        "confounders), `linear_probe` (exactly, for several regularization strengths); empty: as is usual for it.",
    ),
    "splits.kind": Setting("k_fold", "`k_fold`, `monte_carlo`, `leave_one_group_out` or `file`."),
    "splits.file": Setting("", "A published split, or the `splits.csv` of an earlier run; sets the kind to `file`."),
    "splits.folds": Setting(
        5,
        "Number of folds, or of draws of `monte_carlo`. 0: no folds, but the final model, trained on everything for `train.epochs_of`.",
        least=0,
    ),
    "splits.repeats": Setting(1, "How often `k_fold` is repeated with other folds."),
    "splits.seed": Setting(0, "Seed of the splits and of the order of bags.", least=0, most=MAX_SEED),
    "splits.val_fraction": Setting(
        0.15, "Part of the training patients that becomes the validation part where the split has none; 0: none."
    ),
    "splits.test_fraction": Setting(0.2, "Part of the patients that `monte_carlo` tests on."),
    "splits.group": Setting(
        "",
        "A column (or `site`) whose values are never in the test part and another; the groups of `leave_one_group_out`.",
    ),
    "splits.test": Setting(
        "",
        "A fixed official test set: a column (`test`, `true`, `yes`, `1`) or a file of ids. Folds are made of the rest.",
    ),
    "task.name": Setting(
        "classification",
        "What is predicted: `classification`; `multilabel` (the columns of `data.target` are labels of 0 and 1 of one model, each present, "
        "absent or unknown); `multiclass` (the same with classes of its own in each column); `regression`; `survival`; "
        "`ordinal` (classes in order); "
        "`pathgene` (classes, with that benchmark's metrics beside the usual ones).",
    ),
    "task.loss_name": Setting(
        "",
        "Empty: the first of the task's. Classification: `cross_entropy`, `binary_cross_entropy` (a sigmoid per class), `bernoulli` (one "
        "sigmoid, two classes), `focal`. Multilabel: `binary_cross_entropy`, `focal`, `asymmetric`. Regression: `mse`, `mae`, `huber`. "
        "Survival: `nll`, `ce`, `cox`. Ordinal: `cumulative`.",
    ),
    "task.label_smoothing": Setting(0.0, "Classification: of the cross entropy, as in PyTorch."),
    "task.gamma": Setting(2.0, "Of the focal loss; of the positives of the asymmetric one.", least=0.0, most=20.0),
    "task.gamma_negative": Setting(4.0, "Multilabel: of the negatives of the asymmetric loss.", least=0.0, most=20.0),
    "task.margin": Setting(
        0.05,
        "Multilabel: negatives with a probability below it cost nothing in the asymmetric loss.",
        least=0.0,
        most=0.99,
    ),
    "task.joint": Setting(False, "Regression: one model predicts all columns of `data.target`, not one model each."),
    "task.delta": Setting(
        1.0, "Regression: where the Huber loss becomes linear, in standard deviations of the training part.", least=1e-6
    ),
    "task.transform": Setting(
        "none",
        "Regression: `log1p` predicts log10(1 + value), as HistCode does of expression ratios.",
        choices=("none", "log1p"),
    ),
    "task.bins": Setting(4, "Survival: bins of time, of `nll` and `ce`.", least=2, most=1000),
    "task.bins_from": Setting(
        "training",
        "Survival: whose deaths the bins are quantiles of: each run's `training` part, or the whole `cohort`, test patients included, as "
        "published code has it; the summary then says so.",
        choices=("training", "cohort"),
    ),
    "task.alpha": Setting(
        0.0, "Survival: weight taken from the censored (`nll`), or from the cross entropy (`ce`).", least=0.0, most=1.0
    ),
    "task.ties": Setting("breslow", "Survival: how `cox` treats equal times.", choices=("breslow", "efron")),
    "optimizer.name": Setting("adam", "`adam`, `adamw`, `sgd` or `lookahead_radam`."),
    "optimizer.lr": Setting(2e-4, "Base learning rate.", least=0.0, most=1e3),
    "optimizer.weight_decay": Setting(
        1e-5,
        "Added to the gradient (L2) by `adam` and `sgd`; taken off the parameters by the others.",
        least=0.0,
        most=1e3,
    ),
    "optimizer.b1": Setting(0.9, "Decay of the mean of gradients, of the adaptive optimisers."),
    "optimizer.b2": Setting(0.999, "Decay of the mean of their squares."),
    "optimizer.eps": Setting(1e-8, "Added to the root of the mean square."),
    "optimizer.momentum": Setting(0.0, "Of `sgd`."),
    "optimizer.nesterov": Setting(False, "Nesterov's momentum, of `sgd`."),
    "optimizer.decay_min_axes": Setting(
        0, "Parameters with fewer axes are not decayed; 2 spares biases and norms.", least=0
    ),
    "optimizer.clip_norm": Setting(0.0, "Largest global norm of a gradient; 0: no clipping."),
    "optimizer.accumulate_steps": Setting(1, "Gradients that are averaged for one update."),
    "optimizer.schedule.name": Setting("constant", "`constant`, `cosine` or `step`."),
    "optimizer.schedule.epochs": Setting(0, "Length of the cosine; 0: `train.epochs`.", least=0),
    "optimizer.schedule.min_lr": Setting(0.0, "Where the cosine ends.", least=0.0),
    "optimizer.schedule.every": Setting(10, "Epochs between two drops of `step`."),
    "optimizer.schedule.gamma": Setting(0.1, "Factor of a drop.", least=0.0),
    "optimizer.schedule.warmup_epochs": Setting(0.0, "Epochs of a linear rise from 0, step by step.", least=0.0),
    "optimizer.schedule.per_step": Setting(False, "The cosine or drop follows steps, not whole epochs."),
    "train.epochs": Setting(50, "Most epochs of a run.", least=1, most=100_000),
    "train.epochs_of": Setting(
        "",
        "With `splits.folds=0`: a cross-validated run folder; the final model is trained for the median of the epochs that its runs chose.",
    ),
    "train.num_seeds": Setting(
        1, "Runs per fold, each with its own initialisation, order and dropout.", least=1, most=10_000
    ),
    "train.seed": Setting(0, "The first seed.", least=0, most=MAX_SEED),
    "train.protocol": Setting("clean", "`clean` or `reference`; see the user guide."),
    "train.monitor": Setting(
        "val_loss",
        "Which epoch counts: `last`, or the best `val_loss`, `val_auc` (classes), `val_pearson` (regression), `val_c_index` (survival), "
        "`val_quadratic_kappa` (ordinal), `val_selection_score` (pathgene) of the validation part.",
    ),
    "train.patience": Setting(0, "Epochs without improvement after which a run stops; 0: never.", least=0),
    "train.min_epochs": Setting(0, "No run stops before.", least=0),
    "train.first_epoch": Setting(0, "The first epoch that may be chosen, from 0.", least=0),
    "train.batch_size": Setting(1, "Bags per step.", least=1),
    "train.data_parallel": Setting(
        1,
        "Devices that share the bags of a step, at most: for fewer runs than devices. As many are taken as divide both the batch "
        "and the devices.",
        least=1,
    ),
    "train.instance_parallel": Setting(
        1,
        "Devices that share the instances of each bag, at most: for bags too large for one device. As many are taken as divide both "
        "the devices and the lengths of the buckets.",
        least=1,
    ),
    "train.sample_instances": Setting(
        0,
        "Most instances drawn from a bag for a training step, anew in each; 0: all. Evaluation reads whole bags.",
        least=0,
    ),
    "train.microbatch_size": Setting(
        0,
        "Bags of a step that are computed together, the others after them and once more for the gradient: less memory for a large "
        "`train.batch_size`, the same loss over all its bags. 0: all.",
        least=0,
    ),
    "train.class_weights": Setting(
        False, "Weigh each bag's loss by the inverse frequency of its class in the training part."
    ),
    "train.balanced_sampling": Setting(False, "Draw training bags with replacement, all classes equally often."),
    "train.permute_labels": Setting(
        False, "A control: labels are shuffled among the bags, so every metric should be at chance."
    ),
    "train.checkpoint_seconds": Setting(
        60.0, "Least time between two checkpoints, which are written at the end of an epoch.", least=0.0
    ),
    "train.order": Setting(
        "independent",
        "`independent`: each run shuffles its own bags; `fold`: the runs of a fold share a shuffle, and a GPU reads their bags once.",
        choices=("independent", "fold"),
    ),
    "train.steps_per_dispatch": Setting(
        64, "Most steps of one bucket length that are sent to the device at once; changes no result.", least=1
    ),
    "train.replica_axis": Setting(
        "auto",
        "How runs go side by side on a device: `map` (sequentially), `vmap` (as one batch), or `auto` (`map` on a CPU).",
        choices=("auto", "map", "vmap"),
    ),
    "train.precision": Setting(
        "auto",
        "`float32`, or `bfloat16` for the forward and backward pass (parameters and losses stay float32), or `auto`: `bfloat16` on a "
        "GPU for aggregators that were measured to lose no AUC by it.",
        choices=("auto", "float32", "bfloat16"),
    ),
    "train.memory_gib": Setting(
        0.0,
        "Most memory of a device to use, in GiB, which decides whether it holds the cohort and how many runs go at once; 0: what it has.",
        least=0.0,
    ),
    "train.debug_nans": Setting(
        False, "Stop where a loss or an update is no longer finite, and name the run, the step and its bag; slower."
    ),
    "train.matmul_precision": Setting(
        "default",
        "JAX's precision of float32 matrix products; `default` leaves it to JAX, which on an NVIDIA GPU takes TF32 (10 bits behind the "
        "point; what is ranked is exact even so): `highest` there is float32, and slower.",
        choices=("default", "high", "highest", "bfloat16", "tensorfloat32", "float32"),
    ),
    "train.tensorboard": Setting(False, "Write TensorBoard files, too (extra `tensorboard`)."),
    "train.wandb": Setting(False, "Log to Weights & Biases, too (extra `wandb`)."),
    "distributed.coordinator": Setting(
        "",
        "For several processes: `HOST:PORT` of the first, or `auto` under Slurm or Open MPI, which know it; empty: one process.",
    ),
    "distributed.num_processes": Setting(0, "How many processes there are; not needed with `auto`.", least=0),
    "distributed.process_id": Setting(-1, "Which one this is, from 0; not needed with `auto`.", least=-1),
}

RENAMED = {  # what settings were called in earlier versions; the old names work until 1.0
    "data.max_shapes": "data.max_buckets",
    "data.max_waste": "data.max_padding",
    "data.stream_gib": "data.prefetch_gib",
    "train.bag_devices": "train.instance_parallel",
    "train.bags_at_a_time": "train.microbatch_size",
    "train.balanced": "train.balanced_sampling",
    "train.batch_devices": "train.data_parallel",
    "train.select": "train.monitor",
    "train.slots_per_dispatch": "train.steps_per_dispatch",
}


RENAMED_VALUES = {"train.order": {"shared": "fold"}}  # the same for values

# Settings that run folders of earlier versions lack, with what those versions did.
_ADDED = {("data", "recursive"): False}


def present_settings(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run folder, which an earlier version may have written, under their present names."""
    present: dict[str, Any] = {}
    for group, value in stored.items():
        if group == "demo":
            value = present_settings(value)
        elif group == "sweep":
            value = [
                RENAMED.get(name, name) + "=" + values for name, _, values in (one.partition("=") for one in value)
            ]
        elif isinstance(value, dict):
            value = {RENAMED.get(f"{group}.{name}", f"{group}.{name}").split(".")[1]: of for name, of in value.items()}
            value = {name: RENAMED_VALUES.get(f"{group}.{name}", {}).get(str(of), of) for name, of in value.items()}
            value |= {name: of for (part, name), of in _ADDED.items() if part == group and name not in value}
        present[group] = value
    return present


def check_value(name: str, value: Any) -> None:
    """Raises ConfigError for a number that is not finite or outside its limits, and for text that is not among the choices."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name}={value} must be a finite number")
    setting = SETTINGS.get(name)
    if setting is None:
        return
    if setting.choices and value not in setting.choices:
        raise ConfigError(f"{name}={value!r} is unknown; choose one of {', '.join(setting.choices)}")
    if isinstance(value, int | float) and value < setting.least:
        raise ConfigError(f"{name}={value} must be at least {setting.least:g}")
    if isinstance(value, int | float) and value > setting.most:
        raise ConfigError(f"{name}={value} must be at most {setting.most:g}")
