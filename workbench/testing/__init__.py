"""The contract of a method, executable. In the tests of a plugin:

    from workbench.testing import MethodContract

    class TestMine(MethodContract):
        method = Mine
        params = {"epochs": 2}

`check_method` does the same outside pytest, `workbench check PACKAGE` on the command line; both return findings that name
the rule and how to mend it. `record` runs a method in memory for quick unit tests of its maths.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.testing.behaviour import check_method
    from workbench.testing.contract import MethodContract
    from workbench.testing.declarations import check_declarations
    from workbench.testing.findings import RULES, Finding, Rule
    from workbench.testing.recording import RecordedResult, RecordingOut, check_report, record
    from workbench.testing.samples import sample_dataset, sample_inputs, sample_model

_HOME = {
    "behaviour": ("check_method",),
    "contract": ("MethodContract",),
    "declarations": ("check_declarations",),
    "findings": ("RULES", "Finding", "Rule"),
    "recording": ("RecordedResult", "RecordingOut", "check_report", "record"),
    "samples": ("sample_dataset", "sample_inputs", "sample_model"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "RULES",
    "Finding",
    "MethodContract",
    "RecordedResult",
    "RecordingOut",
    "Rule",
    "check_declarations",
    "check_method",
    "check_report",
    "record",
    "sample_dataset",
    "sample_inputs",
    "sample_model",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
