"""Quantization: which layers of a trained network may go to few bits, and what that costs."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workbench import MethodReference, hookimpl

from workbench_quantization.export import ExportedModel, export_model

if TYPE_CHECKING:
    import click
    from torch import nn

    from workbench_quantization.deployed import deployed_model
    from workbench_quantization.export_torchao import torchao_model

__all__ = [
    "ExportedModel",
    "deployed_model",
    "export_model",
    "torchao_model",
    "workbench_commands",
    "workbench_methods",
    "workbench_models",
]


def __getattr__(name: str) -> Any:
    if name == "deployed_model":  # imports torch, which listing methods must not
        from workbench_quantization.deployed import deployed_model

        return deployed_model
    if name == "torchao_model":
        from workbench_quantization.export_torchao import torchao_model

        return torchao_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@hookimpl
def workbench_comparisons() -> Mapping[str, Callable[..., Any]]:
    """Accuracy against size of all runs of a model."""

    def side_by_side(runs: Any) -> Any:
        from workbench_quantization.frontier import frontier  # imports torch, which listing methods must not

        return frontier(runs)

    return {"quantization": side_by_side}


@hookimpl
def workbench_methods() -> list[MethodReference]:
    """The methods of this family, imported on first use."""
    return [
        MethodReference(
            "quantization.adaquant",
            "workbench_quantization.adaquant:AdaQuant",
            "4-bit weights and activations from a few hundred images, without retraining",
        ),
        MethodReference(
            "quantization.biper",
            "workbench_quantization.biper:BiPer",
            "Trains a network with 1-bit weights and activations, and says what the bits cost beside plain binary training",
        ),
        MethodReference(
            "quantization.double_rounding",
            "workbench_quantization.double_rounding:DoubleRounding",
            "One stored integer model that switches between 8, 6, 4 and 2 bits, and what each switch costs",
        ),
        MethodReference(
            "quantization.gptq",
            "workbench_quantization.gptq:Gptq",
            "What few-bit weights cost when every layer makes good for its own rounding (GPTQ)",
        ),
        MethodReference(
            "quantization.hawq",
            "workbench_quantization.hawq:Hawq",
            "Which layers may go to 4 or 2 bits, judged by the curvature of the loss",
        ),
        MethodReference(
            "quantization.interlayer",
            "workbench_quantization.interlayer:Interlayer",
            "How many layers may go to fewer bits at a guaranteed accuracy, counting how their errors interact",
        ),
        MethodReference(
            "quantization.layerwise",
            "workbench_quantization.layerwise:Layerwise",
            "Which transformer blocks of a language model may go to fewer bits, from one pass over a text or none",
        ),
        MethodReference(
            "quantization.uniform",
            "workbench_quantization.uniform:Uniform",
            "What plain rounding of the weights costs, at every width; and what a table of widths is worth",
        ),
    ]


@hookimpl
def workbench_models() -> "Mapping[str, Callable[..., Any]]":
    """Networks that binarise well, and what builds stored binary networks again; nothing is imported until one is used."""
    names = ("binary-resnet20", "binary-resnet18", "binary-vgg-small", "binary-digits")
    made: dict[str, Callable[..., Any]] = {name: _network(name.replace("-", "_")) for name in names}
    return made | {"binary-packed": _packed, "binary-stage1": _stage_one}


def _network(name: str) -> "Callable[..., nn.Module]":
    def build(n_classes: int, channels: int) -> "nn.Module":
        from workbench_quantization import biper_networks

        made: nn.Module = getattr(biper_networks, name)(n_classes, channels)
        return made

    return build


def _packed(
    network: "nn.Module", layers: Sequence[str], inputs: str = "polynomial", pad_value: float = 0.0
) -> "nn.Module":
    """See `biper_store.packed_factory`."""
    from workbench_quantization.biper_store import packed_factory

    return packed_factory(network, layers=layers, inputs=inputs, pad_value=pad_value)  # type: ignore[arg-type]


def _stage_one(network: "nn.Module", layers: Sequence[str], inputs: str, pad_value: float, omega: float) -> "nn.Module":
    """See `biper_store.stage_one_factory`."""
    from workbench_quantization.biper_store import stage_one_factory

    return stage_one_factory(network, layers=layers, inputs=inputs, pad_value=pad_value, omega=omega)  # type: ignore[arg-type]


@hookimpl
def workbench_commands() -> "Sequence[click.Command]":
    """`workbench export`."""
    from workbench_quantization.export import export_command

    return [export_command]
