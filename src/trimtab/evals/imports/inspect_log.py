"""Samples of an Inspect eval log in JSON: input, choices, target, and the scorer by which they were judged.

Source: the log format and the built-in scorers in Inspect AI's documentation.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from trimtab.evals.imports.draft import Draft, conversation

_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_JUDGED: Final = ("model_graded_qa", "model_graded_fact")


def read(document: dict[str, Any], path: Path) -> Draft:
    """The draft of a log; samples that were judged in another way than Trimtab can are noted."""
    draft = Draft("an Inspect log", str(document["eval"].get("task") or path.stem))
    samples = document.get("samples")
    if not isinstance(samples, list):
        draft.skip("samples: are not in the log; `inspect log dump FILE` writes them too")
        return draft
    draft.skip("the solver's own prompts and tools are left out; items ask what the dataset asks")
    for number, sample in enumerate(samples, 1):
        place = f"sample {sample.get('id', number) if isinstance(sample, dict) else number}"
        if not isinstance(sample, dict):
            draft.skip(f"{place}: is no object")
        elif sample.get("epoch", 1) == 1:
            _sample(draft, place, str(sample.get("id", number)), sample)
    return draft


def _sample(draft: Draft, place: str, identity: str, sample: dict[str, Any]) -> None:
    target, choices, given = sample.get("target"), sample.get("choices"), sample.get("input")
    asked: dict[str, Any] = {"prompt": given}
    if not isinstance(given, str) or not given.strip():
        messages = conversation(given)
        if messages is None:
            draft.skip(f"{place}: its input is no text, or has messages with other things than text")
            return
        asked = {"messages": messages}
    for name in _scorers(sample):
        if name == "choice" and isinstance(choices, list) and "prompt" in asked:
            asked = {"prompt": _with_choices(str(given), choices)}
        scoring = _scoring(name, target, choices)
        if scoring is None:
            draft.skip(f"{place}: was judged by {name}, which has no counterpart")
        else:
            draft.add(place, identity, asked, scoring)


def _scorers(sample: dict[str, Any]) -> list[str]:
    scores = sample.get("scores")
    if isinstance(scores, dict) and scores:
        return list(scores)
    return ["choice"] if sample.get("choices") else ["match"]


def _with_choices(question: str, choices: list[Any]) -> str:
    listed = "\n".join(f"{letter}) {choice}" for letter, choice in zip(_LETTERS, choices, strict=False))
    return f"{question}\n\n{listed}\n\nAnswer with the letter alone."


def _scoring(name: str, target: Any, choices: Any) -> dict[str, Any] | None:
    listed = target if isinstance(target, list) else [target]
    targets = [one for one in listed if isinstance(one, str) and one.strip()]
    if not targets:
        return {"scorer": "judge"} if name in _JUDGED else None
    whole: Any = targets[0] if len(targets) == 1 else targets
    either = "|".join(re.escape(one.strip()) for one in targets)
    if name == "match":  # the target at the end of the answer
        return {"scorer": "regex", "reference": rf"(?<!\w)(?:{either})\W*\Z", "options": {"ignore_case": True}}
    if name == "includes":
        return {"scorer": "contains", "reference": whole, "options": {"mode": "any"}}
    if name == "exact":
        return {"scorer": "normalised", "reference": whole}
    if name == "choice" and isinstance(choices, list) and len(targets) == 1:
        letters = dict(zip(_LETTERS, (str(choice) for choice in choices), strict=False))
        return {"scorer": "one_of", "reference": targets[0].strip(), "options": {"choices": letters}}
    if name in _JUDGED:
        return {"scorer": "judge", "reference": whole}
    return None
