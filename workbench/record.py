"""The run record: how a run came about. Plain JSON in the attributes of the run's zarr group; one writer, final once complete."""

from __future__ import annotations

import dataclasses
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from workbench.errors import InputError
from workbench.fingerprint import digest_json

__all__ = [
    "FORMAT_VERSION",
    "STALE_AFTER",
    "Failure",
    "RunRecord",
    "Status",
    "check_study",
    "new_run_id",
    "now",
    "report_metrics",
    "report_number",
    "run_key",
    "valid_study",
]

FORMAT_VERSION = 1
"""Version of the store's layout (contract 3). Stores of a newer version are refused."""

STALE_AFTER = 60.0
"""Seconds without a heartbeat after which a running run reads as interrupted."""

LONGEST_STUDY = 200
"""Characters of a study's name."""
_STUDY_PART = r"(?!\.{1,2}(?:/|\Z))[\w.+\-](?:[\w.+\- ]*[\w.+\-])?"
_STUDY = re.compile(f"{_STUDY_PART}(?:/{_STUDY_PART})*")

Status = Literal["running", "complete", "failed", "cancelled", "interrupted"]


def now() -> str:
    """The moment in UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def new_run_id(method_id: str) -> str:
    """A fresh id: sorts by time, says the method, ends in eight random characters (`20261124-130501-hawq-4c1e09ab`)."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return f"{stamp}-{method_id.rpartition('.')[2].replace('_', '-')}-{secrets.token_hex(4)}"


def run_key(
    *,
    method: str,
    version: str,
    code: str | None,
    params: Mapping[str, Any],
    inputs: Mapping[str, str],
    seed: int,
    precision: str,
) -> str:
    """The identity of a run: digest of everything that decides its numbers (contract 3); the device is not part of it.

    Args:
        method: method id.
        version: method version.
        code: digest of the method's source where the version alone does not vouch for it, else None.
        params: canonical parameters (JSON values).
        inputs: role -> digest.
        seed: seed of the run.
        precision: dtype policy, e.g. `float32`.
    """
    return digest_json(
        {
            "method": method,
            "version": version,
            "code": code,
            "params": dict(params),
            "inputs": dict(inputs),
            "seed": seed,
            "precision": precision,
        }
    )


def valid_study(name: object) -> bool:
    """Whether this can be the name of a study: words with `/` between levels, `ship/resnet20`."""
    return isinstance(name, str) and len(name) <= LONGEST_STUDY and _STUDY.fullmatch(name) is not None


def check_study(name: object) -> str:
    """The name of a study.

    Raises:
        InputError: it is none.
    """
    if not valid_study(name):
        raise InputError(
            "study",
            expected=f"a name such as 'ship' or 'ship/resnet20' of letters, digits, spaces and . _ + - "
            f"(at most {LONGEST_STUDY} characters)",
            got=repr(name)[:80],
        )
    return str(name)


@dataclass(frozen=True)
class Failure:
    """Why a run failed or was cancelled."""

    type: str
    message: str
    traceback: str


@dataclass(frozen=True)
class RunRecord:
    """Everything known about a run but its arrays. Instances are immutable; `replace` makes the next state."""

    id: str
    key: str | None
    """None when an input has no digest: such a run is stored, but never served again."""
    method: str
    method_title: str
    method_version: str
    method_code: str | None
    params: dict[str, Any]
    inputs: dict[str, dict[str, Any]]
    seed: int
    precision: str
    status: Status
    user: str
    host: str
    pid: int
    started: str
    heartbeat: str
    device: str
    study: str | None = None
    """What the run was computed for, as a path (`ship/resnet20`); not part of the key. More may join it later: annotations."""
    paper: dict[str, Any] | None = None
    default_params: dict[str, Any] = field(default_factory=dict)
    finished: str | None = None
    seconds: float = 0.0
    provenance: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Per array path: dims, shape, dtype, bytes, description, unit and `files`, the number of chunk (or shard) files."""
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Per stored model: factory, factory_arguments, mean, std, input_shape, classes."""
    report: dict[str, Any] | None = None
    failure: dict[str, Any] | None = None

    def replace(self, **changes: Any) -> RunRecord:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"format": FORMAT_VERSION} | {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunRecord:
        """Read a record; fields of later minor versions are ignored."""
        known = {item.name for item in dataclasses.fields(cls)}
        return cls(**{name: item for name, item in value.items() if name in known})

    @property
    def month(self) -> str:
        """The folder of the run, `YYYY-MM` of its start."""
        return self.started[:7]

    @property
    def metrics(self) -> dict[str, float]:
        """Metric values by name, from the report saved with the run."""
        return report_metrics(self.report)


def report_metrics(report: Mapping[str, Any] | None) -> dict[str, float]:
    """Metric values by name of a report as a record keeps it."""
    return {str(metric["name"]): report_number(metric["value"]) for metric in (report or {}).get("metrics", ())}


def report_number(value: Any) -> float:
    """A number of a report, where NaN and the infinities are spelled `__nan__`, `__inf__`, `__-inf__`."""
    return float(value.strip("_")) if isinstance(value, str) else float(value)
