"""How far the sine of a latent weight is from its sign: closed forms for Laplace-distributed weights.

Latent weights w ~ Laplace(0, b) enter a layer as sin(omega w); binarisation puts gamma * sign(sin(omega w)) in its place. With
u = omega * b, the mean magnitude of a weight in units of 1 / omega,

    E[sin^2]  = 2 u^2 / (1 + 4 u^2),
    E[|sin|]  = u / (1 + u^2) * coth(pi / (2 u)),
    QE(u)     = min over gamma of E[(sin - gamma sign sin)^2] = E[sin^2] - E[|sin|]^2,   at gamma = E[|sin|].

The first follows from the characteristic function of the Laplace distribution, E[cos t w] = 1 / (1 + b^2 t^2); the second
from the integral of the density times |sin| over half periods, a geometric series. QE rises from 0 to its maximum at
u = 0.9549 and falls to 1/2 - 4/pi^2, the value for an evenly spread phase.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar

Float = NDArray[np.float64]

LIMIT = 0.5 - 4 / np.pi**2
"""QE for u -> infinity."""


def mean_square(u: ArrayLike) -> Float:
    """E[sin^2(omega w)], any shape; u >= 0."""
    u = np.asarray(u, dtype=np.float64)
    return 2 * u**2 / (1 + 4 * u**2)


def mean_absolute(u: ArrayLike) -> Float:
    """E[|sin(omega w)|], any shape; u >= 0. It is also the gamma that makes the error smallest."""
    u = np.asarray(u, dtype=np.float64)
    positive = np.where(u > 0, u, 1.0)
    return np.where(u > 0, positive / (1 + positive**2) / np.tanh(np.pi / (2 * positive)), 0.0)


def quantisation_error(u: ArrayLike) -> Float:
    """QE(u), any shape."""
    return mean_square(u) - mean_absolute(u) ** 2


def worst_scale() -> tuple[float, float]:
    """(u, QE) where the error is largest: 0.954882 and 0.102835."""
    found = minimize_scalar(lambda u: -float(quantisation_error(u)), bounds=(0.1, 5.0), method="bounded",
                            options={"xatol": 1e-10})  # fmt: skip
    return float(found.x), -float(found.fun)
