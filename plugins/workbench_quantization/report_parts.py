"""What reports of this family share: arrays of a result, accuracies with the interval of their sample, what was left out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from workbench import Metric, Result
from workbench.toolkit import wilson_interval


def values(result: Result, name: str) -> np.ndarray:
    """A stored output in memory."""
    return np.asarray(result[name].values)


def listed(words: Sequence[str]) -> str:
    """`8, 6 and 4`; at least one word."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def share_interval(share: float, count: int) -> tuple[float, float]:
    """95 % Wilson interval of a share of `count` images."""
    low, high = wilson_interval(round(share * count), count)
    return float(low), float(high)


def resolution(share: float, count: int) -> float:
    """Half the width of that interval: differences below it are within sampling error."""
    low, high = share_interval(share, count)
    return (high - low) / 2


def accuracy_metric(name: str, accuracy: float, count: int, description: str) -> Metric:
    """An accuracy on `count` images, with its interval."""
    return Metric(
        name=name,
        value=accuracy,
        direction="higher",
        interval=share_interval(accuracy, count),
        description=description,
    )


def damping_note(result: Result, asked: float, *names: str) -> list[str]:
    """What GPTQ had to damp more than it was asked to, from outputs over the dim `layer`; empty where it was nothing."""
    used: dict[str, float] = {}
    for name in names:
        if name not in result:  # runs of before it was stored
            continue
        found = result[name]
        highest = np.nanmax(
            np.where(np.isnan(found.values), 0.0, found.values).reshape(found.sizes["layer"], -1), axis=1
        )
        for layer, share in zip(map(str, found["layer"].values), highest.tolist(), strict=True):
            used[layer] = max(share, used.get(layer, 0.0))
    raised = [(layer, share) for layer, share in used.items() if share > asked * (1 + 1e-9)]
    if not raised:
        return []
    told = ", ".join(f"{layer} ({share:.2g})" for layer, share in raised[:20])
    more = f" and {len(raised) - 20} more" if len(raised) > 20 else ""
    return [
        f"GPTQ damped {len(raised)} of {len(used)} layers by more than the {asked:g} asked for, since H of the inputs shown is "
        f"singular: {told}{more}. The more, the closer to rounding to nearest; more varied calibration samples help."
    ]


def kept_note(result: Result, name: str = "unquantised_reason", most: int = 20) -> list[str]:
    """Which weights stay in full precision and why, as a note; none where everything was taken."""
    left = reasons(result, name)
    if not left:
        return []
    more = f" and {len(left) - most} more" if len(left) > most else ""
    return [f"Left in full precision: {', '.join(f'{weight} ({why})' for weight, why in left[:most])}{more}."]


def reasons(result: Result, name: str) -> list[tuple[str, str]]:
    """(parameter, why it was left as it was) of an output over the dim `parameter`; empty where everything was taken."""
    if name not in result:
        return []
    found = result[name]
    return [(str(p), str(why)) for p, why in zip(found["parameter"].values, found.values, strict=True)]
