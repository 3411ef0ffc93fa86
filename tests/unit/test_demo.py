"""The demo: its workload, its client, its figures, its gateway, and the command as a whole on a scripted gateway."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import scripted_gateway
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scripted_gateway import response, stream

from processes import is_alive
from trimtab.cli import demo as command
from trimtab.cli.demo_report import Comparison, print_report
from trimtab.ledger import settle
from trimtab.measure import demo
from trimtab.measure.contention import Contention, cpu_s
from trimtab.measure.gateway import GatewayFailed, GatewayProcess
from trimtab.measure.load import AnswerReader, Call, Timing, replay, saturate
from trimtab.measure.stats import quantile
from trimtab.prices import ModelOverride, PriceOverride, Prices
from trimtab.stores import ledger_db
from trimtab.transport import Origin
from trimtab.types import AttemptRecord, Record, Scope, Usage

SCRIPT = scripted_gateway.__file__


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Any, within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


class TestWorkload:
    def test_the_same_seed_gives_the_same_requests(self) -> None:
        assert demo.workload(50, 2.0, 7) == demo.workload(50, 2.0, 7)
        assert demo.workload(50, 2.0, 7) != demo.workload(50, 2.0, 8)

    @pytest.mark.parametrize("count", [40, 120, 220, 400])
    def test_about_half_are_exact_repeats(self, count: int) -> None:
        work = demo.workload(count, 3.0, 1)
        bodies = [call.body for call in work.calls]
        assert work.repeats == count - len(set(bodies))
        assert 0.35 < work.repeats / count < 0.75

    def test_arrivals_keep_the_pattern_and_take_the_rate(self) -> None:
        slow, fast = demo.workload(100, 1.0, 1), demo.workload(100, 4.0, 1)
        assert slow.lasts_s == pytest.approx(99.0)
        assert fast.lasts_s == pytest.approx(99.0 / 4)
        assert [call.at_s / 4 for call in slow.calls] == pytest.approx([call.at_s for call in fast.calls])
        assert [call.at_s for call in slow.calls] == sorted(call.at_s for call in slow.calls)

    def test_a_request_is_deterministic_streams_and_asks_for_usage(self) -> None:
        body = json.loads(demo.workload(2, 1.0, 1).calls[0].body)
        assert body["temperature"] == 0
        assert body["stream"] is True
        assert body["stream_options"] == {"include_usage": True}
        assert body["messages"][0] == {"role": "system", "content": demo.SYSTEM_PROMPT}

    def test_warm_up_questions_are_not_in_the_workload(self) -> None:
        warm = {call.body for call in demo.warm_up()}
        assert len(warm) == demo.PARALLEL
        assert not warm & {call.body for call in demo.workload(demo.MAX_REQUESTS, 1.0, 1).calls}

    def test_the_data_is_whole_and_says_where_it_is_from(self) -> None:
        assert len(set(demo.questions())) == len(demo.questions()) == 208
        assert len(demo.gaps_s()) >= demo.MAX_REQUESTS - 1
        sources = (Path(demo.__file__).parent / "data" / "SOURCES.md").read_text()
        for word in ("questions.csv", "gaps_ms.csv", "PolyAI", "Azure", "CC BY 4.0"):
            assert word in sources

    def test_size_follows_the_machine_and_is_bounded(self) -> None:
        assert demo.sized(100.0, None) == (220, 65.0)
        count, rate_per_s = demo.sized(1.0, None)
        assert count / rate_per_s <= 61
        assert demo.sized(0.0, None) == (12, 0.2)
        assert demo.sized(1.0, 33)[0] == 33

    def test_too_many_requests_are_refused(self) -> None:
        with pytest.raises(ValueError, match="from 1 to 400"):
            demo.workload(401, 1.0, 1)


class TestQuantile:
    def test_interpolates_between_ranks(self) -> None:
        assert quantile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
        assert quantile([1.0, 2.0, 3.0], 0.95) == pytest.approx(2.9)
        assert quantile([5.0], 0.99) == 5.0
        assert quantile([], 0.5) is None

    @settings(deadline=None)
    @given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1), st.floats(0, 1))
    def test_lies_within_and_never_falls(self, values: list[float], a: float, b: float) -> None:
        low, high = quantile(values, min(a, b)), quantile(values, max(a, b))
        assert low is not None
        assert high is not None
        slack = 1e-9 * (1 + max(values))
        assert min(values) - slack <= low <= high + slack <= max(values) + 2 * slack


class TestAnswerReader:
    @settings(deadline=None)
    @given(st.lists(st.integers(0, 600), max_size=8))
    def test_reads_the_same_however_it_is_cut(self, cuts: list[int]) -> None:
        data = stream("Hé", "llo ", "there", tokens=3, finish="length")
        reader = AnswerReader()
        places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
        for now, (start, stop) in enumerate(itertools.pairwise(places)):
            reader.feed(data[start:stop], float(now))
        assert (reader.text, reader.finish, reader.output_tokens) == ("Héllo there", "length", 3)
        assert reader.done
        assert not reader.error

    def test_counts_from_the_first_text_and_not_from_the_empty_role(self) -> None:
        lines = stream("a", "b", "c").split(b"\n\n")
        reader = AnswerReader()
        for now, line in enumerate(lines):
            reader.feed(line + b"\n\n", float(now))
        assert reader.first_at == 1.0
        assert reader.inter_token_s() == 1.0  # (3 - 1) s over the 2 tokens after the first

    def test_an_error_event_is_an_error(self) -> None:
        reader = AnswerReader()
        reader.feed(b'data: {"error": {"message": "engine is gone"}}\n\n', 1.0)
        assert "engine is gone" in reader.error


async def sent(answer: scripted_gateway.Answer, calls: list[Call], head: bytes = b"") -> list[Timing]:
    server = await scripted_gateway.serve(answer)
    origin = Origin(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    timings: list[Timing] = []
    try:
        await replay(origin, calls, head, timings.append)
    finally:
        await origin.close()
        server.close()
    return timings


def calls(count: int) -> list[Call]:
    return [Call(0.0, n, demo.body(f"question {n}")) for n in range(count)]


class TestReplay:
    async def test_reads_what_the_server_says(self) -> None:
        async def answer(headers: dict[str, str], body: dict[str, Any]) -> bytes:
            assert headers["x-trimtab-workflow"] == "w"
            assert headers["x-trimtab-cache"] == "off"
            return response(stream("Yes", ".", tokens=2), cache="off")

        (timing,) = await sent(answer, calls(1), demo.head("w", "off"))
        assert timing.ok
        assert (timing.text, timing.output_tokens, timing.finish, timing.cache) == ("Yes.", 2, "stop", "off")
        assert timing.ttft_s is not None
        assert 0 <= timing.ttft_s <= timing.total_s

    async def test_is_an_open_loop(self) -> None:
        """The server holds every answer until the last request is there: a closed loop would hang."""
        count, arrived, all_there = 20, 0, asyncio.Event()

        async def answer(headers: dict[str, str], body: dict[str, Any]) -> bytes:
            nonlocal arrived
            arrived += 1
            if arrived == count:
                all_there.set()
            await all_there.wait()
            return response(stream("ok"))

        timings = await asyncio.wait_for(sent(answer, calls(count)), 20)
        assert sorted(timing.group for timing in timings) == list(range(count))
        assert all(timing.ok for timing in timings)

    @pytest.mark.parametrize(
        ("first", "expected"),
        [
            (response(b'{"error": "busy"}', status=503), "status 503"),
            (response(stream("half", end=False)), "before its end mark"),
            (response(stream("half")[:60]).replace(b"content-length: 60", b"content-length: 99999"), "closed"),
            (response(b"data: {nonsense\n\n"), "JSON"),
        ],
    )
    async def test_what_goes_wrong_becomes_an_error(self, first: bytes, expected: str) -> None:
        async def answer(headers: dict[str, str], body: dict[str, Any]) -> bytes:
            return first

        (timing,) = await sent(answer, calls(1))
        assert not timing.ok
        assert expected in timing.error

    async def test_a_server_that_is_not_there(self) -> None:
        timings: list[Timing] = []
        await replay(Origin(f"http://127.0.0.1:{free_port()}"), calls(2), b"", timings.append)
        assert len(timings) == 2
        assert all("cannot be reached" in timing.error for timing in timings)

    async def test_saturate_keeps_that_many_in_flight(self) -> None:
        now, most = 0, 0

        async def answer(headers: dict[str, str], body: dict[str, Any]) -> bytes:
            nonlocal now, most
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.01)
            now -= 1
            return response(stream("ok"))

        server = await scripted_gateway.serve(answer)
        origin = Origin(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        rate, timings = await saturate(origin, calls(12), b"", concurrency=4, at_most_s=60)
        await origin.close()
        server.close()
        assert most == 4
        assert len(timings) == 12
        assert rate > 0

    async def test_saturate_stops_when_the_time_is_up(self) -> None:
        async def answer(headers: dict[str, str], body: dict[str, Any]) -> bytes:
            if body["messages"][-1]["content"] != "question 0":
                await asyncio.Event().wait()
            return response(stream("ok"))

        server = await scripted_gateway.serve(answer)
        origin = Origin(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        rate, timings = await asyncio.wait_for(saturate(origin, calls(4), b"", concurrency=2, at_most_s=0.5), 20)
        await origin.close()
        server.close()
        assert rate > 0
        assert [timing.group for timing in timings if timing.ok] == [0]


NO_LEDGER = demo.Ledger(0, 0, 0, 0, 0, 0, 0, 0.0, None, None)


class TestFigures:
    def test_a_phase(self) -> None:
        timings = [
            Timing(0, True, 1.0, 0.5, 0.1, 5, "stop", "miss", "a"),
            Timing(1, True, 3.0, 1.5, 0.3, 5, "length", "miss", "b"),
            Timing(0, True, 0.01, 0.005, 0.0, 5, "stop", "hit", "a"),
            Timing(2, False, 60.0, error="late"),
        ]
        phase = demo.phase(timings, NO_LEDGER, 0.02)
        assert (phase.requests, phase.answered, phase.cut, phase.errors) == (4, 3, 1, ("late",))
        assert phase.end_to_end_s.p50 == 1.0
        assert phase.inter_token_s == pytest.approx(0.2)  # the answer from the cache is left out
        assert (phase.reused, phase.reused_wrong) == (0, 0)
        assert demo.replayed_faithfully(timings) == (1, 1)
        assert demo.replayed_faithfully([*timings, Timing(1, True, 0.01, cache="hit", text="other")]) == (2, 1)

    def test_a_reused_answer_is_wrong_if_only_questions_of_other_intents_had_it(self) -> None:
        timings = [
            Timing(0, True, 1.0, cache="miss", text="Freeze it."),
            Timing(1, True, 0.1, cache="semantic", text="Freeze it."),
            Timing(2, True, 0.1, cache="semantic", text="Freeze it."),
            Timing(2, True, 0.1, cache="semantic", text="renewed by an audit"),
        ]
        phase = demo.phase(timings, NO_LEDGER, None, ("lost", "lost", "fees"))
        assert (phase.reused, phase.reused_wrong) == (3, 1)

    def test_tokens_and_cost_come_from_the_ledger(self, tmp_path: Path) -> None:
        prices = Prices({}, {"m": ModelOverride("local", "m", PriceOverride(machine_hour=3.6))})
        rows = [ledger_row("1", "off", 2.0), ledger_row("2", "off", 1.0), ledger_row("3", "off", None)]
        connection = ledger_db.open_writer(tmp_path / ledger_db.FILE_NAME)
        ledger_db.insert_entries(connection, [settle(row, prices) for row in [*rows, ledger_row("4", "on", 5.0)]])
        connection.close()
        found = demo.read_ledger(tmp_path, "off")
        assert (found.requests, found.cache_hits, found.upstream_calls) == (3, 1, 2)
        assert (found.fresh_input_tokens, found.cache_read_tokens, found.output_tokens) == (20, 400, 14)
        assert found.machine_s == pytest.approx(3.0)
        assert found.cost_nusd == 3_000_000
        assert found.cost_per_1000_nusd == 1_000_000_000

    def test_a_ledger_that_is_not_there(self, tmp_path: Path) -> None:
        assert demo.read_ledger(tmp_path, "off") == NO_LEDGER


def ledger_row(row_id: str, workflow: str, machine_s: float | None) -> Record:
    """A request that kept the machine busy for that long; None: one from the cache."""
    attempt = AttemptRecord(
        0, "serve", "local", "m", "", "ok", 0.0, 1.0, 0.5, 200,
        usage=Usage(input=10, cache_read=200, output=7), usage_source="reported", machine_s=machine_s or 0.0,
    )  # fmt: skip
    return Record(
        id=row_id, at=1e9, scope=Scope("t", workflow=workflow), dialect="openai", path="/v1/chat/completions",
        model="m", stream=True, end="ok", status=200, total_s=1.0, cache="hit" if machine_s is None else "miss",
        attempts=() if machine_s is None else (attempt,),
    )  # fmt: skip


def gateway(port: int, folder: Path, mode: str = "plain", *more: str) -> GatewayProcess:
    return GatewayProcess([sys.executable, SCRIPT, str(port), mode, *more], port, folder / "serve.log", os.environ)


class TestGatewayProcess:
    async def test_waits_until_it_is_ready_then_stops_it(self, tmp_path: Path) -> None:
        said: list[str] = []
        process = gateway(free_port(), tmp_path)
        process.start()
        try:
            pid = process.pid
            await process.wait_ready(30, said.append)
        finally:
            process.stop()
        assert "local: loading" in said
        assert not is_alive(pid)
        assert "scripted gateway listens" in (tmp_path / "serve.log").read_text()

    async def test_one_that_dies_shows_its_last_lines(self, tmp_path: Path) -> None:
        process = gateway(free_port(), tmp_path, "die")
        process.start()
        with pytest.raises(GatewayFailed, match=r"exit code 1(?s:.)*no weights: the index said no"):
            await process.wait_ready(30, lambda said: None)
        process.stop()

    async def test_one_that_is_never_ready(self, tmp_path: Path) -> None:
        process = gateway(free_port(), tmp_path, "hang")
        process.start()
        try:
            with pytest.raises(GatewayFailed, match="not ready within 1 s"):
                await process.wait_ready(1, lambda said: None)
        finally:
            process.stop()

    async def test_one_that_does_not_want_to_stop(self, tmp_path: Path) -> None:
        process = gateway(free_port(), tmp_path, "stubborn")
        process.start()
        await process.wait_ready(30, lambda said: None)
        pid = process.pid
        process.stop(grace_s=0.2)
        assert not is_alive(pid)
        process.stop()  # again does nothing

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux only")
    def test_it_ends_with_its_parent_even_when_that_is_killed(self, tmp_path: Path) -> None:
        child = "from trimtab.measure.gateway import end_with_parent; end_with_parent({}); import time; time.sleep(60)"
        parent = (
            "import os, subprocess, sys, time\n"
            f"child = subprocess.Popen([sys.executable, '-c', {child!r}.format(os.getpid())], start_new_session=True)\n"
            "print(child.pid, flush=True)\ntime.sleep(60)\n"
        )
        process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE)
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
        process.wait()
        process.stdout.close()
        wait_until(lambda: not is_alive(pid))


def test_contention_counts_others_and_not_ourselves() -> None:
    contention = Contention(0)
    share = contention.share()
    assert share is None or 0 <= share <= 1


def test_a_session_s_processes_count_with_what_they_started_elsewhere() -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', %r], start_new_session=True)"
    work = "import time\nwhile time.process_time() < 0.3: pass\nprint('x', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script % work], start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as starter:
        assert starter.stdin
        assert starter.stdout
        starter.stdout.readline()
        used = sum(cpu_s(starter.pid).values())
        starter.stdin.write(b"\n")
    assert sys.platform != "linux" or used >= 0.2


def phase(**changes: Any) -> demo.Phase:
    ledger = demo.Ledger(220, 110, 3, 107, 5_000, 25_000, 2_000, 30.0, 833_000, 3_786_000)
    spread = demo.Spread(0.012345, 1.5, 12.25)
    return msgspec.structs.replace(demo.Phase(220, 220, 3, spread, spread, 0.02, ledger, 0.01, ()), **changes)


def comparison(**changes: Any) -> Comparison:
    found = Comparison(
        "0", "Linux", 2, 1, 220, 104, 116, 0.8, 6.0, 3.9, 0.1, False, phase(), phase(), None, 110, 110
    )  # fmt: skip
    return msgspec.structs.replace(found, **changes)


def printed(found: Comparison, width: int) -> str:
    console = Console(width=width, record=True, force_terminal=False, file=Path(os.devnull).open("w"))  # noqa: SIM115
    print_report(console, found)
    console.file.close()
    return console.export_text()


class TestReport:
    @pytest.mark.parametrize("width", [80, 100])
    def test_fits_and_shows_every_measure(self, width: int) -> None:
        faster = phase(
            ttft_s=demo.Spread(0.001, 1.5, 24.5), ledger=msgspec.structs.replace(phase().ledger, cost_nusd=1)
        )
        text = printed(comparison(levers_on=faster), width)
        table = text[: text.index("What was measured")]
        assert max(len(line) for line in table.splitlines()) <= width
        for word in ("levers off", "levers on", "12x faster", "2.0x slower", "about the same", "-100%", "p99", "Cost"):
            assert word in table
        for word in ("banking77", "116 of 220", "110 of the 116 repeats", "word for word", "USD 0.10", "api_key"):
            assert word in " ".join(text.split())

    @pytest.mark.parametrize("width", [80, 100])
    def test_the_semantic_cache_has_a_column_with_its_wrong_share(self, width: int) -> None:
        assert "semantic" not in printed(comparison(), width)[: printed(comparison(), width).index("What was measured")]
        text = printed(comparison(with_semantic=phase(reused=20, reused_wrong=3)), width)
        table = text[: text.index("What was measured")]
        assert max(len(line) for line in table.splitlines()) <= width
        for word in ("+ semantic", "9%", "15%"):
            assert word in table
        assert "20 answers, 3 of them of questions with another intent" in " ".join(text.split())

    def test_a_phase_that_never_began_is_a_dash(self) -> None:
        text = printed(comparison(levers_on=None, interrupted=True), 80)
        assert "Interrupted" in text
        assert "-  " in text

    def test_failures_and_a_busy_machine_are_said(self) -> None:
        text = printed(comparison(levers_off=phase(answered=218, errors=("no [whole] answer",), others_cpu=0.4)), 80)
        assert "Levers off: 2 without a whole answer" in text
        assert "no [whole] answer" in text
        assert "other programs took 40%" in text

    def test_json_is_one_object_that_reads_back(self) -> None:
        found = comparison(levers_on=None)
        assert msgspec.json.decode(msgspec.json.encode(found), type=Comparison) == found


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command with the scripted gateway in place of `trimtab serve`; its temporary files go to this folder."""

    def serve_command(config_file: Path) -> list[str]:
        import tomllib

        config = tomllib.loads(config_file.read_text())
        assert config["engines"]["local"]["kind"] == "llama_cpp"
        return [sys.executable, SCRIPT, str(config["server"]["port"]), "plain"]

    monkeypatch.setattr(command, "serve_command", serve_command)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


class TestCommand:
    def test_prints_the_table_and_leaves_nothing_behind(self, scripted: Path) -> None:
        result = CliRunner().invoke(command.demo, ["--requests", "12"])
        assert result.exit_code == 0, result.output
        assert "levers off" in result.stdout
        assert "1/5 Starting" in result.stderr
        assert "4/5 Levers on" in result.stderr
        assert "5/5 + semantic" in result.stderr
        assert "+ semantic" in result.stdout
        assert list(scripted.iterdir()) == []

    def test_json_alone_on_stdout(self, scripted: Path) -> None:
        result = CliRunner().invoke(command.demo, ["--requests", "12", "--json", "--keep"])
        found = json.loads(result.stdout)
        assert found["levers_off"]["answered"] == found["levers_on"]["answered"] == 12
        assert found["with_semantic"]["answered"] == 12
        assert found["replayed_hits"] == found["faithful_hits"] == found["exact_repeats"]
        (kept,) = scripted.iterdir()
        assert f"Kept: {kept}" in result.stderr
        assert (kept / "serve.log").exists()

    def test_a_gateway_that_does_not_start(self, scripted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from trimtab.cli import main

        monkeypatch.setattr(command, "serve_command", lambda config: [sys.executable, SCRIPT, "1", "die"])
        result = CliRunner().invoke(main, ["demo"])
        assert result.exit_code == 1
        assert "no weights: the index said no" in result.stderr
        assert "TRIMTAB_CACHE_DIR" in result.stderr
        assert list(scripted.iterdir()) == []

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_an_interrupt_prints_what_was_measured(self, tmp_path: Path, number: signal.Signals) -> None:
        log, folder = tmp_path / "requests", tmp_path / "tmp"
        folder.mkdir()
        code = (
            "import sys, tomllib\nfrom trimtab.cli import demo\n"
            "demo.serve_command = lambda config: [sys.executable, "
            f"{SCRIPT!r}, str(tomllib.loads(config.read_text())['server']['port']), 'slow', {str(log)!r}]\n"
            "demo.demo(['--requests', '400'])\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(folder)},
        )
        wait_until(lambda: log.exists() and log.read_text().count("demo-levers-off") > 5)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=30)
        assert process.returncode == 130, stderr
        assert "Interrupted: the figures are of what was measured so far" in stdout
        assert list(folder.iterdir()) == []
