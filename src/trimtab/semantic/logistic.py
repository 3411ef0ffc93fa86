"""Ridge logistic regression with cross-fitted, recalibrated probabilities: tens of features, thousands of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_STEPS: Final = 25
_LONGEST: Final = 4.0  # of a step, so that a bad start does not overshoot
_FOLDS: Final = 5
_TOLERANCE: Final = 1e-4  # of the last step; the error left is about its square


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
    """A logistic model whose log-odds are mapped by slope and shift, both found on rows the model had not seen."""

    model: Logistic
    slope: float
    shift: float

    def probability(self, x: Floats) -> Floats:
        """P(y = 1) of rows x, shape (n, d)."""
        return sigmoid(self.slope * self.model.logit(x) + self.shift)


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    value: Floats = 1.0 / (1.0 + np.exp(-np.clip(x, -35, 35)))
    return value


def fit(
    x: Floats, y: Floats, *, ridge: float, row_weights: Floats | None = None, start: Floats | None = None
) -> Logistic:
    """Newton's method on the penalised likelihood; `ridge` counts per standardised coefficient, the bias is free.

    `start`, shape (d + 1,), are coefficients to begin with, the bias last; a good guess halves the time.
    """
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    design = np.column_stack(((x - mean) / scale, np.ones(len(x))))
    weight = np.ones(len(x)) if row_weights is None else row_weights
    prior = np.append(np.full(x.shape[1], ridge), 1e-3)
    if start is None:
        share = float(np.clip((weight * y).sum() / weight.sum(), 0.01, 0.99))
        start = np.append(np.zeros(x.shape[1]), np.log(share / (1 - share)))
    beta = _newton(design, y, weight, start, prior, np.zeros(len(start)))
    return Logistic(mean, scale, beta[:-1], float(beta[-1]))


def _newton(design: Floats, y: Floats, weight: Floats, start: Floats, prior: Floats, centre: Floats) -> Floats:
    """Coefficients of the likeliest model, each held to its `centre` by `prior`."""
    beta = start.copy()
    for _ in range(_STEPS):
        p = sigmoid(design @ beta)
        slope = design.T @ (weight * (p - y)) + prior * (beta - centre)
        curve = (design * (weight * p * (1 - p))[:, None]).T @ design
        curve[np.diag_indices(len(beta))] += prior
        step = np.linalg.solve(curve, slope)
        size = float(np.abs(step).max())
        beta -= step * min(1.0, _LONGEST / max(size, 1e-12))
        if size < _TOLERANCE:
            break
    return beta


def fit_calibrated(
    x: Floats, y: Floats, *, ridge: float, row_weights: Floats | None = None
) -> tuple[Calibrated, Floats]:
    """Fit on all rows, and find slope and shift on log-odds of held-out folds (Platt's scaling, shrunk to identity).

    Also returns the rows' probabilities, shape (n,), each by a model that did not see its fold.
    """
    weight = np.ones(len(x)) if row_weights is None else row_weights
    model = fit(x, y, ridge=ridge, row_weights=weight)
    start = np.append(model.weights, model.bias)
    folds = np.arange(len(x)) % _FOLDS
    logits = np.empty(len(x))
    for fold in range(_FOLDS):
        seen = folds != fold
        part = fit(x[seen], y[seen], ridge=ridge, row_weights=weight[seen], start=start)
        logits[~seen] = part.logit(x[~seen])
    slope, shift = _platt(logits, y, weight)
    return Calibrated(model, slope, shift), sigmoid(slope * logits + shift)


def _platt(logits: Floats, y: Floats, weight: Floats) -> tuple[float, float]:
    design = np.column_stack((logits, np.ones(len(logits))))
    identity = np.array([1.0, 0.0])
    slope, shift = _newton(design, y, weight, identity, np.array([4.0, 0.5]), identity)
    return float(np.clip(slope, 0.2, 1.2)), float(shift)
