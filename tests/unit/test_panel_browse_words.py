"""Words of the table of runs: completion of queries, what is said about wrong ones, and cells as people write them."""

from __future__ import annotations

from typing import Any

import pytest
from workbench.errors import InputError
from workbench.panels.browse_cells import column, default_columns, row
from workbench.panels.browse_completion import advice, complete, problem, quoted
from workbench.store.query import compile_query
from workbench.store.table import Row

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
