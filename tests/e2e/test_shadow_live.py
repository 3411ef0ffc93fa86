"""A/B and shadow at work: a candidate that turns bad is switched off by itself, and an equal one stays on."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from arithmetic import Abacus, Alarms, answer, question
from asking import Got, Pair, post, send
from gateway_process import Gateway, MakeGateway
from upstream import wait_until

CONFIG = """
[telemetry]
alert_webhook_env = "ALERTS"

[engines.sums]
kind = "openai_http"
base_url = "http://127.0.0.1:{port}/v1"

[models.good]
engine = "sums"
price = {{ input_per_mtok = 1.0, output_per_mtok = 2.0 }}
[models.other]
engine = "sums"
price = {{ input_per_mtok = 0.1, output_per_mtok = 0.2 }}
[models.equal]
engine = "sums"
price = {{ input_per_mtok = 0.1, output_per_mtok = 0.2 }}

[routes.default]
model = "good"
[routes.default.levers.ab]
model = "other"
gate = "advisory"
share = 1.0
by = "request"
[routes.default.shadow]
share = 1.0

[routes.steady]
model = "good"
[routes.steady.levers.ab]
model = "equal"
gate = "advisory"
share = 1.0
[routes.steady.shadow]
share = 1.0

[routes.split]
model = "good"
[routes.split.levers.ab]
model = "equal"
gate = "advisory"
share = 0.5
"""
NUMBERS = count(1)


@pytest.fixture(scope="module")
def abacus() -> Iterator[Abacus]:
    with Abacus() as running:
        yield running


@pytest.fixture(scope="module")
def alarms() -> Iterator[Alarms]:
    with Alarms() as running:
        yield running
        running.shutdown()


@pytest.fixture(scope="module")
def gateway(gateways: MakeGateway, abacus: Abacus, alarms: Alarms) -> Gateway:
    gateway = gateways(CONFIG.format(port=abacus.port), {"ALERTS": alarms.url}, ready_s=60)
    until_it_compares(gateway)
    return gateway


def ask(gateway: Gateway, number: int, route: str = "default", **headers: str) -> Got:
    body = {"model": "good", "messages": [{"role": "user", "content": question(number)}], "temperature": 0}
    named = {f"x-trimtab-{name}": value for name, value in headers.items()}
    return send(gateway, Pair("openai", "good"), body, {"x-trimtab-route": route} | named)


def text(got: Got) -> str:
    return str(got.json["choices"][0]["message"]["content"])


def lever(gateway: Gateway, route: str = "default") -> dict[str, Any]:
    done = gateway.trimtab("levers", "status", "--json")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    (row,) = [row for row in rows if (row["route"], row["lever"]) == (route, "ab")]
    return dict(row)


def until_it_compares(gateway: Gateway) -> None:
    """Workers serve before the process that compares is up; until then nobody can tell."""
    deadline = time.monotonic() + 60
    while not lever(gateway, "steady")["pairs"]:
        assert time.monotonic() < deadline, gateway.log()
        ask(gateway, next(NUMBERS), "steady")


def verdicts(gateway: Gateway, route: str) -> int:
    connection = sqlite3.connect(f"file:{gateway.data_dir}/ledger.sqlite?mode=ro", uri=True)
    try:
        return int(connection.execute("SELECT COUNT(loss) FROM verdicts WHERE route = ?", (route,)).fetchone()[0])
    finally:
        connection.close()


def is_off(got: Got) -> bool:
    return "switched off" in got.headers["x-trimtab-decision"]


def test_a_lever_that_turns_bad_is_switched_off_and_a_person_brings_it_back(
    gateway: Gateway, abacus: Abacus, alarms: Alarms
) -> None:
    abacus.every = 0
    for number in range(1000, 1040):
        assert not is_off(ask(gateway, number))
    wait_until(lambda: verdicts(gateway, "default") >= 20, 20, "verdicts on a lever that is right")
    assert lever(gateway)["on"]

    abacus.every = 5
    for number in range(2000, 3200):  # at 10% it would be a tenth of the pairs
        got = ask(gateway, number)
        if is_off(got):
            break
        time.sleep(0.002)
    assert is_off(got), lever(gateway)
    served = abacus.asked["other"]
    for number in range(4000, 4020):
        got = ask(gateway, number)
        assert is_off(got) and text(got) == answer(number)
    assert abacus.asked["other"] == served

    status = lever(gateway)
    assert (status["on"], status["by"], status["model"]) == (False, "monitor", "other")
    assert 0.02 < status["loss"] < 0.4
    assert "worse than the margin of 0.05" in status["why"]
    shown = gateway.trimtab("levers", "status")
    assert "OFF" in shown.stdout
    wait_until(lambda: alarms.told, 10, "the alert")
    (alarm,) = alarms.told
    assert (alarm["state"], alarm["lever"], alarm["route"]) == ("off", "ab", "default")
    assert alarm["pairs"] == status["pairs"]
    assert gateway.log().count("switched itself off") == 1
    assert json.loads((gateway.data_dir / "run" / "levers-off.json").read_text())[0]["lever"] == "ab"

    gateway.kill()
    gateway.start(60)
    assert is_off(ask(gateway, 5000))
    assert len(alarms.told) == 1

    done = gateway.trimtab("levers", "on", "ab", "--route", "default", "--reason", "a new version")
    assert done.returncode == 0, done.stderr
    wait_until(lambda: not is_off(ask(gateway, next(NUMBERS))), 10, "the lever to be on again")
    assert abacus.asked["other"] > served
    status = lever(gateway)
    assert status["on"] and status["by"] != "monitor" and status["pairs"] < 30
    wait_until(lambda: len(alarms.told) == 2, 10, "word of it")
    assert (alarms.told[1]["state"], alarms.told[1]["reason"]) == ("on", "a new version")


def test_an_equal_one_stays_on_and_shadows_are_on_nobodys_bill(gateway: Gateway, abacus: Abacus) -> None:
    before = verdicts(gateway, "steady")
    for number in range(6000, 6150):
        assert not is_off(ask(gateway, number, "steady", workflow="steady"))
    wait_until(lambda: verdicts(gateway, "steady") >= before + 50, 20, "verdicts")
    status = lever(gateway, "steady")
    assert status["on"] and status["loss"] == 0.0 and status["upper"] < 0.2
    bill = summary(gateway, "--workflow", "steady")
    assert (bill["requests"], bill["cost_nusd"]) == (150, 150 * 14_000)
    assert bill["baseline_nusd"] == 150 * 140_000  # what the reference would have cost
    metrics = gateway.get("/metrics")[1].decode()
    assert 'trimtab_shadow_total{route="steady",lever="ab",result="judged"}' in metrics


def summary(gateway: Gateway, *options: str) -> dict[str, Any]:
    done = gateway.trimtab("ledger", "summary", "--json", *options)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    return dict(json.loads(line))


def test_a_person_switches_it_off(gateway: Gateway) -> None:
    assert gateway.trimtab("levers", "off", "ab", "--route", "split", "--reason", "a hunch").returncode == 0
    wait_until(lambda: is_off(ask(gateway, next(NUMBERS), "split")), 10, "the lever to be off")
    got = ask(gateway, next(NUMBERS), "split")
    assert "a hunch" in got.headers["x-trimtab-decision"]
    assert gateway.trimtab("levers", "on", "ab", "--route", "split").returncode == 0
    wait_until(lambda: not is_off(ask(gateway, next(NUMBERS), "split")), 10, "the lever to be on")


def test_users_say_what_they_think(gateway: Gateway) -> None:
    got = ask(gateway, next(NUMBERS), "split")
    for body in ({"rating": "down"}, {"score": 0.75, "comment": "fine"}):
        reply = say(gateway, {"request_id": got.request_id} | body)
        assert reply.status_code == 202, reply.text
    wait_until(lambda: "0.75: fine" in gateway.trimtab("ledger", "show", got.request_id).stdout, 10, "the feedback")
    wrong = say(gateway, {"request_id": got.request_id, "score": 7})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "score")
    assert gateway.get("/v1/feedback")[0] == 405


def say(gateway: Gateway, body: dict[str, Any]) -> Any:
    headers = {"content-type": "application/json", "authorization": "Bearer sk-client"}
    return post(gateway.base_url + "/v1/feedback", json.dumps(body).encode(), headers)


def test_nothing_passes_from_one_arm_to_the_other(gateway: Gateway, abacus: Abacus) -> None:
    """The exact cache is on: what either arm has is no answer for the other, and each keeps its own."""
    first: dict[str, str] = {}  # what the cache said to the first of each arm
    for user in range(30):
        arm, word = _arm_and_cache(gateway, user)
        first.setdefault(arm, word)
    assert first == {"A": "miss", "B": "miss"}
    before = (abacus.heard["equal", 7000], abacus.heard["good", 7000])
    later = {_arm_and_cache(gateway, user) for user in range(30, 60)}
    assert later == {("A", "hit"), ("B", "hit")}
    assert (abacus.heard["equal", 7000], abacus.heard["good", 7000]) == before


def _arm_and_cache(gateway: Gateway, user: int) -> tuple[str, str]:
    got = ask(gateway, 7000, "split", user=f"u{user}", cache="public")
    return "B" if "arm B" in got.headers["x-trimtab-decision"] else "A", got.headers["x-trimtab-cache"]


def test_both_arms_are_reported(gateway: Gateway) -> None:
    for user in range(200):
        ask(gateway, next(NUMBERS), "split", user=f"r{user}")
    wait_until(lambda: sum(units(gateway).values()) >= 200, 20, "both arms")
    done = gateway.trimtab("ab", "split", "--json")
    found = json.loads(done.stdout)
    assert found["trusted"] and found["arms"]["B"]["models"] == ["equal"]
    assert 0.3 < found["arms"]["B"]["share_realised"] < 0.7
    assert found["arms"]["B"]["p50_s"] > 0
    assert gateway.trimtab("ab", "split").returncode == 0


def units(gateway: Gateway) -> dict[str, int]:
    found = json.loads(gateway.trimtab("ab", "split", "--json").stdout)
    return {name: arm["units"] for name, arm in found["arms"].items()}
