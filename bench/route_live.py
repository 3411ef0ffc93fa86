"""Is routing through the gateway what it is offline? Two models' recorded answers, replayed live.

    make bench-route-live DATA=folder                     under a minute
    .venv/bin/python bench/route_live.py --data folder [--speed 2000] [--seed 0] [--out FILE]

The folder holds both models' answers beside their scores, as `trimtab bench route` reads them. A router learns from one
half of the questions; the other half is asked, in file order, through a real `trimtab serve` with an upstream that
gives the recorded answers and takes the time for it that their length takes. Three settings, a route each: the prompt
alone with a share of strong calls, the cascade as the router chose it, and the cascade with a share. Each is played
offline, too: the same router, prompts and dial, one request after the other. Cost, score and share of strong answers
are read from the ledger and must lie within the 95% interval of the offline figure. Every single request must be
decided as offline where no dial is at work, and with `--concurrency 1` everywhere: several at once come to a dial in
another order. Every fourth request is streamed. Exit code 1 if anything of this fails.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

import report
from instruments.live import Client, Gateway, Got, Upstream, stopped
from trimtab.levers.route import Config
from trimtab.measure.route_data import Examples, Job, cost_words, examples, outcome, splits
from trimtab.measure.route_training import Labels, train
from trimtab.measure.stats import quantile
from trimtab.routing import data, router, setting, stored
from trimtab.routing.acceptance import Acceptance
from trimtab.routing.dial import Dial, strong_share
from trimtab.routing.evaluate import mean_interval
from trimtab.routing.predictor import Embeds, Predictor
from trimtab.routing.router import Head
from trimtab.semantic.embed import load_fast
from trimtab.wheels import cache_dir, shown_on_stderr

Floats = NDArray[np.float64]

SHARES = {"prompt": 0.5, "cascade": None, "cascade_share": 0.3}
STREAMED_EVERY = 4
TIMEOUT_MS = 2000  # ample: a busy machine must not decide who is asked
DEFAULT_TIMEOUT_S = Config().timeout_ms / 1000
FIGURES = ("usd_per_1000", "score", "strong_share")
NEAR = 1e-4  # the ledger's scores are as exact
CONFIG = """
[engines.up]
kind = "openai_http"
base_url = "http://127.0.0.1:{port}/v1"

[models.weak]
engine = "up"
name = {weak}
price = {{ input_per_mtok = {prices[0]}, output_per_mtok = {prices[1]} }}
[models.strong]
engine = "up"
name = {strong}
price = {{ input_per_mtok = {prices[2]}, output_per_mtok = {prices[3]} }}

[levers.exact_cache]
enabled = false
"""
ROUTE = """
[routes.{name}.levers.route]
mode = "on"
gate = "advisory"
weak = "weak"
strong = "strong"
predictor = "half.router"
timeout_ms = {timeout_ms}
{own}
"""


class Half(NamedTuple):
    """The half of the questions that is asked: outcomes, answers by model's name, expected gains by the router."""

    test: Examples
    answers: dict[str, dict[str, str]]
    head: Head
    gains: Floats
    far: Any
    after: Floats


class Played(NamedTuple):
    """What a setting did, one of each a prompt."""

    usd_per_1000: Floats
    score: Floats
    strong_share: Floats


class Live(NamedTuple):
    """What it did through the gateway, and what else is to be known of that."""

    played: Played
    facts: dict[str, Any]
    faults: list[str]


def learn(options: argparse.Namespace, embedder: Embeds, folder: Path) -> Half:
    """Train on one half; what is known of the other."""
    outcomes = data.read(options.data)
    weak, strong = sorted(outcomes.models[:2], key=lambda name: outcomes.column(name).mean())
    job = Job(options.data, weak, strong, prices=tuple(options.prices), folds=2, seed=options.seed)
    whole, _ = examples(outcomes, job)
    lesson, test = (whole.take(rows) for rows in splits(whole, job, foreign=False)[0])
    texts = {name: {o.prompt: a.text for o, a in zip(outcomes.prompts, outcomes.answers(name), strict=True)}
             for name in (weak, strong)}  # fmt: skip
    if any(text is None for known in texts.values() for text in known.values()):
        raise SystemExit(f"{options.data} does not have the texts of both models' answers")
    labels = Labels(lesson, weak, strong, "", options.data.name, cost_words(job.prices))
    made = train(labels, embedder, floor=options.floor, seed=options.seed).router
    router.write(folder / "half.router", made)
    found = stored.loads(made.predictor, Predictor).estimates(test.prompts, embedder)
    after = stored.loads(made.acceptance, Acceptance).estimates(test.prompts, test.answers, found.gain, None)
    return Half(test, texts, made.head, found.gain, found.far, after)  # type: ignore[arg-type]


def play(half: Half, name: str) -> Played:
    """A setting offline: the router's own, or a dial over the requests one after the other."""
    head, share = half.head, SHARES[name]
    gives = outcome(half.test, half.gains, half.far, half.after, half.test.weak)
    own = setting.Setting(head.kind, head.skip, head.accept, 1.0, 0.0, head.pays, "")
    if share is None:
        score, cost, strong = setting.played(own, gives)
        return Played(cost * 1000, score, strong.astype(np.float64))
    held = name.startswith("cascade")
    values = half.after if held else half.gains
    above = half.gains > head.skip if held and head.skip is not None else np.zeros(len(values), dtype=np.bool_)
    at_once = half.far | above
    dial, strong = Dial(strong_share(share), head.after if held else head.gains), at_once.copy()
    for n, value in enumerate(values):
        if at_once[n]:
            dial.passed(strong=True)
        else:
            strong[n] = dial.choose(float(value))
        dial.spend(float(strong[n]))
    cost = np.where(strong, gives.strong_cost, 0.0) + np.where(at_once if held else strong, 0.0, gives.weak_cost)
    return Played(cost * 1000, np.where(strong, half.test.strong, half.test.weak), strong.astype(np.float64))


def config(options: argparse.Namespace, half: Half, port: int) -> str:
    weak, strong = (json.dumps(name) for name in half.answers)
    text = CONFIG.format(port=port, weak=weak, strong=strong, prices=options.prices)
    for name, share in {**SHARES, "warm": None}.items():
        own = "" if share is None else f"strong_share = {share}\ncascade = {str(name != 'prompt').lower()}"
        text += ROUTE.format(name=name, timeout_ms=TIMEOUT_MS, own=own)
    return text


def ask(client: Client, route: str, prompt: str, *, stream: bool = False) -> Got:
    body: dict[str, Any] = {"model": "strong", "messages": [{"role": "user", "content": prompt}]}
    return client.ask(body | ({"stream": True} if stream else {}), {"x-trimtab-route": route})


def warm_up(client: Client, prompt: str) -> None:
    """The workers serve before the process that scores is up."""
    deadline = time.monotonic() + 120
    while "no score" in (got := ask(client, "warm", prompt)).headers["x-trimtab-decision"]:
        if time.monotonic() > deadline:
            raise SystemExit(f"no score within two minutes: {got.headers['x-trimtab-decision']}")
        time.sleep(0.2)
    for _ in range(10):
        ask(client, "warm", prompt)


def replay(options: argparse.Namespace, half: Half, gateway: Gateway, name: str) -> Live:
    """Ask the half's questions on a route, and read the ledger."""
    client = Client(gateway.port)

    def one(n: int) -> Got:
        return ask(client, name, half.test.prompts[n], stream=n % STREAMED_EVERY == 0)

    with ThreadPoolExecutor(options.concurrency) as pool:
        got = list(pool.map(one, range(len(half.test.prompts))))
    rows = gateway.requests(len(got), name)
    return read(options, half, got, [rows[one.id] for one in got])


def read(options: argparse.Namespace, half: Half, got: list[Got], rows: list[dict[str, Any]]) -> Live:
    weak, strong = half.answers
    by_strong = np.array([row["calls"][-1]["model"] == strong for row in rows])
    faults = [fault for n, one in enumerate(got) if (fault := wrong(half, n, one, strong if by_strong[n] else weak))]
    whole_s = [sum(c["output_tokens"] for c in row["calls"]) / options.speed for row in rows]
    streams = [one.first_s for n, one in enumerate(got) if n % STREAMED_EVERY == 0]
    stages = [row["detail"]["stages"] for row in rows]
    reasons = [row["decision"]["reason"] for row in rows]
    faults += [f"a request went without a score: {reason}" for reason in reasons if "no score" in reason]
    facts = {
        "decision_ms": spread([one["route"] for one in stages]),
        "decisions_later_than_default": sum(one["route"] > DEFAULT_TIMEOUT_S for one in stages),
        "answer_check_ms": spread([one["route_check"] for one in stages if "route_check" in one]),
        "beside_answers_ms": spread([one.total_s - took for one, took in zip(got, whole_s, strict=True)]),
        "stream_ttft_ms": spread(streams),
        "calls": {m: sum(c["model"] == m for row in rows for c in row["calls"]) for m in (weak, strong)},
        "escalated": sum(len(row["calls"]) > 1 for row in rows),
        "escalated_by_checks": sum("escalated" in one and "gain is expected" not in one for one in reasons),
        "scores_off_by": scores_off(half, rows),
    }  # fmt: skip
    if facts["scores_off_by"] > NEAR:
        faults.append(f"scores differ from the offline ones by up to {facts['scores_off_by']:.2g}")
    cost = np.array([np.nan if row["cost_nusd"] is None else row["cost_nusd"] for row in rows]) / 1e6
    score = np.where(by_strong, half.test.strong, half.test.weak)
    return Live(Played(cost, score, by_strong.astype(np.float64)), facts, faults)


def wrong(half: Half, n: int, got: Got, model: str) -> str:
    """What is wrong with an answer to prompt n that the ledger says is the model's; "" if nothing is."""
    prompt, text = half.test.prompts[n], got.body.decode()
    if n % STREAMED_EVERY:
        said = json.loads(text)["choices"][0]["message"]["content"]
    else:
        events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        if events[-1] != "[DONE]":
            return f"prompt {n}: the stream has no end"
        choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
        said = "".join(choice["delta"].get("content") or "" for choice in choices)
    return "" if said == half.answers[model][prompt] else f"prompt {n}: not the recorded answer of {model}"


def scores_off(half: Half, rows: list[dict[str, Any]]) -> float:
    """How far scores in the ledger are from the offline ones at most: of the answer if it was read, else the prompt."""
    off = [0.0]
    for n, row in enumerate(rows):
        found = row["decision"]
        read_it = any(word in found["reason"] for word in ("accepted", "a gain is expected"))
        if found.get("score") is not None:
            off.append(abs(found["score"] - float(half.after[n] if read_it else half.gains[n])))
    return max(off)


def spread(seconds: list[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds; nothing of nothing."""
    found = {name: quantile(seconds, q) for name, q in (("p50", 0.5), ("p99", 0.99))}
    return {name: round(value * 1e3, 3) for name, value in found.items() if value is not None}


def compare(options: argparse.Namespace, half: Half, name: str, live: Live) -> dict[str, Any]:
    """The row of the result: offline with its interval, live, and the paired difference."""
    offline, faults, figures = play(half, name), list(live.faults), {}
    for figure in FIGURES:
        known, seen = getattr(offline, figure), getattr(live.played, figure)
        value, low, high = mean_interval(known)
        gap = mean_interval(seen - known)
        figures[figure] = {
            "offline": value, "low": low, "high": high, "live": float(seen.mean()), "difference": gap[0],
            "difference_low": gap[1], "difference_high": gap[2],
        }  # fmt: skip
        if not low <= float(seen.mean()) <= high:
            faults.append(f"{figure} {seen.mean():.4f} is outside {low:.4f} to {high:.4f}")
    otherwise = int((offline.strong_share != live.played.strong_share).sum())
    if otherwise and (SHARES[name] is None or options.concurrency == 1):
        faults.append(f"{otherwise} requests were decided otherwise than offline, with nothing that excuses it")
    return {"setting": name, "figures": figures, "decided_otherwise": otherwise, **live.facts, "faults": faults}


def show(row: dict[str, Any]) -> None:
    print(f"{row['setting']}: {row['decided_otherwise']} requests decided otherwise than offline")
    for name, one in row["figures"].items():
        interval = f"{one['low']:.4f} to {one['high']:.4f}"
        gap = f"{one['difference']:+.4f} ({one['difference_low']:+.4f} to {one['difference_high']:+.4f})"
        print(f"  {name:13} offline {one['offline']:.4f} ({interval}), live {one['live']:.4f}, difference {gap}")
    for name in ("decision_ms", "answer_check_ms", "beside_answers_ms", "stream_ttft_ms"):
        print(f"  {name:17} {'  '.join(f'{q} {value:.2f}' for q, value in row[name].items()) or '-'}")
    late = f"{row['decisions_later_than_default']} decisions took longer"
    print(f"  {late} than the {DEFAULT_TIMEOUT_S * 1e3:g} ms that a request waits by default")
    print(f"  calls {row['calls']}, {row['escalated']} escalated, {row['escalated_by_checks']} of them by a check")
    for fault in row["faults"][:10]:
        print(f"  FAILED: {fault}", flush=True)


def run(options: argparse.Namespace) -> tuple[Half, list[dict[str, Any]]]:
    """What was learned, and the result's rows, each printed."""
    embedder, rows = load_fast(cache_dir(os.environ), shown_on_stderr("the fast embedder")), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        half = learn(options, embedder, folder)
        print(f"{half.head.rows} prompts learned from, {len(half.test.prompts)} asked, {options.concurrency} at once")
        print(f"answers take their tokens at {options.speed:g} a second")
        print(f"the router's own setting: {half.head.kind}; {half.head.reason}", flush=True)
        upstream = Upstream(folder, options.speed, half.answers)
        with stopped(upstream):
            gateway = Gateway(folder, config(options, half, upstream.port))
            with stopped(gateway):
                warm_up(Client(gateway.port), half.test.prompts[0])
                for setting_name in SHARES:
                    live = replay(options, half, gateway, setting_name)
                    rows.append(compare(options, half, setting_name, live))
                    show(rows[-1])
    return half, rows


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    prices = {"type": lambda text: [float(one) for one in text.split(",")], "default": [0.6, 0.6, 10.0, 30.0]}
    parser.add_argument("--prices", **prices, help="USD a million tokens: weak in, out, strong in, out")
    parser.add_argument("--speed", type=float, default=2000.0, help="output tokens a second of either model")
    parser.add_argument("--floor", type=float, default=0.95, help="of the best score, for the router's own setting")
    parser.add_argument("--concurrency", type=int, default=4, help="with 1 each request is decided as offline")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parser.add_argument("--out", type=Path, help="write the result there, too")
    return parser.parse_args()


def main() -> int:
    """Run it; the exit code."""
    options, began = parsed(), time.monotonic()
    half, rows = run(options)
    failed = sum(bool(row["faults"]) for row in rows)
    print(
        f"{len(rows) - failed} of {len(rows)} settings do live what they do offline; {time.monotonic() - began:.0f} s"
    )
    if options.out:
        document = {
            "what": "routing live through the gateway against the same router offline, recorded answers",
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": report.commit(),
            "machine": report.machine(),
            "data": options.data.name,
            "prompts": len(half.test.prompts),
            "output_tokens_per_s": options.speed,
            "concurrency": options.concurrency,
            "streamed_share": 1 / STREAMED_EVERY,
            "prices_usd_per_mtok": options.prices,
            "seed": options.seed,
            "router": {n: v for n, v in msgspec.to_builtins(half.head).items() if n not in ("gains", "after")},
            "strong_shares": SHARES,
            "rows": rows,
        }
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
