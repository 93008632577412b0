"""The panel around the table of runs: saved views, a static table, messages of the page, and the page that only reads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import workbench
from workbench.errors import InputError, StoreError
from workbench.host import Host
from workbench.panels import serving
from workbench.panels.browse_model import BrowseModel
from workbench.store import Store
from workbench.store.backend import Backend

from unit.panel_cases import HOSTILE, bench_over, put_run
from unit.store_cases import record


def test_a_view_is_saved_for_everybody_and_replaced_by_name(tmp_path: Path):
    bench = workbench.open(tmp_path / "store", host=Host(found=[]))
    for accuracy in (0.2, 0.8, 0.6):
        put_run(bench, {}, metrics={"accuracy": accuracy})
    panel = bench.browse("accuracy > 0.5", sort="accuracy", columns=["method", "accuracy"])
    panel.save("good ones")
    colleague = workbench.Workbench(Store(bench.store.url, index_folder=tmp_path / "theirs"), bench.host)
    theirs = colleague.browse(view="good ones")
    assert theirs.where == "accuracy > 0.5"
    assert theirs._model.state == panel._model.state
    assert theirs._model.first()["total"] == 2
    colleague.browse("accuracy > 0.7").save("good ones")
    assert bench.browse(view="good ones").where == "accuracy > 0.7"
    with pytest.raises(InputError, match="Did you mean 'good ones'"):
        bench.browse(view="good one")
    with pytest.raises(InputError, match="1 to 80"):
        panel.save("  ")
    model = BrowseModel(bench.store)
    (view,) = model.answer({"kind": "views"})["views"]
    assert view["state"]["query"] == "accuracy > 0.7"
    assert model.answer({"kind": "forget", "name": "good ones"}) == {"views": []}


def test_a_view_that_somebody_forged_opens_nothing(tmp_path: Path):
    bench = workbench.open(tmp_path / "store", host=Host(found=[]))
    put_run(bench, {})
    forged = {"name": "evil", "query": "x", "columns": [], "facets": {"nope": ["x"]}, "sort": "started"}
    bench.store.annotations.say("view", "", json.dumps(forged))
    with pytest.raises(InputError):
        bench.browse(view="evil")
    (view,) = BrowseModel(bench.store).answer({"kind": "views"})["views"]
    assert "state" not in view


# --------------------------------------------------------------------------------------------------------------- display


def test_without_a_kernel_the_first_rows_are_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bench = workbench.open(tmp_path / "store", host=Host(found=[]))
    put_run(bench, {}, method=f"{HOSTILE}.x", user="<b>eve</b>")
    panel = bench.browse()
    monkeypatch.setattr("workbench.panels.browse.PROMPT", 300.0)  # else a busy machine would show that the store is being read
    bundle = panel._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "1 runs" not in bundle["text/html"]
    assert "1 run" in bundle["text/html"]
    assert "<script>window" not in bundle["text/html"]
    assert "&lt;b&gt;eve" in bundle["text/html"]
    assert len(panel.selected) == 0
    panel._table.selected = [bench["latest"].id]
    assert [run.id for run in panel.selected] == [bench["latest"].id]


def test_messages_reach_the_model_and_errors_stay_in_the_panel(tmp_path: Path):
    bench = workbench.open(tmp_path / "store", host=Host(found=[]))
    put_run(bench, {}, metrics={"accuracy": 0.5})
    panel = bench.browse()
    panel._repr_mimebundle_()
    assert panel._ready.wait(300)  # until then every answer is that the store is being read
    said: list[dict[str, Any]] = []
    panel._table.send = said.append
    panel._hear(None, {"id": "1", "kind": "open", "run": "no such run"}, [])
    assert "no run matches" in panel._below.children[1].value
    panel._hear(None, {"id": "2", "kind": "compare", "runs": "x"}, [])
    panel._hear(None, {"id": "3", "kind": "rows", "version": 1}, [])
    panel._hear(None, "nonsense", [])
    assert [reply["id"] for reply in said] == ["1", "2", "3"]
    assert all("error" in reply for reply in said[1:])
    panel._hear(None, {"id": "4", "kind": "close"}, [])
    assert panel._below.children == ()
    assert said[3] == {"id": "4"}


def test_a_query_that_is_not_understood_is_refused_before_anything_is_shown(tmp_path: Path):
    bench = workbench.open(tmp_path / "store", host=Host(found=[]))
    with pytest.raises(InputError):
        bench.browse("accuracy >")
    assert not (tmp_path / "store").exists()


def test_nothing_of_ipywidgets_is_imported_before_a_panel_is_displayed(tmp_path: Path):
    code = (
        "import sys, workbench, workbench.panels.browse; "
        f"workbench.open({str(tmp_path / 'store')!r}).browse(); "
        "assert not {'ipywidgets', 'anywidget', 'torch'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


# ------------------------------------------------------------------------------------------------------------- read-only


def test_a_served_page_reads_everything_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bench = bench_over(tmp_path)
    run = put_run(bench, {"value": (("x",), [1.0, 2.0])}, metrics={"accuracy": 0.5})
    bench.browse("accuracy > 0.1").save("mine")
    monkeypatch.setenv("WORKBENCH_STORE", bench.store.url)
    monkeypatch.setenv(serving.VIEW, "mine")
    files = sorted(Path(bench.store.url).rglob("*"))
    panel = serving.served()
    assert panel.where == "accuracy > 0.1"
    assert panel._model.first()["total"] == 1
    shown = panel._bench[run.id]
    assert shown["value"].values.tolist() == [1.0, 2.0]
    for act in (
        lambda: panel.save("theirs"), lambda: shown.annotations.tag("t"), lambda: shown.annotations.pin(),
        lambda: panel._bench.delete(run.id), lambda: panel._bench.store.begin(record()),
    ):  # fmt: skip
        with pytest.raises(StoreError, match="read-only"):
            act()
    assert "read-only" in panel._model.answer({"kind": "forget", "name": "mine"})["error"]
    assert sorted(Path(bench.store.url).rglob("*")) == files


def test_the_read_only_back_end_refuses_every_call_that_writes():
    """Whatever `Backend` gains later must be sorted into reading or writing here."""
    reading = {
        "read", "read_tail", "read_parts", "size", "folders", "names", "folder_version", "documents", "files", "written", "now",
    }  # fmt: skip
    calls = {name for name, value in vars(Backend).items() if callable(value) and not name.startswith("_")}
    assert calls - reading == set(serving._WRITING)
