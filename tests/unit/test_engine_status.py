"""`trimtab engine status`: which engines it asks, what it shows, and what it says where nothing can be seen."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from trimtab.cli import main
from trimtab.measure.scrape import Scraper
from trimtab.serving.diagnosis import Rates
from trimtab.serving.readings import Page
from trimtab.stores import engines_up

RECORDED = Path(__file__).parents[1] / "golden" / "engine_metrics"
CONFIG = """
[server]
data_dir = "{folder}"
[engines.small]
kind = "llama_cpp"
[engines.mine]
kind = "openai_http"
base_url = "{url}/v1"
api_key_env = "MINE_KEY"
[engines.claude]
kind = "anthropic_http"
"""


class Recorded(http.server.BaseHTTPRequestHandler):
    """Serves a recording's looks, one after the other, the last one for ever."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        server.keys.append(self.headers.get("authorization"))
        if self.path == "/metrics":
            server.at = min(server.at + 1, len(server.looks) - 1)
        body = server.looks[max(server.at, 0)].get(self.path.removeprefix("/"))
        self.send_response(200 if body else 404)
        self.send_header("content-length", str(len((body or "").encode())))
        self.end_headers()
        self.wfile.write((body or "").encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def engine():
    """An engine that says what was recorded; `engine(name)` is its URL."""
    servers = []

    def start(name):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorded)
        lines = (RECORDED / f"{name}.jsonl").read_text().splitlines() if name else []
        server.looks, server.at, server.keys = [json.loads(line) for line in lines] or [{}], -1, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        start.keys = server.keys
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def run(*arguments):
    return CliRunner().invoke(main, ["engine", "status", "--window", "0.5", *map(str, arguments)])


@pytest.fixture
def configured(tmp_path, monkeypatch):
    monkeypatch.setenv("MINE_KEY", "secret")

    def write(url="http://127.0.0.1:1"):
        path = tmp_path / "trimtab.toml"
        path.write_text(CONFIG.format(folder=tmp_path / "data", url=url))
        return path

    return write


@pytest.mark.parametrize("path", ["", "/", "/v1"])
def test_an_engine_by_url(engine, path):
    done = run("--url", engine("vllm-more-than-slots") + path, "--slots", 16)
    assert done.exit_code == 0, done.output
    assert "queue-bound" in done.output and "16.0 of 16" in done.output
    assert "lever: admission" in done.output and "before prefill" in done.output


def test_as_json(engine):
    done = run("--url", engine("llama_cpp-contexts-full"), "--json")
    (line,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert (line["state"], line["rates"]["kind"], line["rates"]["slots"]) == ("memory-bound", "llama_cpp", 2)
    assert line["lever"] and line["evidence"] and line["rates"]["kv_fullest"] > 0.9


def test_columns_that_an_engine_cannot_fill_are_not_shown(engine):
    done = run("--url", engine("llama_cpp-idle"))
    assert "idle: nothing runs or waits" in done.output
    assert "evicted" not in done.output and "drafts" not in done.output


def test_engines_of_a_running_gateway(engine, configured, tmp_path):
    url = engine("llama_cpp-all-slots-decode")
    engines_up.write(tmp_path / "data", [engines_up.EngineUp("small", "llama_cpp", url)])
    for names in ((), ("small",)):
        done = run(*names, "--config", configured())
        assert done.exit_code == 0, done.output
        assert "compute-bound" in done.output and "4.0 of 4" in done.output
    assert run("--data-dir", tmp_path / "data").exit_code == 0


def test_an_engine_behind_a_url_is_asked_by_name_only(engine, configured):
    path = configured(engine("vllm-kv-full"))
    done = run("--config", path)
    assert done.exit_code == 1
    assert "start `trimtab serve`" in done.output and "asked by name: mine, claude" in done.output
    done = run("mine", "--config", path, "--slots", 16)
    assert done.exit_code == 0 and "memory-bound" in done.output
    assert set(engine.keys) == {"Bearer secret"}
    assert "secret" not in done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("small",), "engine small is not running: start `trimtab serve`"),
        (("nobody",), "no engine nobody; there are: small, mine, claude"),
        (("mine",), "mine: http://127.0.0.1:1 cannot be reached"),
        (("mine", "--url", "http://127.0.0.1:1"), "not both"),
        (("--url", "127.0.0.1:8000"), "write http://host:port"),
    ],
)
def test_mistakes_are_named(configured, arguments, said):
    done = run("--config", configured(), *arguments)
    assert done.exit_code != 0
    assert said in done.output


def test_no_metrics_and_no_engine(engine):
    done = run("--url", engine(""))
    assert done.exit_code == 1 and "has no /metrics: start llama.cpp's server with --metrics" in done.output
    done = run("--url", engine(""), "--json")
    assert "has no /metrics" in json.loads(done.stdout.splitlines()[0])["error"]


async def test_a_first_answer_that_outlasts_the_window_is_its_begin(monkeypatch):
    scraper = Scraper("http://127.0.0.1:1")
    asked = []

    async def page():
        asked.append(1)
        await asyncio.sleep(0.02 if len(asked) == 1 else 0)
        return Page(asyncio.get_running_loop().time(), "vllm:num_requests_running 1\n")

    monkeypatch.setattr(scraper, "page", page)
    pages = await scraper.window(0.001, 1.0)
    assert len(pages) >= 2
    assert Rates.of(scraper.understood(pages)).running == 1


def test_where_engines_run_is_written_whole_and_removed(tmp_path):
    assert engines_up.read(tmp_path) == []
    up = [engines_up.EngineUp("small", "llama_cpp", "http://127.0.0.1:5")]
    engines_up.write(tmp_path, up)
    assert engines_up.read(tmp_path) == up
    engines_up.path_in(tmp_path).write_text("{")
    done = run("--data-dir", tmp_path)
    assert done.exit_code == 1 and "a restart of the gateway writes it anew" in done.output
    engines_up.remove(tmp_path)
    engines_up.remove(tmp_path)
    assert engines_up.read(tmp_path) == []
