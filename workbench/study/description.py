"""What a study is: subjects, steps that feed each other, choices between them, and the questions to answer.

    name: ship
    subjects: {train: digits(split=train), test: digits(split=test)}
    steps:
      training: {method: training.classifier, inputs: {model: small-cnn, data: "${train}", validation: "${test}"}}
      rounded:
        method: quantization.uniform
        inputs: {model: "${training}", data: "${train}", test: "${test}"}
        parameters: {store_width: {each: [8, 4, 2]}}
      clean: {method: training.evaluation, inputs: {model: "${shipped}", data: "${test}"}}
    choices:
      shipped: {full precision: "${training}", rounded: "${rounded}"}
    questions:
      across: shipped
      baseline: full precision
      metrics: [{step: clean, metric: accuracy}]

`${name}` stands for a subject, a choice, or the run of a step; `${name.variable}` for one array (or one of several models) that
it stored, `${name[alternative]}` for one alternative of a choice. Every other text is a subject as in `bench.run`. Where
something upstream has variants, what takes it has them too. Two inputs go together only where they stem from the same variant
of everything that both stem from.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from workbench.errors import InputError
from workbench.record import valid_study

__all__ = ["Choice", "Metric", "Questions", "Reference", "Step", "Study", "parse", "read_study", "shipped_studies"]

SHIPPED = Path(__file__).parent / "studies"
_NAME = r"[A-Za-z_][A-Za-z0-9_-]*"
_REFERENCE = re.compile(r"\$\{(" + _NAME + r")(?:\[([^\[\]{}$]+)\])?(?:\.([A-Za-z0-9_./-]+))?\}")

Name = Annotated[str, pydantic.Field(pattern=f"^{_NAME}$")]
Seed = Annotated[int, pydantic.Field(ge=0, lt=2**63, strict=True)]
Choice = dict[str, str | list[str]] | list[str]
"""Alternatives: references or subjects, in a mapping with what to call them; several may go by one name."""


class _Data(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class Step(_Data):
    """One or several methods to run on what came before."""

    method: str | Annotated[list[str], pydantic.Field(min_length=1)]
    """An id, a pattern such as `calibration.*`, or several."""
    inputs: dict[str, str | Choice] = {}
    """Per role a reference or a subject; several (a list, or a mapping with names for them) are one variant each."""
    parameters: dict[str, Any] = {}
    """Values; `{each: [...]}` makes one variant of each. With several methods, each gets those it knows."""
    seeds: Seed | Annotated[list[Seed], pydantic.Field(min_length=1)] = 0
    """Several are repetitions: not variants, but means and intervals."""
    question: str = ""


class Metric(_Data):
    """A column of the matrix: a metric in the report of a step's runs."""

    step: str
    metric: str
    label: str = ""
    direction: Literal["higher", "lower"] | None = None
    """Which way is better, where the method does not say."""
    otherwise: float | dict[str, float] | None = None
    """Value where the run has no such metric, e.g. 32 bits for a model that was not quantised; or one for each alternative
    of a choice: `{ResNet-20: 1.1, ResNet-56: 3.4}`."""
    where: dict[str, str | int | float] = {}
    """Which variants of the step to show, by choice or by `step.parameter`: `{shifted.severity: 4}`; others are left out."""
    group: str = ""
    """Columns of one group make a table of their own under this heading."""
    tolerance: Annotated[float, pydantic.Field(ge=0)] = 0.0
    """A significant loss up to this does not count against a variant when the cheapest one without a loss is named."""
    before: str = ""
    """Label of the metric that this one repairs: the conclusions then say by how much."""


class Questions(_Data):
    """What the report answers."""

    across: str
    """The choice or step whose variants are compared: the rows of the matrix."""
    baseline: str = ""
    """The variant with which the others are compared: its label, or an alternative of `across`; where there are several of
    that alternative (one for each network, say), each variant is compared with the one it shares everything else with.
    Default: the first."""
    metrics: Annotated[list[Metric], pydantic.Field(min_length=1)]
    fronts: list[tuple[str, str]] = []
    """Pairs of columns (labels of metrics) between which to choose: Pareto fronts."""
    cost: str = ""
    """The column that says what a variant costs; the conclusion names the cheapest variant without a proven loss."""
    disagreement: str = ""
    """A step with stored logits: samples on which the variants disagree most."""
    beside: list[Metric] = []
    """Numbers of steps that do not stem from the variants, to look at beside the matrix."""


class Study(_Data):
    """A description of a study; `bench.study(study)` has it computed."""

    name: str
    title: str = ""
    subjects: dict[Name, Any] = {}
    """What references may stand for; one without a value must be given when the study is run."""
    steps: Annotated[dict[Name, Step], pydantic.Field(min_length=1)]
    choices: dict[Name, Choice] = {}
    questions: Questions
    notes: list[str] = []
    """Caveats for the report."""

    @pydantic.field_validator("name")
    @classmethod
    def _is_study(cls, name: str) -> str:
        if not valid_study(name):
            raise ValueError("a name such as 'ship' or 'ship/resnet20'")
        return name

    @pydantic.model_validator(mode="after")
    def _distinct(self) -> Study:
        names = [*self.subjects, *self.steps, *self.choices]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{doubled[0]!r} is the name of two things; subjects, steps and choices share their names")
        return self

    def given(self, subjects: Mapping[str, Any]) -> Study:
        """The study with some subjects replaced.

        Raises:
            InputError: one that it does not have, or one without a value that is still missing.
        """
        for name in subjects:
            if name not in self.subjects:
                known = ", ".join(self.subjects) or "none"
                raise InputError(f"subjects.{name}", expected=f"a subject of {self.name} ({known})", got="another name")
        merged = {**self.subjects, **subjects}
        for name, value in merged.items():
            if value is None:
                raise InputError(
                    f"subjects.{name}",
                    expected="a model, data, name or path",
                    got="nothing",
                    hint=f"The study leaves it to you: --subject {name}=..., or bench.study(..., subjects={{{name!r}: ...}}).",
                )
        return self.model_copy(update={"subjects": merged})


class Reference(_Data):
    """`${name}`, `${name.variable}`, or `${name[alternative]}` of a choice."""

    name: str
    variable: str = ""
    alternative: str = ""


def parse(text: str, where: str) -> Reference | str:
    """A reference, or the text itself where it is a subject.

    Args:
        text: what an input says.
        where: place in the description, for messages: `steps.clean.inputs.model`.

    Raises:
        InputError: it has `${` in it and is not a whole reference.
    """
    match = _REFERENCE.fullmatch(text.strip())
    if match is not None:
        return Reference(name=match[1], variable=match[3] or "", alternative=match[2] or "")
    if "${" in text:
        expected = "a whole reference, ${step}, ${step.variable} or ${choice[alternative]}, or a subject without any"
        raise InputError(where, expected=expected, got=repr(text))
    return text


# ---------------------------------------------------------------------------------------------------------------- files


def shipped_studies() -> dict[str, Path]:
    """Studies that come with the workbench, by name (`ship-small`)."""
    return {path.stem.replace("_", "-"): path for path in sorted(SHIPPED.glob("*.yaml"))}


def read_study(source: Study | Mapping[str, Any] | str | os.PathLike[str]) -> Study:
    """A study from a description, a YAML file, or the name of one that comes with the workbench.

    Raises:
        InputError: there is none, it is no YAML, or it says something that no study has; names the place.
    """
    if isinstance(source, Study):
        return source
    if isinstance(source, Mapping):
        return _study(source, "study")
    path = Path(source)
    if not path.exists():
        shipped = shipped_studies()
        if str(source) not in shipped:
            raise InputError(
                "study",
                expected=f"a YAML file, or one of {', '.join(shipped)}",
                got=f"{str(source)!r}, which is neither",
            )
        path = shipped[str(source)]
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError(str(path), expected="a YAML file", got=f"something else: {error}") from None
    if not isinstance(content, dict):
        raise InputError(
            str(path), expected=f"a mapping with {', '.join(Study.model_fields)}", got=type(content).__name__
        )
    return _study(content, str(path))


def _study(content: Mapping[str, Any], where: str) -> Study:
    try:
        return Study(**{str(name): value for name, value in content.items()})
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"] if part not in ("str", "int") and "[" not in str(part))
        if first["type"] == "extra_forbidden":
            raise InputError(place, expected="a part that studies have", got="an unknown name") from None
        message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        got = "nothing" if first["type"] == "missing" else repr(first.get("input"))[:200]
        raise InputError(place or where, expected=message, got=got) from None
