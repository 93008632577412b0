"""From a description to branches: which runs a study consists of and how they feed each other. Pure; nothing is loaded."""

from __future__ import annotations

import graphlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.errors import InputError, WorkbenchError
from workbench.execution.inputs import sort_arguments, validate_params
from workbench.execution.points import Each, each, methods_like
from workbench.host import Host
from workbench.method import Method
from workbench.study.description import Choice, Reference, Study, parse

__all__ = ["Branch", "Option", "Plan", "agree", "belongs", "make_plan", "spelled", "variants"]


@dataclass(frozen=True, eq=False)
class Option:
    """One thing that a name or an input may stand for, and which variants it stems from."""

    value: Any
    """A subject, or a branch."""
    variable: str = ""
    passes: Mapping[str, str] = field(default_factory=dict)
    """Per step and choice that it stems from, which variant of it. Two that differ in one of them do not go together."""
    trail: Mapping[str, str] = field(default_factory=dict)
    """What tells it from others, in words: `rounded.store_width` -> `4`; a choice by its own name."""
    seeds: Mapping[str, int] = field(default_factory=dict)
    """Seeds by step, where a step is repeated."""


@dataclass(frozen=True, eq=False)
class Branch:
    """One run of the study: a step, with what is chosen for it."""

    id: str
    step: str
    method: type[Method]
    seed: int
    parameters: Mapping[str, Any]
    inputs: Mapping[str, Option]
    passes: Mapping[str, str]
    trail: Mapping[str, str]
    seeds: Mapping[str, int]

    @property
    def parents(self) -> list[Branch]:
        """Branches whose runs it takes."""
        return [option.value for option in self.inputs.values() if isinstance(option.value, Branch)]

    @property
    def label(self) -> str:
        """The step and what tells it from others of the step."""
        parts = [spelled(name, value) for name, value in self.trail.items()]
        parts += [f"seed {seed} of {step}" for step, seed in self.seeds.items()]
        return self.step + (f" ({', '.join(parts)})" if parts else "")

    def root(self, role: str) -> Any:
        """The subject that an input goes back to, through the data of what it came from; None: it takes no such input."""
        option = self.inputs.get(role)
        if option is None:
            return None
        return option.value.root("data") if isinstance(option.value, Branch) else option.value


def spelled(name: str, value: str) -> str:
    """An entry of a trail for people: `severity 4`; what has a name of its own, or is a word, stands for itself."""
    axis = name.partition(".")[2]
    if axis == "method":
        return value.rpartition(".")[2]
    return f"{axis} {value}" if axis and not value.isidentifier() else value


def agree(first: Mapping[str, str], second: Mapping[str, str]) -> bool:
    """Whether two things stem from the same variant of everything that both stem from."""
    return all(second.get(name, value) == value for name, value in first.items())


def belongs(option: Option, variant: Option, across: str, name: str) -> bool:
    """Whether something (of step or choice `name`) is up- or downstream of a variant of `across`, or the variant itself."""
    return (across in option.passes or name in variant.passes) and agree(option.passes, variant.passes)


@dataclass(frozen=True)
class Plan:
    """All branches of a study, steps in the order in which they can be run."""

    study: Study
    steps: Mapping[str, tuple[Branch, ...]]
    choices: Mapping[str, tuple[Option, ...]]

    @property
    def branches(self) -> Iterator[Branch]:
        """All of them, those upstream first."""
        return itertools.chain.from_iterable(self.steps.values())

    def options(self, name: str) -> tuple[Option, ...]:
        """The branches of a step, or what a choice offers, as options."""
        if name in self.choices:
            return self.choices[name]
        return tuple(_of_branch(branch) for branch in self.steps[name])


def variants(plan: Plan) -> dict[str, tuple[Option, ...]]:
    """What is compared, by label; repetitions with several seeds are one variant."""
    groups: dict[str, tuple[Option, ...]] = {}
    across = plan.study.questions.across
    for option in plan.options(across):
        label = ", ".join(spelled(name, value) for name, value in option.trail.items()) or across
        groups[label] = (*groups.get(label, ()), option)
    return groups


def _of_branch(branch: Branch, variable: str = "") -> Option:
    return Option(branch, variable, {**branch.passes, branch.step: branch.id}, branch.trail, branch.seeds)


def make_plan(study: Study, host: Host) -> Plan:
    """Expand a description.

    Raises:
        InputError: names the step and what is wrong with it: an unknown name, method, role or parameter, a circle, a
            parameter out of range, inputs that never go together.
        UnknownMethodError: there is no such method.
    """
    order = _order(study)
    steps: dict[str, tuple[Branch, ...]] = {}
    choices: dict[str, tuple[Option, ...]] = {}
    for name in order:
        known = Plan(study, steps, choices)
        if name in study.choices:
            choices[name] = tuple(_offered(study.choices[name], name, f"choices.{name}", known))
        else:
            steps[name] = tuple(_branches(name, known, host))
    plan = Plan(study, steps, choices)
    _check_questions(plan)
    return plan


# ------------------------------------------------------------------------------------------------------------ references


def _texts(given: str | Choice) -> list[str]:
    if isinstance(given, str):
        return [given]
    parts = given.values() if isinstance(given, dict) else given
    return [text for part in parts for text in ([part] if isinstance(part, str) else part)]


def _order(study: Study) -> list[str]:
    """Steps and choices, each after what it refers to."""
    graph: dict[str, set[str]] = {}
    entries: list[tuple[str, str, str | Choice]] = [
        (f"choices.{name}", name, choice) for name, choice in study.choices.items()
    ]
    entries += [
        (f"steps.{name}.inputs.{role}", name, given)
        for name, step in study.steps.items()
        for role, given in step.inputs.items()
    ]
    for name in (*study.steps, *study.choices):
        graph[name] = set()
    for where, name, given in entries:
        if not _texts(given):
            raise InputError(where, expected="at least one alternative", got="none")
        for text in _texts(given):
            reference = parse(text, where)
            if isinstance(reference, str):
                continue
            if reference.name not in graph and reference.name not in study.subjects:
                raise _unknown(where, reference.name, [*study.subjects, *graph])
            if reference.alternative and reference.name not in study.choices:
                raise InputError(where, expected=f"${{{reference.name}}}, which is no choice", got=text)
            if reference.variable and reference.name in study.subjects:
                raise InputError(where, expected=f"${{{reference.name}}}, because subjects have no variables", got=text)
            if reference.name in graph:
                graph[name].add(reference.name)
    try:
        return list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        raise InputError(
            "steps", expected="steps that feed one another forwards", got=" <- ".join(error.args[1])
        ) from None


def _unknown(where: str, name: str, known: Sequence[str]) -> InputError:
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return InputError(
        where,
        expected=f"a subject, step or choice ({', '.join(known)})",
        got=repr(name),
        hint=f"Did you mean {close[0]!r}?" if close else "",
    )


def _referred(text: str, where: str, plan: Plan) -> Iterable[Option]:
    reference = parse(text, where)
    if isinstance(reference, Reference) and reference.name not in plan.study.subjects:
        options = plan.options(reference.name)
        if reference.alternative:
            options = tuple(o for o in options if o.trail.get(reference.name) == reference.alternative)
            if not options:
                known = ", ".join(_alternatives(plan.study.choices[reference.name]))
                raise InputError(where, expected=f"an alternative of {reference.name} ({known})", got=text)
        for option in options:
            if not reference.variable:
                yield option
            elif isinstance(option.value, Branch):
                yield Option(option.value, reference.variable, option.passes, option.trail, option.seeds)
            else:
                raise InputError(where, expected="a variable of a run", got=f"{text}, which may be a subject")
    else:
        yield Option(plan.study.subjects[reference.name] if isinstance(reference, Reference) else reference)


def _offered(given: Choice, axis: str, where: str, plan: Plan) -> Iterable[Option]:
    """Alternatives, each marked on the axis."""
    for label, texts in _alternatives(given).items():
        options = [option for text in texts for option in _referred(text, where, plan)]
        for number, option in enumerate(options):
            passes = {**option.passes, axis: f"{label}/{number}"}
            yield Option(option.value, option.variable, passes, {axis: label, **option.trail}, option.seeds)


def _alternatives(given: Choice) -> dict[str, list[str]]:
    """What is offered under each name; what has none goes by its reference."""
    if isinstance(given, dict):
        return {label: [texts] if isinstance(texts, str) else texts for label, texts in given.items()}
    return {text.strip().removeprefix("${").removesuffix("}"): [text] for text in given}


# -------------------------------------------------------------------------------------------------------------- branches


def _branches(name: str, plan: Plan, host: Host) -> Iterable[Branch]:
    step, where = plan.study.steps[name], f"steps.{name}"
    try:
        methods = methods_like(host, step.method)
    except InputError as error:
        raise InputError(f"{where}.method", expected=error.expected, got=error.got, hint=error.hint) from None
    except LookupError as error:
        raise InputError(f"{where}.method", expected="a method that is installed", got=str(error)) from None
    for part, given in (("inputs", step.inputs), ("parameters", step.parameters)):
        for item in given:
            known = {key for cls in methods for key in (cls.inputs if part == "inputs" else cls.Params.model_fields)}
            if item not in known:
                listed = ", ".join(sorted(known)) or "none"
                raise InputError(f"{where}.{part}.{item}", expected=f"one of {listed}", got="an unknown name")
    values = {item: _values(value, f"{where}.parameters.{item}") for item, value in step.parameters.items()}
    seeds = [step.seeds] if isinstance(step.seeds, int) else list(dict.fromkeys(step.seeds))
    count = 0
    for method in methods:
        inputs = {
            role: list(_input(given, name, role, plan)) for role, given in step.inputs.items() if role in method.inputs
        }
        joined = list(_joined(inputs))
        if not joined:
            raise InputError(
                f"{where}.inputs", expected="inputs that stem from the same variants", got="none that go together"
            )
        own = {item: choices for item, choices in values.items() if item in method.Params.model_fields}
        several = {f"{name}.method": method.id} if len(methods) > 1 else {}
        for chosen in joined:
            for point in itertools.product(*own.values()):
                parameters = dict(zip(own, point, strict=True))
                _check(method, chosen, parameters, where)
                trail = {key: value for option in chosen.values() for key, value in option.trail.items()} | several
                trail |= {f"{name}.{item}": _text(parameters[item]) for item in own if len(own[item]) > 1}
                for seed in seeds:
                    repeated = {key: value for option in chosen.values() for key, value in option.seeds.items()}
                    repeated |= {name: seed} if len(seeds) > 1 else {}
                    passes = {key: value for option in chosen.values() for key, value in option.passes.items()}
                    yield Branch(f"{name}#{count}", name, method, seed, parameters, chosen, passes, trail, repeated)
                    count += 1


def _input(given: str | Choice, step: str, role: str, plan: Plan) -> Iterable[Option]:
    where = f"steps.{step}.inputs.{role}"
    return _referred(given, where, plan) if isinstance(given, str) else _offered(given, f"{step}.{role}", where, plan)


def _joined(inputs: Mapping[str, list[Option]]) -> Iterator[dict[str, Option]]:
    """One option per role, such that all go together."""
    for options in itertools.product(*inputs.values()):
        if all(agree(a.passes, b.passes) for a, b in itertools.combinations(options, 2)):
            yield dict(zip(inputs, options, strict=True))


def _values(value: Any, where: str) -> tuple[Any, ...]:
    if isinstance(value, Each):
        return value.values
    if isinstance(value, dict) and set(value) == {"each"}:
        if not isinstance(value["each"], list) or not value["each"]:
            raise InputError(where, expected="{each: [...]} with at least one value", got=repr(value)[:200])
        return each(*value["each"]).values
    return (value,)


def _check(method: type[Method], inputs: Mapping[str, Option], parameters: Mapping[str, Any], where: str) -> None:
    try:
        sort_arguments(method, dict.fromkeys(inputs, "") | dict(parameters))
        validate_params(method, parameters)
    except InputError as error:
        part = "inputs" if error.argument in method.inputs else "parameters"
        argument = f"{where}.{part}.{error.argument}"
        raise InputError(argument, expected=error.expected, got=error.got, hint=error.hint) from None
    except WorkbenchError as error:
        raise InputError(where, expected=f"what {method.id} takes", got=str(error)) from None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


# ------------------------------------------------------------------------------------------------------------- questions


def _check_questions(plan: Plan) -> None:
    questions, names = plan.study.questions, [*plan.steps, *plan.choices]
    asked = [("across", questions.across), *((f"metrics.{i}.step", m.step) for i, m in enumerate(questions.metrics))]
    asked += [(f"beside.{i}.step", m.step) for i, m in enumerate(questions.beside)]
    asked += [("disagreement", questions.disagreement)] if questions.disagreement else []
    for part, name in asked:
        if name not in names:
            raise _unknown(f"questions.{part}", name, names)
    known = variants(plan)
    alternatives = {option.trail.get(questions.across) for options in known.values() for option in options}
    if questions.baseline and questions.baseline not in {*known, *alternatives}:
        expected = f"one of the variants of {questions.across} ({'; '.join(known)})"
        raise InputError("questions.baseline", expected=expected, got=repr(questions.baseline))
    labels = [metric.label for metric in questions.metrics if metric.label]
    wanted = [("cost", questions.cost)] if questions.cost else []
    wanted += [("fronts", label) for pair in questions.fronts for label in pair]
    wanted += [(f"metrics.{i}.before", metric.before) for i, metric in enumerate(questions.metrics) if metric.before]
    for part, label in wanted:
        if label not in labels:
            expected = f"the label of a metric of the study ({', '.join(labels) or 'none has one'})"
            raise InputError(f"questions.{part}", expected=expected, got=repr(label))
    for number, metric in enumerate(questions.metrics):
        offered = {name: set[str]() for option in plan.options(metric.step) for name in option.trail}
        for option in plan.options(metric.step):
            for name, value in option.trail.items():
                offered[name].add(value)
        for name, wished in metric.where.items():
            if str(wished) not in offered.get(name, ()):
                there = (
                    "; ".join(f"{key}: {', '.join(sorted(values))}" for key, values in offered.items()) or "no variants"
                )
                raise InputError(
                    f"questions.metrics.{number}.where", expected=f"one of {there}", got=f"{name}: {value}"
                )
