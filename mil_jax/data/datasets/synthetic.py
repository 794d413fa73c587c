"""A cohort of which only the sizes are drawn: what `python -m mil_jax.profile` forecasts a cohort of a given size with.

Sizes are lognormal, as those of slides are: the default (mean 10,000, sigma 0.56) is near Camelyon16's. There are no features, so
that no disk is needed: the index says how long each bag would be, and reading one is an error.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from mil_jax.data.shards.index import ShardIndex
from mil_jax.data.shards.reader import Shards
from mil_jax.errors import ConfigError
from mil_jax.files import atomic_write
from mil_jax.interop.slide_bag import UNKNOWN

CLASSES = ("negative", "positive")
_CLASHING = ("data.features", "data.shards", "data.labels", "data.target", "splits.file", "splits.test", "splits.group")


def synthetic_shards(config: ConfigDict, folder: Path) -> tuple[Shards, dict[str, str]]:
    """An index of bags of float16 features [size, dim] that lie nowhere, as `data.synthetic` asks for; and the settings of `data` that
    name their label table (slide_id, patient_id and label, the classes in turn), which is written below `folder`.

    Raises ConfigError where data is named as well.
    """
    for name in _CLASHING:
        group, last = name.split(".")
        if config[group][last]:
            raise ConfigError(
                f"data.synthetic.bags and {name} are both set: bags that are drawn have sizes only; set one"
            )
    bags, mean_size, sigma, dim = (config.data.synthetic[name] for name in ("bags", "mean_size", "sigma", "dim"))
    drawn = np.random.default_rng(0).lognormal(np.log(mean_size) - sigma**2 / 2, sigma, bags)
    num_parts = config.data.regions**2
    sizes = np.maximum(np.round(drawn / max(num_parts, 1)), 1).astype(np.int64)
    names = [f"drawn-{number:06d}" for number in range(bags)]
    table = pd.DataFrame({"slide_id": names, "patient_id": names, "label": np.resize(CLASSES, bags)})
    labels = folder / f"synthetic-labels-{bags}.csv"
    with atomic_write(labels) as temporary:
        table.to_csv(temporary, index=False)
    numbers = dict.fromkeys(("shard", "record", "offset", "message_bytes", "features_offset", "coords_offset"), 0)
    unknown = dict.fromkeys(("tile_size_level0", "mpp_level0", "source_mtime"), np.nan)
    texts = {"coordinate_unit": "none", "encoder": UNKNOWN, "tile_order": UNKNOWN, "source": ""}
    records = pd.DataFrame({"slide_id": names, "num_instances": sizes, "length": sizes}).assign(
        **numbers, checksum=0, dropped_rows=0, **unknown, **texts
    )
    shape = (num_parts, dim) if num_parts else (dim,)
    index = ShardIndex(shape, np.dtype("<f2"), (), records, num_neighbors=config.data.neighbors, num_parts=num_parts)
    tables = {"labels": str(labels), "target": "label", "patient": "patient_id", "classes": ",".join(CLASSES)}
    return Shards(folder, index), tables
