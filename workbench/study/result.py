"""What came of a study: which branch is which run, what failed, and the way to the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from workbench.study.plan import Branch, Option, Plan, belongs, spelled

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from workbench.bench import Workbench
    from workbench.panels.study import StudyPanel
    from workbench.runs import Run
    from workbench.study.matrix import Matrix
    from workbench.study.page import StudyReport

__all__ = ["Outcome", "StudyResult"]

DONE = ("complete", "stored")


@dataclass(frozen=True)
class Outcome:
    """What became of a branch."""

    status: str
    """complete, stored (it was in the store), failed, skipped, cancelled, blocked (something upstream has no run), missing,
    running or interrupted.
    """
    run_id: str = ""
    reason: str = ""


class StudyResult:
    """Runs by step and variant. Shows itself as a table; `.report()` answers the questions of the study.

    Args:
        plan: the branches.
        outcomes: by id of the branch.
        bench: whose store has the runs.
    """

    def __init__(self, plan: Plan, outcomes: Mapping[str, Outcome], bench: Workbench) -> None:
        self.plan, self.outcomes, self._bench = plan, dict(outcomes), bench
        self._runs: dict[str, Run] = {}

    @property
    def name(self) -> str:
        """Name of the study, and of the study of its runs in the store."""
        return self.plan.study.name

    def run(self, branch: Branch) -> Run | None:
        """The run of a branch; None where there is none."""
        run_id = self.outcomes[branch.id].run_id
        if not run_id:
            return None
        if run_id not in self._runs:
            self._runs[run_id] = self._bench[run_id]
        return self._runs[run_id]

    @property
    def runs(self) -> dict[str, list[Run]]:
        """Complete runs by step."""
        return {
            step: [run for branch in branches if (run := self.run(branch)) is not None]
            for step, branches in self.plan.steps.items()
        }

    def branches_of(self, step: str, variant: Iterable[Option]) -> list[Branch]:
        """Branches of a step that are up- or downstream of a variant."""
        across = self.plan.study.questions.across
        found: dict[str, Branch] = {}
        for option in self.plan.options(step):
            related = any(belongs(option, one, across, step) for one in variant)
            if related and isinstance(option.value, Branch):
                found.setdefault(option.value.id, option.value)
        return list(found.values())

    def dataset_of(self, subject: str) -> xr.Dataset:
        """A data set that the study names."""
        return self._bench.dataset(subject, role="data")[0]

    @property
    def failures(self) -> dict[str, str]:
        """What has no run: branch -> status and reason."""
        return {
            branch.label: f"{outcome.status}: {outcome.reason}" if outcome.reason else outcome.status
            for branch in self.plan.branches
            if (outcome := self.outcomes[branch.id]).status not in DONE
        }

    @property
    def counts(self) -> dict[str, int]:
        """Branches by status."""
        return dict(Counter(outcome.status for outcome in self.outcomes.values()))

    @cached_property
    def matrix(self) -> Matrix:
        """Variants beside metrics, with intervals and comparisons.

        Raises:
            InputError: no variant has any of the metrics.
        """
        from workbench.study.matrix import make_matrix

        return make_matrix(self)

    def table(self) -> pd.DataFrame:
        """A row per branch: step, variant, seed, status, run and its first metrics."""
        import pandas as pd

        rows = []
        for branch in self.plan.branches:
            outcome, run = self.outcomes[branch.id], self.run(branch)
            variant = ", ".join(spelled(name, value) for name, value in branch.trail.items())
            row: dict[str, Any] = {"step": branch.step, "method": branch.method.id, "variant": variant}
            row |= {"seed": branch.seed, "status": outcome.status, "run": outcome.run_id, "reason": outcome.reason}
            rows.append(row | ({} if run is None else dict(list(run.metrics.items())[:4])))
        return pd.DataFrame(rows)

    def dataset(self) -> xr.Dataset:
        """The matrix as a Dataset over `variant` and `metric`: value, lower, upper, difference, p_value and adjusted p."""
        return self.matrix.dataset()

    def report(self) -> StudyReport:
        """The answer: displays itself in a notebook; `.save(path)` writes a page, `.csv()` and `.latex()` give the matrix.

        Raises:
            InputError: no variant has any of the metrics.
        """
        from workbench.study.page import StudyReport

        return StudyReport(self)

    def panel(self) -> StudyPanel:
        """The study to look through: numbers, any two metrics with their front, parallel coordinates, lineage, every run.

        Raises:
            InputError: no variant has any of the metrics.
        """
        from importlib import import_module

        # Panels lie on the floor above, so the module is named as text and loaded when somebody wants to look.
        made: StudyPanel = import_module("workbench.panels.study").StudyPanel(self)
        return made

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {status}" for status, count in self.counts.items())
        lines = [f"<Study {self.name}: {counts}>"]
        lines += [f"  {branch}: {reason}" for branch, reason in list(self.failures.items())[:25]]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from workbench.render import sections
        from workbench.render.html import notebook_fragment
        from workbench.render.markup import element

        rows = [
            (
                branch.label,
                branch.method.id,
                sections.pill(self.outcomes[branch.id].status),
                element("code", self.outcomes[branch.id].run_id),
                self.outcomes[branch.id].reason,
            )
            for branch in self.plan.branches
        ]
        counts = ", ".join(f"{count} {status}" for status, count in self.counts.items())
        head = element("div", element("strong", self.plan.study.title or self.name), f" {counts}")
        return notebook_fragment(head, sections.table_html(("branch", "method", "status", "run", "why"), rows))
