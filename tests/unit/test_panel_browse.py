"""The table of runs without a browser: orders and counts against brute force, completion, messages, saved views."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import workbench
from workbench.errors import InputError, StoreError
from workbench.host import Host
from workbench.panels import serving
from workbench.panels.browse_cells import column, default_columns, row
from workbench.panels.browse_completion import advice, complete, problem, quoted
from workbench.panels.browse_model import BrowseModel, State
from workbench.record import RunRecord
from workbench.store import Store
from workbench.store.backend import Backend
from workbench.store.query import compile_query
from workbench.store.table import FACETS, Question, Row, RunTable

from benchmarks.generated_store import generate
from unit.panel_cases import HOSTILE, bench_over, put_run
from unit.store_cases import new_store, record

RUNS = 160


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Generated runs, of which some belong to studies and some are tagged."""
    store = generate(tmp_path_factory.mktemp("browse") / "store", RUNS)
    draw = random.Random(1)
    for stored in store.runs(limit=40):
        for tag in draw.sample(("paper", "baseline", "odd"), draw.randint(0, 2)):
            store.annotations.of(stored.id).tag(tag)
    store.annotations.of(store.runs(limit=1)[0].id).join("joined/later")
    return store


@pytest.fixture
def table(store: Store) -> RunTable:
    return RunTable(store.index, store.backend, "ada")


def ids(table: RunTable, numbers: Any) -> list[str]:
    return [found.id for found in table.rows(numbers, ())]


@cache
def records(store: Store) -> list[RunRecord]:
    """All records, newest first."""
    return [stored.record for stored in store.runs()]


VALUES = {
    "started": lambda r: r.started,
    "method": lambda r: r.method.casefold(),
    "status": lambda r: r.status,
    "user": lambda r: r.user,
    "seconds": lambda r: r.seconds,
    "seed": lambda r: r.seed,
    "study": lambda r: r.study,
    "accuracy": lambda r: r.metrics.get("accuracy"),
    "metric_3": lambda r: r.metrics.get("metric_3"),
    "params.bits": lambda r: r.params.get("bits"),
    "nothing": lambda r: None,
}


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("name", VALUES)
def test_the_order_is_that_of_a_sort_of_all_records(store: Store, table: RunTable, name: str, descending: bool):
    value = VALUES[name]
    known = [item for item in records(store) if value(item) is not None]
    unknown = [item for item in records(store) if value(item) is None]
    expected = sorted(known, key=value, reverse=descending) + unknown
    found = ids(table, table.order(Question(sort=name, descending=descending)))
    assert len(found) == RUNS
    place = {item.id: value(item) for item in expected}
    assert [place[run] for run in found] == [value(item) for item in expected]
    if name != "started":  # what is equal keeps the newest first
        groups = {item.id: item.started for item in expected}
        for before, after in pairwise(found):
            assert place[before] != place[after] or groups[before] >= groups[after]


def test_a_query_and_facets_choose_the_runs_that_they_describe(store: Store, table: RunTable):
    query = "accuracy > 0.4 and not params.bits = 4"
    chosen = {"family": ("quantization", "detection"), "user": ("ada", "bob", "eve")}
    expected = {
        item.id
        for item in records(store)
        if item.metrics.get("accuracy", 0) > 0.4
        and item.params.get("bits") != 4
        and item.method.partition(".")[0] in chosen["family"]
        and item.user in chosen["user"]
    }
    assert expected
    order = table.order(Question(query, chosen))
    assert set(ids(table, order)) == expected
    first, total = table.first(Question(query, chosen), 5)
    assert (first.tolist(), total) == (order[:5].tolist(), len(expected))
    first, total = table.first(Question(query), 7)
    assert first.tolist() == table.order(Question(query))[:7].tolist()
    assert total == store.count(query)


def test_counts_of_facets_say_what_choosing_a_value_would_give(store: Store, table: RunTable):
    question = Question("accuracy > 0.3", {"family": ("quantization",), "status": ("complete", "failed")})
    counts = table.counts(question)
    assert set(counts) == set(FACETS)
    for name in FACETS:
        others = {other: values for other, values in question.facets.items() if other != name}
        for value, count in counts[name]:
            alone = table.order(replace(question, facets=others | {name: (value,)}))
            assert count == len(alone), (name, value)
        assert [count for _, count in counts[name]] == sorted((count for _, count in counts[name]), reverse=True)
    everything = table.counts(Question())
    assert dict(everything["user"]) == Counter(item.user for item in records(store))
    studies = dict(everything["study"])
    assert studies["ship"] == store.count("study = ship") == sum(n for s, n in studies.items() if s.startswith("ship/"))
    assert studies["joined"] == studies["joined/later"] == 1
    labels = Counter(
        label
        for item in records(store)
        for label in {entry.get("label", "") for entry in item.inputs.values()}
        if label and not label.startswith("run ")
    )
    assert labels
    assert dict(everything["subject"]) == labels
    tags = {name: store.count(f"tag = {name}") for name in ("paper", "baseline", "odd")}
    assert dict(everything["tag"]) == tags


def test_cells_are_those_of_the_records(store: Store, table: RunTable):
    numbers = table.order(Question())[:30]
    for found, item in zip(table.rows(numbers, ("accuracy", "params.bits", "input")), records(store), strict=False):
        assert found.id == item.id
        assert found.cells["accuracy"] == item.metrics["accuracy"]
        assert found.cells["params.bits"] == item.params["bits"]
        assert (found.cells["method"], found.cells["seed"], found.status) == (item.method, item.seed, item.status)
        assert tuple(found.cells.get("tag", ())) == store.annotations.of(item.id).tags
    assert table.rows([10**9, numbers[0]], ())[0].number == numbers[0], "a run that was deleted since is left out"


def test_names_and_values_for_completion(store: Store, table: RunTable):
    names = table.names()
    assert "accuracy" in names
    assert "params.bits" in names
    assert not {"input", "uses"} & set(names)
    assert table.values("method", "quant") == [
        name
        for name, _ in sorted(
            Counter(item.method for item in records(store)).items(), key=lambda item: (-item[1], item[0])
        )
        if name.startswith("quant")
    ]
    assert table.metric("accuracy")["direction"] == "higher"
    assert table.metric("nothing") == {}


def test_the_table_notices_what_others_do(tmp_path: Path):
    store = new_store(tmp_path)
    table = RunTable(store.index, store.backend, "ada")
    assert table.look() is False
    other = Store(store.url, index_folder=tmp_path / "theirs")
    writer = other.begin(record(method="a.b"))
    assert table.look() is True
    assert table.live
    (number,) = table.order(Question())
    assert table.rows([number], ())[0].status == "running"
    assert table.look() is False
    done = writer.complete(seconds=2.0)
    assert table.look() is True
    assert not table.live
    assert table.order(Question()).tolist() == [number], "a run keeps its number while its record changes"
    assert table.rows([number], ())[0].status == "complete"
    other.annotations.of(done.id).tag("mine")
    assert table.look() is True
    assert table.counts(Question())["tag"] == [("mine", 1)]
    other.remove_folder(f"runs/{done.month}/{done.id}", done.id)
    assert table.look() is True
    assert len(table.order(Question())) == 0


def test_runs_of_this_process_are_found_without_a_look(tmp_path: Path):
    bench = workbench.open(tmp_path / "store", host=Host(found=[]))
    put_run(bench, {}, metrics={"accuracy": 0.5})
    table = RunTable(bench.store.index, bench.store.backend, "ada")
    assert len(table.order(Question())) == 1
    for accuracy in (0.9, 0.7):
        put_run(bench, {}, metrics={"accuracy": accuracy})
    found = table.rows(table.order(Question("accuracy > 0.4", sort="accuracy")), ("accuracy",))
    assert [item.cells["accuracy"] for item in found] == [0.9, 0.7, 0.5]
    assert table.counts(Question("accuracy > 0.6"))["status"] == [("complete", 2)]
    bench.delete(bench["latest"].id)
    assert len(table.order(Question())) == 2


def test_a_running_run_without_a_sign_of_life_counts_as_interrupted(tmp_path: Path):
    import socket

    store = new_store(tmp_path)
    store.begin(record(host=socket.gethostname(), pid=2**22 + 1))
    table = RunTable(store.index, store.backend, "ada")
    table.look()
    assert table.counts(Question())["status"] == [("interrupted", 1)]
    assert len(table.order(Question(facets={"status": ("interrupted",)}))) == 1
    assert len(table.order(Question(facets={"status": ("running",)}))) == 0


def test_a_typed_status_finds_what_the_table_shows(tmp_path: Path):
    import socket

    store = new_store(tmp_path)
    alive = store.begin(record()).record.id
    silent = store.begin(record(host=socket.gethostname(), pid=2**22 + 1)).record.id
    done = store.begin(record())
    done.complete()
    table = RunTable(store.index, store.backend, "ada")
    expected = {
        "status = interrupted": {silent},
        "status = INTER*": {silent},
        "status = running": {alive},
        "status != running": {silent, done.record.id},
        "not status = interrupted and status ~ n": {alive},
        "status = complete or status = interrupted": {silent, done.record.id},
    }
    for query, ids in expected.items():
        rows = table.rows(table.order(Question(query)), ())
        assert {row.id for row in rows} == ids, query
        assert {run.id for run in store.runs(query)} == ids, query
        assert {run.id for run in store.each(query)} == ids, query
        assert store.count(query) == table.first(Question(query), 10)[1] == len(ids), query


# ------------------------------------------------------------------------------------------------------------ completion

NAMES = ("accuracy", "ece", "params.bits", "params.criterion")


def values(name: str, start: str) -> list[str]:
    known = {
        "user": ["ada", "bob"],
        "method": ["quantization.hawq"],
        "params.criterion": ["max eig", "trace", "a\"b'c"],
    }
    return [value for value in known.get(name, []) if value.startswith(start)]


def offered(text: str, cursor: int | None = None) -> tuple[str, list[str]]:
    """The part that would be replaced, and what with."""
    found = complete(text, len(text) if cursor is None else cursor, lambda: NAMES, values)
    return text[found.start : found.end], [option.text for option in found.options]


@pytest.mark.parametrize(
    ("text", "part", "first"),
    [
        ("", "", "status"),
        ("acc", "acc", "accuracy"),
        ("bits", "bits", "params.bits"),
        ("accuracy ", "", "="),
        ("accuracy > 0.9 ", "", "and"),
        ("accuracy > 0.9 an", "an", "and"),
        ("accuracy > 0.9 and us", "us", "user"),
        ("not (us", "us", "user"),
        ("(user = ada) ", "", "and"),
        ("user = ", "", "me"),
        ("user = b", "b", "bob"),
        ("user=b", "b", "bob"),
        ("status = f", "f", "failed"),
        ("pinned = ", "", "yes"),
        ("params.criterion = ", "", '"max eig"'),
        ('params.criterion = "max', '"max', '"max eig"'),
    ],
)
def test_completion_offers_what_may_come_next(text: str, part: str, first: str):
    replaced, options = offered(text)
    assert replaced == part
    assert options[0] == first


def test_completed_queries_are_understood():
    for text in ("acc", "status = fa", "params.criterion = ", "user = ada "):
        replaced, options = offered(text)
        assert options
        for option in options:
            whole = text[: len(text) - len(replaced)] + option
            if whole.split()[-1] not in ("and", "or") and "=" in whole:
                compile_query(whole, user="ada")


def test_completion_in_the_middle_replaces_the_word_there():
    assert offered("acc > 0.9 and user = ada", 2) == ("acc", ["accuracy"])
    assert offered("accuracy > 0.9", 0)[0] == ""


def test_values_are_quoted_so_that_they_are_read_back():
    assert quoted("plain-1.0*") == "plain-1.0*"
    assert quoted("two words") == '"two words"'
    assert quoted('say "hi"') == "'say \"hi\"'"
    assert quoted("and") == '"and"'
    assert quoted("a\"b'c") is None


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("accuracy >", "not finished"),
        ("accuracy >> 0.9", "“> 0.9”"),
        ("(accuracy > 0.9", "not finished"),
        ("pinned = maybe", "yes or"),
    ],
)
def test_what_is_wrong_with_a_query_is_said(query: str, message: str):
    with pytest.raises(InputError) as caught:
        compile_query(query, user="ada")
    assert message in problem(caught.value, query).message


def test_a_name_that_no_run_has_gets_a_suggestion():
    assert advice("acuracy > 0.9 and user = ada", lambda: NAMES) == [
        "No run has a metric or parameter called acuracy. Did you mean accuracy?"
    ]
    assert "params.bits" in advice("bits = 4", lambda: NAMES)[0]
    assert advice('user = "acuracy > 0.9"', lambda: NAMES) == []


# ---------------------------------------------------------------------------------------------------------------- cells


def test_cells_read_as_people_write_them():
    cells = {
        "started": "2024-03-05T08:09:10.000Z",
        "finished": "x",
        "seconds": 200.0,
        "seed": 3,
        "accuracy": 0.91234567,
    }
    found = Row(
        1,
        "id",
        "failed",
        cells | {"params.bits": 4.0, "tag": ["paper"], "params.note": "a\u202eb" * 200},
        failure="No.",
    )
    asked = ("started", "seconds", "seed", "accuracy", "params.bits", "tag", "params.note", "ece")
    moment, seconds, seed, accuracy, bits, tags, note, nothing = row(found, asked)["cells"]
    assert moment == ["5 Mar 2024", "2024-03-05T08:09:10.000Z (UTC)"]
    assert (seconds, seed, bits[0], tags, nothing) == ("3 min 20 s", "3", "4", ["paper"], "")
    assert accuracy == ["0.9123", "accuracy = 0.91234567"]
    assert len(note[0]) < 200
    assert "\u202e" not in note[1]
    assert row(found, ())["message"] == "No."


def test_progress_of_a_running_run_is_a_share_whatever_the_record_says():
    def share(**progress: Any) -> Any:
        return row(Row(1, "id", "running", {}, progress=progress), ()).get("progress")

    assert share(done=3, total=10) == 0.3
    assert share(done=30, total=10) == 1.0
    assert share(done="x", total=10) is share(done=1, total=0) is None


def test_columns_say_kind_and_direction():
    assert column("accuracy", {"direction": "higher", "unit": "%"}) == {
        "name": "accuracy", "title": "accuracy", "kind": "number", "arrow": "↑", "unit": "%",
        "help": "accuracy: metric in %, higher is better",
    }  # fmt: skip
    assert column("params.bits")["kind"] == "parameter"
    rows = [Row(1, "a", "complete", {"ece": 1.0}), Row(2, "b", "complete", {"ece": 1.0, "accuracy": 1.0})]
    assert default_columns(rows, ["accuracy", "ece", "psnr"], studies=False)[4:6] == ["ece", "accuracy"]


# -------------------------------------------------------------------------------------------------------------- messages


def test_pages_belong_to_an_order(store: Store):
    model = BrowseModel(store)
    first = model.first()
    assert first["total"] == RUNS
    assert [item["id"] for item in first["rows"]] == [stored.id for stored in store.runs(limit=60)]
    page = model.answer({"kind": "rows", "version": first["version"], "start": 100, "count": 10})
    assert [item["id"] for item in page["rows"]] == [stored.id for stored in store.runs(limit=10, offset=100)]
    asked = model.answer({"kind": "ask", "state": {**first["state"], "sort": "accuracy", "descending": True}})
    accuracy = asked["state"]["columns"].index("accuracy")
    shown = [float(item["cells"][accuracy][0]) for item in asked["rows"]]
    assert shown == sorted(shown, reverse=True)
    assert model.answer({"kind": "rows", "version": first["version"], "start": 0, "count": 10})["stale"]
    range_ = model.answer({"kind": "ids", "version": asked["version"], "first": 4, "last": 2})
    assert range_["ids"] == [item["id"] for item in asked["rows"][2:5]]
    json.dumps([first, page, asked])


def test_a_wrong_query_changes_nothing(store: Store):
    model = BrowseModel(store)
    first = model.first()
    reply = model.answer({"kind": "ask", "state": {**first["state"], "query": "accuracy >"}})
    assert "not finished" in reply["problem"]
    assert reply["unfinished"]
    assert model.state.question.query == ""
    assert model.answer({"kind": "rows", "version": first["version"], "start": 0, "count": 5})["rows"]


def test_no_rows_say_what_to_do(store: Store, tmp_path: Path):
    assert BrowseModel(new_store(tmp_path)).first()["empty"]["title"] == "No runs yet"
    model = BrowseModel(store)
    reply = model.answer({"kind": "ask", "state": {"query": "acuracy > 2"}})
    assert "Did you mean accuracy?" in reply["empty"]["advice"][0]
    reply = model.answer({"kind": "ask", "state": {"query": "accuracy > 2", "facets": {"user": ["ada"]}}})
    assert reply["empty"]["clear"]


@pytest.mark.parametrize(
    "state",
    [
        {"query": 3},
        {"query": "x" * 10_000},
        {"facets": {"password": ["x"]}},
        {"facets": {"user": "ada"}},
        {"columns": [1]},
        {"sort": None},
    ],
)
def test_what_is_no_state_is_refused(store: Store, state: dict[str, Any]):
    with pytest.raises(InputError):
        State.from_json(state)
    assert "error" in BrowseModel(store).answer({"kind": "ask", "state": state})


def test_unknown_messages_get_an_error(store: Store):
    model = BrowseModel(store)
    assert "error" in model.answer({"kind": "__init__"})
    assert "error" in model.answer({})


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


def test_without_a_kernel_the_first_rows_are_a_table(tmp_path: Path):
    bench = workbench.open(tmp_path / "store", host=Host(found=[]))
    put_run(bench, {}, method=f"{HOSTILE}.x", user="<b>eve</b>")
    panel = bench.browse()
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
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_numbers_of_a_table_are_whole(table: RunTable):
    assert table.order(Question()).dtype == np.int64


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
