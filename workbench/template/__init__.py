"""A new plugin from a template: a pip project with one method that works, its tests, and the entry point.

The template is plain text with `$names` (string.Template) kept as package data. copier and cookiecutter would each bring a
dozen packages to every user for something done once in a plugin's life; what they add (questions, later updates of a project
from a changed template) is not needed here, because a plugin states the range of versions it was tested with.
"""

from __future__ import annotations

import keyword
import re
import shutil
import string
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from workbench._version import __version__
from workbench.errors import InputError

__all__ = ["FILES", "new_plugin"]

FILES: Mapping[str, str] = {
    "pyproject.toml": "pyproject.toml.template",
    "README.md": "README.md.template",
    ".gitignore": "gitignore.template",
    ".github/workflows/test.yml": "test.yml.template",
    "src/$package/__init__.py": "init.py.template",
    "src/$package/selection.py": "selection.py.template",
    "tests/test_selection.py": "test_selection.py.template",
}
"""File of the project -> its template."""


def new_plugin(name: str, family: str, parent: Path) -> Path:
    """Write a new project into a folder of its name.

    Args:
        name: of the distribution, as on PyPI: `selective-trust`.
        family: first part of the method's id, an existing family or a new one.
        parent: where the folder is made.

    Returns:
        The folder.

    Raises:
        InputError: the name or family is none, or the folder exists already. Nothing is written then.
    """
    names = _names(name, family)
    folder = parent / name
    if folder.exists() or folder.is_symlink():
        raise InputError("NAME", expected="a folder that does not exist yet", got=f"{str(folder)!r}, which does")
    templates = resources.files(__name__) / "files"
    # The whole project is spelled out before the first file is written.
    texts = {
        string.Template(path).substitute(names): string.Template(
            (templates / template).read_text(encoding="utf-8")
        ).substitute(names)
        for path, template in FILES.items()
    }
    try:
        folder.mkdir(parents=True)
        for path, text in texts.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise InputError("NAME", expected="a place where files can be written", got=f"{error}") from error
    return folder


def _names(name: str, family: str) -> dict[str, str]:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*([-_][A-Za-z0-9]+)*", name):
        raise InputError("NAME", expected="letters and digits with single hyphens between, as on PyPI", got=repr(name))
    package = name.lower().replace("-", "_")
    if package.split("_")[0] == "workbench" or package == "vision_workbench":
        raise InputError("NAME", expected="a name that does not begin with workbench", got=repr(name))
    if keyword.iskeyword(package) or _is_taken(package):
        raise InputError("NAME", expected="a name that no installed package has", got=repr(name))
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", family) or keyword.iskeyword(family):
        raise InputError("--family", expected="one word in lower case, such as detection", got=repr(family))
    return {
        "distribution": name,
        "package": package,
        "family": family,
        "method_id": f"{family}.{package}",
        "class_name": "".join(part.capitalize() for part in package.split("_")),
        "range": _version_range(),
    }


def _is_taken(package: str) -> bool:
    import importlib.util
    import sys

    return package in sys.stdlib_module_names or importlib.util.find_spec(package) is not None


def _version_range() -> str:
    """From this version up to the next one that may break plugins: a minor one before 1.0, a major one after."""
    major, minor = (int(part) for part in __version__.split(".")[:2])
    end = f"0.{minor + 1}" if major == 0 else f"{major + 1}"
    return f">={major}.{minor},<{end}"
