"""Studies across families: a small description, expanded to runs, answered by one report.

    result = bench.study("ship-small")
    result.report()

`description` says what may be asked for, `plan` which runs that is, `running` has them computed or finds them, `matrix` puts
variants beside metrics with `significance`, `conclusions` says in words what the numbers say, `report` and `page` show it.
Nothing of a study is stored but its runs.
"""

from workbench.study.description import Choice, Metric, Questions, Step, Study, read_study, shipped_studies
from workbench.study.result import StudyResult
from workbench.study.running import find_study, run_study

__all__ = [
    "Choice",
    "Metric",
    "Questions",
    "Step",
    "Study",
    "StudyResult",
    "find_study",
    "read_study",
    "run_study",
    "shipped_studies",
]
