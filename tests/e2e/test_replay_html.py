"""The replay's HTML file in a real browser: it draws, and asks nobody for anything."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from trimtab.measure import report
from trimtab.measure.html import render
from trimtab.measure.load import Timing
from trimtab.slo import SLOS

QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=2000",
]


@pytest.fixture(scope="module")
def chromium() -> str:
    """The browser; as root on Debian it is installed when it is missing."""
    found = shutil.which("chromium")
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        apt = ["apt-get", "install", "-y", "-qq", "chromium"]
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], check=False, capture_output=True, timeout=300, env=quiet)
        subprocess.run(apt, check=True, capture_output=True, timeout=600, env=quiet)
        found = shutil.which("chromium")
    if found is None:
        assert not os.environ.get("CI"), "CI has to test this: install chromium"
        pytest.skip("chromium is not installed, and only root can install it")
    return found


def a_report() -> report.Report:
    rng = random.Random(1)
    timings = [
        Timing(n, n % 50 > 0, 1.0 + rng.random(), rng.random(), 0.02, 50, at_s=n / 10, input_tokens=100 + n,
               error="" if n % 50 else "refused <b>&", gaps_s=(0.01, 0.02))
        for n in range(300)
    ]  # fmt: skip
    settings = report.Settings("http://127.0.0.1:1/v1", "m", "<trace>&.csv", "azure", 1.0, 0, SLOS["chat"])
    return report.make(settings, report.Run(timings, 300), "1", lambda _: 0.001)


def test_the_page_draws_and_loads_nothing(chromium: str, tmp_path: Path) -> None:
    page, log = tmp_path / "report.html", tmp_path / "net.json"
    page.write_text(render(a_report()), encoding="utf-8")
    command = [chromium, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.count("<svg") == 4
    assert done.stdout.count("<circle") > 800
    assert "refused &lt;b&gt;&amp;" in done.stdout
    assert not re.search(r"(?:src|href|srcset)\s*=|url\(|@import", page.read_text())
    asked = {
        event["params"]["url"]
        for event in json.loads(log.read_text())["events"]
        if "url" in event.get("params", {}) and event["params"]["url"].startswith(("http", "file"))
    }
    # The browser itself may look for its maker's hosts.
    assert not [url for url in asked if url.startswith("http") and "google" not in url], asked
