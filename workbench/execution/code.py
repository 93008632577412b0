"""Whether a method's code is vouched for by a release, and if not, a digest of it that becomes part of the run's key.

Code installed from a package is identified by method id and version. Code in a notebook, in a file next to it or in an
editable checkout may change without either, so it is identified by what it says.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

from workbench.fingerprint import combine, digest_bytes
from workbench.method import Method

__all__ = ["method_code"]

NUMERICAL = ("execution", "subjects", "toolkit")
"""Packages of the workbench whose code can change what a method computes."""


def method_code(method: type[Method]) -> str | None:
    """None for a method of an installed package; else a digest of its code.

    For a class made in a notebook cell that is the compiled code of the class and of every function and constant it
    reaches; for a module outside `site-packages` the text of all modules of its package, and of those parts of the
    workbench that can change numbers where that is a checkout too.
    """
    parts = {}
    top = method.__module__.partition(".")[0]
    if not _is_installed(top) and (folder := _package_folder(top)) is not None:
        parts[top] = _folder_digest(folder)
    if not _is_installed("workbench") and (core := _package_folder("workbench")) is not None:
        parts |= {f"workbench.{part}": _folder_digest(core / part) for part in NUMERICAL}
    if _in_notebook(method):
        parts["class"] = _class_digest(method)
    return combine(parts) if parts else None


def _in_notebook(method: type[Method]) -> bool:
    return getattr(sys.modules.get(method.__module__), "__file__", None) is None


def _class_digest(method: type[Method]) -> str:
    # What cannot be told makes the key unique: the run is stored and never served in place of another.
    from workbench.subjects.model_digest import class_digest

    return class_digest(method) or secrets.token_hex(16)


def _package_folder(top: str) -> Path | None:
    """Folder of a package, or the file of a lone module; None for a notebook."""
    path = getattr(sys.modules.get(top), "__file__", None)
    if path is None:
        return None
    file = Path(path)
    return file.parent if file.name == "__init__.py" else file


def _is_installed(top: str) -> bool:
    path = getattr(sys.modules.get(top), "__file__", None)
    return path is not None and bool({"site-packages", "dist-packages"} & set(Path(path).parts))


def _python_files(folder: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        yield from (os.path.join(parent, name) for name in names if name.endswith(".py"))


_FOLDERS: dict[Path, tuple[tuple[tuple[str, int, int], ...], str]] = {}
"""Per package: times and sizes of its files when this process first asked, and the digest of their text."""


def _folder_digest(folder: Path) -> str:
    """Digest of all Python files below a folder as this process imported them.

    Once a file changed, its text no longer says what is in memory: then every call gives another value, so that runs are
    stored and never served, until the process starts anew.
    """
    files = [str(folder)] if folder.is_file() else sorted(_python_files(folder))
    stamps = tuple((file, (stat := os.stat(file)).st_mtime_ns, stat.st_size) for file in files)
    if folder not in _FOLDERS:
        texts = {os.path.relpath(file, folder.parent): digest_bytes(Path(file).read_bytes()) for file in files}
        _FOLDERS[folder] = (stamps, combine(texts))
    known, digest = _FOLDERS[folder]
    return digest if known == stamps else secrets.token_hex(16)
