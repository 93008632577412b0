"""Plugins of third parties on the command line: broken ones are listed with their reason and disturb nobody."""

from __future__ import annotations

import json

import pytest

METHODS = '''
from workbench import Method, Output, Report, hookimpl

class Fine(Method):
    """Fine."""

    id = "{method_id}"
    title = "A method of a third party"
    inputs = {{}}
    outputs = (Output("value", (), "float32", "a number"),)

    def run(self, inputs, params, out):
        out.write("value", 1.0)

    def report(self, result):
        return Report(summary="Ran.")

@hookimpl
def workbench_methods():
    return [Fine]
'''


def with_methods(method_id: str) -> str:
    return METHODS.format(method_id=method_id)


@pytest.fixture
def zoo(install) -> None:
    """One plugin that works among some that do not."""
    install("zoo-fine", "zoo_fine", with_methods("zoo.fine"))
    install("zoo-raises", "zoo_raises", "raise RuntimeError('the licence server is down [red]')")
    install("zoo-exits", "zoo_exits", "import sys; sys.exit('I decide when we stop')")
    install("zoo-syntax", "zoo_syntax", "def broken(:\n")
    install("zoo-absent", "zoo_absent")
    install(
        "zoo-signature",
        "zoo_signature",
        "from workbench import hookimpl\n@hookimpl\ndef workbench_methods(colour): return []\n",
    )
    install("zoo-hook", "zoo_hook", "from workbench import hookimpl\n@hookimpl\ndef workbench_metods(): return []\n")
    install("zoo-duplicate", "zoo_duplicate", with_methods("quantization.hawq"))
    install(
        "zoo-nonsense",
        "zoo_nonsense",
        "from workbench import hookimpl\n@hookimpl\ndef workbench_methods(): return [42]\n",
    )


def statuses(monkeypatch) -> dict[str, object]:
    from workbench.host import Host

    return {status.name: status for status in Host().plugins}


def test_each_plugin_is_listed_with_what_is_wrong_with_it(zoo, workbench_command, monkeypatch):
    shown = workbench_command("plugins")
    assert (shown.code, shown.err) == (0, "")
    found = statuses(monkeypatch)
    failed = {name: status.reason for name, status in found.items() if status.state == "failed"}
    assert "RuntimeError: the licence server is down" in failed["zoo-raises"]
    assert "SystemExit: I decide when we stop" in failed["zoo-exits"]
    assert "SyntaxError" in failed["zoo-syntax"]
    assert "ModuleNotFoundError" in failed["zoo-absent"]
    assert "colour" in failed["zoo-signature"]
    assert "workbench_metods" in failed["zoo-hook"]
    assert found["zoo-fine"].state == "loaded"
    assert found["zoo-fine"].methods == ("zoo.fine",)
    assert "already taken" in found["zoo-duplicate"].rejected["quantization.hawq"]
    assert "neither a Method class nor a MethodReference" in found["zoo-nonsense"].rejected["42"]
    words = " ".join(shown.out.split())
    for name in found:
        assert name in words
    for told in ("the licence server is down [red]", "I decide when we stop", "raise RuntimeError", "zoo.fine"):
        assert told in words


def test_everything_else_works_beside_broken_plugins(zoo, workbench_command):
    listed = {entry["id"] for entry in json.loads(workbench_command("list", "--json").out)}
    assert {"zoo.fine", "quantization.hawq", "detection.logit_scores"} <= listed
    assert "workbench_quantization" in repr(hawq()), "a third party cannot take one of our ids"
    warned = workbench_command("list").out
    assert "plugin failed: zoo-raises" in warned
    assert "the licence server is down [red]" in warned
    ran = workbench_command("run", "zoo.fine")
    assert ran.code == 0
    assert "Ran." in ran.out
    unknown = workbench_command("run", "zoo.raises")
    assert unknown.code == 2
    assert "failed to load" in unknown.err
    assert "zoo-raises" in unknown.err


def hawq() -> type:
    from workbench.host import Host

    return Host().method("quantization.hawq")


def test_plugins_can_be_blocked_and_allow_listed(zoo, workbench_command, monkeypatch):
    monkeypatch.setenv("WORKBENCH_BLOCK", "zoo-fine, zoo-raises")
    assert "zoo.fine" not in workbench_command("list").out
    assert "blocked by configuration" in workbench_command("plugins").out
    monkeypatch.delenv("WORKBENCH_BLOCK")
    monkeypatch.setenv("WORKBENCH_ALLOW", "zoo-fine,detection")
    listed = [entry["id"] for entry in json.loads(workbench_command("list", "--json").out)]
    assert {name.partition(".")[0] for name in listed} == {"zoo", "detection"}


def test_a_plugin_adds_commands_but_cannot_replace_ours(install, workbench_command):
    source = """
import click
from workbench import hookimpl

@click.command("greet", help="Greet somebody.")
@click.argument("name")
def greet(name):
    click.echo(f"hello {name}")

@click.command("runs")
def runs():
    click.echo("replaced")

@hookimpl
def workbench_commands():
    return [greet, runs]
"""
    install("greeter", "zoo_greeter", source)
    assert "Greet somebody." in workbench_command("--help").out
    assert workbench_command("greet", "ada").out == "hello ada\n"
    assert "replaced" not in workbench_command("runs").out


def test_a_plugin_whose_commands_fail_takes_none_away(install, workbench_command):
    source = (
        "from workbench import hookimpl\n@hookimpl\ndef workbench_commands(): raise RuntimeError('no commands today')\n"
    )
    install("grumpy", "zoo_grumpy", source)
    assert workbench_command("--help").code == 0
    assert workbench_command("runs").code == 0
    assert workbench_command("grumble").code == 2


def test_a_plugin_that_dislikes_a_run_does_not_stop_it(install, samples, workbench_command):
    hook = "def workbench_run_finished(run_id): raise RuntimeError('tracker is down')"
    source = f"from workbench import hookimpl\n@hookimpl\n{hook}\n"
    install("tracker", "zoo_tracker", source)
    ran = workbench_command("run", "sample.random_numbers", "--quiet")
    assert ran.code == 0
    assert ran.err == ""
