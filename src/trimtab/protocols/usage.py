"""Token accounting: providers' usage objects to disjoint classes and back.

A class is believed only as far as its total holds it, so that the sum of the classes is always the provider's own
total and nothing is counted twice:

* Missing, null, negative or non-numeric counts are 0.
* A part larger than what is left of its whole (say more cached tokens than prompt tokens) is not believed: it counts
  as plain input or output, the dearer reading, never less.
* OpenAI shape: the provider's total is `total_tokens` where it exceeds prompt + completion, else their sum. The surplus
  is reasoning that the provider left out of `completion_tokens`, or cached tokens left out of `prompt_tokens` when it
  equals just those.
* Anthropic shape: `input_tokens` excludes the cache classes; the cache-write total may lack its breakdown by lifetime,
  then the rest counts as 5-minute writes. OpenAI's cache writes have no lifetime and count as 5-minute ones too.

Source: the `usage` objects of the openai and anthropic SDKs' types.
"""

from __future__ import annotations

from typing import Any

import msgspec

from trimtab.types import Usage


def _count(value: Any) -> int:
    """A token count, 0 for anything that is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e15:
        return 0
    return int(value)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _fits(part: int, whole: int) -> int:
    """The part if it fits into the whole, else 0: then it is not believed."""
    return part if part <= whole else 0


def openai_usage(obj: dict[str, Any]) -> Usage:
    """Token classes of an OpenAI-shaped usage object."""
    prompt, completion = _count(obj.get("prompt_tokens")), _count(obj.get("completion_tokens"))
    details_in = _object(obj.get("prompt_tokens_details"))
    details_out = _object(obj.get("completion_tokens_details"))
    cached = _count(details_in.get("cached_tokens")) or _count(obj.get("prompt_cache_hit_tokens"))
    written = _count(details_in.get("cache_write_tokens")) or _count(obj.get("cache_creation_input_tokens"))
    reasoning = _count(details_out.get("reasoning_tokens"))
    surplus = max(_count(obj.get("total_tokens")) - prompt - completion, 0)
    if surplus and surplus != reasoning and surplus == cached + written:
        prompt += surplus
    elif surplus:
        completion += surplus
        reasoning = surplus if reasoning in (0, surplus) else reasoning + surplus

    cached = _fits(cached, prompt)
    written = _fits(written, prompt - cached)
    audio_in = _fits(_count(details_in.get("audio_tokens")), prompt - cached - written)
    reasoning = _fits(reasoning, completion)
    audio_out = _fits(_count(details_out.get("audio_tokens")), completion - reasoning)
    return Usage(
        input=prompt - cached - written - audio_in,
        cache_read=cached,
        cache_write_5m=written,
        input_audio=audio_in,
        output=completion - reasoning - audio_out,
        reasoning=reasoning,
        output_audio=audio_out,
    )


class _DetailsIn(msgspec.Struct, frozen=True, gc=False):
    cached_tokens: int = 0
    audio_tokens: int = 0
    cache_write_tokens: int = 0


class _DetailsOut(msgspec.Struct, frozen=True, gc=False):
    reasoning_tokens: int = 0
    audio_tokens: int = 0


class _PlainUsage(msgspec.Struct, frozen=True, gc=False):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _DetailsIn = _DetailsIn()
    completion_tokens_details: _DetailsOut = _DetailsOut()
    prompt_cache_hit_tokens: int = 0
    cache_creation_input_tokens: int = 0


_PLAIN = msgspec.json.Decoder(_PlainUsage)


def read_openai_usage(raw: msgspec.Raw) -> Usage | None:
    """As `openai_usage`, from the object's JSON; None where it is no object. Usual ones cost 2 us instead of 10."""
    try:
        plain = _PLAIN.decode(raw)
    except msgspec.ValidationError:
        obj = msgspec.json.decode(raw)
        return openai_usage(obj) if obj and isinstance(obj, dict) else None
    prompt, completion = plain.prompt_tokens, plain.completion_tokens
    details_in, details_out = plain.prompt_tokens_details, plain.completion_tokens_details
    cached, reasoning = details_in.cached_tokens, details_out.reasoning_tokens
    if (
        0 <= cached <= prompt < 1 << 40
        and 0 <= reasoning <= completion < 1 << 40
        and plain.total_tokens == prompt + completion
        and details_in.audio_tokens == details_out.audio_tokens == details_in.cache_write_tokens == 0
        and plain.prompt_cache_hit_tokens == plain.cache_creation_input_tokens == 0
    ):
        return Usage(input=prompt - cached, cache_read=cached, output=completion - reasoning, reasoning=reasoning)
    return openai_usage(msgspec.json.decode(raw))


def anthropic_usage(obj: dict[str, Any]) -> Usage:
    """Token classes of an Anthropic usage object (merged, if it comes from a stream)."""
    breakdown = _object(obj.get("cache_creation"))
    hour = _count(breakdown.get("ephemeral_1h_input_tokens"))
    minutes = _count(breakdown.get("ephemeral_5m_input_tokens"))
    unsplit = max(_count(obj.get("cache_creation_input_tokens")) - hour - minutes, 0)
    output = _count(obj.get("output_tokens"))
    thinking = _fits(_count(_object(obj.get("output_tokens_details")).get("thinking_tokens")), output)
    return Usage(
        input=_count(obj.get("input_tokens")),
        cache_read=_count(obj.get("cache_read_input_tokens")),
        cache_write_5m=minutes + unsplit,
        cache_write_1h=hour,
        output=output - thinking,
        reasoning=thinking,
    )


def merge_usage(seen: dict[str, Any], update: dict[str, Any]) -> None:
    """Merge a later Anthropic usage object into the former: counts are cumulative, so null and 0 never erase one."""
    for key, value in update.items():
        if isinstance(value, dict) and isinstance(seen.get(key), dict):
            seen[key] = dict(seen[key])
            merge_usage(seen[key], value)
        elif value or key not in seen:
            seen[key] = value


def openai_usage_object(usage: Usage) -> dict[str, Any]:
    """An OpenAI usage object whose totals contain every class."""
    details_in = {"cached_tokens": usage.cache_read, "audio_tokens": usage.input_audio}
    if written := usage.cache_write_5m + usage.cache_write_1h:
        details_in["cache_write_tokens"] = written
    return {
        "prompt_tokens": usage.input_total,
        "completion_tokens": usage.output_total,
        "total_tokens": usage.total,
        "prompt_tokens_details": details_in,
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning, "audio_tokens": usage.output_audio},
    }


def anthropic_usage_object(usage: Usage) -> dict[str, Any]:
    """An Anthropic usage object; audio, which it has no word for, counts as plain input and output."""
    obj: dict[str, Any] = {
        "input_tokens": usage.input + usage.input_audio,
        "cache_creation_input_tokens": usage.cache_write_5m + usage.cache_write_1h,
        "cache_read_input_tokens": usage.cache_read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write_5m,
            "ephemeral_1h_input_tokens": usage.cache_write_1h,
        },
        "output_tokens": usage.output_total,
    }
    if usage.reasoning:
        obj["output_tokens_details"] = {"thinking_tokens": usage.reasoning}
    return obj
