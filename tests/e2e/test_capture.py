"""Capture of own traffic with real gateways: what lies on the disk, who can read it, and that it can be replayed."""

from __future__ import annotations

import base64
import json
import os
import signal
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from asking import SAME, Pair, name_of, send
from gateway_process import TRIMTAB, Gateway, MakeGateway, two_upstreams
from upstream import Upstream, wait_until

from trimtab.stores.captures_db import Captured, Reader
from trimtab.stores.sealing import Seal

KEY = base64.b64encode(bytes(range(32))).decode()
MAIL, CARD = "carla.smith@mail.example", "4111 1111 1111 1111"
PRIVATE = (MAIL, CARD, "carla")
ROUTES = """
[routes.chat.capture]
[routes.own.capture]
mode = "plain"
[routes.locked.capture]
mode = "plain"
key_env = "CAPTURE_KEY"
[routes.masked.capture]
patterns = ['ORDER-\\d+']
[levers.exact_cache]
enabled = false
"""


def config(upstream: Upstream, extra: str = ROUTES) -> str:
    return two_upstreams(upstream.port, extra=extra)


@pytest.fixture(scope="module")
def gateway(gateways: MakeGateway, upstream: Upstream) -> Gateway:
    return gateways(config(upstream), {"CAPTURE_KEY": KEY}, server="workers = 2")


def text_of(upstream: Upstream) -> str:
    return f"{upstream.prompt()} I am {MAIL}, my card is {CARD}, again {MAIL}; ORDER-77"


def ask(gateway: Gateway, pair: Pair, text: str, route: str, *, user: str = "", **more: Any) -> str:
    headers = {"x-trimtab-route": route} | ({"x-trimtab-user": user} if user else {})
    got = send(gateway, pair, pair.body(text, **more), headers)
    assert got.status == 200
    return got.request_id


def rows(gateway: Gateway, **where: str) -> list[Captured]:
    path = gateway.data_dir / "capture.sqlite"
    if not path.exists():
        return []
    with Reader(path) as reader:
        return list(reader.rows(where))


def captured(gateway: Gateway, request_id: str) -> Captured:
    """The row of a request, once it is written."""
    wait_until(lambda: rows(gateway, id=request_id), 15, f"{request_id} to be captured:\n{gateway.log()}")
    return rows(gateway, id=request_id)[0]


def on_disk(gateway: Gateway) -> bytes:
    """Every byte under the data folder: the capture file, its log, the journal, the ledger, the cache."""
    return b"".join(path.read_bytes() for path in gateway.data_dir.rglob("*") if path.is_file())


@pytest.mark.parametrize("pair", SAME, ids=name_of)
@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
def test_redacted_by_default(gateway: Gateway, upstream: Upstream, pair: Pair, stream: bool) -> None:
    text = text_of(upstream)
    request_id = ask(gateway, pair, text, "chat", user="u-1", stream=stream, metadata={"trimtab": {"session": "s-9"}})
    row = captured(gateway, request_id)
    body = json.loads(Seal().open(row.body, row.id))
    expected = text.replace(MAIL, "[EMAIL_1]").replace(CARD, "[CARD_1]")
    assert body == pair.body(expected, stream=stream)
    assert (row.route, row.user, row.session, row.dialect) == ("chat", "u-1", "s-9", pair.dialect)
    assert (row.model, row.stream, row.mode, row.key_id) == (pair.model, stream, "redacted", "")
    assert (row.input_tokens, row.output_tokens) == (20, 7)
    assert text.encode() in upstream.wait(text.split()[0])[0].body  # the model still got all of it
    assert row.at == pytest.approx(gateway.row(id=request_id)["at"])


def test_patterns_of_ones_own(gateway: Gateway, upstream: Upstream) -> None:
    row = captured(gateway, ask(gateway, SAME[0], text_of(upstream), "masked"))
    assert b"[CUSTOM_1]" in Seal().open(row.body, row.id)


def test_plain_is_as_it_came_and_encrypted_is_nowhere(gateway: Gateway, upstream: Upstream) -> None:
    text = text_of(upstream)
    plain = captured(gateway, ask(gateway, SAME[0], text, "own"))
    assert json.loads(Seal().open(plain.body, plain.id)) == SAME[0].body(text)
    row = captured(gateway, ask(gateway, SAME[0], text, "locked"))
    seal = Seal.of_text(KEY, "CAPTURE_KEY")
    assert json.loads(seal.open(row.body, row.id)) == SAME[0].body(text)
    assert (row.mode, row.key_id) == ("plain", seal.key_id)


def test_nothing_private_is_on_the_disk(gateways: MakeGateway, upstream: Upstream) -> None:
    no_plain = ROUTES.replace('[routes.own.capture]\nmode = "plain"\n', "")
    gateway = gateways(config(upstream, no_plain), {"CAPTURE_KEY": KEY})
    for pair in SAME:
        for route in ("chat", "locked", "other"):
            request_id = ask(gateway, pair, text_of(upstream), route)
            assert route == "other" or captured(gateway, request_id)
    gateway.row(id=request_id)
    bodies = b"".join(seen for row in rows(gateway, route="chat") for seen in [Seal().open(row.body, row.id)])
    everything = on_disk(gateway) + bodies
    assert b"chat" in everything
    for word in (*PRIVATE, CARD.replace(" ", ""), "sk-client", KEY):
        assert word.encode() not in everything, word
    assert not rows(gateway, route="other")
    for path in gateway.data_dir.glob("capture.sqlite*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_what_is_not_captured(gateway: Gateway, upstream: Upstream) -> None:
    pair = SAME[0]
    send(gateway, pair, b'{"model": "gpt", "messages": [', {"x-trimtab-route": "own"})
    send(gateway, pair, pair.body("x") | {"model": "none-such"}, {"x-trimtab-route": "own", "x-trimtab-user": "u-bad"})
    ask(gateway, pair, upstream.prompt(), "default", user="u-bad")
    last = ask(gateway, pair, upstream.prompt(), "own", user="u-good")
    captured(gateway, last)
    assert rows(gateway, user="u-bad") == []


def test_all_workers_write_and_all_of_it_is_counted(gateways: MakeGateway, upstream: Upstream) -> None:
    gateway = gateways(config(upstream), {"CAPTURE_KEY": KEY}, server="workers = 2")
    pair, marker = SAME[0], upstream.prompt()
    sent: list[str] = []
    deadline = time.monotonic() + 30
    while len({request_id[:-8] for request_id in sent}) < 2 or len(sent) < 40:
        assert time.monotonic() < deadline, "only one worker ever answered"
        sent.append(ask(gateway, pair, marker, "chat"))
    wait_until(lambda: len(rows(gateway)) >= len(sent), 15, "all rows")
    assert sorted(row.id for row in rows(gateway)) == sorted(sent)
    line = f"trimtab_capture_written_total {len(sent)}".encode()
    wait_until(lambda: line in gateway.get("/metrics")[1], 15, f"the metric to say {len(sent)}")
    gateway.stop()
    assert len(rows(gateway)) == len(sent)


def test_a_stop_flushes_and_a_reload_turns_it_on_and_off(gateways: MakeGateway, upstream: Upstream) -> None:
    gateway = gateways(config(upstream, ""))
    pair = SAME[0]
    ask(gateway, pair, upstream.prompt(), "chat")
    gateway.write_config(config(upstream, '[routes.chat.capture]\n[routes.new]\nmodel = "gpt"\n'))
    gateway.signal(signal.SIGHUP)
    wait_until(lambda: "worker0: configuration reloaded" in gateway.log(), 15, "the reload")
    first = ask(gateway, pair, upstream.prompt(), "chat")
    gateway.stop()  # at once: what waits must be written
    assert [row.id for row in rows(gateway)] == [first]
    assert b"[routes" not in on_disk(gateway)


def test_retention(gateways: MakeGateway, upstream: Upstream) -> None:
    gateway = gateways(config(upstream, "[routes.chat.capture]\nretention_days = 10\n"))
    old, new = (captured(gateway, ask(gateway, SAME[0], upstream.prompt(), "chat")).id for _ in range(2))
    gateway.stop()
    with sqlite3.connect(gateway.data_dir / "capture.sqlite") as file:
        file.execute("UPDATE captures SET at = at - 11 * 86400 WHERE id = ?", [old])
    file.close()
    gateway.start()
    wait_until(lambda: [row.id for row in rows(gateway)] == [new], 15, "the old row to go")


def test_a_key_that_is_missing_or_malformed_stops_the_start(upstream: Upstream, tmp_path: Path) -> None:
    for n, (env, said) in enumerate([({}, "is not set"), ({"CAPTURE_KEY": "c2hvcnQ="}, "5 bytes, not 32")]):
        gateway = Gateway(tmp_path / str(n), config(upstream), env)
        with pytest.raises(AssertionError, match="trimtab serve ended with 1"):
            gateway.start()
        assert "routes.locked.capture.key_env" in gateway.log()
        assert said in gateway.log()
        gateway.stop()


# Commands -------------------------------------------------------------------------------------------------------------


def test_summary_export_and_wrong_keys(gateway: Gateway, upstream: Upstream) -> None:
    text = text_of(upstream)
    captured(gateway, ask(gateway, SAME[0], text, "locked"))
    captured(gateway, ask(gateway, SAME[0], text, "chat"))
    lines = gateway.trimtab("capture", "summary", "--json").stdout.splitlines()
    by_route = {row["route"]: row for row in map(json.loads, lines)}
    locked = by_route["locked"]
    assert locked["encrypted"] == locked["plain"] == locked["requests"] >= 1
    assert by_route["chat"]["plain"] == by_route["chat"]["encrypted"] == 0
    shown = gateway.trimtab("capture")
    assert (shown.returncode, "redacted; not encrypted" in shown.stdout) == (0, True), shown.stderr
    done = gateway.trimtab("capture", "export", "--route", "chat", "--since", "1h", "--limit", "1000")
    assert done.returncode == 0, done.stderr
    exported = [json.loads(line) for line in done.stdout.splitlines()]
    assert any("[EMAIL_1]" in json.dumps(line["body"]) for line in exported)
    assert exported == sorted(exported, key=lambda line: line["timestamp"])
    assert MAIL not in done.stdout
    done = gateway.trimtab("capture", "export", "--route", "locked", "--key-env", "CAPTURE_KEY")
    assert text in done.stdout
    for arguments, said in [
        ((), "none was given"),
        (("--key-env", "NOT_SET_AT_ALL"), "NOT_SET_AT_ALL is not set"),
        (("--key-env", "PATH"), "PATH is not base64"),
    ]:
        done = gateway.trimtab("capture", "export", "--route", "locked", *arguments)
        assert (done.returncode, said in done.stderr, "Traceback" in done.stderr) == (1, True, False), done.stderr
    other = Gateway(gateway.folder / "empty", "").trimtab("capture", "summary")
    assert (other.returncode, "nothing was captured" in other.stderr) == (1, True)


def test_erase_while_it_runs(gateways: MakeGateway, upstream: Upstream) -> None:
    keys = "".join(f'[keys.{name}]\nhash = "{hashed_key(name)}"\ntenant = "{name}-corp"\n' for name in ("acme", "zeta"))
    gateway = gateways(config(upstream, ROUTES + keys), {"CAPTURE_KEY": KEY}, server="workers = 2")
    pair = SAME[0]

    def one(name: str, user: str) -> Captured:
        headers = {"authorization": f"Bearer key-{name}", "x-trimtab-route": "own", "x-trimtab-user": user}
        got = send(gateway, pair, pair.body(f"{upstream.prompt()} {os.urandom(3000).hex()}"), headers)
        assert got.status == 200
        return captured(gateway, got.request_id)

    gone = [one("acme", f"{name}-person") for name in ("anna", "bert", "anna")]
    kept = [one("zeta", "anna-person") for _ in range(3)]
    before = on_file(gateway)
    assert all(row.body[-1000:-900] in before for row in gone)
    declined = gateway.trimtab("capture", "erase", "--tenant", "acme-corp")
    assert (declined.returncode, len(rows(gateway))) == (1, 6)
    done = gateway.trimtab("capture", "erase", "--tenant", "acme-corp", "--user", "anna-person", "--yes")
    assert "Erased 2 requests" in done.stdout, done.stderr
    assert "Backups" in done.stdout
    after = on_file(gateway)
    assert b"acme-corpanna" not in after
    assert not any(row.body[at : at + 50] in after for row in (gone[0], gone[2]) for at in range(0, 3000, 500))
    done = gateway.trimtab("capture", "erase", "--tenant", "acme-corp", "--yes", "--json")
    assert json.loads(done.stdout)["erased"] == 1
    after = on_file(gateway)
    for word in (b"acme", b"bert", *(row.id.encode() for row in gone)):
        assert word not in after, word
    assert [row.id for row in rows(gateway)] == [row.id for row in kept]
    assert one("acme", "anna-person").id in {row.id for row in rows(gateway)}  # the gateway goes on


def hashed_key(name: str) -> str:
    from gateway_process import hashed

    return hashed(f"key-{name}")


def on_file(gateway: Gateway) -> bytes:
    return b"".join(path.read_bytes() for path in gateway.data_dir.glob("capture.sqlite*"))


# Replay ---------------------------------------------------------------------------------------------------------------


def replay(gateway: Gateway, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = dict(os.environ) | {"TRIMTAB_DATA_DIR": str(gateway.data_dir), "CAPTURE_KEY": KEY}
    command = [str(TRIMTAB), "replay", *arguments, "--json"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)


def test_replay_of_captured_traffic(gateways: MakeGateway, upstream: Upstream, tmp_path: Path) -> None:
    gateway = gateways(config(upstream), {"CAPTURE_KEY": KEY})
    openai_pair, anthropic_pair = SAME
    markers = [upstream.prompt() for _ in range(4)]
    bodies = []
    for n, marker in enumerate(markers):
        streamed = {"stream": True, "stream_options": {"include_usage": True}} if n % 2 else {}
        bodies.append(openai_pair.body(marker, temperature=n / 8, user="ä", **streamed))
        send(gateway, openai_pair, bodies[-1], {"x-trimtab-route": "locked"})
    send(gateway, anthropic_pair, anthropic_pair.body(upstream.prompt()), {"x-trimtab-route": "locked"})
    wait_until(lambda: len(rows(gateway)) == 5, 15, "the rows")
    target = ["--url", upstream.openai_url, "--speed", "50"]
    export = tmp_path / "traffic.jsonl"
    done = gateway.trimtab("capture", "export", "--key-env", "CAPTURE_KEY", "-o", str(export))
    assert (done.returncode, export.stat().st_mode & 0o777) == (0, 0o600), done.stderr
    traces = (
        ["captured", "--key-env", "CAPTURE_KEY", "--route", "locked"],
        [str(gateway.data_dir / "capture.sqlite"), "--key-env", "CAPTURE_KEY"],
        [str(export)],
    )
    for trace in traces:
        seen_before = len(upstream.seen)
        done = replay(gateway, *trace, *target)
        assert done.returncode == 0, done.stderr
        counts = json.loads(done.stdout)["counts"]
        assert (counts["in_trace"], counts["successful"], counts["other_dialect"]) == (5, 4, 1)
        arrived = [seen.json for seen in upstream.seen[seen_before:] if seen.method == "POST"]
        by_prompt = {
            body["messages"][0]["content"]: body for body in arrived
        }  # sent so fast, two may overtake each other
        assert [by_prompt[marker] for marker in markers] == bodies
        assert len(arrived) == len(bodies)
    for arguments, said in [
        (["captured"], "--key-env"),
        (["captured", "--key-env", "CAPTURE_KEY", "--tenant", "nobody"], "holds no captured request"),
        ([str(export), "--route", "locked"], "this trace is none"),
    ]:
        done = replay(gateway, *arguments, *target)
        assert (done.returncode, said in done.stderr, "Traceback" in done.stderr) == (1, True, False), done.stderr
