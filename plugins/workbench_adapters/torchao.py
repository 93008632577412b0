"""Any configuration of torchao's `quantize_`, as a method: `TorchaoQuantization`; the example is weight-only rounding.

Or et al. (2025), TorchAO: PyTorch-Native Training-to-Serving Model Optimization, arXiv 2507.16099. torchao replaces the
weights of linear layers by quantised tensors. The logits judged here are those of torchao's own model. What is stored is
free of pickle: the integers, scales and zero points as arrays, and a model whose weights are the dequantised ones, so that
any later run can take it; how far its logits are from torchao's is measured and reported (nothing but rounding, unless the
configuration quantises activations too).

Wrapping another configuration takes a few lines:

    class Int8Dynamic(TorchaoQuantization):
        id = "quantization.torchao_int8_dynamic"
        title = "Weights and activations of the linear layers in 8 bits, by torchao"

        def config(self, params):
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig
            return Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)

torchao quantises linear layers only; convolutions keep their precision, which the report says (`quantization.uniform` and
the other methods of the family quantise them). Sizes are measured on the tensors that torchao holds; below 8 bits it keeps
one integer in a byte on a CPU, so the size with integers packed as tightly as their width allows is given beside it.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from workbench import DataRole, InputError, Inputs, ModelRole, Out, Output, Paper, Report, Result
from workbench import Params as BaseParams
from workbench.toolkit import predict_all, to_tensor

from workbench_adapters.library import LibraryMethod, import_library, refusals
from workbench_adapters.torchao_report import quantisation_report


class TorchaoParams(BaseParams):
    """Parameters that every configuration has; derive from it to add those of yours."""

    batch_size: int = Field(256, ge=1, le=65_536, description="Samples per forward pass")


@dataclass(frozen=True)
class QuantisedLayer:
    """What torchao made of one weight: the tensors it holds, and the weight they stand for."""

    held: Mapping[str, Tensor]
    """By torchao's names: `qdata`, `scale`, perhaps `zero_point` and others."""
    bits: int
    """Width of the integers."""
    restored: Tensor
    """The dequantised weight."""

    @property
    def held_bytes(self) -> int:
        """Bytes of all tensors that torchao holds, as they are."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.held.values())

    @property
    def packed_bytes(self) -> float:
        """The same with every integer (`qdata`) in `bits` bits."""
        data = self.held["qdata"]
        return self.held_bytes - data.numel() * data.element_size() + data.numel() * self.bits / 8


class TorchaoQuantization(LibraryMethod):
    """A configuration of torchao. Subclasses set id and title and make the configuration."""

    library = "torchao"
    requires = {"torchao": "torchao"}
    paper: ClassVar[Paper | None] = Paper(
        title="TorchAO: PyTorch-Native Training-to-Serving Model Optimization",
        authors="Or et al.",
        year=2025,
        arxiv="2507.16099",
        code="pytorch/ao (BSD-3-Clause)",
    )
    Params = TorchaoParams
    inputs = {
        "model": ModelRole("trained classifier with linear layers"),
        "data": DataRole(
            "labelled pictures to report on, none of them trained on",
            variables={"image": ("sample", "channel", "y", "x"), "label": ("sample",)},
        ),
    }
    outputs = (
        Output("accuracy", ("model_state",), "float64", "of the model as it came, and quantised by torchao"),
        Output("correct", ("model_state", "sample"), "bool", "whether the prediction is the label"),
        Output("negative_log_likelihood", ("model_state",), "float64", "nats"),
        Output("agreement", (), "float64", "share of predictions that quantisation leaves as they were"),
        Output("parameter_count", ("layer",), "int64", "weights of each quantised layer"),
        Output("layer_bits", ("layer",), "int64", "width of its integers", unit="bit"),
        Output("relative_error", ("layer",), "float64", "||restored - w||^2 / ||w||^2 of its weight"),
        Output("layer_bytes", ("size_of", "layer"), "float64", "its weight before, as held, and packed", unit="byte"),
        Output("model_bytes", ("size_of",), "float64", "all parameters and buffers of the model", unit="byte"),
        Output("quantised_share", (), "float64", "share of the model's parameters in quantised layers"),
        Output("stored_gap", (), "float64", "largest |logit of the stored model - logit of torchao's model|"),
        Output("integer_weight", ("weight",), "int8", "integers of all quantised layers, one after the other"),
        Output("weight_start", ("layer",), "int64", "where a layer's integers start"),
        Output("scale", ("range",), "float32", "scales of all quantised layers, one after the other"),
        Output("scale_start", ("layer",), "int64", "where a layer's scales start"),
        Output(
            "zero_point", ("range",), "int64", "integers that stand for 0, one for each scale; 0 where torchao has none"
        ),
        Output("logit", ("sample", "class"), "float32", "of torchao's model"),
        Output("label", ("sample",), "int64", "of the same samples"),
    )

    @abc.abstractmethod
    def config(self, params: Any) -> Any:
        """The configuration that `torchao.quantization.quantize_` takes; set `set_inductor_config=False` where it exists."""

    def run(self, inputs: Inputs, params: Any, out: Out) -> None:
        """Quantise a copy, judge it beside the original, and store integers, scales and a model that anyone can load."""
        quantization = import_library("torchao.quantization", out)
        model, data = inputs["model"], inputs["data"]
        original = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
        if not original:
            out.skip("the model has no linear layer, and torchao quantises nothing else")
        label = to_tensor(data["label"], dtype=torch.int64)
        full = self._logits(model, data, params, out)
        if full.ndim != 2 or int(label.max()) >= full.shape[1]:
            raise InputError(
                "model", expected="a classifier of all the labels", got=f"outputs of shape {tuple(full.shape)}"
            )
        quantised = copy.deepcopy(model)
        with refusals("model", self.library):
            quantization.quantize_(quantised, self.config(params))
            layers = read_layers(quantised, original)
            if not layers:
                out.skip("torchao left every linear layer as it was (widths that no group size divides, for example)")
            logit = self._logits(quantised, data, params, out)
        out.coordinate("layer", list(layers))
        write_layers(original, layers, out)
        write_sizes(model, layers, out)
        restore(model, layers)
        self._write(full, logit, self._logits(model, data, params, out), label, out)
        out.model(model)

    def report(self, result: Result) -> Report:
        """Accuracy before and after, measured sizes, errors by layer."""
        return quantisation_report(result)

    def _logits(self, model: nn.Module, data: Any, params: Any, out: Out) -> Tensor:
        """(sample, class) on the CPU."""
        return predict_all(
            model, data["image"], batch_size=params.batch_size, device=out.device, out=out, keep_on="cpu"
        )[0].float()

    def _write(self, full: Tensor, logit: Tensor, stored: Tensor, label: Tensor, out: Out) -> None:
        """What is known from the logits (sample, class) of the model as it came, of torchao's and of the stored one."""
        out.coordinate("model_state", ["full precision", "quantised"])
        correct = torch.stack([value.argmax(1) == label for value in (full, logit)])
        out.write("correct", correct)
        out.write("accuracy", correct.double().mean(1))
        loss = [nn.functional.cross_entropy(value.double(), label) for value in (full, logit)]
        out.write("negative_log_likelihood", torch.stack(loss))
        out.write("agreement", float((full.argmax(1) == logit.argmax(1)).double().mean()))
        out.write("stored_gap", float((stored - logit).abs().max()))
        out.write("logit", logit)
        out.write("label", label)


def read_layers(quantised: nn.Module, original: Mapping[str, nn.Linear]) -> dict[str, QuantisedLayer]:
    """What torchao made of each linear layer; layers that it left alone are not listed.

    Raises:
        InputError: a quantised tensor that does not tell its integers and scales.
    """
    found = {}
    modules = dict(quantised.named_modules())
    for name, before in original.items():
        weight = getattr(modules.get(name), "weight", None)
        if weight is None or type(weight.data) is Tensor:
            continue
        # A configuration that quantises activations as well may wrap the tensor that holds the weight.
        inner = getattr(weight, "original_weight_tensor", weight)
        held = {
            key: getattr(inner, key)
            for key in (*getattr(inner, "tensor_data_names", ()), *getattr(inner, "optional_tensor_data_names", ()))
            if isinstance(getattr(inner, key, None), Tensor)
        }
        if not {"qdata", "scale"} <= set(held) or held["qdata"].numel() != before.weight.numel():
            raise InputError(
                "config",
                expected="a configuration whose tensors hold one integer a weight (qdata) and scales",
                got=f"{type(inner).__name__} with {', '.join(held) or 'no tensors'}",
            )
        target = str(getattr(inner, "target_dtype", held["qdata"].dtype)).removeprefix("torch.")
        digits = "".join(character for character in target if character.isdigit())
        found[name] = QuantisedLayer(held, int(digits), inner.dequantize().detach().clone())
    return found


def restore(model: nn.Module, layers: Mapping[str, QuantisedLayer]) -> None:
    """Put the dequantised weights into a model of full precision."""
    with torch.no_grad():
        for name, layer in layers.items():
            weight = model.get_submodule(name).get_parameter("weight")
            weight.copy_(layer.restored.to(weight.dtype))


def write_layers(original: Mapping[str, nn.Linear], layers: Mapping[str, QuantisedLayer], out: Out) -> None:
    """Write integers, scales, zero points and errors, layer after layer."""
    integers = [layer.held["qdata"].flatten().cpu() for layer in layers.values()]
    scales = [layer.held["scale"].flatten().float().cpu() for layer in layers.values()]
    zeros = [
        layer.held["zero_point"].flatten().long().cpu()
        if "zero_point" in layer.held
        else torch.zeros(len(scale)).long()
        for layer, scale in zip(layers.values(), scales, strict=True)
    ]
    for name, start, parts in (("integer_weight", "weight_start", integers), ("scale", "scale_start", scales)):
        out.write(name, torch.cat(parts).to(torch.int8 if name == "integer_weight" else torch.float32))
        out.write(start, np.cumsum([0, *(len(part) for part in parts)])[:-1])
    out.write("zero_point", torch.cat(zeros))
    out.write("parameter_count", np.array([len(part) for part in integers]))
    out.write("layer_bits", np.array([layer.bits for layer in layers.values()]))
    out.write("relative_error", np.array([layer_error(original[name], layer) for name, layer in layers.items()]))


def layer_error(before: nn.Linear, layer: QuantisedLayer) -> float:
    """||restored - w||^2 / ||w||^2; 0 for a weight of zeros."""
    weight = before.weight.detach().double()
    norm = float(weight.square().sum())
    return float((layer.restored.double() - weight).square().sum()) / norm if norm else 0.0


def write_sizes(model: nn.Module, layers: Mapping[str, QuantisedLayer], out: Out) -> None:
    """Write bytes of every quantised layer and of the whole model: before, as torchao holds it, and packed."""
    whole = dict((*model.named_parameters(), *model.named_buffers()))
    total = float(sum(tensor.numel() * tensor.element_size() for tensor in whole.values()))
    weights = [whole[f"{name}.weight"] for name in layers]
    before = np.array([float(weight.numel() * weight.element_size()) for weight in weights])
    sizes = np.stack([before, *(np.array([float(getattr(layer, kind)) for layer in layers.values()])
                                for kind in ("held_bytes", "packed_bytes"))])  # fmt: skip
    out.coordinate("size_of", ["full precision", "held by torchao", "packed"])
    out.write("layer_bytes", sizes)
    out.write("model_bytes", total - before.sum() + sizes.sum(axis=1))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    out.write("quantised_share", sum(weight.numel() for weight in weights) / parameters)


class TorchaoWeightOnly(TorchaoQuantization):
    """Integers of 2 to 8 bits with one scale for each output channel, or for each group of inputs of a channel."""

    id = "quantization.torchao"
    title = "What torchao's weight-only quantisation of the linear layers costs and saves, measured"

    class Params(TorchaoParams):
        """Parameters."""

        bits: int = Field(8, ge=2, le=8, description="Width of the integers")
        group_size: int | None = Field(
            None, ge=2, le=65_536, description="Inputs that share a scale; None: one scale for each output channel"
        )

    def config(self, params: Params) -> Any:
        """An integer weight-only configuration; at 8 bits the one with kernels of its own."""
        from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig
        from torchao.quantization.granularity import PerAxis, PerGroup, PerRow

        if params.bits == 8:
            granularity: Any = PerRow() if params.group_size is None else PerGroup(params.group_size)
            return Int8WeightOnlyConfig(granularity=granularity, set_inductor_config=False)
        shared = PerAxis(0) if params.group_size is None else PerGroup(params.group_size)
        return IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{params.bits}"), granularity=shared)


__all__: Sequence[str] = ("TorchaoParams", "TorchaoQuantization", "TorchaoWeightOnly")
