"""Do agents' sessions keep their model? A recorded trace of tool calls, rebuilt and sent through a routing gateway.

    make bench-route-sessions TRACE=file                  under a minute
    .venv/bin/python bench/route_sessions.py --trace file [--sessions 200] [--out FILE]

A line of the trace is a call: session_id, turn, input_length, output_length, tool_calls (of its answer), hash_ids
(blocks of 16 tokens, equal where prompts are). Each session becomes chat requests of these lengths, each of which goes
on where the one before it ended: filler words made from the blocks, a tool's result after an answer with tool calls,
else a user's turn. Eight sessions run at a time through a real `trimtab serve`, in front of an upstream that knows
prefixes as providers do. Who is asked is graded by a scripted cheap model from a hash of the prompt: half are easy.

It is run with `sticky = "session"`, with `sticky = "turn"`, and so with a dial and prefixes that count as forgotten at
once, so that only a tool loop holds a model; each without and with the header `x-trimtab-session`. The strong model
alone is run for the cost.
The ledger says which model served each call. None may change within a tool loop, with "session" none at all. With
"turn" none may change where to read the prefix anew costs more than the other model saves on that call: by the trace's
tokens, the models' prices, and an answer of 300 tokens, since nobody knows its length before. What the true lengths and
the rest of the session say is shown, too. Exit code 1 for a change that may not be, and if there was none that may.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

import report
from instruments.live import Client, Gateway, Upstream, stopped
from instruments.recorded import CHARS_A_TOKEN, GRADER

BLOCK_TOKENS = 16
AT_ONCE = 8
SPEED = 20_000.0
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TAKEN_OUTPUT = 300  # tokens, as the gateway takes them before it knows better
PRICED = ("input", "cache_read", "output")
PRICES = {"strong": (2.5, 0.25, 10.0), "weak": (1.0, 0.1, 4.0)}  # so that some changes pay and others do not
SETTINGS: dict[str, dict[str, Any]] = {
    "session": {"sticky": "session", "cache_life_s": 300},
    "turn": {"sticky": "turn", "cache_life_s": 300},
    "dial": {"sticky": "turn", "cache_life_s": 0, "strong_share": 0.5},
}
RUNS = [("all_strong", "all_strong", False)] + [
    (f"{name}{'_named' * named}", name, named) for name in SETTINGS for named in (False, True)
]
CONFIG = """
[engines.up]
kind = "openai_http"
base_url = "http://127.0.0.1:{port}/v1"

[models.grader]
engine = "up"
price = {{ input_per_mtok = 0.05, output_per_mtok = 0.2 }}
{models}
[levers.exact_cache]
enabled = false
"""
MODEL = """
[models.{name}]
engine = "up"
price = {{ input_per_mtok = {price[0]}, cache_read_per_mtok = {price[1]}, output_per_mtok = {price[2]} }}
"""
ROUTE = """
[routes.{name}.levers.route]
mode = "on"
gate = "advisory"
weak = "weak"
strong = "strong"
predictor = "classifier"
classifier_model = "grader"
classifier_timeout_ms = 30000
tools = "route"
{own}
"""


class Call(msgspec.Struct, frozen=True):
    """One line of the trace."""

    session_id: str
    turn: int
    input_length: int
    output_length: int
    tool_calls: list[str]
    hash_ids: list[int]


Session = list[Call]


def read(path: Path, most: int) -> list[Session]:
    """The trace's sessions, in file order, at most so many."""
    decode, sessions = msgspec.json.Decoder(Call).decode, dict[str, Session]()
    with gzip.open(path) as file:
        for line in file:
            call = decode(line)
            sessions.setdefault(call.session_id, []).append(call)
    return list(sessions.values())[:most]


@cache
def block(name: str) -> str:
    """The text of a block: sixteen words of three letters, from its name."""
    drawn = hashlib.shake_128(name.encode()).digest(3 * BLOCK_TOKENS)
    words = ["".join(LETTERS[byte % 26] for byte in drawn[at : at + 3]) for at in range(0, len(drawn), 3)]
    return " ".join(words) + " "


def requests(session: Session, instructions: int) -> list[dict[str, Any]]:
    """A session's requests, the first so many tokens of which are instructions."""
    last = session[-1]
    ids = [str(one) for one in last.hash_ids]
    ids += [f"{last.session_id}-{n}" for n in range(last.input_length // BLOCK_TOKENS + 1 - len(ids))]
    whole = "".join(block(one) for one in ids)

    def text(start: int, end: int) -> str:
        return whole[CHARS_A_TOKEN * start : CHARS_A_TOKEN * end]

    messages = [
        {"role": "system", "content": text(0, instructions)},
        {"role": "user", "content": text(instructions, session[0].input_length)},
    ]
    found = [list(messages)]
    for call, following in pairwise(session):
        said = call.input_length + call.output_length
        answer, heard = text(call.input_length, said), text(said, following.input_length)
        if call.tool_calls:
            made = [
                {"id": f"call_{n}", "type": "function", "function": {"name": name, "arguments": answer * (n == 0)}}
                for n, name in enumerate(call.tool_calls)
            ]
            messages.append({"role": "assistant", "content": None, "tool_calls": made})
            messages += [
                {"role": "tool", "tool_call_id": one["id"], "content": heard * (n == 0)} for n, one in enumerate(made)
            ]
        else:
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": heard}]
        found.append(list(messages))
    tools = sorted({name for call in session for name in call.tool_calls}) or ["think"]
    offered = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in tools]
    return [
        {
            "model": "strong", "messages": said, "tools": offered, "max_tokens": call.output_length,
            "tool_choice": "required" if call.tool_calls else "none",
        }
        for call, said in zip(session, found, strict=True)
    ]  # fmt: skip


def common(sessions: list[Session]) -> int:
    """Tokens that all sessions begin with."""
    first = [session[0].hash_ids for session in sessions]
    same = next((n for n, ids in enumerate(zip(*first, strict=False)) if len(set(ids)) > 1), min(map(len, first)))
    return min(same * BLOCK_TOKENS, min(session[0].input_length for session in sessions) - 1)


def cost_usd(model: str, fresh: int, cached: int, out: int) -> float:
    price = PRICES[model]
    return (fresh * price[0] + cached * price[1] + out * price[2]) / 1e6


def change_costs(before: Call, call: Call, models: tuple[str, str], out: int = TAKEN_OUTPUT) -> float:
    """USD that a call costs more if the first model hands it to the second; below zero the change pays at once.

    The first has the former call and its answer at hand, the second nothing.
    """
    warm = min(before.input_length + before.output_length, call.input_length)
    staying = cost_usd(models[0], call.input_length - warm, warm, out)
    return cost_usd(models[1], call.input_length, 0, out) - staying


def rest_costs(session: Session, n: int, models: tuple[str, str]) -> float:
    """The same for all calls from the n-th on, by the answers' recorded lengths; the second model serves them all."""
    found = change_costs(session[n - 1], session[n], models, session[n].output_length)
    for before, call in pairwise(session[n:]):
        warm = min(before.input_length + before.output_length, call.input_length)
        parts = call.input_length - warm, warm, call.output_length
        found += cost_usd(models[1], *parts) - cost_usd(models[0], *parts)
    return found


def play(port: int, route: str, sessions: list[list[dict[str, Any]]], *, named: bool) -> list[list[str]]:
    """Send the sessions, some at a time, each call after the one before it; the ids of the calls."""
    client = Client(port)

    def one(numbered: tuple[int, list[dict[str, Any]]]) -> list[str]:
        number, calls = numbered
        headers = {"x-trimtab-route": route} | ({"x-trimtab-session": f"s{number}"} if named else {})
        return [client.ask(body, headers).id for body in calls]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(one, enumerate(sessions)))


class Seen(msgspec.Struct):
    """What became of a run's sessions; changes are of the model that served. Money in USD."""

    usd: float = 0.0
    usd_of_grader: float = 0.0
    calls_in_loops: int = 0
    calls_at_turns: int = 0
    changes_in_loops: int = 0
    changes_at_turns: int = 0
    to_weak: int = 0
    dear: int = 0  # changes at a user's turn that the prefix lost makes dearer than staying
    dear_by_true_length: int = 0  # of that one call, had the answer's length been known
    dear_by_rest: int = 0  # and of all calls that followed in the session
    kept_warm: int = 0  # no change, for the prefix's sake
    kept_wrongly: int = 0  # though the change pays
    sessions: dict[str, int] = {}
    examples: list[str] = []


def judge(sessions: list[Session], rows: list[list[dict[str, Any]]]) -> Seen:
    """Read the changes off the ledger's rows, which are as the calls."""
    seen = Seen()
    for session, own in zip(sessions, rows, strict=True):
        models = [row["calls"][-1]["model"] for row in own]
        which = "both" if len(set(models)) > 1 else models[0]
        seen.sessions[which] = seen.sessions.get(which, 0) + 1
        for n in range(1, len(session)):
            _judge_call(seen, session, n, (models[n - 1], models[n]), own[n]["decision"].get("reason", ""))
        calls = [call for row in own for call in row["calls"]]
        seen.usd += sum(row["cost_nusd"] for row in own) / 1e9
        seen.usd_of_grader += sum(call["cost_nusd"] for call in calls if call["model"] == GRADER) / 1e9
    return seen


def _judge_call(seen: Seen, session: Session, n: int, pair: tuple[str, str], reason: str) -> None:
    before, call, looped = session[n - 1], session[n], bool(session[n - 1].tool_calls)
    seen.calls_in_loops += looped
    seen.calls_at_turns += not looped
    if pair[0] == pair[1]:
        if "its prefix is warm" in reason:
            other = "weak" if pair[0] == "strong" else "strong"
            seen.kept_warm += 1
            seen.kept_wrongly += change_costs(before, call, (pair[0], other)) < 0
        return
    seen.to_weak += pair[1] == "weak"
    if looped:
        seen.changes_in_loops += 1
    else:
        seen.changes_at_turns += 1
        seen.dear += change_costs(before, call, pair) >= 0
        seen.dear_by_true_length += change_costs(before, call, pair, call.output_length) >= 0
        seen.dear_by_rest += rest_costs(session, n, pair) >= 0
    if looped or change_costs(before, call, pair) >= 0:
        seen.examples.append(f"{call.session_id}, turn {call.turn}: {pair[0]} to {pair[1]} ({reason})")


def faults(name: str, seen: Seen) -> list[str]:
    """What must not be."""
    settings = SETTINGS.get(name, SETTINGS["session"])
    sticky, warm = settings["sticky"], settings["cache_life_s"] > 0
    found = [f"{seen.changes_in_loops} changes in tool loops"] if seen.changes_in_loops else []
    if sticky == "session" and seen.changes_at_turns:
        found.append(f"{seen.changes_at_turns} changes, and sessions were to keep their model")
    if sticky == "turn" and not seen.changes_at_turns:
        found.append("no change at all: this shows nothing")
    if sticky == "turn" and warm and seen.dear:
        found.append(f"{seen.dear} changes cost more than they save")
    if sticky == "turn" and warm and not seen.kept_warm:
        found.append("no change was refused for the prefix's sake: this shows nothing")
    return [f"{name}: {one}" for one in found + (seen.examples[:5] if found else [])]


def config(port: int) -> str:
    models = "".join(MODEL.format(name=model, price=price) for model, price in PRICES.items())
    routes = ""
    for full, name, _ in RUNS:
        if name in SETTINGS:
            own = "\n".join(f"{key} = {json.dumps(value)}" for key, value in SETTINGS[name].items())
            routes += ROUTE.format(name=full, own=own)
    return CONFIG.format(port=port, models=models) + routes


def run(sessions: list[Session]) -> dict[str, Seen]:
    """All runs, one after the other; a line printed for each."""
    instructions, seen = common(sessions), {}
    bodies = [requests(session, instructions) for session in sessions]
    with tempfile.TemporaryDirectory() as folder:
        upstream = Upstream(Path(folder), SPEED)
        with stopped(upstream):
            gateway = Gateway(Path(folder), config(upstream.port))
            with stopped(gateway):
                for full, _, named in RUNS:
                    upstream.forget()
                    ids = play(gateway.port, full, bodies, named=named)
                    rows = gateway.requests(sum(map(len, ids)), full)
                    seen[full] = judge(sessions, [[rows[one] for one in own] for own in ids])
                    show(full, seen[full])
    return seen


def show(name: str, seen: Seen) -> None:
    print(
        f"{name:16} ${seen.usd:.4f} (grader ${seen.usd_of_grader:.4f}); changes: {seen.changes_in_loops} in "
        f"{seen.calls_in_loops} calls of tool loops, {seen.changes_at_turns} at {seen.calls_at_turns} user turns "
        f"({seen.to_weak} to weak), {seen.dear} dearer than staying ({seen.dear_by_true_length} by the answer's true "
        f"length, {seen.dear_by_rest} by the rest of the session); {seen.kept_warm} refused for the prefix, "
        f"{seen.kept_wrongly} wrongly; sessions {seen.sessions}",
        flush=True,
    )


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, required=True, metavar="FILE")
    parser.add_argument("--sessions", type=int, default=200, help="at most so many")
    parser.add_argument("--out", type=Path, help="write the result there, too")
    options = parser.parse_args()
    sessions, began = read(options.trace, options.sessions), time.monotonic()
    print(f"{len(sessions)} sessions, {sum(map(len, sessions))} calls, {AT_ONCE} sessions at once", flush=True)
    seen = run(sessions)
    wrong = [fault for full, name, _ in RUNS for fault in faults(name, seen[full])]
    for fault in wrong:
        print(f"FAILED: {fault}")
    print(f"{'something is wrong' if wrong else 'no model changed where it may not'}; {time.monotonic() - began:.0f} s")
    if options.out:
        document = {
            "what": "changes of model within agents' sessions, a recorded trace through the routing gateway",
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": report.commit(),
            "machine": report.machine(),
            "trace": options.trace.name,
            "sessions": len(sessions),
            "calls": sum(map(len, sessions)),
            "at_once": AT_ONCE,
            "prices_usd_per_mtok": {name: dict(zip(PRICED, price, strict=True)) for name, price in PRICES.items()},
            "settings": SETTINGS,
            "runs": msgspec.to_builtins(seen),
            "faults": wrong,
        }
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
