"""A notebook workbench for people who study and ship vision models.

    import workbench
    bench = workbench.open("store")
    run = bench.run("quantization.hawq", model="...", data="...", bits=(2, 4, 8))

Names are imported when first used, so that `import workbench` costs milliseconds and never imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench._version import __version__

if TYPE_CHECKING:
    from workbench.bench import Workbench, open
    from workbench.errors import (
        CancelledError,
        InputError,
        IntegrityError,
        MissingDependencyError,
        SkippedError,
        WorkbenchError,
    )
    from workbench.execution.points import each
    from workbench.hookspecs import hookimpl
    from workbench.method import (
        BlockOut,
        BlockwiseMethod,
        DataRole,
        Inputs,
        Method,
        MethodReference,
        ModelRole,
        Out,
        OutArray,
        Output,
        Paper,
        Params,
        Result,
    )
    from workbench.report import (
        Bar,
        CustomView,
        FreeForm,
        HeatMap,
        Histogram,
        ImageGrid,
        Line,
        Metric,
        ReliabilityDiagram,
        Report,
        Scatter,
        Table,
    )
    from workbench.runs import Run
    from workbench.subjects.models import Model

_HOME = {
    "workbench.bench": ("Workbench", "open"),
    "workbench.runs": ("Run",),
    "workbench.errors": (
        "CancelledError",
        "InputError",
        "IntegrityError",
        "MissingDependencyError",
        "SkippedError",
        "WorkbenchError",
    ),
    "workbench.execution.points": ("each",),
    "workbench.hookspecs": ("hookimpl",),
    "workbench.method": (
        "BlockOut",
        "BlockwiseMethod",
        "DataRole",
        "Inputs",
        "Method",
        "MethodReference",
        "ModelRole",
        "Out",
        "OutArray",
        "Output",
        "Paper",
        "Params",
        "Result",
    ),
    "workbench.report": (
        "Bar",
        "CustomView",
        "FreeForm",
        "HeatMap",
        "Histogram",
        "ImageGrid",
        "Line",
        "Metric",
        "ReliabilityDiagram",
        "Report",
        "Scatter",
        "Table",
    ),
    "workbench.subjects.models": ("Model",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Bar",
    "BlockOut",
    "BlockwiseMethod",
    "CancelledError",
    "CustomView",
    "DataRole",
    "FreeForm",
    "HeatMap",
    "Histogram",
    "ImageGrid",
    "InputError",
    "Inputs",
    "IntegrityError",
    "Line",
    "Method",
    "MethodReference",
    "Metric",
    "MissingDependencyError",
    "Model",
    "ModelRole",
    "Out",
    "OutArray",
    "Output",
    "Paper",
    "Params",
    "ReliabilityDiagram",
    "Report",
    "Result",
    "Run",
    "Scatter",
    "SkippedError",
    "Table",
    "Workbench",
    "WorkbenchError",
    "__version__",
    "each",
    "hookimpl",
    "open",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        from importlib import import_module

        return getattr(import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module 'workbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
