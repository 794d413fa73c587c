"""Answers to the cases of HistCode's stain normalisation (Macenko). The pictures that they start from are stored in them."""

from __future__ import annotations

import numpy as np

from data_prep.slides.stain import (
    concentrations,
    fit_macenko,
    normalize_macenko,
    optical_density,
    reference_stains,
    separate_stains,
)
from tests.parity.adapters.base import Answer
from tests.parity.case import Case


class _Macenko:
    def bag_sizes(self, case: Case) -> list[int]:
        return []

    def answer(self, case: Case, bucket: int | None) -> Answer:
        tile, target = case.arrays["out/tile"], case.arrays["out/target"]
        light, least = float(case.config["Io"]), float(case.config["beta"])
        settings = {"light": light, "least_density": least, "percentile": float(case.config["alpha"])}
        own, fitted = fit_macenko(tile, **settings), fit_macenko(target, **settings)
        density = np.asarray(optical_density(tile, light)).reshape(-1, 3)
        values = {
            "out/tile": tile,
            "out/target": target,
            "out/HE": own.vectors,
            "out/maxC": own.strongest,
            "out/C": concentrations(density, own.vectors).T,
            "out/fit_HE": fitted.vectors,
            "out/fit_maxC": fitted.strongest,
            "out/n_tissue": (density >= least).all(axis=1).sum(),
        }
        for name, stains in (("default", reference_stains()), ("fitted", fitted)):
            values[f"out/norm_{name}"] = normalize_macenko(tile, own, stains, light=light)
            alone = separate_stains(tile, own, stains, light=light)
            values |= {f"out/H_{name}": alone[0], f"out/E_{name}": alone[1]}
        return Answer(values, {f"out/{name}": "not formed" for name in ("eigvals", "phi_span")})


ADAPTERS = {("histcode", "macenko"): _Macenko()}
