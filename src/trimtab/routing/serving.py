"""A trained router at work: what it expects of one prompt, and of one answer to it."""

from __future__ import annotations

import numpy as np

from trimtab.routing import acceptance, stored
from trimtab.routing.acceptance import Acceptance
from trimtab.routing.data import Answer
from trimtab.routing.predictor import Embeds, Predictor
from trimtab.routing.router import Router


class Serving:
    """A router's models, ready to be asked. Safe to call from several threads."""

    def __init__(self, router: Router) -> None:
        """Raises StoreError for models that are damaged, or that another version of Trimtab wrote."""
        self._predictor = stored.loads(router.predictor, Predictor)
        self._acceptance = stored.loads(router.acceptance, Acceptance) if router.acceptance else None

    @property
    def reads_answers(self) -> bool:
        """Whether it learned from answers; without, `after` counts signs that need no learning."""
        return self._acceptance is not None

    def gain(self, prompt: str, embedder: Embeds) -> tuple[float, bool]:
        """The strong model's expected gain (-1 to 1), and whether the prompt is far from all that was learned from.

        Raises BadRequest for an embedder of other dimensions than the one fitted to.
        """
        found = self._predictor.score(prompt, embedder)
        return found.gain, found.far

    def after(self, prompt: str, answer: str, gain: float, second: str | None = None) -> float:
        """The strong model's expected gain over this answer; `gain` is the prompt's.

        `second` is a second cheap model's answer. A router that learned from no answers counts warnings instead, from 0
        to 1, and with a `second` to 3 (`acceptance.rule`).
        """
        given = [Answer(text=answer, chars=len(answer))]
        others = None if second is None else [Answer(text=second, chars=len(second))]
        if self._acceptance is None:
            return float(acceptance.rule(given, others)[0])
        return float(self._acceptance.estimates([prompt], given, np.array([gain]), others)[0])
