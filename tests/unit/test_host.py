"""Plugins: found by entry point, isolated with their reason when they are broken, and never able to take the host down."""

from __future__ import annotations

import sys
import types
from importlib.metadata import EntryPoint
from typing import Any

import click
import pytest
from workbench import Method, MethodReference, hookimpl, hookspecs, host
from workbench.errors import PluginError, UnknownMethodError
from workbench.host import Host, PluginStatus

from unit.sample_methods import Declining, MeanImage, Scores


class Distribution:
    """As much of an installed package as the host looks at."""

    def __init__(self, name: str, requires: tuple[str, ...] = ()) -> None:
        self.name, self.version, self.requires = name, "1.2.3", list(requires)


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch):
    """Makes a module with the given functions as hooks (or a source that is run on import) and its entry point."""
    made: list[str] = []

    def make(
        name: str, source: str = "", *, package: str = "", requires: tuple[str, ...] = (), **members: Any
    ) -> EntryPoint:
        module_name = f"zoo_{name}_{len(made)}"
        made.append(module_name)

        class Loading(EntryPoint):
            def load(self) -> Any:
                module = types.ModuleType(module_name)
                exec(source, module.__dict__)
                for key, member in members.items():
                    marked = hookimpl(member) if key.startswith("workbench_") else member
                    setattr(module, key, marked)
                return module

        point = Loading(name, module_name, "workbench")
        return point._for(Distribution(package or f"{name}-package", requires))  # type: ignore[attr-defined]

    return make


def offering(*methods: Any) -> Any:
    def workbench_methods() -> list[Any]:
        return list(methods)

    return workbench_methods


def statuses(found: Host) -> dict[str, PluginStatus]:
    return {status.name: status for status in found.plugins}


# -------------------------------------------------------------------------------------------------------------- discovery


def test_a_plugin_is_found_by_its_entry_point(plugin):
    found = Host(found=[plugin("zoo", workbench_methods=offering(MeanImage, Scores))])
    (status,) = found.plugins
    assert (status.name, status.distribution, status.version, status.state) == ("zoo", "zoo-package", "1.2.3", "loaded")
    assert status.methods == ("sample.mean_image", "sample.scores")
    assert found.method("sample.scores") is Scores
    assert found.owner("sample.scores") == status


def test_our_families_are_found_as_a_third_partys_would_be():
    found = Host()
    ours = [status for status in found.plugins if status.distribution == host.OWN]
    assert {status.name for status in ours} >= {"quantization", "calibration", "detection", "training"}
    assert all(status.state == "loaded" and not status.rejected for status in ours)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise RuntimeError('licence server is down')", "RuntimeError: licence server is down"),
        ("import sys; sys.exit('I decide')", "SystemExit: I decide"),
        ("import a_module_that_is_not_there", "ModuleNotFoundError"),
        ("def broken(:", "SyntaxError"),
    ],
)
def test_one_that_cannot_be_imported_is_listed_with_reason_and_traceback(plugin, source, words):
    found = Host(found=[plugin("bad", source), plugin("good", workbench_methods=offering(MeanImage))])
    status = statuses(found)["bad"]
    assert status.state == "failed"
    assert words in status.reason
    assert "Traceback" in status.traceback or "SyntaxError" in status.traceback
    assert list(found.methods) == ["sample.mean_image"]


def test_a_slow_import_is_told(plugin, monkeypatch):
    monkeypatch.setattr(host, "SLOW_IMPORT", 0.0)
    found = Host(found=[plugin("slow", workbench_methods=offering(MeanImage))])
    assert statuses(found)["slow"].reason.startswith("slow import: ")
    assert statuses(found)["slow"].state == "loaded"
    assert "sample.mean_image" in found.methods


@pytest.mark.parametrize("module", ["torch", "dask.distributed", "workbench_quantization.hawq"])
def test_finding_plugins_imports_nothing_heavy(module):
    import subprocess

    code = f"import sys; from workbench.host import Host; Host().methods; assert {module!r} not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_two_plugins_of_one_name_are_both_there(plugin):
    points = [
        plugin("zoo", package="a", workbench_methods=offering(MeanImage)),
        plugin("zoo", package="b", workbench_methods=offering(Scores)),
    ]
    found = Host(found=points)
    assert set(statuses(found)) == {"zoo", "b:zoo"}
    assert set(found.methods) == {"sample.mean_image", "sample.scores"}


# ------------------------------------------------------------------------------------------------- breaking the contract


def test_a_hook_with_an_unknown_argument_or_name_is_a_failure(plugin):
    def workbench_methods(colour: str) -> list[Any]:
        return []

    def workbench_metods() -> list[Any]:
        return []

    found = Host(
        found=[
            plugin("argument", workbench_methods=workbench_methods),
            plugin("name", workbench_metods=workbench_metods),
            plugin("good", workbench_methods=offering(MeanImage)),
        ]
    )
    reasons = {name: status.reason for name, status in statuses(found).items()}
    assert "breaks the hook specification" in reasons["argument"]
    assert "colour" in reasons["argument"]
    assert "workbench_metods" in reasons["name"]
    assert list(found.methods) == ["sample.mean_image"]


def test_a_hook_or_argument_that_is_to_go_is_told_beside_the_plugin_that_has_it(plugin, monkeypatch):
    """Nothing is deprecated now, so a specification of a later version stands in."""

    def workbench_commands() -> Any: ...

    def workbench_run_finished(run_id: str, record: dict[str, Any]) -> None: ...

    mark = hookspecs.hookspec
    gone = DeprecationWarning("workbench_commands goes with 2.0; write a script of your own")
    renamed = {"record": DeprecationWarning("record of workbench_run_finished goes with 2.0; take `run`")}
    monkeypatch.setattr(hookspecs, "workbench_commands", mark(warn_on_impl=gone)(workbench_commands))
    monkeypatch.setattr(hookspecs, "workbench_run_finished", mark(warn_on_impl_args=renamed)(workbench_run_finished))
    heard: list[str] = []
    found = Host(
        found=[
            plugin("commands", workbench_commands=lambda: [], workbench_methods=offering(MeanImage)),
            plugin("argument", workbench_run_finished=lambda record: heard.append(record["id"])),
            plugin("new", workbench_run_finished=lambda run_id: heard.append(run_id)),
        ]
    )
    told = {name: (status.state, status.reason) for name, status in statuses(found).items()}
    assert told["commands"] == ("loaded", str(gone))
    assert told["argument"] == ("loaded", str(renamed["record"]))
    assert told["new"] == ("loaded", "")
    assert list(found.methods) == ["sample.mean_image"]
    found.notify("workbench_run_finished", run_id="one", record={"id": "one"})
    assert heard == ["one", "one"]


def test_a_hook_without_its_mark_is_told(plugin):
    source = "def workbench_methods():\n    return []\n"
    (status,) = Host(found=[plugin("bare", source)]).plugins
    assert status.state == "loaded"
    assert status.reason == "workbench_methods is not called: @workbench.hookimpl is missing above it"


@pytest.mark.parametrize("error", [RuntimeError("no methods today"), SystemExit("no methods today")])
def test_a_hook_that_raises_while_methods_are_collected(plugin, error):
    def workbench_methods() -> list[Any]:
        raise error

    found = Host(found=[plugin("bad", workbench_methods=workbench_methods)])
    assert statuses(found)["bad"].state == "failed"
    assert "no methods today" in statuses(found)["bad"].reason


def test_what_is_no_method_is_refused_and_the_rest_is_taken(plugin):
    nameless = type("Nameless", (MeanImage,), {"id": None})
    capital = type("Odd", (MeanImage,), {"id": "no-family"})
    abstract = type("Half", (Method,), {"id": "sample.half", "title": "Half", "run": MeanImage.run})
    untitled = MethodReference("sample.untitled", "a:b", None)  # type: ignore[arg-type]
    found = Host(
        found=[plugin("zoo", workbench_methods=offering(42, nameless, capital, abstract, untitled, Scores, Scores))]
    )
    status = statuses(found)["zoo"]
    assert status.methods == ("sample.scores",)
    assert "neither a Method class" in status.rejected["42"]
    assert "lacks id" in status.rejected[str(nameless)]
    assert "family.name" in status.rejected["no-family"]
    assert "does not implement report" in status.rejected["sample.half"]
    assert "lacks title" in status.rejected["sample.untitled"]
    assert "already taken by plugin 'zoo'" in status.rejected["sample.scores"]


def test_a_third_party_cannot_take_an_id_of_ours_whatever_it_is_called(plugin):
    thief = plugin("aaa", package="aaa", workbench_methods=offering(type("T", (MeanImage,), {"id": "sample.scores"})))
    ours = plugin("zzz", package=host.OWN, workbench_methods=offering(Scores))
    found = Host(found=[thief, ours])
    assert found.method("sample.scores") is Scores
    assert statuses(found)["aaa"].rejected == {"sample.scores": "id already taken by plugin 'zzz'"}


def test_a_reference_is_imported_on_first_use_and_its_errors_name_the_plugin(plugin, monkeypatch):
    module = types.ModuleType("zoo_lazy")
    module.Other = Scores  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "zoo_lazy", module)
    references = [
        MethodReference("sample.scores", "zoo_lazy:Other", "Logits of a model"),
        MethodReference("sample.renamed", "zoo_lazy:Other", "Logits of a model"),
        MethodReference("sample.absent", "zoo_lazy:Absent", "Absent"),
        MethodReference("sample.gone", "zoo_gone:Gone", "Gone"),
    ]
    found = Host(found=[plugin("zoo", workbench_methods=offering(*references))])
    assert found.method("sample.scores") is Scores
    for method_id, words in {
        "sample.renamed": "calls itself 'sample.scores'",
        "sample.absent": "is not a workbench Method",
        "sample.gone": "plugin 'zoo'",
    }.items():
        with pytest.raises(PluginError, match=words):
            found.method(method_id)


# ------------------------------------------------------------------------------------------------------ other hooks


def test_a_failing_hook_is_noted_and_costs_the_plugin_nothing_else(plugin):
    def workbench_datasets() -> Any:
        raise OSError("disk is gone")

    bad = plugin("bad", workbench_methods=offering(MeanImage), workbench_datasets=workbench_datasets)
    good = plugin("good", workbench_datasets=lambda: {"moons": dict})
    found = Host(found=[bad, good])
    assert found.datasets() == {"moons": dict}
    status = statuses(found)["bad"]
    assert (status.state, "disk is gone" in status.reason) == ("loaded", True)
    assert "Traceback" in status.traceback
    assert found.method("sample.mean_image") is MeanImage


@pytest.mark.parametrize("answer", [7, {"moons": 7}, {7: dict}, ["moons"]])
def test_an_answer_that_makes_no_sense_is_noted(plugin, answer):
    found = Host(found=[plugin("odd", workbench_models=lambda: answer)])
    assert found.models() == {}
    assert "workbench_models failed" in statuses(found)["odd"].reason


def test_the_first_plugin_keeps_the_name_of_a_data_set(plugin):
    found = Host(
        found=[
            plugin("a", workbench_datasets=lambda: {"moons": dict}),
            plugin("b", workbench_datasets=lambda: {"moons": list, "suns": set}),
        ]
    )
    assert found.datasets() == {"moons": dict, "suns": set}
    assert statuses(found)["b"].rejected == {"moons": "data set already offered by plugin 'a'"}


def test_commands_are_click_commands(plugin):
    command = click.Command("greet")
    found = Host(
        found=[plugin("a", workbench_commands=lambda: [command]), plugin("b", workbench_commands=lambda: ["greet"])]
    )
    assert list(found.commands()) == [command]
    assert "not a click command" in statuses(found)["b"].reason


@pytest.mark.parametrize("error", [RuntimeError("tracker is down"), SystemExit("tracker is down")])
def test_notifications_reach_every_plugin_though_one_raises(plugin, error):
    heard = []

    def failing(run_id: str) -> None:
        raise error

    def hearing(run_id: str, record: Any) -> None:
        heard.append((run_id, record))

    found = Host(
        found=[
            plugin("a", workbench_run_finished=failing),
            plugin("b", workbench_run_finished=hearing),
            plugin("c", workbench_run_started=lambda run_id: heard.append(run_id)),
        ]
    )
    found.notify("workbench_run_finished", run_id="r1", record={"status": "complete"})
    assert heard == [("r1", {"status": "complete"})]
    assert statuses(found)["a"].reason == f"workbench_run_finished raised: {type(error).__name__}: tracker is down"


# ---------------------------------------------------------------------------------------- choosing, versions, notebooks


def test_plugins_are_blocked_and_allowed_by_name_or_package(plugin, monkeypatch):
    def points() -> list[EntryPoint]:
        methods = [offering(MeanImage), offering(Scores), offering(Declining)]
        return [plugin(name, workbench_methods=hook) for name, hook in zip("abc", methods, strict=True)]

    assert set(Host(found=points(), block=["a", "b-package"]).methods) == {"sample.declining"}
    assert set(Host(found=points(), allow=["a", "b-package"]).methods) == {"sample.mean_image", "sample.scores"}
    monkeypatch.setenv("WORKBENCH_BLOCK", "a, b")
    blocked = Host(found=points())
    assert set(blocked.methods) == {"sample.declining"}
    assert statuses(blocked)["a"].state == "blocked"
    monkeypatch.delenv("WORKBENCH_BLOCK")
    monkeypatch.setenv("WORKBENCH_ALLOW", "c-package")
    assert set(Host(found=points()).methods) == {"sample.declining"}


def test_a_blocked_plugin_is_not_imported(plugin):
    found = Host(found=[plugin("bad", "raise AssertionError('imported')")], block=["bad"])
    assert statuses(found)["bad"].state == "blocked"


@pytest.mark.parametrize("version", ["1.4.0", "1.4.0.dev3", "1.4.0rc1"])
@pytest.mark.parametrize(
    ("wanted", "fits"),
    [(">=1.2,<2", True), (">=1.4", True), ("==1.4.*", True), ("<1.4", False), (">=2", False), ("~=1.2", True)],
)
def test_a_plugin_built_for_another_version_is_isolated(plugin, monkeypatch, version, wanted, fits):
    monkeypatch.setattr(host, "__version__", version)
    stated = plugin("stated", f"requires_workbench = {wanted!r}", workbench_methods=offering(MeanImage))
    by_package = plugin(
        "packaged",
        "" if fits else "raise AssertionError('imported')",
        requires=("numpy>=2", f"Vision_Workbench[timm]{wanted}"),
        workbench_methods=offering(Scores),
    )
    found = Host(found=[stated, by_package])
    for name in ("stated", "packaged"):
        status = statuses(found)[name]
        assert status.state == ("loaded" if fits else "failed")
        if not fits:
            assert version in status.reason
            assert "built for workbench" in status.reason
    assert bool(found.methods) == fits


@pytest.mark.parametrize("wanted", [2, "two", None])
def test_a_version_range_that_is_none(plugin, wanted):
    found = Host(found=[plugin("odd", f"requires_workbench = {wanted!r}")])
    assert "must be a version range" in statuses(found)["odd"].reason


def test_requirements_of_an_extra_or_of_another_package_do_not_count(plugin):
    requires = ("vision-workbench>=99; extra == 'test'", "vision-workbench-tools>=99")
    found = Host(found=[plugin("zoo", requires=requires, workbench_methods=offering(MeanImage))])
    assert "sample.mean_image" in found.methods


def test_a_method_of_a_notebook_is_registered_again_after_an_edit():
    found = Host(found=[])
    assert found.register(MeanImage) is MeanImage
    assert found.method("sample.mean_image") is MeanImage
    edited = type("MeanImage", (MeanImage,), {"title": "Edited"})
    found.register(edited)
    assert found.method("sample.mean_image") is edited
    assert found.methods["sample.mean_image"].title == "Edited"
    assert found.owner("sample.mean_image") is None


def test_a_method_of_a_notebook_may_stand_in_for_an_installed_one(plugin):
    found = Host(found=[plugin("zoo", workbench_methods=offering(MeanImage))])
    edited = found.register(type("MeanImage", (MeanImage,), {}))
    assert found.method("sample.mean_image") is edited
    assert found.owner("sample.mean_image") is None, "a run of it must not name the plugin"


def test_an_edit_that_went_wrong_leaves_the_method_as_it_was():
    found = Host(found=[])
    found.register(MeanImage)
    for wrong, words in [
        (42, "takes a subclass"),
        (type("Untitled", (MeanImage,), {"title": None}), "lacks title"),
        (
            type("Half", (Method,), {"id": "sample.half", "title": "Half", "report": MeanImage.report}),
            "does not implement run",
        ),
    ]:
        with pytest.raises(PluginError, match=words):
            found.register(wrong)  # type: ignore[arg-type]
    assert found.method("sample.mean_image") is MeanImage


@pytest.mark.parametrize(
    ("asked", "meant"), [("sample.mean_imgae", "sample.mean_image"), ("mean_image", "sample.mean_image")]
)
def test_an_unknown_method_is_answered_with_the_nearest(plugin, asked, meant):
    found = Host(found=[plugin("zoo", workbench_methods=offering(MeanImage, Scores)), plugin("bad", "raise OSError")])
    with pytest.raises(UnknownMethodError, match=f"Did you mean {meant}") as caught:
        found.method(asked)
    assert "Plugins that failed to load: bad" in str(caught.value)
    with pytest.raises(UnknownMethodError, match="See `workbench list`"):
        found.method("zzzzzz.qqqqqq")
