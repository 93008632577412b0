"""Data of tests of recalibrators."""

import numpy as np
import torch
import xarray as xr
from scipy.special import softmax


def overconfident(samples=600, classes=5, temperature=2.0, seed=0):
    """Logits that are calibrated at `temperature`, and labels drawn accordingly."""
    rng = np.random.default_rng(seed)
    logit = 3.0 * rng.standard_normal((samples, classes))
    label = (rng.random((samples, 1)) > softmax(logit / temperature, axis=1).cumsum(axis=1)).sum(axis=1)
    return logit, np.minimum(label, classes - 1)


def dataset(scores, label, name="logit"):
    return xr.Dataset({name: (("sample", "class"), scores), "label": ("sample", label)})


def tensors(*arrays):
    return tuple(torch.as_tensor(array) for array in arrays)
