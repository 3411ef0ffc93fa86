"""Traces, prompts of exact length, percentiles with intervals, the report: what `trimtab replay` is made of."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import re
import socket

import msgspec
import pytest
import uvloop
from click.testing import CliRunner

from trimtab.cli import main
from trimtab.errors import BadRequest
from trimtab.measure import report, stats, traces
from trimtab.measure.load import Call, Timing, replay
from trimtab.measure.prompts import PromptMaker, calibrate
from trimtab.measure.target import fits
from trimtab.measure.traces import Traced
from trimtab.slo import SLOS, parse_slo
from trimtab.transport import Origin

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:17:04.5,oops,8
2023-11-16T18:17:05+00:00,5,0
"""


def write(folder, text, name="trace"):
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_azure(tmp_path, name):
    trace = traces.read(write(tmp_path, AZURE, name))
    assert trace.kind == "azure"
    assert [(round(r.at_s, 6), r.input_tokens, r.output_tokens) for r in trace.requests] == [
        (0.0, 4808, 10),
        (0.052, 3180, 8),
        (1.02004, 5, 0),
    ]
    assert trace.malformed == 1
    assert "line 4" in trace.problems[0]


def test_strict_names_the_line(tmp_path):
    with pytest.raises(BadRequest, match=r"line 4: .*oops.*--strict"):
        traces.read(write(tmp_path, AZURE), strict=True)


@pytest.mark.parametrize("off_ms", [0, -1, 3])
def test_mooncake_is_spread_over_its_three_second_steps(tmp_path, off_ms):
    rows = [
        {
            "timestamp": 3000 * (n // 40) + (n >= 40) * off_ms,
            "input_length": 600,
            "output_length": 5,
            "hash_ids": [0, n],
        }
        for n in range(80)
    ]
    path = write(tmp_path, "\n".join(map(json.dumps, rows)))
    trace = traces.read(path, seed=1)
    assert trace.kind == "mooncake"
    assert trace == traces.read(path, seed=1) != traces.read(path, seed=2)
    times = [r.at_s for r in trace.requests]
    assert times == sorted(times)
    assert times[0] == 0
    assert 2 < times[39] < 4 < times[79] < 6
    assert trace.requests[0].block_tokens == 512


def test_time_stamps_that_are_not_rounded_stay(tmp_path):
    rows = [{"timestamp": at, "input_length": 60, "output_length": 5} for at in (0, 3000, 3700)]
    trace = traces.read(write(tmp_path, "\n".join(map(json.dumps, rows))), seed=1)
    assert [r.at_s for r in trace.requests] == [0, 3, 3.7]


def test_sessions_keep_their_turns_in_order(tmp_path):
    rows = [
        {"session_id": s, "turn": t, "input_length": 10 + t, "output_length": 1, "hash_ids": [1]}
        for t in range(3)
        for s in ("a", "b")
    ]
    trace = traces.read(write(tmp_path, "\n".join(map(json.dumps, rows))), sessions_per_s=5)
    assert trace.kind == "sessions"
    assert [(r.session, r.input_tokens) for r in trace.requests] == [(s, 10 + t) for s in "ab" for t in range(3)]
    assert trace.requests[0].at_s == 0 < trace.requests[3].at_s == trace.requests[5].at_s


def test_bodies_beside_or_inside(tmp_path):
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    rows = [{"timestamp": "2026-01-01T00:00:02Z", "body": body}, {"timestamp": "2026-01-01T00:00:01Z", **body}]
    rows += [{"timestamp": 5, "body": {"model": "m"}}]
    trace = traces.read(write(tmp_path, "\n".join(map(json.dumps, rows))))
    assert trace.kind == "bodies"
    assert trace.malformed == 1
    assert [r.at_s for r in trace.requests] == [0, 1]
    assert [json.loads(bytes(r.body)) for r in trace.requests] == [body, body]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no known kind"),
        ("a,b\n1,2\n", "no known kind"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nx,1,1\n", "line 2"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path, text, message):
    with pytest.raises(BadRequest, match=message):
        traces.read(write(tmp_path, text))
    with pytest.raises(BadRequest, match="cannot be read"):
        traces.read(tmp_path / "absent")


class Counter:
    """Counts as a server would: a template of 9 tokens, and words of which some are two tokens."""

    def __init__(self, double=()):
        self.double, self.asked = set(double), 0

    def tokens(self, text):
        return 9 + sum(2 if word in self.double else 1 for word in text.split())

    async def __call__(self, text):
        self.asked += 1
        return self.tokens(text)


def test_calibration_finds_the_words_that_are_one_token():
    counter = Counter(double={"about", "river", "young"})
    pool = asyncio.run(calibrate(counter))
    assert pool.base_tokens == 10
    assert {"about", "river", "young"}.isdisjoint(pool.words)
    assert counter.asked < 60
    assert asyncio.run(calibrate(Counter())).base_tokens == 10


def test_calibration_gives_up_on_a_target_that_counts_otherwise():
    async def letters(text):
        return len(text)

    with pytest.raises(BadRequest, match="one token each"):
        asyncio.run(calibrate(letters))


def test_prompts_have_their_length_and_share_what_their_ids_share():
    counter = Counter()
    maker = PromptMaker(asyncio.run(calibrate(counter)), seed=3)
    first = Traced(0, 100, 1, hash_ids=(1, 2, 3), block_tokens=32)
    second = Traced(0, 70, 1, hash_ids=(1, 2, 9), block_tokens=32)
    bare = Traced(0, 50, 1)
    texts = [maker.text(r, n) for n, r in enumerate((first, second, bare, bare))]
    assert [counter.tokens(t) for t in texts] == [100, 70, 50, 50]
    assert texts[2] != texts[3]
    assert texts[0] == PromptMaker(maker._pool, seed=3).text(first, 0)
    shared = [a == b for a, b in zip(texts[0].split(), texts[1].split(), strict=False)].index(False)
    assert 64 - 10 <= shared <= 64
    assert maker.can_make(Traced(0, 10, 1))
    assert not maker.can_make(Traced(0, 9, 1))


def test_fits():
    assert fits(Traced(0, 90, 10), 100)
    assert not fits(Traced(0, 91, 10), 100)
    assert fits(Traced(0, 10**6, 10), None)


def test_times_are_finer_than_the_loops_and_nothing_leaves_early():
    timings = []
    calls = [Call(n / 300, n, b"{}") for n in range(12)]

    async def run():
        with socket.socket() as refusing:
            refusing.bind(("127.0.0.1", 0))
            await replay(Origin(f"http://127.0.0.1:{refusing.getsockname()[1]}"), calls, b"", timings.append)

    uvloop.run(run())
    assert len(timings) == 12
    assert all(0 <= t.lag_s <= t.total_s for t in timings)
    assert any(t.total_s * 1000 % 1 > 1e-6 for t in timings)


def test_summary_of_known_values():
    found = stats.summarise(range(1, 101), "ms")
    assert (found.count, found.avg, found.min, found.max, found.p50, found.p99) == (100, 50.5, 1, 100, 50.5, 99.01)
    assert found.p99_9 == pytest.approx(99.901)
    assert stats.summarise([], "ms") is None
    assert stats.summarise([1.0] * 4, "ms").ci95 == {}
    assert stats.summarise([7.0] * 10, "ms").ci95 == {"avg": (7, 7), "p50": (7, 7)}
    assert set(stats.summarise([7.0] * 100, "ms").ci95) == {"avg", "p50", "p90", "p95"}
    assert set(stats.summarise([7.0] * 5000, "ms").ci95) == {"avg", "p50", "p90", "p95", "p99", "p99_9"}


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = random.Random(5)
    covered = {"avg": 0, "p50": 0, "p90": 0}
    truth = {"avg": 1.0, "p50": 0.6931, "p90": 2.3026}
    for _ in range(120):
        found = stats.summarise([rng.expovariate(1) for _ in range(200)], "ms", seed=rng.randrange(10**6))
        for name in covered:
            low, high = found.ci95[name]
            covered[name] += low <= truth[name] <= high
    assert all(105 <= count <= 120 for count in covered.values()), covered


def test_differences_are_called_real_only_where_they_are():
    rng = random.Random(1)
    wrong = 0
    for _ in range(60):
        a, b = ([rng.gauss(100, 10) for _ in range(300)] for _ in range(2))
        wrong += stats.differences("m", a, b, "ms", statistics=["p50"])[0].real
    assert wrong <= 8  # 3 are expected
    slower = stats.differences("m", a, [value + 10 for value in b], "ms", statistics=["avg", "p50"])
    assert all(one.real and 7 < one.difference < 13 for one in slower)
    assert stats.differences("m", a, b[:4], "ms") == []


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("chat", (0.5, None, None)),
        ("completion", (0.1, None, None)),
        ("batch", (None, None, 30.0)),
        ("ttft=300ms, tpot<=50ms,e2e=5s", (0.3, 0.05, 5.0)),
    ],
)
def test_slos(text, limits):
    slo = parse_slo(text)
    assert (slo.ttft_s, slo.tpot_s, slo.total_s) == limits


@pytest.mark.parametrize("text", ["", "fast", "ttft=300", "ttft=1s;e2e=2s"])
def test_what_is_no_slo(text):
    with pytest.raises(BadRequest, match="no limit"):
        parse_slo(text)


def settings(**changes):
    fields = {
        "url": "u",
        "model": "m",
        "trace": "t",
        "kind": "azure",
        "speed": 1.0,
        "seed": 0,
        "slo": SLOS["chat"],
    }
    return report.Settings(**(fields | changes))


def timing(n, *, ttft_s=0.2, ok=True, **more):
    usual = {"inter_token_s": 0.02, "output_tokens": 11, "input_tokens": 100, "planned_input_tokens": 100}
    usual |= {"gaps_s": (0.1, 0.1), "planned_output_tokens": 11, "at_s": float(n)}
    return Timing(n, ok, ttft_s + 0.2, ttft_s, **(usual | more))


def test_a_report_adds_up():
    timings = [timing(n) for n in range(8)] + [timing(8, ttft_s=0.9)]
    timings += [timing(9, ok=False, error="refused"), timing(10, ok=False, error="ended", cancelled=True)]
    timings.append(timing(11, cache="hit", planned_input_tokens=102))
    made = report.make(settings(), report.Run(timings, 20, 2, 5, 1), "1", lambda t: 0.01 * t.output_tokens)
    counts = made.counts
    assert (counts.sent, counts.successful, counts.errored, counts.cancelled, counts.cache_hits) == (12, 10, 1, 1, 1)
    assert made.errors == {"refused": 1}
    assert made.metrics["time_to_first_token"].max == pytest.approx(900)
    assert made.metrics["time_per_output_token"].p50 == pytest.approx(20)
    assert made.metrics["inter_chunk_latency"].count == 20
    assert made.metrics["inter_chunk_latency"].ci95 == {}
    assert set(made.by_end) == {"successful", "errored", "cancelled"}
    rates = made.throughput
    assert rates.duration_s == pytest.approx(11.4)
    assert rates.goodput == pytest.approx(9 / 11.4)
    assert rates.output_token_throughput == pytest.approx(110 / 11.4)
    assert made.cost.usd == pytest.approx(0.11 * 11)  # a hit costs nothing
    assert (made.fidelity.planned, made.fidelity.input_exact, made.fidelity.input_largest_difference) == (10, 9, 2)
    again = report.load(msgspec.json.encode(made), "file")
    assert again == made


def test_a_price_that_is_not_known_is_not_made_up():
    made = report.make(settings(), report.Run([timing(0)], 1), "1", lambda _: None)
    assert made.cost.usd is None
    assert report.make(settings(), report.Run([timing(0, cost_usd=0.5)], 1), "1").cost.usd == 0.5


def test_runs_are_saved_shown_and_compared(tmp_path):
    rng = random.Random(2)
    for name, shift in (("a", 0.0), ("b", 0.3)):
        timings = [timing(n, ttft_s=0.2 + shift + rng.random() / 20) for n in range(60)]
        made = report.make(settings(), report.Run(timings, 60), "1")
        (tmp_path / name).write_bytes(msgspec.json.encode(made))
    paths = [str(tmp_path / "a"), str(tmp_path / "b")]
    shown = CliRunner().invoke(main, ["replay", "show", paths[0]])
    assert shown.exit_code == 0, shown.output
    assert "Time to first token" in shown.output
    compared = CliRunner().invoke(main, ["replay", "diff", *paths, "--json"])
    found = {(one["metric"], one["statistic"]): one for one in json.loads(compared.output)}
    assert found["time_to_first_token", "p50"]["real"]
    assert not found["inter_token_latency", "p50"]["real"]
    table = CliRunner().invoke(main, ["replay", "diff", *paths]).output
    assert re.search(r"Time to first token .* more", table)
    bad = CliRunner().invoke(main, ["replay", "show", str(write(tmp_path, "{}"))])
    assert bad.exit_code == 1
    assert "no saved replay" in bad.output
