"""Predicts from a prompt alone how much more the strong model would score than the weak one."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.errors import BadRequest
from trimtab.routing import features, kernel, questions
from trimtab.routing.scaling import Scaling

Floats = NDArray[np.float64]

FEWEST: Final = 20  # prompts to learn from
FOLDS: Final = 5
_BLOCK: Final = 1.0  # weight of the features beside the embedding, whose squared length is 1
SURE: Final = 2.0  # standard errors of skill, before labels of another domain are believed
_MOSTLY: Final = 0.75  # of the prompts; at home it is half


class Embeds(Protocol):
    """What is needed of an embedder (`trimtab.semantic.embed.load_fast`)."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, shape (len(texts), dim)."""
        ...


class Estimates(msgspec.Struct, frozen=True):
    """Arrays of one value a prompt: its expected gain (-1 to 1), and how strange it is to what was learned from.

    `far`: beyond nearly all of it. `unusual`: farther from it than half of it was from the rest.
    """

    gain: Any
    far: Any
    unusual: Any


class Estimate(msgspec.Struct, frozen=True):
    """The expected gain of the strong model (-1 to 1), and whether the prompt is far from all that was learned from."""

    gain: float
    far: bool


class Predictor(msgspec.Struct, frozen=True):
    """A fitted predictor; see `fit`. For a prompt that is far from its data, take the strong model.

    `skill` is the correlation of predicted and true gain on left-out prompts, in standard errors from none.
    """

    scaling: Scaling
    model: kernel.KernelRidge
    rows: int  # learned from
    skill: float

    def estimates(self, prompts: Sequence[str], embedder: Embeds) -> Estimates:
        """What is expected of prompts. Raises BadRequest for vectors of another length than those fitted to."""
        vectors = embedder.embed([features.excerpt(one) for one in prompts])
        if vectors.shape[1] + len(self.scaling.mean) != self.model.landmarks.shape[1]:
            raise BadRequest(
                f"the predictor was fitted to another embedder: this one has {vectors.shape[1]} dimensions",
                param="embedder",
            )
        gain, distance = self.model.predict(_design(vectors, self.scaling.apply(features.matrix(prompts))))
        return Estimates(gain, distance > self.model.far, distance > self.model.typical)

    def score(self, prompt: str, embedder: Embeds) -> Estimate:
        """The estimate for one prompt."""
        one = self.estimates([prompt], embedder)
        return Estimate(float(one.gain[0]), bool(one.far[0]))

    def believed_on(self, traffic: Estimates) -> bool:
        """Whether its order of prompts means anything on traffic that it has no labels of.

        Not if most of that is unusual, nor if it showed no skill at home: carried over to another domain, a router of
        prompts may well be worse than a coin.
        """
        return self.skill > SURE and float(traffic.unusual.mean()) <= _MOSTLY


class Fitted(msgspec.Struct, frozen=True):
    """A predictor, and the gain that it expects of each prompt it was fitted to when that prompt's fold is left out."""

    predictor: Predictor
    held_out: Any  # float64, (n,)


def fit(
    prompts: Sequence[str],
    weak: Floats,
    strong: Floats,
    embedder: Embeds,
    *,
    seed: int = 0,
    landmarks: int = kernel.LANDMARKS,
) -> Fitted:
    """Learn from prompts and both models' scores (0 to 1), shapes (n,).

    Equal questions share a fold. A model of few `landmarks` is small and coarse. Raises BadRequest for fewer than
    FEWEST prompts, and for scores that are not numbers.
    """
    gain = gains(len(prompts), weak, strong)
    raw = features.matrix(prompts)
    scaling = Scaling.of(raw, _BLOCK)
    design = _design(embedder.embed([features.excerpt(one) for one in prompts]), scaling.apply(raw))
    folds = folds_of([questions.key(one) for one in prompts], FOLDS, seed)
    fitted = kernel.fit(design, gain, folds, seed=seed, most=landmarks)
    return Fitted(Predictor(scaling, fitted.model, len(prompts), _skill(fitted.held_out, gain)), fitted.held_out)


def gains(count: int, weak: Floats, strong: Floats) -> Floats:
    """The strong model's scores minus the weak one's, checked. Raises BadRequest as `fit` says."""
    if count < FEWEST:
        raise BadRequest(
            f"{count} prompts to learn from; at least {FEWEST} are needed that both models have answered", param="train"
        )
    gain = np.asarray(strong, dtype=np.float64) - np.asarray(weak, dtype=np.float64)
    if gain.shape != (count,) or not np.isfinite(gain).all():
        raise BadRequest("every prompt to learn from needs a score of the weak and of the strong model", param="train")
    return gain


def folds_of(keys: Sequence[str], count: int, seed: int) -> NDArray[np.intp]:
    """A fold from 0 to count - 1 for each key: equal keys share one, folds are of about one size; (len(keys),)."""
    names = sorted(set(keys), key=lambda name: (zlib.crc32(f"{seed}/{name}".encode()), name))
    fold = {name: n % count for n, name in enumerate(names)}
    return np.array([fold[one] for one in keys], dtype=np.intp)


def _design(vectors: NDArray[np.float32], scaled: Floats) -> Floats:
    return np.hstack((vectors.astype(np.float64), scaled))


def _skill(predicted: Floats, true: Floats) -> float:
    if predicted.std() < 1e-12 or true.std() < 1e-12:
        return 0.0
    correlation = float(np.corrcoef(predicted, true)[0, 1])
    return correlation * float(np.sqrt((len(true) - 2) / max(1 - correlation**2, 1e-12)))
