"""Token classes conserve: their sum is the provider's own total, no class is negative, none is counted twice."""

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.protocols import CODECS
from trimtab.protocols.usage import anthropic_usage_object, openai_usage, openai_usage_object, read_openai_usage
from trimtab.types import Dialect, Usage

OAI, ANT = CODECS[Dialect.OPENAI], CODECS[Dialect.ANTHROPIC]
often = settings(deadline=None, max_examples=200)
COUNT = st.integers(0, 200_000)
JUNK = st.one_of(st.none(), st.booleans(), st.text(max_size=3), st.integers(-5, -1), st.lists(COUNT, max_size=2))
OPENAI_KEYS = [
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "prompt_cache_hit_tokens",
    "prompt_cache_miss_tokens",
    "cache_creation_input_tokens",
]
DETAILS_IN = ["cached_tokens", "audio_tokens", "cache_write_tokens", "text_tokens", "image_tokens"]
DETAILS_OUT = ["reasoning_tokens", "audio_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens"]
ANTHROPIC_KEYS = ["input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"]


def some(keys, values):
    return st.fixed_dictionaries({}, optional=dict.fromkeys(keys, values))


@st.composite
def openai_reports(draw):
    """A true report: the parts fit into their wholes, as the providers document them."""
    cached, written, audio, fresh = (draw(COUNT) for _ in range(4))
    reasoning, spoken, text = (draw(COUNT) for _ in range(3))
    prompt, completion = cached + written + audio + fresh, reasoning + spoken + text
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written, "audio_tokens": audio},
        "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": spoken},
    }


def classes(usage):
    return msgspec.structs.asdict(usage)


@often
@given(openai_reports())
def test_a_true_openai_report_is_split_exactly(report):
    usage = OAI.usage(report)
    assert usage.total == report["total_tokens"]
    assert (usage.input_total, usage.output_total) == (report["prompt_tokens"], report["completion_tokens"])
    assert usage.cache_read == report["prompt_tokens_details"]["cached_tokens"]
    assert usage.cache_write_5m == report["prompt_tokens_details"]["cache_write_tokens"]
    assert usage.reasoning == report["completion_tokens_details"]["reasoning_tokens"]


@often
@given(
    some(OPENAI_KEYS, COUNT | JUNK),
    some(DETAILS_IN, COUNT | JUNK) | JUNK,
    some(DETAILS_OUT, COUNT | JUNK) | JUNK,
)
def test_openai_garbage_never_goes_negative_and_sums_to_the_total(top, details_in, details_out):
    usage = OAI.usage({**top, "prompt_tokens_details": details_in, "completion_tokens_details": details_out})

    def count(key):
        value = top.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0

    assert min(classes(usage).values()) >= 0
    assert usage.total == max(count("total_tokens"), count("prompt_tokens") + count("completion_tokens"))


@often
@given(
    some(ANTHROPIC_KEYS, COUNT | JUNK),
    some(["ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens"], COUNT | JUNK) | JUNK,
    some(["thinking_tokens"], COUNT | JUNK) | JUNK,
)
def test_anthropic_reports_sum_to_their_total(top, breakdown, details):
    usage = ANT.usage({**top, "cache_creation": breakdown, "output_tokens_details": details})

    def count(obj, key):
        value = obj.get(key) if isinstance(obj, dict) else None
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0

    split = count(breakdown, "ephemeral_5m_input_tokens") + count(breakdown, "ephemeral_1h_input_tokens")
    assert min(classes(usage).values()) >= 0
    assert usage.input == count(top, "input_tokens")
    assert usage.cache_read == count(top, "cache_read_input_tokens")
    assert usage.cache_write_5m + usage.cache_write_1h == max(count(top, "cache_creation_input_tokens"), split)
    assert usage.output_total == count(top, "output_tokens")


@often
@given(st.builds(Usage, *[COUNT] * 8))
def test_usage_written_in_a_dialect_reads_back(usage):
    there = OAI.usage(openai_usage_object(usage))
    assert (there.input_total, there.output_total) == (usage.input_total, usage.output_total)
    assert (there.cache_read, there.reasoning) == (usage.cache_read, usage.reasoning)
    there = ANT.usage(anthropic_usage_object(usage))
    assert (there.input_total, there.output_total) == (usage.input_total, usage.output_total)
    assert (there.cache_read, there.cache_write_5m, there.cache_write_1h, there.reasoning) == (
        usage.cache_read,
        usage.cache_write_5m,
        usage.cache_write_1h,
        usage.reasoning,
    )


def test_surplus_totals_are_counted_once():
    outside = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 22}
    assert OAI.usage(outside | {"completion_tokens_details": {"reasoning_tokens": 7}}) == Usage(
        input=10, output=5, reasoning=7
    )
    assert OAI.usage(outside) == Usage(input=10, output=5, reasoning=7)
    cached = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 115}
    assert OAI.usage(cached | {"prompt_tokens_details": {"cached_tokens": 100}}) == Usage(
        input=10, cache_read=100, output=5
    )


def test_a_part_that_exceeds_its_whole_is_not_believed():
    report = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    assert OAI.usage(report | {"prompt_tokens_details": {"cached_tokens": 11}}) == Usage(input=10, output=5)
    assert OAI.usage(report | {"completion_tokens_details": {"reasoning_tokens": 6}}) == Usage(input=10, output=5)


def event(name, payload):
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode({"type": name} | payload) + b"\n\n"


@often
@given(some(ANTHROPIC_KEYS, st.none() | COUNT), some(ANTHROPIC_KEYS, st.none() | COUNT))
def test_streamed_anthropic_usage_merges_cumulatively(start, end):
    scanner = ANT.scanner(strip_usage=False)
    scanner.feed(event("message_start", {"message": {"model": "m", "usage": start}}))
    scanner.feed(event("message_delta", {"delta": {"stop_reason": "end_turn"}, "usage": end}))
    merged = {key: end.get(key) or start.get(key) or 0 for key in ANTHROPIC_KEYS}
    assert (scanner.usage or Usage()) == ANT.usage(merged)


@often
@given(openai_reports(), st.booleans())
def test_streamed_and_buffered_openai_usage_agree(report, with_choice):
    choices = [{"index": 0, "delta": {}, "finish_reason": "stop"}] if with_choice else []
    scanner = OAI.scanner(strip_usage=True)
    scanner.feed(b"data: " + msgspec.json.encode({"model": "m", "choices": choices, "usage": report}) + b"\n\n")
    body = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": report}
    assert scanner.usage == OAI.usage(report) == OAI.read_reply(msgspec.json.encode(body)).usage


TOTALS = ["prompt_tokens", "completion_tokens", "total_tokens"]


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*TOTALS, "prompt_cache_hit_tokens", "cache_creation_input_tokens"]),
        st.one_of(st.integers(-3, 60), st.none()),
    ),
    st.dictionaries(st.sampled_from(["cached_tokens", "audio_tokens", "cache_write_tokens"]), st.integers(-2, 40)),
    st.dictionaries(st.sampled_from(["reasoning_tokens", "audio_tokens"]), st.integers(-2, 40)),
    st.booleans(),
)
def test_the_short_way_to_usage_says_what_the_long_way_says(obj, details_in, details_out, adds_up):
    if adds_up:
        obj["total_tokens"] = (obj.get("prompt_tokens") or 0) + (obj.get("completion_tokens") or 0)
    obj |= {"prompt_tokens_details": details_in, "completion_tokens_details": details_out}
    assert read_openai_usage(msgspec.Raw(msgspec.json.encode(obj))) == openai_usage(obj)
