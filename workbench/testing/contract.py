"""`MethodContract`: one class to subclass in a plugin's tests, one test per rule of the contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from workbench.method import Method
from workbench.testing.behaviour import BEHAVIOUR, check_behaviour
from workbench.testing.declarations import DECLARATIONS, check_declarations
from workbench.testing.findings import RULES
from workbench.testing.trial import Trial

__all__ = ["MethodContract"]


class MethodContract:
    """Subclass it in a test file, name the class so that pytest collects it, and set `method`.

    class TestMine(MethodContract):
        method = Mine
        params = {"epochs": 2}
    """

    method: ClassVar[type[Method]]
    """The class under test."""
    params: ClassVar[Mapping[str, Any]] = {}
    """Parameters with which a run on the inputs lasts about a second."""
    inputs: ClassVar[Mapping[str, Any]] = {}
    """Role -> a Dataset or a module; roles left out get a generated sample, None leaves an optional role empty."""
    deviations: ClassVar[Mapping[str, str]] = {}
    """Rule -> why this method does not keep it; the test of that rule is skipped and says so."""
    device_tolerance: ClassVar[float] = 1e-2
    """Greatest difference between CPU and GPU, as a share of an array's greatest value."""

    @pytest.fixture(scope="class")
    @classmethod
    def trial(cls, tmp_path_factory: pytest.TempPathFactory) -> Trial:
        """The runs that the tests of this class look at, each made once."""
        return Trial(
            cls.method,
            folder=tmp_path_factory.mktemp("contract") / "store",
            inputs=cls.inputs,
            params=cls.params,
            device_tolerance=cls.device_tolerance,
        )

    @pytest.mark.parametrize("rule", DECLARATIONS)
    def test_declaration(self, rule: str) -> None:
        """The class keeps a rule that can be read off it."""
        self._skip_deviation(rule)
        _fail_with([finding for finding in check_declarations(self.method) if finding.rule == rule])

    @pytest.mark.parametrize("rule", BEHAVIOUR)
    def test_behaviour(self, rule: str, trial: Trial) -> None:
        """The method keeps a rule that shows when it runs."""
        self._skip_deviation(rule)
        if rule not in ("runs", "dependency"):
            if trial.unavailable:
                pytest.skip(trial.unavailable)
            if not trial.completed:
                pytest.skip("the method does not complete; see the test of the rule 'runs'")
        elif rule == "runs" and trial.unavailable:
            pytest.skip(trial.unavailable)
        if rule == "device" and not _has_gpu():
            pytest.skip("there is no GPU here")
        _fail_with(check_behaviour(trial, rule))

    def _skip_deviation(self, rule: str) -> None:
        unknown = sorted(set(self.deviations) - set(RULES))
        assert not unknown, f"deviations names no rule of the contract: {', '.join(unknown)}"
        if rule in self.deviations:
            pytest.skip(f"deviates: {self.deviations[rule]}")


def _fail_with(findings: list[Any]) -> None:
    if findings:
        pytest.fail("\n".join(map(str, findings)), pytrace=False)


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())
