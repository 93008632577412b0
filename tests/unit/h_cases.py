"""A classifier that is too sure of itself, for the tests of h-calibration."""

import numpy as np
import xarray as xr
from scipy.special import log_softmax


def overconfident(samples=600, classes=6, sharpness=2.5, seed=0):
    """Logits of a classifier that is calibrated at temperature `sharpness`, and labels drawn accordingly."""
    rng = np.random.default_rng(seed)
    true = 2.0 * rng.standard_normal((samples, classes))
    label = (rng.random((samples, 1)) > np.exp(log_softmax(true, axis=1)).cumsum(axis=1)).sum(axis=1)
    return sharpness * true, np.minimum(label, classes - 1)


def dataset(logit, label):
    """The input of a method."""
    return xr.Dataset({"logit": (("sample", "class"), logit), "label": ("sample", label)})
