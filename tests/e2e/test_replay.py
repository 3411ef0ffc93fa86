"""`trimtab replay` against the gateway on its embedded model: lengths, sessions, Ctrl-C, targets that do not fit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from gateway_process import Gateway, MakeGateway
from upstream import wait_until

MODEL = "smollm2-135m-instruct"
TRIMTAB = Path(sys.executable).with_name("trimtab")


@pytest.fixture(scope="module")
def gateway(gateways: MakeGateway) -> Gateway:
    return gateways("", ready_s=300.0)


def replay(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(TRIMTAB), "replay", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def azure(folder: Path, rows: list[tuple[int, int]], step_s: float = 0.1) -> Path:
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    lines += [f"2023-11-16 18:17:{3 + n * step_s:010.7f},{given},{made}" for n, (given, made) in enumerate(rows)]
    path = folder / "azure.csv"
    path.write_text("\n".join(lines))
    return path


def test_prompts_are_as_long_as_the_trace_says(gateway: Gateway, tmp_path: Path) -> None:
    trace = azure(tmp_path, [(60, 3), (61, 4), (300, 2), (33, 5), (100_000, 5)])
    saved = tmp_path / "run.json"
    target = ("--url", gateway.base_url + "/v1", "--model", MODEL, "--context", "4096", "--ignore-eos")
    done = replay(trace, *target, "--json", "--save", saved)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    counts = report["counts"]
    assert (counts["in_trace"], counts["too_long"], counts["successful"]) == (5, 1, 4)
    assert report["fidelity"] == {"planned": 4, "input_exact": 4, "input_largest_difference": 0, "output_exact": 4}
    assert report["metrics"]["time_to_first_token"]["count"] == 4
    assert report["metrics"]["input_sequence_length"]["max"] == 300
    shown = replay("show", saved)
    assert "4 answered" in shown.stdout
    assert "1 too long, skipped" in shown.stdout
    for line in json.loads(saved.read_text())["requests"]:
        assert gateway.row(id=line["request_id"])["end"] == "ok"


def test_turns_of_a_session_follow_each_other(gateway: Gateway, tmp_path: Path) -> None:
    rows = [
        {
            "session_id": "s",
            "turn": n,
            "input_length": 100 + 40 * n,
            "output_length": 3,
            "hash_ids": list(range(6 + 3 * n)),
        }
        for n in range(3)
    ]
    trace = tmp_path / "sessions.jsonl"
    trace.write_text("\n".join(map(json.dumps, rows)))
    saved = tmp_path / "run.json"
    done = replay(trace, "--url", gateway.base_url, "--model", MODEL, "--json", "--save", saved)
    assert done.returncode == 0, done.stderr
    turns = sorted(json.loads(saved.read_text())["requests"], key=lambda turn: turn["at_s"])
    assert [turn["input_tokens"] for turn in turns] == [100, 140, 180]
    for earlier, later in pairwise(turns):
        assert later["at_s"] >= earlier["at_s"] + earlier["total_s"]
    assert turns[2]["cached_tokens"] > 80  # what the ids share is one text, so the engine has it already


def test_bodies_are_sent_as_they_are(gateway: Gateway, tmp_path: Path) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Say hi."}], "max_tokens": 4, "temperature": 0}
    trace = tmp_path / "bodies.jsonl"
    trace.write_text("\n".join(json.dumps({"timestamp": 300 * n, "body": body}) for n in range(3)))
    report = json.loads(replay(trace, "--url", gateway.base_url, "--json").stdout)
    assert report["counts"]["successful"] == 3
    assert report["cost"]["usd"] is not None or report["cost"]["source"] == ""
    assert "time_to_first_token" not in report["metrics"]  # they do not ask for a stream


def test_ctrl_c_still_reports(gateway: Gateway, tmp_path: Path) -> None:
    trace = azure(tmp_path, [(40, 3000)] * 3 + [(40, 2)] * 5, step_s=0.5)  # the long ones are still in flight
    command = [str(TRIMTAB), "replay", str(trace), "--url", gateway.base_url, "--model", MODEL]
    command += ["--ignore-eos", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if "Replaying" in line:
                break
        began = time.time()
        wait_until(lambda: any(row["at"] > began for row in gateway.ledger(end="ok")), 60, "the first answer")
        run.send_signal(signal.SIGINT)
        out, _ = run.communicate(timeout=30)
    assert run.returncode == 130
    report = json.loads(out)
    assert report["interrupted"]
    assert report["counts"]["successful"] >= 1
    assert report["counts"]["cancelled"] >= 1


def test_targets_that_do_not_fit_are_named(gateway: Gateway, closed_port: int, tmp_path: Path) -> None:
    trace = azure(tmp_path, [(40, 2)])
    cases = [
        (["--url", f"http://127.0.0.1:{closed_port}/v1", "--model", MODEL], "is the target running"),
        (["--url", gateway.base_url, "--model", "no-such-model"], "no-such-model"),
        (["--url", gateway.base_url], "--model"),
        (["--url", gateway.base_url, "--model", MODEL, "--slo", "fast"], "no limit"),
        (["--url", gateway.base_url, "--model", MODEL, "--api-key-env", "NOT_SET_AT_ALL"], "NOT_SET_AT_ALL"),
        (["--url", gateway.base_url, "--model", MODEL, "--context", "20"], "no request"),
    ]
    for options, message in cases:
        done = replay(trace, *options)
        assert done.returncode == 1, (options, done.stderr)
        assert message in done.stderr, (options, done.stderr)
        assert "Traceback" not in done.stderr
