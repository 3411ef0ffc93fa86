"""Routing at work: a router from the real command, real processes, and two models whose answers are known."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asking import Got, Pair, send
from gateway_process import TRIMTAB, Gateway, MakeGateway
from scripted import Scripted

EASY, HARD = "which river garden bird?", "which integral tensor lemma?"
SORRY = "Perhaps it is something else, or nothing at all."
SHAKY = 107  # an easy question that the small model does not know
PRICES = "0.2,0.2,10,10"
PAIR = Pair("openai", "large")
LOOP = [
    {"role": "assistant", "content": None,
     "tool_calls": [{"id": "call_0", "type": "function", "function": {"name": "look", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "call_0", "content": "A wren."},
]  # fmt: skip
CONFIG = """
[engines.up]
kind = "openai_http"
base_url = "http://127.0.0.1:{port}/v1"

[models.small]
engine = "up"
price = {{ input_per_mtok = 0.2, output_per_mtok = 0.2 }}
[models.large]
engine = "up"
price = {{ input_per_mtok = 10.0, output_per_mtok = 10.0 }}

[levers.exact_cache]
enabled = false

[levers.route]
mode = "on"
gate = "advisory"
weak = "small"
strong = "large"
predictor = "{router}"
tools = "route"
timeout_ms = 3000

[routes.shared.levers.route]
cascade = false
strong_share = 0.5
"""


def question(number: int, kind: str = EASY) -> str:
    return f"Question {number}: {kind}"


def small_says(number: int, kind: str = EASY) -> str:
    return SORRY if number == SHAKY or kind == HARD else f"The sum is {number}. The answer is {number}."


def large_says(number: int) -> str:
    return f"It must be {number}."


class Models(Scripted):
    """Answers for either model, by the number in the last question that has one."""

    def say(self, model: str, messages: list[dict[str, Any]]) -> str:
        asked = " ".join(str(message["content"]) for message in messages)
        number, kind = re.findall(r"Question (\d+): (.*?\?)", asked)[-1]
        return small_says(int(number), kind) if model == "small" else large_says(int(number))


@pytest.fixture(scope="module")
def models() -> Iterator[Models]:
    with Models() as running:
        yield running


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained by the command, on questions the easy ones of which the small model gets right; mostly it knows."""
    folder, rng = tmp_path_factory.mktemp("labels"), random.Random(3)
    prompts, scores = [], [["", "small", "large"]]
    for n in range(100, 400):
        hard = rng.random() < 0.5
        right = int(rng.random() < (0.3 if hard else 0.95))
        knows = rng.random() < (0.97 if right else 0.05)
        said = f"The sum is {n}. The answer is {n}." if knows else SORRY
        prompts.append({"id": f"p{n}", "prompt": question(n, HARD if hard else EASY), "weak_response": said})
        scores.append([f"p{n}", str(right), "1"])
    with gzip.open(folder / "prompts.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(one) + "\n" for one in prompts)
    with gzip.open(folder / "scores.csv.gz", "wt", newline="") as file:
        csv.writer(file).writerows(scores)
    made = folder / "made.router"
    command = [str(TRIMTAB), "route", "train", "--data", str(folder), "--weak", "small", "--strong", "large"]
    command += ["--prices", PRICES, "--floor", "0.97", "--out", str(made), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["head"]["kind"] == "cascade"
    return made


def start(gateways: MakeGateway, models: Models, router: Path, workers: int = 1) -> Gateway:
    gateway = gateways(CONFIG.format(port=models.port, router=router), server=f"workers = {workers}")
    until_it_scores(gateway, workers)
    return gateway


@pytest.fixture(scope="module")
def gateway(gateways: MakeGateway, models: Models, router: Path) -> Gateway:
    return start(gateways, models, router)


def ask(gateway: Gateway, *turns: Any, route: str = "default", **fields: Any) -> Got:
    """A request of these turns, texts being the user's."""
    messages = [{"role": "user", "content": turn} if isinstance(turn, str) else turn for turn in turns]
    got = send(gateway, PAIR, {"model": "large", "messages": messages} | fields, {"x-trimtab-route": route})
    assert got.status == 200, got.body
    assert not got.broken
    return got


def text(got: Got) -> str:
    return str(got.json["choices"][0]["message"]["content"])


def why(got: Got) -> str:
    return str(got.headers["x-trimtab-decision"])


def until_it_scores(gateway: Gateway, workers: int = 1) -> None:
    """Workers serve before the process that scores is up, and each connects to it when it is first asked."""
    deadline, scoring = time.monotonic() + 60, set[str]()
    while len(scoring) < workers:
        assert time.monotonic() < deadline, gateway.log()
        got = ask(gateway, question(101))
        if "no score" not in why(got):
            scoring.add(worker(got))


def worker(got: Got) -> str:
    """The process that answered: its own part of the request's id."""
    return got.request_id[:15]


def test_a_prompt_goes_to_the_model_that_it_takes_and_the_share_is_kept(gateway: Gateway) -> None:
    served = {EASY: 0, HARD: 0}
    for number in range(101, 141):
        for kind in served:
            served[kind] += text(ask(gateway, question(number, kind), route="shared")) == large_says(number)
    assert served[HARD] >= 34, served
    assert served[EASY] <= 6, served
    assert 32 <= sum(served.values()) <= 48


def test_a_good_answer_goes_out_and_its_cost_is_on_the_bill(gateway: Gateway) -> None:
    got = ask(gateway, question(105))
    assert text(got) == small_says(105)
    assert re.search(
        r"route=change \(small first: gain [-+]\d\.\d\d, gate advisory; accepted after \d+\.\d\d s", why(got)
    ), why(got)
    row = gateway.row(id=got.request_id)
    assert [(call["model"], call["purpose"]) for call in row["calls"]] == [("small", "serve")]
    assert (row["cost_nusd"], row["baseline_nusd"]) == (120 * 200, 120 * 10_000)
    assert float(got.headers["x-trimtab-cost-usd"]) == pytest.approx(row["cost_nusd"] / 1e9)


def test_a_bad_answer_is_never_seen_and_both_calls_are_on_the_bill(gateway: Gateway) -> None:
    got = ask(gateway, question(SHAKY))
    assert text(got) == large_says(SHAKY)
    assert "escalated after" in why(got)
    row = gateway.row(id=got.request_id)
    calls = [(call["model"], call["purpose"], call["end"], call["cost_nusd"]) for call in row["calls"]]
    assert calls == [("small", "serve", "ok", 120 * 200), ("large", "cascade", "ok", 120 * 10_000)]
    assert row["cost_nusd"] == 120 * 10_200
    assert row["baseline_nusd"] == 120 * 10_000
    (decision,) = [one for one in json.loads(row["detail"])["decisions"] if one["lever"] == "route"]
    assert decision["score"] > decision["threshold"]
    assert {"route", "route_check"} <= json.loads(row["detail"])["stages"].keys()


@pytest.mark.parametrize(("number", "said"), [(105, small_says(105)), (SHAKY, large_says(SHAKY))])
def test_a_held_stream_is_whole_and_one_models_alone(gateway: Gateway, number: int, said: str) -> None:
    got = ask(gateway, question(number), stream=True, stream_options={"include_usage": True})
    assert got.headers["content-type"].startswith("text/event-stream")
    events = got.body.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    pieces = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
    assert "".join(pieces) == said
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks if chunk.get("usage")] == [20]
    row = gateway.row(id=got.request_id)
    assert row["ttft_s"] is not None
    assert len(row["calls"]) == 1 + (number == SHAKY)


def test_a_conversation_stays_with_its_model_whichever_worker_has_it(
    gateways: MakeGateway, models: Models, router: Path
) -> None:
    gateway = start(gateways, models, router, workers=2)
    assert text(ask(gateway, question(109, HARD))) == large_says(109)  # asked by itself it is too hard
    offered = {"tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]}
    moved = 0
    for number in range(110, 140):
        begun = ask(gateway, question(number))
        assert text(begun) == small_says(number)
        said = {"role": "assistant", "content": text(begun)}
        looped = ask(gateway, question(number), said, question(108, HARD), *LOOP, **offered)
        later = ask(gateway, question(number), said, question(109, HARD))
        assert (text(looped), text(later)) == (SORRY, SORRY), (why(looped), why(later))
        assert "in a tool loop" in why(looped)
        assert "stays with its model" in why(later)
        moved += len({worker(got) for got in (begun, looped, later)}) == 2
        if moved == 3:
            return
    pytest.fail(f"{moved} conversations came to both workers; this shows nothing")


def test_without_the_process_that_scores_the_strong_model_answers(
    gateways: MakeGateway, models: Models, router: Path
) -> None:
    gateway = start(gateways, models, router)
    (beside,) = gateway.children("trimtab-similar")
    os.kill(beside, signal.SIGSTOP)
    hanging = ask(gateway, question(105))
    assert (text(hanging), "no score in time" in why(hanging)) == (large_says(105), True)
    os.kill(beside, signal.SIGKILL)
    dead = ask(gateway, question(105))
    assert text(dead) == large_says(105)
    assert gateway.row(id=dead.request_id)["end"] == "ok"
    until_it_scores(gateway)
    assert text(ask(gateway, question(105))) == small_says(105)
