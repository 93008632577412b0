"""What a method does when it runs, rule by rule; `check_method` tries all of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.method import Method, MethodReference
from workbench.testing.cluster import RULES_OF_CLUSTER
from workbench.testing.declarations import check_declarations
from workbench.testing.findings import Finding
from workbench.testing.hard_inputs import RULES_OF_HARD_INPUTS
from workbench.testing.interruption import RULES_OF_INTERRUPTION
from workbench.testing.outcome import RULES_OF_OUTCOME
from workbench.testing.repetition import RULES_OF_REPETITION
from workbench.testing.reporting import RULES_OF_REPORTING
from workbench.testing.side_effects import RULES_OF_SIDE_EFFECTS
from workbench.testing.trial import Trial

if TYPE_CHECKING:
    from workbench.bench import Workbench

__all__ = ["BEHAVIOUR", "check_behaviour", "check_method"]

BEHAVIOUR: Mapping[str, Callable[[Trial], Iterator[str]]] = {
    **RULES_OF_OUTCOME,
    **RULES_OF_REPETITION,
    **RULES_OF_REPORTING,
    **RULES_OF_SIDE_EFFECTS,
    **RULES_OF_HARD_INPUTS,
    **RULES_OF_INTERRUPTION,
    **RULES_OF_CLUSTER,
}
"""Rule -> what a trial shows against it."""


def check_method(
    method: type[Method],
    *,
    inputs: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
    reference: MethodReference | None = None,
    bench: Workbench | None = None,
) -> list[Finding]:
    """Everything a method does that breaks the contract; an empty list is what you want.

    Args:
        method: the class.
        inputs: role -> Dataset, module (or, with `bench`, a name); roles left out get a generated sample, unless None.
        params: parameters that make a run last about a second; the defaults otherwise.
        reference: what the plugin lists the method as.
        bench: looks up names in `inputs`.
    """
    findings = check_declarations(method, reference)
    if getattr(method, "__abstractmethods__", None) or not isinstance(getattr(method, "id", None), str):
        return findings
    with tempfile.TemporaryDirectory(prefix="workbench-check-", ignore_cleanup_errors=True) as folder:
        trial = Trial(method, folder=Path(folder) / "store", inputs=inputs, params=params, bench=bench)
        for rule in BEHAVIOUR:
            findings += check_behaviour(trial, rule)
    return findings


def check_behaviour(trial: Trial, rule: str) -> list[Finding]:
    """What of a trial breaks one rule. Nothing but `runs` (and `dependency`) is looked at where no run completes."""
    if trial.unavailable and rule != "dependency":
        return []
    if rule not in ("runs", "dependency") and not trial.completed:
        return []
    return [Finding(trial.method.id, rule, problem) for problem in BEHAVIOUR[rule](trial)]
