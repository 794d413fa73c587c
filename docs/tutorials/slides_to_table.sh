#!/usr/bin/env bash
# From slides to a table, on synthetic slides: bash slides_to_table.sh FOLDER
set -euo pipefail
cd "${1:?the folder to write to}"

# Slides. Yours would already be there: any format that OpenSlide reads.
python -m data_prep.demo_slides --out slides/ --count 12 --width 1024 --height 1024

# Tiles of 128 pixels at 0.5 micrometres per pixel, on tissue. Look at work/qc/*.jpg.
python -m data_prep.tile --slides slides/ --out work/ --mpp 0.5 --tile 128 --min-tissue 0.5

# Features. A small network with random weights; for real slides a pretrained one, such as
#   --encoder uni_v1 --weights pytorch_model.bin
python -m data_prep.encode --work work/ --encoder resnet18 --weights random --input-size 32 \
    --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --pool mean --batch-size 32

# What would be trained on: slides found, classes by fold, leaks. Nothing is trained.
mil-jax train --config max_pooling --config.data.features=work/features --config.data.labels=slides/labels.csv \
    --config.data.target=label --config.data.positive=lesion --config.splits.folds=2 --check

# Train and cross-validate; summary.md is in run/.
mil-jax train --config max_pooling --config.data.features=work/features --config.data.labels=slides/labels.csv \
    --config.data.target=label --config.data.positive=lesion --config.splits.folds=2 \
    --config.train.epochs=10 --config.train.patience=0 --config.train.monitor=last --config.run=run
