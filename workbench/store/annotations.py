"""What people say about runs: tags, notes, pins, archive marks, studies they belong to; and views they saved.

    STORE/annotations/YYYY-MM/<moment>-<random>.json      one small object for each thing said; never changed, one writer

Taking something back is another object, which names the objects it takes back. So everybody may write at once, no clock
decides who wins, and the order in which objects arrive does not matter: a thing holds while nobody who saw it took it back.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from workbench.errors import InputError, StoreError
from workbench.record import check_study, now, valid_study
from workbench.store.backend import Backend
from workbench.store.index import Index
from workbench.store.index_tables import Annotation
from workbench.store.records import RecordError, parse_json, safe_run_id

__all__ = ["Annotations", "RunAnnotations", "SavedView", "annotated_run", "parse_annotation"]

KINDS = ("tag", "note", "pin", "archive", "study", "view")
LONGEST = 20_000
"""Characters of a note."""
LARGEST = 64 * 1024


@dataclass(frozen=True)
class SavedView:
    """What somebody looked at, under a name: a query, values chosen in facets, columns and the order of the rows."""

    name: str
    query: str
    columns: tuple[str, ...] = ()
    user: str = ""
    sort: str = "started"
    descending: bool = True
    facets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Spoken:
    """One annotation object as it is written."""

    kind: str
    run: str
    text: str | None
    user: str
    removes: tuple[str, ...] = ()
    time: str = field(default_factory=now)

    def to_bytes(self) -> bytes:
        body = {"format": 1, "kind": self.kind, "run": self.run, "user": self.user, "time": self.time}
        body |= {"removes": list(self.removes)} if self.removes else {"text": self.text}
        return json.dumps(body).encode()


def parse_annotation(data: bytes) -> Annotation | tuple[str, ...] | None:
    """What an object says: an annotation (its id left empty), the ids it takes back, or None for a kind not known here.

    Raises:
        RecordError: it is not an annotation.
    """
    if len(data) > LARGEST:
        raise RecordError("an annotation of more than 64 KiB")
    value = parse_json(data)
    try:
        kind, run, user, time = (value[name] for name in ("kind", "run", "user", "time"))
        removes, text = value.get("removes"), value.get("text")
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"not an annotation ({error})") from error
    if not all(isinstance(item, str) for item in (kind, run, user, time)) or (run and not safe_run_id(run)):
        raise RecordError("not an annotation")
    if kind not in KINDS:
        return None  # of a later version
    if removes is not None:
        if not isinstance(removes, list) or not all(isinstance(item, str) for item in removes):
            raise RecordError("not an annotation")
        return tuple(removes)
    if not isinstance(text, str) or len(text) > LONGEST or not user.isprintable():
        raise RecordError("not an annotation")
    if kind == "study" and not valid_study(text):
        raise RecordError("not the name of a study")
    return Annotation("", run, kind, text, user, time)


def annotated_run(data: bytes) -> str | None:
    """The run that an object is about; None if it is no annotation."""
    try:
        parse_annotation(data)
        return str(parse_json(data)["run"])
    except RecordError:
        return None


class Annotations:
    """Says and takes back; what holds is asked of the index."""

    def __init__(self, backend: Backend, index: Index, user: Callable[[], str], prepare: Callable[[], None]) -> None:
        self._backend, self._index, self._user, self._prepare = backend, index, user, prepare

    def of(self, run: str) -> RunAnnotations:
        """What is said about a run."""
        return RunAnnotations(self, run)

    def holding(self, kind: str, run: str | None = None) -> list[Annotation]:
        """Everything of a kind that holds, oldest first."""
        return self._index.annotations(kind, run)

    def say(self, kind: str, run: str, text: str) -> None:
        """Write one annotation."""
        self._write(_Spoken(kind, run, text, self._user()))

    def take_back(self, said: list[Annotation]) -> None:
        """Take annotations back, whoever said them."""
        if said:
            first = said[0]
            self._write(_Spoken(first.kind, first.run, None, self._user(), tuple(item.id for item in said)))

    def _write(self, spoken: _Spoken) -> None:
        self._prepare()
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        try:
            self._backend.write(f"annotations/{spoken.time[:7]}/{stamp}-{secrets.token_hex(6)}.json", spoken.to_bytes())
        except OSError as error:
            raise StoreError(f"the store {self._backend.url} cannot be written: {error.strerror or error}") from error
        self._index.expire()

    # --- views ------------------------------------------------------------------------------------------------------

    def views(self) -> dict[str, SavedView]:
        """Saved views by name; where two people saved one name, the later one."""
        found = {}
        for item in self.holding("view"):
            try:
                value = parse_json(item.text.encode())
                columns = tuple(str(column) for column in value["columns"])
                facets = {str(facet): tuple(map(str, chosen)) for facet, chosen in value.get("facets", {}).items()}
                found[str(value["name"])] = SavedView(
                    str(value["name"]), str(value["query"]), columns, item.user, str(value.get("sort", "started")),
                    bool(value.get("descending", True)), facets,
                )  # fmt: skip
            except (RecordError, KeyError, TypeError, AttributeError):
                continue
        return found

    def save_view(
        self,
        name: str,
        query: str,
        columns: tuple[str, ...] = (),
        *,
        sort: str = "started",
        descending: bool = True,
        facets: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        """Save a query, and how its runs are shown, under a name, in place of what has the name now."""
        before = [item for item in self.holding("view") if _view_name(item) == name]
        shown = {"columns": list(columns), "sort": sort, "descending": descending}
        chosen = {facet: list(values) for facet, values in (facets or {}).items()}
        text = json.dumps({"name": name, "query": query, "facets": chosen} | shown)
        self.say("view", "", _checked("view", text))
        self.take_back(before)

    def delete_view(self, name: str) -> None:
        """Remove a saved view."""
        self.take_back([item for item in self.holding("view") if _view_name(item) == name])


def _view_name(item: Annotation) -> str | None:
    try:
        value: Mapping[str, Any] = parse_json(item.text.encode())
        return str(value["name"])
    except (RecordError, KeyError, TypeError):
        return None


class RunAnnotations:
    """Tags, notes, studies, pin and archive mark of one run."""

    def __init__(self, annotations: Annotations, run: str) -> None:
        self._annotations, self._run = annotations, run

    @property
    def tags(self) -> tuple[str, ...]:
        """Tags in alphabetical order."""
        return tuple(sorted({item.text for item in self._holding("tag")}))

    @property
    def notes(self) -> tuple[Annotation, ...]:
        """Notes, oldest first: `text`, `user`, `time`."""
        return tuple(self._holding("note"))

    @property
    def pinned(self) -> bool:
        """Whether somebody pinned it: `workbench store gc` keeps it."""
        return bool(self._holding("pin"))

    @property
    def archived(self) -> bool:
        """Whether somebody archived it: `workbench store gc` may remove it."""
        return bool(self._holding("archive"))

    def tag(self, *tags: str) -> None:
        """Add tags: short words to search for (`tag = paper`)."""
        for text in tags:
            _checked("tag", text)
            if not text.strip() or len(text) > 100 or not text.isprintable():
                raise InputError("tag", expected="1 to 100 printable characters", got=repr(text[:100]))
            if text not in self.tags:
                self._annotations.say("tag", self._run, text)

    def untag(self, *tags: str) -> None:
        """Remove tags, whoever added them."""
        self._annotations.take_back([item for item in self._holding("tag") if item.text in tags])

    @property
    def studies(self) -> tuple[str, ...]:
        """Studies it joined after it was computed (the one it was computed for is in its record), in alphabetical order."""
        return tuple(sorted({item.text for item in self._holding("study")}))

    def join(self, *studies: str) -> None:
        """Make the run part of further studies: paths such as `ship/resnet20`.

        Raises:
            InputError: one is no name of a study; then none is joined.
        """
        for name in [check_study(study) for study in studies]:
            if name not in self.studies:
                self._annotations.say("study", self._run, name)

    def leave(self, *studies: str) -> None:
        """Take the run out of studies it joined, whoever added it. The study it was computed for stays."""
        self._annotations.take_back([item for item in self._holding("study") if item.text in studies])

    def note(self, text: str) -> None:
        """Add a note."""
        if not text.strip():
            raise InputError("note", expected="some text", got="none")
        self._annotations.say("note", self._run, _checked("note", text))

    def remove_note(self, note: Annotation) -> None:
        """Take a note back."""
        self._annotations.take_back([note])

    def pin(self) -> None:
        """Keep the run from being cleaned up."""
        self._set("pin", True)

    def unpin(self) -> None:
        """Take the pins back."""
        self._set("pin", False)

    def archive(self) -> None:
        """Mark the run as no longer needed."""
        self._set("archive", True)

    def unarchive(self) -> None:
        """Take the archive marks back."""
        self._set("archive", False)

    def _set(self, kind: str, wanted: bool) -> None:
        held = self._holding(kind)
        if wanted and not held:
            self._annotations.say(kind, self._run, "")
        elif not wanted:
            self._annotations.take_back(held)

    def _holding(self, kind: str) -> list[Annotation]:
        return self._annotations.holding(kind, self._run)


def _checked(argument: str, text: str) -> str:
    if not isinstance(text, str) or len(text) > LONGEST:
        raise InputError(argument, expected=f"a text of at most {LONGEST} characters", got=repr(text)[:60])
    return text
