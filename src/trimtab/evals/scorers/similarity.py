"""Scorer of meaning: cosine of the accurate embedder between answer and reference."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta, Struct

from trimtab.evals.answers import Answer
from trimtab.evals.item import Item
from trimtab.evals.scorers.base import Flaw, Score, Scorer, check_texts, texts

if TYPE_CHECKING:
    from trimtab.semantic.embed import Embedder

_EXTRA: Final = 'pip install "trimtab[semantic]"'


class Similarity(Struct, frozen=True):
    """Settings of "similarity"."""

    threshold: Annotated[float, Meta(ge=0, le=1, description="a number from 0 to 1")] = 0.8
    graded: bool = False


@lru_cache(1)
def _embedder() -> Embedder:
    """Loaded once, its weights fetched into the user's cache folder the first time. Raises ConfigError."""
    from trimtab.semantic.embed import load_accurate
    from trimtab.wheels import cache_dir

    return load_accurate(cache_dir(os.environ))


def _check(item: Item, settings: Similarity) -> Iterable[Flaw]:
    yield from check_texts(item, settings)
    from trimtab.semantic.embed import missing_packages

    if missing := missing_packages():
        yield "scorer", f'"similarity" needs the packages {", ".join(missing)}: {_EXTRA}'


def _score(item: Item, settings: Similarity, answer: Answer) -> Score:
    if not answer.text.strip():
        return Score(0.0, "says nothing at all")
    wanted = texts(item.reference)
    spoken = [text.encode("utf-8", "replace").decode() for text in (answer.text, *wanted)]
    vectors = _embedder().embed(spoken)
    cosine = max(float(vectors[0] @ other) for other in vectors[1:])
    value = min(1.0, max(0.0, cosine)) if settings.graded else float(cosine >= settings.threshold)
    return Score(value, f"cosine {cosine:.3f}")


SCORERS: Final[dict[str, Scorer]] = {
    "similarity": Scorer(
        "The answer means what the reference says, by the cosine of sentence embeddings (extra semantic).",
        "a text, or a list of texts of which the nearest counts", Similarity,
        {
            "threshold": "the least cosine that is right (default 0.8)",
            "graded": "the score is the cosine itself (default false)",
        },
        _check, _score,
    )
}  # fmt: skip
