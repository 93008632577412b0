"""Quantization: which layers of a trained network may go to few bits, and what that costs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from workbench import MethodReference, hookimpl

from workbench_quantization.export import ExportedModel, export_model

if TYPE_CHECKING:
    import click

__all__ = ["ExportedModel", "export_model", "workbench_commands", "workbench_methods"]


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
            "quantization.uniform",
            "workbench_quantization.uniform:Uniform",
            "What plain rounding of the weights costs, at every width; and what a table of widths is worth",
        ),
    ]


@hookimpl
def workbench_commands() -> "Sequence[click.Command]":
    """`workbench export`."""
    from workbench_quantization.export import export_command

    return [export_command]
        MethodReference(
            "quantization.gptq",
            "workbench_quantization.gptq:Gptq",
            "What few-bit weights cost when every layer makes good for its own rounding (GPTQ)",
        ),
        MethodReference(
            "quantization.layerwise",
            "workbench_quantization.layerwise:Layerwise",
            "Which transformer blocks of a language model may go to fewer bits, from one pass over a text or none",
        ),
