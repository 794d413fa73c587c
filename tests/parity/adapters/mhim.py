"""Cases of MHIM-MIL, branch v1: masks, schedules, consistency loss, moving average, and whole steps on given random choices."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mil_jax import aggregators
from mil_jax.interop.torch_checkpoints import export_state_dict, import_state_dict
from mil_jax.layers import instance_masks
from mil_jax.layers.instance_masks import MaskCounts
from mil_jax.layers.losses import feature_consistency
from mil_jax.layers.moving_average import ema_update
from mil_jax.strategies.base import Batch, Steps, TrainState
from mil_jax.strategies.lr_schedule import Schedule
from mil_jax.strategies.mhim import MHIM
from mil_jax.strategies.mhim_settings import MHIMSettings
from tests.parity.adapters.base import Answer, classification_task, gradient_entries, named_as_stored, stack_bags
from tests.parity.case import Case

_SETTINGS = {  # the reference's option -> ours
    "mask_ratio": "mask_random",
    "mask_ratio_l": "mask_low",
    "mask_ratio_h": "mask_high",
    "mask_ratio_hr": "mask_high_share",
    "cl_alpha": "consistency_weight",
    "temp_t": "temperature",
    "attn_layer": "attention_layer",
    "msa_fusion": "fusion",
    "mm": "momentum",
    "mm_final": "momentum_final",
}
_VARIANTS = {"attn": "mhim_pure_attn", "selfattn": "transmil_selfattn", "dsmil": "mhim_pure_dsmil"}
V1_DSMIL = {"prediction": "mean_softmax", "loss": "streams"}
NO_DROPOUT = {"dropout": 0.0}


def masking_of(config: dict[str, Any], **others: Any) -> MHIMSettings:
    """The settings that a case's config names; the share of the high part falls where the case is at an iteration."""
    named = {ours: config[theirs] for theirs, ours in _SETTINGS.items() if config.get(theirs) is not None}
    falls = bool(config.get("mrh_sche", config.get("sche", "i" in config)))
    return MHIMSettings(**{**named, "mask_high_cosine": falls, **others})


def build(case: Case, dsmil: dict[str, Any] = V1_DSMIL) -> tuple[nn.Module, str]:
    """The aggregator that a case's config and parameters describe, without dropout, and its variant; dsmil: fields of that one."""
    config, shapes = case.config, case.meta["params"]
    variant = _VARIANTS[config["baseline"]]
    name, fields = aggregators.variants()[variant]
    others = dsmil if name == "dsmil" else {}
    feature = next(shape for key, shape in shapes.items() if key in ("patch_to_emb.0.weight", "feature.0.weight"))
    fields = {**fields, **NO_DROPOUT, **others, "feature_dim": feature[0]}
    fields["feature_activation"] = config.get("act", "relu")
    if name == "abmil":
        gated = any("attention_a" in key for key in shapes)
        first = "attention_a.0" if gated else "attention.0"
        fields |= {"gated": gated, "attention_activation": config.get("da_act", "relu")}
        fields["attention_dim"] = shapes[f"online_encoder.attention.{first if gated else 'attention.0'}.weight"][0]
    if name == "transmil":
        qkv, heads = shapes["online_encoder.layer1.attn.to_qkv.weight"], config.get("head", 8)
        fields |= {"num_heads": heads, "head_dim": qkv[0] // (3 * heads), "attention_dropout": 0.0}
    return aggregators.create(name, config["n_classes"], **fields), variant


def recording() -> optax.GradientTransformationExtraArgs:
    """An optimiser that moves nothing and whose state is the last gradient."""
    zeros = lambda params: jax.tree.map(jnp.zeros_like, params)  # noqa: E731
    return optax.GradientTransformationExtraArgs(zeros, lambda grads, state, params=None, **_: (zeros(grads), grads))


def order_draws(numbers: np.ndarray, size: int) -> np.ndarray:
    """Draws [size] in whose order the instances `numbers` come, before all others."""
    draws = np.full(size, float(size))
    draws[numbers] = np.arange(len(numbers))
    return draws


@dataclasses.dataclass(frozen=True)
class Choice:
    """The random choices of a case below `prefix`, and the ties that it settles, on scores [H, N] of which n columns are real."""

    case: Case
    prefix: str
    counts: MaskCounts
    fusion: str = "vote"

    def stored(self, name: str) -> Any:
        return self.case.arrays.get(f"{self.prefix}{name}")

    def masked(self, scores: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """(bool [N], what the case may have stored of the mask)."""
        size, number, counts = len(mask), int(mask.sum()), self.counts
        real = scores[:, mask]
        single = len(scores) == 1 or self.fusion == "mean"
        values: dict[str, Any] = {}
        draws = [np.zeros(size), np.zeros(size)]
        if counts.random is not None:
            pool = np.argsort(real[0], kind="stable") if len(scores) == 1 else self.stored("pool_random")
            perm = self.stored("perm_random")
            draws[0] = order_draws(pool[perm], size)
            values |= {"pool_random": pool, "perm_random": perm, "k_random": counts.random}
        if counts.low is not None:
            values |= {"k_low": counts.low, "votes_low": self._votes(scores, mask, counts.low)}
        if counts.pool is not None:
            pool = self._pool(real, number)
            perm = self.stored("perm_high")
            values |= {"pool_high": pool, "k_high_pool": counts.pool, "k_high": counts.pool}
            values["votes_high"] = self._votes(-scores, mask, counts.pool)
            if counts.high is not None and perm is not None:
                draws[1] = order_draws(pool[perm], size)
                values |= {"perm_high": perm, "k_high": counts.high}
        arguments = (jnp.asarray(scores), jnp.asarray(mask), counts, tuple(map(jnp.asarray, draws)))
        found = instance_masks.masked_instances(*arguments, self.fusion) if single else self._with_ties(*arguments)
        found = np.asarray(found)
        kept = np.flatnonzero(mask & ~found)
        order = self.stored("keep_order")
        values |= {"masked": found[:number], "n_keep": len(kept), "keep_order": kept}
        if order is not None and set(order.tolist()) == set(kept.tolist()):
            values["keep_order"] = order  # only the set is a promise
        return found, values

    def _votes(self, scores: np.ndarray, mask: np.ndarray, number: Any) -> np.ndarray:
        ranks = instance_masks.ranks(jnp.asarray(scores), jnp.asarray(mask))
        return np.asarray(jnp.sum(ranks < number, axis=0))[mask]

    def _pool(self, real: np.ndarray, number: int) -> np.ndarray:
        """The pool of the highest scores, in the reference's order: descending; by votes, in the order that it stored."""
        if len(real) == 1:
            return np.argsort(-real[0], kind="stable")[: int(self.counts.pool)]
        stored = self.stored("pool_high")
        first = np.zeros(number, bool)
        if stored is not None:
            first[stored] = True
        mine = np.flatnonzero(self._voted(-real, np.ones(number, bool), self.counts.pool, [first]))
        return stored if stored is not None and set(stored.tolist()) == set(mine.tolist()) else mine

    def _voted(self, scores: np.ndarray, mask: np.ndarray, number: Any, preferred: list[np.ndarray]) -> np.ndarray:
        """What the library chooses when `preferred` instances (bool [n], the first the most) come first, so that they win ties."""
        level = np.full(len(mask), len(preferred) + 1)
        level[mask] = len(preferred)
        for place, first in reversed(list(enumerate(preferred))):
            level[: len(first)][first] = place
        order = np.argsort(level, kind="stable")
        ranks = instance_masks.ranks(jnp.asarray(scores[:, order]), jnp.asarray(mask[order]))
        chosen = instance_masks.chosen_by_heads(ranks, jnp.asarray(mask[order]), number, self.fusion)
        found = np.zeros(len(mask), bool)
        found[order] = np.asarray(chosen)
        return found

    def _with_ties(self, scores: Any, mask: Any, counts: MaskCounts, draws: tuple[Any, Any]) -> np.ndarray:
        """As `masked_instances`, part by part, where the reference broke ties of votes in its own way: what it masked comes first."""
        scores, mask, stored = np.asarray(scores), np.asarray(mask), self.stored("masked")
        number = len(stored)
        found, high = np.zeros(len(mask), bool), np.zeros(len(mask), bool)
        if counts.random is not None:
            found |= np.asarray(mask & (instance_masks.ranks(draws[0], mask) < counts.random))
        if counts.pool is not None:
            pool = self.stored("pool_high")
            preferred = [stored & ~found[:number], stored] if pool is None else [np.isin(np.arange(number), pool)]
            high |= self._voted(-scores, mask, counts.pool, preferred)
            if counts.high is not None:
                high &= np.asarray(instance_masks.ranks(draws[1], jnp.asarray(high)) < counts.high)
        if counts.low is not None:  # after the high part: what it did not draw, the low part has
            found |= self._voted(scores, mask, counts.low, [stored & ~(found | high)[:number], stored])
        return found | high


def counts_of(masking: MHIMSettings, size: int, steps: Steps, place: int) -> MaskCounts:
    """The counts of the strategy for a bag of `size` in one step of an epoch."""
    strategy = make_strategy(aggregators.create("abmil", 2), masking)
    rows = strategy.schedule({"optimizer.lr": 1.0}, np.full((steps.count, 1), size), steps)
    names = {name: rows[f"mask_{name}"][place, 0] for name in MaskCounts._fields if f"mask_{name}" in rows}
    return MaskCounts(**names)


def make_strategy(module: nn.Module, masking: MHIMSettings, kind: type[MHIM] = MHIM, **fields: Any) -> MHIM:
    task = classification_task("ce", module.num_outputs)
    return kind(module, task, recording(), Schedule(), masking=masking, **fields)


def _steps(config: dict[str, Any]) -> tuple[Steps, int]:
    """The epoch of the iteration that a case is about, and its place there."""
    per_epoch, step = config.get("iters_per_epoch", 1), config.get("i", 0)
    return Steps(step // per_epoch, config.get("epochs", 1), per_epoch), step % per_epoch


class Masks:
    """The masks that given scores and permutations make."""

    def bag_sizes(self, case: Case) -> list[int]:
        return [case.meta["inputs"]["scores"][-1]]

    def answer(self, case: Case, bucket: int | None) -> Answer:
        scores = case.input("scores")[0]
        scores = scores.reshape(-1, scores.shape[-1])
        size = scores.shape[-1]
        padded = np.full((len(scores), bucket or size), np.nan, np.float32)
        padded[:, :size] = scores
        mask = np.arange(padded.shape[1]) < size
        answer = Answer()
        for name, options in self._cases(case).items():
            shared = {
                key: case.config[key] for key in ("msa_fusion", "epochs", "iters_per_epoch") if key in case.config
            }
            options = {**shared, **options}
            masking = masking_of(options)
            steps, place = _steps(options)
            counts = counts_of(masking, size, steps, place)
            _, values = Choice(case, f"out/{name}/", counts, masking.fusion).masked(padded, mask)
            values["mask_ratio_h_used"] = masking.high_share(steps)[place]
            answer.values |= {f"out/{name}/{key}": value for key, value in values.items()}
        return answer

    def _cases(self, case: Case) -> dict[str, dict[str, Any]]:
        """Options by the name of a case; without a table they are in the name: "l80", "h20_hr50", "h30_all"."""
        if "cases" in case.config:
            return case.config["cases"]
        options = {"r": "mask_ratio", "l": "mask_ratio_l", "h": "mask_ratio_h", "hr": "mask_ratio_hr"}
        names = sorted({key.split("/")[1] for key in case.arrays})
        return {
            name: {options[part]: int(percent) / 100 for part, percent in re.findall(r"(hr|[rlh])(\d+)", name)}
            for name in names
        }


class Schedules:
    """Counts, shares, momenta and learning rates over the iterations."""

    def bag_sizes(self, case: Case) -> list[int]:
        return []

    def answer(self, case: Case, bucket: int | None) -> Answer:
        config, stored = case.config, case.arrays
        sizes, iterations = stored["out/n"], stored["out/steps"]
        per_epoch, epochs = config["iters_per_epoch"], config["epochs"]
        values: dict[str, Any] = {"n": sizes, "steps": iterations, "ratios": stored["out/ratios"]}
        values["k"] = np.stack([instance_masks.count(sizes, ratio) for ratio in stored["out/ratios"]], axis=1)

        def at_steps(read: Any) -> np.ndarray:
            return np.array(
                [read(Steps(t // per_epoch, epochs, per_epoch))[t % per_epoch] for t in iterations.tolist()]
            )

        for name in {key.split("/")[1] for key in stored}:
            if found := re.fullmatch(r"h([\d.]+)_hr([\d.]+)", name):
                masking = masking_of({"mask_ratio_h": float(found[1]), "mask_ratio_hr": float(found[2]), "i": 0})
                shares = at_steps(masking.high_share)
                pool, high = instance_masks.high_counts(sizes[:, None], shares, masking.mask_high_share)
                values |= {f"{name}/mask_ratio_h": shares, f"{name}/k_pool": pool, f"{name}/k_high": high}
            elif found := re.fullmatch(r"mm_([\d.]+)", name):
                masking = MHIMSettings(
                    momentum=float(found[1]), momentum_final=config.get("mm_final", 1.0), momentum_cosine=True
                )
                values[name] = at_steps(masking.momenta)
        cosine = Schedule("cosine", epochs=epochs)
        values["lr_by_epoch"] = [cosine(config["lr"], Steps(epoch, epochs, 1))[0] for epoch in range(epochs)]
        return Answer({f"out/{key}": value for key, value in values.items()})


class ConsistencyLoss:
    """The loss between two embeddings, and its gradient."""

    def bag_sizes(self, case: Case) -> list[int]:
        return []

    def answer(self, case: Case, bucket: int | None) -> Answer:
        answer = Answer()
        for key in case.arrays:
            found = re.fullmatch(r"out/(\w+?)_t([\d.]+)_s([\d.]+)/loss", key)
            if not found:
                continue
            student, teacher = (jnp.asarray(case.input(f"{who}_{found[1]}")) for who in ("student", "teacher"))
            temperatures = float(found[3]), float(found[2])
            loss, grad = jax.value_and_grad(lambda s, t=teacher, both=temperatures: feature_consistency(s, t, *both))(
                student
            )
            answer.values |= {key: loss, key.replace("/loss", "/grad_student"): grad}
        return answer


class MovingAverage:
    """The teacher after some updates; buffers are no parameters and stay."""

    def bag_sizes(self, case: Case) -> list[int]:
        return []

    def answer(self, case: Case, bucket: int | None) -> Answer:
        student = case.state_dict()
        teacher = case.state_dict(f"{case.meta['salt']}_teacher")
        buffers = {name: x for name, x in teacher.items() if "running" in name or "num_batches" in name}
        answer = Answer()
        for key in {key.split("/")[1] for key in case.arrays}:
            trained = {name: jnp.asarray(x) for name, x in teacher.items() if name not in buffers}
            others = {name: jnp.asarray(student[name]) for name in trained}
            for _ in range(case.config["steps"]):
                trained = ema_update(trained, others, jnp.float32(1.0 - float(key.removeprefix("mm"))))
            answer.values |= {f"out/{key}/{name}": x for name, x in {**buffers, **trained}.items()}
        return answer


class Plain:
    """`--model=pure`: the plain aggregator."""

    def bag_sizes(self, case: Case) -> list[int]:
        return [case.meta["inputs"]["x"][-2]]

    def answer(self, case: Case, bucket: int | None) -> Answer:
        module, variant = build(case)
        params = import_state_dict(module, case.state_dict(), variant)
        batch = batch_of(case, bucket)
        strategy = make_strategy(module, MHIMSettings())

        @jax.jit
        def run(params: Any) -> Any:
            def loss(params: Any) -> Any:
                inputs = strategy._inputs(state_of(params), batch, jax.random.key(0))
                predictions = strategy._predictions(params, {}, batch, inputs)
                return strategy._loss(predictions, batch, inputs), predictions

            return jax.value_and_grad(loss, has_aux=True)(params)

        (loss, prediction), grads = run(params)
        values = {"logits": prediction.logits, "loss": loss, **streams(prediction)}
        published = named_as_stored(case, renamed(case, export_state_dict(module, grads, variant)))
        return Answer({f"out/{key}": value for key, value in values.items()} | gradient_entries(published))


def renamed(case: Case, published: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By the names of the case's branch: `patch_to_emb` is `feature` on master."""
    if "patch_to_emb.0.weight" not in case.meta["params"]:
        return published
    return {re.sub(r"^feature\.", "patch_to_emb.", name): value for name, value in published.items()}


def streams(prediction: Any, prefix: str = "") -> dict[str, Any]:
    """The logits of DSMIL's two streams, where there are two."""
    if "max_logits" not in prediction.aux:
        return {}
    pair = prediction.aux["bag_logits"], prediction.aux["max_logits"]
    return {f"{prefix}bag_logits": pair[0], f"{prefix}instance_max_logits": pair[1]}


def batch_of(case: Case, bucket: int | None) -> Batch:
    bags = stack_bags(case.input("x"), [case.meta["inputs"]["x"][-2]], bucket)
    return Batch(bags=bags, targets=jnp.array([case.config["label"]]), weights=jnp.ones(1))


def state_of(params: Any, teacher: Any = None) -> TrainState:
    hyper = {"optimizer.lr": jnp.float32(0), "optimizer.weight_decay": jnp.float32(0)}
    optimizer = {"student": jax.tree.map(jnp.zeros_like, params), "teacher": teacher}
    return TrainState(jnp.int32(0), params, optimizer, hyper, {})


@dataclasses.dataclass(frozen=True)
class OnGivenRows(MHIM):
    """The student sees the instances `rows`, in their order."""

    rows: tuple[int, ...] = ()

    def _kept(self, scores: Any, mask: Any, counts: MaskCounts, key: Any) -> Any:
        return jnp.asarray(self.rows, jnp.int32), jnp.int32(len(self.rows))


class Step:
    """A step without dropout: the teacher's scores, the mask they make, and the student's losses and gradients on what is left."""

    def bag_sizes(self, case: Case) -> list[int]:
        return [case.meta["inputs"]["x"][-2]]

    def answer(self, case: Case, bucket: int | None) -> Answer:
        module, variant = build(case)
        masking = masking_of(case.config, scores="class" if case.config["baseline"] == "dsmil" else "attention")
        salt = f"{case.meta['salt']}_teacher"
        student, teacher = (
            import_state_dict(module, case.state_dict(own), variant) for own in (case.meta["salt"], salt)
        )
        batch = batch_of(case, bucket)
        bag = jax.tree.map(lambda x: x[0], batch.bags)
        number = self.bag_sizes(case)[0]
        plain = make_strategy(module, masking)
        taught = jax.jit(lambda params, bag: plain._apply(params, {}, bag, None))(teacher, bag)
        scores = np.asarray(plain._scores(taught))
        steps, place = _steps(case.config)
        counts = counts_of(masking, number, steps, place)
        _, values = Choice(case, "out/", counts, masking.fusion).masked(scores, np.asarray(bag.mask))
        strategy = make_strategy(module, masking, OnGivenRows, rows=tuple(np.asarray(values["keep_order"]).tolist()))
        extras = strategy.schedule({"optimizer.lr": 1.0}, np.full((steps.count, 1), number), steps)
        extras = {name: jnp.asarray(rows[place]) for name, rows in extras.items()}

        @jax.jit
        def run(student: Any, teacher: Any, batch: Any, extras: Any) -> Any:
            bag, kept = jax.tree.map(lambda x: x[0], batch.bags), jnp.asarray(strategy.rows)
            shown = bag.replace(features=bag.features[kept], mask=jnp.ones(len(kept), bool))
            state, metrics = strategy.step(state_of(student, teacher), batch, extras, jax.random.key(0))
            seen = strategy._apply(student, {}, shown, None)
            return state.optimizer["student"], metrics, seen, strategy.predict(state_of(student), bag)

        gradients, metrics, seen, tested = run(student, teacher, batch, extras)
        shown_scores = (
            taught.attention[None, :number] if case.config["baseline"] == "attn" else scores[None, :, :number]
        )
        values |= {
            "teacher_feature": taught.embedding[None],
            "teacher_scores": np.reshape(shown_scores, case.arrays["out/teacher_scores"].shape),
            "student_feature": seen.embedding[None],
            "logits": seen.logits[None],
            "ce_loss": metrics["loss_task"],
            "consistency_loss": metrics["loss_consistency"],
            "loss": metrics["loss"],
            "test_logits": tested.logits[None],
            "test_prob": jax.nn.softmax(tested.logits)[None],
            **{key: value[None] for key, value in {**streams(seen), **streams(tested, "test_")}.items()},
        }
        published = renamed(case, export_state_dict(module, gradients, variant))
        return Answer({f"out/{key}": value for key, value in values.items()} | gradient_entries(published))


ADAPTERS = {
    ("mhim", "mask"): Masks(),
    ("mhim", "mask_mean"): Masks(),
    ("mhim", "schedules"): Schedules(),
    ("mhim", "loss"): ConsistencyLoss(),
    ("mhim", "ema"): MovingAverage(),
    **{("mhim", f"pure_{baseline}"): Plain() for baseline in _VARIANTS},
    **{("mhim", f"{name}_{data}"): Step() for name in ("abmil", "dsmil", "transmil") for data in ("c16", "tcga")},
}
