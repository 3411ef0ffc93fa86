"""The configuration: what a good file means, and what is said about a bad one."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from trimtab import config as configuration
from trimtab.config import (
    AdmissionConfig,
    Config,
    EngineConfig,
    find,
    hash_key,
    load,
    new_key,
    restart_needed,
    with_server,
)
from trimtab.config.problems import index_lines
from trimtab.config.registry import known
from trimtab.engines import llama_cpp
from trimtab.errors import ConfigError
from trimtab.levers import exact_cache
from trimtab.types import Timeouts

ENV = {"OPENAI_API_KEY": "secret", "HOME": "/home/somebody"}
OPENAI = '[engines.openai]\nkind = "openai_http"\nbase_url = "https://api.example.com/v1"\n'
HASH = "sha256:" + "ab" * 32
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def module(name: str, config: type, **more: object) -> ModuleType:
    made = ModuleType(name)
    made.Config = config  # type: ignore[attr-defined]
    made.build = lambda *_: None  # type: ignore[attr-defined]
    for key, value in more.items():
        setattr(made, key, value)
    return made


@pytest.fixture
def read(tmp_path: Path):
    def read(text: str, env: dict[str, str] = ENV) -> Config:
        (tmp_path / "trimtab.toml").write_text(text)
        return load(tmp_path / "trimtab.toml", env)

    return read


@pytest.fixture
def mistakes(read, tmp_path: Path):
    """All that is said about a text, without the file's folder."""

    def mistakes(text: str, env: dict[str, str] = ENV) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            read(text, env)
        return [problem.replace(f"{tmp_path}/", "") for problem in caught.value.problems]

    return mistakes


# --- where it comes from ---


def test_nothing_at_all_serves_the_embedded_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load(None, {"HOME": "/home/somebody"})
    assert config.source == "built-in defaults"
    assert config.engines == {"local": EngineConfig("llama_cpp", llama_cpp.Config(), AdmissionConfig(8))}
    assert [(name, model.engine, model.name) for name, model in config.models.items()] == [
        ("smollm2-135m-instruct", "local", "smollm2-135m-instruct")
    ]
    assert (config.server.host, config.server.port, config.server.workers) == ("127.0.0.1", 8088, 1)
    assert config.server.data_dir == "/home/somebody/.local/share/trimtab"
    assert config.lever_settings("exact_cache", "any") == exact_cache.Config()
    assert config.keys == {}


def test_order_of_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, port in (("trimtab.toml", 1001), ("named.toml", 1002), ("given.toml", 1003)):
        (tmp_path / name).write_text(f"[server]\nport = {port}\n")
    named = {**ENV, "TRIMTAB_CONFIG": str(tmp_path / "named.toml")}
    assert load(None, ENV).server.port == 1001
    assert load(None, named).server.port == 1002
    assert load(Path("given.toml"), named).server.port == 1003
    assert load(None, {**ENV, "TRIMTAB_CONFIG": ""}).server.port == 1001


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"HOME": "/h"}, "/h/.local/share/trimtab"),
        ({"HOME": "/h", "XDG_DATA_HOME": "/data"}, "/data/trimtab"),
        ({"HOME": "/h", "XDG_DATA_HOME": "relative"}, "/h/.local/share/trimtab"),
        ({"HOME": "/h", "TRIMTAB_DATA_DIR": "/srv/t"}, "/srv/t"),
    ],
)
def test_data_dir_from_the_environment(read, env, expected):
    assert read("", env).server.data_dir == expected


def test_data_dir_in_the_file_is_relative_to_the_file_and_yields_to_the_environment(read, tmp_path):
    text = '[server]\ndata_dir = "state"\n'
    assert read(text).server.data_dir == str(tmp_path / "state")
    assert read(text, {**ENV, "TRIMTAB_DATA_DIR": "/srv/t"}).server.data_dir == "/srv/t"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"[server]\nhost = 127.0.0.1\n", ":2: TOML: "),
        (b"[server]\nport = \n", "Invalid value at column 8; a text needs quotes"),
        (b'[server]\nhost = "x\n', "a closing quote is missing"),
        (b"[models.meta/llama]\n", ":1: TOML: "),
        (b"[server]\nport = 1\nport = 2\n", ":3: TOML: Cannot overwrite a value"),
        (b"[server]\n[server]\n", ":2: TOML: Cannot declare"),
        (b"[models.x]\nfallback = [", ":2: TOML: "),
    ],
)
def test_files_that_are_not_toml(tmp_path, content, said):
    file = tmp_path / "t.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(file, ENV)
    assert len(caught.value.problems) == 1
    assert said in caught.value.problems[0]


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        load(tmp_path / "none.toml", ENV)
    with pytest.raises(ConfigError, match="named by TRIMTAB_CONFIG"):
        load(None, {"TRIMTAB_CONFIG": str(tmp_path / "none.toml")})
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path, ENV)


def test_a_byte_order_mark_is_skipped(tmp_path):
    (tmp_path / "t.toml").write_bytes(b"\xef\xbb\xbf[server]\nport = 1\n")
    assert load(tmp_path / "t.toml", ENV).server.port == 1


# --- what a good file means ---


def test_engines_and_models(read):
    config = read(
        OPENAI
        + """
api_key_env = "OPENAI_API_KEY"
[engines.claude]
kind = "anthropic_http"
[models."gpt-4.1"]
engine = "openai"
fallback = ["small"]
price = { input_per_mtok = 2, output_per_mtok = 8.5 }
[models.small]
engine = "openai"
name = "gpt-4.1-mini"
price = { machine_hour = 2.5 }
[prices."openai/gpt-5"]
input_per_mtok = 1
"""
    )
    assert config.engines["openai"].settings.api_key_env == "OPENAI_API_KEY"
    assert config.engines["claude"].settings.base_url == "https://api.anthropic.com"
    assert config.models["gpt-4.1"].name == "gpt-4.1"
    assert config.models["gpt-4.1"].fallback == ("small",)
    price = config.models["gpt-4.1"].price
    assert price is not None
    assert (price.input_per_mtok, price.output_per_mtok, price.machine_hour) == (2.0, 8.5, None)
    assert config.models["small"].name == "gpt-4.1-mini"
    assert config.prices["openai/gpt-5"].input_per_mtok == 1.0


def test_engines_without_models_take_any_name(read):
    config = read(OPENAI + '[engines.claude]\nkind = "anthropic_http"\n[engines.local]\nkind = "llama_cpp"\n')
    assert config.open_engines() == ("openai", "claude")
    assert config.models.keys() == {"smollm2-135m-instruct"}


def test_engines_with_models_take_only_those_unless_told(read):
    model = '[models.m]\nengine = "openai"\n'
    assert read(OPENAI + model).open_engines() == ()
    assert read(OPENAI + "accept_any_model = true\n" + model).open_engines() == ("openai",)
    assert read(OPENAI + "accept_any_model = false\n[engines.c]\nkind = 'anthropic_http'\n").open_engines() == ("c",)


def test_an_embedded_engine_gets_a_model_named_after_its_weights(read, tmp_path):
    (tmp_path / "tiny.gguf").touch()
    config = read('[engines.mine]\nkind = "llama_cpp"\nmodel = "tiny.gguf"\n')
    assert config.models["tiny"].engine == "mine"
    assert config.engines["mine"].settings.model == str(tmp_path / "tiny.gguf")


def test_embedded_engines_side_by_side_have_a_model_each(read, mistakes, tmp_path):
    (tmp_path / "other").mkdir()
    for name in ("a-F16.gguf", "a-Q8_0.gguf", "other/a-Q8_0.gguf"):
        (tmp_path / name).touch()
    table = '[engines.{}]\nkind = "llama_cpp"\nmodel = "{}"\n'
    text = '[engines.own]\nkind = "llama_cpp"\n' + table.format("f16", "a-F16.gguf") + table.format("q8", "a-Q8_0.gguf")
    models = {name: model.engine for name, model in read(text).models.items()}
    assert models == {"smollm2-135m-instruct": "own", "a-F16": "f16", "a-Q8_0": "q8"}
    text += table.format("twin", "other/a-Q8_0.gguf")
    assert mistakes(text) == [
        "trimtab.toml:9: engines.twin: its model is called a-Q8_0, as one of engines.q8 is; "
        'give this one a name of its own: a table [models.NAME] with engine = "twin"'
    ]
    assert read(text + '[models.b]\nengine = "twin"\n').models["b"].engine == "twin"


def test_base_url_loses_its_last_slash_and_ca_file_is_relative_to_the_file(read, tmp_path):
    (tmp_path / "ca.pem").write_text(CERTIFICATE)
    config = read(OPENAI.replace('/v1"', '/v1/"') + 'ca_file = "ca.pem"\n')
    assert config.engines["openai"].settings.base_url == "https://api.example.com/v1"
    assert config.engines["openai"].settings.ca_file == str(tmp_path / "ca.pem")


@pytest.mark.parametrize("path", ["/v1", "/api/v1", "/v1beta/openai", "/api/paas/v4", "/v1/"])
def test_base_urls_with_a_version(read, path):
    read(f'[engines.e]\nkind = "openai_http"\nbase_url = "http://[::1]:8000{path}"\n')


def test_routes_fall_back_to_default_then_to_plain_defaults(read):
    config = read("[routes.default]\nretries = 5\n[routes.support]\nretries = 1\n")
    assert config.route("support").retries == 1
    assert config.route("other").retries == config.route("default").retries == 5
    assert read("").route("other").retries == 2


def test_levers_merge_the_route_over_their_table_over_their_defaults(read):
    config = read(
        """
[levers.exact_cache]
ttl_s = 60
[routes.a.levers.exact_cache]
any_temperature = true
[routes.b]
retries = 0
"""
    )
    assert config.lever_settings("exact_cache", "b") == exact_cache.Config(ttl_s=60)
    assert config.lever_settings("exact_cache", "a") == exact_cache.Config(ttl_s=60, any_temperature=True)
    with pytest.raises(ConfigError, match="unknown kind"):
        config.lever_settings("nothing", "a")


def test_the_queue_in_front_of_an_engine(read):
    assert read(OPENAI).engines["openai"].admission.max_concurrency == 0
    own = "[engines.mine]\nkind = 'llama_cpp'\nparallel = 3\n"
    assert read(own).engines["mine"].admission.max_concurrency == 3
    assert read(own + "admission = { max_concurrency = 0 }").engines["mine"].admission.max_concurrency == 0
    table = "[engines.openai.admission]\nmax_concurrency = 'auto'\ntarget_ttft_ms = 800\nweights = { acme = 2.5 }\n"
    admission = read(OPENAI + table).engines["openai"].admission
    assert admission == AdmissionConfig("auto", 800.0, weights={"acme": 2.5})


def test_a_configuration_made_by_hand_has_lever_defaults():
    assert Config().lever_settings("exact_cache", "default") == exact_cache.Config()


def test_deadlines_left_out_are_cut_to_a_short_total(read):
    route = read("[routes.a]\ntimeouts = { total_s = 30 }\n").route("a")
    assert route.timeouts == Timeouts(connect_s=5, first_token_s=30, idle_s=30, total_s=30)


def test_key(read):
    config = read(f'[server]\nhost = "0.0.0.0"\n[keys.k]\nhash = "{HASH}"\ntenant = "acme"\nroutes = ["a"]\n')
    assert config.keys["k"] == configuration.KeyConfig(HASH, "acme", ("a",))


# --- every mistake, all at once ---

MISTAKES = [
    ("[serve]\nport = 1", "1: serve: unknown table; did you mean 'server'?"),
    ("port = 1", "1: port: stands outside of any table; move it below [server]"),
    ("server = 1", "1: server: must be a table, not 1; write [server] above its keys"),
    ("[[engines]]\nkind = 'x'", "1: engines: must hold tables by name; write [engines.NAME]"),
    ("[engines]\nopenai = 1", "2: engines.openai: must be a table, not 1; write [engines.openai]"),
    ("[server]\nworker = 2", "2: server.worker: unknown key; did you mean 'workers'?"),
    ("[server]\nzzz = 2", "2: server.zzz: unknown key; choose one of: data_dir, host, log, max_request_bytes"),
    (
        '[server]\nport = "80"',
        '2: server.port: must be a TCP port from 1 to 65535 (0 takes any free one), not "80"; write',
    ),
    ("[server]\nport = 70000", "2: server.port: must be a TCP port"),
    ("[server]\nport = true", "2: server.port: must be a TCP port from 1 to 65535 (0 takes any free one), not true"),
    ("[server]\nworkers = 0", "2: server.workers: must be a number of processes from 1 to 256, not 0"),
    ("[server]\nhost = 1", '2: server.host: must be a text in quotes, not 1; write "1"'),
    ("[server]\nhost = 2020-01-01", "2: server.host: must be a text in quotes, not a date or time"),
    ('[server]\nlog = "xml"', '2: server.log: must be one of "text", "json", not "xml"'),
    ("[server]\nshutdown_grace_s = nan", "2: server.shutdown_grace_s: must be a finite number, not nan"),
    ("[server]\nmax_request_bytes = 1", "2: server.max_request_bytes: must be a whole number of bytes from 1024"),
    ('[server]\nhost = "0.0.0.0"', "no [keys] are configured, so Trimtab refuses to bind elsewhere"),
    ('[server]\nhost = "gateway.internal"', '2: server.host: "gateway.internal" can be reached from other machines'),
    ('[server]\nhost = "http://127.0.0.1"', '2: server.host: "http://127.0.0.1" is not a host; leave out http://'),
    ('[server]\nhost = ""', '2: server.host: "" is not a host name or address'),
    (f'[server]\nhost = "a b"\n[keys.k]\nhash = "{HASH}"\ntenant = "a"', '2: server.host: "a b" is not a host name'),
    ("[engines.e]\nbase_url = 'x'", '1: engines.e.kind: is missing; add kind = "openai_http"'),
    ("[engines.e]\nkind = 3", "2: engines.e.kind: must be a text in quotes, not 3"),
    ("[engines.e]\nkind = 'openai'", "2: engines.e.kind: unknown kind 'openai'; did you mean 'openai_http'?"),
    ("[engines.e]\nkind = 'os.path'", "2: engines.e.kind: unknown kind 'os.path'; "),
    ("[engines.e]\nkind = 'openai_http'", '1: engines.e.base_url: is missing; add base_url = "..."'),
    (OPENAI + "base_uri = 'x'", "4: engines.openai.base_uri: unknown key; did you mean 'base_url'?"),
    (OPENAI + "provider = 1", '4: engines.openai.provider: must be a text in quotes, not 1; write "1"'),
    (
        OPENAI + "accept_any_model = 'true'",
        '4: engines.openai.accept_any_model: must be true or false, not "true"; write',
    ),
    (
        OPENAI + "api_key_env = 'NOT_SET'",
        "4: engines.openai.api_key_env: the environment variable NOT_SET is not set; export",
    ),
    (OPENAI + "api_key_env = 'ODD'", "4: engines.openai.api_key_env: the environment variable ODD has blanks"),
    (
        OPENAI + "api_key_env = 'my secret'",
        "4: engines.openai.api_key_env: must be the name of an environment variable",
    ),
    (
        OPENAI + "api_key = 'abc'",
        "4: engines.openai.api_key: a secret in the file; take it out, revoke it, and name the",
    ),
    (OPENAI + "token = 'abc'", "4: engines.openai.token: a secret in the file"),
    (OPENAI + "api_key_env = 'sk-abcdefghijklmnop1234'", "4: engines.openai.api_key_env: a secret in the file"),
    (
        OPENAI.replace("https://", "ftp://"),
        '3: engines.openai.base_url: "ftp://api.example.com/v1" is not a web address',
    ),
    (OPENAI.replace("https://", ""), '3: engines.openai.base_url: "api.example.com/v1" is not a web address'),
    (OPENAI.replace("/v1", ""), '3: engines.openai.base_url: lacks /v1; write "https://api.example.com/v1"'),
    (OPENAI.replace("/v1", "/v1?a=b"), "3: engines.openai.base_url: must not have a query"),
    (OPENAI.replace("/v1", "/v1/chat/completions"), "is the address of one call; cut it off"),
    (OPENAI.replace("api.", "me:pw@api."), "3: engines.openai.base_url: holds a user name or password"),
    (
        OPENAI.replace(".com", ".com:99999"),
        '3: engines.openai.base_url: "https://api.example.com:99999/v1" is not a web',
    ),
    (
        "[engines.c]\nkind = 'anthropic_http'\nbase_url = 'https://api.anthropic.com/v1'",
        '3: engines.c.base_url: must not end in /v1 (it is added); write "https://api.anthropic.com"',
    ),
    (
        OPENAI + "[engines.openai.admission]\nmax_wait_s = 3",
        "4: engines.openai.admission.max_concurrency: is missing; add max_concurrency = 32 or another number of",
    ),
    (
        OPENAI + "[engines.openai.admission]\nmax_concurrency = 'fast'",
        '5: engines.openai.admission.max_concurrency: must be a whole number from 0 (no queue) to 4096, or "auto", not',
    ),
    (
        OPENAI + "[engines.openai.admission]\nmax_concurrency = 'auto'",
        '4: engines.openai.admission.target_ttft_ms: is missing; max_concurrency = "auto" follows it: add target',
    ),
    (
        OPENAI + "[engines.openai.admission]\nmax_concurrency = 5\ntarget_ttft_ms = 100",
        '6: engines.openai.admission.target_ttft_ms: is followed by max_concurrency = "auto" only, not by 5; take',
    ),
    (
        OPENAI + "[engines.openai.admission]\nmax_concurrency = 5\n[engines.openai.admission.weights]\nacme = 0",
        "7: engines.openai.admission.weights.acme: must be a number, more than 0 and at most 1000, not 0",
    ),
    (
        OPENAI + "[engines.openai.admission]\nmax_concurrency = 5\nweights = { 'a b' = 1 }",
        '6: engines.openai.admission.weights."a b": odd name "a b"; use up to 64 letters',
    ),
    (OPENAI + "admission = 4", "4: engines.openai.admission: must be a table, not 4; write [engines.openai.admission]"),
    (OPENAI + "ca_file = 'none.pem'", "4: engines.openai.ca_file: cannot read none.pem (No such file or directory)"),
    (OPENAI + "ca_file = 'trimtab.toml'", "4: engines.openai.ca_file: trimtab.toml holds no PEM certificate"),
    (OPENAI + "accept_any_model = false", "1: engines: no model can be served; add a table [models.NAME]"),
    ("[engines.e]\nkind = 'llama_cpp'\nmodel = 'none.gguf'", "3: engines.e.model: there is no file none.gguf"),
    (
        "[engines.e]\nkind = 'llama_cpp'\nmodel = 'llama3'",
        '3: engines.e.model: "llama3" is no model here; use ',
    ),
    ("[engines.'a b']\nkind = 'llama_cpp'", '1: engines."a b": odd name "a b"; use up to 64 letters'),
    ("[models.m]\n", '1: models.m.engine: is missing; add engine = "..."'),
    (OPENAI + "[models.m]\nengine = 'opnai'", "5: models.m.engine: unknown engine \"opnai\"; did you mean 'openai'?"),
    (OPENAI + "[models.gpt-4.1]\nengine = 'openai'", 'put it in quotes: [models."gpt-4.1"]'),
    (
        OPENAI + "[models.m]\nengine = 'openai'\nfallback = ['n']",
        '6: models.m.fallback: unknown model "n"; choose one of: m',
    ),
    (OPENAI + "[models.m]\nengine = 'openai'\nfallback = ['m']", '6: models.m.fallback: "m" falls back to itself'),
    (OPENAI + "[models.m]\nengine = 'openai'\nfallback = 'm'", "6: models.m.fallback: must be a list such as"),
    (
        OPENAI + "[models.m]\nengine = 'openai'\nfallback = [1]",
        "6: models.m.fallback: every item must be a text in quotes",
    ),
    (
        OPENAI + "[models.a]\nengine = 'openai'\nfallback = ['b']\n[models.b]\nengine = 'openai'\nfallback = ['a']",
        "6: models.a.fallback: fallbacks go in a circle: a -> b -> a",
    ),
    (
        OPENAI + "[models.a]\nengine = 'openai'\n[models.b]\nengine = 'openai'\nfallback = ['a', 'a']",
        '8: models.b.fallback: "a" is there twice',
    ),
    (OPENAI + "[models.m]\nengine = 'openai'\nprice = {}", "6: models.m.price: sets no price"),
    (OPENAI + "[models.m]\nengine = 'openai'\nprice = 3", "6: models.m.price: must be a table"),
    (
        OPENAI + "[models.m]\nengine = 'openai'\nprice = { input_per_mtok = 1, machine_hour = 2 }",
        "6: models.m.price: is both per token and per machine-hour",
    ),
    (
        OPENAI + "[models.m]\nengine = 'openai'\nprice = { input_per_mtok = -1 }",
        "6: models.m.price.input_per_mtok: must be an amount of USD from 0 to 1000000, not -1",
    ),
    (
        OPENAI + "[models.m]\nengine = 'openai'\nprice = { input = 1 }",
        "models.m.price.input: unknown key; did you mean",
    ),
    ("[prices.'openai/x']\nmachine_hour = 1\ninput_per_mtok = 1", '1: prices."openai/x": is both per token and per'),
    ("[prices.'x y']\nmachine_hour = 1", '1: prices."x y": odd name'),
    (
        "[telemetry]\notlp_endpoint = '127.0.0.1:4318'",
        '2: telemetry.otlp_endpoint: "127.0.0.1:4318" is not a web address',
    ),
    ("[telemetry]\notlp_endpoint = 'http://c:4318/v1/traces'", "2: telemetry.otlp_endpoint: "),
    ("[telemetry]\nsample = 1.5", "2: telemetry.sample: must be a share from 0 to 1, not 1.5"),
    ("[telemetry]\nslow_s = 0", "2: telemetry.slow_s: must be a number of seconds, more than 0"),
    ("[telemetry]\nsampl = 1", "2: telemetry.sampl: unknown key; did you mean"),
    ("[routes.r]\nmodel = 'x'", '2: routes.r.model: unknown model "x"; choose one of: smollm2-135m-instruct'),
    ("[routes.r]\nfallback = ['x']", '2: routes.r.fallback: unknown model "x"'),
    ("[routes.'r/1']\n", '1: routes."r/1": odd name "r/1"'),
    ("[routes.r]\nretries = 99", "2: routes.r.retries: must be a whole number from 0 to 10, not 99"),
    ("[routes.r]\ntimeouts = { idle_s = 0 }", "2: routes.r.timeouts.idle_s: must be more than 0"),
    ("[routes.r]\ntimeouts = { idle = 1 }", "2: routes.r.timeouts.idle: unknown key; did you mean 'idle_s'?"),
    ("[routes.r]\ntimeouts = 5", "2: routes.r.timeouts: must be a table, not 5"),
    (
        "[routes.r.timeouts]\nfirst_token_s = 900",
        "2: routes.r.timeouts.first_token_s: 900 is longer than total_s = 600 (its default)",
    ),
    (
        "[routes.r.timeouts]\ntotal_s = 9\nconnect_s = 10",
        "3: routes.r.timeouts.connect_s: 10 is longer than total_s = 9;",
    ),
    ("[routes.r.levers]\nexact_cache = 1", "2: routes.r.levers.exact_cache: must be a table"),
    (
        "[routes.r.levers.exact_cash]\nttl_s = 1",
        "1: routes.r.levers.exact_cash: unknown kind 'exact_cash'; did you mean",
    ),
    ("[routes.r.levers.exact_cache]\nttl_s = 'x'", "2: routes.r.levers.exact_cache.ttl_s: must be"),
    (
        "[routes.r.levers.exact_cache]\nttl = 1",
        "2: routes.r.levers.exact_cache.ttl: unknown key; did you mean 'ttl_s'?",
    ),
    ("[levers.exact_cache]\nmax_bytes = -1", "2: levers.exact_cache.max_bytes: must be"),
    ("[levers.zzz]\n", "1: levers.zzz: unknown kind 'zzz'; choose one of: "),
    ("[keys.k]\ntenant = 'a'", "1: keys.k.hash: is missing"),
    ("[keys.k]\ntenant = 'a'\nhash = 'sha256:abc'", "3: keys.k.hash: must be 'sha256:' and 64 lower-case hex digits"),
    ("[keys.k]\ntenant = 'a'\nkey = 'abc'", "3: keys.k.key: a secret in the file; store its hash: `trimtab keys new`"),
    ("[keys.k]\ntenant = 'a'\nhash = 'tt-abcdefghijklmnop'", "3: keys.k.hash: a secret in the file; store its hash"),
    (f"[keys.k]\ntenant = ''\nhash = '{HASH}'", '2: keys.k.tenant: odd name ""'),
    (f"[keys.k]\ntenant = 'a\\\\b'\nhash = '{HASH}'", "2: keys.k.tenant: odd name"),
    (f"[keys.k]\ntenant = 'a'\nroutes = ['x y']\nhash = '{HASH}'", '3: keys.k.routes: odd name "x y"'),
    (
        f"[keys.k]\ntenant = 'a'\nhash = '{HASH}'\n[keys.l]\ntenant = 'b'\nhash = '{HASH}'",
        "6: keys.l.hash: the same hash as keys.k",
    ),
]


@pytest.mark.parametrize(("text", "expected"), MISTAKES, ids=[expected[:50] for _, expected in MISTAKES])
def test_mistake(mistakes, text, expected, tmp_path):
    found = mistakes(text, {**ENV, "ODD": "a b"})
    assert any(expected in problem for problem in found), found
    assert all(problem.startswith("trimtab.toml:") for problem in found)


def test_every_mistake_at_once_in_the_order_of_lines(mistakes):
    """One text with all the mistakes that can stand beside each other: each is reported, none hides another."""
    parts, expected = [], []
    line = 0
    for n, (text, said) in enumerate(MISTAKES):
        head = text.split("\n")[0]
        # Tables by name can be renamed, so that many of them fit into one file.
        if text.count("[") == 1 and head.startswith(("[routes.r", "[keys.k]")):
            parts.append(text.replace("[routes.r", f"[routes.r{n}").replace("[keys.k]", f"[keys.k{n}]"))
            place, _, rest = said.partition(": ")
            key, _, message = rest.partition(": ")
            renamed = key.replace("routes.r.", f"routes.r{n}.").replace("keys.k.", f"keys.k{n}.")
            expected.append(f"trimtab.toml:{line + int(place)}: {renamed}: {message}")
            line += text.count("\n") + 1
    found = mistakes("\n".join(parts))
    assert len(expected) > 10
    for said in expected:
        assert any(problem.startswith(said) for problem in found), (said, found)
    lines = [int(problem.split(":")[1]) for problem in found]
    assert lines == sorted(lines)


@pytest.mark.parametrize(
    "secret", ["sk-ant-api03-abcdefghijklmnop", "tt-abcdefghijklmnop1234", "AIzaSyAbcdefghijklmnop"]
)
@pytest.mark.parametrize(
    "place", ["[engines.e]\nkind = 'K'", "[server]\nhost = 'K'", "[models.m]\nfallback = ['K']", "[keys.k]\nhash = 'K'"]
)
def test_a_secret_is_never_repeated(mistakes, place, secret):
    found = mistakes(place.replace("K", secret))
    assert any("a secret in the file" in problem for problem in found)
    assert secret not in "\n".join(found)


def test_a_missing_secret_is_never_shown(mistakes):
    assert "hidden" not in "".join(mistakes(OPENAI + "api_key_env = 'my hidden key'"))


def test_wrong_tables_still_count_as_known_names(mistakes):
    """A broken engine or key table is one mistake; what refers to it is none."""
    found = mistakes(
        "[engines.e]\nkind = 'nope'\n[models.m]\nengine = 'e'\n[server]\nhost = '0.0.0.0'\n[keys.k]\ntenant = 'a'"
    )
    assert [problem.split(": ")[1] for problem in found] == ["engines.e.kind", "keys.k.hash"]


# --- kinds ---


class BedrockConfig(msgspec.Struct, frozen=True):
    region: str
    api_key_env: str = ""

    def __post_init__(self) -> None:
        if self.region == "moon":
            raise ValueError("no such region as moon")


class ThrottleConfig(msgspec.Struct, frozen=True):
    per_minute: int = 60
    table_bytes: int = 1000


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints(
        [
            EntryPoint("bedrock", "acme_bedrock", "trimtab.engines"),
            EntryPoint("empty", "acme_empty", "trimtab.engines"),
            EntryPoint("broken", "acme_broken", "trimtab.engines"),
            EntryPoint("throttle", "acme_throttle", "trimtab.levers"),
        ]
    )
    monkeypatch.setattr("importlib.metadata.entry_points", points.select)
    monkeypatch.setitem(sys.modules, "acme_bedrock", module("acme_bedrock", BedrockConfig))
    monkeypatch.setitem(sys.modules, "acme_empty", ModuleType("acme_empty"))
    monkeypatch.setitem(sys.modules, "acme_broken", None)  # what an import of it runs into
    throttle = module("acme_throttle", ThrottleConfig, PER_ROUTE=("per_minute",))
    monkeypatch.setitem(sys.modules, "acme_throttle", throttle)


@pytest.mark.usefixtures("third_party")
def test_third_parties_bring_kinds(read, mistakes):
    config = read("[engines.aws]\nkind = 'bedrock'\nregion = 'eu'\n[models.m]\nengine = 'aws'\n[levers.throttle]\n")
    assert config.engines["aws"].settings == BedrockConfig("eu")
    assert config.levers["throttle"] == ThrottleConfig()
    assert "throttle" not in read("").levers
    assert {"bedrock", "openai_http", "anthropic_http"} <= set(known("engines"))
    assert mistakes("[engines.aws]\nkind = 'bedrok'") == [
        "trimtab.toml:2: engines.aws.kind: unknown kind 'bedrok'; did you mean 'bedrock'?"
    ]
    assert "1: engines.aws: no such region as moon" in mistakes("[engines.aws]\nkind = 'bedrock'\nregion = 'moon'")[0]
    said = mistakes(
        "[engines.aws]\nkind = 'bedrock'\nregion = 'eu'\napi_key_env = 'AWS_KEY'\n[models.m]\nengine = 'aws'"
    )
    assert said == [
        "trimtab.toml:4: engines.aws.api_key_env: the environment variable AWS_KEY is not set; "
        "export AWS_KEY=... where Trimtab starts"
    ]


@pytest.mark.usefixtures("third_party")
def test_kinds_that_are_not_whole(mistakes):
    assert "must export `Config` and `build`" in mistakes("[engines.e]\nkind = 'empty'")[0]
    assert "cannot be loaded" in mistakes("[engines.e]\nkind = 'broken'")[0]


@pytest.mark.usefixtures("third_party")
def test_settings_of_the_whole_gateway_cannot_differ_by_route(read, mistakes):
    config = read("[routes.r.levers.throttle]\nper_minute = 5\n")
    assert config.lever_settings("throttle", "r") == ThrottleConfig(per_minute=5)
    (said,) = mistakes("[levers.throttle]\n[routes.r.levers.throttle]\ntable_bytes = 5")
    assert "3: routes.r.levers.throttle.table_bytes: holds for the whole gateway; move it to [levers.throttle]" in said


def test_engines_with_processes_of_their_own(read):
    assert configuration.own_processes(read(OPENAI + "[engines.mine]\nkind = 'llama_cpp'\n")) == ["mine"]


def test_find_gives_the_module():
    assert find("levers", "exact_cache") is exact_cache
    with pytest.raises(ConfigError, match="did you mean 'exact_cache'"):
        find("levers", "exactcache")


# --- reload, command line, keys ---


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("[server]\nport = 1", "[server]\nport = 2", ["server.port"]),
        ("[server]\nworkers = 1", "[server]\nworkers = 2\nlog = 'json'", ["server.workers", "server.log"]),
        ("[server]\nmax_request_bytes = 2000", "[server]\nmax_request_bytes = 3000", []),
        ("", OPENAI, ["engines.local"]),
        ("", "[engines.aws]\nkind = 'bedrock'\nregion = 'eu'\n[models.m]\nengine = 'aws'", ["engines.local"]),
        (OPENAI, OPENAI.replace("api.", "b."), []),
        ("[engines.e]\nkind = 'llama_cpp'", "[engines.e]\nkind = 'llama_cpp'\nthreads = 3", ["engines.e"]),
        ("[engines.e]\nkind = 'llama_cpp'", "[engines.e]\nkind = 'llama_cpp'\nadmission = { max_concurrency = 3 }", []),
        ("[routes.r]\nretries = 1", "[routes.s]\nretries = 1\n[levers.exact_cache]\nttl_s = 5", []),
        ("", "[levers.exact_cache]\nmax_bytes = 2000000\nttl_s = 5", ["levers.exact_cache.max_bytes"]),
        ("[levers.throttle]", "[levers.throttle]\nper_minute = 1\ntable_bytes = 2", ["levers.throttle.table_bytes"]),
    ],
)
@pytest.mark.usefixtures("third_party")
def test_what_takes_a_restart(read, before, after, expected):
    assert restart_needed(read(before), read(after)) == expected


def test_command_line_replaces_parts_of_server(read):
    config = read(f'[keys.k]\nhash = "{HASH}"\ntenant = "acme"\n')
    assert with_server(config, host="0.0.0.0", port=0, workers=3).server.workers == 3
    assert with_server(config) == config
    with pytest.raises(ConfigError, match="refuses to bind elsewhere"):
        with_server(read(""), host="0.0.0.0")
    with pytest.raises(ConfigError) as caught:
        with_server(read(""), port=-1, workers=0)
    assert [problem.split(": ")[:2] for problem in caught.value.problems] == [
        ["command line", "server.port"],
        ["command line", "server.workers"],
    ]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_only(host):
    assert configuration.is_loopback(host)
    assert configuration.bind_problem(host, {}) == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "localhost.example.com"])
def test_reachable_from_elsewhere(host):
    assert not configuration.is_loopback(host)


def test_keys_are_random_and_hash_to_a_fixed_form():
    key = new_key()
    assert key.startswith("tt-")
    assert len(key) == 35
    assert key != new_key()
    assert hash_key("abc") == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_lines_of_keys():
    text = '''a = 1
[t]
"b.c" = """
[not.a.table]
d = 1
"""
e.f = [
  "g",
]
[t.'u v'] # comment
x = { y = 1 }
'''
    assert index_lines(text) == {
        ("a",): 1,
        ("t",): 2,
        ("t", "b.c"): 3,
        ("t", "e"): 7,
        ("t", "e", "f"): 7,
        ("t", "u v"): 10,
        ("t", "u v", "x"): 11,
    }
