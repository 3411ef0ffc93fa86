"""Two requests share a cache key if, and only if, nothing that can change the answer differs."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.levers.exact_cache import cache_key
from trimtab.types import Dialect, Request, Scope, Target

TARGET = Target("fast", "openai", "gpt-4o-mini", "openai")
SCOPE_IN_KEY = ["tenant", "route", "permission", "user", "prompt_version", "corpus_version", "policy_version"]
FIELDS = {
    "model": ["fast", "slow"],
    "messages": [[{"role": "user", "content": "hi"}], [{"role": "user", "content": "hi "}], []],
    "system": ["be brief", [{"type": "text", "text": "be brief"}]],
    "temperature": [0, 0.0, 0.1],
    "top_p": [1, 0.5],
    "n": [1, 2],
    "seed": [1, 2, None],
    "stop": ["a", ["a"], "b"],
    "max_tokens": [1, 2],
    "max_completion_tokens": [1, 2],
    "tools": [[], [{"type": "function", "function": {"name": "f"}}]],
    "tool_choice": ["auto", "none", "required"],
    "parallel_tool_calls": [True, False],
    "response_format": [{"type": "text"}, {"type": "json_object"}],
    "logprobs": [True, False],
    "logit_bias": [{"1": 1}, {"1": 2}],
    "frequency_penalty": [0, 1],
    "presence_penalty": [0, 1],
    "reasoning_effort": ["low", "high"],
    "thinking": [{"type": "enabled", "budget_tokens": 1024}, {"type": "disabled"}],
    "service_tier": ["auto", "flex"],
    "user": ["ann", "bob"],
    "metadata": [{}, {"a": "b"}],
    "a_field_of_tomorrow": [1, 2],
}

text = st.text(max_size=12).filter(lambda s: not any(0xD800 <= ord(c) <= 0xDFFF for c in s))
scopes = st.fixed_dictionaries(dict.fromkeys(SCOPE_IN_KEY, text))
bodies = st.dictionaries(st.sampled_from(sorted(FIELDS)), st.integers(0, 10), max_size=10).map(
    lambda chosen: {name: FIELDS[name][n % len(FIELDS[name])] for name, n in chosen.items()}
)


def build(body: dict, scope: dict, order: list[str] | None = None, **changes) -> Request:
    fields = {name: msgspec.Raw(msgspec.json.encode(body[name])) for name in order or body}
    values = {
        "id": "x",
        "dialect": Dialect.OPENAI,
        "path": "/v1/chat/completions",
        "scope": Scope(**scope),
        "model": "fast",
        "fields": fields,
        "stream": False,
        "wants_usage": False,
        "body_bytes": 0,
        "at": 0.0,
        "start": 0.0,
    }
    return Request(**{**values, **changes})


def key(request: Request, target: Target = TARGET, *, share_users: bool = False) -> bytes:
    return cache_key(request, target, share_users=share_users)


def meaning(body: dict, scope: dict) -> object:
    return {name: msgspec.json.encode(value) for name, value in body.items()}, scope


@settings(deadline=None)
@given(bodies, scopes, st.randoms())
def test_the_order_of_the_fields_does_not_matter(body, scope, rng):
    order = list(body)
    rng.shuffle(order)
    assert key(build(body, scope)) == key(build(body, scope, order))


@settings(deadline=None)
@given(bodies, scopes, bodies, scopes)
def test_equal_keys_mean_equal_requests(body, scope, other_body, other_scope):
    same = meaning(body, scope) == meaning(other_body, other_scope)
    assert (key(build(body, scope)) == key(build(other_body, other_scope))) == same


@settings(deadline=None)
@given(bodies, scopes, st.sampled_from(sorted(FIELDS)), st.integers(0, 10))
def test_any_change_of_any_field_changes_the_key(body, scope, name, n):
    value = FIELDS[name][n % len(FIELDS[name])]
    changed = {**body, name: value}
    same = name in body and msgspec.json.encode(body[name]) == msgspec.json.encode(value)
    assert (key(build(body, scope)) == key(build(changed, scope))) == same
    if name in body:
        assert key(build({k: v for k, v in body.items() if k != name}, scope)) != key(build(body, scope))


@settings(deadline=None)
@given(bodies, scopes, st.sampled_from(SCOPE_IN_KEY), text)
def test_any_change_of_the_scope_changes_the_key(body, scope, name, value):
    changed = {**scope, name: value}
    assert (key(build(body, scope)) == key(build(body, changed))) == (scope[name] == value)


@settings(deadline=None)
@given(bodies, scopes, st.sampled_from(SCOPE_IN_KEY), st.sampled_from(SCOPE_IN_KEY))
def test_text_does_not_leak_from_one_part_into_the_next(body, scope, one, two):
    """Moving a value to another part, or the border between two parts, is another request."""
    moved = {**scope, one: "", two: scope[one] + scope[two]}
    assert (key(build(body, scope)) == key(build(body, moved))) == (moved == scope)


@settings(deadline=None)
@given(
    st.dictionaries(text, st.binary(max_size=8), max_size=4), st.dictionaries(text, st.binary(max_size=8), max_size=4)
)
def test_no_names_or_bytes_of_fields_collide(one, two):
    def request(fields):
        return build({}, {"tenant": "t"}, fields={name: msgspec.Raw(value) for name, value in fields.items()})

    kept = [{k: v for k, v in f.items() if k not in ("stream", "stream_options")} for f in (one, two)]
    assert (key(request(one)) == key(request(two))) == (kept[0] == kept[1])


@settings(deadline=None)
@given(bodies, scopes, text, text)
def test_what_cannot_change_the_answer_is_left_out(body, scope, session, workflow):
    plain = key(build(body, scope))
    assert plain == key(build(body, {**scope, "session": session, "workflow": workflow}))
    assert plain == key(build({**body, "stream": True, "stream_options": {"include_usage": True}}, scope))
    assert plain == key(build(body, scope, id="other", at=5.0, client_key="k", headers=((b"user-agent", b"x"),)))


@settings(deadline=None)
@given(bodies, scopes, text)
def test_sharing_leaves_out_the_user_and_nothing_else(body, scope, user):
    shared = key(build(body, scope), share_users=True)
    assert shared == key(build(body, {**scope, "user": user}), share_users=True)
    assert shared != key(build(body, {**scope, "user": ""}))  # nor does "no user" share with "all users"
    assert shared != key(build(body, {**scope, "tenant": scope["tenant"] + "x"}), share_users=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"dialect": Dialect.ANTHROPIC},
        {"path": "/v1/messages"},
        {"model": "slow"},
        {"variant": b"anthropic-beta: x"},
    ],
)
def test_the_rest_of_the_request_counts_too(changes):
    body, scope = {"messages": []}, {"tenant": "t"}
    assert key(build(body, scope)) != key(build(body, scope, **changes))


@pytest.mark.parametrize("part", ["engine", "upstream_model", "provider"])
def test_the_target_counts(part):
    request = build({"messages": []}, {"tenant": "t"})
    assert key(request) != key(request, msgspec.structs.replace(TARGET, **{part: "other"}))


def test_the_servers_identity_counts():
    request = build({"messages": []}, {"tenant": "t"})
    assert cache_key(request, TARGET, "one", share_users=False) != cache_key(request, TARGET, "two", share_users=False)


def test_the_key_does_not_drift():
    """A change here orphans every stored answer: raise KEY_FORMAT, so that it is on purpose."""
    request = build({"model": "fast", "messages": [], "temperature": 0}, {"tenant": "acme", "user": "ann"})
    assert key(request).hex() == "80290641067b8c63ba50b6b5ac36c491581cc353093ea1990c71cec8ce315655"
