"""The index at work: orders against brute force, bulk builds, several processes, queries that are too much."""

from __future__ import annotations

import itertools
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from workbench.errors import InputError
from workbench.store import Store, entries, index, index_refresh, index_tables
from workbench.store.query import compile_query

from benchmarks.generated_store import generate
from unit.store_cases import add, folder_of, new_store


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Store:
    return generate(tmp_path_factory.mktemp("many") / "store", 700, seed=1)


def value_of(run, name):
    if name.startswith("params."):
        value = run.record.params.get(name.removeprefix("params."))
        return float(value) if isinstance(value, int) else value
    return run.record.metrics[name] if name in run.record.metrics else getattr(run.record, name)


QUERIES = {
    "": lambda run: True,
    "accuracy > 0.5": lambda run: run.record.metrics["accuracy"] > 0.5,
    "params.bits = 4 and user != ada": lambda run: run.record.params["bits"] == 4 and run.record.user != "ada",
    "params.criterion = eig or metric_3 <= 0.1": lambda run: (
        run.record.params["criterion"] == "eig" or run.record.metrics["metric_3"] <= 0.1
    ),
    "not (study = ship) and status = complete": lambda run: (
        not (run.record.study or "").startswith("ship/") and run.record.status == "complete"
    ),
    "family = calibration and seed < 3": lambda run: (
        run.record.method.startswith("calibration.") and run.record.seed < 3
    ),
    "accuracy > 0.3 and params.bits = 4 and metric_3 < 0.8": lambda run: (
        run.record.metrics["accuracy"] > 0.3 and run.record.params["bits"] == 4 and run.record.metrics["metric_3"] < 0.8
    ),
    "accuracy > 2": lambda run: False,
}


@pytest.mark.parametrize(("few", "walk"), [(0, 0), (10**6, 0), (100, 60_000), (0, 2_000)])
@pytest.mark.parametrize("where", QUERIES)
def test_pages_of_every_order_are_those_of_brute_force(many, monkeypatch, where, few, walk):
    """Whether few runs are sorted or an order is gone through, on trial or to the end, and wherever the page lies."""
    monkeypatch.setattr(index, "FEW", few)
    monkeypatch.setattr(index, "SHORT_WALK", walk)
    monkeypatch.setattr(index, "STRIDE", 200)
    matching = [run for run in many.each() if QUERIES[where](run)]
    assert many.count(where) == len(matching)
    for name, descending in itertools.product(
        ("accuracy", "params.criterion", "params.bits", "seconds", "started", "user"), (True, False)
    ):
        expected = sorted(matching, key=lambda run: (run.record.started, run.id), reverse=True)
        if name in ("seconds", "started", "user"):  # of equal ones, their ids decide, in the same direction
            expected.sort(key=lambda run: (value_of(run, name), run.id), reverse=descending)
        else:  # of equal ones, the newest first
            expected.sort(key=lambda run: value_of(run, name), reverse=descending)
        for offset in (0, 3, 690):
            page = many.runs(where, order=f"{'-' * descending}{name}", limit=5, offset=offset)
            assert [run.id for run in page] == [run.id for run in expected[offset : offset + 5]], (
                name,
                descending,
                offset,
            )


@pytest.mark.parametrize("few", [0, 100])
def test_runs_without_a_value_come_last(tmp_path, monkeypatch, few):
    monkeypatch.setattr(index, "FEW", few)
    store = new_store(tmp_path)
    values: list = [3, None, 1, "text", 2, None, float("nan")]
    ids = []
    for place, value in enumerate(values):
        params = {} if value is None or value != value else {"width": value}
        ids.append(add(store, params=params, started=f"2026-01-0{place + 1}T10:00:00.000Z"))
    rising = [ids[place] for place in (2, 4, 0, 3, 6, 5, 1)]
    assert [run.id for run in store.runs(order="params.width")] == rising
    falling = [ids[place] for place in (3, 0, 4, 2, 6, 5, 1)]
    assert [run.id for run in store.runs(order="-params.width")] == falling
    for where, offset in itertools.product(("", "seed = 0"), range(8)):
        assert [run.id for run in store.runs(where, order="params.width", limit=2, offset=offset)] == rising[
            offset : offset + 2
        ]
    assert [run.id for run in store.runs(order="params.nobody", limit=2)] == [ids[6], ids[5]]
    assert store.count("params.width > 1") == 2
    assert store.count("params.width < 3") == 2
    assert store.count("params.width ~ ex") == store.count("params.width > a") == 1


@pytest.mark.parametrize("order", ["tag", "-note", "input", "1; DROP TABLE runs", "a'b", "--started", "-"])
def test_what_is_no_order_is_refused(many, order):
    with pytest.raises(InputError, match="order: expected a column, a metric or params"):
        many.runs(order=order)


@pytest.mark.parametrize(
    "where",
    [
        "not " * 3000 + "seed = 1",
        "(" * 300 + "seed = 1" + ")" * 300 + " and " + "not " * 50 + "seed = 1",
        " or ".join(["seed = 1"] * 201),
        "user = " + "x" * 10_001,
        "user ~ " + "x" * 30_000,
        f'note ~ "{"word " * 51}"',
    ],
)
def test_queries_that_are_too_much_are_refused_and_leave_the_index_alone(many, where):
    many.count()
    before = many.index.path.stat().st_ino
    with pytest.raises(InputError, match="where: expected"):
        many.runs(where)
    assert many.count() == 700
    assert many.index.path.stat().st_ino == before


def test_the_largest_queries_are_answered(many):
    everything = " or ".join(f"params.bits = {number}" for number in range(200))
    assert many.count(everything) == 700
    assert many.count("not " * 38 + "seed = 1") == many.count("seed = 1")
    assert many.count("user ~ " + "x" * 9_999) == 0


def test_what_sqlite_refuses_all_the_same_is_an_error_of_the_query(many):
    many.count()
    before = many.index.path.stat().st_ino
    with pytest.raises(InputError, match="a query that SQLite takes"):
        many.index.select(("NOT " * 3000 + "seed", []))
    assert many.index.path.stat().st_ino == before


def test_a_bulk_build_that_broke_off_goes_on(many, tmp_path, monkeypatch):
    monkeypatch.setattr(index_refresh, "BULK", 10)
    monkeypatch.setattr(entries, "BATCH", 20)
    enter, entered = index_refresh.enter, []

    def failing(connection, entries):
        if len(entered) == 5:
            raise KeyboardInterrupt
        entered.extend(["batch"] if entries else [])
        enter(connection, entries)

    monkeypatch.setattr(index_refresh, "enter", failing)
    other = Store(many.url, index_folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        other.count()
    monkeypatch.setattr(index_refresh, "enter", enter)
    with sqlite3.connect(other.index.path) as connection:
        assert 60 <= connection.execute("SELECT count(*) FROM runs").fetchone()[0] <= 100
    again = Store(many.url, index_folder=tmp_path)
    assert again.count() == 700
    assert [run.id for run in again.runs(order="-accuracy", limit=9)] == [
        run.id for run in many.runs(order="-accuracy", limit=9)
    ]
    with sqlite3.connect(other.index.path) as connection:
        (indices,) = connection.execute(
            "SELECT count(*) FROM sqlite_master WHERE type = 'index' AND sql NOT NULL"
        ).fetchone()
        (facts,) = connection.execute(
            "SELECT count(DISTINCT fact) - count(DISTINCT run || ' ' || name || value) FROM facts"
        ).fetchone()
    assert indices == len(index_tables._INDICES)
    assert facts == 0  # none twice


def contents(file: Path) -> dict[str, list[tuple]]:
    """What an index says of runs, without the numbers that depend on the order in which they were entered."""
    with sqlite3.connect(file) as connection:
        columns = "id, month, key, status, method, user, started, seconds, seed, study, record"
        runs = f"SELECT {columns} FROM runs JOIN records USING (n)"
        facts = "SELECT id, text, value FROM facts JOIN runs ON n = run JOIN names ON names.name = facts.name"
        return {sql: sorted(connection.execute(sql).fetchall(), key=repr) for sql in (runs, facts)}


@pytest.mark.parametrize("dies", ["never", "at once", "in the middle", "hangs"])
def test_helpers_read_what_one_process_reads(tmp_path, monkeypatch, dies):
    """Also what is no record, and also if helpers die or do not answer: then their work is done here."""
    many = generate(tmp_path / "store", 300, seed=2)
    damaged = sorted(Path(many.url, "runs").glob("*/*/zarr.json"))[::50]
    for path in damaged:
        path.write_text(path.read_text().replace('"seed":', '"seed":1'))
    assert many.count() == 300 - len(damaged)
    monkeypatch.setattr(entries, "MANY", 1)
    monkeypatch.setattr(entries, "BATCH", 7)
    monkeypatch.setattr(entries, "_processors", lambda: 2)
    started: list[subprocess.Popen] = []
    if dies == "at once":
        monkeypatch.setattr(entries, "_HELPER", "raise SystemExit")
    if dies == "hangs":
        monkeypatch.setattr(entries, "_HELPER", "import threading; threading.Event().wait()")
        monkeypatch.setattr(entries, "LONGEST_ANSWER", 0.1)
    original = subprocess.Popen

    def popen(*arguments, **options):
        started.append(original(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(entries.subprocess, "Popen", popen)
    enter, calls = index_refresh.enter, itertools.count()

    def entered(connection, batch):
        if dies == "in the middle" and next(calls) == 3:
            started[0].kill()
        enter(connection, batch)

    monkeypatch.setattr(index_refresh, "enter", entered)
    other = Store(many.url, index_folder=tmp_path / "other")
    assert other.count() == 300 - len(damaged)
    assert len(started) == 2
    assert all(helper.poll() is not None for helper in started)
    assert contents(other.index.path) == contents(many.index.path)


@pytest.mark.parametrize("program", [None, "", "/opt/studio/studio"])
def test_a_program_around_python_is_not_started_again(many, tmp_path, monkeypatch, program):
    """Where `sys.executable` is no interpreter, the helper would be that program, whose answer never comes."""
    monkeypatch.setattr(entries, "MANY", 1)
    monkeypatch.setattr(entries, "_processors", lambda: 2)
    monkeypatch.setattr(entries.sys, "executable", program)
    started: list[object] = []
    monkeypatch.setattr(entries.subprocess, "Popen", lambda *given, **_: started.append(given))
    assert Store(many.url, index_folder=tmp_path).count() == 700
    assert started == []


def test_several_processes_build_one_index_at_once(many, tmp_path):
    code = (
        "import sys; from pathlib import Path; from workbench.store import Store;"
        f"store = Store({many.url!r}, index_folder=Path({str(tmp_path)!r}));"
        "print('ready', flush=True); sys.stdin.readline(); print(store.count(), len(store.runs('accuracy > 0.5')))"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    answers = {child.communicate()[0] for child in children}
    assert answers == {f"700 {many.count('accuracy > 0.5')}\n"}
    (file,) = tmp_path.glob("*.sqlite")
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT count(*), count(DISTINCT id) FROM runs").fetchone() == (700, 700)
        assert connection.execute("SELECT count(*) FROM facts WHERE run NOT IN (SELECT n FROM runs)").fetchone() == (0,)


def test_an_index_that_somebody_builds_just_now_is_left_to_them(tmp_path):
    """Opened in the middle of a batch of the first build, it must not be taken for damaged and removed."""
    building, other = new_store(tmp_path), new_store(tmp_path)
    building.prepare()
    building.count()
    file, connection = building.index.path, building.index._connection
    index_tables.leave_log(connection)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("truncate",)
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO names (text, name) VALUES ('half a batch', 1)")
    before = file.stat().st_ino
    assert other.count() == 0
    assert file.stat().st_ino == before
    connection.commit()
    assert other.index.ask("SELECT text FROM names", look=False) == [("half a batch",)]
    index_tables.keep_log(connection)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert building.count() == other.count() == 0


@pytest.mark.parametrize("error", ["SQLITE_BUSY", "SQLITE_FULL", "SQLITE_CANTOPEN"])
def test_an_index_that_cannot_be_opened_for_now_is_not_removed(tmp_path, monkeypatch, error):
    store = new_store(tmp_path)
    run = add(store)
    store.count()
    before, prepare = store.index.path.stat().st_ino, index.Index._prepare

    def failing(self, target):
        if target != ":memory:":
            refused = sqlite3.OperationalError(error)
            refused.sqlite_errorcode = getattr(sqlite3, error)
            raise refused
        return prepare(self, target)

    monkeypatch.setattr(index.Index, "_prepare", failing)
    assert [found.id for found in new_store(tmp_path).runs()] == [run]
    assert store.index.path.stat().st_ino == before


def test_a_run_keeps_its_number_while_its_record_changes(tmp_path):
    store = new_store(tmp_path)
    run = add(store)
    add(store)
    (before,) = store.index.ask("SELECT n FROM runs WHERE id = ?", [run])
    store.index.put(store.run(run).record.replace(seed=9, params={"a": 1}))
    assert store.index.ask("SELECT n, seed FROM runs WHERE id = ?", [run]) == [(*before, 9)]
    assert [found.id for found in store.runs("params.a = 1")] == [run]


def test_going_through_all_runs_keeps_few_in_memory(many, monkeypatch):
    monkeypatch.setattr(index, "PAGE", 64)
    generator = random.Random(0)
    assert [run.id for run in many.each()] == [run.id for run in many.runs()]
    where = generator.choice(list(QUERIES))
    assert [run.id for run in many.each(where)] == [run.id for run in many.runs(where)]


def test_records_spelled_by_another_tool_are_read_and_damaged_ones_are_not(tmp_path):
    """Keys in another order, spaces, a parameter called checksum: the same record; a changed number is none."""
    import json

    store = new_store(tmp_path)
    run = add(store, params={"checksum": "00000000", "nested": {"checksum": "x", "a": 1e-5}}, study="ship")
    path = folder_of(store, run) / "zarr.json"
    original = path.read_text()
    document = json.loads(original)
    for text in (original, json.dumps(document, indent=2), json.dumps(dict(reversed(document.items())))):
        path.write_text(text)
        (found,) = Store(store.url, index_folder=tmp_path / str(len(text))).runs("study = ship")
        assert found.record == store.run(run).record
    for text in (original.replace('"seed":0', '"seed":1'), json.dumps(document).replace('"seed": 0', '"seed": 1')):
        path.write_text(text)
        assert Store(store.url, index_folder=tmp_path / f"{len(text)} damaged").runs() == []
        assert "checksum does not match" in str(next(iter(store.verify())))


def test_values_never_become_sql(many):
    sql, values = compile_query('user = "x\' OR n IN (SELECT 1) --"', user="me")
    assert "x'" not in sql
    assert values == ["x' OR n IN (SELECT 1) --"]
    assert many.count('user = "x\' OR n IN (SELECT 1) --"') == 0
    assert Path(many.index.path).is_file()


def test_the_command_line_sorts(many, capsys):
    import json

    from workbench.cli import main

    assert (
        main(["--store", many.url, "runs", "--where", "user = ada", "--sort=-accuracy", "--limit", "3", "--json"]) == 0
    )
    found = [item["metrics"]["accuracy"] for item in json.loads(capsys.readouterr().out)]
    best = sorted((run.record.metrics["accuracy"] for run in many.each("user = ada")), reverse=True)
    assert found == best[:3]
    assert main(["--store", many.url, "runs", "--sort", "tag"]) == 2
