"""A cascade's second look: how much more the strong model would score than the answer that the weak one gave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.routing import answers, features, kernel, predictor, questions
from trimtab.routing.data import Answer
from trimtab.routing.scaling import Scaling

Floats = NDArray[np.float64]

# How much each group of features counts in a distance; the answers' agreement alone as much as all other answer
# features twice.
_OF_ANSWER: Final = 0.5
_OF_PROMPT: Final = 0.5
_OF_AGREEMENT: Final = 1.0
_OF_GAIN: Final = 3.0  # by which the prompt's predicted gain is multiplied: it varies as much as it knows


class Acceptance(msgspec.Struct, frozen=True):
    """A fitted acceptance model; see `fit`. An answer is accepted while its expected gain is below a threshold."""

    answer: Scaling
    prompt: Scaling
    agreement: Scaling | None  # None: no second model
    model: kernel.KernelRidge
    rows: int  # learned from

    def estimates(
        self, prompts: Sequence[str], given: Sequence[Answer], gains: Floats, second: Sequence[Answer] | None = None
    ) -> Floats:
        """Expected gains of the strong model over these answers, shape (len(prompts),).

        `gains` are the predictor's for the prompts. `second` are a second cheap model's answers, if it was fitted with
        such.
        """
        agreed = None if self.agreement is None else answers.agreement(given, second or [Answer()] * len(given))
        raw = (answers.matrix(prompts, given), features.matrix(prompts))
        return self.model.predict(_design(self, *raw, gains, agreed))[0]


class Fitted(msgspec.Struct, frozen=True):
    """An acceptance model, and the gain that it expects of each answer when that prompt's fold is left out."""

    acceptance: Acceptance
    held_out: Any  # float64, (n,)


class Examples(msgspec.Struct, frozen=True):
    """What an acceptance model learns from: a prompt, the weak model's answer, both scores; one of each a row.

    `gains` are the predictor's for each prompt when it had not seen that prompt.
    """

    prompts: Sequence[str]
    answers: Sequence[Answer]
    weak: Any
    strong: Any
    gains: Any
    second: Sequence[Answer] | None = None


def fit(examples: Examples, *, seed: int = 0) -> Fitted:
    """Learn when the strong model beats an answer. Raises BadRequest as `predictor.fit` does."""
    prompts = examples.prompts
    gain = predictor.gains(len(prompts), examples.weak, examples.strong)
    raw = (answers.matrix(prompts, examples.answers), features.matrix(prompts))
    agreed = None if examples.second is None else answers.agreement(examples.answers, examples.second)
    blank = Acceptance(
        Scaling.of(raw[0], _OF_ANSWER),
        Scaling.of(raw[1], _OF_PROMPT),
        None if agreed is None else Scaling.of(agreed[:, None], _OF_AGREEMENT),
        kernel.KernelRidge(None, None, None, 0.0, 0.0, 0.0),
        len(prompts),
    )
    folds = predictor.folds_of([questions.key(one) for one in prompts], predictor.FOLDS, seed)
    fitted = kernel.fit(_design(blank, *raw, examples.gains, agreed), gain, folds, seed=seed)
    return Fitted(msgspec.structs.replace(blank, model=fitted.model), fitted.held_out)


def rule(given: Sequence[Answer], second: Sequence[Answer] | None = None) -> Floats:
    """How little each answer is to be trusted when nothing was learned of such answers, shape (len(given),), 0 to 3.

    A second model's different answer weighs most, then no answer at all, then what looks refused, cut or miscalculated.
    """
    signs = np.array([answers.warning(one) for one in given])
    if second is None:
        return signs
    found: Floats = signs + (1 - answers.agreement(given, second))
    return found


def _design(one: Acceptance, answer: Floats, prompt: Floats, gains: Floats, agreed: Floats | None) -> Floats:
    parts = [one.answer.apply(answer), one.prompt.apply(prompt), _OF_GAIN * np.asarray(gains)[:, None]]
    if one.agreement is not None and agreed is not None:
        parts.append(one.agreement.apply(agreed[:, None]))
    return np.hstack(parts)
