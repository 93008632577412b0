"""Everything a method author may use is importable from one place, and importing that place costs nothing."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import workbench.toolkit as toolkit


def test_every_public_name_comes_from_the_module_it_is_listed_under():
    assert sorted(toolkit.__all__) == sorted(toolkit._MODULE_OF)
    for module, names in toolkit._HOME.items():
        home = import_module(f"workbench.toolkit.{module}")
        for name in names:
            assert name in home.__all__, f"{name} is not public in {module}"
            assert getattr(toolkit, name) is getattr(home, name)


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(toolkit.__file__).read_text(encoding="utf-8"))
    seen = {
        alias.name: node.module.rpartition(".")[2]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("workbench.toolkit.")
        for alias in node.names
    }
    assert seen == toolkit._MODULE_OF


def test_the_toolkit_is_imported_without_torch():
    code = "import sys, workbench.toolkit; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
