"""One JSON line per request, for whoever collects logs: what the ledger's row says, without prompt or answer."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from trimtab import trace_context
from trimtab.ledger import LedgerEntry
from trimtab.telemetry.otel_names import path_of
from trimtab.telemetry.outlet import Dropped, Outlet


class RequestLog(Outlet[LedgerEntry]):
    """Writes to "stdout", "stderr" or a file, which is opened when this is made (a reload makes it anew)."""

    name = "the request log"
    every_s = 0.5

    def __init__(self, target: str, dropped: Dropped) -> None:
        """Raises OSError for a file that cannot be opened."""
        super().__init__(dropped)
        streams = {"stdout": sys.stdout, "stderr": sys.stderr}
        if target in streams:
            self._fd = os.dup(streams[target].fileno())
        else:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)

    def __call__(self, entries: Sequence[LedgerEntry]) -> None:
        """Queue the lines of rows that the ledger has taken."""
        self.put(entries)

    def send(self, items: list[LedgerEntry]) -> str:
        """Write them."""
        rest = memoryview(b"".join(line(entry) for entry in items))
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        return ""

    def close(self, timeout_s: float = 3.0) -> None:
        """Write what waits, and close the file."""
        super().close(timeout_s)
        os.close(self._fd)


def line(entry: LedgerEntry) -> bytes:
    """The request as a line. Times in milliseconds, money in USD; what is unknown is left out."""
    r, s, u = entry.record, entry.record.scope, entry.usage
    last = r.attempts[-1] if r.attempts else None
    said = {
        "at": datetime.fromtimestamp(r.at, UTC).isoformat(timespec="milliseconds"),
        "id": r.id,
        "trace_id": trace_context.trace_id(r.trace, r.id),
        "tenant": s.tenant,
        "route": s.route,
        "user": s.user,
        "session": s.session,
        "workflow": s.workflow,
        "prompt_version": s.prompt_version,
        "path": path_of(r),
        "model": r.model,
        "stream": r.stream,
        "end": r.end,
        "status": r.status,
        "error": r.error,
        "cache": r.cache,
        "ttft_ms": _ms(r.ttft_s),
        "total_ms": _ms(r.total_s),
        "attempts": len(r.attempts),
        "engine": last.engine if last else "",
        "upstream_model": last.model if last else "",
        "input_tokens": u.input_total,
        "cached_tokens": u.cache_read,
        "output_tokens": u.output_total,
        "usage_source": entry.usage_source,
        "cost_usd": _usd(entry.cost_nusd),
        "saved_usd": _usd(entry.saved_nusd),
    }
    kept = {name: value for name, value in said.items() if value is not None and value != ""}
    return msgspec.json.encode(kept) + b"\n"


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _usd(nusd: int | None) -> float | None:
    return None if nusd is None else nusd / 1e9
