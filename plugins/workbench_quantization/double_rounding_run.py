"""The steps of a Double Rounding run: train, judge every width and rival, look for mixed widths, store one integer model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from workbench import InputError, Inputs, Out
from workbench.toolkit import Recipe, Stages, predict_all, to_tensor

from workbench_quantization.bit_table import score, table_of_widths
from workbench_quantization.double_rounding_store import write_model, write_weights
from workbench_quantization.double_rounding_training import (
    MAIN,
    SEPARATE,
    Lesson,
    Recorded,
    Variant,
    train,
    variant_of,
)
from workbench_quantization.hawq_images import Images, Parts, check_labels, split_roles
from workbench_quantization.layers import Block, find_blocks, multiply_accumulates
from workbench_quantization.nested_rounding import CURVES, transfer_curves
from workbench_quantization.quantizer import FULL_PRECISION
from workbench_quantization.switchable import Switchable, widths_of

if TYPE_CHECKING:
    from workbench_quantization.double_rounding import Params

UNIFORM_ROULETTE = "uniform roulette"
SCORES = ("accuracy", "negative_log_likelihood", "agreement")


@dataclass
class Study:
    """What all steps share. `pristine` is the model as it came, which every training starts from."""

    pristine: nn.Module
    names: list[str]
    sizes: np.ndarray
    fixed: np.ndarray
    shown: Tensor
    full: Tensor
    held_out: Images
    parts: Parts
    params: Params
    out: Out
    stages: Stages
    lesson: Lesson | None

    def blocks(self, model: nn.Module) -> list[Block]:
        """The layers of a copy of the model."""
        return [Block(name, (name,), (model.get_submodule(name),)) for name in self.names]

    def switchable(self, variant: Variant, widths: tuple[int, ...]) -> Switchable:
        """A copy of the model as it came, ready to be switched."""
        params, model = self.params, copy.deepcopy(self.pristine)
        return Switchable(
            model,
            self.blocks(model),
            self.fixed.tolist(),
            self.shown,
            widths,
            rule=variant.rule,
            rounding=params.rounding,
            start=params.scale_init,
            relative=params.scale_steps == "relative",
            gradient=params.scale_gradient,
            inputs=params.input_init if params.quantise_inputs else None,
        ).eval()

    def logits(self, model: nn.Module) -> Tensor:
        """On the report images, on the CPU."""
        half = self.out.dtype if self.out.dtype in (torch.float16, torch.bfloat16) else None
        return predict_all(model, self.held_out.image, device=self.out.device, dtype=half, keep_on="cpu")[0].float()

    def judge(self, net: Switchable, bits: int | Mapping[int, int]) -> dict[str, float]:
        """Scores of the network at these widths."""
        net.switch(bits)
        return score(self.logits(net), self.full, self.held_out.label)


def run(inputs: Inputs, params: Params, out: Out) -> None:
    """Do everything and write every output."""
    study, given = prepare(inputs, params, out)
    variant = variant_of(MAIN, params.alrs)
    net = study.switchable(variant, params.widths)
    record = train_main(study, net, variant)
    figures = [[study.judge(net, bits) for bits in params.widths]]
    records = [record]
    rivals: list[str] = [name for name in params.compare if name != UNIFORM_ROULETTE]
    for name in rivals:
        scores, recorded = train_rival(study, name)
        figures.append(scores)
        records.append(recorded)
    out.coordinate("variant", [MAIN, *rivals])
    for name in SCORES:
        out.write(name, np.array([[row[name] for row in rows] for rows in figures]))
    write_training(study, net, records)
    table: int | Mapping[int, int] = params.store_width or params.widths[0]
    if params.mode == "mixed":
        from workbench_quantization.double_rounding_search import search

        net, table = search(study, net, None if given is None else widths_of(net, given))
    if given is not None:
        table = widths_of(net, given)
        out.write("accuracy_given", np.float64(study.judge(net, table)["accuracy"]))
    write_weights(study, net)
    net.switch(table)
    out.write("logit", study.logits(net))
    out.write("label", study.held_out.label)
    out.write("sample_index", study.held_out.index)
    write_model(study, net, table)


def prepare(inputs: Inputs, params: Params, out: Out) -> tuple[Study, np.ndarray | None]:
    """Check everything that can be wrong, and write what does not depend on training."""
    model = inputs["model"]
    parts = split_roles(
        inputs,
        out,
        report_fraction=params.report_fraction,
        calibration_samples=params.hess_samples,
        training=params.mode != "ptq",
    )
    check_labels(model, parts, out.device)
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters()):
        model = copy.deepcopy(model).float()  # scales and weights move by less than half precision can hold
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    shown = to_tensor(parts.calibration.image, device=out.device).to(dtype)
    blocks, reasons = find_blocks(model, shown[:1])
    fixed = np.zeros(len(blocks), dtype=bool)
    if params.first_last == "full precision" and len(blocks):
        fixed[[0, -1]] = True
    if fixed.all():
        out.skip(
            f"{', '.join(block.name for block in blocks) or 'nothing'} can be quantised, and first and last layer stay in "
            "full precision; first_last='quantised' lets them in"
        )
    names = [block.name for block in blocks]
    given = None if inputs.get("bits") is None else check_table(inputs["bits"], names, fixed, params.widths)
    out.coordinate("layer", names)
    out.coordinate("bit", np.array(params.widths))
    sizes = np.array([block.size for block in blocks], dtype=np.int64)
    out.write("parameter_count", sizes)
    out.write("weight_shape", [block.shape for block in blocks])
    out.write("macs", multiply_accumulates(model, blocks, parts.calibration.image.shape[1:]))
    out.write("quantised", ~fixed)
    if reasons:
        out.coordinate("parameter", list(reasons))
        out.write("unquantised_reason", list(reasons.values()))
    value = torch.linspace(-1, 1, 801, dtype=torch.float64)
    out.coordinate("curve", list(CURVES))
    out.coordinate("value", value.numpy())
    out.write("transfer", transfer_curves(value, params.widths[0], params.widths))
    full = predict_all(model, parts.held_out.image, device=out.device, keep_on="cpu")[0].float()
    out.write("accuracy_full_precision", np.float64(score(full, full, parts.held_out.label)["accuracy"]))
    count = 1 + sum(len(params.widths) if name == SEPARATE else 1 for name in params.compare) + (params.mode == "mixed")
    study = Study(model, names, sizes, fixed, shown, full, parts.held_out, parts, params, out, Stages(out, count), None)
    if parts.training is not None:
        study.lesson = lesson_of(study, parts.training, params.epochs)
    return study, given


def check_table(given: xr.Dataset, names: list[str], fixed: np.ndarray, widths: tuple[int, ...]) -> np.ndarray:
    """(layer,) widths of a table from another run; what it says of layers in full precision does not matter."""
    table = table_of_widths(given, names)
    for name, width, kept in zip(names, table, fixed, strict=True):
        if not kept and int(width) not in widths:
            raise InputError(
                "bits",
                expected=f"widths this model switches between, {', '.join(map(str, widths))}",
                got=f"{width} for {name!r}",
                hint="Name the widths of the table in the parameter `widths`, or use `quantization.uniform`.",
            )
    return np.where(fixed, FULL_PRECISION, table)


def lesson_of(study: Study, training: Images, epochs: int) -> Lesson:
    """What is trained on, and how."""
    params, watched = study.params, min(study.params.watch_samples, len(study.held_out.label))
    edge = int(training.image.shape[-1])
    return Lesson(
        image=training.image,
        label=training.label,
        watched=study.held_out.image[:watched],
        watched_label=study.held_out.label[:watched],
        recipe=Recipe(
            epochs=epochs,
            batch_size=params.batch_size,
            optimizer="adam",
            learning_rate=params.learning_rate,
            weight_decay=params.weight_decay,
        ),
        padding=max(1, edge // 8) if "crop" in params.augmentation else 0,
        flip="flip" in params.augmentation,
        teacher=copy.deepcopy(study.pristine).eval() if params.teacher == "full precision" else None,
        distillation=params.distillation,
        clip=params.clip_grad,
        self_taught=params.teacher == "highest width",
    )


def train_main(study: Study, net: Switchable, variant: Variant) -> dict[str, Any]:
    """The training of the stored model, in place, or what an interrupted run made of it."""
    if study.lesson is None:
        return {}
    if study.stages.result(MAIN) is None:
        name = MAIN.replace(" ", "_")
        recorded = train(net, study.lesson, variant, study.stages.begin(MAIN), name, study.out.generator("training"))
        study.stages.finish(MAIN, noted(recorded) | {"state": state_of(net)})
    found = study.stages.result(MAIN)
    assert found is not None
    load(net, found["state"])
    return found


def train_rival(study: Study, name: str) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Scores at every width, and the record, of a training that differs in one thing. Same batches as the main one."""
    assert study.lesson is not None
    params, variant = study.params, variant_of(name, study.params.alrs)
    groups = [(bits,) for bits in params.widths] if name == SEPARATE else [params.widths]
    scores: list[dict[str, float]] = []
    parts = []
    for widths in groups:
        stage = f"{name} {widths[0]}" if name == SEPARATE else name
        if study.stages.result(stage) is None:
            net, out = study.switchable(variant, widths), study.stages.begin(stage)
            generator = study.out.generator("training")
            recorded = train(net, study.lesson, variant, out, stage.replace(" ", "_"), generator)
            figures = [study.judge(net, bits) for bits in widths]
            study.stages.finish(stage, noted(recorded) | {"figures": figures})
        found = study.stages.result(stage)
        assert found is not None
        scores += found["figures"]
        parts.append(found)
    joined = {key: torch.cat([torch.as_tensor(part[key]) for part in parts], dim=-1) for key in ("loss", "accuracy")}
    return scores, joined


def noted(recorded: Recorded) -> dict[str, Any]:
    """What a training left besides its network."""
    record = {name: getattr(recorded, name).cpu() for name in ("loss", "accuracy", "rate", "gradient")}
    return record | {"kept": recorded.kept}


def state_of(net: nn.Module) -> dict[str, Tensor]:
    """A copy on the CPU."""
    return {key: value.detach().cpu().clone() for key, value in net.state_dict().items()}


def load(net: nn.Module, state: Mapping[str, Any]) -> None:
    """The inverse of `state_of`, in place, in eval mode."""
    net.load_state_dict({key: torch.as_tensor(value) for key, value in state.items()})
    net.eval()


def write_training(study: Study, net: Switchable, records: list[dict[str, Any]]) -> None:
    """Curves of all trainings; rates and gradients of the first."""
    if study.lesson is None:
        return
    main, out = records[0], study.out
    out.coordinate("epoch", np.arange(1, study.params.epochs + 1))
    for name, key in (("accuracy_epoch", "accuracy"), ("loss_epoch", "loss")):
        out.write(name, np.stack([np.asarray(record[key]) for record in records]).astype(np.float32))
    kept = np.asarray(main["kept"])
    out.coordinate("step", kept + 1)
    out.write("lr_scale", np.asarray(main["rate"], dtype=np.float32))
    gradient = np.full((len(kept), len(study.names), len(study.params.widths)), np.nan, dtype=np.float32)
    gradient[:, list(net.layers)] = np.asarray(main["gradient"])
    out.write("grad_scale_absmax", gradient)
