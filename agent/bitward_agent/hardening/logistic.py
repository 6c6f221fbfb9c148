"""Logistic regression of two classes by Newton's method (iteratively reweighted least squares), with a ridge penalty."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitward_agent.errors import InputError
from bitward_formats.frozen import dataclass

Array = npt.NDArray[np.float64]
_RIDGE = 1.0
_STEPS = 30
_SMALL_STEP = 1e-8


@dataclass(frozen=True, slots=True)
class Classifier:
    """``weights`` [features + 1] of features that are first shifted by ``mean`` and divided by ``scale``; the last is the intercept."""

    mean: Array
    scale: Array
    weights: Array

    def scores(self, features: Array) -> Array:
        """Log-odds of class 1 for features [rows, features]; NaN where a feature is not finite."""
        with np.errstate(invalid="ignore", over="ignore"):
            scores: Array = (features - self.mean) / self.scale @ self.weights[:-1] + self.weights[-1]
            return scores

    def accuracy(self, features: Array, labels: npt.NDArray[np.bool_]) -> float:
        """The share of rows whose class is right. A score that is no number counts as class 0, as an argmax would have it."""
        return float(np.mean((self.scores(features) > 0) == labels))


def fit(features: Array, labels: npt.NDArray[np.bool_]) -> Classifier:
    """Fit a classifier; deterministic.

    Raises:
        InputError: A feature is not finite, or only one class is there.
    """
    if not np.isfinite(features).all():
        raise InputError("the model gives embeddings that are not finite: no classifier can be fitted")
    if labels.all() or not labels.any():
        raise InputError("labelled texts need both classes")
    mean, scale = features.mean(0), features.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    rows = np.hstack([(features - mean) / scale, np.ones((len(features), 1))])
    penalty = np.full(rows.shape[1], _RIDGE)
    penalty[-1] = 1e-6  # the intercept is free, but for what keeps the system regular
    weights = np.zeros(rows.shape[1])
    target = labels.astype(np.float64)
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(-np.clip(rows @ weights, -30, 30)))
        slope = rows.T @ (chance - target) + penalty * weights
        curve = (rows * (chance * (1 - chance))[:, None]).T @ rows + np.diag(penalty)
        step = np.linalg.solve(curve, slope)
        weights -= step
        if np.abs(step).max() < _SMALL_STEP:
            break
    return Classifier(mean, scale, weights)
