"""Requests as clients send them, and what becomes of one when exactly one thing about it changes."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

from trimtab.types import Dialect, Target

PATHS = {Dialect.OPENAI: "/v1/chat/completions", Dialect.ANTHROPIC: "/v1/messages"}
TARGETS = {
    Dialect.OPENAI: Target("fast", "oai", "gpt-up", "openai"),
    Dialect.ANTHROPIC: Target("fast", "ant", "claude-up", "anthropic"),
}
SCOPE = ("route", "user", "permission", "prompt_version", "corpus_version", "policy_version")
TOOL = '{"type":"function","name":"f","function":{"name":"f","parameters":{"type":"object"}}}'
# JSON as it stands in the body: what a base request may have, and what it may then be changed to.
FIELDS: dict[str, tuple[list[str], list[str]]] = {
    "temperature": (["0", "0.0", "0.1", "-0", "1e-1"], ["0.05", "1", '"0"', "false", "null"]),
    "top_p": (["1", "0.5"], ["1.0", "true", '"1"', "null", "0.50", "5e-1"]),
    "n": (["1", "null"], ["1.0", "true", '"1"', "2"]),
    "seed": (["1", "7"], ["1.0", "true", '"1"', "null", "1e0", "70"]),
    "stop": (['"a"', '["a"]'], ['["a","b"]', '["a", "b"]', '"a "', "null", "[]"]),
    "max_tokens": (["10", "1"], ["11", "100", "1.0", "true", '"10"', "null"]),
    "logprobs": (["false", "null"], ["true", "0", '"false"', "1"]),
    "top_logprobs": (["0", "null"], ["3", "0.0", "false"]),
    "logit_bias": (["{}", '{"1":1}'], ['{"1":1.0}', '{"1":true}', '{"1": 1}', '{"2":1}', "null", "[]"]),
    "tools": (["[]", f"[{TOOL}]"], [f"[{TOOL},{TOOL}]", f"[ {TOOL}]", f"[{TOOL.replace('object', 'string')}]", "null"]),
    "tool_choice": (['"auto"', '"none"'], ['"required"', '{"type":"auto"}', "null", '"Auto"']),
    "response_format": (['{"type":"text"}'], ['{"type":"json_object"}', '{ "type":"text"}', '"text"', "null", "{}"]),
    "frequency_penalty": (["0"], ["0.0", "1", "false", "-0"]),
    "reasoning_effort": (['"low"'], ['"high"', '"Low"', "null"]),
    "thinking": (['{"type":"disabled"}'], ['{"type":"adaptive"}', "null"]),
    "service_tier": (['"auto"'], ['"flex"']),
    "user": (['"ann"'], ['"bob"', '"ann "', '"\\u0061nn"', "1"]),
    "a_field_of_tomorrow": (["1", '{"a":{"b":[1]}}'], ['{"a":{"b":[1.0]}}', '{"a":{"b":1}}', "1.0", '"1"', "[1]", "2"]),
}

words = st.text('ab "\\/é\u00dfλ{}:,', min_size=1, max_size=10).filter(lambda text: text.strip() != "")
names = st.text("abc Ünï-:/\x7e", max_size=6)


@dataclass(frozen=True)
class Asked:
    """One request: JSON literals by the names of the fields, in order, and all that stands around the body."""

    tenant: str
    said: tuple[tuple[str, str], ...]  # of the scope
    fields: tuple[tuple[str, str], ...]  # a field's JSON name, its JSON value
    dialect: Dialect
    path: str
    target: Target
    identity: str = "https://one.test"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    by_header: bool = False  # the scope is said in headers, not in the body
    glue: str = ","
    client_key: str = ""

    @property
    def body(self) -> bytes:
        """What is sent."""
        fields = list(self.fields)
        said = {name: value for name, value in self.said if value}
        if said and not self.by_header:
            fields.append(('"metadata"', json.dumps({"trimtab": said})))
        return ("{" + self.glue.join(f"{name}:{value}" for name, value in fields) + "}").encode()

    @property
    def all_headers(self) -> list[tuple[bytes, bytes]]:
        """The scope's among them, if it is said there."""
        said = [(f"x-trimtab-{k.replace('_', '-')}".encode(), v.encode("latin-1")) for k, v in self.said if v]
        return [*self.headers, *(said if self.by_header else [])]

    @property
    def meaning(self) -> Asked:
        """The same for two that say the same: no route is the default one."""
        return self.saying("route", dict(self.said)["route"] or "default")

    def saying(self, name: str, value: str) -> Asked:
        """With another value in its scope."""
        return replace(self, said=tuple({**dict(self.said), name: value}.items()))

    def with_field(self, name: str, value: str | None) -> Asked:
        """With another literal in a field; None takes it out."""
        fields = dict(self.fields)
        fields.pop(f'"{name}"', None) if value is None else fields.update({f'"{name}"': value})
        return replace(self, fields=tuple(fields.items()))


@dataclass(frozen=True)
class Talk:
    """What is said in a request."""

    system: str
    history: tuple[tuple[str, str], ...]
    last: str

    def messages(self, dialect: Dialect) -> list[dict[str, Any]]:
        """As JSON; Anthropic's system prompt is a field of its own."""
        turns = [{"role": "system", "content": self.system}] if dialect is Dialect.OPENAI else []
        for user, assistant in self.history:
            turns += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        return [*turns, {"role": "user", "content": self.last}]


talks = st.builds(Talk, words, st.lists(st.tuples(words, words), max_size=2).map(tuple), words)


def compact(value: Any) -> str:
    """JSON without spaces, letters as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def of(talk: Talk, asked: Asked) -> Asked:
    """The request, with other words in it."""
    if asked.dialect is Dialect.ANTHROPIC:
        asked = asked.with_field("system", compact(talk.system))
    return asked.with_field("messages", compact(talk.messages(asked.dialect)))


@st.composite
def requests(draw: st.DrawFn) -> tuple[Asked, Talk]:
    """A request whose answer may be kept, and what is said in it."""
    dialect = draw(st.sampled_from(list(Dialect)))
    talk = draw(talks)
    scope = tuple((name, draw(names)) for name in SCOPE)
    given = draw(st.lists(st.sampled_from(sorted(FIELDS)), unique=True, max_size=8))
    musts = ["temperature"] + (["max_tokens"] if dialect is Dialect.ANTHROPIC else [])
    chosen = {name: draw(st.sampled_from(FIELDS[name][0])) for name in [*musts, *given]}
    fields = {'"model"': '"fast"', **{f'"{name}"': value for name, value in chosen.items()}}
    tenant = "t" + draw(names)
    return of(talk, Asked(tenant, scope, tuple(fields.items()), dialect, PATHS[dialect], TARGETS[dialect])), talk


def others(asked: Asked, talk: Talk) -> dict[str, Asked]:
    """Requests that differ in one thing that may change the answer, by what it is."""
    found = dict(_other_fields(asked))
    found.update(_other_scopes(asked))
    found.update(_other_words(asked, talk))
    for part in ("engine", "upstream_model", "provider"):
        value = {"engine": f"{asked.target.engine}2"}.get(part, "other")
        found[f"target {part}"] = replace(asked, target=_changed(asked.target, part, value))
    found["identity"] = replace(asked, identity="https://two.test")
    found["model"] = asked.with_field("model", '"slow"')
    found["dialect"] = replace(asked, path=PATHS[_twin(asked.dialect)], dialect=_twin(asked.dialect))
    found["query"] = replace(asked, path=f"{asked.path}?beta=true")
    for name in ("anthropic-beta", "openai-organization"):
        found[name] = replace(asked, headers=((name.encode(), b"x"),))
    found["idempotency"] = replace(asked, headers=((b"idempotency-key", b"once"),))
    return {name: other for name, other in found.items() if other.meaning != asked.meaning}


def _other_fields(asked: Asked) -> Iterator[tuple[str, Asked]]:
    now = dict(asked.fields)
    for name, (values, more) in FIELDS.items():
        for value in [*values, *more]:
            yield f"{name} {value}", asked.with_field(name, value)
        if f'"{name}"' in now:
            yield f"no {name}", asked.with_field(name, None)
            yield (
                f"{name} in capitals",
                replace(asked, fields=tuple((k.upper() if k == f'"{name}"' else k, v) for k, v in asked.fields)),
            )
            yield f"{name} twice", replace(asked, fields=(*asked.fields, (f'"{name}"', more[0])))


def _other_scopes(asked: Asked) -> Iterator[tuple[str, Asked]]:
    said = dict(asked.said)
    yield "tenant", replace(asked, tenant=asked.tenant + "x")
    yield "tenant's case", replace(asked, tenant=asked.tenant.upper())
    yield "tenant and route", replace(asked, tenant=asked.tenant + said["route"]).saying("route", "")
    for name in SCOPE:
        yield name, asked.saying(name, said[name] + "x")
        yield f"{name} and a space", asked.saying(name, said[name] + " ")
        yield f"no {name}", asked.saying(name, "default" if name == "route" else "")
    for one, two in pairwise(SCOPE):
        yield f"{one} and {two} swapped", asked.saying(one, said[two]).saying(two, said[one])
        yield f"{one} and {two} moved", asked.saying(one, said[one] + said[two][:1]).saying(two, said[two][1:])


def _other_words(asked: Asked, talk: Talk) -> Iterator[tuple[str, Asked]]:
    yield "system", of(replace(talk, system=talk.system + "x"), asked)
    yield "system, decomposed", of(replace(talk, system=unicodedata.normalize("NFD", talk.system)), asked)
    yield "system in blocks", _system_in_blocks(talk, asked)
    yield "a turn more", of(replace(talk, history=(*talk.history, ("a", "b"))), asked)
    yield (
        "a word from here to there",
        of(replace(talk, system=talk.system + talk.last[:1], last=talk.last + "x"), asked),
    )
    if talk.history:
        (user, assistant), *rest = talk.history
        yield "a turn less", of(replace(talk, history=tuple(rest)), asked)
        yield "said earlier", of(replace(talk, history=((user + "x", assistant), *rest)), asked)
        yield "answered earlier", of(replace(talk, history=((user, assistant + "x"), *rest)), asked)
        yield "the border of two turns", of(replace(talk, history=((user + assistant, " "), *rest)), asked)
    messages = talk.messages(asked.dialect)
    last = messages[-1]
    for name, more in (("name", {"name": "bob"}), ("mark", {"cache_control": {"type": "ephemeral"}})):
        yield f"a {name} on the last turn", asked.with_field("messages", compact([*messages[:-1], last | more]))
    yield "the last turn twice", asked.with_field("messages", compact([*messages, last]))
    yield "the last turn another's", asked.with_field("messages", compact([*messages[:-1], last | {"role": "system"}]))
    blocks = {"role": "user", "content": [{"type": "text", "text": talk.last}]}
    yield "the last turn in blocks", asked.with_field("messages", compact([*messages[:-1], blocks]))
    yield "an answer begun", asked.with_field("messages", compact([*messages, {"role": "assistant", "content": "It"}]))
    twice = compact(messages)[:-2] + ',"content":"x"}]'
    yield "content twice", asked.with_field("messages", twice)


def _system_in_blocks(talk: Talk, asked: Asked) -> Asked:
    blocks = [{"type": "text", "text": talk.system}]
    if asked.dialect is Dialect.ANTHROPIC:
        return asked.with_field("system", compact(blocks))
    first, *rest = talk.messages(asked.dialect)
    return asked.with_field("messages", compact([first | {"content": blocks}, *rest]))


def other_questions(asked: Asked, talk: Talk) -> dict[str, Asked]:
    """Requests that differ in the text of the last user turn alone: others to the exact cache only."""
    last, messages = talk.last, talk.messages(asked.dialect)
    spaced = json.dumps(last + "!", ensure_ascii=True)
    found = {
        "another question": of(replace(talk, last=last + " and b"), asked),
        "spaces around it": of(replace(talk, last=f" {last}\n"), asked),
        "decomposed": of(replace(talk, last=unicodedata.normalize("NFD", last)), asked),
        "escaped": asked.with_field("messages", compact(messages)[: -len(compact(last)) - 2] + spaced + "}]"),
    }
    return {name: other for name, other in found.items() if other != asked}


def equals(asked: Asked) -> dict[str, Asked]:
    """Requests that have to get the very same answer."""
    first, *rest = asked.fields
    found = {
        "itself": asked,
        "fields in another order": replace(asked, fields=asked.fields[::-1]),
        "space between fields": replace(asked, glue=" ,\n\t"),
        "a field twice, the last time so": replace(asked, fields=(('"temperature"', "1.5"), *asked.fields)),
        "a name in escapes": replace(asked, fields=(('"\\u006dodel"', first[1]), *rest)),
        "streamed": asked.with_field("stream", "true"),
        "not streamed": asked.with_field("stream", "false"),
        "stream null": asked.with_field("stream", "null"),
        "a session and a workflow": asked.saying("session", "s").saying("workflow", "w"),
        "a client's headers": replace(asked, headers=((b"user-agent", b"x"), (b"accept", b"*/*"))),
        "another secret of the tenant": replace(asked, client_key="sk-two"),
    }
    if asked.dialect is Dialect.OPENAI:
        usage = asked.with_field("stream", "true").with_field("stream_options", '{"include_usage":true}')
        found["streamed with usage"] = usage
    if all(value.isascii() for _, value in asked.said):
        found["its scope in headers"] = replace(asked, by_header=True)
    return found


def _twin(dialect: Dialect) -> Dialect:
    return Dialect.ANTHROPIC if dialect is Dialect.OPENAI else Dialect.OPENAI


def _changed(target: Target, part: str, value: str) -> Target:
    facts = {name: getattr(target, name) for name in ("model", "engine", "upstream_model", "provider")}
    return Target(**facts | {part: value})
