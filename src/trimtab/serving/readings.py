"""What an engine says of itself at a moment, in one form for all engines.

vLLM (0.6 and later) says all of it at `/metrics`. llama.cpp counts a request's tokens there only when it ends, and says
nothing of its KV cache; both are in `/slots`, so its reading is made of the two.
"""

from __future__ import annotations

import math
import re
from enum import StrEnum
from typing import Any, Final

import msgspec

from trimtab.errors import UpstreamInvalid
from trimtab.serving.prometheus import Sample, samples


class Kind(StrEnum):
    """An engine whose figures are understood."""

    VLLM = "vllm"
    LLAMA_CPP = "llama_cpp"


class Page(msgspec.Struct, frozen=True):
    """What was fetched: `/metrics` and, of llama.cpp, `/slots` (JSON text; None if it is not served)."""

    at: float  # seconds; only differences count
    metrics: str
    slots: str | None = None


class Total(msgspec.Struct, frozen=True):
    """A duration summed over the requests (or tokens) that had it, since the engine started."""

    seconds: float
    count: float


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """An engine at a moment. Totals count from its start; None is what it does not say.

    `waiting` requests are accepted but have no part of the engine's memory yet: they are before prefill. `slots` is how
    many may run at once. `kv_usage` is the share of the KV cache that running requests hold, what is kept for reuse not
    counted; `kv_fullest` the same of the running request next to its own limit, where each has memory of its own.
    """

    at: float
    kind: Kind
    running: float | None = None
    waiting: float | None = None
    slots: int | None = None
    context_tokens: int | None = None  # of one slot
    kv_usage: float | None = None
    kv_fullest: float | None = None
    preemptions: float | None = None
    prefill_tokens: float | None = None  # computed: without those that were reused
    cached_tokens: float | None = None  # reused from a prefix
    generated_tokens: float | None = None
    draft_tokens: float | None = None
    accepted_tokens: float | None = None
    drafts: float | None = None  # speculative steps
    steps: float | None = None
    queue: Total | None = None  # from arrival to the begin of prefill
    prefill: Total | None = None
    ttft: Total | None = None
    per_token: Total | None = None


# The names differ by release, the newest first. Source: vllm/v1/metrics/loggers.py of 0.10 and 0.32, and its
# "Production metrics" page of 0.6; prometheus_client appends _total to counters.
_VLLM: Final = {
    "running": ("vllm:num_requests_running",),
    "waiting": ("vllm:num_requests_waiting",),
    "kv_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    "preemptions": ("vllm:num_preemptions_total",),
    "prompt": ("vllm:prompt_tokens_total",),
    "computed": ("vllm:prompt_tokens_by_source_total",),
    "cached_tokens": (
        "vllm:prompt_tokens_cached_total",
        "vllm:prefix_cache_hits_total",
        "vllm:gpu_prefix_cache_hits_total",
    ),
    "generated_tokens": ("vllm:generation_tokens_total",),
    "draft_tokens": ("vllm:spec_decode_num_draft_tokens_total",),
    "accepted_tokens": ("vllm:spec_decode_num_accepted_tokens_total",),
    "drafts": ("vllm:spec_decode_num_drafts_total",),
    "steps": ("vllm:iteration_tokens_total_count",),
}
_VLLM_TIMES: Final = {
    "queue": ("vllm:request_queue_time_seconds",),
    "prefill": ("vllm:request_prefill_time_seconds",),
    "ttft": ("vllm:time_to_first_token_seconds",),
    "per_token": ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
}
_COMPUTED: Final = "local_compute"  # the label of prompt tokens that came from no cache
_LLAMA_CPP: Final = {
    "running": ("llamacpp:requests_processing",),
    "waiting": ("llamacpp:requests_deferred",),
    "prefill_tokens": ("llamacpp:prompt_tokens_total",),
    "cached_tokens": ("llamacpp:prompt_tokens_cached_total",),
    "generated_tokens": ("llamacpp:tokens_predicted_total",),
    "draft_tokens": ("llamacpp:spec_decode_num_draft_tokens_total",),
    "accepted_tokens": ("llamacpp:spec_decode_num_accepted_tokens_total",),
    "drafts": ("llamacpp:spec_decode_num_drafts_total",),
    "steps": ("llamacpp:n_decode_total",),
}
_GAUGES_OF_ONE: Final = frozenset(_VLLM["kv_usage"])  # several engines behind one page: the fullest counts
_WANTED: Final = frozenset(
    [name for names in (*_VLLM.values(), *_LLAMA_CPP.values()) for name in names]
    + [f"{name}_{part}" for names in _VLLM_TIMES.values() for name in names for part in ("sum", "count")]
)


def read(page: Page) -> Reading:
    """The reading of a page; the engine's kind is seen from the names of its metrics.

    Raises UpstreamInvalid, naming the line, if it is no page of an engine that is understood.
    """
    found = of_prometheus(page.metrics, page.at)
    return with_slots(found, page.slots) if page.slots is not None and found.kind is Kind.LLAMA_CPP else found


def of_prometheus(text: str, at: float) -> Reading:
    """The reading of `/metrics`. Metrics that are missing, or not a number, are None. Raises UpstreamInvalid."""
    values: dict[str, float] = {}
    for sample in samples(text, _WANTED):
        if not math.isfinite(sample.value) or sample.value < 0:
            raise UpstreamInvalid(f"its metric {sample.name} is {sample.value:g}, which it cannot be")
        _add(values, sample)
    if any(name.startswith("vllm:") for name in values):
        return _vllm(values, at)
    if any(name.startswith("llamacpp:") for name in values):
        fields: dict[str, Any] = {field: _first(values, names) for field, names in _LLAMA_CPP.items()}
        return Reading(at=at, kind=Kind.LLAMA_CPP, **fields)
    raise UpstreamInvalid("its metrics are neither vLLM's (vllm:...) nor llama.cpp's (llamacpp:...)")


def _add(values: dict[str, float], sample: Sample) -> None:
    """Add up what several engines behind one page, or several labels, say of a metric."""
    name, value = sample.name, sample.value
    if sample.labels.get("source", _COMPUTED) != _COMPUTED:
        return
    if name in _GAUGES_OF_ONE:
        values[name] = max(value, values.get(name, 0.0))
    else:
        values[name] = values.get(name, 0.0) + value


def _first(values: dict[str, float], names: tuple[str, ...]) -> float | None:
    return next((values[name] for name in names if name in values), None)


def _vllm(values: dict[str, float], at: float) -> Reading:
    fields: dict[str, Any] = {field: _first(values, names) for field, names in _VLLM.items()}
    prompt, computed = fields.pop("prompt"), fields.pop("computed")
    if computed is None and prompt is not None:  # older: the cached ones are among them
        computed = max(0.0, prompt - (fields["cached_tokens"] or 0.0))
    for field, names in _VLLM_TIMES.items():
        fields[field] = next((total for name in names if (total := _total(values, name)) is not None), None)
    return Reading(at=at, kind=Kind.VLLM, prefill_tokens=computed, **fields)


def _total(values: dict[str, float], name: str) -> Total | None:
    seconds, count = values.get(f"{name}_sum"), values.get(f"{name}_count")
    return None if seconds is None or count is None else Total(seconds, count)


class _Next(msgspec.Struct):
    n_decoded: int = 0


class _Slot(msgspec.Struct):
    n_ctx: int
    is_processing: bool
    n_prompt_tokens: int = 0  # all that it holds: prompt and what was generated
    n_prompt_tokens_processed: int = 0
    next_token: list[_Next] | _Next = []

    @property
    def decoded(self) -> int:
        """Tokens generated for the request that runs in it; older releases have one object, not a list."""
        parts = self.next_token if isinstance(self.next_token, list) else [self.next_token]
        return sum(part.n_decoded for part in parts)


def with_slots(reading: Reading, text: str) -> Reading:
    """A reading of llama.cpp with what its `/slots` says beside. Raises UpstreamInvalid, naming the field.

    The slots are taken to have a context each, as the embedded engine's have. Where they share one (`--kv-unified`),
    each names the whole, so `kv_usage` is too low there, and `kv_fullest` is what to look at.
    """
    try:
        slots = msgspec.json.decode(text, type=list[_Slot])
    except msgspec.DecodeError as error:
        raise UpstreamInvalid(f"its /slots is not what llama.cpp says there: {error}") from None
    busy = [slot for slot in slots if slot.is_processing]
    size = sum(slot.n_ctx for slot in slots)
    return msgspec.structs.replace(
        reading,
        slots=len(slots),
        context_tokens=max((slot.n_ctx for slot in slots), default=None),
        kv_usage=min(1.0, sum(slot.n_prompt_tokens for slot in busy) / size) if size else None,
        kv_fullest=min(1.0, max((slot.n_prompt_tokens / slot.n_ctx for slot in busy if slot.n_ctx), default=0.0)),
        generated_tokens=(reading.generated_tokens or 0.0) + sum(slot.decoded for slot in busy),
    )


def trimmed(page: Page) -> Page:
    """A page without what is not read, for keeping. Raises msgspec.DecodeError if its slots are none."""
    lines = [line for line in page.metrics.splitlines() if re.split(r"[{ ]", line, maxsplit=1)[0] in _WANTED]
    slots = page.slots and msgspec.json.encode(msgspec.json.decode(page.slots, type=list[_Slot])).decode()
    return Page(page.at, "\n".join(lines), slots)
