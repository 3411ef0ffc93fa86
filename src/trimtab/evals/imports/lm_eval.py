"""Samples that lm-evaluation-harness logs (`--log_samples`): prompt, target, settings of generation.

Source: the samples_*.jsonl files of lm-evaluation-harness 0.4.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

from trimtab.evals.imports.draft import Draft, conversation
from trimtab.evals.scorers.numeric import given

_NAME: Final = re.compile(r"\Asamples_(?P<task>.+?)(?:_\d{4}-\d{2}-\d{2}T.*)?\Z")
_MOST_STOPS: Final = 4  # what OpenAI's API allows
_NUMBER: Final = re.compile(r"####|\A[-+$\s]*[\d.,/]+%?\s*\Z")
_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def read(text: str, path: Path) -> Draft:
    """The draft of a samples file; a document that comes once for each filter is taken once."""
    name = _NAME.match(path.stem)
    draft = Draft("lm-eval", name["task"] if name else path.stem)
    seen: set[str] = set()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            sample = json.loads(line)
        except (ValueError, RecursionError) as error:
            draft.skip(f"line {number}: is no JSON: {error}")
            continue
        calls = _calls(sample.get("arguments")) if isinstance(sample, dict) else []
        if not calls:
            draft.skip(f"line {number}: is no sample of lm-eval: it has no arguments")
            continue
        key = json.dumps([sample.get("doc_id"), calls])
        if key not in seen:
            seen.add(key)
            _sample(draft, number, sample, calls)
    return draft


def _calls(arguments: Any) -> list[list[Any]]:
    """The calls that were made for a document; newer files have them as tables, older ones as lists."""
    if isinstance(arguments, dict):
        arguments = [list(call.values()) for call in arguments.values() if isinstance(call, dict)]
    if not isinstance(arguments, list):
        return []
    return [call for call in arguments if isinstance(call, list) and call and isinstance(call[0], str)]


def _sample(draft: Draft, number: int, sample: dict[str, Any], calls: list[list[Any]]) -> None:
    place, identity = f"line {number}", f"doc-{sample.get('doc_id', number)}"
    settings = calls[0][1] if len(calls[0]) > 1 else {}
    if isinstance(settings, dict):
        _generated(draft, place, identity, sample, calls[0][0], settings)
    elif len(calls) > 1 and all(len(call) > 1 and isinstance(call[1], str) for call in calls):
        _chosen(draft, place, identity, sample, calls)
    else:
        draft.skip(f"{place}: asks for a likelihood, which an answer does not show")


def _generated(
    draft: Draft, place: str, identity: str, sample: dict[str, Any], prompt: str, settings: dict[str, Any]
) -> None:  # fmt: skip
    target = sample.get("target")
    if isinstance(target, int | float) and not isinstance(target, bool):
        target = str(target)
    if isinstance(target, list) and not all(isinstance(one, str) for one in target):
        target = None
    if not target or not isinstance(target, str | list):
        draft.skip(f"{place}: has no target that is a text")
        return
    request = _request(draft, settings)
    messages = conversation(prompt)
    asked: dict[str, Any] = {"messages": messages} if messages else {"prompt": prompt}
    if request:
        asked["request"] = request
    number = given(target) if isinstance(target, str) and _NUMBER.search(target) else None
    if number is not None:
        draft.add(place, identity, asked, {"scorer": "numeric", "reference": number.values[0]})
    else:
        wanted = target.strip() if isinstance(target, str) else target
        draft.add(place, identity, asked, {"scorer": "normalised", "reference": wanted})


def _request(draft: Draft, settings: dict[str, Any]) -> dict[str, Any]:
    request: dict[str, Any] = {}
    for key, value in settings.items():
        if key == "until":
            listed = value if isinstance(value, list) else [value]
            stops = [one for one in listed if isinstance(one, str) and one]
            if len(stops) > _MOST_STOPS:
                draft.skip(f"until: only the first {_MOST_STOPS} stop texts are taken over")
            request["stop"] = stops[:_MOST_STOPS]
        elif key in ("max_gen_toks", "max_tokens") and isinstance(value, int):
            request["max_tokens"] = value
        elif key in ("temperature", "top_p") and isinstance(value, int | float):
            request[key] = value
        elif key != "do_sample":
            draft.skip(f"{key}: a setting of generation that is left out")
    if settings.get("do_sample") is False:
        request["temperature"] = 0
    return request


def _chosen(draft: Draft, place: str, identity: str, sample: dict[str, Any], calls: list[list[Any]]) -> None:
    """A multiple choice that was judged by likelihoods, asked with letters."""
    target = sample.get("target")
    index = int(target) if isinstance(target, int) or (isinstance(target, str) and target.isdigit()) else -1
    choices = [call[1].strip() for call in calls]
    if not 0 <= index < len(choices) <= len(_LETTERS) or len({call[0] for call in calls}) > 1:
        draft.skip(f"{place}: its choices do not share one question, or its target is none of them")
        return
    draft.skip("multiple choice was judged by likelihoods; items ask for the letter instead, so figures will differ")
    letters = dict(zip(_LETTERS, choices, strict=False))
    listed = "\n".join(f"{letter}) {choice}" for letter, choice in letters.items())
    prompt = f"{calls[0][0].rstrip()}\n\n{listed}\n\nAnswer with the letter alone."
    scoring = {"scorer": "one_of", "reference": _LETTERS[index], "options": {"choices": letters}}
    draft.add(place, identity, {"prompt": prompt, "request": {"max_tokens": 8}}, scoring)
