"""Lets torchvision's wheel import beside a CPU build of torch, in the process that imports this."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import torch


def let_torchvision_import() -> None:
    """Beside a CPU build of torch, torchvision's wheel fails to import: the operators it compiled are missing.

    netcal requires it, and torchmetrics imports it where it is installed. No test calls one of those operators, so
    declaring them is enough. Where torchvision imports by itself nothing is declared.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        text = Path(spec.origin).with_name("_meta_registrations.py").read_text()
        names = set(re.findall(r'register_meta\("(\w+)"\)|torchvision::(\w+)"', text))
        library = torch.library.Library("torchvision", "DEF")
        for name in sorted({first or second for first, second in names}):
            library.define(f"{name}(Tensor input) -> Tensor")
        let_torchvision_import.library = library  # type: ignore[attr-defined]  # declarations end with their library
        for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[module]
        import torchvision  # noqa: F401


let_torchvision_import()
