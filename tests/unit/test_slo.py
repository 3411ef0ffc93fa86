"""Which requests were good, how fast a budget burns, and alarms that begin, last and end."""

from __future__ import annotations

import http.server
import json
import threading

import pytest
from click.testing import CliRunner
from test_ingest import PRICES, paid
from test_journal import row

from trimtab.cli import main
from trimtab.slo import RULES, SLOS, Objective, burn_rate, fires, judge, parse_slo, rate_of
from trimtab.stores import ledger_db, ledger_reader
from trimtab.stores.ingest import Ingester
from trimtab.stores.journal import FileJournal
from trimtab.telemetry.webhook import Webhook
from trimtab.types import AttemptRecord, Scope, Usage

CHAT, BATCH = SLOS["chat"], SLOS["batch"]
NOW = 1_795_219_200.0
PAGE, SLOWER_PAGE, TICKET = RULES


def stream(**changes):
    fields = {"stream": True, "ttft_s": 0.3, "total_s": 2.0}
    return row("r", **(fields | changes))


@pytest.mark.parametrize(
    ("record", "slo", "good"),
    [
        (stream(), CHAT, True),
        (stream(ttft_s=0.6), CHAT, False),
        (stream(ttft_s=None, end="ok"), CHAT, False),  # it never came
        (row("r", total_s=9.0), CHAT, True),  # unstreamed: a first token is not what its client waits for
        (row("r", total_s=31.0), BATCH, False),
        (row("r", total_s=29.0), BATCH, True),
        (row("r", end="refused", status=404), CHAT, None),
        (row("r", end="refused", status=429), CHAT, None),  # its own share was used up
        (row("r", end="refused", status=503), CHAT, False),  # there was too much to do
        (row("r", end="error", status=400), CHAT, None),
        (row("r", end="error", status=429), CHAT, False),
        (row("r", end="error", status=502), CHAT, False),
        (row("r", end="timeout", status=504), CHAT, False),
        (stream(end="cut"), CHAT, False),
        (row("r", end="interrupted", status=0), CHAT, False),
        (stream(end="cancelled", ttft_s=0.2), CHAT, None),
        (stream(end="cancelled", ttft_s=None, total_s=0.4), CHAT, None),
        (stream(end="cancelled", ttft_s=None, total_s=0.6), CHAT, False),  # it left because it had waited
    ],
)
def test_what_is_good(record, slo, good):
    assert judge(record, slo) is good


def test_time_per_output_token():
    attempt = AttemptRecord(
        0, "serve", "e", "m", "p", "ok", 0.0, 2.3, first_token_s=0.3, usage=Usage(output=21), usage_source="reported"
    )
    assert judge(stream(attempts=(attempt,)), parse_slo("tpot=100ms")) is True
    assert judge(stream(attempts=(attempt,)), parse_slo("tpot=99ms")) is False


def test_burn_rates():
    assert burn_rate(0, 0, 0.99) == burn_rate(100, 0, 0.99) == 0.0
    assert burn_rate(99, 1, 0.99) == pytest.approx(1.0)
    assert burn_rate(0, 7, 0.9) == pytest.approx(10.0)
    assert rate_of(PAGE, 0.99) == 14.4
    assert rate_of(PAGE, 0.9) == pytest.approx(5.0)  # half of the requests, not more than all of them


def test_an_alarm_needs_both_windows_and_a_few_failures():
    def on(long, short, firing=False):
        return fires(PAGE, 0.99, {"1h": long, "5m": short}, firing=firing)

    assert on((80, 20), (8, 2))
    assert not on((80, 20), (10, 0))  # it is over
    assert not on((990, 10), (8, 2))  # it has only begun
    assert not on((0, 4), (0, 4))  # four failures in a quiet night
    assert on((80, 20), (90, 10), firing=True)  # no flutter
    assert not on((80, 20), (99, 1), firing=True)


@pytest.fixture
def ledger(tmp_path):
    """Rows of a minute into the ledger, and the alarms at its end."""
    alarms = []
    objectives = {"default": Objective(CHAT, 0.99), "nightly": None}
    ingester = Ingester(tmp_path, PRICES, objectives, on_alarm=alarms.append)
    journal = FileJournal(tmp_path / "journal", "w0")
    count = iter(range(10**6))

    def minute(n, good, bad, route="chat"):
        for ttft_s, times in ((0.2, good), (0.9, bad)):
            for _ in range(times):
                at = NOW + 60 * n
                journal.row(paid(f"r{next(count)}", at=at, stream=True, ttft_s=ttft_s, scope=Scope("t", route=route)))
        ingester.run_once()
        alarms.clear()
        ingester.check_alarms(NOW + 60 * n + 59)
        return [(alarm.route, alarm.rule.severity, alarm.firing) for alarm in alarms]

    yield minute
    journal.close()
    ingester.close()


def test_an_outage_is_told_once_and_so_is_its_end(ledger, tmp_path):
    assert ledger(0, 1000, 0) == []
    assert ledger(1, 0, 100, route="nightly") == []  # no objective
    told = [change for n in range(2, 60) for change in ledger(n, 2, 8)]
    assert told == [("default", "ticket", True), ("default", "page", True), ("default", "page", True)]
    again = Ingester(tmp_path, PRICES, {"default": Objective(CHAT, 0.99)})  # after a restart it is still known
    again.close()
    told = [change for n in range(60, 60 + 7 * 60) for change in ledger(n, 10, 0)]
    assert told == [("default", "page", False), ("default", "page", False), ("default", "ticket", False)]
    with ledger_reader.Reader(tmp_path / ledger_db.FILE_NAME) as reader:
        (level,) = reader.service_levels({"default": Objective(CHAT, 0.99), "x": None}, NOW + 480 * 60)
    assert (level["good"], level["bad"]) == (1000 + 58 * 2 + 420 * 10, 58 * 8)
    assert level["good_share"] == pytest.approx(1 - 464 / 5780)
    assert level["budget_left"] == pytest.approx(1 - 464 / 5780 / 0.01)
    assert level["burn_rates"]["5m"] == 0.0
    assert level["alarms"] == []


def test_what_is_older_than_the_period_is_forgotten(ledger, tmp_path):
    ledger(0, 5, 5)
    ledger(31 * 24 * 60, 3, 1)
    with ledger_reader.Reader(tmp_path / ledger_db.FILE_NAME) as reader:
        (level,) = reader.service_levels({"default": Objective(CHAT, 0.99)}, NOW + 31 * 86400 + 59)
        assert (level["good"], level["bad"]) == (3, 1)
        assert reader._all("SELECT COUNT(*) AS n FROM slo_minutes") == [{"n": 1}]


def test_the_command(tmp_path, monkeypatch):
    def run(*args):
        result = CliRunner().invoke(main, ["slo", "--data-dir", str(tmp_path), *args])
        assert result.exit_code == 0, result.output
        return result.stdout

    config = tmp_path / "trimtab.toml"
    monkeypatch.setenv("TRIMTAB_CONFIG", str(config))
    config.write_text("")
    assert "[routes.default.slo]" in run()
    config.write_text('[routes.chat.slo]\ntargets = "ttft=500ms,e2e=9s"\nobjective = 0.9\n')
    assert "ttft=500ms,e2e=9s" in run()
    journal = FileJournal(tmp_path / "journal", "w0")
    import time

    for n in range(20):
        ttft_s = 0.9 if n < 3 else 0.1
        scope = Scope("t", route="chat")
        journal.row(paid(f"r{n}", at=time.time() - 200, stream=True, ttft_s=ttft_s, scope=scope))
    journal.close()
    text = run()
    assert "85.000%" in text
    assert "-50%" in text
    (level,) = [json.loads(line) for line in run("--json").splitlines()]
    assert (level["route"], level["good"], level["bad"], level["alarms"]) == ("chat", 17, 3, [])


class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append(json.loads(body))
        self.send_response(503 if len(self.server.got) == 1 else 200)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_the_webhook_tries_again(ledger, tmp_path):
    server = http.server.HTTPServer(("127.0.0.1", 0), Hook)
    server.got = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    lost = []
    webhook = Webhook(f"http://127.0.0.1:{server.server_port}/x", lambda *what: lost.append(what))
    alarms = []
    ingester = Ingester(tmp_path / "other", PRICES, {"default": Objective(CHAT, 0.99)}, on_alarm=alarms.append)
    journal = FileJournal(tmp_path / "other" / "journal", "w0")
    for n in range(9):
        journal.row(paid(f"r{n}", at=NOW, stream=True, ttft_s=2.0))
    ingester.run_once()
    ingester.check_alarms(NOW + 30)
    journal.close()
    ingester.close()
    webhook(alarms[0])
    while len(server.got) < 2:
        threading.Event().wait(0.02)
    webhook.close()
    server.shutdown()
    server.server_close()
    assert lost == []
    first, second = server.got
    assert first == second
    assert (first["state"], first["severity"], first["route"]) == ("firing", "page", "default")
    assert first["text"].startswith("page: route default burns its error budget: 100.0 times the allowed rate over 5m")
    assert first["windows"] == ["1h", "5m"]
