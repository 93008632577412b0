"""The demo: a small network is trained on digits, one method of every family is run, a study puts them together.

Only bundled data are used: the digits of scikit-learn and the photographs of scikit-image. The parameters are smaller than
the papers' so that everything together takes about three minutes on two cores; each report says what was run. The study
(`ship-small`) takes the trained network and HAWQ's answer from the store and computes what else it asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench._version import __version__

if TYPE_CHECKING:
    from workbench.bench import Workbench
    from workbench.runs import Run
    from workbench.study import StudyResult

__all__ = ["STEPS", "STUDY", "Step", "run_demo"]

STUDY = "ship-small"
STUDY_QUESTION = "What do few bits do to accuracy, calibration and detection, and how few are enough?"
TRAINING, TESTING = "digits(split=train)", "digits(split=test)"


@dataclass(frozen=True)
class Step:
    """One run of the demo. `arguments` makes its inputs and parameters from the runs before it."""

    name: str
    method: str
    question: str
    arguments: Callable[[Mapping[str, Run]], Mapping[str, Any]]


STEPS = (
    Step(
        "classifier",
        "training.classifier",
        "How well does a small network read digits?",
        lambda runs: {"model": "small-cnn", "data": TRAINING, "validation": TESTING, "epochs": 20},
    ),
    Step(
        "hawq",
        "quantization.hawq",
        "Which of its layers may go to few bits?",
        lambda runs: {"model": runs["classifier"], "data": TRAINING, "test": TESTING},
    ),
    Step(
        "h-calibration",
        "calibration.h_calibration",
        "May one believe its probabilities?",
        lambda runs: {"data": runs["classifier"], "maps": ["linear-16", "pwlinear-100"], "epochs": 150},
    ),
    Step(
        "photos",
        "training.evaluation",
        "What does it say about pictures that are no digits?",
        lambda runs: {"model": runs["classifier"], "data": "photos(size=8, count=400, gray=true)"},
    ),
    Step(
        "logit scores",
        "detection.logit_scores",
        "Does it notice that they are no digits?",
        lambda runs: {"data": runs["classifier"], "ood": runs["photos"]},
    ),
    Step(
        "fmix",
        "augmentation.fmix",
        "Does mixing pictures help, and how?",
        lambda runs: {"model": "small-cnn(width=8)", "data": "digits(size=16)", "epochs": 40, "analysed_masks": 100},
    ),
    Step(
        "ms-ssim",
        "restoration.ms_ssim",
        "Pixel loss or structural loss for pictures?",
        lambda runs: {
            "data": "photos(size=32, count=550, gray=true, shrink=2)",
            "losses": ["mse", "ssim"],
            "epochs": 16,
            "code": 64,
            "batch_size": 32,
        },
    ),
    Step(
        "discopatch",
        "detection.discopatch",
        "Would one notice that pictures became blurred or noisy?",
        lambda runs: {
            "data": "photos(size=32, count=1200)",
            "preset": "fast",
            "test_images": 200,
            "severities": [3, 5],
        },
    ),
)


def run_demo(bench: Workbench, folder: Path, *, force: bool = False) -> list[Run]:
    """Run every step and the study (or take them from the store), write the pages to `folder` and print what was found.

    Returns:
        the runs of the steps.

    Raises:
        StoreError: the store or the folder cannot be written.
        WorkbenchError: a step failed; earlier ones are kept.
    """
    import os
    import time

    import torch
    from rich.text import Text

    from workbench.cli.printing import console
    from workbench.study import read_study

    out = console()
    folder = _writable(folder)
    # The networks are tiny: more threads only wait for each other, and badly so where other programs use the cores.
    torch.set_num_threads(min(torch.get_num_threads(), max(1, (os.cpu_count() or 2) // 2)))
    runs: dict[str, Run] = {}
    started = time.perf_counter()
    for number, step in enumerate(STEPS, start=1):
        out.print(Text.assemble((f"{number}/{len(STEPS)} ", "dim"), (step.method, "bold"), f"  {step.question}"))
        run = runs[step.name] = bench.run(step.method, force=force, **step.arguments(runs))
        origin = "from the store" if run.served else f"{run.record.seconds:.0f} s"
        out.print(Text(f"    {run.report_data().summary} ({origin})"))
    described = read_study(STUDY)
    out.print(Text.assemble(("study ", "dim"), (described.name, "bold"), f"  {STUDY_QUESTION}"))
    study = bench.study(described, progress=False)
    out.print(Text(f"    {study.report().conclusions}"))
    for branch, reason in study.failures.items():
        out.print(Text(f"    {branch}: {reason}", "red"))
    page = _write_pages(runs, study, folder)
    served = sum(run.served for run in runs.values())
    seconds = time.perf_counter() - started
    out.print()
    _print_findings(runs)
    out.print(f"{len(runs)} runs in {seconds:.0f} s, {served} of them served from the store {bench.store.url}")
    counts = ", ".join(f"{count} {status}" for status, count in study.counts.items())
    out.print(f"and the runs of the study {study.name} in that time: {counts}")
    out.print(Text.assemble("Open ", (str(page), "bold"), " in a browser; `workbench runs` lists the runs."))
    return list(runs.values())


def _writable(folder: Path) -> Path:
    from workbench.errors import StoreError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"the folder {folder} cannot be written: {error.strerror or error}") from error
    return folder


def _write_pages(runs: Mapping[str, Run], study: StudyResult, folder: Path) -> Path:
    """One page per run and one of the study, and an index that links them; pages that show these runs are left as they are."""
    from workbench.render import IndexCard, index_html

    pages = {step.name: folder / f"{step.method.replace('.', '-')}.html" for step in STEPS}
    page, study_page = folder / "index.html", folder / f"study-{study.name}.html"
    outdated = [name for name, file in pages.items() if not _shows(file, [runs[name].id])]
    for name in outdated:
        runs[name].report().save(pages[name])
    renewed = not _shows(study_page, [run.id for made in study.runs.values() for run in made])
    if renewed:
        study.report().save(study_page)
    if outdated or renewed or not page.exists():
        cards = [
            IndexCard.from_report(file.name, runs[name].report_data(), runs[name].stored, runs[name].info)
            for name, file in pages.items()
        ]
        title = study.plan.study.title or study.name
        cards.append(IndexCard(study_page.name, f"study {study.name}", title, study.report().conclusions))
        page.write_text(index_html(cards, title="Workbench demo"), encoding="utf-8")
    return page


def _shows(page: Path, runs: Sequence[str]) -> bool:
    """Whether a page was written from these runs by this version."""
    if not page.exists():
        return False
    text = page.read_text(encoding="utf-8", errors="replace")
    return all(run in text for run in runs) and f"workbench {__version__}" in text


def _print_findings(runs: Mapping[str, Run]) -> None:
    from rich import box
    from rich.table import Table

    from workbench.cli.printing import ARROWS, console, number, printable

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("method", "metric", "value", "95 % interval"):
        table.add_column(column)
    for run in runs.values():
        for position, metric in enumerate(run.report_data().metrics[:3]):
            interval = f"{number(metric.interval[0])} to {number(metric.interval[1])}" if metric.interval else ""
            table.add_row(
                run.method if position == 0 else "",
                printable(f"{metric.name} {ARROWS.get(metric.direction, '')}".strip()),
                f"{number(metric.value)} {metric.unit}".strip(),
                interval,
            )
    console().print(table)
