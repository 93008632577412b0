"""The simulated federation of `calibration.ccvr`: trained, calibrated and looked at for every concentration and seed."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from workbench import InputError, Inputs, Out
from workbench.toolkit import (
    Recipe,
    Stages,
    find_layer,
    last_linear,
    layer_names,
    predict_all,
    reinitialise,
    split_indices,
    to_tensor,
)

from workbench_calibration.ccvr_statistics import (
    Float,
    Head,
    Statistics,
    class_mean_head,
    client_statistics,
    diagonal,
    draw_virtual,
    linear_cka,
    normalised_head,
    pool,
    shrink,
    train_head,
    train_on_virtual,
    tukey,
)
from workbench_calibration.federated import Federation, average, dirichlet_owner, serve, train_locally

if TYPE_CHECKING:
    from workbench_calibration.ccvr import Params

CHECKPOINT_SECONDS = 30.0
PROBES = 200
SHOWN = 100
"""Real and virtual features of a class in the projection."""


def head_recipe(params: Params) -> Recipe:
    """Step 6."""
    return Recipe(epochs=params.head_epochs, batch_size=params.batch_size, learning_rate=params.head_learning_rate,
                  weight_decay=0.0, schedule="constant")  # fmt: skip


def calibrated_heads(clients: Statistics, head: Head, params: Params, out: Out, name: str) -> dict[str, Head]:
    """The heads that statistics of plain features give, by stage."""
    pooled = shrink(pool(clients), params.shrinkage)
    recipe, heads = head_recipe(params), {"before": head}
    for stage, statistics in (("ccvr", pooled), ("ccvr_diagonal", diagonal(pooled))):
        virtual, _ = draw_virtual(statistics, params.draws, out.rng(f"virtual {stage} {name}"))
        heads[stage] = train_on_virtual(head, statistics, virtual, recipe, out.generator(f"head {stage} {name}"))
    return heads | {"class_mean": class_mean_head(pooled), "tau_normalised": normalised_head(head, params.tau)}


def write_heads(clients: Statistics, heads: Mapping[str, Head], params: Params, out: Out) -> None:
    """Pooled statistics, virtual features and heads."""
    pooled = pool(clients)
    shrunk = shrink(pooled, params.shrinkage)
    apart = (clients.mean - pooled.mean) * (clients.count > 0)[..., None]
    between = np.einsum("kc,kcd->c", clients.count, apart**2) / np.maximum(pooled.count - 1, 1)
    trace = np.trace(pooled.cov, axis1=1, axis2=2)
    virtual, jitter = draw_virtual(shrunk, params.draws, out.rng("stored virtual"))
    fresh, _ = draw_virtual(shrunk, params.draws, out.rng("fresh virtual"))
    seen = np.flatnonzero(pooled.count)
    out.coordinate("stage", list(heads))
    out.write("partition", clients.count)
    out.write("class_mean", pooled.mean)
    out.write("class_cov", pooled.cov)
    out.write("between_share", np.divide(between, trace, out=np.zeros_like(trace), where=trace > 0))
    out.write("jitter", jitter)
    out.write("virtual_feature", virtual)
    out.write("head_weight", np.stack([head.weight for head in heads.values()]))
    out.write("head_bias", np.stack([head.bias for head in heads.values()]))
    hits = [
        np.nan if stage == "ccvr_tukey" else float((head(fresh[seen]).argmax(-1) == seen[:, None]).mean())
        for stage, head in heads.items()
    ]
    out.write("virtual_accuracy", np.array(hits))


class Experiment:
    """A federation simulated for every concentration and seed; the last concentration's seed 0 is stored in detail."""

    def __init__(self, inputs: Inputs, params: Params, out: Out) -> None:
        self.params, self.out, self.model = params, out, inputs["model"]
        label = inputs["data"]["label"].to_numpy().astype(np.int64)
        image = to_tensor(inputs["data"]["image"])
        image = image.float() / 255 if image.dtype == torch.uint8 else image.float()
        shares = {"train": 1 - params.test_fraction, "test": params.test_fraction}
        parts = split_indices(label, shares, seed=out.seed, argument="data")
        self.index = parts["test"]
        self.image, self.test = (image[parts[name]].to(out.device) for name in ("train", "test"))
        self.label, self.test_label = label[parts["train"]], label[parts["test"]]
        self.head = last_linear(self.model)
        self.classes = self._check()
        recipe = Recipe(epochs=params.local_epochs, batch_size=params.batch_size, learning_rate=params.learning_rate,
                        weight_decay=params.weight_decay, schedule="constant")  # fmt: skip
        self.settings = Federation(recipe, params.base, params.proximal, params.server_momentum, params.head_penalty,
                                   params.contrast, params.contrast_temperature)  # fmt: skip
        # Before any training, so that a partition that cannot be had does not end a run that has worked for hours.
        self.owner = {
            (a, seed): dirichlet_owner(self.label, params.clients, a, out.rng(f"partition {a} {seed}"))
            for a in params.concentrations
            for seed in range(params.seeds)
        }
        self.stages = Stages(out, len(self.owner), checkpoint_seconds=CHECKPOINT_SECONDS)
        self.saved = time.monotonic()

    def _check(self) -> int:
        logit, kept = predict_all(self.model, self.test[:2], layers=(self.head,), inputs=True)
        layer = find_layer(self.model, self.head)
        if kept[self.head].ndim != 2 or not torch.allclose(layer(kept[self.head]), logit, atol=1e-5):
            raise InputError("model", expected="a last linear layer that returns the logits", got=f"layer {self.head}")
        if layer.bias is None:
            raise InputError("model", expected="a head with a bias", got=f"layer {self.head} without")
        largest = int(max(self.label.max(), self.test_label.max()))
        if logit.shape[1] <= largest:
            raise InputError("model", expected=f"a logit for each of {largest + 1} classes", got=f"{logit.shape[1]}")
        if self.params.new_weights:
            reinitialise(copy.deepcopy(self.model), 0)  # now, if the weights cannot be drawn anew
        return int(logit.shape[1])

    def run(self) -> None:
        """Everything, written at the end; checkpoints keep what is finished."""
        params, out = self.params, self.out
        for a, seed in self.owner:
            if self.stages.result(f"{a}_{seed}") is None:
                self.stages.finish(f"{a}_{seed}", self.one(a, seed))
        finished = self.stages.results
        detail = finished[f"{params.concentrations[-1]}_0"]
        stages = list(detail["heads"])
        out.coordinate("concentration", list(params.concentrations))
        out.coordinate("seed", list(range(params.seeds)))
        out.coordinate("round", list(range(1, params.rounds + 1)))
        shape = (len(params.concentrations), params.seeds)
        hits = [[(np.asarray(finished[f"{a}_{s}"]["logit"]).argmax(-1) == self.test_label).mean(1)
                 for s in range(params.seeds)] for a in params.concentrations]  # fmt: skip
        out.write("accuracy", np.moveaxis(np.array(hits), -1, 0))
        curves = [finished[f"{a}_{s}"]["curve"] for a in params.concentrations for s in range(params.seeds)]
        out.write("round_accuracy", np.array(curves).reshape(*shape, params.rounds))
        out.write("logit", np.asarray(detail["logit"]))
        out.write("label", self.test_label)
        out.write("sample_index", self.index)
        self.write_detail(detail, stages)

    def one(self, a: float, seed: int) -> dict[str, Any]:
        """Train one federation and calibrate it."""
        name, owner = f"{a}_{seed}", self.owner[a, seed]
        state, clients, curve = self.federate(name, owner, seed)
        model = self.loaded(state)
        feature, test = self.features(model, self.image), self.features(model, self.test)
        layer = find_layer(model, self.head)
        head = Head(*(p.detach().double().cpu().numpy() for p in (layer.weight, layer.bias)))
        params, out = self.params, self.out
        sent = self.sent(feature, owner)
        heads = calibrated_heads(sent, head, params, out, name)
        bent = shrink(pool(self.sent(tukey(feature, params.power), owner)), params.shrinkage)
        virtual, _ = draw_virtual(bent, params.draws, out.rng(f"virtual tukey {name}"))
        recipe = head_recipe(params)
        heads["ccvr_tukey"] = train_on_virtual(head, bent, virtual, recipe, out.generator(f"head tukey {name}"))
        # As many steps as CCVR takes, so that the oracle has better features and not less training.
        epochs = max(1, round(params.head_epochs * params.draws * self.classes / len(feature)))
        oracle = replace(recipe, epochs=epochs)
        heads["oracle"] = train_head(head, feature, self.label, oracle, out.generator(f"head oracle {name}"))
        logit = [h(tukey(test, params.power) if stage == "ccvr_tukey" else test) for stage, h in heads.items()]
        result: dict[str, Any] = {"logit": np.array(logit), "curve": curve}
        if (a, seed) == (params.concentrations[-1], 0):
            result |= {
                "heads": {stage: [h.weight, h.bias] for stage, h in heads.items()},
                "state": state,
                "clients": clients,
            }
        return result

    def federate(
        self, name: str, owner: np.ndarray, seed: int
    ) -> tuple[dict[str, Tensor], list[dict[str, Tensor]], list[float]]:
        """The global state, the last local states and the test accuracy after each round."""
        params, out = self.params, self.out
        model = copy.deepcopy(self.model)
        if params.new_weights:
            reinitialise(model, int(torch.randint(2**31, (), generator=out.generator(f"initial weights {seed}"))))
        state, velocity = {key: value.clone() for key, value in model.state_dict().items()}, {}
        curve: list[float] = []
        previous: list[dict[str, Tensor]] = []
        stage = self.stages.begin(name)
        if (restored := stage.restore()) is not None:
            state, velocity = (
                {k: torch.as_tensor(v).to(out.device) for k, v in restored[key].items()}
                for key in ("state", "velocity")
            )
            curve = [float(value) for value in restored["curve"]]
            previous = [{k: torch.as_tensor(v).to(out.device) for k, v in one.items()} for one in restored["clients"]]
        share = np.bincount(owner, minlength=params.clients) / len(owner)
        total = params.rounds * params.clients
        for turn in range(len(curve), params.rounds):
            clients = []
            for client in range(params.clients):
                stage.progress(turn * params.clients + client, total, f"{name}: round {turn + 1} of {params.rounds}")
                mine = torch.from_numpy(np.flatnonzero(owner == client))
                image, label = self.image[mine.to(self.image.device)], torch.from_numpy(self.label)[mine]
                generator = out.generator(f"round {turn} client {client} of {name}")
                clients.append(
                    train_locally(
                        model,
                        state,
                        image,
                        label.to(image.device),
                        self.settings,
                        self.head,
                        generator,
                        previous[client] if previous else None,
                    )
                )
            previous = clients if params.base == "moon" else []
            state, velocity = serve(state, average(clients, share), velocity, self.settings)
            logit, _ = predict_all(self.loaded(state), self.test, keep_on="cpu")
            curve.append(float((logit.argmax(1).numpy() == self.test_label).mean()))
            if turn + 1 < params.rounds and time.monotonic() - self.saved >= CHECKPOINT_SECONDS:
                stage.checkpoint({"state": state, "velocity": velocity, "curve": curve, "clients": previous})
                self.saved = time.monotonic()
        return state, clients, curve

    def write_detail(self, detail: Mapping[str, Any], stages: list[str]) -> None:
        """What is looked at closely: the last concentration, seed 0."""
        params, out = self.params, self.out
        state = {key: torch.as_tensor(value) for key, value in detail["state"].items()}
        model = self.loaded(state)
        owner = self.owner[params.concentrations[-1], 0]
        feature, test = self.features(model, self.image), self.features(model, self.test)
        sent = self.sent(feature, owner)
        heads = {stage: Head(*(np.asarray(part) for part in detail["heads"][stage])) for stage in stages}
        write_heads(sent, heads, params, out)
        hit = np.asarray(detail["logit"]).argmax(-1) == self.test_label
        rows = [self.test_label == k for k in range(self.classes)]
        out.write("class_accuracy", np.array([[h[r].mean() if r.any() else np.nan for r in rows] for h in hit]))
        pooled = shrink(pool(sent), params.shrinkage)
        if params.draw_curve:
            accuracy = []
            for draws in params.draw_curve:
                virtual, _ = draw_virtual(pooled, draws, out.rng(f"curve {draws}"))
                recipe, generator = head_recipe(params), out.generator(f"curve {draws}")
                fitted = train_on_virtual(heads["before"], pooled, virtual, recipe, generator)
                accuracy.append(float((fitted(test).argmax(1) == self.test_label).mean()))
            out.coordinate("draw_count", list(params.draw_curve))
            out.write("draw_accuracy", np.array(accuracy))
        locals_ = [self.loaded({k: torch.as_tensor(v) for k, v in one.items()}) for one in detail["clients"]]
        layers = layer_names(model, "weight")
        kept = [predict_all(m, self.test[:PROBES], layers=layers, pool="mean", keep_on="cpu")[1] for m in locals_]
        out.coordinate("layer", list(layers))
        out.write("cka", np.stack([linear_cka([one[layer] for one in kept]) for layer in layers]))
        weights = [find_layer(m, self.head).weight.detach().double().cpu() for m in locals_]
        out.write("head_norm", torch.stack([weight.norm(dim=1) for weight in weights]))
        self.write_projection(feature, pooled)
        out.model(model, name="federated")
        with torch.no_grad():
            layer = find_layer(model, self.head)
            layer.weight.copy_(torch.from_numpy(heads["ccvr"].weight))
            layer.bias.copy_(torch.from_numpy(heads["ccvr"].bias))
        out.model(model, name="ccvr")

    def write_projection(self, feature: Float, pooled: Statistics) -> None:
        """Real and virtual features of the three commonest classes on the plane of their largest variance."""
        virtual, _ = draw_virtual(pooled, SHOWN, self.out.rng("projection"))
        chosen = np.argsort(-pooled.count, kind="stable")[:3]
        chosen = chosen[pooled.count[chosen] > 0]
        real = [feature[self.label == k][:SHOWN] for k in chosen]
        point = np.concatenate([part for k, own in zip(chosen, real, strict=True) for part in (own, virtual[k])])
        group = [name for k, own in zip(chosen, real, strict=True)
                 for name in [f"{k} real"] * len(own) + [f"{k} virtual"] * SHOWN]  # fmt: skip
        centre = np.concatenate(real).mean(0)
        _, _, axes = np.linalg.svd(np.concatenate(real) - centre, full_matrices=False)
        flat = (point - centre) @ axes[:2].T
        self.out.write("projection_x", flat[:, 0])
        self.out.write("projection_y", flat[:, -1])
        self.out.write("projection_group", group)

    def sent(self, feature: Float, owner: np.ndarray) -> Statistics:
        """What the clients send."""
        return client_statistics(feature, self.label, owner, self.params.clients, self.classes, self.params.least_count)

    def features(self, model: nn.Module, image: Tensor) -> Float:
        """What the head receives, (sample, feature) float64."""
        return predict_all(model, image, layers=(self.head,), inputs=True, keep_on="cpu")[1][self.head].double().numpy()

    def loaded(self, state: Mapping[str, Tensor]) -> nn.Module:
        """A copy of the model with these weights, in eval mode."""
        model = copy.deepcopy(self.model).eval()
        model.load_state_dict(dict(state))
        return model
