"""What the parts of a fold share that they should not: patients, slides, near-copies of features; and what the encoder has seen before.

An encoder that was pretrained, without labels, on the public set that a cohort comes from knows its test slides: results on other
cohorts may be lower. Which encoder learnt from what is as its authors' papers say.
"""

from __future__ import annotations

import re

import numpy as np

from mil_jax.data.cohort.ids import base_name, tcga_patient
from mil_jax.data.loading.feature_moments import BagMoments, near_duplicates
from mil_jax.data.splits.splits import TEST, UNUSED
from mil_jax.data.tables import listed
from mil_jax.experiment.experiment import Experiment
from mil_jax.run_folder.features_json import FeatureKind

# Names as TRIDENT, STAMP and CLAM write them, letters and digits only; what they begin with.
_LEARNT_FROM_TCGA = {
    "ctranspath": "TCGA and PAIP",
    "chief": "TCGA and PAIP (its tile encoder is CTransPath)",
    "retccl": "TCGA and PAIP",
    "hipt": "TCGA",
    "phikonv2": "TCGA, CPTAC, GTEx and others",
    "phikon": "TCGA",
    "lunit": "TCGA and a private set",
    "kaiko": "TCGA",
    "midnight": "TCGA",
    "gpfm": "TCGA and other public sets",
    "musk": "TCGA and others",
    "remedis": "TCGA",
}
_NOT_FROM_TCGA = (
    "uni",
    "conch",
    "virchow",
    "gigapath",
    "provgigapath",
    "titan",
    "resnet50",
    "hoptimus",
    "hibou",
    "plip",
)


def leak_report(experiment: Experiment, bags: BagMoments) -> list[str]:
    """Sentences for the summary. bags: moments of all bags of the cohort."""
    cohort = experiment.cohort
    numbers = np.concatenate(cohort.slides)
    encoders = FeatureKind.of(experiment.shards, numbers).encoders
    patients = set(cohort.bags["patient_id"])
    from_tcga = sum(tcga_patient(patient) is not None for patient in patients)
    known = pretraining(encoders, from_tcga, len(patients))
    if not (experiment.parts == TEST).any():
        return known
    said = []
    if not any(len(target.splits.leaks) for target in experiment.targets):
        said.append("Leaks: no patient is in two parts of a fold.")
    return [*said, *_slides(experiment), *_copies(experiment, bags), *known]


def pretraining(encoders: tuple[str, ...], from_tcga: int, patients: int) -> list[str]:
    """A sentence on what the encoders learnt from, where the cohort has TCGA's patients."""
    if not from_tcga:
        return []
    said = []
    for name in encoders:
        known = re.sub(r"[^a-z0-9]", "", name.lower())
        sources = next((source for key, source in _LEARNT_FROM_TCGA.items() if known.startswith(key)), None)
        if sources:
            said.append(
                f"Leaks: the encoder {name} was pretrained on {sources}, and {from_tcga} of {patients} patients are TCGA's: it has met "
                "their slides, without labels, test parts included."
            )
        elif not known.startswith(_NOT_FROM_TCGA):
            said.append(
                f"Leaks: {from_tcga} of {patients} patients are TCGA's; whether the encoder {name} was pretrained on them is not known."
            )
    if not encoders:
        said.append(
            f"Leaks: {from_tcga} of {patients} patients are TCGA's; the features do not say their encoder, so whether it was pretrained on "
            "them is not known."
        )
    return said


def _slides(experiment: Experiment) -> list[str]:
    """Slides of one name in bags of different parts."""
    bag_of: dict[str, set[int]] = {}
    for bag, slides in enumerate(experiment.cohort.slide_ids):
        for slide in slides:
            bag_of.setdefault(base_name(slide), set()).add(bag)
    pairs = [(min(bags), max(bags)) for bags in bag_of.values() if len(bags) > 1]
    apart = _in_different_parts(experiment, np.array(pairs, np.int64).reshape(-1, 2))
    return _sentence(experiment, apart, "have a slide of the same name")


def _copies(experiment: Experiment, bags: BagMoments) -> list[str]:
    apart = _in_different_parts(experiment, near_duplicates(bags))
    return _sentence(experiment, apart, "have nearly the same features") or [
        "Leaks: no two bags in different parts of a fold have nearly the same features."
    ]


def _in_different_parts(experiment: Experiment, pairs: np.ndarray) -> np.ndarray:
    """Of pairs [P, 2] of bags those that are in different parts of a fold, one of them tested."""
    first, second = experiment.parts[:, pairs[:, 0]], experiment.parts[:, pairs[:, 1]]
    apart = (first != second) & (first != UNUSED) & (second != UNUSED) & ((first == TEST) | (second == TEST))
    return pairs[apart.any(axis=0)]


def _sentence(experiment: Experiment, pairs: np.ndarray, what: str) -> list[str]:
    if not len(pairs):
        return []
    ids = experiment.cohort.bags["bag_id"].to_numpy()
    shown = listed([f"{ids[a]} and {ids[b]}" for a, b in pairs.tolist()], 2)
    return [f"Leaks: {len(pairs)} pairs of bags in the test part and another part of a fold {what} ({shown})."]
