"""A settled request as OpenTelemetry spans: one for the request, one for each upstream call and application's stage.

    <application's span>                    if the client sent a traceparent
      POST /v1/chat/completions   SERVER    arrival to the last byte; trimtab.* says what was decided and what it cost
        retrieval                 INTERNAL  stages that the application said it had before the call
        chat gpt-4o-mini          CLIENT    each upstream call; gen_ai.* with the tokens, so that no token counts twice

Ids follow from the request's id (`trace_context`), so an upstream that traces has our span as its parent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

import trimtab
from trimtab import trace_context
from trimtab.ledger import LedgerEntry
from trimtab.prices import Money
from trimtab.telemetry import otel_names as names
from trimtab.types import AttemptRecord, End, Record

SCOPE: Final = InstrumentationScope("trimtab", trimtab.__version__, names.SCHEMA_URL)
_SHORTEST_STAGE_S: Final = 0.001  # the ledger has the others; here each costs 3 us
_FAILED: Final = (End.ERROR, End.TIMEOUT, End.CUT, End.INTERRUPTED)


def keeps(record: Record, sample: float, slow_s: float) -> bool:
    """Whether the request's spans are sent: what the application decided, else `sample` of all traces by their id.

    Failed and slow ones are always kept. Traces are chosen as the SDKs' TraceIdRatioBased does, so services agree.
    """
    if record.end in _FAILED or record.total_s >= slow_s or record.status >= 500:
        return True
    decided = trace_context.sampled(record.trace)
    if decided is not None:
        return decided
    return int(trace_context.trace_id("", record.id)[16:], 16) < sample * 2**64


def spans(entry: LedgerEntry, resource: Resource) -> Iterator[ReadableSpan]:
    """The request's spans, its own first."""
    r = entry.record
    trace_id = trace_context.trace_id(r.trace, r.id)
    own = _context(trace_id, trace_context.span_id(r.id))
    parent_id = trace_context.parent_id(r.trace)
    path, operation = names.path_of(r), names.operation(r)
    yield ReadableSpan(
        f"POST {path}" if operation != "other" else "passed through",
        own,
        _context(trace_id, parent_id, remote=True) if parent_id else None,
        resource,
        _known(_request_attributes(entry, path, operation)),
        kind=SpanKind.SERVER,
        status=_status(r.end, r.error),
        start_time=_ns(r.at),
        end_time=_ns(r.at + r.total_s),
        instrumentation_scope=SCOPE,
    )
    began_at = r.at - sum(r.app_stages.values())
    for name, took_s in r.app_stages.items():
        yield ReadableSpan(
            name,
            _context(trace_id, trace_context.span_id(f"{r.id}/{name}")),
            own,
            resource,
            {"trimtab.stage": "application"},
            kind=SpanKind.INTERNAL,
            start_time=_ns(began_at),
            end_time=_ns(began_at + took_s),
            instrumentation_scope=SCOPE,
        )
        began_at += took_s
    for attempt, money in zip(r.attempts, entry.attempts, strict=True):
        yield ReadableSpan(
            f"{operation} {attempt.model}".rstrip(),
            _context(trace_id, trace_context.span_id(r.id, attempt.n)),
            own,
            resource,
            _known(_call_attributes(r, attempt, money, operation)),
            kind=SpanKind.CLIENT,
            status=_status(attempt.end, attempt.error),
            start_time=_ns(r.at + attempt.start_s),
            end_time=_ns(r.at + attempt.end_s),
            instrumentation_scope=SCOPE,
        )


def _request_attributes(entry: LedgerEntry, path: str, operation: str) -> dict[str, Any]:
    r, s = entry.record, entry.record.scope
    return {
        names.METHOD: "POST" if operation != "other" else "",
        names.HTTP_ROUTE: path if operation != "other" else "",
        names.PATH: "" if operation != "other" else path,
        names.STATUS: r.status or None,
        names.ERROR: names.error_of(r.end, r.status),
        names.CONVERSATION: s.session,
        "trimtab.request.id": r.id,
        "trimtab.tenant": s.tenant,
        "trimtab.route": s.route,
        "trimtab.user": s.user,
        "trimtab.workflow": s.workflow,
        "trimtab.prompt_version": s.prompt_version,
        "trimtab.model": r.model,
        "trimtab.end": str(r.end),
        "trimtab.cache": r.cache,
        "trimtab.ttft": r.ttft_s,
        "trimtab.cost": _usd(entry.cost_nusd),
        "trimtab.baseline": _usd(entry.baseline_nusd),
        "trimtab.decisions": tuple(f"{d.lever}={d.step} ({d.reason})" for d in r.decisions) or None,
        **{f"trimtab.stage.{name}": took_s for name, took_s in r.stages.items() if took_s >= _SHORTEST_STAGE_S},
    }


def _call_attributes(r: Record, attempt: AttemptRecord, money: Money, operation: str) -> dict[str, Any]:
    u, known = attempt.usage, attempt.usage_source != "none"
    return {
        names.OPERATION: operation,
        names.PROVIDER: names.provider(attempt),
        names.REQUEST_MODEL: attempt.model,
        names.REQUEST_STREAM: r.stream,
        names.RESPONSE_MODEL: attempt.response_model,
        names.FINISH_REASONS: (attempt.finish,) if attempt.finish else None,
        names.FIRST_CHUNK_S: attempt.first_token_s - attempt.start_s if r.stream and attempt.first_token_s else None,
        names.CONVERSATION: r.scope.session,
        names.INPUT_TOKENS: u.input_total if known else None,
        names.OUTPUT_TOKENS: u.output_total if known else None,
        names.CACHE_READ_TOKENS: u.cache_read or None,
        names.CACHE_WRITE_TOKENS: u.cache_write_5m + u.cache_write_1h or None,
        names.REASONING_TOKENS: u.reasoning or None,
        names.STATUS: attempt.status or None,
        names.ERROR: names.error_of(attempt.end, attempt.status),
        "trimtab.engine": attempt.engine,
        "trimtab.purpose": attempt.purpose,
        "trimtab.usage_source": attempt.usage_source if known else "",
        "trimtab.upstream_id": attempt.upstream_id,
        "trimtab.cost": _usd(money.nusd),
    }


def _context(trace_id: str, span_id: str, *, remote: bool = False) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), remote, TraceFlags(TraceFlags.SAMPLED))


def _known(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value not in ("", None)}


def _status(end: str, error: str) -> Status:
    return Status(StatusCode.ERROR, error or end) if end in _FAILED else Status()


def _ns(at: float) -> int:
    return int(at * 1e9)


def _usd(nusd: int | None) -> float | None:
    return None if nusd is None else nusd / 1e9
