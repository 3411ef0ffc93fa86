"""Do agents' sessions keep their model? A recorded trace of tool calls, rebuilt and sent through a routing gateway.

    make bench-route-sessions TRACE=file                  about three minutes
    .venv/bin/python bench/route_sessions.py --trace file [--sessions 200] [--out FILE]

A line of the trace is a call: session_id, turn, input_length, output_length, tool_calls (of its answer), hash_ids (blocks
of 16 tokens, equal where prompts are). Each session becomes chat requests of these lengths, each of which goes on where
the one before it ended: filler words made from the blocks, a tool's result after an answer with tool calls, else a user's
turn. Eight sessions run at a time through a real `trimtab serve`, in front of an upstream that knows prefixes as
providers do. Who is asked is graded by a scripted cheap model from a hash of the prompt: half of them are easy.

It is run with `sticky = "session"`, with `sticky = "turn"`, and so with prefixes that count as forgotten at once; each
without and with the header `x-trimtab-session`. The ledger says which model served each call. None may change within
a tool loop, with "session" none at all. None may change where reading the prefix anew costs more than the other model
saves: by the trace's tokens and the models' prices, with an answer as long as the session's last one. Exit code 1 if
one does, or if nothing ever changed where it may.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from instruments.live import Client, Gateway, Upstream, stopped
from instruments.recorded import CHARS_A_TOKEN, GRADER

BLOCK_TOKENS = 16
AT_ONCE = 8
SPEED = 20_000.0
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TAKEN_OUTPUT = 300  # tokens, as the gateway takes them before it knows better
PRICES = {"strong": (2.5, 0.25, 10.0), "weak": (1.0, 0.1, 4.0)}  # USD a million: input, cached input, output
ALL_STRONG = "all_strong"
STICKY = {"session": ("session", 300), "turn": ("turn", 300), "turn_cold": ("turn", 0)}
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
sticky = "{sticky}"
cache_life_s = {cache_life_s}
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


def change_costs(before: Call, call: Call, models: tuple[str, str], out: int) -> float:
    """USD that it costs to change from the first model to the second, less what staying would; below zero it pays.

    The first has the former call and its answer at hand, the second nothing.
    """
    warm = min(before.input_length + before.output_length, call.input_length)
    staying = cost_usd(models[0], call.input_length - warm, warm, out)
    return cost_usd(models[1], call.input_length, 0, out) - staying


def play(port: int, route: str, sessions: list[list[dict[str, Any]]], *, named: bool) -> list[list[str]]:
    """Send the sessions, some at a time, each call after the one before it; the ids of the calls."""
    client = Client(port)

    def one(numbered: tuple[int, list[dict[str, Any]]]) -> list[str]:
        number, calls = numbered
        headers = {"x-trimtab-route": route} | ({"x-trimtab-session": f"s{number}"} if named else {})
        return [client.ask(body, headers).id for body in calls]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(one, enumerate(sessions)))


def judge(sessions: list[Session], rows: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """What became of the sessions; `rows` are the ledger's, as the calls."""
    counts: Counter[str] = Counter()
    examples: list[str] = []
    by_models: Counter[str] = Counter()
    for session, own in zip(sessions, rows, strict=True):
        models = [row["calls"][-1]["model"] for row in own]
        by_models["both" if len(set(models)) > 1 else f"{models[0]} only"] += 1
        for n, (before, call) in enumerate(pairwise(session)):
            turn = "in a tool loop" if before.tool_calls else "at a user's turn"
            pair = models[n], models[n + 1]
            counts[f"calls {turn}"] += 1
            reason = own[n + 1]["decision"].get("reason", "")
            if pair[0] == pair[1]:
                if "its prefix is warm" in reason:
                    counts["kept for a warm prefix"] += 1
                    other = "strong" if pair[0] == "weak" else "weak"
                    by_rule = change_costs(before, call, (pair[0], other), TAKEN_OUTPUT)
                    counts["kept though a change pays"] += by_rule < 0
                    counts["kept though a change pays, by the answer's true length"] += (
                        change_costs(before, call, (pair[0], other), call.output_length) < 0
                    )
                continue
            counts[f"changes {turn}"] += 1
            counts[f"changes to {pair[1]}"] += 1
            costs = change_costs(before, call, pair, TAKEN_OUTPUT)
            in_truth = change_costs(before, call, pair, call.output_length)
            if not before.tool_calls:
                counts["changes dearer than staying"] += costs >= 0
                counts["changes dearer than staying, by the answer's true length"] += in_truth >= 0
            if before.tool_calls or costs >= 0:
                examples.append(
                    f"{call.session_id} turn {call.turn}: {pair[0]} to {pair[1]}, {costs:+.6f} USD: {reason}"
                )
    return {"counts": dict(counts), "sessions_by_model": dict(by_models), "examples": examples[:5]}


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, required=True, metavar="FILE")
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--out", type=Path, help="write the result there, too")
    options = parser.parse_args()
    sessions = read(options.trace, options.sessions)
    instructions = common(sessions)
    bodies = [requests(session, instructions) for session in sessions]
    calls = sum(map(len, sessions))
    print(f"{len(sessions)} sessions, {calls} calls", flush=True)
    began, found = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as name:
        upstream = Upstream(Path(name), SPEED)
        with stopped(upstream):
            models = "".join(MODEL.format(name=model, price=price) for model, price in PRICES.items())
            text = CONFIG.format(port=upstream.port, models=models)
            plans = [(ALL_STRONG, ALL_STRONG, False)]
            for route, (sticky, life_s) in STICKY.items():
                for named in (False, True):
                    full = f"{route}_named" if named else route
                    text += ROUTE.format(name=full, sticky=sticky, cache_life_s=life_s)
                    plans.append((full, route, named))
            gateway = Gateway(Path(name), text)
            with stopped(gateway):
                for full, _, named in plans:
                    upstream.forget()
                    ids = play(gateway.port, full, bodies, named=named)
                    rows = gateway.requests(calls, full)
                    found[full] = judge(sessions, [[rows[one] for one in own] for own in ids])
                    found[full]["usd"] = sum(row["cost_nusd"] for row in rows.values()) / 1e9
                    found[full]["usd_grader"] = (
                        sum(
                            call["cost_nusd"]
                            for row in rows.values()
                            for call in row["calls"]
                            if call["model"] == GRADER
                        )
                        / 1e9
                    )
                    print(full, round(time.monotonic() - began), json.dumps(found[full], indent=1), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
