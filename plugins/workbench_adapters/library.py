"""What all adapters share: importing a library late and quietly, its version as part of a run's identity, its refusals."""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

from workbench import InputError, Method, Out, WorkbenchError


class LibraryMethod(Method):
    """A method whose numbers a library computes.

    The version of the library is appended to the method's `version`, and so becomes part of the key of every run: after
    an upgrade of the library a run is computed again instead of being taken from the store.
    """

    library: ClassVar[str]
    """Name of the distribution, e.g. `pytorch-ood`."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = cls.version.partition("+")[0]
        with suppress(AttributeError, importlib.metadata.PackageNotFoundError):
            cls.version = f"{own}+{cls.library}-{importlib.metadata.version(cls.library)}"


def import_library(module: str, out: Out) -> Any:
    """Import a library's module, without the warnings and log lines that some print when they are imported.

    A library that is installed but cannot be imported makes the method decline (`out.skip`) and say why. The usual cause
    is a torchvision that was built for another torch.
    """
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except Exception as error:
        hint = ""
        if "torchvision" in str(error):
            hint = " The torchvision installed was not built for this torch: install both from the same package index."
        out.skip(f"{module} is installed but cannot be imported ({type(error).__name__}: {error}).{hint}")
    finally:
        logging.disable(level)


def finite(bounds: tuple[float, float]) -> tuple[float, float] | None:
    """The ends of an interval; None where a single sample gives none."""
    return bounds if all(map(math.isfinite, bounds)) else None


@contextmanager
def refusals(argument: str, library: str) -> Iterator[None]:
    """Say what a library refuses (too few samples, a singular matrix, ...) as an InputError about `argument`."""
    try:
        yield
    except WorkbenchError:
        raise
    except (ValueError, AssertionError, ArithmeticError, IndexError, NotImplementedError) as error:
        text = str(error).strip().partition("\n")[0] or "a condition that its code asserts"
        raise InputError(
            argument, expected=f"what {library} can work with", got=f"{type(error).__name__}: {text}"
        ) from error
