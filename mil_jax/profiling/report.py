"""The tables and sentences of `python -m mil_jax.profile`: what is planned, what was measured, what it will take, and why it is slow.

Every sentence is derived from the figures; nothing here measures or prints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mil_jax.data.buckets import fit_ladder
from mil_jax.data.loading.residency import STREAMED
from mil_jax.experiment.experiment import Experiment
from mil_jax.profiling.forecast import BucketFigures, EpochPlan, Forecast
from mil_jax.profiling.machine_peaks import Ceilings

MIB = 2**20
PART_NAMES = {
    "steps": "training steps",
    "evaluation": "evaluation on held-out bags",
    "dispatches": "dispatches (starting programs)",
    "host": "the host between epochs",
    "reading": "reading the features",
    "compilation": "compilation",
}
NEAR_THE_CEILING = 0.5  # of what the machine can do: from here on a step is called bound by it
MUCH_PADDING, MUCH_IDLE = 0.10, 0.15


@dataclass(frozen=True)
class Roofline:
    """Of one bucket's training step of all runs: the least seconds that the ceilings allow, and which of them is the tighter.

    traffic: memory traffic by the compiler's count, as a share of what the machine copies in the time measured.
    """

    share: float
    bound: str
    traffic: float


def rooflines(
    figures: Sequence[BucketFigures], ceilings: Ceilings, precision: str, row_bytes: int, state_bytes: int, batch: int
) -> list[Roofline]:
    """A roofline for each bucket.

    The least work: the matrix products; and reading each bag twice (forward, and for the gradient of the first layer) and the state
    of the run once, and writing the state.
    """
    lines = []
    for bucket in figures:
        runs = bucket.step.runs
        products = bucket.train.operations / bucket.train.side_by_side * runs
        moved = runs * (2 * batch * bucket.length * row_bytes + 2 * state_bytes)
        least = {
            "products": products / ceilings.products.get(precision, ceilings.products["float32"]),
            "memory": moved / ceilings.near,
        }
        bound = max(least, key=lambda name: least[name])
        seconds = max(bucket.step.seconds, 1e-12)
        traffic = bucket.train.traffic_bytes / bucket.train.side_by_side * runs / ceilings.near / seconds
        lines.append(Roofline(least[bound] / seconds, bound, traffic))
    return lines


def plan_table(experiment: Experiment, plan: EpochPlan, figures: Sequence[BucketFigures]) -> pd.DataFrame:
    """A row per bucket: bags, padding, operations, memory, seconds of compilation."""
    sizes, numbers = experiment.cohort.bags["num_instances"].to_numpy(), experiment.bucket
    rows = []
    for number, bucket in enumerate(figures):
        mine = sizes[numbers == number]
        rows.append(
            {
                "length": f"{bucket.length:,}",
                "bags": len(mine),
                "padding %": _rounded(100 * (1 - mine.mean() / bucket.length)) if len(mine) else 0.0,
                "steps an epoch": int(plan.steps[:, number].sum()),
                "GFLOP a step": _rounded(bucket.train.operations / bucket.train.side_by_side / 1e9),
                "GFLOP an eval": _rounded(bucket.evaluate.operations / bucket.evaluate.side_by_side / 1e9),
                "step MiB": _rounded(bucket.train.temporary_bytes / MIB),
                "MiB a run": _rounded(bucket.train.temporary_bytes / MIB / bucket.train.side_by_side),
                "eval MiB": _rounded(bucket.evaluate.temporary_bytes / MIB),
                "compile s": _rounded(bucket.train.compile_seconds + bucket.evaluate.compile_seconds),
            }
        )
    return pd.DataFrame(rows)


def measured_table(experiment: Experiment, figures: Sequence[BucketFigures], lines: Sequence[Roofline]) -> pd.DataFrame:
    """A row per bucket: milliseconds, rates, share of the roofline."""
    batch = experiment.config.train.batch_size
    sizes, numbers = experiment.cohort.bags["num_instances"].to_numpy(), experiment.bucket
    rows = []
    for number, (bucket, line) in enumerate(zip(figures, lines, strict=True)):
        seconds = max(bucket.step.seconds, 1e-12) / bucket.step.runs
        mine = sizes[numbers == number]
        rows.append(
            {
                "length": f"{bucket.length:,}",
                "step ms": _rounded(1e3 * seconds),
                "bags/s": _rounded(batch / seconds),
                "1,000 inst./s": _rounded(batch / seconds * (mine.mean() if len(mine) else bucket.length) / 1e3),
                "% of roofline": _rounded(100 * line.share),
                "bound by": line.bound,
                "traffic %": _rounded(100 * line.traffic),
                "eval ms": _rounded(1e3 * bucket.evaluation_seconds / bucket.step.runs),
            }
        )
    return pd.DataFrame(rows)


def time_table(forecast: Forecast) -> pd.DataFrame:
    """Where the time of the whole config goes, largest part first."""
    rows = sorted(forecast.seconds.items(), key=lambda item: -item[1])
    return pd.DataFrame(
        [
            {"part": PART_NAMES[name], "time": duration(seconds), "%": _rounded(100 * seconds / forecast.total)}
            for name, seconds in rows
        ]
    )


def verdict(
    experiment: Experiment,
    plan: EpochPlan,
    figures: Sequence[BucketFigures],
    lines: Sequence[Roofline],
    forecast: Forecast,
    *,
    devices: int,
    vectorised: bool,
) -> list[str]:
    """One to three sentences: the largest part of the time, why, and which setting would change it by how much."""
    part = max(forecast.seconds, key=lambda name: forecast.seconds[name])
    seconds, total = forecast.seconds[part], forecast.total
    largest = (
        f"The largest part is {PART_NAMES[part]}: {duration(seconds)} of {duration(total)} ({seconds / total:.0%})."
    )
    config, lengths = experiment.config, len(figures)
    each = forecast.seconds["compilation"] / max(lengths, 1)
    if part == "steps":
        return [largest, *_about_steps(experiment, plan, figures, lines, forecast, devices, vectorised, each)]
    if part == "compilation":
        advice = f"each bucket length costs {duration(each)}, once"
        if lengths > 1:
            fewer = max(1, lengths // 2)
            waste = fit_ladder(_sizes(experiment), max_padding=0.0, max_buckets=fewer).waste
            advice += (
                f"; data.max_buckets={fewer} (now {lengths} lengths) would save about {duration(each * (lengths - fewer))} for "
                f"{waste:.0%} padding instead of {experiment.ladder.waste:.0%}"
            )
        return [largest, f"{advice[0].upper()}{advice[1:]}. With more epochs or runs its share falls."]
    if part == "evaluation":
        return [
            largest,
            "Held-out bags are evaluated after every epoch to choose it; train.monitor=last evaluates none between epochs.",
        ]
    if part == "dispatches":
        per_epoch = forecast.seconds["dispatches"] / config.train.epochs
        return [
            largest,
            f"An epoch spends {duration(per_epoch)} on starting programs, because neighbouring bags have different lengths: "
            f"fewer lengths (data.max_buckets, now {lengths}; data.max_padding, now {config.data.max_padding:g}) make longer dispatches.",
        ]
    if part == "host":
        return [
            largest,
            "Between epochs the host draws the order and judges the held-out predictions of every run: train.monitor=last leaves the "
            "judging out, a larger train.batch_size leaves fewer steps to order (and is another recipe).",
        ]
    kind = experiment.shards.dtype
    what = (
        "A faster disk" if kind != "float32" else "Shards of float16 (data_prep.shard --dtype float16), half as long,"
    )
    how_often = "It is spent once, whatever the epochs."
    if experiment.residency.kind == STREAMED:
        how_often = (
            "The cohort is streamed: this is what reading takes beyond the steps, epoch after epoch (data.residency)."
        )
    return [largest, f"{what} would shorten it; the features are stored as {kind}. {how_often}"]


def _about_steps(
    experiment: Experiment,
    plan: EpochPlan,
    figures: Sequence[BucketFigures],
    lines: Sequence[Roofline],
    forecast: Forecast,
    devices: int,
    vectorised: bool,
    compile_each: float,
) -> list[str]:
    config, steps = experiment.config, forecast.seconds["steps"]
    weights = [float(count) * bucket.step.seconds for count, bucket in zip(plan.steps.sum(axis=0), figures)]
    share = sum(w * line.share for w, line in zip(weights, lines)) / sum(weights)
    traffic = sum(w * line.traffic for w, line in zip(weights, lines)) / sum(weights)
    bound = max(zip(weights, lines), key=lambda pair: pair[0])[1].bound
    allowed = {"products": "matrix products allow", "memory": "memory allows"}[bound]
    said = []
    if forecast.padding_share > MUCH_PADDING:
        finer = fit_ladder(_sizes(experiment), max_padding=0.0, max_buckets=min(2 * len(figures), 24))
        saved = steps * (forecast.padding_share - finer.waste)
        costs = compile_each * (len(finer.lengths) - len(figures))
        said.append(
            f"{forecast.padding_share:.0%} of the steps' time is spent on padding: data.max_padding=0 with data.max_buckets="
            f"{len(finer.lengths)} would take {finer.waste:.0%}, so about {duration(max(saved, 0))} less, for {duration(max(costs, 0))} "
            "more of compilation."
        )
    if forecast.idle_share > MUCH_IDLE:
        what = (
            "runs wait where their folds have no bag of the length at hand (fewer lengths: data.max_buckets)"
            if vectorised
            else f"{len(experiment.plan.replicas)} runs do not fill {devices} devices evenly (train.num_seeds)"
        )
        said.append(f"{forecast.idle_share:.0%} of the devices' time is idle: {what}.")
    if share >= NEAR_THE_CEILING:
        said.append(
            f"The steps reach {share:.0%} of what this machine's {allowed}: only less work (fewer instances, smaller widths), "
            "another machine, or fewer epochs make them shorter."
        )
    elif traffic >= NEAR_THE_CEILING:
        said.append(
            f"The steps reach {share:.0%} of the roofline, but by the compiler's count they move {traffic:.0%} of what memory can: "
            "values between layers are what takes the time; narrower ones (smaller widths; on a GPU train.precision) shorten it."
        )
    else:
        longest = figures[-1].length
        small = figures[-1].train.operations / figures[-1].train.side_by_side < 1e9
        said.append(
            f"The steps reach {share:.0%} of what this machine's {allowed}"
            + (
                f": bags of at most {longest:,} instances are too little work for it; more bags a step (train.batch_size, now "
                f"{config.train.batch_size}; another recipe) or more runs at once (train.num_seeds) use it better."
                if small
                else "; --trace DIR shows which operations the rest goes to."
            )
        )
    return said


def duration(seconds: float) -> str:
    """`0.8 ms`, `12 s`, `3.4 min`, `2.1 h`, `3.2 days`."""
    for limit, unit, name in (
        (1e-3, 1e-6, "us"),
        (1.0, 1e-3, "ms"),
        (120, 1, "s"),
        (7200, 60, "min"),
        (172_800, 3600, "h"),
    ):
        if seconds < limit:
            return f"{_rounded(seconds / unit):g} {name}"
    return f"{_rounded(seconds / 86_400):g} days"


def _sizes(experiment: Experiment) -> Any:
    return experiment.cohort.bags["num_instances"].to_numpy()


def _rounded(value: float) -> float:
    """Three digits, and no fraction from 100 on."""
    if not math.isfinite(value) or value == 0:
        return float(value)
    return float(round(value, max(0, 2 - math.floor(math.log10(abs(value))))))
