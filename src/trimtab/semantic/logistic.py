"""Ridge logistic regression with cross-fitted, recalibrated probabilities: tens of features, thousands of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_STEPS: Final = 25
_FOLDS: Final = 5
_TOLERANCE: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Logistic:
    """P(y = 1) = sigmoid((x - mean) / scale @ weights + bias)."""

    mean: Floats
    scale: Floats
    weights: Floats
    bias: float

    def logit(self, x: Floats) -> Floats:
        """Log-odds of rows x, shape (n, d); any n."""
        odds: Floats = (x - self.mean) / self.scale @ self.weights + self.bias
        return odds


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A logistic model whose log-odds are mapped by slope and shift, both found on rows the model had not seen.

    `held_out` are the probabilities of the training rows, each by models that did not see its fold.
    """

    model: Logistic
    slope: float
    shift: float
    held_out: Floats

    def probability(self, x: Floats) -> Floats:
        """P(y = 1) of rows x, shape (n, d)."""
        return sigmoid(self.slope * self.model.logit(x) + self.shift)


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    value: Floats = 1.0 / (1.0 + np.exp(-np.clip(x, -35, 35)))
    return value


def fit(x: Floats, y: Floats, *, ridge: float, row_weights: Floats | None = None) -> Logistic:
    """Newton's method on the penalised likelihood; `ridge` counts per standardised coefficient, the bias is free."""
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    design = np.column_stack(((x - mean) / scale, np.ones(len(x))))
    penalty = np.append(np.full(x.shape[1], ridge), 1e-3)
    weight = np.ones(len(x)) if row_weights is None else row_weights
    beta = np.zeros(design.shape[1])
    share = float(np.clip((weight * y).sum() / weight.sum(), 0.01, 0.99))
    beta[-1] = np.log(share / (1 - share))
    for _ in range(_STEPS):
        p = sigmoid(design @ beta)
        slope = design.T @ (weight * (p - y)) + penalty * beta
        curve = (design * (weight * p * (1 - p))[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.solve(curve, slope)
        step *= min(1.0, 4.0 / max(float(np.abs(step).max()), 1e-12))
        beta -= step
        if float(np.abs(step).max()) < _TOLERANCE:
            break
    return Logistic(mean, scale, beta[:-1], float(beta[-1]))


def fit_calibrated(x: Floats, y: Floats, *, ridge: float, row_weights: Floats | None = None) -> Calibrated:
    """Fit on all rows, and find slope and shift on log-odds of held-out folds (Platt's scaling, shrunk to identity)."""
    weight = np.ones(len(x)) if row_weights is None else row_weights
    folds = np.arange(len(x)) % _FOLDS
    logits = np.empty(len(x))
    for fold in range(_FOLDS):
        seen = folds != fold
        logits[~seen] = fit(x[seen], y[seen], ridge=ridge, row_weights=weight[seen]).logit(x[~seen])
    slope, shift = _platt(logits, y, weight)
    return Calibrated(fit(x, y, ridge=ridge, row_weights=weight), slope, shift, sigmoid(slope * logits + shift))


def _platt(logits: Floats, y: Floats, weight: Floats) -> tuple[float, float]:
    beta = np.array([1.0, 0.0])
    prior = np.array([4.0, 0.5])
    design = np.column_stack((logits, np.ones(len(logits))))
    for _ in range(_STEPS):
        p = sigmoid(design @ beta)
        slope = design.T @ (weight * (p - y)) + prior * (beta - (1.0, 0.0))
        curve = (design * (weight * p * (1 - p))[:, None]).T @ design + np.diag(prior)
        step = np.linalg.solve(curve, slope)
        step *= min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
        beta -= step
        if float(np.abs(step).max()) < _TOLERANCE:
            break
    return float(np.clip(beta[0], 0.2, 1.2)), float(beta[1])
