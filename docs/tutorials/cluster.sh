#!/usr/bin/env bash
# One cohort on a Slurm cluster, in three jobs that wait for each other; all nodes see the same folders.
#   bash cluster.sh SLIDES WORK LABELS
set -euo pipefail
slides=${1:?folder of slides} work=${2:?folder to write to} labels=${3:?label table}
parts=${PARTS:-20}

# Tiles: an array job, each task a part of the slides. %a is SLURM_ARRAY_TASK_ID, from 1 to the number of parts.
tiles=$(sbatch --parsable --array=1-"$parts" --cpus-per-task=4 --job-name=tile --wrap \
    "python -m data_prep.tile --slides '$slides' --out '$work' --mpp 0.5 --shard \$SLURM_ARRAY_TASK_ID/$parts")

# Features: the same, on a GPU each. A task that is killed is started again with the same command, and does what is missing.
features=$(sbatch --parsable --array=1-"$parts" --gpus=1 --requeue --dependency=afterok:"$tiles" --job-name=encode --wrap \
    "python -m data_prep.encode --work '$work' ${ENCODER:---encoder uni_v1 --weights pytorch_model.bin} \
        --shard \$SLURM_ARRAY_TASK_ID/$parts")

# Training: one job. SIGTERM, sent two minutes before the time limit, saves the state; with --resume the same command starts or continues.
sbatch --dependency=afterok:"$features" --gpus=1 --requeue --signal=B:TERM@120 --job-name=train --wrap \
    "exec mil-jax train --config abmil --config.data.features='$work/features' --config.data.labels='$labels' \
        --config.data.target=${TARGET:-label} --config.run='$work/run' --resume ${TRAINING:-}"
