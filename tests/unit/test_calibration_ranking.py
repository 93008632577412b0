"""Claims about all recalibrators on the stored outputs of published classifiers: fit on even rows, judged on odd ones."""

import numpy as np
import pytest
import xarray as xr

from unit.recording_out import check_report, record
from workbench_calibration.baselines import FAST, Baselines
from workbench_calibration.choice import suggestion

FILES = ("lenet-5-cifar-10", "vgg16-cifar-10", "densenet-bc-100-cifar-100", "wideresnet-16-4-cifar-100")


def parts(shared_data, file):
    """Even rows as `fit`, odd rows as `data`."""
    with np.load(shared_data / "classifier_outputs" / f"{file}.npz") as stored:
        p, y = stored["predictions"], stored["ground_truth"].reshape(-1).astype(np.int64)
    return {
        role: xr.Dataset({"probability": (("sample", "class"), p[rows]), "label": ("sample", y[rows])})
        for role, rows in (("fit", slice(0, None, 2)), ("data", slice(1, None, 2)))
    }


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_every_recalibrator_is_ranked_and_the_rule_names_one_of_the_best(shared_data, file):
    """The rule sees the fit rows only; what it names is nearly the best on the rows that it has not seen."""
    _, result = record(Baselines, parts(shared_data, file), methods=FAST)
    check_report(Baselines, result)
    value, change = (
        {str(m): {str(n): float(x) for n, x in zip(result[a]["metric"].values, row.values, strict=True)}
         for m, row in zip(result[a]["recalibrator"].values, result[a], strict=True)}
        for a in ("value", "change_upper")
    )  # fmt: skip
    # what the reference runs say of these files
    assert value["temperature"]["ks_error"] < 0.5 * value["uncalibrated"]["ks_error"]
    assert change["temperature"]["negative_log_likelihood"] < 0
    zeros = value["isotonic_one_vs_rest"]["negative_log_likelihood"]
    assert zeros > value["temperature"]["negative_log_likelihood"]
    # the rule against the ranking
    suggested = str(result["suggested"].values)
    assert suggested == suggestion(dict(zip(value, map(str, result["reason"].values), strict=True)))
    likelihood = {name: row["negative_log_likelihood"] for name, row in value.items()}
    assert likelihood[suggested] <= min(likelihood.values()) + 0.01
    assert value[suggested]["accuracy"] >= value["uncalibrated"]["accuracy"] - 0.005
    rank = dict(zip(value, result["rank"].values, strict=True))
    assert rank[suggested] <= np.median(list(rank.values()))
    assert rank[suggested] < rank["uncalibrated"]
