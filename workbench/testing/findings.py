"""The rules of the contract in words, each with how to mend a breach, and a finding: one breach by one method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["RULES", "Finding", "Rule"]


@dataclass(frozen=True)
class Rule:
    """What a method must keep to, and how to mend one that does not."""

    says: str
    mend: str


RULES: Mapping[str, Rule] = {
    # Read off the class.
    "identity": Rule(
        "id is `family.name`, title one line, version a text, and all three agree with the plugin's MethodReference",
        "Set `id`, `title` and `version` on the class and repeat id and title in `workbench_methods`.",
    ),
    "documentation": Rule(
        "the module or the class says what the method tells a practitioner",
        "Write a docstring: one line for a practitioner, the citation, what differs from the paper and why.",
    ),
    "paper": Rule(
        "the class states its paper, or states that it has none",
        "Set `paper = Paper(title=..., authors=..., year=..., arxiv=...)`, or `paper = None` where there is none.",
    ),
    "shell": Rule(
        "the class is made without arguments and implements run and report only",
        "Move the rest into plain functions of the module; keep nothing on the instance.",
    ),
    "parameters": Rule(
        "every parameter has a description, a default and (numbers) a range; parameters survive JSON",
        'Write `probes: int = Field(50, ge=2, le=10_000, description="Hutchinson probe vectors")`.',
    ),
    "key": Rule(
        "another value of a parameter gives another key, so that no run is served in place of another",
        "Leave fields as pydantic writes them: no `exclude`, no serializer that rounds or drops something.",
    ),
    "roles": Rule(
        "every input role is described, named unlike any parameter or option of a run, and refers to roles that exist",
        'Write `inputs = {"data": DataRole("images and labels", {"image": ("sample", "channel", "y", "x")})}`.',
    ),
    "outputs": Rule(
        "every output has a plain name, dims that xarray can select by, a dtype and a description; no name occurs twice",
        'Write `outputs = (Output("score", ("sample",), "float32", "larger = more anomalous"),)`.',
    ),
    "glossary": Rule(
        "names of workbench.schema keep their dims, dtype and meaning",
        "Give the array another name, or the dims, dtype and values that workbench.schema states for this one.",
    ),
    # Seen when it runs.
    "runs": Rule(
        "the method completes on its sample inputs and writes every output that is not optional",
        "Read the error; where the generated inputs do not suit the method, give `inputs` and `params`.",
    ),
    "optional_inputs": Rule(
        "without its optional inputs the method completes, skips or raises an InputError",
        'Ask `inputs.get("role")` and `"variable" in data`; raise InputError where one of several is needed.',
    ),
    "reproducible": Rule(
        "the same seed gives the same arrays, bit for bit on the CPU",
        "Draw from `out.generator(name)` and `out.rng(name)`; keep nothing in module or class variables between runs.",
    ),
    "seed": Rule(
        "another seed runs as well, and the method seeds no global generator",
        "Take seeds from `out.seed`, `out.generator` and `out.rng`; never call torch.manual_seed.",
    ),
    "lazy_data": Rule(
        "data that are read lazily (dask) and a run in a background thread give the same result",
        "Turn variables into numbers with `.values` or `to_tensor`, slice by slice; use no signals.",
    ),
    "report_pure": Rule(
        "report is a pure function of what is stored",
        "Compute in `report` from `result` only: nothing from the instance, no clock, no files, no random numbers.",
    ),
    "report_complete": Rule(
        "the report has a summary, survives JSON, and its metrics are named in plain words",
        "Write a summary sentence somebody would read first; convert numbers with float().",
    ),
    "views": Rule(
        "every view names stored arrays and is drawn by both drawers",
        "Name outputs of the method and their dims in the view; see workbench/report.py for what each view takes.",
    ),
    "global_state": Rule(
        "run leaves the process as it was: working folder, environment, torch and numpy settings, threads, figures",
        "Use context managers (torch.no_grad(), np.errstate()); build figures with Figure(), not pyplot.",
    ),
    "files": Rule(
        "run and report open no files",
        "Take data from `inputs`, write arrays with `out.write`, checkpoints with `out.checkpoint`.",
    ),
    "printing": Rule(
        "run and report print nothing",
        "Use `out.log` for numbers, `out.progress` for messages, `Report.notes` for caveats.",
    ),
    "network": Rule(
        "run and report use no network",
        "Let the user pass models and data as inputs; offer downloads as a data set or model of the plugin.",
    ),
    "inputs_untouched": Rule(
        "the data that were passed are not changed",
        "Copy before writing into an array: `values.copy()`, `tensor.clone()`.",
    ),
    "cancel": Rule(
        "the method notices a cancel within two seconds of computing",
        "Loop with `for batch in out.track(batches)` or call `out.progress(done, total)`; do not catch CancelledError.",
    ),
    "resume": Rule(
        "a run that goes on from its checkpoint gives the result of one that was never interrupted",
        "Put everything into `out.checkpoint` that decides what follows: weights, optimiser, place, states of generators.",
    ),
    "dependency": Rule(
        "without an optional package the module still imports and a run says which package is missing",
        "Name the package in `requires` and import it inside `run`.",
    ),
    "empty": Rule("no samples: a clear error or a skip", "Raise InputError, or call `out.skip(reason)`."),
    "one_sample": Rule(
        "one sample: a result, a clear error or a skip", "Raise InputError, or call `out.skip(reason)`."
    ),
    "odd_size": Rule("odd image sizes: a result, a clear error or a skip", "Pad, crop, or raise InputError."),
    "not_a_number": Rule(
        "NaN in the data: a clear error or a skip", "Leave `allow_nan=False`, or treat NaN as missing."
    ),
    "huge": Rule("values of 1e30: a result, a clear error or a skip", "Compute in float64 or raise InputError."),
    "device": Rule(
        "CPU and GPU agree within tolerance",
        "Create tensors on `out.device`; draw random numbers on the CPU with `out.generator`, then move them.",
    ),
    "dask": Rule(
        "in a worker process the method runs and gives the numbers it gives here",
        "Refer to nothing that cannot be packed (locks, open files, sessions), and read no state of the process.",
    ),
}


@dataclass(frozen=True)
class Finding:
    """One breach: which method, which rule (of `RULES`), what was seen."""

    method: str
    rule: str
    problem: str

    @property
    def mend(self) -> str:
        """How to mend it."""
        return RULES[self.rule].mend

    def __str__(self) -> str:
        return f"{self.method} [{self.rule}] {self.problem}\n    rule: {RULES[self.rule].says}\n    mend: {self.mend}"
