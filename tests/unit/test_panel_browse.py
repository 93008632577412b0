"""The table of runs without a browser: orders and counts against brute force, its pages and messages."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import workbench
from workbench.errors import InputError
from workbench.host import Host
from workbench.panels.browse_model import BrowseModel, State
from workbench.record import RunRecord
from workbench.store import Store
from workbench.store.table import FACETS, Question, RunTable

from benchmarks.generated_store import generate
from unit.panel_cases import put_run
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


def test_numbers_of_a_table_are_whole(table: RunTable):
    assert table.order(Question()).dtype == np.int64
