"""What of a request is a question for the semantic cache: what excludes it, what is context, what is text."""

import time

import msgspec
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from trimtab.levers.semantic_cache import topics
from trimtab.levers.semantic_cache.question import Question, Rules, question_of
from trimtab.types import Dialect, Request, Scope, Target

TARGET = Target("fast", "openai", "gpt-4o-mini", "openai")
ASK = "How do I change the delivery address?"
PATHS = {Dialect.OPENAI: "/v1/chat/completions", Dialect.ANTHROPIC: "/v1/messages"}
SCOPE = {"tenant": "acme", "route": "faq"}
DIALECTS = pytest.mark.parametrize("dialect", list(Dialect))


def user(content=ASK, **more):
    return {"role": "user", "content": content, **more}


def assistant(content="Sure."):
    return {"role": "assistant", "content": content}


def parts(*texts, **more):
    return [{"type": "text", "text": text, **more} for text in texts]


def ask(messages=None, *, dialect=Dialect.OPENAI, scope=None, body=None, **changes) -> Request:
    values = {"model": "fast", "messages": messages or [user()], "temperature": 0, **(body or {})}
    fields = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in values.items() if value is not ...}
    request = {
        "id": "req-1",
        "dialect": dialect,
        "path": PATHS[dialect],
        "scope": Scope(**SCOPE | (scope or {})),
        "model": "fast",
        "fields": fields,
        "stream": False,
        "wants_usage": False,
        "body_bytes": 0,
        "at": 0.0,
        "start": 0.0,
    }
    return Request(**{**request, **changes})


def of(request, target=TARGET, identity="", **rules):
    return question_of(request, target, identity, Rules(**rules))


def context(request, target=TARGET, identity="", **rules):
    found = of(request, target, identity, **rules)
    assert isinstance(found, Question), found
    return found.context


# --- what is excluded ------------------------------------------------------------------------------------------------

FORMS = [
    ({"temperature": ...}, "temperature not set"),
    ({"temperature": 0.7}, "temperature 0.7 above 0.1"),
    ({"store": True}, "store asks the provider to keep the answer"),
    ({"audio": {"voice": "a"}}, "audio answers expire at the provider"),
    ({"web_search_options": {}}, "web_search_options looks outside the request"),
    ({"tools": [{"type": "web_search_20250305"}]}, "a tool that the provider runs looks outside the request"),
    ({"tools": [{"name": "f"}]}, "tools offered (tools)"),
    ({"functions": [{"name": "f"}]}, "tools offered (functions)"),
    ({"tool_choice": "auto"}, "tools offered (tool_choice)"),
    ({"function_call": "auto"}, "tools offered (function_call)"),
    ({"n": 2}, "n asks for several answers"),
    ({"logprobs": True}, "logprobs belong to one very text"),
    ({"top_logprobs": 3}, "logprobs belong to one very text"),
    ({"messages": ...}, "messages cannot be read"),
    ({"messages": {}}, "messages cannot be read"),
    ({"messages": [1]}, "messages cannot be read"),
]
RESULT = "tool calls or results among the messages"
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TURNS = [
    ([user(), assistant()], "multi-turn (an assistant's turn)"),
    ([user("Hi"), user()], "multi-turn (several user turns)"),
    ([user(), {"role": "tool", "tool_call_id": "1", "content": "x"}], RESULT),
    ([{"role": "assistant", "content": None, "tool_calls": [CALL]}, user()], RESULT),
    ([assistant([{"type": "tool_use", "id": "1", "name": "f", "input": {}}]), user()], RESULT),
    ([user([{"type": "tool_result", "tool_use_id": "1", "content": "x"}])], RESULT),
    ([{"role": "system", "content": "x"}], "no user turn"),
    ([{"role": "narrator", "content": "x"}, user()], "a role that is not known"),
    ([user([*parts("What?"), {"type": "image_url", "image_url": {}}])], "content that is not text (image_url)"),
    ([user([{"type": "image", "source": {}}])], "content that is not text (image)"),
    ([user([{"type": "input_audio", "input_audio": {}}])], "content that is not text (input_audio)"),
    ([user([{"type": "file", "file": {}}])], "content that is not text (file)"),
    ([user([{"type": "document", "source": {}}])], "content that is not text (document)"),
    ([user([{"type": "secret thing"}])], "content that is not text (of another type)"),
    ([user(" \n")], "empty text"),
    ([user([])], "empty text"),
    ([user(None)], "empty text"),
    ([user("x" * 2001)], "text longer than max_chars (2000)"),
    ([user("What is the weather like in Oslo?")], "time-sensitive question (weather)"),
    ([user("What is my balance?")], "personal question (own data)"),
    ([user("How do I unsubscribe bob@mail.example?")], "personal question (EMAIL)"),
]


@DIALECTS
@pytest.mark.parametrize(("body", "reason"), FORMS)
def test_forms_that_are_excluded(dialect, body, reason):
    assert of(ask(dialect=dialect, body=body)) == reason


@DIALECTS
@pytest.mark.parametrize(("messages", "reason"), TURNS)
def test_messages_that_are_excluded(dialect, messages, reason):
    assert of(ask(messages, dialect=dialect)) == reason


@DIALECTS
def test_requests_that_are_excluded(dialect):
    assert of(ask(dialect=dialect, path="/v1/embeddings")) == "not a chat request"
    assert of(ask(dialect=dialect, scope={"cache": "off"})) == "client asked cache off"
    assert of(ask(dialect=dialect), None) == "no target"
    assert of(ask(dialect=dialect, idempotency="k")) == "an Idempotency-Key asks for an answer of its own"


def test_what_cannot_be_decoded_is_excluded():
    for raw in (b'[{"role":"user","content":"\\ud800"}]', b'[{"role":"user","content":3}]'):
        assert of(ask(fields=ask().fields | {"messages": msgspec.Raw(raw)})) == "messages cannot be read"


@DIALECTS
def test_what_is_no_obstacle(dialect):
    plain = ask(dialect=dialect)
    for body in ({"n": 1}, {"logprobs": False}, {"tools": []}, {"tool_choice": "none"}, {"store": False}):
        assert isinstance(of(ask(dialect=dialect, body=body)), Question)
    streamed = ask(dialect=dialect, body={"stream": True, "stream_options": {"include_usage": True}})
    assert of(streamed) == of(plain)
    assert isinstance(of(ask(dialect=dialect, path=PATHS[dialect] + "?beta=true")), Question)


def test_the_rules_open_what_they_name():
    assert isinstance(of(ask(body={"temperature": 1}), any_temperature=True), Question)
    assert isinstance(of(ask(body={"tools": [{"name": "f"}]}), tools=True), Question)
    assert of(ask([user(), assistant([{"type": "tool_use"}])]), tools=True, history="exact") == RESULT
    assert isinstance(of(ask([user("What is the weather?")]), time_sensitive=True), Question)
    assert isinstance(of(ask([user("What is my balance?")]), personal=True), Question)
    assert of(ask([user("abc")]), max_chars=2) == "text longer than max_chars (2)"
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"max_chars": 0}, Rules)


def test_a_users_own_context_allows_personal_questions():
    mine = [user("What is my balance? I am bob@mail.example")]
    assert isinstance(of(ask(mine, scope={"user": "bob"})), Question)
    assert of(ask(mine, scope={"user": "bob"}), share_users=True) == "personal question (own data)"
    assert of(ask(mine, scope={"user": "bob", "cache": "public"})) == "personal question (own data)"
    assert of(ask(mine)) == "personal question (own data)"


def test_exact_history_is_context():
    def talk(first="Hi", said="Hello.", last=ASK):
        return ask([user(first), assistant(said), user(last)])

    same = context(talk(), history="exact")
    assert context(talk(last="Other?"), history="exact") == same
    assert context(talk(first="Ho"), history="exact") != same
    assert context(talk(said="Hm."), history="exact") != same
    late = of(ask([user("What is the weather in Rome?"), assistant(), user("And in Paris?")]), history="exact")
    assert late == "time-sensitive question (weather), earlier"
    long = of(ask([user("x" * 2001), assistant(), user()]), history="exact")
    assert long == "text longer than max_chars (2000), earlier"
    seen = ask([user([{"type": "image_url"}]), assistant(), user()])
    assert of(seen, history="exact") == "content that is not text (image_url)"


# --- the text --------------------------------------------------------------------------------------------------------


def test_the_text_is_joined_composed_and_trimmed():
    assert of(ask([user(parts(" What ", "is a cafe\u0301? "))])).text == "What \nis a caf\u00e9?"
    assert context(ask([user("  Why?\n")])) == context(ask([user("Why?")]))


def test_marks_on_blocks_are_context():
    plain = context(ask([user(parts(ASK))]))
    marked = context(ask([user(parts(ASK, cache_control={"type": "ephemeral"}))]))
    assert plain != marked
    assert plain == context(ask([user(parts("Why?"))]))
    assert plain != context(ask([user(parts(ASK, "And why?"))]))


def test_what_a_parser_would_drop_is_context():
    def twice(first):
        raw = b'[{"role":"user","content":"%b","content":"Why?"}]' % first
        return context(ask(fields=ask().fields | {"messages": msgspec.Raw(raw)}))

    assert twice(b"one") != twice(b"two")


def test_a_text_that_stands_elsewhere_too_stays_apart():
    for text in ("user", "role", "content", "bob"):
        same = context(ask([{"role": "user", "name": "bob", "content": text}]))
        assert same == context(ask([{"role": "user", "name": "bob", "content": "Why?"}]))
    first = context(ask([{"role": "user", "content": "bob", "name": "bob"}]))
    assert first != context(ask([{"role": "user", "content": "bob", "name": "eve"}]))


# --- the context -----------------------------------------------------------------------------------------------------

SCOPE_PARTS = ["tenant", "route", "permission", "user", "prompt_version", "corpus_version", "policy_version"]
FIELDS = {
    "model": ["fast", "slow"],
    "system": ["be brief", [{"type": "text", "text": "be brief"}]],
    "temperature": [0, 0.0, 0.1],
    "top_p": [1, 0.5],
    "n": [1, None],
    "seed": [1, 2],
    "stop": ["a", ["a"]],
    "max_tokens": [1, 2],
    "tools": [[], [{"type": "function", "function": {"name": "f"}}]],
    "tool_choice": ["auto", "none"],
    "response_format": [{"type": "text"}, {"type": "json_object"}],
    "user": ["ann", "bob"],
    "metadata": [{}, {"a": "b"}],
    "thinking": [{"type": "disabled"}, {"type": "adaptive"}],
    "a_field_of_tomorrow": [1, 2],
}
words = st.text(st.characters(codec="utf-8"), max_size=12)
texts = words.filter(lambda text: text.strip() != "")
bodies = st.dictionaries(st.sampled_from(sorted(FIELDS)), st.integers(0, 5), max_size=8).map(
    lambda chosen: {name: FIELDS[name][n % len(FIELDS[name])] for name, n in chosen.items()}
)
scopes = st.fixed_dictionaries(dict.fromkeys(SCOPE_PARTS, words))
OPEN = {"tools": True, "time_sensitive": True, "personal": True, "history": "exact"}


@DIALECTS
@settings(deadline=None, max_examples=60)
@given(bodies, scopes, words, texts, texts)
def test_the_last_user_text_alone_changes_nothing(dialect, body, scope, system, one, two):
    def at(text):
        messages = [{"role": "system", "content": system}, user("Hi"), assistant(), user(text)]
        return of(ask(messages, dialect=dialect, body=body, scope=scope), **OPEN)

    assert at(one).context == at(two).context
    assert len(at(one).context) == 32


@DIALECTS
@settings(deadline=None, max_examples=100)
@given(bodies, scopes, st.sampled_from(sorted(FIELDS)), st.integers(0, 5))
def test_any_field_changes_the_context(dialect, body, scope, name, n):
    body = {"temperature": 0, "model": "fast", **body}
    value = FIELDS[name][n % len(FIELDS[name])]
    same = name in body and msgspec.json.encode(body[name]) == msgspec.json.encode(value)
    before = context(ask(dialect=dialect, body=body, scope=scope), **OPEN)
    assert (context(ask(dialect=dialect, body=body | {name: value}, scope=scope), **OPEN) == before) == same
    if name in body and name != "temperature":
        assert context(ask(dialect=dialect, body=body | {name: ...}, scope=scope), **OPEN) != before


@settings(deadline=None, max_examples=60)
@given(scopes, st.sampled_from(SCOPE_PARTS), words)
def test_any_part_of_the_scope_changes_the_context(scope, name, value):
    one, two = (context(ask(scope=part), **OPEN) for part in (scope, scope | {name: value}))
    assert (one == two) == (scope[name] == value)
    shared = [context(ask(scope=part), share_users=True, **OPEN) for part in (scope, scope | {"user": value})]
    assert shared[0] == shared[1]


@settings(deadline=None, max_examples=60)
@given(words, words, words, words)
def test_other_messages_are_context(system, other, said, other_said):
    def at(system, said):
        return context(ask([{"role": "developer", "content": system}, user("Hi"), assistant(said), user()]), **OPEN)

    assert (at(system, said) == at(other, other_said)) == ((system, said) == (other, other_said))


def test_the_rest_is_context():
    plain = context(ask())
    changed = [
        context(ask(dialect=Dialect.ANTHROPIC, path=PATHS[Dialect.OPENAI])),
        context(ask(path="/v1/messages")),
        context(ask(model="slow")),
        context(ask(variant=b"anthropic-beta: x\n")),
        context(ask(), identity="http://elsewhere"),
        context(ask([user(name="bob")])),
        *(
            context(ask(), msgspec.structs.replace(TARGET, **{part: "other"}))
            for part in ("engine", "provider", "upstream_model")
        ),
        context(ask(), share_users=True),
    ]
    assert len({plain, *changed}) == len(changed) + 1
    same = ask(id="x", at=9.0, client_key="s", scope={"session": "a", "workflow": "b"}, headers=((b"a", b"b"),))
    assert context(same) == plain


# --- what a text is about --------------------------------------------------------------------------------------------

ABOUT = [
    ("What time is it in Tokyo?", "the clock", ""),
    ("what's the date today", "the clock", ""),
    ("How many days until Christmas?", "the clock", ""),
    ("What’s the weather like in Oslo?", "weather", ""),
    ("Will it rain in Berlin?", "weather", ""),
    ("What is the latest news about the strike?", "news", ""),
    ("What is the price of gold?", "prices", ""),
    ("apple stock price", "prices", ""),
    ("What is the exchange rate between euros and dollars?", "prices", ""),
    ("What is 10 euros in dollars?", "prices", ""),
    ("live score of the final", "an event under way", ""),
    ("Is flight DL123 on time?", "an event under way", ""),
    ("How is the traffic on the A7?", "an event under way", ""),
    ("Who is the current president of France?", "the newest", ""),
    ("What is the latest version of Python?", "the newest", ""),
    ("Who is currently CEO of Acme?", "now", ""),
    ("Is the pharmacy open right now?", "now", ""),
    ("What happened in the markets yesterday?", "a day seen from now", ""),
    ("Which concerts are there this weekend?", "a day seen from now", ""),
    ("What should I do in Rome tomorrow?", "a day seen from now", ""),
    ("Wie wird das Wetter in Köln?", "weather", ""),
    ("Wer spielt heute?", "a day seen from now", ""),
    ("Wie spät ist es?", "the clock", ""),
    ("Quelle heure est-il ?", "the clock", ""),
    ("Que se passe-t-il aujourd'hui à Lyon ?", "a day seen from now", ""),
    ("¿Qué hora es?", "the clock", ""),
    ("¿Qué pasó ayer en Madrid?", "a day seen from now", ""),
    ("What is my account balance?", "", "own data"),
    ("Please show me my transactions.", "", "own data"),
    ("what is the balance on my visa", "", "own data"),
    ("How much did I spend on food?", "", "own amounts"),
    ("how much do i owe", "", "own amounts"),
    ("Where is my package?", "", "own status"),
    ("Has my order shipped?", "", "own status"),
    ("When do I get paid?", "", "own status"),
    ("The parcel for order 48213 is damaged, what can be done?", "", "a case's number"),
    ("Wie ist mein Kontostand?", "", "own data"),
    ("Où est ma commande ?", "", "own data"),
    ("¿Dónde está mi pedido?", "", "own data"),
    # What looks like it, and is not.
    ("What happened in 1914?", "", ""),
    ("I am currently unable to log in.", "", ""),
    ("I made a transfer yesterday. How long does it take?", "", ""),
    ("My card was declined today, what can I do?", "", ""),
    ("It should have arrived by now.", "", ""),
    ("How do I open a current account?", "", ""),
    ("How does electric current flow?", "", ""),
    ("What is the latest I can cancel?", "", ""),
    ("How is an exchange rate determined?", "", ""),
    ("The exchange rate of the payment was wrong.", "", ""),
    ("How do I unsubscribe from the newsletter?", "", ""),
    ("Explain nowhere dense sets.", "", ""),
    ("What is the time complexity of quicksort?", "", ""),
    ("How long until my new card arrives?", "", ""),
    ("Which time zone is Berlin in?", "", ""),
    ("Guten Morgen, wie ändere ich die Adresse?", "", ""),
    ("Wo finde ich hier die Einstellungen?", "", ""),
    ("My card has not arrived.", "", ""),
    ("How do I see my balance in the app?", "", ""),
    ("Why is my balance not updated after a transfer?", "", ""),
    ("How can I track an order?", "", ""),
    ("Can I change my PIN?", "", ""),
    ("How much can I withdraw abroad?", "", ""),
    ("How do I order a new card?", "", ""),
]


@pytest.mark.parametrize(("text", "when", "who"), ABOUT)
def test_what_a_text_is_about(text, when, who):
    assert topics.about(text) == (when, who)


@pytest.mark.parametrize(
    "unit", ["today i ", "i now? ", "order-", "1,", "who won the game ", "my a", "a", "show me the "]
)
def test_a_long_text_takes_no_longer_than_its_length_says(unit):
    def took(size):
        text = (unit * size)[:size]
        spent = []
        for _ in range(3):
            start = time.process_time()
            topics.about(text)
            spent.append(time.process_time() - start)
        return min(spent)

    assert took(80_000) < 100 * (took(4_000) + 1e-4)  # 20 times as long; a square would be 400


KINDS = [*topics._TIME, *topics._PERSON]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.pattern.pattern.split()[0][:24])
@settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_match_has_a_word(kind, data):
    """A text is searched only if one of the kind's words is in it: so every match must have one."""
    drawn = data.draw(st.from_regex(kind.pattern, alphabet=st.characters(codec="ascii"))).lower()
    match = kind.pattern.search(drawn)
    assume(match is not None)
    found = topics._WORDS.findall(drawn)
    assert not kind.words.isdisjoint(found) and not kind.owners.isdisjoint(found), match
