"""The semantic cache at work: real processes, real embedders, and an upstream that knows a few topics."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from asking import Got, Pair, send
from gateway_process import Gateway, MakeGateway, new_id
from questions import metric
from scripted import Scripted

SYSTEM = "You answer questions about our shop in one sentence."
ANSWERS = {
    "password": "Use the reset link on the sign-in page and choose a new password.",
    "return": "You may send goods back within thirty days, in their box.",
    "gift": "We wrap presents for two euros each.",
    "opening": "The shop is open from nine in the morning until six.",
}

PARCEL = [
    "It leaves our depot on the evening you order and reaches you the day after.",
    "The courier fetches it in the evening and brings it to you the next day.",
]


class Librarian(Scripted):
    """Answers by the first topic that a question names, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()
        self.wording = 0

    def say(self, model: str, messages: list[dict[str, Any]]) -> str:
        question = messages[-1]["content"]
        self.asked[question] += 1
        if model == "judge":
            return '{"verdict": "same"}'
        if "parcel" in question:  # worded anew each time, too far apart for our own judges
            return PARCEL[self.wording]
        return next((answer for word, answer in ANSWERS.items() if word in question.lower()), "I do not know.")


@pytest.fixture(scope="module")
def librarian() -> Iterator[Librarian]:
    with Librarian() as running:
        yield running


def config(port: int, **semantic: Any) -> str:
    if semantic.get("mode") == "static":
        semantic.setdefault("gate", "advisory")
    settings = "\n".join(f"{name} = {json.dumps(value)}" for name, value in semantic.items())
    return f"""
[engines.shop]
kind = "openai_http"
base_url = "http://127.0.0.1:{port}/v1"
accept_any_model = true
provider = "openai"

[levers.exact_cache]
enabled = false

[levers.semantic_cache]
timeout_ms = 5000
{settings}
"""


def body_of(question: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return {"model": "gpt-4o-mini", "messages": messages, "temperature": 0} | more


def ask(gateway: Gateway, question: str, headers: dict[str, str] | None = None, **more: Any) -> Got:
    return send(gateway, Pair("openai", "gpt"), body_of(question, **more), headers or {})


def cache_of(got: Got) -> str:
    assert got.status == 200, got.body
    return str(got.headers["x-trimtab-cache"])


def until_it_is_there(gateway: Gateway) -> None:
    """Workers serve before the process with the answers is up."""
    deadline = time.monotonic() + 60
    while cache_of(ask(gateway, "Is anybody there?")) == "bypass":
        assert time.monotonic() < deadline, gateway.log()
        time.sleep(0.2)


def teach(gateway: Gateway, question: str, **more: Any) -> None:
    """Ask until the process has learned the answer: an equal question is answered by it."""
    ask(gateway, question, **more)
    deadline = time.monotonic() + 20
    while cache_of(ask(gateway, question, **more)) != "semantic":
        assert time.monotonic() < deadline, gateway.log()
        time.sleep(0.2)


@pytest.fixture(scope="module")
def static(gateways: MakeGateway, librarian: Librarian) -> Gateway:
    """Reuses at a cosine of 0.75, and asks the model all the same each time."""
    return gateways(config(librarian.port, mode="static", threshold=0.75, audit_share=1.0), ready_s=180)


def test_the_same_in_other_words_is_answered_from_the_cache(static: Gateway) -> None:
    workflow = new_id()
    teach(static, "How do I reset my password?")
    got = ask(static, "How can I reset the password?", {"x-trimtab-workflow": workflow})
    assert cache_of(got) == "semantic"
    assert got.json["choices"][0]["message"]["content"] == ANSWERS["password"]
    row = static.row(workflow=workflow, cache="semantic")
    assert (row["cost_nusd"], row["calls"]) == (0, [])
    assert row["baseline_nusd"] > 0
    (decision,) = [d for d in json.loads(row["detail"])["decisions"] if d["lever"] == "semantic_cache"]
    assert decision["step"] == "answer"
    assert "cosine" in decision["reason"]


def test_a_stream_gets_it_as_a_stream(static: Gateway) -> None:
    teach(static, "How do I reset my password?")
    got = ask(static, "How can I reset the password?", stream=True)
    assert cache_of(got) == "semantic"
    assert got.body.decode().rstrip().endswith("data: [DONE]")
    assert ANSWERS["password"] in got.body.decode()


def test_another_question_is_not_answered_from_it(static: Gateway) -> None:
    teach(static, "How do I reset my password?")
    got = ask(static, "Do you wrap a gift?")
    assert cache_of(got) == "miss"
    assert got.json["choices"][0]["message"]["content"] == ANSWERS["gift"]


@pytest.mark.parametrize(
    "other",
    [
        {"model": "gpt-4o"},
        {"max_tokens": 50},
        {"response_format": {"type": "text"}},
        {"seed": 7},
        {"messages": [{"role": "user", "content": "How can I return a parcel?"}]},
        {
            "messages": [
                {"role": "system", "content": "Rhyme."},
                {"role": "user", "content": "How can I return a parcel?"},
            ]
        },
    ],
    ids=lambda other: next(iter(other)),
)
def test_nothing_crosses_from_another_context(static: Gateway, other: dict[str, Any]) -> None:
    teach(static, "How can I return goods?")
    assert cache_of(ask(static, "How can I return goods?", **other)) in ("miss", "bypass")


@pytest.mark.parametrize(
    "header", ["permission", "user", "prompt-version", "corpus-version", "policy-version", "route"]
)
def test_nothing_crosses_scopes(static: Gateway, header: str) -> None:
    teach(static, "How can I return goods?")
    got = ask(static, "How can I return goods?", {f"x-trimtab-{header}": new_id()})
    assert cache_of(got) == "miss"


def test_an_audit_has_a_row_of_its_own_and_is_on_nobodys_bill(static: Gateway, librarian: Librarian) -> None:
    teach(static, "When is the shop opening?")
    workflow = new_id()
    question = "When is the shop opening on weekdays?"
    before = librarian.asked[question]
    got = ask(static, question, {"x-trimtab-workflow": workflow})
    assert cache_of(got) == "semantic"
    rows = static.ledger(workflow=workflow, count=2)
    (audit,) = [row for row in rows if row["purpose"] == "shadow"]
    assert audit["id"] == f"{got.request_id}-shadow"
    assert [call["purpose"] for call in audit["calls"]] == ["shadow"]
    assert audit["cost_nusd"] > 0
    assert librarian.asked[question] == before + 1
    (total,) = summary(static, "--workflow", workflow)
    assert (total["requests"], total["cost_nusd"], total["semantic_hits"]) == (1, 0, 1)
    by_purpose = {row["purpose"]: row for row in summary(static, "--workflow", workflow, "--by", "purpose")}
    assert by_purpose["shadow"]["cost_nusd"] == audit["cost_nusd"]


def test_a_model_says_what_our_own_judges_cannot(gateways: MakeGateway, librarian: Librarian) -> None:
    semantic = {"mode": "static", "threshold": 0.75, "audit_share": 1.0, "judge_model": "judge"}
    gateway = gateways(config(librarian.port, **semantic), ready_s=180)
    until_it_is_there(gateway)
    teach(gateway, "How long does a parcel take?")
    workflow = new_id()
    librarian.wording = 1
    got = ask(gateway, "How long does a parcel take here?", {"x-trimtab-workflow": workflow})
    assert cache_of(got) == "semantic"
    rows = {row["id"]: row for row in gateway.ledger(workflow=workflow, count=3)}
    judge = rows[f"{got.request_id}-judge"]
    assert [(call["purpose"], call["model"]) for call in judge["calls"]] == [("judge", "judge")]
    assert judge["purpose"] == "judge"
    assert summary(gateway, "--workflow", workflow)[0]["requests"] == 1
    deadline = time.monotonic() + 20
    while not (audits := spaces(gateway)[0])["audits"]:
        assert time.monotonic() < deadline, gateway.log()
        time.sleep(0.2)
    assert audits["audited_wrong"] == 0


def spaces(gateway: Gateway) -> list[dict[str, Any]]:
    """How each tenant's route is doing."""
    stats = gateway.trimtab("cache", "stats", "--json")
    assert stats.returncode == 0, stats.stderr
    found: list[dict[str, Any]] = json.loads(stats.stdout.splitlines()[0])["semantic"]
    return found


def summary(gateway: Gateway, *options: str) -> list[dict[str, Any]]:
    done = gateway.trimtab("ledger", "summary", "--json", *options)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(("model", "size"), [("trimtab-fast", 256), ("trimtab-accurate", 384)])
def test_embeddings_by_the_models_of_the_cache(static: Gateway, model: str, size: int) -> None:
    until_it_is_there(static)
    client = static.openai()
    near, nearer, far = client.embeddings.create(
        model=model, input=["How do I reset my password?", "Resetting the password", "Fish soup"]
    ).data
    assert len(near.embedding) == size
    assert sum(x * x for x in near.embedding) == pytest.approx(1, abs=1e-3)

    def cosine(a: Any, b: Any) -> float:
        return float(sum(x * y for x, y in zip(a.embedding, b.embedding, strict=True)))

    assert cosine(near, nearer) > cosine(near, far) + 0.2
    as_floats = client.embeddings.create(model=model, input="How do I reset my password?", encoding_format="float")
    assert as_floats.data[0].embedding == pytest.approx(near.embedding, abs=1e-5)
    assert as_floats.usage.prompt_tokens > 3
    assert model in {known.id for known in client.models.list()}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"input": [1, 2]}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": "a", "dimensions": 8}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
    ],
)
def test_wrong_embedding_requests_name_the_field(static: Gateway, body: dict[str, Any], field: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        static.openai().post("/embeddings", body={"model": "trimtab-fast"} | body, cast_to=object)
    assert raised.value.param == field


def test_excluded_questions_say_why(static: Gateway) -> None:
    history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    for more, word in (
        ({"messages": [*history, {"role": "user", "content": "How can I return goods?"}]}, "turn"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, "tool"),
        ({"temperature": 1}, "temperature"),
    ):
        got = ask(static, "How can I return goods?", **more)
        assert cache_of(got) == "bypass"
        assert word in got.headers["x-trimtab-decision"]


def test_a_purge_reaches_it(static: Gateway) -> None:
    teach(static, "Can you wrap a gift?")
    done = static.trimtab("cache", "purge")
    assert done.returncode == 0, done.stderr
    assert cache_of(ask(static, "Can you wrap a gift?")) == "miss"


def test_without_its_process_requests_go_on_and_then_it_is_back_with_what_it_knew(static: Gateway) -> None:
    teach(static, "How can I return goods?")
    time.sleep(2.5)  # it commits every two seconds; what comes later may be lost
    (pid,) = static.children("trimtab-similar")
    os.kill(pid, signal.SIGKILL)
    assert cache_of(ask(static, "How could I return the goods?")) in ("miss", "bypass")
    deadline = time.monotonic() + 60
    while cache_of(ask(static, "How can I return goods?")) != "semantic":
        assert time.monotonic() < deadline, static.log()
        time.sleep(0.2)
    assert metric(static, "trimtab_semantic_skipped_total") > 0
    ends = [line for line in static.log().splitlines() if f"semantic cache (pid {pid}) ended" in line]
    assert len(ends) == 1 and "starting it again" in ends[0]


@pytest.fixture(scope="module")
def hasty(gateways: MakeGateway, librarian: Librarian) -> Gateway:
    """Waits 200 ms for the process."""
    text = config(librarian.port, mode="static", threshold=0.75)
    gateway = gateways(text, ready_s=180)
    gateway.write_config(text.replace("5000", "200"))
    gateway.signal(signal.SIGHUP)
    return gateway


def test_a_process_that_hangs_holds_up_a_few_requests_only(hasty: Gateway) -> None:
    gateway = hasty
    teach(gateway, "How can I return goods?")
    skipped = metric(gateway, "trimtab_semantic_skipped_total")
    (pid,) = gateway.children("trimtab-similar")
    os.kill(pid, signal.SIGSTOP)
    workflow = new_id()
    for _ in range(20):
        assert cache_of(ask(gateway, "How can I return goods?", {"x-trimtab-workflow": workflow})) == "bypass"
    waits = [
        json.loads(row["detail"])["stages"]["semantic_cache"] > 0.1
        for row in gateway.ledger(workflow=workflow, count=20)
    ]
    assert sum(waits) < 15  # three, and then one a second
    assert metric(gateway, "trimtab_semantic_skipped_total") == skipped + 20
    os.kill(pid, signal.SIGCONT)
    teach(gateway, "How can I return goods?")
    said = [line.partition("the semantic cache ")[2] for line in gateway.log().splitlines() if "WARNING" in line]
    assert said == ["gives no answer in time; requests go on without it", "answers again"]


def test_a_disk_that_runs_full(hasty: Gateway) -> None:
    teach(hasty, "How can I return goods?")
    skipped = metric(hasty, "trimtab_semantic_skipped_total")
    (pid,) = hasty.children("trimtab-similar")
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    written = (hasty.data_dir / "cache" / "similar.sqlite-wal").stat().st_size  # the log is shorter, and may grow
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (written, hard))
    for _ in range(5):  # contexts that cannot be begun
        got = ask(hasty, "How can I return goods?", {"x-trimtab-user": new_id()})
        assert cache_of(got) == "bypass"
        assert got.json["choices"][0]["message"]["content"] == ANSWERS["return"]
    time.sleep(1.1)  # after several that were late in a row, one a second is asked
    got = ask(hasty, "How can I return goods?")
    assert got.json["choices"][0]["message"]["content"] == ANSWERS["return"]
    assert metric(hasty, "trimtab_semantic_skipped_total") >= skipped + 5
    assert metric(hasty, "trimtab_semantic_errors_total") > 0
    said = [line for line in hasty.log().splitlines() if "the semantic cache goes without" in line]
    assert len(said) == 1
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
    teach(hasty, "Can you wrap a gift?")


def test_shadow_never_answers_and_promise_stays_closed_at_first(gateways: MakeGateway, librarian: Librarian) -> None:
    routes = '\n[routes.bot.levers.semantic_cache]\nmode = "promise"\n'
    gateway = gateways(config(librarian.port, mode="shadow") + routes, ready_s=180)
    until_it_is_there(gateway)
    for route, reason in (("default", "shadow"), ("bot", "closed")):
        for _ in range(4):
            for word in ("password", "gift", "return"):
                got = ask(gateway, f"What about a {word}?", {"x-trimtab-route": route})
                assert cache_of(got) == "miss"
        seen = got.headers["x-trimtab-decision"]
        assert "closed" in seen or reason in seen
    found = spaces(gateway)
    assert {space["route"] for space in found} == {"default", "bot"}
    assert {space["route"]: space["requests"] for space in found} == {"default": 13, "bot": 12}
    assert not any(space["hits"] for space in found)


def test_a_file_that_is_no_database_is_set_aside(gateways: MakeGateway, librarian: Librarian) -> None:
    gateway = gateways(config(librarian.port, mode="static", threshold=0.75), ready_s=180)
    teach(gateway, "How do I reset my password?")
    gateway.stop()
    (gateway.data_dir / "cache" / "similar.sqlite").write_bytes(b"no database" * 1000)
    for suffix in ("-wal", "-shm"):
        (gateway.data_dir / "cache" / f"similar.sqlite{suffix}").unlink(missing_ok=True)
    gateway.start(180)
    teach(gateway, "How do I reset my password?")
    assert (gateway.data_dir / "cache" / "similar.corrupt").exists()
