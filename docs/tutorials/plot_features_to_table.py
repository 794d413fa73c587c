"""
From features to a table
========================

A folder of features and a label table become a cross-validated result, and the models score another slide.
"""

# %%
# The data
# --------
# One file of features per slide, `[instances, D]`, and a table with a column each for the slide, the patient and the label. Here
# handwritten digits stand in for tiles: a "slide" is a bag of about 25 images of 64 pixels, and the question is whether a 9 is among them.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import mil_jax as mj
from mil_jax.data.datasets.digits import draw_bags

folder = Path(tempfile.mkdtemp())
(folder / "features").mkdir()
slides, table, _ = draw_bags(np.random.default_rng(0))
for slide in slides:
    np.save(folder / "features" / f"{slide.slide_id}.npy", slide.features)
table[["slide_id", "patient_id", "label"]].to_csv(folder / "labels.csv", index=False)
table[["slide_id", "patient_id", "label"]].head()

# %%
# Train and cross-validate
# ------------------------
# `small_abmil.py` is a config of our own: gated ABMIL with small widths and 15 epochs. All runs, here 3 folds x 2 seeds, are trained as
# one program. From the shell the same is
#
# .. code-block:: console
#
#     mil-jax train --config small_abmil.py --config.data.features=features/ --config.data.labels=labels.csv \
#         --config.data.target=label --config.splits.folds=3 --config.train.num_seeds=2 --config.run=run

run = mj.fit(
    features=folder / "features",
    labels=folder / "labels.csv",
    target="label",
    config="small_abmil.py",
    folds=3,
    seeds=2,
    out=folder / "run",
)
run.metrics

# %%
# What the run folder holds
# -------------------------
# `summary.md` is the result for people, `predictions.csv` has a row for each slide and run. Nothing of it needs mil_jax to be read.

print(sorted(path.name for path in (folder / "run").iterdir()))
test = run.predictions.query("part == 'test'")
test.head()

# %%
# The distribution of the predictions says more than one number:

for label, rows in test.groupby("target"):
    plt.hist(rows["prob_nine"], bins=20, range=(0, 1), alpha=0.6, label=label)
plt.xlabel("probability of a nine")
plt.ylabel("test predictions")
plt.legend()

# %%
# Another slide
# -------------
# A run folder is opened again by `mj.load`, whoever wrote it. `predict` averages over all models (folds x seeds); `attention` says which
# tiles were read. Patients that the models were trained on should be scored by `mil-jax evaluate`, which lets only those models speak that
# did not meet them.

run = mj.load(folder / "run")
slide = slides[1]  # its label is "nine"
print(run.predict(slide.features))

attention = run.attention(slide.features)
most = np.argsort(attention)[::-1][:5]
figure, axes = plt.subplots(1, 5, figsize=(7, 2))
for axis, tile in zip(axes, most):
    axis.imshow(slide.features[tile].reshape(8, 8), cmap="gray_r")
    axis.set_title(f"{attention[tile]:.2f}")
    axis.axis("off")
figure.suptitle("the five most attended tiles")
