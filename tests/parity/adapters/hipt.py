"""Cases of HIPT: the encoders of both levels, the models of a slide, and the pieces of DINO pretraining."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax import aggregators
from mil_jax.bags import Bag, Prediction
from mil_jax.encoders.vit import VisionTransformer
from mil_jax.interop.torch_checkpoints import export_state_dict, import_state_dict
from mil_jax.layers import dino
from mil_jax.layers.initializers import Affine
from mil_jax.layers.moving_average import ema_update
from mil_jax.layers.vit import ViT, ViTParameters, encode, interpolated_positions, interpolation_matrix
from tests.parity.adapters.base import Answer, class_targets, classification_task, gradient_entries
from tests.parity.case import Case

CROSS_ENTROPY_LABELS = re.compile(r"(?:CE|cross entropy) with label (\d+)")


def _encoder(case: Case, params: dict[str, np.ndarray], **settings: Any) -> VisionTransformer:
    config = case.config
    images = "patch_embed.proj.weight" in params
    _, rows, dim = params["pos_embed"].shape
    return VisionTransformer(
        dim,
        config["depth"],
        config["num_heads"],
        patch_size=params["patch_embed.proj.weight"].shape[-1] if images else 0,
        table_side=round((rows - 1) ** 0.5),
        **settings,
    )


def _channels_last(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def _padded(x: np.ndarray, bucket: int | None) -> Bag:
    """Instances as a bag; with a bucket, behind them rows of NaN."""
    rows = np.full((bucket or len(x), *x.shape[1:]), np.nan, np.float32)
    rows[: len(x)] = x
    return Bag(jnp.asarray(rows), jnp.arange(len(rows)) < len(x))


def _parameters(module: VisionTransformer, params: Any) -> ViT:
    *axes, inputs, _ = params["vit"]["embedding"]["kernel"].shape
    declared = ViTParameters(module.dim, module.depth, module.table_side, "torch")
    return declared.apply({"params": params["vit"]}, *axes, inputs)


class Encoder:
    """Images or grids of vectors through one encoder, each of its sizes a bag."""

    def bag_sizes(self, case: Case) -> list[int]:
        return [shape[0] for name, shape in case.meta["inputs"].items() if name != "ct"]

    def answer(self, case: Case, bucket: int | None) -> Answer:
        state = case.state_dict()
        module = _encoder(case, state)
        params = import_state_dict(module, state, "")
        inputs = {name: _channels_last(case.input(name)) for name in case.meta["inputs"] if name != "ct"}
        bags = {name: _padded(x, bucket) for name, x in inputs.items()}
        cotangent = case.input("ct") if "ct" in case.meta["inputs"] else None

        def encoded(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            vectors = {name: module.apply({"params": params}, bag).features for name, bag in bags.items()}
            found = {name: vectors[name][: len(x)] for name, x in inputs.items()}
            total = sum(jnp.sum(x * (0.0 if cotangent is None else cotangent)) for x in found.values())
            return jnp.asarray(total), found

        def whole(vit: ViT, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            return encode(vit, module.tokens(vit, x)[0], num_heads=module.num_heads)

        values: dict[str, Any] = {}
        if cotangent is None:
            _, vectors = jax.jit(encoded)(params)
        else:
            (values["out/loss"], vectors), grads = jax.jit(jax.value_and_grad(encoded, has_aux=True))(params)
            values |= gradient_entries(export_state_dict(module, grads, ""))
        vit = _parameters(module, params)
        for name, x in inputs.items():
            tokens, attention = jax.jit(jax.vmap(whole, in_axes=(None, 0)))(vit, jnp.asarray(x))
            height, width = (side // (module.patch_size or 1) for side in x.shape[1:3])
            end = "" if name == "x" else f"_{name}"
            values |= {
                f"out/cls{end}": vectors[name],
                f"out/tokens{end}": tokens,
                f"out/attn{end}": attention,
                f"out/attn_cls{end}": attention[:, :, 0, 1:],
                f"out/attn_cls_mean_heads{end}": jnp.mean(attention[:, :, 0, 1:], axis=1),
                f"out/pos{end}": interpolated_positions(vit.positions, (height, width)),
                f"out/interp_matrix_1d{end}": interpolation_matrix(module.table_side, height),
            }
        return Answer(values)


class Slide:
    """A model of a slide: `hipt` on regions or their vectors, or `hipt_none`, on regions or on one."""

    def bag_sizes(self, case: Case) -> list[int]:
        shape = case.meta["inputs"]["x"]
        return [shape[1] if case.variant.startswith("pathgene") else shape[0]]

    def answer(self, case: Case, bucket: int | None) -> Answer:
        state, x = case.state_dict(), case.input("x")
        pathgene = case.variant.startswith("pathgene")
        name, fields, variant = _model(case, state, pathgene)
        module = aggregators.create(name, case.config["n_classes"], **fields)
        params = import_state_dict(module, state, variant)
        x = x[0] if pathgene else x
        n, bag = len(x), _padded(x, bucket)
        task, target = _task_and_target(case)

        @jax.jit
        def run(params: Any, bag: Bag) -> Any:
            def loss(params: Any) -> Any:
                prediction, sown = module.apply({"params": params}, bag, mutable="intermediates")
                batch = jax.tree.map(lambda leaf: leaf[None], prediction)
                return task.loss(batch, target, jnp.ones(1)), (prediction, sown["intermediates"])

            return jax.value_and_grad(loss, has_aux=True)(params)

        (loss, (prediction, sown)), grads = run(params, bag)
        values = {"loss": loss, **_outputs(prediction, {key: of[0] for key, of in sown.items()}, n, name)}
        return Answer(
            {f"out/{key}": value for key, value in values.items()}
            | gradient_entries(export_state_dict(module, grads, variant))
        )


def _model(case: Case, state: dict[str, np.ndarray], pathgene: bool) -> tuple[str, dict[str, Any], str]:
    if "local_phi.0.weight" in state:
        width = state["local_phi.0.weight"].shape[0]
        return "hipt_none", {"hidden_dim": width, "one_region": pathgene}, "hipt_pathgene" if pathgene else "hipt_none"
    if "local_vit.cls_token" not in state:
        return "hipt", {"region_encoder": "none"}, "hipt_gp"
    return "hipt", {"frozen": case.config["freeze_4k"]}, "hipt"


def _task_and_target(case: Case) -> tuple[Any, jax.Array]:
    classes = case.config["n_classes"]
    if "label" in case.config:
        task = classification_task("bce_logits", classes)
        return task, class_targets(task, np.arange(classes) == case.config["label"], 1)
    task = classification_task("ce", classes)
    return task, class_targets(task, int(CROSS_ENTROPY_LABELS.search(case.meta["notes"])[1]), 1)


def _outputs(prediction: Prediction, sown: dict[str, jax.Array], n: int, name: str) -> dict[str, Any]:
    values = {
        "logits": prediction.logits,
        "prob": jax.nn.softmax(prediction.logits),
        "score_sigmoid": jax.nn.sigmoid(prediction.logits),
        "A_raw": prediction.scores[:n],
        "A": prediction.attention[:n],
        "A4096_raw": prediction.scores[:n],
        "A4096": prediction.attention[:n],
        "bag": prediction.embedding,
    }
    names = {"A256_raw": "tile_scores", "A256": "tile_attention", "h4096": "pooled"}
    if name == "hipt":
        names = {"h4096": "regions", "phi": "projected", "transformer": "transformed"}
    return values | {key: sown[of][:n] for key, of in names.items()}


class _Unpadded:
    def bag_sizes(self, case: Case) -> list[int]:
        return []


class DINOHead(_Unpadded):
    def answer(self, case: Case, bucket: int | None) -> Answer:
        head, cotangent = _head(case.state_dict()), case.input("ct")

        def loss(head: dino.Head, x: Any) -> tuple[jax.Array, jax.Array]:
            y = head(x)
            return jnp.sum(y * cotangent), y

        (value, y), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(head, case.input("x"))
        return Answer({"out/loss": value, "out/y": y} | gradient_entries(_head_entries(grads)))


class DINOLoss(_Unpadded):
    def answer(self, case: Case, bucket: int | None) -> Answer:
        config = case.config
        student = case.input("student").reshape(config["ncrops"], config["batch"], -1)
        teacher = case.input("teacher").reshape(-1, config["batch"], student.shape[-1])
        center = np.float32(0.3) * case.input("center")[0]
        temperatures = dino.teacher_temperatures(
            config["warmup_teacher_temp"],
            config["teacher_temp"],
            config["warmup_teacher_temp_epochs"],
            config["nepochs"],
        )
        loss, gradient = jax.value_and_grad(dino.dino_loss)(
            jnp.asarray(student), teacher, center, temperatures[config["epoch"]], config["student_temp"]
        )
        values = {
            "loss": loss,
            "grad_student": gradient.reshape(-1, student.shape[-1]),
            "new_center": dino.updated_center(center, teacher, config["center_momentum"]),
            "teacher_temp": temperatures,
        }
        return Answer({f"out/{key}": value for key, value in values.items()})


class DINOStep(_Unpadded):
    """Two sizes of crops through a student and its teacher, up to the gradients, and what a step does besides."""

    def answer(self, case: Case, bucket: int | None) -> Answer:
        config, state = case.config, case.state_dict()
        student, module = self._network(case, state)
        teacher, _ = self._network(case, case.state_dict(f"{case.meta['salt']}/teacher"))
        grids = {name: _channels_last(case.input(name)) for name in case.meta["inputs"]}
        views = [[x for name, x in grids.items() if name.startswith(kind)] for kind in ("global", "local")]

        def outputs(network: Any, views: list[list[np.ndarray]]) -> jax.Array:
            backbone, head = network
            parts = [jnp.concatenate(crops) for crops in views]  # crops of one size go side by side
            bags = [Bag(jnp.asarray(part), jnp.ones(len(part), bool)) for part in parts]
            vectors = [module.apply({"params": backbone}, bag).features for bag in bags]
            return head(jnp.concatenate(vectors)).reshape(-1, config["batch"], config["out_dim"])

        @jax.jit
        def run(student: Any, teacher: Any) -> Any:
            wanted = outputs(teacher, views[:1])

            def loss(student: Any) -> Any:
                found = outputs(student, views)
                temperatures = config["teacher_temp"], config["student_temp"]
                return dino.dino_loss(found, wanted, jnp.zeros(config["out_dim"]), *temperatures), found

            (value, found), grads = jax.value_and_grad(loss, has_aux=True)(student)
            moved = ema_update(teacher, student, 1.0 - config["ema"])
            return value, found, wanted, grads, outputs(moved, views[:1])

        loss, found, wanted, grads, moved = run(student, teacher)
        limit = float(case.arrays["out/clip_value"])
        clipped = jax.tree.leaves(dino.clipped_each(grads, limit))
        rows = config["out_dim"]
        values = {
            "student": found.reshape(-1, rows),
            "teacher": wanted.reshape(-1, rows),
            "loss": loss,
            "center": dino.updated_center(jnp.zeros(rows), wanted),
            "clip_value": limit,
            "clipped_total": np.sqrt(sum(float(jnp.sum(x**2)) for x in clipped)),
            "teacher_after_ema": moved.reshape(-1, rows),
            **_schedules(case.meta["notes"]),
        }
        flat = {f"backbone.{name}": x for name, x in export_state_dict(module, grads[0], "").items()}
        flat |= {f"head.{name}": x for name, x in _head_entries(grads[1]).items()}
        return Answer({f"out/{key}": value for key, value in values.items()} | gradient_entries(flat))

    def _network(self, case: Case, state: dict[str, np.ndarray]) -> tuple[tuple[Any, dino.Head], VisionTransformer]:
        def part(prefix: str) -> dict[str, np.ndarray]:
            return {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}

        module = _encoder(case, part("backbone."))
        return (import_state_dict(module, part("backbone."), ""), _head(part("head."))), module


def _schedules(notes: str) -> dict[str, np.ndarray]:
    """The schedules that the notes describe in words."""
    epochs, steps = (int(re.search(rf"{name}=(\d+)", notes)[1]) for name in ("epochs", "niter"))
    base, batch, per, final, warmup = re.search(
        r"lr: base ([\d.e-]+)\*(\d+)/(\d+), final ([\d.e-]+), (\d+) warm-up", notes
    ).groups()
    rate = dino.cosine_schedule(float(base) * int(batch) / int(per), float(final), epochs, steps, int(warmup))
    others = {}
    for name in ("wd", "momentum"):
        first, last = re.search(rf"{name} ([\d.]+)->([\d.]*\d)", notes).groups()
        others[f"sched_{name}"] = dino.cosine_schedule(float(first), float(last), epochs, steps)
    return {"sched_lr": rate, **others}


def _head(state: dict[str, np.ndarray]) -> dino.Head:
    numbers = sorted(int(name.split(".")[1]) for name in state if re.fullmatch(r"mlp\.\d+\.weight", name))
    mlp = tuple(Affine(jnp.asarray(state[f"mlp.{k}.weight"].T), jnp.asarray(state[f"mlp.{k}.bias"])) for k in numbers)
    direction, gain = state["last_layer.weight_v"].T, state["last_layer.weight_g"][:, 0]
    return dino.Head(mlp, jnp.asarray(direction), jnp.asarray(gain))


def _head_entries(head: dino.Head) -> dict[str, np.ndarray]:
    entries = {"last_layer.weight_v": np.asarray(head.direction).T}
    for number, layer in enumerate(head.mlp):
        entries[f"mlp.{2 * number}.weight"] = np.asarray(layer.kernel).T
        entries[f"mlp.{2 * number}.bias"] = np.asarray(layer.bias)
    return entries


ENCODERS = ("vit256_tiny", "vit256_small", "vit4k_tiny", "vit4k_xs")
SLIDES = ("none_fc", "none_fc_real", "lgp_fc", "lgp_fc_frozen", "gp_fc", "pathgene", "pathgene_real")
ADAPTERS = {
    **{("hipt", variant): Encoder() for variant in ENCODERS},
    **{("hipt", variant): Slide() for variant in SLIDES},
    ("hipt", "dino_head"): DINOHead(),
    ("hipt", "dino_loss"): DINOLoss(),
    ("hipt", "dino_step"): DINOStep(),
}
