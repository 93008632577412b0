"""Quantised models leave the store: `workbench export RUN -o model.onnx`, or `export_model(run, "model.safetensors")`.

ONNX (QDQ form) for run times, safetensors (integers packed at exactly their width) for people; the file's size is measured.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from workbench import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workbench_quantization.stored_layers import QuantisedRun, StoredLayer

FORMATS = {".onnx": "ONNX with integer weights behind DequantizeLinear", ".safetensors": "packed integers and scales"}

NAMED = 5
"""Most weights in full precision that a message names."""


@dataclass(frozen=True)
class ExportedModel:
    """What was written.

    Attributes:
        path: the file.
        size: its bytes.
        full_precision_size: bytes of the model's parameters and buffers as they are in memory.
        bits: width per quantised layer.
        kept: weights (parameters of two or more dims) that are in the file in full precision.
    """

    path: Path
    size: int
    full_precision_size: int
    bits: dict[str, int]
    kept: tuple[str, ...] = ()

    def __str__(self) -> str:
        widths = sorted(set(self.bits.values()))
        told = " to ".join(str(width) for width in dict.fromkeys((widths[0], widths[-1]))) if widths else ""
        layers = f"{len(self.bits)} layers of {told} bit" if told else "no layer is quantised"
        share = self.size / self.full_precision_size
        more = f" and {len(self.kept) - NAMED} more" if len(self.kept) > NAMED else ""
        kept = f"; in full precision: {', '.join(self.kept[:NAMED])}{more}" if self.kept else ""
        return (
            f"{self.path}: {self.size:,} bytes, {share:.1%} of the {self.full_precision_size:,} bytes in full precision; "
            f"{layers}{kept}"
        )


def export_model(
    run: QuantisedRun,
    path: str | os.PathLike[str],
    *,
    input_shape: Sequence[int] | None = None,
    width: int | None = None,
) -> ExportedModel:
    """Write the quantised model of a run as one file; the suffix of `path` chooses the format.

    Args:
        run: a run that stored integers: of `quantization.uniform`, `hawq`, `interlayer`, `adaquant`, `gptq`, `double_rounding`,
            `biper`, or `layerwise` (safetensors only). A table of widths becomes one by
            `bench.run("quantization.uniform", bits=other["bits"], ...)`.
        path: ends in .onnx or .safetensors; the file appears when it is whole.
        input_shape: (channel, y, x) of an image, for ONNX; default: what the model says.
        width: of a model that switches (`quantization.double_rounding`); default: the widths in `bits`.

    Raises:
        InputError: the suffix is unknown, the run stored no integers or not this width, or the model cannot be traced.
        MissingDependencyError: ONNX is asked for and onnxscript is not installed.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise InputError("path", expected=f"a name that ends in {' or '.join(FORMATS)}", got=str(path))
    if not path.parent.is_dir():
        raise InputError("path", expected="a file in a folder that exists", got=str(path))
    from workbench_quantization.export_binary import is_binary
    from workbench_quantization.stored_layers import model_at, require_integers, stored_layers

    if is_binary(run):
        return _export_binary(run, path, input_shape, width)
    require_integers(run)
    model = model_at(run, width)
    layers = stored_layers(run, model, width)
    _write_whole(path, _writer(path.suffix, run, model, layers, input_shape))
    state = model.state_dict().values()
    bits = {layer.name: layer.bits for layer in layers}
    return ExportedModel(
        path=path,
        size=path.stat().st_size,
        full_precision_size=sum(value.numel() * value.element_size() for value in state),
        bits=bits,
        kept=_kept(model, bits),
    )


def _kept(model: nn.Module, bits: Mapping[str, int]) -> tuple[str, ...]:
    parameters = [(name, value) for name, value in model.named_parameters() if value.ndim > 1]
    return tuple(name for name, _ in parameters if name.removesuffix(".weight") not in bits)


def _writer(
    suffix: str, run: QuantisedRun, model: nn.Module, layers: Sequence[StoredLayer], input_shape: Sequence[int] | None
) -> Callable[[Path], None]:
    if suffix == ".safetensors":
        from workbench_quantization.export_safetensors import write_safetensors

        return lambda path: write_safetensors(path, model, layers, {"format": 1, "run": run.id})
    from workbench_quantization.export_onnx import write_onnx

    example = _example(model, input_shape)
    # Run times differ in what they do in half precision, and integers times scales need none: the rest is float32.
    single = copy.deepcopy(model).float()
    return lambda path: write_onnx(path, single, layers, example)


def _export_binary(
    run: QuantisedRun, path: Path, input_shape: Sequence[int] | None, width: int | None
) -> ExportedModel:
    """The same for a run of `quantization.biper`, whose layers are bits and scales."""
    from workbench_quantization.export_binary import binary_bits, write_binary_onnx, write_binary_safetensors
    from workbench_quantization.stored_layers import model_at

    model = model_at(run, width)
    bits = binary_bits(model)
    if path.suffix == ".safetensors":
        _write_whole(path, lambda partial: write_binary_safetensors(partial, model, run.id))
    else:
        example = _example(model, input_shape)
        _write_whole(path, lambda partial: write_binary_onnx(partial, model, example))
    return ExportedModel(path, path.stat().st_size, int(run["size"].values[0]), bits, _kept(model, bits))


def _example(model: nn.Module, input_shape: Sequence[int] | None) -> Tensor:
    import torch

    shape = input_shape or getattr(model, "input_shape", None)
    if shape is None and any(isinstance(module, torch.nn.Embedding) for module in model.modules()):
        raise InputError(
            "run",
            expected="a model of images, for ONNX",
            got="one that looks tokens up, a language model",
            hint="Write it as .safetensors: integers packed at their width, under the names of the state dict.",
        )
    if shape is None or len(shape) != 3:
        raise InputError("input_shape", expected="(channel, y, x) of an image", got=repr(shape))
    return torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))


def _write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """The file appears under its name when it is whole."""
    partial = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@click.command("export")
@click.argument("run")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="FILE.onnx or FILE.safetensors.",
)
@click.option("--input-shape", metavar="C,Y,X", help="Shape of an image, where the model does not say it (ONNX).")
@click.option("--width", type=int, metavar="BITS", help="Width to export, of a model that switches between several.")
@click.pass_context
def export_command(ctx: click.Context, run: str, output: Path, input_shape: str | None, width: int | None) -> None:
    """Write the quantised model of RUN as one file: ONNX or safetensors, by the suffix."""
    import workbench

    shape = None
    if input_shape is not None:
        try:
            shape = tuple(int(size) for size in input_shape.split(","))
        except ValueError:
            raise InputError("--input-shape", expected="three numbers such as 3,32,32", got=input_shape) from None
    click.echo(str(export_model(workbench.open(ctx.obj)[run], output, input_shape=shape, width=width)))
