"""What the configuration says of a store across the network: what is refused, and that no message shows a secret."""

import pytest

from trimtab import config
from trimtab.errors import BadRequest, ConfigError
from trimtab.stores import _valkey_link
from trimtab.stores._valkey_link import parse_url

SECRET = "hunter2hunter2"


def load(tmp_path, text: str, env: dict[str, str] | None = None):
    (tmp_path / "trimtab.toml").write_text("[levers.exact_cache]\n" + text)
    return config.load(tmp_path / "trimtab.toml", env or {}).levers["exact_cache"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('store = "valkey"', "2: levers.exact_cache.store: needs the server's address: url = \"valkey://"),
        ('store = "valkey"\nurl = "valkey://h/0"\nurl_env = "V"', "3: levers.exact_cache.url: give one of url and"),
        ('store = "valkey"\nurl = "http://h"', "3: levers.exact_cache.url: is not the URL of a server; write it like"),
        ('store = "valkey"\nurl = "valkey://h:99999"', "3: levers.exact_cache.url: is not the URL of a server"),
        ('store = "valkey"\nurl = "valkey://h/x"', "3: levers.exact_cache.url: names a database that is no number"),
        ('store = "valkey"\nurl = "redis://h/0?x=1"', "3: levers.exact_cache.url: is not the URL of a server"),
        (f'store = "valkey"\nurl = "redis://:{SECRET}@h/0"', "3: levers.exact_cache.url: holds a password; take it"),
        ('store = "valkey"\nurl_env = "NOT_SET"', "3: levers.exact_cache.url_env: the environment variable NOT_SET"),
        (f'store = "valkey"\nurl_env = "redis://:{SECRET}@h"', "must be the name of an environment variable, not a"),
        ('store = "valkey"\nurl_env = "BAD"', "the environment variable BAD is not the URL of a server"),
        ('url = "valkey://h/0"', "2: levers.exact_cache.url: has no effect on this store; take it out, or set store"),
        ('store = "redis"', "2: levers.exact_cache.store: must be"),
        ('store = "valkey"\nurl = "valkey://h"\ntimeout_ms = 0', "4: levers.exact_cache.timeout_ms: must be a number"),
    ],
)
def test_mistakes_and_the_way_out(tmp_path, text, message):
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text, {"BAD": f"http://u:{SECRET}@h"})
    assert message in str(error.value)
    assert SECRET not in str(error.value)


def test_what_is_right(tmp_path):
    assert load(tmp_path, "").store == "lmdb"
    assert load(tmp_path, 'store = "memory"').store == "memory"
    assert load(tmp_path, 'store = "valkey"\nurl = "valkeys://h:1/2"').url == "valkeys://h:1/2"
    settings = load(tmp_path, 'store = "valkey"\nurl_env = "V"', {"V": f"rediss://me:{SECRET}@h/3"})
    assert settings.url_env == "V"


def test_the_package_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(_valkey_link, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'trimtab\[valkey\]'"):
        load(tmp_path, 'store = "valkey"\nurl = "valkey://h/0"')


def test_another_store_takes_a_restart(tmp_path):
    old = config.load(None, {})
    (tmp_path / "t.toml").write_text('[levers.exact_cache]\nstore = "memory"\n')
    new = config.load(tmp_path / "t.toml", {})
    assert "levers.exact_cache.store" in config.restart_needed(old, new)


def test_addresses():
    one = parse_url(f"rediss://me:{SECRET}%21@example.test:7000/5")
    assert (one.host, one.port, one.database, one.tls) == ("example.test", 7000, 5, True)
    assert (one.user, one.password, one.shown) == ("me", SECRET + "!", "rediss://example.test:7000/5")
    two = parse_url("valkey://[::1]")
    assert (two.host, two.port, two.database, two.tls, two.shown) == ("::1", 6379, 0, False, "valkey://[::1]:6379/0")
    with pytest.raises(BadRequest) as error:
        parse_url(f"valkey://:{SECRET}@h:port/0")
    assert SECRET not in error.value.message
