"""Samples that the tests of recalibrators share: logits that are off in a known way, and stored outputs of classifiers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax
from workbench.toolkit import negative_log_likelihood

from workbench_calibration.samples import log_probability

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "classifier_outputs"
stored_outputs = pytest.mark.skipif(
    not DATA.is_dir(), reason="the stored classifier outputs are not beside this repository"
)


def skewed(samples=800, classes=4, seed=0):
    """Logits whose classes are off by different scales and shifts, and labels drawn from the true ones."""
    rng = np.random.default_rng(seed)
    true = 1.5 * rng.standard_normal((samples, classes))
    label = (rng.random((samples, 1)) > softmax(true, axis=1).cumsum(axis=1)).sum(axis=1).clip(max=classes - 1)
    scale, shift = np.linspace(1.2, 3, classes), np.linspace(-1, 1, classes)
    return torch.as_tensor(true * scale + shift), torch.as_tensor(label)


def stored(file):
    """Fit (even) and report (odd) rows of stored classifier outputs: logits, labels, twice."""
    with np.load(DATA / f"{file}.npz") as arrays:
        logit, _ = log_probability(torch.as_tensor(arrays["predictions"].astype(np.float64)))
        label = torch.as_tensor(arrays["ground_truth"].reshape(-1).astype(np.int64))
    return logit[::2], label[::2], logit[1::2], label[1::2]


def likelihood(calibrate, logit, label):
    """Mean negative log likelihood of calibrated logits."""
    return negative_log_likelihood(calibrate(logit).numpy(), label.numpy())
