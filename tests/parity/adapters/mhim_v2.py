"""Cases of MHIM-MIL v2: class-aware scores, the random split, the merged tokens and their queries, losses and gradients."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax.layers.instance_masks import MaskCounts
from mil_jax.layers.query_merging import QueryMerging
from mil_jax.strategies.base import Steps
from mil_jax.strategies.mhim import MHIM
from mil_jax.strategies.mhim_merging import MERGING, MergingMHIM
from mil_jax.strategies.published_checkpoints import export_params, import_params
from tests.parity.adapters.base import Answer, gradient_entries
from tests.parity.adapters.mhim import Choice, batch_of, build, counts_of, make_strategy, masking_of, state_of, streams
from tests.parity.case import Case

_LAYOUTS = {"attn": "mhim_v2_attn", "selfattn": "mhim_v2_selfattn", "dsmil": "mhim_v2_dsmil"}


@dataclasses.dataclass(frozen=True)
class OnGivenOrder(MergingMHIM):
    """The student sees the instances `rows`: first those that stay. Without dropout."""

    rows: tuple[int, ...] = ()

    @property
    def _merging(self) -> QueryMerging:
        return QueryMerging(self.masking.merge_queries, dropout=0.0)

    def _kept(self, scores: Any, mask: Any, counts: MaskCounts, key: Any) -> Any:
        return jnp.asarray(self.rows, jnp.int32), jnp.int32(len(self.rows))


class Step:
    """A step of the student and its teacher, and predictions with and without merging."""

    def bag_sizes(self, case: Case) -> list[int]:
        return [case.meta["inputs"]["x"][-2]]

    def answer(self, case: Case, bucket: int | None) -> Answer:
        config = case.config
        module, _ = build(case, {"prediction": "mean_logit", "loss": "prediction"})
        layout = _LAYOUTS[config["baseline"]]
        masking = masking_of(
            config,
            scores="class" if config["attn2score"] else "attention",
            consistency_weight=config["aux_alpha"],
            merge_queries=config["merge_k"],
            merge_ratio=config["merge_ratio"],
            merge_momentum=config["merge_mm"],
        )
        salt = f"{case.meta['salt']}_teacher"
        plain = make_strategy(module, masking, MergingMHIM)
        student, teacher = (import_params(plain, case.state_dict(own), layout) for own in (case.meta["salt"], salt))
        teacher.pop(MERGING)
        batch = batch_of(case, bucket)
        bag = jax.tree.map(lambda x: x[0], batch.bags)
        number, steps = self.bag_sizes(case)[0], Steps(0, 1, 1)
        taught = jax.jit(lambda params, bag: plain._apply(params, {}, bag, None))(teacher, bag)
        scores = np.asarray(plain._scores(taught))
        choice = Choice(case, "out/", counts_of(masking, number, steps, 0))
        _, values = choice.masked(scores, np.asarray(bag.mask))
        kept = np.asarray(values["keep_order"])
        rows = kept[np.argsort(case.input("merge_noise")[: len(kept)], kind="stable")]
        strategy = make_strategy(module, masking, OnGivenOrder, rows=tuple(rows.tolist()))
        extras = strategy.schedule({"optimizer.lr": 1.0}, np.array([[number]]), steps)
        extras = {name: jnp.asarray(row[0]) for name, row in extras.items()}
        stay = int(extras["merge_stay"][0])
        with_tokens = dataclasses.replace(strategy, masking=dataclasses.replace(masking, merge_test=True))

        @jax.jit
        def run(student: Any, teacher: Any, batch: Any, extras: Any) -> Any:
            bag = jax.tree.map(lambda x: x[0], batch.bags)
            state, metrics = strategy.step(state_of(student, teacher), batch, extras, jax.random.key(0))
            shown = bag.replace(features=bag.features[rows], mask=jnp.ones(len(rows), bool))
            seen = strategy._merged(student, {}, shown, jnp.int32(stay), jnp.arange(len(rows)) >= stay, None)
            tests = [one.predict(state_of(student), bag).logits for one in (strategy, with_tokens)]
            return state, metrics, seen, tests

        state, metrics, seen, tests = run(student, teacher, batch, extras)
        values |= {
            "teacher_feature": taught.embedding[None],
            "scores": self._shown(case, plain, taught, scores)[..., :number],
            "n_after_high_mask": len(rows),
            "n_student_tokens": stay + config["merge_k"],
            "random_keep": rows[:stay],
            "random_merged": rows[stay:],
            "merged_tokens": seen.aux["merged"][None],
            "global_q_after": state.params[MERGING]["queries"][None],
            "logits": seen.logits[None],
            "ce_loss": metrics["loss_task"],
            "aux_loss": metrics["loss_consistency"],
            "loss": metrics["loss"],
            "test_logits": tests[0][None],
            "test_logits_merge": tests[1][None],
            **{key: value[None] for key, value in streams(seen).items()},
        }
        gradients = export_params(plain, state.optimizer["student"], layout)
        return Answer({f"out/{key}": value for key, value in values.items()} | gradient_entries(gradients))

    def _shown(self, case: Case, strategy: MHIM, taught: Any, scores: np.ndarray) -> np.ndarray:
        """The scores as the reference shows them."""
        baseline = case.config["baseline"]
        if strategy.masking.scores == "class":
            classes = len(taught.logits)
            return (
                scores if baseline == "dsmil" else 1 / (classes - scores.astype(np.float64))
            )  # certainty -> probability
        return (
            scores[None]
            if baseline == "selfattn"
            else np.asarray(taught.attention).reshape(-1, scores.shape[1]).max(0)[None]
        )


ADAPTERS = {("mhim", f"v2_{baseline}"): Step() for baseline in ("attn", "selfattn", "dsmil")}
