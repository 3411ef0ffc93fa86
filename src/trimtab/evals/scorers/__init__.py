"""Scorers by name. All but "judge" are functions of the item and the answer alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from trimtab.evals.answers import Answer
from trimtab.evals.item import Item
from trimtab.evals.scorers import choice, code, judge, numeric, refusal, regex, similarity, structured, text, tool_call
from trimtab.evals.scorers.base import Flaw, Score, Scorer
from trimtab.evals.scorers.judge import judge_requests, judge_score

__all__ = ["SCORERS", "Flaw", "Score", "Scorer", "judge_requests", "judge_score", "score"]

SCORERS: Final[Mapping[str, Scorer]] = {
    **text.SCORERS,
    **numeric.SCORERS,
    **regex.SCORERS,
    **choice.SCORERS,
    **structured.SCORERS,
    **tool_call.SCORERS,
    **refusal.SCORERS,
    **similarity.SCORERS,
    **code.SCORERS,
    **judge.SCORERS,
}


def score(item: Item, answer: Answer) -> Score:
    """The score of an answer to an item of a suite that `load` accepted. Never raises for any answer.

    "code" and a few patterns of "regex" wait for a child process, "similarity" loads its model the first time: call it
    in a thread. Raises ValueError for a "judge" item, ConfigError if a model's weights cannot be had, OSError if no
    process can be started.
    """
    scorer = SCORERS[item.scorer]
    try:
        return scorer.score(item, msgspec.convert(item.options, scorer.settings), answer)
    except RecursionError:
        return Score(0.0, "the answer is nested too deeply")
