"""The stored arrays of a HAWQ run as numpy, with the numbers that several parts of its report need."""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr
from workbench import Result


class Facts:
    """The stored arrays as numpy, and the numbers that several parts of the report need."""

    def __init__(self, result: Result) -> None:
        self.result, self.params = result, result.params
        self.layers = [str(name) for name in result["bits"]["layer"].values]
        self.names = [str(name) for name in result["accuracy"]["solution"].values]
        self.widths = result["weight_error"]["bit"].values.astype(int)
        self.kinds = np.array([str(kind) for kind in result["solution_kind"].values])
        self.accuracy, self.average = self.read("accuracy"), self.read("average_bits")
        self.free = ~self.read("fixed").astype(bool)
        self.full = float(self.read("accuracy_full_precision"))
        self.samples = int(result["label"].sizes["sample"])

    def read(self, name: str) -> np.ndarray:
        """A stored array."""
        return np.asarray(self.result[name].values)

    @property
    def final(self) -> float:
        """Accuracy of the stored model."""
        return (
            float(self.read("finetuned_accuracy")[0])
            if "finetuned_accuracy" in self.result
            else float(self.accuracy[0])
        )

    @property
    def uniform(self) -> int:
        """The uniform solution whose cost is nearest to the budget."""
        cost, limit = self.read("cost"), float(self.read("budget_limit"))
        return min(np.flatnonzero(self.kinds == "uniform").tolist(), key=lambda position: abs(cost[position] - limit))

    def of_kind(self, kind: str) -> np.ndarray:
        """Accuracies of all solutions of a kind."""
        return self.accuracy[self.kinds == kind]

    def rank_correlation(self) -> float:
        """Spearman's coefficient between |lambda| / n and trace / n over layers; NaN for fewer than three."""
        if len(self.layers) < 3:
            return float("nan")
        sharp = np.abs(self.read("eigenvalue")[:, 0]) / self.read("parameter_count")
        return float(spearmanr(sharp, self.read("average_trace")).statistic)

    def relative_error(self) -> np.ndarray:
        """Standard error of each trace relative to its size."""
        mean = np.abs(self.read("trace"))
        return np.divide(self.read("trace_standard_error"), mean, out=np.zeros_like(mean), where=mean > 0)

    def spread(self) -> float:
        """Largest over smallest positive sensitivity."""
        positive = self.read("sensitivity")[self.read("sensitivity") > 0]
        return float(positive.max() / positive.min()) if len(positive) else float("nan")

    def summary(self) -> str:
        """What a colleague would read first."""
        text = (
            f"At {self.average[0]:.2f} bits per weight ({32 / self.average[0]:.1f}x smaller) the model keeps "
            f"{self.final:.1%} accuracy of {self.full:.1%}"
        )
        if "finetuned_accuracy" in self.result:
            text += f" after fine-tuning ({self.accuracy[0]:.1%} before)"
        drawn = self.of_kind("random")
        if len(drawn):
            text += f"; random orders of layers reach {np.median(drawn):.1%} in the median without fine-tuning"
            text += (
                "" if "finetuned_accuracy" in self.result else f", the reversed order {self.of_kind('reversed')[0]:.1%}"
            )
        tuned = self.read("finetuned_accuracy") if "finetuned_accuracy" in self.result else ()
        reached = float(tuned[1]) if len(tuned) > 1 else float(self.accuracy[self.uniform])
        how = " after the same fine-tuning" if len(tuned) > 1 else " without fine-tuning" if len(tuned) else ""
        return text + (
            f"; {self.names[self.uniform]} ({self.average[self.uniform]:.2f} on average) reaches {reached:.1%}{how}."
        )
