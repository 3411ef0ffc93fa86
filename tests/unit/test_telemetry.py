"""Sampling, series that do not grow without bound, and queues that never block."""

from __future__ import annotations

import threading

import pytest
from test_ingest import PRICES, paid

from trimtab.ledger import settle
from trimtab.telemetry import request_log
from trimtab.telemetry.otel_metrics import OVERFLOW, OtelMetrics
from trimtab.telemetry.otel_spans import keeps
from trimtab.telemetry.outlet import Outlet
from trimtab.types import Scope
from trimtab.wire.intake import Ids


def test_a_share_of_all_traces_is_kept():
    ids = Ids()
    kept = sum(keeps(paid(ids.next()), 0.1, 10.0) for _ in range(20_000))
    assert kept == pytest.approx(2000, rel=0.15)
    assert not any(keeps(paid(ids.next()), 0.0, 10.0) for _ in range(1000))
    assert all(keeps(paid(ids.next()), 1.0, 10.0) for _ in range(1000))


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, False),
        ({"end": "error"}, True),
        ({"end": "cut"}, True),
        ({"end": "refused", "status": 400}, False),
        ({"end": "cancelled"}, False),
        ({"total_s": 10.0}, True),
        ({"trace": f"00-{'ab' * 16}-{'cd' * 8}-01"}, True),
        ({"trace": f"00-{'ab' * 16}-{'cd' * 8}-00", "end": "timeout"}, True),
    ],
)
def test_failed_and_slow_ones_are_kept(changes, kept):
    assert keeps(paid("r", **changes), 0.0, 10.0) is kept


def test_an_application_that_did_not_keep_its_trace_is_followed():
    assert not keeps(paid("r", trace=f"00-{'ab' * 16}-{'cd' * 8}-00"), 1.0, 10.0)


def test_series_are_bounded():
    metrics = OtelMetrics()
    entries = [settle(paid(f"r{n}", scope=Scope("t", route=f"route{n}")), PRICES) for n in range(2500)]
    metrics.add(entries)
    for known in metrics.series().values():
        counts = [series.count for series in known.values()]
        assert (len(counts), sum(counts)) in ((2001, 2500), (4002, 5000))  # tokens go in and out
        assert sum(s.count for values, s in known.items() if values[0] == OVERFLOW) == 500 * (len(counts) // 2000)


def test_what_a_refused_client_wrote_becomes_no_series():
    metrics = OtelMetrics()
    metrics.add(
        [
            settle(paid(f"r{n}", model=f"junk{n}", end="refused", status=404, attempts=(), baseline_model=""), PRICES)
            for n in range(9)
        ]
    )
    (known,) = metrics.series().values()
    assert len(known) == 1


class Stuck(Outlet[int]):
    limit, batch, every_s = 10, 4, 0.01

    def __init__(self, dropped):
        super().__init__(dropped)
        self.go = threading.Event()
        self.sent: list[int] = []

    def send(self, items):
        self.go.wait(10)
        if items[0] < 0:
            raise OSError("no")
        self.sent += items
        return ""


def test_an_outlet_never_blocks_and_counts_what_it_drops(caplog):
    lost: list[int] = []
    outlet = Stuck(lambda _, count: lost.append(count))
    outlet.put(range(4))
    outlet.put(range(4, 200))
    outlet.go.set()
    outlet.close()
    assert len(outlet.sent) + sum(lost) == 200
    assert len(outlet.sent) <= 14
    outlet = Stuck(lambda _, count: lost.append(count))
    lost.clear()
    outlet.go.set()
    outlet.put([-1, -2, -3])
    outlet.close()
    assert lost == [3]
    assert "OSError: no" in caplog.text


def test_a_log_line_leaves_out_what_is_unknown_and_what_is_private():
    entry = settle(paid("r1", path="/v1/files?key=secret", attempts=(), error=""), PRICES)
    line = request_log.line(entry)
    assert line.endswith(b"\n")
    assert b"secret" not in line
    assert b"null" not in line
    assert b'"error"' not in line
