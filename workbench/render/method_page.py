"""A method explained on a page or in a notebook: what it tells, where it comes from, what it takes, what it stores, how it looks.

Everything is read off the class (`workbench.description`), so it cannot say something else than the code does. Figures are
those of a run, where there is one to show.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.description import MethodDescription
from workbench.render.html import figures_section, notebook_fragment, page, section
from workbench.render.markup import Html, element, join
from workbench.render.sections import table_html

if TYPE_CHECKING:
    from workbench.method import Result
    from workbench.render.info import RunInfo
    from workbench.report import Report

__all__ = ["MethodPage", "prose"]

FIGURES = 6
"""Figures of the example; the first ones of a report are the ones to look at."""
_ARXIV = re.compile(r"(?:[a-z.-]+/)?[0-9.]+(?:v\d+)?")
_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)((?: \(.*\))?)")


class MethodPage:
    """What `bench.describe(...)` returns: displays itself in a notebook; `.save(path)` writes one HTML file.

    Args:
        description: of the method.
        example: a run of it whose figures are shown: its report, its arrays and what is known about it.
    """

    def __init__(
        self, description: MethodDescription, *, example: tuple[Report, Result, RunInfo] | None = None
    ) -> None:
        self.description, self.example = description, example

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page as one self-contained file and return its path; folders are made."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(self.html(), encoding="utf-8")
        return target

    def html(self) -> str:
        """The page."""
        told = self.description
        head = element(
            "header",
            element("div", element("span", told.id), element("span", f"version {told.version}"), class_="wb-eyebrow"),
            element("h1", told.title),
            _sources(told),
        )
        what = element("div", *prose(told.text), class_="wb-card wb-prose") if told.text else None
        body = join([head, section("What it does", what), *self._figures(), *self._sections(), *self._use()])
        return page(f"{told.title} · {told.id}", body)

    def __repr__(self) -> str:
        told = self.description
        return f"<method {told.id} version {told.version}: {told.title}>"

    def _repr_html_(self) -> str:
        told = self.description
        head = element(
            "div", element("b", told.title, class_="wb-title"), " ", element("code", told.id), class_="wb-head"
        )
        return notebook_fragment(head, _sources(told), *prose(told.text), *self._sections(), *self._use())

    def _sections(self) -> list[Html | None]:
        told = self.description
        roles = [
            (
                element("code", role.name),
                role.kind,
                role.takes,
                _with_remark(role.description, "optional", role.optional),
            )
            for role in told.roles
        ]
        parameters = [
            (
                element("code", item.name),
                item.type,
                item.range,
                "required" if item.required else element("code", _default(item.default)),
                inline(item.description),
            )
            for item in told.parameters
        ]
        outputs = [
            (element("code", name), dims or "one number", dtype, inline(about))
            for name, dims, dtype, about in told.outputs
        ]
        return [
            _table("What it takes", ("input", "kind", "takes", "what"), roles),
            _table("Parameters", ("parameter", "type", "range", "default", "what"), parameters),
            _table("What it stores", ("array", "dims", "dtype", "what"), outputs),
        ]

    def _figures(self) -> list[Html | None]:
        if self.example is None:
            return []
        report, result, info = self.example
        if not report.views:
            return []
        note = element("p", "From the run ", element("code", info.id), f": {report.summary}", class_="wb-missing")
        return [figures_section(report.views[:FIGURES], result, info.id), note]

    def _use(self) -> list[Html | None]:
        told = self.description
        return [
            section("In Python", _code(told.python)),
            section("On the command line", _code(told.example)),
        ]


def _sources(told: MethodDescription) -> Html | None:
    facts: dict[str, Any] = {}
    if told.paper:
        facts["paper"] = _linked_paper(told)
    if told.code:
        facts["official code"] = join(_linked_code(told.code))
    if told.requires:
        facts["needs"] = ", ".join(
            f"{package} (pip install 'vision-workbench[{extra}]')" for package, extra in told.requires.items()
        )
    listed = [element("div", element("dt", name), element("dd", text)) for name, text in facts.items()]
    return element("dl", *listed, class_="wb-facts") if listed else None


def _linked_code(code: str) -> Iterator[object]:
    """Repositories as `owner/name (licence), owner/name`: the names lead to GitHub."""
    for index, part in enumerate(code.split(", ")):
        found = _REPOSITORY.fullmatch(part)
        yield ", " if index else ""
        if found:
            yield element("a", found[1], href=f"https://github.com/{found[1]}", rel="noreferrer")
        yield found[2] if found else part


def _linked_paper(told: MethodDescription) -> Html:
    """The citation; the arXiv id in it leads to arXiv."""
    name = f"arXiv:{told.arxiv}"
    before, found, after = told.paper.partition(name)
    if not (told.arxiv and found and _ARXIV.fullmatch(told.arxiv)):
        return element("span", told.paper)
    return join([before, element("a", name, href=f"https://arxiv.org/abs/{told.arxiv}", rel="noreferrer"), after])


def _with_remark(text: str, remark: str, holds: bool) -> str:
    return f"{text} ({remark})" if holds else text


def _default(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> Html | None:
    return section(title, element("div", table_html(columns, rows), class_="wb-card")) if rows else None


def _code(text: str) -> Html:
    return element("div", element("pre", element("code", text)), class_="wb-card")


# ---------------------------------------------------------------------------------------------------------- docstrings


def prose(text: str) -> list[Html]:
    """A docstring as paragraphs, lists and indented code; words between backticks are code."""
    return [_block(lines) for lines in _blocks(text)]


def _blocks(text: str) -> Iterator[list[str]]:
    """Lines that belong together: between empty lines, and where a list begins."""
    block: list[str] = []
    for line in (*text.splitlines(), ""):
        begins_list = line.startswith("- ") and block and not block[0].startswith("- ")
        if block and (not line.strip() or begins_list):
            yield block
            block = []
        if line.strip():
            block.append(line)


def _block(lines: list[str]) -> Html:
    if all(line.startswith("    ") for line in lines):
        return element("pre", element("code", "\n".join(line[4:] for line in lines)))
    if lines[0].startswith("- "):
        items: list[str] = []
        for line in lines:
            if line.startswith("- "):
                items.append(line[2:])
            else:
                items[-1] += f" {line.strip()}"
        return element("ul", *[element("li", inline(item)) for item in items])
    return element("p", inline(" ".join(line.strip() for line in lines)))


def inline(text: str) -> Html:
    """Backticks as code; an odd one stays what it is."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return join([text])
    return join(element("code", part) if index % 2 else part for index, part in enumerate(parts))
