"""Studies: part of the record, joined by runs that come from the store, found with those below them, never part of the key."""

from __future__ import annotations

import json

import pytest
import workbench
from workbench.cli import main
from workbench.errors import InputError, StoreError
from workbench.record import check_study
from workbench.store import Store, liveness

from unit.store_cases import add, age, forge, new_store


@pytest.fixture
def store(tmp_path):
    return new_store(tmp_path)


def colleague(store: Store, name: str = "colleague") -> Store:
    return Store(store.url, index_folder=store.index.path.parent / name)


def found(store: Store, where: str) -> set[str]:
    return {run.id for run in store.runs(where)}


@pytest.mark.parametrize("name", ["ship", "ship/resnet20", "Größe 3", "a.b/c-d_e+f", "2026", "x" * 200, "..."])
def test_names_of_studies(name):
    assert check_study(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "/", "ship/", "/ship", "a//b", "..", "a/../b", "a/.", " a", "a ", "a\n", 'a"b', "a*", "x" * 201, 3, None],
)
def test_what_is_no_name_of_a_study(name):
    with pytest.raises(InputError, match="study: expected a name such as 'ship'"):
        check_study(name)


def test_a_study_is_found_with_those_below_it(store):
    top, below, deep = add(store, study="ship"), add(store, study="ship/resnet20"), add(store, study="ship/resnet20/w4")
    other, none = add(store, study="shipping"), add(store)
    assert found(store, "study = ship") == found(store, "study = SHIP/") == {top, below, deep}
    assert found(store, "study = ship/resnet20") == {below, deep}
    assert found(store, "study = ship/*") == {below, deep}
    assert found(store, "study = ship*") == {top, below, deep, other}
    assert found(store, "study ~ resnet") == {below, deep}
    assert found(store, "study != ship") == found(store, "not study = ship") == {other, none}
    assert found(store, "study = ship and not study = ship/resnet20") == {top}
    assert found(store, "study = resnet20") == set()
    assert store.count("study = ship") == 3


def test_runs_join_and_leave_studies(store):
    run = add(store, study="ship")
    other = colleague(store)
    other.annotations.of(run).join("paper/figure 3", "talk")
    other.annotations.of(run).join("talk")  # is in it already
    assert store.annotations.of(run).studies == ("paper/figure 3", "talk")
    assert len(store.annotations.holding("study")) == 2
    assert found(store, "study = paper") == found(store, "study = ship and study = talk") == {run}
    assert found(store, "study != paper") == set()
    other.annotations.of(run).leave("talk", "ship")  # the last is in its record
    assert found(store, "study = talk") == set()
    assert found(store, "study = ship") == {run}
    with pytest.raises(InputError):
        store.annotations.of(run).join("fine", "not/ fine")
    assert store.annotations.of(run).studies == ("paper/figure 3",)


def test_studies_are_listed_with_those_above_them_and_each_run_counts_once(store):
    assert store.studies() == []
    first = add(store, study="ship/resnet20")
    add(store, study="ship/vgg")
    failed = store.begin(store.run(add(store)).record.replace(id="failed-1", status="running", study="ship/vgg"))
    store.index.put(failed.fail())
    store.annotations.of(first).join("ship/vgg", "paper")
    by_name = {study.name: study for study in colleague(store).studies()}
    assert list(by_name) == ["paper", "ship", "ship/resnet20", "ship/vgg"]
    assert {name: study.runs for name, study in by_name.items()} == {
        "paper": 1,
        "ship": 3,
        "ship/resnet20": 1,
        "ship/vgg": 3,
    }
    assert by_name["ship"].by_status == {"complete": 2, "failed": 1}
    joined = max(item.time for item in store.annotations.holding("study"))
    assert by_name["paper"].last_activity == joined
    assert by_name["ship"].last_activity >= store.run("failed-1").record.finished


def test_a_run_that_shows_no_sign_of_life_counts_as_interrupted(store):
    run = store.begin(store.run(add(store)).record.replace(id="silent-1", status="running", study="ship")).record.id
    (study,) = store.studies()
    assert study.by_status == {"running": 1}
    age(store, run, 3600.0)
    liveness._SEEN.clear()  # as if looked at for the first time
    (study,) = colleague(store).studies()
    assert study.by_status == {"interrupted": 1}


def test_a_served_run_joins_the_study_it_is_asked_for(bench, images):
    first = bench.run("sample.mean_image", data=images, progress=False)
    assert first.studies == ()
    second = bench.run("sample.mean_image", data=images, study="ship/mean", progress=False)
    assert (second.id, second.served, second.studies) == (first.id, True, ("ship/mean",))
    bench.run("sample.mean_image", data=images, study="ship/mean", progress=False)
    assert len(bench.store.annotations.holding("study")) == 1
    third = bench.run("sample.mean_image", data=images, scale=2.0, study="ship", progress=False)
    assert (third.record.study, third.studies) == ("ship", ("ship",))
    again = bench.run("sample.mean_image", data=images, scale=2.0, study="ship", progress=False)
    assert again.id == third.id
    assert again.annotations.studies == ()  # it was computed for that
    assert {run.id for run in bench.runs("study = ship")} == {first.id, third.id}
    text = repr(bench.studies())
    assert [line.split()[:3] for line in text.splitlines()[1:]] == [["ship", "2", "2"], ["ship/mean", "1", "1"]]
    assert "ship/mean" in bench.studies()._repr_html_()


def test_a_bad_name_is_refused_before_any_work(bench, images):
    with pytest.raises(InputError, match="study"):
        bench.run("sample.mean_image", data=images, study="../elsewhere", progress=False)
    assert bench.runs() == []


def test_the_study_is_no_part_of_the_key(bench, images):
    keys = {
        bench.run("sample.mean_image", data=images, study=study, force=True, progress=False).key
        for study in (None, "ship", "ship/resnet20")
    }
    assert len(keys) == 1


def test_the_command_line_knows_studies(store, capsys):
    run = add(store, study="ship/resnet20")
    add(store)
    command = ["--store", store.url]
    assert main([*command, "runs", "--study", "ship", "--json"]) == 0
    assert [item["id"] for item in json.loads(capsys.readouterr().out)] == [run]
    assert main([*command, "runs", "--study", "ship", "--where", "seed = 1 or seed = 2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main([*command, "annotate", run, "--join", "paper"]) == 0
    assert "studies: ship/resnet20, paper\n" in capsys.readouterr().out
    assert main([*command, "studies"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "study",
        "paper",
        "ship",
        "ship/resnet20",
    ]
    assert main([*command, "studies", "--json"]) == 0
    assert [item["runs"] for item in json.loads(capsys.readouterr().out)] == [1, 1, 1]
    assert main([*command, "show", run]) == 0
    assert "ship/resnet20, paper" in capsys.readouterr().out
    assert main([*command, "runs", "--study", 'x" or seed = 0 or study = "x']) == 2
    assert "study: expected a name" in capsys.readouterr().err


def test_a_forged_study_is_refused(store):
    run = add(store, study="ship")
    forge(store, run, lambda value: value.update(study="<script>"))
    assert colleague(store).runs() == []
    assert "study is not the name of one" in str(next(iter(store.verify())))


def test_a_published_store_has_its_studies(store, tmp_path):
    pytest.importorskip("obstore", reason="needs obstore (pip install 'vision-workbench[cloud]')")
    from workbench.store.publishing import publish

    from contract.servers import FolderServer

    run = add(store, study="ship")
    store.annotations.of(run).join("paper")
    publish(store)
    with FolderServer(tmp_path / "store") as server:
        public = Store(server.url, index_folder=tmp_path / "public")
        assert [study.name for study in public.studies()] == ["paper", "ship"]
        with pytest.raises(StoreError, match="published read-only"):
            public.annotations.of(run).join("talk")


def test_runs_of_before_there_were_studies_have_none(tmp_path, store):
    run = add(store)
    forge(store, run, lambda value: value.pop("study"))
    other = workbench.Workbench(colleague(store), workbench.open(store.url).host)
    assert other[run].studies == ()
    assert other.studies() == []
