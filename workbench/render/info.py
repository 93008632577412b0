"""What the pages say about a run besides its report: who, when, where, with what, and the code to do it again."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from workbench.render.markup import visible

if TYPE_CHECKING:
    from workbench.record import RunRecord
    from workbench.report import Report

__all__ = ["RunInfo"]


@dataclass(frozen=True)
class RunInfo:
    """A run in plain values, for pages. `from_record` makes it from what the store keeps."""

    id: str
    method: str
    method_title: str
    status: str
    method_version: str = ""
    method_code: str | None = None
    key: str | None = None
    seed: int = 0
    precision: str = "float32"
    device: str = ""
    user: str = ""
    host: str = ""
    started: str = ""
    """ISO 8601, UTC."""
    seconds: float | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    default_params: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Per role: kind, label, digest, sizes, runs."""
    paper: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    progress: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Per array: dims, shape, dtype, bytes, description, units."""
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    failure: Mapping[str, Any] | None = None
    report: Report | None = None
    """The report saved with the run, for the key metrics in short displays."""
    served: bool = False
    """Whether the run was found in the store instead of computed."""
    store: str = "store"
    """Address of the store, for the code that reproduces the run."""

    @classmethod
    def from_record(
        cls,
        record: RunRecord,
        *,
        method_title: str | None = None,
        default_params: Mapping[str, Any] | None = None,
        status: str | None = None,
        served: bool = False,
        store: str = "store",
    ) -> RunInfo:
        """From a run's record.

        Args:
            record: as stored.
            method_title: of the method where it is at hand; else the title in the record.
            default_params: likewise.
            status: as observed (a running run may read as interrupted); else that of the record.
            served: whether the run was found in the store instead of computed.
            store: address of the store.
        """
        return cls(
            id=record.id,
            method=record.method,
            method_title=method_title or record.method_title,
            status=status or record.status,
            method_version=record.method_version,
            method_code=record.method_code,
            key=record.key,
            seed=record.seed,
            precision=record.precision,
            device=record.device,
            user=record.user,
            host=record.host,
            started=record.started,
            seconds=record.seconds if record.finished else None,
            params=record.params,
            default_params=record.default_params if default_params is None else default_params,
            inputs=record.inputs,
            paper=record.paper,
            provenance=record.provenance,
            progress=record.progress,
            arrays=record.arrays,
            models=record.models,
            failure=record.failure,
            report=_report(record),
            served=served,
            store=store,
        )

    @property
    def when(self) -> str:
        """Start of the run, for reading: `25 Nov 2026, 13:05 UTC`."""
        try:
            moment = datetime.fromisoformat(self.started)
        except ValueError:
            return self.started
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        # Month names by hand: strftime's follow the locale of whoever makes the page.
        months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
        return f"{moment.day} {months[moment.month - 1]} {moment.year}, {moment:%H:%M} UTC"

    @property
    def who(self) -> str:
        """`user@host`, or what is known of it."""
        return "@".join(part for part in (self.user, self.host) if part)

    def changed(self, name: str) -> bool:
        """Whether a parameter differs from its default; False where no default is known."""
        return name in self.default_params and _plain(self.params.get(name)) != _plain(self.default_params[name])

    def code(self) -> str:
        """Python that asks for this run again: from the store if it is there, else computed."""
        arguments = [repr(visible(self.method))]
        remarks = [""]
        for role, entry in self.inputs.items():
            argument, remark = _input_code(entry)
            arguments.append(_keyword(role, argument))
            remarks.append(remark)
        for name, value in self.params.items():
            if self.changed(name) or name not in self.default_params:
                arguments.append(_keyword(name, repr(value)))
                remarks.append("")
        arguments.append(f"seed={self.seed!r}")
        remarks.append("")
        if self.precision != "float32":
            arguments.append(f"precision={visible(self.precision)!r}")
            remarks.append("")
        lines = [
            f"    {argument}," + (f"  # {remark}" if remark else "")
            for argument, remark in zip(arguments, remarks, strict=True)
        ]
        opening = ["import workbench", "", f"bench = workbench.open({visible(self.store)!r})", "run = bench.run("]
        return "\n".join([*opening, *lines, ")", "run.report()"])


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _keyword(name: str, argument: str) -> str:
    """`name=argument`, also for names that are no Python identifiers (the store may hold anything)."""
    if name.isascii() and name.isidentifier() and not keyword.iskeyword(name):
        return f"{name}={argument}"
    return f"**{{{name!r}: {argument}}}"  # repr escapes what cannot be printed


def _input_code(entry: Mapping[str, Any]) -> tuple[str, str]:
    """The argument for one input, and a remark: a run by its id, else the name it was asked for by."""
    label = visible(entry.get("label") or "", 500)
    runs: list[object] = list(entry.get("runs") or ())
    digest = " ".join(visible(entry.get("digest") or "").split())[:12]
    remark = f"digest {digest}" if digest else "has no digest"
    if len(runs) == 1:
        run = visible(runs[0], 200)
        if label == f"run {run}" or re.fullmatch(re.escape(f"run {run}") + r"\[[^\]]*\]", label):
            return repr(f"run:{label.removeprefix('run ')}"), ""
        if label.startswith(f"{run}[") and label.endswith("]"):
            return repr(f"run:{label}"), ""
    if not label or re.search(r"\s\(.*\d\)$", label):  # an object of the notebook: `Dataset (sample 100, y 8)`
        return "...", " ".join(f"your object: {label}, {remark}".split())
    return repr(label), remark


def _report(record: RunRecord) -> Report | None:
    """The saved report; none where a store made elsewhere has something else in its place: one run never hides the others."""
    from workbench.report import Report

    try:
        return None if record.report is None else Report.from_json(record.report)
    except (ValueError, TypeError, LookupError, AttributeError):
        return None
