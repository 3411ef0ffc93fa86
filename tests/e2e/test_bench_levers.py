"""`trimtab bench levers` on the real embedded engine: each step has figures or a reason, and is measured once."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from gateway_process import TRIMTAB

STEPS = (
    "baseline",
    "exact cache",
    "semantic cache",
    "prefix reuse",
    "quantization",
    "speculation",
    "routing",
    "without response caches",
)
REQUESTS = 8


def climb(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    # Short prompts and one thread: beside another test's engine, threads that wait for each other take minutes.
    command = [str(TRIMTAB), "bench", "levers", "--workload", "chat", "--threads", "1", "--requests", str(REQUESTS)]
    command += ["--utilization", "1.5", "--out", str(folder), *more]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=900)


def test_each_lever_has_its_row_and_a_second_run_goes_on(tmp_path: Path) -> None:
    page = tmp_path / "ladder.html"
    ran = climb(tmp_path / "ladder", "--json", "--html", str(page))
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    steps = {step["name"]: step for step in found["steps"]}
    assert tuple(steps) == STEPS
    for name in ("semantic cache", "quantization"):
        assert not steps[name]["accepted"] and "needs a verdict" in steps[name]["reason"]
    assert "not configured" in steps["routing"]["reason"]
    for name in ("baseline", "exact cache", "prefix reuse", "without response caches"):
        step = steps[name]
        assert step["answered"] == step["requests"] == REQUESTS * (2 if name == "baseline" else 1), step
        assert 0 < step["ttft_p50_s"] <= step["e2e_p50_s"] <= step["e2e_p99_s"]
        assert step["cost_per_request"] > 0 and step["engine_cpu_s"] > 0
    assert "<svg" in page.read_text()

    again = climb(tmp_path / "ladder")
    assert again.returncode == 0, again.stderr
    assert "step 1 of" not in again.stderr, "it measured the baseline anew"
    assert all(name in again.stdout for name in STEPS)

    other = climb(tmp_path / "ladder", "--seed", "2")
    assert other.returncode != 0 and "other settings" in other.stderr
