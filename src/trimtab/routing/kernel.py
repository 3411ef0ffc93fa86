"""Kernel ridge regression on landmarks: smooth like a ridge where data is thin, local like neighbours where dense.

The kernel is exp(-GAMMA |a - b|^2). With at most LANDMARKS rows it is exact; beyond, it is Nystroem's approximation, so
fitting takes seconds and a prediction a tenth of a millisecond however many rows there were.
Source: Rasmussen and Williams, "Gaussian Processes for Machine Learning" (2006), section 8.3.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

LANDMARKS: Final = 1024
GAMMA: Final = 0.5  # of rows of squared length 2, as here; choosing it by cross-validation gained nothing on six sets
RIDGES: Final = (3.0, 10.0, 30.0, 100.0)
_JITTER: Final = 1e-6
_TYPICAL: Final = 0.5  # of the fitted rows are nearer to another landmark than the typical distance,
_FAR: Final = 0.975  # and so many nearer than what is called far


class KernelRidge(msgspec.Struct, frozen=True):
    """y = kernel(x, landmarks) @ weights + bias.

    `typical` and `far` are squared distances to the nearest landmark: half of the fitted rows are beyond the first, and
    hardly any beyond the second.
    """

    landmarks: Any  # float32, (m, d)
    squares: Any  # float32, (m,): their squared lengths
    weights: Any  # float32, (m,)
    bias: float
    typical: float
    far: float

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """Predictions of rows x, shape (n, d), and their squared distances to the nearest landmark; both shape (n,)."""
        gaps = _squared_distances(x.astype(np.float32), self.landmarks, self.squares)
        values = np.exp(-GAMMA * gaps) @ self.weights + self.bias
        return values.astype(np.float64), gaps.min(axis=1).astype(np.float64)


class Fit(msgspec.Struct, frozen=True):
    """A model, and what it predicts of each fitted row when that row's fold was left out, shape (n,)."""

    model: KernelRidge
    held_out: Any


def fit(x: Floats, y: Floats, folds: Ints, *, seed: int = 0, most: int = LANDMARKS) -> Fit:
    """Fit rows x (n, d) to y (n,); the ridge is the one with the least squared error on left-out `folds` (n,).

    Deterministic for a seed, which chooses the landmarks, `most` of them at the most. Takes some 4 s for 6,000 rows on
    one core.
    """
    count = len(x)
    chosen = np.random.default_rng(seed).permutation(count)[:most]
    chosen.sort()
    landmarks = x[chosen]
    bias = float(y.mean())
    gaps = _squared_distances(x, landmarks, (landmarks * landmarks).sum(axis=1))
    kernel = np.exp(-GAMMA * gaps)
    inverse = _inverse_root(kernel[chosen])
    held_out, weights = _best_ridge(kernel @ inverse.T, y - bias, folds)
    model = KernelRidge(
        landmarks.astype(np.float32),
        (landmarks * landmarks).sum(axis=1).astype(np.float32),
        (inverse.T @ weights).astype(np.float32),
        bias,
        *_distances(gaps, chosen),
    )
    return Fit(model, held_out + bias)


def _best_ridge(design: Floats, y: Floats, folds: Ints) -> tuple[Floats, Floats]:
    """The best of RIDGES by squared error on left-out folds: its predictions there, its weights on all rows."""
    names = np.unique(folds)
    parts = [(design[folds == name], y[folds == name]) for name in names]
    grams = [rows.T @ rows for rows, _ in parts]
    sides = [rows.T @ values for rows, values in parts]
    whole, side = np.sum(grams, axis=0), np.sum(sides, axis=0)
    best: tuple[float, Floats, float] | None = None
    for ridge in RIDGES:
        held_out = np.empty(len(y))
        for name, (rows, _), gram, own in zip(names, parts, grams, sides, strict=True):
            held_out[folds == name] = rows @ _solve(whole - gram, side - own, ridge)
        error = float(((held_out - y) ** 2).mean())
        if best is None or error < best[0]:
            best = (error, held_out, ridge)
    assert best is not None
    return best[1], _solve(whole, side, best[2])


def _solve(gram: Floats, side: Floats, ridge: float) -> Floats:
    left = gram.copy()
    left[np.diag_indices(len(left))] += ridge
    found: Floats = np.linalg.solve(left, side).astype(np.float64, copy=False)
    return found


def _inverse_root(kernel: Floats) -> Floats:
    """The inverse of the lower Cholesky root, so that kernel rows times its transpose have the kernel as products."""
    padded = kernel + _JITTER * np.eye(len(kernel))
    inverse: Floats = np.linalg.inv(np.linalg.cholesky(padded)).astype(np.float64, copy=False)
    return inverse


def _squared_distances(x: NDArray[Any], y: NDArray[Any], squares: NDArray[Any]) -> NDArray[Any]:
    gaps = (x * x).sum(axis=1)[:, None] + squares - 2 * (x @ y.T)
    found: NDArray[Any] = np.maximum(gaps, 0)
    return found


def _distances(gaps: Floats, chosen: Ints) -> tuple[float, float]:
    """How far fitted rows lie from the nearest landmark but themselves: typically, and at most with few exceptions."""
    others = gaps.copy()
    others[chosen, np.arange(len(chosen))] = np.inf
    typical, far = np.quantile(others.min(axis=1), (_TYPICAL, _FAR))
    return float(typical), float(far)
