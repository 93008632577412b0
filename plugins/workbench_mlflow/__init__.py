"""Mirrors runs to an MLflow tracking server: parameters, metrics with their intervals, who, on what, how it ended.

It is idle until $MLFLOW_TRACKING_URI names a server or database (`http://...`, `sqlite:///mlflow.db`); runs then appear in
the experiment that $MLFLOW_EXPERIMENT_NAME names, `workbench` by default. Arrays stay in the store: the tag
`workbench.run` is the id under which `bench[...]` finds them. A run is mirrored when it ends, because a method may decline
its inputs and such a run leaves nothing anywhere. A server that is down disturbs no run; `workbench plugins` says so.
MLflow itself would try again for minutes while the run's result waits, so it is told to do so once and to wait for 10
seconds; $MLFLOW_HTTP_REQUEST_MAX_RETRIES and $MLFLOW_HTTP_REQUEST_TIMEOUT say otherwise.

It is also an example of the life-cycle hooks: everything below uses the public names of `workbench` only.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from workbench import hookimpl

__all__ = ["workbench_run_failed", "workbench_run_finished"]

EXPERIMENT = "workbench"
LONGEST_PARAMETER = 500
"""Characters; every MLflow server since 1.0 takes as many."""
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""MLflow's own settings while a run is mirrored, where the user has made none."""


@hookimpl
def workbench_run_finished(record: Mapping[str, Any]) -> None:
    """Mirror a complete run."""
    _mirror(record, "FINISHED")


@hookimpl
def workbench_run_failed(record: Mapping[str, Any]) -> None:
    """Mirror a run that failed or was cancelled."""
    _mirror(record, "KILLED" if record["status"] == "cancelled" else "FAILED")


def _mirror(record: Mapping[str, Any], status: str) -> None:
    address = os.environ.get("MLFLOW_TRACKING_URI")
    if not address:
        return
    with _patience():
        _send(address, record, status)


@contextmanager
def _patience() -> Iterator[None]:
    added = {name: value for name, value in PATIENCE.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _send(address: str, record: Mapping[str, Any], status: str) -> None:
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.tracking import MlflowClient

    client = MlflowClient(address)
    start, end = _milliseconds(record["started"]), _milliseconds(record["finished"] or record["heartbeat"])
    run = client.create_run(_experiment(client), start_time=start, run_name=record["id"])
    client.log_batch(
        run.info.run_id,
        metrics=[Metric(name, value, end, 0) for name, value in _metrics(record).items()],
        params=[Param(name, value) for name, value in _parameters(record).items()],
        tags=[RunTag(name, value) for name, value in _tags(record).items()],
    )
    client.set_terminated(run.info.run_id, status, end)


def _experiment(client: Any) -> str:
    from mlflow.exceptions import MlflowException

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name))
    except MlflowException:
        # Somebody else made it between the two calls.
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def _metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of the report; an interval as NAME_lower and NAME_upper; the seconds it took."""
    found = {"seconds": float(record["seconds"])}
    for metric in (record["report"] or {}).get("metrics", ()):
        values = {"": metric["value"]}
        if metric.get("interval"):
            values |= dict(zip(("_lower", "_upper"), metric["interval"], strict=True))
        for suffix, value in values.items():
            # NaN and the infinities are words in JSON: __nan__, __inf__, __-inf__.
            number = float(value.strip("_")) if isinstance(value, str) else float(value)
            found[re.sub(r"[^\w\-. /]", "_", metric["name"]) + suffix] = number
    return found


def _parameters(record: Mapping[str, Any]) -> dict[str, str]:
    """Parameters, seed and precision, and what every input was."""
    values = {**record["params"], "seed": record["seed"], "precision": record["precision"]}
    values |= {f"input.{role}": entry.get("label", "") for role, entry in record["inputs"].items()}
    return {
        name: (value if isinstance(value, str) else json.dumps(value))[:LONGEST_PARAMETER]
        for name, value in values.items()
    }


def _tags(record: Mapping[str, Any]) -> dict[str, str]:
    tags = {
        "mlflow.user": record["user"],
        "mlflow.source.name": record["method"],
        "workbench.run": record["id"],
        "workbench.key": record["key"] or "",
        "workbench.method": f"{record['method']} {record['method_version']}",
        "workbench.device": record["device"],
    }
    if record["report"]:
        tags["mlflow.note.content"] = record["report"]["summary"]
    if record["failure"]:
        tags["workbench.failure"] = f"{record['failure']['type']}: {record['failure']['message']}"[:LONGEST_PARAMETER]
    return tags


def _milliseconds(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp() * 1000)
