"""The commands `trimtab config` and `trimtab keys`, the group that holds all commands, and the documents' examples."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner

from trimtab import __version__, cli, config
from trimtab.engines import anthropic_http, llama_cpp, openai_http, vllm
from trimtab.errors import ConfigError, Overloaded
from trimtab.levers import ab, exact_cache
from trimtab.types import Timeouts

DOCS = Path(__file__).parents[2] / "docs"
ENV = {"HOME": "/home/somebody", "OPENAI_API_KEY": "shh-1", "ANTHROPIC_API_KEY": "shh-2", "TRIMTAB_CONFIG": ""}
HASH = "sha256:" + "ab" * 32


def run(*words: str, env: dict[str, str] | None = None):
    return CliRunner().invoke(cli.main, list(words), env=env or ENV, prog_name="trimtab")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    for name in ("TRIMTAB_DATA_DIR", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


# --- the documents ---


def test_the_example_file_is_right():
    result = run("config", "check", str(DOCS / "trimtab.example.toml"))
    assert result.exit_code == 0, result.output


def test_the_example_file_shows_every_setting_and_its_default():
    text = (DOCS / "trimtab.example.toml").read_text()
    found = config.load(DOCS / "trimtab.example.toml", ENV)
    assert msgspec.structs.replace(found.server, data_dir="") == config.Server()
    assert found.engines["local"].settings == llama_cpp.Config()
    assert found.levers["exact_cache"] == exact_cache.Config()
    assert found.route("default") == config.RouteConfig()
    for kind in (
        config.Server, openai_http.Config, vllm.Config, exact_cache.Config, config.RouteConfig, config.KeyConfig,
        config.SloConfig, config.TelemetryConfig, config.CaptureConfig, config.ShadowConfig, ab.Config, Timeouts,
    ):  # fmt: skip
        for name in kind.__struct_fields__:
            assert re.search(rf"\b{name}\b", text), name


def test_the_reference_has_every_key():
    text = (DOCS / "configuration.md").read_text()
    kinds = (config.Server, config.ModelConfig, config.RouteConfig, config.KeyConfig, config.PriceConfig, Timeouts)
    kinds = (*kinds, config.SloConfig, config.TelemetryConfig, config.CaptureConfig, config.ShadowConfig, ab.Config)
    for kind in (*kinds, openai_http.Config, anthropic_http.Config, llama_cpp.Config, vllm.Config, exact_cache.Config):
        for name in kind.__struct_fields__:
            assert re.search(rf"\b{name}\b", text), f"{kind.__name__}.{name}"


def test_the_small_files_of_the_reference_are_right(tmp_path):
    blocks = re.findall(r"```toml\n(.*?)```", (DOCS / "configuration.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        (tmp_path / "t.toml").write_text(block)
        config.load(tmp_path / "t.toml", ENV)


# --- config check ---


def write(text: str) -> None:
    Path("trimtab.toml").write_text(text)


def test_check_says_what_will_run():
    write(
        f"""
[engines.openai]
kind = "openai_http"
base_url = "https://api.example.com/v1"
api_key_env = "OPENAI_API_KEY"
[engines.claude]
kind = "anthropic_http"
[models.fast]
engine = "openai"
name = "gpt-4o-mini"
[routes.support]
model = "fast"
[routes.support.levers.exact_cache]
enabled = false
[keys.acme]
hash = "{HASH}"
tenant = "acme"
"""
    )
    result = run("config", "check")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "OK: trimtab.toml",
        "  listens  127.0.0.1:8088, 1 worker",
        "  data     /home/somebody/.local/share/trimtab",
        "  engines  openai: openai_http https://api.example.com/v1; secret from $OPENAI_API_KEY",
        "           claude: anthropic_http https://api.anthropic.com; no secret is sent (api_key_env is not set); "
        "takes any model name",
        "  models   fast: openai as gpt-4o-mini",
        "  routes   support",
        "  levers   ab: off",
        "           exact_cache: on, off on support",
        "           place: off",
        "           policy: off",
        "           route: off",
        "           semantic_cache: off",
        "  keys     acme: tenant acme",
    ]
    assert "shh" not in result.output


@pytest.mark.parametrize(("replicas", "state"), [("", "off"), ('replicas = ["two"]', "on")])
def test_check_says_that_requests_are_placed_only_where_a_model_has_replicas(replicas, state):
    settings = 'kind = "openai_http"\nbase_url = "http://127.0.0.1:1/v1"\n'
    engines = "".join(f"[engines.{name}]\n{settings}" for name in ("one", "two"))
    write(f'{engines}[models.m]\nengine = "one"\n{replicas}\n')
    assert f"  place: {state}\n" in run("config", "check").stdout
    assert json.loads(run("config", "check", "--json").stdout)["levers"]["place"] is (state == "on")


def test_check_without_a_file():
    result = run("config", "check")
    assert result.exit_code == 0, result.output
    assert "OK: built-in defaults" in result.stdout
    assert "local: llama_cpp smollm2-135m-instruct; needs no secret" in result.stdout
    report = json.loads(run("config", "check", "--json").stdout)
    assert report["ok"] is True
    assert report["models"] == {"smollm2-135m-instruct": "local"}


def test_check_reports_all_mistakes():
    write("[server]\nprot = 1\nworkers = 0\n")
    result = run("config", "check")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "trimtab.toml:2: server.prot: unknown key; did you mean 'port'?",
        "trimtab.toml:3: server.workers: must be a number of processes from 1 to 256, not 0; "
        "correct it or leave the key out for its default",
        "2 mistakes.",
    ]
    result = run("config", "check", "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["ok"] is False
    assert report["problems"][0] == {
        "file": "trimtab.toml",
        "line": 2,
        "key": "server.prot",
        "message": "unknown key; did you mean 'port'?",
    }


def test_check_of_a_file_that_is_not_there():
    result = run("config", "check", "none.toml")
    assert result.exit_code == 1
    assert "none.toml: cannot be read: No such file" in result.stderr


# --- config show ---


def test_show_fills_defaults_in_and_hides_hashes():
    write(f'[engines.e]\nkind = "openai_http"\nbase_url = "http://a/v1"\n[keys.k]\nhash = "{HASH}"\ntenant = "t"\n')
    shown = run("config", "show")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith("# in effect, from trimtab.toml\n[server]\nhost = ")
    assert "port = 8088\n" in shown.stdout
    assert HASH not in shown.stdout
    tables = json.loads(run("config", "show", "--json").stdout)
    assert tables["keys"]["k"]["hash"] == HASH[:15] + "..."
    assert tables["levers"]["exact_cache"]["ttl_s"] == 86400.0


def test_show_of_a_wrong_file_ends_without_a_traceback():
    write("[server]\nport = -1\n")
    result = run("config", "show")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("1 mistake in the configuration:\ntrimtab.toml:2: server.port: must be")
    assert isinstance(result.exception, SystemExit)


# --- keys new ---


def test_a_new_key_works_when_pasted():
    result = run("keys", "new", "--tenant", "acme", "--route", "a", "--route", "b")
    assert result.exit_code == 0, result.output
    (secret,) = re.findall(r"^tt-\S{32}$", result.stdout, re.MULTILINE)
    write(result.stdout[result.stdout.index("[keys.") :])
    ((name, key),) = config.load(None, ENV).keys.items()
    assert name.startswith("acme-")
    assert key == config.KeyConfig(config.hash_key(secret), "acme", ("a", "b"))
    assert secret not in Path("trimtab.toml").read_text()


def test_a_new_key_as_json():
    made = json.loads(run("keys", "new", "--tenant", "acme", "--name", "batch", "--json").stdout)
    assert made["name"] == "batch"
    assert made["hash"] == config.hash_key(made["secret"])
    assert made["toml"] == f'[keys.batch]\nhash = "{made["hash"]}"\ntenant = "acme"\n'


@pytest.mark.parametrize("words", [[], ["--tenant", ""], ["--tenant", "a b"], ["--tenant", "a", "--name", "x]"]])
def test_a_new_key_needs_proper_names(words):
    result = run("keys", "new", *words)
    assert result.exit_code == 2
    assert "tt-" not in result.output


# --- the group ---


def test_help_lists_all_commands():
    result = run("--help")
    assert result.exit_code == 0
    for name in cli.COMMANDS:
        assert re.search(rf"^  {name} ", result.stdout, re.MULTILINE), name
    assert "trimtab config check" in result.stdout
    assert run("-h").stdout == result.stdout


def test_version():
    assert run("--version").stdout == f"trimtab, version {__version__}\n"


@pytest.mark.parametrize(("wrong", "hint"), [("confg", "did you mean 'config'?"), ("xyz", "there are: serve, config")])
def test_a_wrong_command(wrong, hint):
    result = run(wrong)
    assert result.exit_code == 2
    assert hint in result.stderr


@pytest.mark.parametrize("error", [Overloaded("the disk is full; make room"), ConfigError(["f:1: a: b; c"])])
def test_errors_end_as_a_line(monkeypatch, error):
    @click.command()
    def failing() -> None:
        raise error

    monkeypatch.setattr("trimtab.cli.config.config", failing)
    result = run("config")
    assert result.exit_code == 1
    assert error.message in result.stderr
    assert "Traceback" not in result.output


def test_help_and_version_import_no_command():
    """In a process of its own, since this one has imported everything."""
    code = (
        "import sys\n"
        "from trimtab.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "loaded = [n for n in sys.modules if n.startswith('trimtab.') or n in ('msgspec', 'asyncio', 'tomllib')]\n"
        "print('LOADED', sorted(loaded))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "LOADED ['trimtab.cli', 'trimtab.errors']" in result.stdout
