"""Any attribution of captum as a method: `CaptumAttribution`; the example is integrated gradients.

Kokhlikyan et al. (2020), Captum: A unified and generic model interpretability library for PyTorch, arXiv 2009.07896. The
attributions are the library's own. Around them the adapter puts what a heat map must be shown with: deletion and
insertion curves beside two controls that know nothing of the classifier (chance and edges), and, for attributions that
claim it, how far the sum of the attributions is from f(x) - f(baseline). What is explained is the logit of one class.

Wrapping another attribution takes a few lines:

    class Guided(CaptumAttribution):
        id = "attribution.guided_backpropagation"
        title = "Guided backpropagation by captum"
        hooks_relu = True

        def attribute(self, model, image, target, params):
            from captum.attr import GuidedBackprop
            return GuidedBackprop(model).attribute(image, target=target)

Before the library sees it, the network is rewritten so that every ReLU is a module of its own; without that, methods that
hook ReLU modules are silently wrong on networks that call `F.relu`. Where the rewriting fails, a class with `hooks_relu`
declines. captum's own defaults (5 samples, sigma 1, 25 perturbations, ...) rarely suit pictures in 0..1: set them all.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from workbench import DataRole, InputError, Inputs, ModelRole, Out, Output, Paper, Report, Result
from workbench import Params as BaseParams
from workbench.toolkit import image_batches, to_tensor

from workbench_adapters import heat_maps
from workbench_adapters.captum_report import attribution_report
from workbench_adapters.library import LibraryMethod, import_library, refusals

CONTROLS = ("chance", "edges")


class AttributionParams(BaseParams):
    """Parameters that every attribution has; derive from it to add those of yours."""

    explained: Literal["prediction", "label"] = Field(
        "prediction", description="Class whose logit is explained: the predicted one, or the label"
    )
    baseline: float = Field(0.0, ge=0, le=1, description="Grey value of the picture that counts as `nothing there`")
    steps: int = Field(
        0, ge=0, le=10_000, description="Portions of pixels in deletion and insertion; 0: one row's worth each"
    )
    batch_size: int = Field(16, ge=1, le=4096, description="Pictures at once")
    shown: int = Field(12, ge=1, le=100, description="Pictures in the report")


class CaptumAttribution(LibraryMethod):
    """An attribution of captum. Subclasses set id and title and call the library."""

    library = "captum"
    requires = {"captum": "captum"}
    paper: ClassVar[Paper | None] = Paper(
        title="Captum: A unified and generic model interpretability library for PyTorch",
        authors="Kokhlikyan et al.",
        year=2020,
        arxiv="2009.07896",
        code="pytorch/captum (BSD-3-Clause)",
    )
    hooks_relu: ClassVar[bool] = False
    """Whether the attribution hooks ReLU modules and is wrong where it cannot."""
    complete: ClassVar[bool] = False
    """Whether the attributions of one picture should sum to f(x) - f(baseline)."""
    Params = AttributionParams
    inputs = {
        "model": ModelRole("the classifier to explain"),
        "data": DataRole(
            "pictures whose classification is explained",
            variables={"image": ("sample", "channel", "y", "x")},
            optional_variables={"label": ("sample",)},
        ),
    }
    outputs = (
        Output("attribution", ("sample", "y", "x"), "float32", "signed, summed over channels; unit: logit"),
        Output("target", ("sample",), "int64", "class whose logit is explained"),
        Output("target_logit", ("sample",), "float32", "its logit f(x)"),
        Output("correct", ("sample",), "bool", "whether the predicted class is the label", optional=True),
        Output("baseline_logit", ("sample",), "float32", "its logit f(baseline)"),
        Output("attribution_sum", ("sample",), "float64", "sum over all pixels and channels"),
        Output("completeness_error", ("sample",), "float64", "|sum - (f(x) - f(baseline))|", optional=True),
        Output(
            "deletion_curve", ("attributor", "fraction"), "float64", "mean probability of the class, pixels turned black"
        ),
        Output(
            "insertion_curve", ("attributor", "fraction"), "float64", "the same, pixels put back into a blurred picture"
        ),
        Output("deletion_auc", ("attributor", "sample"), "float64", "area under the picture's deletion curve"),
        Output("insertion_auc", ("attributor", "sample"), "float64", "area under its insertion curve"),
        Output("shown_image", ("shown", "channel", "y", "x"), "float32", "pictures in the report"),
        Output("shown_attribution", ("shown", "y", "x"), "float32", "scaled to -1..1, see `for_display`"),
        Output("shown_caption", ("shown",), "str", "explained class, and whether the prediction is right"),
    )

    @abc.abstractmethod
    def attribute(self, model: nn.Module, image: Tensor, target: Tensor, params: Any) -> Tensor:
        """The library's attributions (sample, channel, y, x), or (sample, 1, y, x), of a batch.

        Args:
            model: the classifier in eval mode, every ReLU a module; pictures in 0..1 to logits.
            image: (sample, channel, y, x).
            target: (sample,) the class to explain.
            params: of the run.
        """

    def run(self, inputs: Inputs, params: Any, out: Out) -> None:
        """Attribute, measure, and keep some pictures for the report."""
        import_library("captum.attr", out)
        data = inputs["data"]
        if params.explained == "label" and "label" not in data:
            raise InputError("explained", expected="'prediction' for data without labels", got="'label'")
        model = self._prepared(inputs["model"], to_tensor(data["image"][:2], device=out.device), out)
        measured = [
            self._measure(model, batch, inputs, region, params, out)
            for region, batch in image_batches(data["image"], params.batch_size, out.device)
        ]
        columns = {name: np.concatenate([row[name] for row in measured], axis=0) for name in measured[0]}
        names = [self.id.partition(".")[2], *CONTROLS]
        out.coordinate("attributor", names)
        out.coordinate("fraction", np.linspace(0, 1, columns["deletion"].shape[2]))
        for kind in ("deletion", "insertion"):
            curve = columns.pop(kind)
            out.write(f"{kind}_curve", curve.mean(0))
            out.write(f"{kind}_auc", heat_maps.area_under(torch.as_tensor(curve)).T)
        if self.complete:
            change = columns["target_logit"].astype(float) - columns["baseline_logit"].astype(float)
            out.write("completeness_error", np.abs(columns["attribution_sum"] - change))
        if "label" in data:
            out.write("correct", columns["prediction"] == to_tensor(data["label"]).numpy())
        prediction = columns.pop("prediction")
        for name, values in columns.items():
            out.write(name, values)
        self._write_shown(data, columns, prediction, params.shown, out)

    def _prepared(self, model: nn.Module, image: Tensor, out: Out) -> nn.Module:
        """The model with ReLU modules; the model itself where it cannot be rewritten and need not be."""
        rewritten = heat_maps.with_relu_modules(model)
        with torch.no_grad():
            same = rewritten is not None and torch.equal(rewritten(image), model(image))
        if rewritten is None or not same:
            if self.hooks_relu:
                out.skip(
                    "the model cannot be rewritten with ReLU modules (torch.fx), and without them this attribution is wrong"
                )
            return model
        return rewritten

    def _measure(
        self, model: nn.Module, image: Tensor, inputs: Inputs, region: slice, params: Any, out: Out
    ) -> dict[str, np.ndarray]:
        """What is stored of one batch, the samples first."""
        data = inputs["data"]
        with torch.no_grad():
            logit = model(image)
        prediction = logit.argmax(1)
        target = prediction if params.explained == "prediction" else to_tensor(data["label"][region], device=out.device)
        with refusals("data", self.library):
            whole = self.attribute(model, image.detach().clone(), target, params).detach()
        heat = whole.sum(1)
        probability = heat_maps.softmax_of(model)
        steps = params.steps or image.shape[-2]
        chance = torch.rand(heat.shape, generator=out.generator(f"chance {region.start}")).to(heat.device)
        curves: dict[str, list[Tensor]] = {"deletion": [], "insertion": []}
        for row, control in enumerate((heat, chance, heat_maps.edges(image))):
            order = heat_maps.pixel_order(control, out.generator(f"ties {region.start} {row}"))
            black, soft = torch.zeros_like(image), heat_maps.blurred(image)
            for kind, start, end in (("deletion", image, black), ("insertion", soft, image)):
                out.progress(region.start, data.sizes["sample"], "attributing")
                curves[kind].append(heat_maps.replacement_curve(probability, start, end, order, target, steps))
        with torch.no_grad():
            nothing = model(torch.full_like(image, params.baseline))
        picked = {"target_logit": logit, "baseline_logit": nothing}
        values = {name: value.gather(1, target[:, None])[:, 0].float() for name, value in picked.items()}
        values |= {name: torch.stack(rows, dim=1).double() for name, rows in curves.items()}
        values |= {"attribution": heat.float(), "attribution_sum": whole.double().sum((1, 2, 3))}
        values |= {"target": target, "prediction": prediction}
        return {name: value.cpu().numpy() for name, value in values.items()}

    def _write_shown(self, data: Any, columns: Any, prediction: np.ndarray, count: int, out: Out) -> None:
        index = np.arange(min(count, data.sizes["sample"]))
        names = [str(name) for name in data["class"].values] if "class" in data.coords else None
        captions = []
        for row in index:
            target = int(columns["target"][row])
            text = names[target] if names is not None and target < len(names) else str(target)
            wrong = "label" in data and int(prediction[row]) != int(data["label"][row])
            captions.append(f"{text}, misjudged" if wrong else text)
        out.write("shown_image", to_tensor(data["image"][index]).float())
        out.write("shown_attribution", heat_maps.for_display(columns["attribution"][index]))
        out.write("shown_caption", captions)

    def report(self, result: Result) -> Report:
        """Maps, curves beside the controls, and the completeness error."""
        return attribution_report(result, self.title)


class IntegratedGradients(CaptumAttribution):
    """(x - x0) times the mean gradient on the straight line from the baseline x0 to x (Sundararajan et al. 2017)."""

    id = "attribution.integrated_gradients"
    title = "Which pixels made the classifier decide so: integrated gradients, judged beside chance and edges"
    version = "2"
    paper = Paper(
        title="Axiomatic Attribution for Deep Networks",
        authors="Sundararajan, Taly, Yan",
        year=2017,
        arxiv="1703.01365",
        venue="ICML 2017",
        code="ankurtaly/Integrated-Gradients",
    )
    complete = True

    class Params(AttributionParams):
        """Parameters."""

        n_steps: int = Field(
            50, ge=2, le=5000, description="Gradients on the way from the baseline (paper 20 to 300); see the report"
        )

    def attribute(self, model: nn.Module, image: Tensor, target: Tensor, params: Params) -> Tensor:
        """Integrated gradients of captum, with Gauss-Legendre nodes."""
        from captum.attr import IntegratedGradients as Library

        return Library(model).attribute(
            image,
            baselines=params.baseline,
            target=target,
            n_steps=params.n_steps,
            method="gausslegendre",
            internal_batch_size=max(256, len(image)),
        )


__all__: Sequence[str] = ("AttributionParams", "CaptumAttribution", "IntegratedGradients")
