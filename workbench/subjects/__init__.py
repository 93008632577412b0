"""Subjects: the data and the models that methods are run on.

`data` turns what people hold in a notebook into labelled arrays and checks them, `loaders` opens data by name or path,
`models` wraps and identifies networks, `building` makes them from names and stored states, `builtin` names the data and
models that come with the workbench. A model's identity is `model_digest.model_digest` (a module's name would hide it here).
Names below are imported when first used, so that importing this package does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.subjects.building import load_model, load_state
    from workbench.subjects.data import as_dataset, check_dataset, check_model_fits, dataset_digest
    from workbench.subjects.loaders import open_data
    from workbench.subjects.models import Model, as_model, model_state

__all__ = [
    "Model",
    "as_dataset",
    "as_model",
    "check_dataset",
    "check_model_fits",
    "dataset_digest",
    "load_model",
    "load_state",
    "model_state",
    "open_data",
]

_HOME = {
    "building": ("load_model", "load_state"),
    "data": ("as_dataset", "check_dataset", "check_model_fits", "dataset_digest"),
    "loaders": ("open_data",),
    "models": ("Model", "as_model", "model_state"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
