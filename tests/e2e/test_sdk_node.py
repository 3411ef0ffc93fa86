"""The npm `openai` package through the gateway: chat, stream, tools, error classes, early close."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from gateway_process import Gateway, MakeGateway, two_upstreams
from upstream import Upstream, wait_until
from upstream_shapes import DEFAULT_TEXT, Act, Tool

HERE = Path(__file__).with_name("node")
FILES = ("package.json", "package-lock.json", ".npmrc")

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None and not os.environ.get("CI"),
    reason="Node is not installed (CI has it, and fails without)",
)


@pytest.fixture(scope="module")
def node_modules() -> Path:
    """A folder with the locked packages, kept between runs."""
    texts = b"".join((HERE / name).read_bytes() for name in FILES)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "trimtab-e2e" / f"node-{hashlib.sha256(texts).hexdigest()[:16]}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=folder.parent))
        for name in FILES:
            shutil.copy(HERE / name, fresh / name)
        done = subprocess.run(
            ["npm", "ci", "--ignore-scripts"], cwd=fresh, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        fresh.rename(folder)
    return folder


@pytest.fixture(scope="module")
def gateway(gateways: MakeGateway, upstream: Upstream) -> Gateway:
    return gateways(two_upstreams(upstream.port, extra="[routes.default]\nretries = 0\n"))


@pytest.mark.parametrize("model", ["gpt", "claude"])
def test_npm_openai(gateway: Gateway, upstream: Upstream, node_modules: Path, model: str) -> None:
    weather = Tool(name="get_weather", arguments={"city": "Zürich"}, id="call_w")
    endless = upstream.prompt(Act(endless=True, gap_s=0.01))
    prompts = [upstream.prompt(), upstream.prompt(Act(tools=(weather,))), upstream.prompt(Act(status=429)), endless]
    done = subprocess.run(
        ["node", str(HERE / "client.mjs"), f"{gateway.base_url}/v1", model, *prompts],
        env=os.environ | {"NODE_MODULES_FOLDER": str(node_modules)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    request_id = seen.pop("request_id")
    models = seen.pop("models")
    refused = seen.pop("refused")
    assert seen == {
        "chat": DEFAULT_TEXT,
        "total_tokens": 27,
        "stream": DEFAULT_TEXT,
        "usage_unasked": False,
        "tools": [["call_w", "get_weather", {"city": "Zürich"}]],
        "unknown": [True, 404, "model_not_found"],
        "pieces": 5,
    }
    assert refused[:2] == [True, 429]
    assert "scripted 429" in refused[2]
    assert {"gpt", "claude"} <= set(models)
    assert gateway.row(id=request_id)["end"] == "ok"
    call = upstream.requests(endless)[0]
    wait_until(lambda: call.dropped_at, 5, "the upstream to see the early close")
