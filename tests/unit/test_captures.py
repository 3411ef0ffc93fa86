"""The way of captured requests to the disk: what is queued, what is counted, what is deleted, who can read it."""

from __future__ import annotations

import base64
import json
import os
import random
import sqlite3
import threading
import time
from collections import Counter

import msgspec
import pytest
from click.testing import CliRunner

from trimtab import config as configuration
from trimtab.cli import main
from trimtab.errors import BadRequest, ConfigError, Overloaded
from trimtab.redact import Redactor
from trimtab.stores import captures as module
from trimtab.stores import sealing
from trimtab.stores.captures import Captures, Policies, Policy
from trimtab.stores.captures_db import Captured, Reader, Writer
from trimtab.stores.sealing import Keyring, Seal
from trimtab.types import Dialect, End, Record, Request, Scope, Usage

DAY_S = 86_400.0
NOW = round(time.time())
KEY = bytes(range(32))
TEXT = base64.b64encode(KEY).decode()
PLAIN = Policy(None, Seal(), 1.0, 30 * DAY_S)


def asked(number: int = 0, text: str = "hi a@b.example", *, route: str = "chat", **more) -> tuple[Request, Record]:
    scope = Scope("acme", route, more.pop("user", "u"), session="s")
    fields = {"model": b'"m"', "messages": json.dumps([{"role": "user", "content": text}]).encode()}
    raw = {name: msgspec.Raw(value) for name, value in fields.items()}
    request = Request(
        f"tt-{number:08d}", Dialect.OPENAI, "/v1/chat/completions?x=1", scope, "m", raw, False, False,
        more.pop("body_bytes", 100), NOW + number, 0.0, "the-secret-key", ((b"x-private", b"header"),),
    )  # fmt: skip
    record = Record(
        request.id, request.at, scope, "openai", request.path, "m", False, more.pop("end", End.OK), 200, 1.0,
        baseline_usage=Usage(input=5, cache_read=2, output=3), **more,
    )  # fmt: skip
    return request, record


class World:
    def __init__(self, folder, **more):
        self.path = folder / "capture.sqlite"
        self.counts: Counter[str] = Counter()
        self.captures = Captures(self.path, lambda what, n: self.counts.update({what: n}), **more)

    def take(self, *requests: tuple[Request, Record], policies: Policies | None = None) -> None:
        tap = self.captures.tap(policies or Policies({"chat": PLAIN}, None))
        assert tap is not None
        for request in requests:
            tap(*request)

    def rows(self) -> list[Captured]:
        with Reader(self.path) as reader:
            return list(reader.rows({}))


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.captures.close()


# The queue ------------------------------------------------------------------------------------------------------------


def test_a_request_becomes_a_row_without_headers_or_secrets(world):
    world.take(asked())
    world.captures.close()
    (row,) = world.rows()
    assert json.loads(Seal().open(row.body, row.id)) == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi a@b.example"}],
    }
    assert (row.at, row.expires, row.path) == (NOW, NOW + 30 * DAY_S, "/v1/chat/completions")
    assert (row.tenant, row.user, row.route, row.session, row.dialect) == ("acme", "u", "chat", "s", "openai")
    assert (row.input_tokens, row.output_tokens, row.mode, row.key_id) == (7, 3, "plain", "")
    files = b"".join(path.read_bytes() for path in world.path.parent.iterdir())
    assert b"the-secret-key" not in files and b"x-private" not in files
    assert world.counts == {"written": 1}


def test_policies_go_by_route_and_nothing_is_tapped_without_one(world):
    assert world.captures.tap(Policies({"chat": None}, None)) is None
    redacted = Policy(Redactor(), Seal(), 1.0, DAY_S)
    policies = Policies({"chat": PLAIN, "off": None}, redacted)
    world.take(asked(1), asked(2, route="off"), asked(3, route="any"), policies=policies)
    world.captures.close()
    assert [(row.route, row.mode) for row in world.rows()] == [("chat", "plain"), ("any", "redacted")]
    assert b"[EMAIL_1]" in Seal().open(world.rows()[1].body, world.rows()[1].id)


def test_what_was_turned_away_or_relayed_is_not_traffic(world):
    relayed, record = asked(1)
    world.take((msgspec.structs.replace(relayed, fields={}), record))
    request, refused = asked(2, end=End.REFUSED)
    world.take((request, msgspec.structs.replace(refused, status=400)))
    request, limited = asked(3, end=End.REFUSED)
    world.take((request, msgspec.structs.replace(limited, status=429)), asked(4, end=End.CANCELLED))
    world.captures.close()
    assert [row.id for row in world.rows()] == ["tt-00000003", "tt-00000004"]


def test_a_sample(world, monkeypatch):
    monkeypatch.setattr(module.random, "random", random.Random(1).random)
    policy = msgspec.structs.replace(PLAIN, sample=0.25)
    world.take(*(asked(n) for n in range(400)), policies=Policies({"chat": policy}, None))
    world.captures.close()
    assert 60 < len(world.rows()) < 140


def test_a_full_queue_drops_and_counts(tmp_path, monkeypatch):
    world = World(tmp_path, queue_bytes=10_000)
    monkeypatch.setattr(world.captures, "_start", lambda: None)  # nothing is taken out
    world.take(*(asked(n, body_bytes=2000) for n in range(5)))
    assert world.counts == {"full": 2}
    world.captures.flush()
    world.take(asked(9, body_bytes=1_000_000))  # larger than the queue: alone it may pass
    world.captures.flush()
    assert [row.id[-1] for row in world.rows()] == ["0", "1", "2", "9"]
    world.take(asked(10))
    world.captures.close()
    assert world.counts == {"full": 2, "written": 4, "stopped": 1}


def test_one_that_cannot_be_redacted_is_never_written(world):
    request, record = asked(1)
    broken = {**request.fields, "messages": msgspec.Raw(rb'["\ud800"]')}
    redacted = Policy(Redactor(), Seal(), 1.0, DAY_S)
    policies = Policies({"chat": redacted}, None)
    world.take((msgspec.structs.replace(request, fields=broken), record), asked(2), policies=policies)
    world.captures.close()
    assert [row.id for row in world.rows()] == ["tt-00000002"]
    assert world.counts == {"unreadable": 1, "written": 1}


def test_a_failing_disk_is_counted_said_once_and_recovers(world, caplog):
    world.path.mkdir()  # so that no file can be made
    for n in range(3):
        world.take(asked(n))
        world.captures.flush()
    assert world.counts == {"failed": 3}
    assert [line for line in caplog.messages if "cannot be captured" in line] == caplog.messages
    assert len(caplog.messages) == 1
    world.path.rmdir()
    world.take(asked(3))
    world.captures.flush()
    assert world.counts == {"failed": 3, "written": 1}


def test_a_file_that_is_taken_away_is_made_anew(world):
    world.take(asked(1))
    world.captures.flush()
    for path in world.path.parent.glob("capture.sqlite*"):
        path.unlink()
    world.take(asked(2))
    world.captures.flush()
    assert [row.id for row in world.rows()] == ["tt-00000002"]


def test_writers_do_not_hinder_each_other(tmp_path):
    worlds = [World(tmp_path) for _ in range(4)]

    def fill(world, first):
        for n in range(first, first + 50):
            world.take(asked(n))
            if n % 5 == 0:
                world.captures.flush()
        world.captures.close()

    threads = [threading.Thread(target=fill, args=(world, n * 100)) for n, world in enumerate(worlds)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(worlds[0].rows()) == 200
    assert sum((world.counts for world in worlds), Counter()) == {"written": 200}
    assert worlds[0].path.stat().st_mode & 0o777 == 0o600


# Age and erasure ------------------------------------------------------------------------------------------------------


def row(number: int, **more) -> Captured:
    made = Captured(
        f"tt-{number:08d}", float(number), number + 50.0, "acme", "u", "r", "", "openai", "/v1", "m", False, 0, 0,
        "plain", "", 1, b"b",
    )  # fmt: skip
    return msgspec.structs.replace(made, **more)


def test_retention_goes_by_route_and_by_the_row_where_the_route_captures_no_more(tmp_path):
    writer = Writer(tmp_path / "c.sqlite")
    writer.add([row(n, route=route) for n, route in enumerate(["ten", "none", "other"] * 40)])
    gone = writer.expire(120.0, {"ten": 10.0, "none": None}, 100.0)
    with Reader(tmp_path / "c.sqlite") as reader:
        left = {route: [r.at for r in reader.rows({"route": route})] for route in ("ten", "none", "other")}
    writer.close()
    assert (min(left["ten"]), min(left["none"]), min(left["other"])) == (111.0, 73.0, 23.0)
    assert gone + sum(map(len, left.values())) == 120


@pytest.mark.parametrize("seed", range(12))
def test_erased_is_gone_from_every_byte(tmp_path, seed):
    """With only secure_delete, one such file in twelve keeps a copy in a page that was split."""
    dice = random.Random(seed)
    writer, marks, number = Writer(tmp_path / "c.sqlite"), [], 0
    for _ in range(dice.randint(5, 30)):
        rows = []
        for _ in range(dice.randint(1, 60)):
            tenant, size = dice.choice(["alice", "bobby"]), dice.choice([50, 300, 1500, 3000, 9000])
            mark = os.urandom(16)
            marks += [mark] * (tenant == "alice")
            body = mark + os.urandom(size) + mark
            rows.append(row(number, id=os.urandom(8).hex(), tenant=tenant, user=f"{tenant}-{number % 20}", body=body))
            number += 1
        writer.add(rows)
        if dice.random() < 0.3:
            writer.expire(number - dice.randint(0, 300), {}, 100.0)
    writer.erase("alice", None)
    data = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    writer.close()
    assert b"alice" not in data
    assert not [mark for mark in marks if mark in data]


def test_a_reader_in_the_way_of_an_erasure_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("trimtab.stores.captures_db._BUSY_S", 0.1)
    writer = Writer(tmp_path / "c.sqlite")
    writer.add([row(n) for n in range(10)])
    with Reader(tmp_path / "c.sqlite") as reader:
        rows = reader.rows({})
        next(rows)
        with pytest.raises(Overloaded, match="erase again"):
            writer.erase("acme", None)
        rows.close()
    assert writer.erase("acme", None) == 0
    writer.close()


# Keys -----------------------------------------------------------------------------------------------------------------


def test_sealed_bodies_open_with_their_key_and_name_only():
    seal = Seal(KEY)
    stored = seal.close(b"body" * 100, "id-1")
    assert seal.open(stored, "id-1") == b"body" * 100
    assert stored != seal.close(b"body" * 100, "id-1")
    assert b"body" not in stored
    changed = stored[:20] + bytes([stored[20] ^ 1]) + stored[21:]
    for other, data, name in [
        (Seal(bytes(32)), stored, "id-1"),
        (seal, stored, "id-2"),
        (seal, changed, "id-1"),
        (seal, b"", "id-1"),
    ]:
        with pytest.raises(BadRequest, match="cannot be opened"):
            other.open(data, name)
    with pytest.raises(BadRequest, match="damaged"):
        Seal().open(b"nonsense", "id-1")


def test_a_keyring_reads_what_several_keys_sealed():
    old, new = Seal(KEY), Seal(bytes(32))
    env = {"OLD": TEXT, "NEW": base64.b64encode(bytes(32)).decode(), "BAD": "x"}
    keys = Keyring(["OLD", "NEW"], env)
    for seal in (old, new, Seal()):
        assert keys.open(seal.key_id, seal.close(b"b", "i"), "i") == b"b"
    with pytest.raises(BadRequest, match="the key given is another"):
        Keyring(["NEW"], env).open(old.key_id, b"", "i")
    with pytest.raises(BadRequest, match="none was given"):
        Keyring([], env).open(old.key_id, b"", "i")
    with pytest.raises(BadRequest, match="NONE is not set"):
        Keyring(["NONE"], env)
    with pytest.raises(BadRequest, match="BAD is not base64"):
        Keyring(["BAD"], env)


def test_without_the_package_a_key_is_an_error_and_never_ignored(monkeypatch):
    monkeypatch.setattr(sealing, "find_spec", lambda name: None)
    assert "trimtab[encrypt]" in sealing.key_problem(TEXT, "K")
    with pytest.raises(BadRequest, match=r"trimtab\[encrypt\]"):
        Seal.of_text(TEXT, "K")
    monkeypatch.setitem(__import__("sys").modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(BadRequest, match=r"trimtab\[encrypt\]"):
        Seal(KEY)


# Configuration --------------------------------------------------------------------------------------------------------

ENGINE = '[engines.e]\nkind = "openai_http"\nbase_url = "http://127.0.0.1:1/v1"\n'


def load(folder, text: str, **env: str) -> configuration.Config:
    (folder / "t.toml").write_text(ENGINE + text)
    return configuration.load(folder / "t.toml", {"HOME": "/home/somebody", **env})


def test_the_table_turns_it_on_with_redaction(tmp_path):
    assert load(tmp_path, "[routes.chat]\nretries = 1\n").route("chat").capture is None
    text = "[routes.default.capture]\n[routes.own]\nretries = 1\n[routes.k.capture]\nkey_env = 'K'\n"
    text += "patterns = ['A-\\d+']\n"
    found = load(tmp_path, text, K=TEXT)
    assert found.route("any").capture == configuration.CaptureConfig()
    assert found.route("own").capture is None  # a route with a table inherits nothing
    again = configuration.to_toml(configuration.effective(found))
    (tmp_path / "again.toml").write_text(again)
    assert configuration.load(tmp_path / "again.toml", {"K": TEXT}).routes == found.routes


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("mode = 'raw'", 'mode: must be one of "redacted", "plain"'),
        ("sample = 0", "sample: must be a share of requests"),
        ("sample = 1.1", "sample: must be a share of requests"),
        ("retention_days = 0", "retention_days: must be a number of days"),
        ("patterns = ['(a+)+b']", 'patterns: "(a+)+b" repeats what repeats'),
        ("key_env = 'NOT_SET'", "key_env: the environment variable NOT_SET is not set"),
        ("key_env = 'SHORT'", "key_env: the key in SHORT has 5 bytes, not 32"),
        ("key_env = 'WORD'", "key_env: the environment variable WORD is not base64"),
        (
            f"key_env = '{TEXT}'",
            'key_env: must be the name of an environment variable, not a secret; such as key_env = "T',
        ),
        ("keys_env = 'X'", "unknown key; did you mean 'key_env'?"),
    ],
)
def test_mistakes_are_named(tmp_path, key, said):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"[routes.chat.capture]\n{key}\n", SHORT="c2hvcnQ=", WORD="!word")
    (problem,) = caught.value.problems
    assert "routes.chat.capture." in problem
    assert said in problem
    assert TEXT not in problem


def test_config_check_says_what_is_captured(tmp_path):
    load(tmp_path, "[routes.chat.capture]\nsample = 0.5\nkey_env = 'K'\n", K=TEXT)
    result = CliRunner().invoke(main, ["config", "check", str(tmp_path / "t.toml")], env={"K": TEXT, "HOME": "/h"})
    assert "chat: 0.5 of the requests, redacted, encrypted with $K, kept 30 days" in result.output


# Commands -------------------------------------------------------------------------------------------------------------


def invoke(folder, *words: str, **more):
    env = {"TRIMTAB_DATA_DIR": str(folder), "TRIMTAB_CAPTURE_KEY": ""}
    return CliRunner().invoke(main, ["capture", *words], env=env, **more)


def test_erase_asks_and_says_what_it_did(tmp_path):
    writer = Writer(tmp_path / "capture.sqlite")
    writer.add([row(n, user=f"u{n % 2}") for n in range(5)])
    writer.close()
    asked_first = invoke(tmp_path, "erase", "--tenant", "acme", "--user", "u0", input="n\n")
    assert asked_first.exit_code == 1
    assert "Erase 3 requests of the user u0 of the tenant acme" in asked_first.output
    done = invoke(tmp_path, "erase", "--tenant", "acme", "--user", "u0", input="y\n")
    assert "Erased 3 requests" in done.output
    assert "Backups" in done.output
    assert json.loads(invoke(tmp_path, "erase", "--tenant", "acme", "--yes", "--json").stdout)["erased"] == 2
    assert "holds no request" in invoke(tmp_path, "summary").output


def test_no_file_and_files_of_others_are_named(tmp_path):
    for words in (["summary"], [], ["export"], ["erase", "--tenant", "x", "--yes"]):
        result = invoke(tmp_path, *words)
        assert result.exit_code == 1
        assert "nothing was captured" in result.output
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "capture.sqlite").write_text("no database at all, but long enough to be looked at" * 20)
    assert "cannot be read as captured traffic" in invoke(tmp_path, "summary").output
    (tmp_path / "capture.sqlite").unlink()
    connection = sqlite3.connect(tmp_path / "capture.sqlite")
    connection.execute("CREATE TABLE t (a)")
    connection.commit()
    assert "no capture file" in invoke(tmp_path, "summary").output
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert "newer than this Trimtab" in invoke(tmp_path, "summary").output
    with pytest.raises(BadRequest, match="upgrade Trimtab"):
        Writer(tmp_path / "capture.sqlite")
